"""llama.cpp's POST /completion: prompts of every form in, one JSON object or a stream of them out."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gemmafile.engine.jobs import Progress
from gemmafile.server.answering import Ask, Event, Finished, TextPiece, answer, prompt_ids
from gemmafile.server.body import Fields, read_json, show
from gemmafile.server.constraints import check_away, with_schema, without_default
from gemmafile.server.door import Door
from gemmafile.server.errors import ApiError, bad_request, error_body
from gemmafile.server.json_response import Json, event
from gemmafile.server.openai_requests import read_response_format
from gemmafile.server.sampling_fields import read_sampling
from gemmafile.server.streaming import begin, merge, stream_until_disconnect, until_disconnect

MOST_ANSWERS = 128
"""Prompts times answers of one request."""


@dataclass
class Wish:
    """What a request asks for, beside its prompts."""

    ask: Ask
    n_answers: int
    is_stream: bool
    returns_tokens: bool
    timings_per_token: bool
    returns_progress: bool
    response_fields: list[str]
    t_max_predict_ms: int
    n_indent: int


@dataclass
class Draft:
    """One answer as it grows. `held` tokens and probabilities whose text has not been released yet."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    probabilities: list[dict[str, Any]] = field(default_factory=list)
    held_tokens: list[int] = field(default_factory=list)
    held_probabilities: list[dict[str, Any]] = field(default_factory=list)
    first_s: float | None = None
    start_s: float = field(default_factory=time.perf_counter)


async def completion(request: Request, door: Door) -> Response:
    """Answers the request. Raises ApiError, BadSettings."""
    door.client.require_ready()
    fields = Fields(await read_json(request, door.limits))
    prompts = await read_prompts(fields.raw("prompt"), door)
    wish = read_wish(fields, door)
    await check_away(wish.ask.sampling)
    if len(prompts) * wish.n_answers > MOST_ANSWERS:
        raise bad_request(f"a request may have {MOST_ANSWERS} answers at most", "prompt")
    asks = [dataclasses.replace(wish.ask, token_ids=ids) for ids in prompts for _ in range(wish.n_answers)]
    if wish.n_answers > 1 and wish.ask.sampling.seed >= 0:
        for i, ask in enumerate(asks):  # the same seed would give the same answer every time
            ask.sampling = dataclasses.replace(ask.sampling, seed=ask.sampling.seed + i % wish.n_answers)
    events = await until_disconnect(request.receive, begin(merge([answer(door, ask) for ask in asks])))
    results = _results(door, wish, asks, events)
    if wish.is_stream:
        chunks = await begin(_chunks(results))
        return stream_until_disconnect(request, chunks, show_error=_show_error)

    async def collect() -> list[dict[str, Any]]:
        async with aclosing(results) as source:
            return [result async for result in source if result["stop"]]

    done = sorted(await until_disconnect(request.receive, collect()), key=lambda result: int(result["index"]))
    if wish.response_fields:
        done = [_select(result, wish.response_fields) for result in done]
    return Json(done[0] if len(done) == 1 else done)


async def _chunks(results: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(results) as source:
        async for result in source:
            yield event(result)


def _show_error(error: ApiError) -> bytes:
    return event(error_body(error))


# --- what is asked for -----------------------------------------------------------------------------------------------


async def read_prompts(value: Any, door: Door, most: int = MOST_ANSWERS) -> list[list[int]]:
    """Token ids of each prompt: a string, a list of ids, a list of both, {"prompt_string": ...}, or a list of such.
    Raises ApiError."""
    if value is None:
        raise bad_request("prompt is missing: a string, token ids, or a list of them is expected", "prompt")
    is_many = isinstance(value, list) and (
        any(isinstance(item, (list, dict)) for item in value)
        or (value and all(isinstance(item, str) for item in value))
    )
    prompts = value if is_many else [value]
    if len(prompts) > most:
        raise bad_request(f"a request may have {most} prompts at most", "prompt")
    return [await _read_prompt(prompt, door) for prompt in prompts]


async def _read_prompt(value: Any, door: Door) -> list[int]:
    if isinstance(value, dict) and isinstance(value.get("prompt_string"), str):
        if value.get("multimodal_data"):
            raise bad_request("prompt has multimodal_data, but this model reads text only", "prompt")
        value = value["prompt_string"]
    if isinstance(value, str):
        return await prompt_ids(door, value)
    n_tokens = door.tokenizer.n_tokens
    expected = f"a string, or token ids from 0 to {n_tokens - 1} and strings in a list"
    if not isinstance(value, list):
        raise bad_request(f"prompt holds {show(value)}: expected {expected}", "prompt")
    ids: list[int] = []
    for place, item in enumerate(value):
        if isinstance(item, str):
            ids += await prompt_ids(door, item, add_special=place == 0)
        elif isinstance(item, int) and not isinstance(item, bool) and 0 <= item < n_tokens:
            ids.append(item)
        else:
            raise bad_request(f"prompt holds {show(item)}: expected {expected}", "prompt")
    return ids


def read_wish(fields: Fields, door: Door) -> Wish:
    """Everything but the prompt. Raises ApiError, BadSettings."""
    name = "n_predict" if "n_predict" in fields else "max_tokens"
    n_predict = fields.whole(name, door.run.n_predict, -2, 2**31 - 1)
    sampling = read_sampling(fields, door)
    if (schema := read_response_format(fields)) is not None:
        sampling = with_schema(without_default(sampling, door.sampling), schema)
    slot = fields.whole("id_slot" if "id_slot" in fields else "slot_id", -1, -1, 2**31 - 1)
    ask = Ask(
        [], sampling, max_tokens=n_predict, n_probs=sampling.n_probs, slot=slot,
        stop=[text for text in fields.texts("stop", 1000) if text] or door.run.reverse_prompts,
        cache_prompt=fields.flag("cache_prompt", True), special=door.run.special,
        n_begun=fields.whole("n_begun", 0, 0, 2**31 - 1),
    )  # fmt: skip
    count = "n_cmpl" if "n_cmpl" in fields else "n"
    for ignored, low in (("n_keep", -1), ("n_discard", 0)):
        fields.whole(ignored, 0, low)
    return Wish(
        ask,
        n_answers=fields.whole(count, 1, 1, MOST_ANSWERS),
        is_stream=fields.flag("stream"),
        returns_tokens=fields.flag("return_tokens"),
        timings_per_token=fields.flag("timings_per_token"),
        returns_progress=fields.flag("return_progress"),
        response_fields=fields.texts("response_fields", 100),
        t_max_predict_ms=fields.whole("t_max_predict_ms", 0, -1),
        n_indent=fields.whole("n_indent", 0, 0),
    )


# --- what comes back -------------------------------------------------------------------------------------------------


async def _results(
    door: Door, wish: Wish, asks: Sequence[Ask], events: AsyncGenerator[tuple[int, Event], None]
) -> AsyncGenerator[dict[str, Any], None]:
    """llama.cpp's objects, those of a stream if one is wanted: the last of each answer has `stop` true."""
    drafts = [Draft() for _ in asks]
    n_prompts = [len(ask.token_ids) for ask in asks]
    over: set[int] = set()
    async with aclosing(events) as source:
        async for index, item in source:
            draft = drafts[index]
            if index in over:
                continue
            if isinstance(item, TextPiece):
                partial = _grow(door, wish, draft, item)
                if partial is not None and wish.is_stream:
                    yield _partial(wish, index, n_prompts[index], draft, partial)
                if _is_late(wish, draft):
                    over.add(index)
                    yield _final(door, wish, index, asks[index], draft, _cut_short(asks[index], draft))
            elif isinstance(item, Finished):
                over.add(index)
                yield _final(door, wish, index, asks[index], draft, item)
            elif isinstance(item, Progress) and wish.is_stream and wish.returns_progress:
                yield _progress(index, item, draft)
            if len(over) == len(asks):
                return


def _grow(door: Door, wish: Wish, draft: Draft, piece: TextPiece) -> str | None:
    """Add a piece; the text that a stream sends now, or None while there is none."""
    if piece.token_id is not None:
        if draft.first_s is None:
            draft.first_s = time.perf_counter()
        draft.tokens.append(piece.token_id)
        draft.held_tokens.append(piece.token_id)
        if wish.ask.n_probs > 0:
            is_prob = wish.ask.sampling.post_sampling_probs
            described = describe_token(door, piece.token_id, piece.logprob, piece.top or (), is_prob)
            draft.probabilities.append(described)
            draft.held_probabilities.append(described)
    draft.text += piece.text
    return piece.text or None


def describe_token(
    door: Door, token_id: int, logprob: float | None, top: Sequence[Sequence[Any]], is_prob: bool = False
) -> dict[str, Any]:
    """An entry of `completion_probabilities`: the token, how likely it was, and the likeliest in its place."""
    name, top_name = ("prob", "top_probs") if is_prob else ("logprob", "top_logprobs")

    def entry(token_id: int, logprob: float | None) -> dict[str, Any]:
        raw = door.tokenizer.piece_bytes(token_id, True)
        value = (math.exp(logprob) if is_prob else logprob) if logprob is not None else None
        return {"id": token_id, "token": raw.decode("utf-8", "replace"), "bytes": list(raw), name: value}

    return {**entry(token_id, logprob), top_name: [entry(other, value) for other, value in top]}


def _partial(wish: Wish, index: int, n_prompt: int, draft: Draft, text: str) -> dict[str, Any]:
    result: dict[str, Any] = {
        "index": index, "content": text, "tokens": draft.held_tokens, "stop": False, "id_slot": wish.ask.slot,
        "tokens_predicted": len(draft.tokens), "tokens_evaluated": n_prompt,
    }  # fmt: skip
    if wish.ask.n_probs > 0:
        result["completion_probabilities"] = draft.held_probabilities
    if wish.timings_per_token:
        result["timings"] = _timings_so_far(draft, n_prompt)
    draft.held_tokens, draft.held_probabilities = [], []
    return result


def _progress(index: int, read: Progress, draft: Draft) -> dict[str, Any]:
    ms = round(1000 * (time.perf_counter() - draft.start_s), 3)
    progress = {"total": read.total, "cache": read.cached, "processed": read.done, "time_ms": ms}
    return {"index": index, "content": "", "tokens": [], "stop": False, "prompt_progress": progress}


def _timings_so_far(draft: Draft, n_prompt: int) -> dict[str, Any]:
    from gemmafile.engine.jobs import Timings
    from gemmafile.server.answering import llamacpp_timings

    first_s = draft.first_s or time.perf_counter()
    prompt_ms, predicted_ms = 1000 * (first_s - draft.start_s), 1000 * (time.perf_counter() - first_s)
    return llamacpp_timings(Timings(0, n_prompt, prompt_ms, len(draft.tokens), predicted_ms))


def _is_late(wish: Wish, draft: Draft) -> bool:
    """t_max_predict_ms have passed since the first token, and a line is complete; or a line is indented too little."""
    if wish.n_indent > 0 and draft.text:
        line = draft.text.rpartition("\n")[2]
        if "\n" in draft.text and line.strip() and len(line) - len(line.lstrip(" \t")) < wish.n_indent:
            draft.text = draft.text.rpartition("\n")[0]
            return True
    if wish.t_max_predict_ms <= 0 or draft.first_s is None or "\n" not in draft.text:
        return False
    return 1000 * (time.perf_counter() - draft.first_s) > wish.t_max_predict_ms


def _cut_short(ask: Ask, draft: Draft) -> Finished:
    timings = _timings_so_far(draft, len(ask.token_ids))
    return Finished("length", "limit", None, len(ask.token_ids), 0, len(draft.tokens), timings, draft.tokens, ask.slot)


_STOP_TYPES = {"eos": "eos", "word": "word", "cancelled": "none"}


def _final(door: Door, wish: Wish, index: int, ask: Ask, draft: Draft, end: Finished) -> dict[str, Any]:
    """The last object of an answer; in a stream its text has been sent before."""
    stream = wish.is_stream
    result: dict[str, Any] = {
        "index": index,
        "content": "" if stream else draft.text,
        "tokens": draft.held_tokens if stream else draft.tokens if wish.returns_tokens else [],
        "id_slot": end.slot,
        "stop": True,
        "model": door.model_name,
        "tokens_predicted": end.n_predicted,
        "tokens_evaluated": end.n_prompt,
        "generation_settings": generation_settings(door, ask, wish),
        "prompt": door.tokenizer.decode(ask.token_ids, special=True),
        "has_new_line": "\n" in draft.text,
        "truncated": end.ending == "context full",
        "stop_type": _STOP_TYPES.get(end.ending, "limit"),
        "stopping_word": end.stop_text or "",
        "tokens_cached": max(0, end.n_prompt + end.n_predicted - 1),
        "timings": end.timings,
    }
    probabilities = draft.held_probabilities if stream else draft.probabilities
    if wish.ask.n_probs > 0 and (probabilities or not stream):
        result["completion_probabilities"] = probabilities
    return result


def generation_settings(door: Door, ask: Ask, wish: Wish | None = None) -> dict[str, Any]:
    """llama.cpp's `generation_settings`: what was in force."""
    found = dataclasses.asdict(ask.sampling)
    found["logit_bias"] = [{"token": token, "bias": bias} for token, bias in ask.sampling.logit_bias.items()]
    found["samplers"] = list(ask.sampling.samplers)
    found["grammar"] = ask.sampling.grammar or ""
    schema = found.pop("json_schema")
    if schema is not None:
        found["json_schema"] = json.loads(schema)
    found |= {
        "n_predict": ask.max_tokens, "max_tokens": ask.max_tokens, "n_ctx": door.n_context, "n_keep": 0,
        "stop": list(ask.stop), "stream": wish.is_stream if wish is not None else False,
        "timings_per_token": wish.timings_per_token if wish is not None else False,
    }  # fmt: skip
    return found


def _select(result: dict[str, Any], paths: Sequence[str]) -> dict[str, Any]:
    """The fields that response_fields names, "a/b" reaching into objects, each under the path it was asked for by."""
    chosen: dict[str, Any] = {}
    for path in paths:
        value: Any = result
        for key in path.split("/"):
            value = value[key] if isinstance(value, dict) and key in value else None
        if value is not None:
            chosen[path] = value
    return chosen
