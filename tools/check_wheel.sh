#!/bin/sh
# check_wheel.sh PYTHON WHEEL MODEL: the wheel in an environment without Numba and llvmlite runs a model on the CPU backend.
set -eu
python=$1 wheel=$2 model=$3
place=build/wheel-venv
rm -rf "$place"
"$python" -m venv "$place"
grep -ivE '^(numba|llvmlite)[=<>~! ]' requirements.lock |
    grep -iE '^(numpy|jinja2|markupsafe|rich|markdown-it-py|mdurl|pygments|platformdirs|llguidance)[=<>~! ]' >"$place/lock"
"$place/bin/python" -m pip install --disable-pip-version-check --quiet --no-deps -r "$place/lock" "$wheel"
said=$(GEMMAFILE_CACHE=$place/cache "$place/bin/gemmafile" -m "$model" -no-cnv -p "Once upon a time" -n 8 --temp 0 2>&1)
case $said in
*reference* | *compil* | *gemmafile:*)
    echo "the wheel does not run by itself: $said" >&2
    exit 1
    ;;
esac
echo "the wheel without Numba: $said"
