"""How the next token is chosen: GenerationConfig, and the steps from logits to a token, in transformers' order.

Steps: repetition penalty, n-grams and words that may not come, tokens too early for an end, then, when sampling,
temperature, top-k, top-p, min-p, typical-p; greedy takes the first of the largest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from gemmafile.errors import BadSettings, nearest

DEFAULT_NEW_TOKENS = 20
"""What `generate()` makes without any limit, as in transformers."""


@dataclass
class GenerationConfig:
    """How to generate; None: not set. Names and meaning as in transformers."""

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int | None = None
    min_length: int | None = None
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int | None = 50
    top_p: float = 1.0
    min_p: float | None = None
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: list[list[int]] | None = None
    suppress_tokens: list[int] | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    stop_strings: str | list[str] | None = None
    num_return_sequences: int = 1
    return_dict_in_generate: bool = False
    output_scores: bool = False
    output_logits: bool = False
    seed: int | None = None

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> GenerationConfig:
        """From a generation_config.json: keys that are not known here are left out."""
        known = {field.name for field in fields(cls)}
        config = cls(**{name: value for name, value in table.items() if name in known and value is not None})
        config.check()
        return config

    def changed(self, values: Mapping[str, Any]) -> GenerationConfig:
        """With other values; None takes a step out, as in transformers. Raises BadSettings for a name there is not,
        with the nearest."""
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in values:
            if name not in known:
                raise BadSettings(f"generate() has no argument {name!r}{nearest(name, known)}")
        config = type(self)(**{**known, **{k: _WITHOUT.get(k) if v is None else v for k, v in values.items()}})
        config.check()
        return config

    def check(self) -> None:
        """Raises BadSettings for a value that cannot be."""
        for name, least in _COUNTS.items():
            value = getattr(self, name)
            if value is not None and not (_is_whole(value) and least <= value <= MAX_COUNT):
                raise _wrong(name, value, f"a whole number, {least} or more")
        for name in ("temperature", "top_p", "typical_p", "repetition_penalty"):
            value, greedy = getattr(self, name), name == "temperature" and not self.do_sample
            if not (_is_number(value) and (value > 0 or (greedy and value == 0))):
                raise _wrong(name, value, "a number over 0")
        if self.min_p is not None and not (_is_number(self.min_p) and 0 <= self.min_p <= 1):
            raise _wrong("min_p", self.min_p, "a number from 0 to 1")
        ends: Any = self.eos_token_id
        if hasattr(ends, "tolist"):  # an array of them
            ends = self.eos_token_id = ends.tolist()
        if ends is not None and not all(map(_is_whole, ends if isinstance(ends, list) else [ends])):
            raise _wrong("eos_token_id", ends, "a token id, or a list of them")
        for name in ("pad_token_id", "bos_token_id"):
            value = getattr(self, name)
            if value is not None and not (_is_whole(value) and value <= MAX_COUNT):
                raise _wrong(name, value, "a token id")
        words: Any = self.bad_words_ids
        for name, rows in (("suppress_tokens", [self.suppress_tokens]), ("bad_words_ids", words)):
            if rows not in (None, [None]) and not (_is_list(rows) and all(map(_is_row_of_ids, rows))):
                raise _wrong(name, getattr(self, name), "token ids in a list, for bad_words_ids a list of lists")
        stops = self.stop_strings
        if stops is not None and not all(isinstance(s, str) for s in (stops if isinstance(stops, list) else [stops])):
            raise _wrong("stop_strings", stops, "a text, or a list of texts")

    @property
    def end_ids(self) -> frozenset[int]:
        found = self.eos_token_id
        return frozenset([] if found is None else found if isinstance(found, list) else [found])

    def to_dict(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


_WITHOUT: dict[str, Any] = {
    **dict.fromkeys(("temperature", "top_p", "typical_p", "repetition_penalty"), 1.0),
    "do_sample": False, "num_return_sequences": 1, "no_repeat_ngram_size": 0, "return_dict_in_generate": False,
    "output_scores": False, "output_logits": False,
}  # fmt: skip
"""The value at which a step does nothing, where that is not None."""
MAX_COUNT = (1 << 31) - 1
_COUNTS = {
    "max_new_tokens": 1,
    "max_length": 1,
    "min_new_tokens": 0,
    "min_length": 0,
    "num_return_sequences": 1,
    "top_k": 0,
    "no_repeat_ngram_size": 0,
    "seed": 0,
}
"""Names of whole numbers, and the least that each can be."""


def _is_whole(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _is_row_of_ids(value: Any) -> bool:
    return _is_list(value) and len(value) > 0 and all(_is_whole(i) and i >= 0 for i in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _wrong(name: str, value: Any, expected: str) -> BadSettings:
    return BadSettings(f"{name} is {str(value)[:80]!r}, expected {expected}")


Choose = Callable[[np.ndarray], int]
"""Scores float32[V], -inf where a token may not come, to a token id."""


def process(config: GenerationConfig, logits: np.ndarray, ids: Sequence[int], n_new: int) -> np.ndarray:
    """Scores float32[V] from logits float32[V] behind `ids`, prompt and answer so far; `n_new`  of these are new."""
    scores = logits.astype(np.float32)
    if config.repetition_penalty != 1.0:
        seen = np.unique(np.asarray(ids, np.int64))
        penalty, values = np.float32(config.repetition_penalty), scores[seen]
        scores[seen] = np.where(values < 0, values * penalty, values / penalty)
    if config.no_repeat_ngram_size:
        scores[_repeated(ids, config.no_repeat_ngram_size)] = -np.inf
    for *before, last in config.bad_words_ids or []:
        if last < len(scores) and (not before or list(ids[-len(before) :]) == before):
            scores[last] = -np.inf
    scores[[i for i in config.suppress_tokens or [] if i < len(scores)]] = -np.inf
    if config.min_new_tokens is not None and n_new < config.min_new_tokens:
        scores[[i for i in config.end_ids if 0 <= i < len(scores)]] = -np.inf
    return _warp(config, scores) if config.do_sample else scores


def _repeated(ids: Sequence[int], n: int) -> list[int]:
    """Tokens that would end an n-gram which is there already."""
    start = list(ids[len(ids) - n + 1 :]) if n > 1 else []
    return [ids[i + n - 1] for i in range(len(ids) - n + 1) if list(ids[i : i + n - 1]) == start]


def _warp(config: GenerationConfig, scores: np.ndarray) -> np.ndarray:
    if config.temperature != 1.0:
        scores = scores / np.float32(config.temperature)
    if config.top_k:
        k = min(config.top_k, len(scores))
        scores = np.where(scores < np.partition(scores, -k)[-k], -np.inf, scores)
    if config.top_p < 1.0:
        order = np.argsort(scores, kind="stable")
        tail = np.cumsum(softmax(scores[order])) <= 1 - config.top_p
        tail[-1] = False
        scores = scores.copy()
        scores[order[tail]] = -np.inf
    if config.min_p is not None:
        p = softmax(scores)
        scores = np.where(p < config.min_p * p.max(), -np.inf, scores)
    if config.typical_p < 1.0:
        scores = _keep_typical(scores, config.typical_p)
    return scores.astype(np.float32)


def _keep_typical(scores: np.ndarray, mass: float) -> np.ndarray:
    """Tokens whose surprise is nearest to the expected one, until they have `mass`."""
    p = softmax(scores)
    with np.errstate(divide="ignore"):
        log_p = np.log(p)
    entropy = -np.sum(p * np.where(p > 0, log_p, 0))
    order = np.argsort(np.abs(-log_p - entropy), kind="stable")
    n = int(np.sum(np.cumsum(p[order]) < mass)) + 1
    kept = np.full_like(scores, -np.inf)
    kept[order[:n]] = scores[order[:n]]
    return kept


def softmax(scores: np.ndarray) -> np.ndarray:
    """float32[V]; zero where a score is -inf."""
    e = np.exp(scores - scores.max())
    p: np.ndarray = e / e.sum()
    return p


def make_choice(config: GenerationConfig, torch: Any) -> Choose:
    """The last step. Random numbers are torch's where the caller works with torch and gives no seed: its own counts."""
    if not config.do_sample:
        return lambda scores: int(np.argmax(scores))
    if torch is not None and config.seed is None:

        def draw(scores: np.ndarray) -> int:
            p = torch.nn.functional.softmax(torch.from_numpy(scores)[None], dim=-1)
            return int(torch.multinomial(p, num_samples=1)[0, 0])

        return draw
    random = np.random.default_rng(config.seed)

    def choose(scores: np.ndarray) -> int:
        p = softmax(scores).astype(np.float64)
        return int(np.searchsorted(np.cumsum(p), random.random() * p.sum(), side="right").clip(0, len(p) - 1))

    return choose
