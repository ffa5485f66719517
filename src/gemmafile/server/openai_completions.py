"""OpenAI's /v1/completions: texts or token ids to be gone on from, without a chat template.

In: a request's JSON. Out: a text_completion, or its chunks as server-sent events.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gemmafile.engine.jobs import Scores
from gemmafile.server.answering import Ask, Event, Finished, TextPiece, answer, prompt_ids
from gemmafile.server.body import Fields, read_json
from gemmafile.server.constraints import check_away, check_schema, with_schema, without_default
from gemmafile.server.errors import bad_request
from gemmafile.server.json_response import Json, event
from gemmafile.server.openai_requests import (
    MOST_CHOICES,
    MOST_TOP,
    read_max_tokens,
    read_options,
    read_response_format,
    read_stops,
)
from gemmafile.server.openai_shapes import (
    DONE,
    chat_logprobs,
    fingerprint,
    finite,
    make_id,
    now,
    show_stream_error,
    usage_of,
)
from gemmafile.server.sampling_fields import read_sampling
from gemmafile.server.streaming import begin, merge, stream_until_disconnect, until_disconnect

if TYPE_CHECKING:
    from gemmafile.server.door import Door
    from gemmafile.text.tokenizer import Tokenizer

DEFAULT_TOKENS: Final = 16
MOST_PROMPTS: Final = 256


def routes(door: Door) -> list[BaseRoute]:
    async def complete(request: Request) -> Response:
        fields = Fields(await read_json(request, door.limits))
        wish = await read_wish(door, fields)
        shape = Shape(door, fields, wish)
        events = await until_disconnect(request.receive, begin(merge([answer(door, ask) for ask in wish.asks()])))
        if fields.flag("stream"):
            return stream_until_disconnect(request, shape.stream(events), show_error=show_stream_error)
        return Json(await until_disconnect(request.receive, shape.whole(events)))

    return [Route("/v1/completions", complete, methods=["POST"])]


@dataclass
class Wish:
    """What a request asks for.

    prompts   (its text, the Ask) for each · `n` choices of `best_of` for each prompt
    n_top     alternatives shown of each token; None: no log-probabilities · `echo` the prompt comes back too
    """

    prompts: list[tuple[str, Ask]]
    n: int
    best_of: int
    echo: bool
    n_top: int | None

    def asks(self) -> Iterator[Ask]:
        """All answers that are made, those to one prompt together."""
        for _, ask in self.prompts:
            for number in range(self.best_of):
                seed = ask.sampling.seed
                yield dataclasses.replace(
                    ask, sampling=dataclasses.replace(ask.sampling, seed=seed if seed < 0 else seed + number)
                )


async def read_wish(door: Door, fields: Fields) -> Wish:
    """Raises ApiError."""
    if fields.raw("suffix"):
        raise bad_request("suffix is not supported: these models were not trained to fill in a middle", "suffix")
    n = fields.whole("n", 1, 1, MOST_CHOICES)
    best_of = fields.whole("best_of", n, 1, MOST_CHOICES)
    stream, echo = fields.flag("stream"), fields.flag("echo")
    if best_of < n:
        raise bad_request(f"best_of is {best_of}, and n {n} of them are asked for", "best_of")
    if best_of > n and stream:
        raise bad_request("best_of answers are compared when they are whole: they cannot be streamed", "best_of")
    n_top = (
        fields.whole("logprobs", 0, 0, MOST_TOP)
        if "logprobs" in fields and fields.raw("logprobs") is not False
        else None
    )
    sampling = read_sampling(fields, door)
    if (schema := read_response_format(fields)) is not None:
        sampling = with_schema(without_default(sampling, door.sampling), schema)
        await asyncio.to_thread(check_schema, schema, "response_format")
    else:
        await check_away(sampling)
    if n_top is not None or best_of > n:
        sampling = dataclasses.replace(sampling, n_probs=max(1, n_top or 0, sampling.n_probs))
    make = dataclasses.replace(
        Ask([], sampling, **read_options(fields)),
        max_tokens=read_max_tokens(fields, DEFAULT_TOKENS, "max_tokens", "max_completion_tokens", "n_predict"),
        stop=read_stops(fields, door),
        score_prompt=echo and n_top is not None,
    )
    prompts = [(text, dataclasses.replace(make, token_ids=ids)) for text, ids in await read_prompts(door, fields)]
    return Wish(prompts, n, best_of, echo, n_top)


async def read_prompts(
    door: Door, fields: Fields, name: str = "prompt", parse_special: bool = True
) -> list[tuple[str, list[int]]]:
    """(text, token ids) of each prompt: a string, a list of them, token ids, or a list of those. Raises ApiError."""
    value = fields.raw(name)
    if value is None:
        raise bad_request(f"{name} is missing: a string, or a list of strings or token ids", name)
    if isinstance(value, str) or (isinstance(value, list) and value and all(_is_number(item) for item in value)):
        value = [value]
    if not isinstance(value, list) or not value:
        raise fields.wrong(name, "a string, or a list of strings or token ids")
    if len(value) > MOST_PROMPTS:
        raise bad_request(f"{name}: {len(value)} prompts in one request, at most {MOST_PROMPTS} are taken", name)
    found = []
    for item in value:
        if isinstance(item, str):
            ids = await prompt_ids(door, item, parse_special=parse_special)
            text = item
        elif isinstance(item, list) and all(_is_number(i) for i in item):
            ids = check_ids(item, door.tokenizer, name)
            text = door.tokenizer.decode(ids, special=True)
        else:
            raise fields.wrong(name, "a string, or a list of strings or token ids")
        if not ids:
            raise bad_request(f"{name} is empty: there is nothing to go on from", name)
        found.append((text, ids))
    return found


def check_ids(ids: Sequence[int], tokenizer: Tokenizer, name: str) -> list[int]:
    for token_id in ids:
        if not 0 <= token_id < tokenizer.n_tokens:
            raise bad_request(f"{name}: there is no token {token_id}; ids go from 0 to {tokenizer.n_tokens - 1}", name)
    return list(ids)


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass
class Taken:
    """One answer as far as it has come."""

    pieces: list[TextPiece] = field(default_factory=list)
    scores: list[Any] = field(default_factory=list)
    finished: Finished | None = None

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    def likelihood(self) -> float:
        """Mean log-probability of a token, by which the best answers are found."""
        known = [piece.logprob for piece in self.pieces if piece.logprob is not None]
        return sum(known) / max(1, len(known))


class Shape:
    """How the answer to one request is written."""

    def __init__(self, door: Door, fields: Fields, wish: Wish):
        self.door, self.wish = door, wish
        self.eog_ids = frozenset(door.tokenizer.eog_ids)
        options = Fields(fields.object("stream_options") or {}, "stream_options.")
        self.with_usage = options.flag("include_usage")
        self.head = {
            "id": make_id("cmpl-"),
            "object": "text_completion",
            "created": now(),
            "model": fields.text("model") or door.model_name,
            "system_fingerprint": fingerprint(door),
        }

    async def whole(self, events: AsyncGenerator[tuple[int, Event], None]) -> dict[str, Any]:
        wish = self.wish
        taken = [Taken() for _ in range(len(wish.prompts) * wish.best_of)]
        try:
            async for number, item in events:
                _add(taken[number], item, self.eog_ids)
        finally:
            await events.aclose()
        choices: list[dict[str, Any]] = []
        for place, (text, _) in enumerate(wish.prompts):
            answers = taken[place * wish.best_of : (place + 1) * wish.best_of]
            if wish.best_of > wish.n:
                answers = sorted(answers, key=Taken.likelihood, reverse=True)[: wish.n]
            choices += [self._choice(len(choices) + i, text, each) for i, each in enumerate(answers)]
        finished = [each.finished for each in taken if each.finished is not None]
        return {
            **self.head,
            "choices": choices,
            "usage": usage_of(finished, wish.best_of),
            "timings": finished[0].timings,
        }

    def _choice(self, index: int, prompt: str, taken: Taken) -> dict[str, Any]:
        assert taken.finished is not None
        echoed = prompt if self.wish.echo else ""
        text = echoed + taken.text
        logprobs = self._logprobs(taken, len(echoed))
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": taken.finished.finish_reason}

    def _logprobs(self, taken: Taken, answer_at: int) -> dict[str, Any] | None:
        """OpenAI's four lists, and `content` as a chat has it, which llama.cpp's clients read.

        answer_at  where in the text the answer's tokens begin; those of the prompt end there
        """
        n_top = self.wish.n_top
        if n_top is None:
            return None
        tokenizer = self.door.tokenizer
        chosen = [piece for piece in taken.pieces if piece.token_id is not None]
        rows = [*taken.scores, *((piece.token_id, piece.logprob, piece.top) for piece in chosen)]
        tokens = [tokenizer.piece_bytes(token_id, special=True).decode(errors="replace") for token_id, _, _ in rows]
        # BOS, and the space in front of all, are tokens and no text.
        offset = answer_at - sum(map(len, tokens[: len(taken.scores)]))
        offsets = []
        for token in tokens:
            offsets.append(max(0, offset))
            offset += len(token)
        tops = []
        for _, logprob, top in rows:
            named: dict[str, float] = {}
            for token_id, other in [] if logprob is None else (top or ())[:n_top]:
                named.setdefault(tokenizer.piece_bytes(token_id, special=True).decode(errors="replace"), finite(other))
            tops.append(named if logprob is not None else None)
        return {
            "tokens": tokens,
            "token_logprobs": [None if logprob is None else finite(logprob) for _, logprob, _ in rows],
            "top_logprobs": tops,
            "text_offset": offsets,
            "content": chat_logprobs(tokenizer, chosen, n_top)["content"],
        }

    async def stream(self, events: AsyncGenerator[tuple[int, Event], None]) -> AsyncGenerator[bytes, None]:
        finished: dict[int, Finished] = {}
        n_answers = len(self.wish.prompts) * self.wish.n
        taken = [Taken() for _ in range(n_answers)]
        offsets = [0] * n_answers
        begun: set[int] = set()
        try:
            async for number, item in events:
                waiting = taken[number]
                _add(waiting, item, self.eog_ids)
                prompt = self.wish.prompts[number // self.wish.n][0]
                echoed = self.wish.echo and number not in begun and isinstance(item, (TextPiece, Finished))
                text = (prompt if echoed else "") + waiting.text
                if text or isinstance(item, Finished):
                    begun.add(number)
                    logprobs = self._logprobs(waiting, offsets[number] + (len(prompt) if echoed else 0))
                    if text or (logprobs and logprobs["tokens"]):
                        yield self._chunk(number, text, logprobs)
                    offsets[number] += len(text)
                    taken[number] = Taken()
                if isinstance(item, Finished):
                    finished[number] = item
                    last = len(finished) == n_answers
                    yield self._chunk(number, "", None, item.finish_reason, item.timings if last else None)
            if self.with_usage:
                usage = usage_of([each for _, each in sorted(finished.items())], self.wish.n)
                yield event({**self.head, "choices": [], "usage": usage, "timings": finished[0].timings})
            yield DONE
        finally:
            await events.aclose()

    def _chunk(
        self, index: int, text: str, logprobs: Any, reason: str | None = None, timings: dict[str, Any] | None = None
    ) -> bytes:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        more: dict[str, Any] = {"usage": None} if self.with_usage else {}
        if timings is not None:
            more["timings"] = timings
        return event({**self.head, "choices": [choice], **more})


def _add(taken: Taken, item: Event, eog_ids: frozenset[int]) -> None:
    if isinstance(item, TextPiece):
        if item.text or item.token_id not in eog_ids:
            taken.pieces.append(item)
    elif isinstance(item, Scores):
        taken.scores += item.items
    elif isinstance(item, Finished):
        taken.finished = item
        while item.stop_text is not None and taken.pieces and not taken.pieces[-1].text:
            taken.pieces.pop()  # tokens of the stop string
