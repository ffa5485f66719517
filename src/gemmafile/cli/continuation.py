"""Going on from a text: the prompt is shown, the model continues it; with -i it waits for more text in between."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gemmafile.cli.answers import write_answer
from gemmafile.cli.details import show_prompt
from gemmafile.cli.lines import LineReader
from gemmafile.cli.streams import Streams
from gemmafile.completion import check_prompt

if TYPE_CHECKING:
    from gemmafile.cli.run import Plan
    from gemmafile.model_api import Model


def run_continuation(model: Model, plan: Plan, streams: Streams) -> int:
    """Returns the exit code. Raises ContextOverflow when the prompt does not fit."""
    settings = plan.run
    text = plan.prompt or ""
    if model.tokenizer.starts_with_bos(text):
        streams.say("the prompt begins with the BOS token already: none is added")
    token_ids = model.encode_prompt(text)
    waits = settings.interactive_first or plan.prompt is None
    if not waits:
        check_prompt(token_ids, model.n_context)
    if settings.verbose_prompt:
        show_prompt(model, token_ids, streams)
    echo = model.tokenizer.decode(token_ids, settings.special) if settings.display_prompt else ""
    if settings.interactive or waits:
        _take_turns(model, plan, streams, token_ids, echo, is_users_turn=waits)
    else:
        write_answer(model, token_ids, plan.sampling, settings, streams, echo=echo)
    streams.end_line()
    return 0


def _take_turns(
    model: Model, plan: Plan, streams: Streams, token_ids: list[int], echo: str, *, is_users_turn: bool
) -> None:
    """The model and the user go on from each other's text until the input ends."""
    settings = plan.run
    if is_users_turn:
        streams.write(echo)
        echo = ""
    with LineReader(settings, streams) as reader:
        while True:
            if is_users_turn:
                message = reader.read_message("")
                if message is None:
                    return
                # What is typed is plain text; prefix and suffix come from the command line and may hold control tokens.
                parts = [(settings.in_prefix, True), (message, False), (settings.in_suffix, True)]
                token_ids = token_ids + model.tokenizer.encode_parts(parts)
            _, answer = write_answer(
                model, token_ids, plan.sampling, settings, streams, echo=echo, ctrl_c_stops_it=True
            )
            echo = ""
            streams.write(answer.stop_text or "")  # a reverse prompt such as "User:" is the cue to type
            token_ids = token_ids + answer.token_ids
            is_users_turn = True
