#!/bin/sh
# demo.sh smollm2|gemma3: talks to a small model in the terminal; with no terminal it answers one question and ends.
set -eu
name=$1
model=$(.venv/bin/python tools/get_model.py "$name")
if [ "$name" = gemma3 ]; then
    # A base model: it was never taught to chat, it continues a text.
    text="The capital of France is"
    if [ -t 0 ]; then
        printf 'A text to continue [%s]: ' "$text" >&2
        read -r answer && text=${answer:-$text}
    fi
    exec .venv/bin/gemmafile run "$model" --temp 0 -n 30 -p "$text"
fi
if [ -t 0 ]; then
    exec .venv/bin/gemmafile run "$model"
fi
exec .venv/bin/gemmafile run "$model" --temp 0 -n 150 -st -p "Give me three tips for staying healthy."
