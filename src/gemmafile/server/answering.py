"""From a request to text: what every API's routes are made of.

    token_ids = await chat_prompt(door, messages)          or prompt_ids(door, text)
    pieces = await begin(answer(door, Ask(token_ids, sampling)))
    async for piece in pieces: ...                         Progress, TextPiece ..., and at the end one Finished

`begin` (streaming.py) waits for the first of them, so that what is wrong with a request still gets its true status.
Closing the iterator, which a client's going away does, cancels the job within one pass of the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from starlette.requests import Request

from gemmafile.completion import StopStrings, stop_ids
from gemmafile.engine.jobs import End, Progress, Scores, Timings, Token
from gemmafile.engine.sampling_options import check_sampling
from gemmafile.server.client import JobStream
from gemmafile.server.door import Door
from gemmafile.server.errors import ApiError, bad_request, context_overflow
from gemmafile.server.filters import Refused
from gemmafile.server.log import Record, current
from gemmafile.server.streaming import until_disconnect
from gemmafile.settings import SamplingSettings

MOST_HALVES = 8
"""Tokens at the end of a prompt that may hold the first bytes of a character."""

LONG_TEXT = 20_000
"""Characters beyond which a prompt is encoded on another thread: 10 ms and more."""

END_WITHIN_S = 10.0
"""How long an answer that was stopped waits for the engine to say so."""


@dataclass
class Ask:
    """One answer that is wanted.

    max_tokens    negative: until the model ends or the context is full · `stop` texts that end it
    n_probs       probabilities of so many tokens with each one; taken from `sampling` where it is not given here
    special       control tokens are written out · `slot` to run in, -1: any · `deadline_s` seconds at most
    score_prompt  `Scores` of the prompt's tokens come first · `n_begun` of its last tokens belong to the answer
    """

    token_ids: list[int]
    sampling: SamplingSettings
    max_tokens: int = -1
    stop: Sequence[str] = ()
    n_probs: int = 0
    special: bool = False
    cache_prompt: bool = True
    slot: int = -1
    deadline_s: float | None = None
    score_prompt: bool = False
    n_begun: int = 0


@dataclass(frozen=True, slots=True)
class TextPiece:
    """What a token added to the text: "" while it is held back, which may be part of a character or of a stop string.

    `token_id`  None for text released at the end · `logprob`, `top` [(token id, log-probability)] where asked for
    """

    text: str
    token_id: int | None = None
    logprob: float | None = None
    top: Sequence[tuple[int, float]] | None = None


Ending = Literal["eos", "word", "limit", "context full", "cancelled", "deadline", "filter"]


@dataclass(frozen=True)
class Finished:
    """The answer is over.

    finish_reason  in OpenAI's words: "stop" (the model ended it, or a stop string), "length", "content_filter"
    ending         more exactly · `stop_text` the stop string, if that was why
    n_prompt       tokens of the prompt, `n_cached` of them not computed again · `n_predicted` tokens chosen
    timings        llama.cpp's object · `token_ids` chosen, the one that ended the answer included
    """

    finish_reason: Literal["stop", "length", "content_filter"]
    ending: Ending
    stop_text: str | None
    n_prompt: int
    n_cached: int
    n_predicted: int
    timings: dict[str, Any]
    token_ids: list[int] = field(default_factory=list)
    slot: int = -1


Event: TypeAlias = Progress | Scores | TextPiece | Finished

_ENDINGS: dict[str, Ending] = {
    "stop": "eos", "limit": "limit", "context full": "context full", "cancelled": "cancelled", "deadline": "deadline",
}  # fmt: skip


# --- prompts -------------------------------------------------------------------------------------------------------


async def prompt_ids(door: Door, text: str, *, parse_special: bool = True, add_special: bool = True) -> list[int]:
    """Token ids of a text to be gone on from: BOS in front where the model wants it, and not twice."""
    tokenizer = door.tokenizer

    def encode() -> list[int]:
        doubled = parse_special and tokenizer.starts_with_bos(text)
        return tokenizer.encode(text, add_special=add_special and not doubled, parse_special=parse_special)

    return await encode_away(encode, len(text))


async def chat_prompt(
    door: Door,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    add_generation_prompt: bool = True,
) -> list[int]:
    """Token ids of a chat, by the model's template. No text of a message becomes a control token.

    A chat without a system message gets the one that the server was started with (-sys), if there is one.

    Raises BadSettings (400) for messages that are malformed or that the template refuses.
    """
    variables = {**(template_kwargs or {})}
    for name in ("messages", "add_generation_prompt", "tools"):
        variables.pop(name, None)
    if tools:
        variables["tools"] = list(tools)
    if door.system and isinstance(messages, list) and not _has_system(messages):
        messages = [{"role": "system", "content": door.system}, *messages]

    def encode() -> list[int]:
        return door.chat_template.encode(messages, add_generation_prompt, **variables)

    return await asyncio.to_thread(encode)  # a template may take up to its 1.5 s


def _has_system(messages: Sequence[Any]) -> bool:
    return any(isinstance(m, Mapping) and m.get("role") in ("system", "developer") for m in messages)


async def encode_away(encode: Callable[[], list[int]], n_chars: int) -> list[int]:
    """What `encode` makes of a text of so many characters; of a long one on another thread."""
    return await asyncio.to_thread(encode) if n_chars > LONG_TEXT else encode()


# --- answers -------------------------------------------------------------------------------------------------------


def check_ask(door: Door, ask: Ask) -> None:
    """Raises ApiError or BadSettings for what is known to be wrong before the engine is asked."""
    info = door.client.require_ready()
    if not ask.token_ids:
        raise bad_request("the prompt is empty: there is nothing to go on from", "prompt")
    if len(ask.token_ids) > info.n_ctx:
        raise context_overflow(len(ask.token_ids), info.n_ctx)
    check_sampling(ask.sampling, door.model.config.n_vocab)


def submit(door: Door, ask: Ask) -> JobStream:
    """The job of an answer. Raises ApiError or BadSettings."""
    check_ask(door, ask)
    settings = door.settings
    limits = [n for n in (ask.max_tokens, settings.max_tokens) if n is not None and n >= 0]
    seconds = [s for s in (ask.deadline_s, settings.max_seconds) if s is not None]
    sampling = ask.sampling
    if ask.n_probs > sampling.n_probs:
        sampling = replace(sampling, n_probs=ask.n_probs)
    return door.client.submit(
        ask.token_ids,
        sampling,
        n_predict=min(limits, default=-1),
        cache_prompt=ask.cache_prompt and settings.cache_prompt,
        slot=ask.slot,
        deadline_s=min(seconds, default=None),
        score_prompt=ask.score_prompt,
        n_begun=ask.n_begun,
    )


async def answer(door: Door, ask: Ask) -> AsyncGenerator[Event, None]:
    """The events of one answer. Raises ApiError; closing it cancels the job."""
    if not door.filters:
        async with aclosing(_answer(door, ask)) as events:
            async for event in events:
                yield event
        return
    if ask.n_probs > 0 or ask.sampling.n_probs > 0 or ask.score_prompt:
        raise bad_request("this server filters answers: it does not tell the probabilities of their tokens", "n_probs")
    if ask.n_begun and (ask.sampling.grammar or ask.sampling.json_schema) is not None:
        raise bad_request("this server filters prompts: an answer's beginning cannot be given as tokens", "n_begun")
    if ask.token_ids:
        check_ask(door, ask)
        changed = await encode_away(lambda: door.filters.change_ids(ask.token_ids), LONG_TEXT + 1)
        ask = replace(ask, token_ids=changed, n_begun=0)
    async with aclosing(_filtered(door, ask)) as events:
        async for event in events:
            yield event


async def _filtered(door: Door, ask: Ask) -> AsyncGenerator[Event, None]:
    """An answer as the filters let it through: text without the tokens it was made of."""
    shown = door.filters.start_answer()
    n_seen = 0
    async with aclosing(_answer(door, ask)) as events:
        async for event in events:
            try:
                if isinstance(event, TextPiece):
                    n_seen += event.token_id is not None
                    if text := shown.push(event.text):
                        yield TextPiece(text)
                    continue
                if isinstance(event, Finished):
                    if text := shown.flush():
                        yield TextPiece(text)
                    event = replace(event, token_ids=[])
            except Refused:
                n_prompt = len(ask.token_ids)
                yield Finished("content_filter", "filter", None, n_prompt, 0, n_seen, llamacpp_timings(Timings()))
                return
            yield event


async def _answer(door: Door, ask: Ask) -> AsyncGenerator[Event, None]:
    stream = submit(door, ask)
    decoder = door.tokenizer.stream(ask.special, at_start=False)
    for token_id in ask.token_ids[-MOST_HALVES:] if ask.n_begun else ():
        decoder.push(token_id)  # it may begin in the middle of a character
    stops = StopStrings(ask.stop)
    watched = stop_ids(door.tokenizer, ask.stop, ask.special)
    eog_ids = door.tokenizer.eog_ids
    chosen: list[int] = []
    ending: Ending | None = None
    record, first_s = current.get(), None
    finished: Finished | None = None
    try:
        async for event in stream:
            if isinstance(event, Token):
                token_id = event.token_id
                chosen.append(token_id)
                first_s = first_s or time.perf_counter()
                is_watched = token_id in watched
                ends = is_watched or (token_id in eog_ids and not ask.sampling.ignore_eos)
                text = "" if is_watched or (ends and not ask.special) else decoder.push(token_id)
                yield TextPiece(stops.push(text), token_id, event.logprob, event.top)
                if is_watched or stops.found is not None:
                    ending = "word"
                    await stream.cancel()
                    break
            elif isinstance(event, (Progress, Scores)):
                yield event
            elif isinstance(event, End):
                break
        end = event if isinstance(event, End) else await _await_end(stream)
        if ending is None:
            ending = _ENDINGS[end.reason]
            rest = stops.push(decoder.flush()) + stops.flush()
            if rest:
                yield TextPiece(rest)
        finished = _finish(ask, ending, stops.found, end, chosen)
        yield finished
    finally:
        if record is not None:
            _note(record, door, ask, finished, first_s, chosen)
        await stream.aclose()


def _note(record: Record, door: Door, ask: Ask, end: Finished | None, first_s: float | None, chosen: list[int]) -> None:
    """What the request log says of an answer; one without an end was given up, or failed."""
    record.n_prompt += len(ask.token_ids)
    record.n_cached += end.n_cached if end is not None else 0
    record.n_predicted += len(chosen)
    record.ends.append(end.ending if end is not None else "given up")
    if first_s is not None:
        record.first_s = min(first_s, record.first_s or first_s)
    if door.settings.log_text:
        record.prompts.append(door.tokenizer.decode(ask.token_ids, special=True))
        record.answers.append(door.tokenizer.decode(chosen, special=True, at_start=False))


async def _await_end(stream: JobStream) -> End:
    """The `End` of a job that was cancelled; its last tokens are dropped."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(END_WITHIN_S):
            async for event in stream:
                if isinstance(event, End):
                    return event
    return End(stream.id, "cancelled", Timings())


def _finish(ask: Ask, ending: Ending, stop_text: str | None, end: End, chosen: list[int]) -> Finished:
    timings = llamacpp_timings(end.timings)
    return Finished(
        "stop" if ending in ("eos", "word") else "length",
        ending, stop_text, len(ask.token_ids), end.timings.cache_n, len(chosen), timings, chosen, end.slot,
    )  # fmt: skip


def llamacpp_timings(timings: Timings) -> dict[str, Any]:
    """llama.cpp's `timings` object."""

    def rates(name: str, n: int, ms: float) -> dict[str, Any]:
        per_token, per_second = (ms / n if n else 0.0), (1000 * n / ms if ms > 0 else 0.0)
        return {
            f"{name}_n": n, f"{name}_ms": ms, f"{name}_per_token_ms": per_token, f"{name}_per_second": per_second,
        }  # fmt: skip

    found: dict[str, Any] = {"cache_n": timings.cache_n, **rates("prompt", timings.prompt_n, timings.prompt_ms)}
    return found | rates("predicted", timings.predicted_n, timings.predicted_ms)


async def collect(
    events: AsyncIterator[Event], request: Request | None = None
) -> tuple[list[TextPiece], Finished, list[Scores]]:
    """All of an answer: its pieces, its end, the scores of its prompt.

    `request`  the answer is given up when its client goes away; ClientGone is raised then
    """

    async def take() -> tuple[list[TextPiece], Finished, list[Scores]]:
        pieces: list[TextPiece] = []
        scores: list[Scores] = []
        async for event in events:
            if isinstance(event, TextPiece):
                pieces.append(event)
            elif isinstance(event, Scores):
                scores.append(event)
            elif isinstance(event, Finished):
                return pieces, event, scores
        raise ApiError(500, "the answer has no end")

    try:
        return await (take() if request is None else until_disconnect(request.receive, take()))
    finally:
        if isinstance(events, AsyncGenerator):
            await events.aclose()
