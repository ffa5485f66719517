"""Sampling settings as people write them: names of samplers, logit biases, and what values are allowed.

In: strings from flags and requests, a `SamplingSettings`. Out: the same, parsed and checked, or `BadSettings`
naming the field. Plain Python, so that flags can be read without NumPy. Next: sampler.py.

Names, aliases and letters are llama.cpp's (release b11549, common/sampling.cpp). It offers two samplers more,
`infill` and `adaptive_p`; asking for them here is an error, as is a name it would only warn about.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from gemmafile.errors import BadSettings, nearest
from gemmafile.settings import SamplingSettings

LETTERS = {
    "e": "penalties",
    "d": "dry",
    "s": "top_n_sigma",
    "k": "top_k",
    "y": "typ_p",
    "p": "top_p",
    "m": "min_p",
    "x": "xtc",
    "t": "temperature",
}
"""Letter of `--sampling-seq` -> name of the sampler."""

SAMPLERS = tuple(LETTERS.values())

ALIASES = {
    **{name.replace("_", "-"): name for name in SAMPLERS},
    **{name.replace("_", ""): name for name in SAMPLERS},
    "nucleus": "top_p",
    "temp": "temperature",
    "typ": "typ_p",
    "typical": "typ_p",
    "typical_p": "typ_p",
    **{name: name for name in SAMPLERS},
}

LARGEST_FLOAT = 3.4028234e38
"""Settings meet logits in float32: a larger number would be infinity there."""

LEAST_TEMPERATURE = 1e-20
"""Logits divided by less may be infinite, and no token left: from here down the likeliest is taken, as at 0."""

_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (-LARGEST_FLOAT, LARGEST_FLOAT),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "top_n_sigma": (-LARGEST_FLOAT, LARGEST_FLOAT),
    "xtc_probability": (0, 1),
    "xtc_threshold": (0, 1),
    "dynatemp_range": (0, LARGEST_FLOAT),
    "dynatemp_exponent": (0, LARGEST_FLOAT),
    "repeat_penalty": (1 / LARGEST_FLOAT, LARGEST_FLOAT),
    "presence_penalty": (-LARGEST_FLOAT, LARGEST_FLOAT),
    "frequency_penalty": (-LARGEST_FLOAT, LARGEST_FLOAT),
    "dry_multiplier": (0, LARGEST_FLOAT),
    "dry_base": (0, LARGEST_FLOAT),
    "mirostat_tau": (0, LARGEST_FLOAT),
    "mirostat_eta": (0, LARGEST_FLOAT),
}

_LEAST_COUNT: dict[str, int | None] = {
    "seed": None,
    "top_k": None,
    "repeat_last_n": -1,
    "dry_allowed_length": 0,
    "dry_penalty_last_n": -1,
    "min_keep": 0,
    "n_probs": 0,
}
"""Whole-number fields and the least value each may have."""


def parse_samplers(text: str) -> tuple[str, ...]:
    """ "top_k;temperature" -> ("top_k", "temperature"). An empty text is an empty chain: the plain distribution."""
    names = [part.strip() for part in text.split(";")]
    return tuple(_sampler_name(name) for name in names if name)


def parse_sampling_seq(text: str) -> tuple[str, ...]:
    """ "edskypmxt" -> the nine samplers in that order."""
    for letter in text:
        if letter not in LETTERS:
            known = ", ".join(f"{letter} {name}" for letter, name in LETTERS.items())
            raise BadSettings(f"--sampling-seq {text!r}: no sampler has the letter {letter!r}; there are {known}")
    return tuple(LETTERS[letter] for letter in text)


def parse_logit_bias(entries: Iterable[str]) -> dict[int, float]:
    """["15043+1", "2-inf"] -> {15043: 1.0, 2: -inf}. Biases given twice for a token add up."""
    biases: dict[int, float] = {}
    for entry in entries:
        match = re.fullmatch(r"\s*(\d+)\s*([+-])\s*(inf|\d+\.?\d*(?:e[+-]?\d+)?|\.\d+(?:e[+-]?\d+)?)\s*", entry, re.I)
        if match is None:
            raise BadSettings(f"--logit-bias {entry!r}: give TOKEN_ID+BIAS or TOKEN_ID-BIAS, as in 15043+1 or 2-inf")
        token_id, bias = int(match[1]), float(match[2] + match[3])
        biases[token_id] = biases.get(token_id, 0.0) + bias
    return biases


def check_sampling(settings: SamplingSettings, n_vocab: int) -> None:
    """Raises BadSettings naming the first field whose value cannot be used."""
    for name, (low, high) in _RANGES.items():
        _check_number(name, getattr(settings, name), low, high)
    for name, least in _LEAST_COUNT.items():
        _check_count(name, getattr(settings, name), least)
    if settings.mirostat not in (0, 1, 2):
        raise BadSettings(f"mirostat is {settings.mirostat!r}: give 0 (off), 1 or 2")
    if not isinstance(settings.samplers, (list, tuple)):
        raise BadSettings(f"samplers is {settings.samplers!r}: give a list of names")
    for sampler in settings.samplers:
        _sampler_name(sampler)
    _check_breakers(settings.dry_sequence_breakers)
    _check_biases(settings.logit_bias, n_vocab)


def _sampler_name(name: Any) -> str:
    found = ALIASES.get(name.lower()) if isinstance(name, str) else None
    if found is None:
        hint = nearest(str(name), ALIASES)
        raise BadSettings(f"samplers: there is no sampler {name!r}{hint}; known are {', '.join(SAMPLERS)}")
    return found


def _check_number(name: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high:
        return
    if high < LARGEST_FLOAT:
        wanted = f"a number from {low:g} to {high:g}"
    else:
        wanted = "a finite number" if low < 0 else "a number not below 0" if low == 0 else "a number above 0"
    raise BadSettings(f"{name} is {value!r}: give {wanted}")


def _check_count(name: str, value: Any, least: int | None) -> None:
    if isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least):
        return
    raise BadSettings(f"{name} is {value!r}: give a whole number{'' if least is None else f' not below {least}'}")


def _check_breakers(breakers: Any) -> None:
    if not isinstance(breakers, (list, tuple)) or not all(isinstance(text, str) and text for text in breakers):
        raise BadSettings(f"dry_sequence_breakers is {breakers!r}: give a list of texts, none of them empty")


def _check_biases(biases: Any, n_vocab: int) -> None:
    if not isinstance(biases, Mapping):
        raise BadSettings(f"logit_bias is {biases!r}: give a dict of token ids and biases")
    for token_id, bias in biases.items():
        if not isinstance(token_id, int) or not 0 <= token_id < n_vocab:
            raise BadSettings(f"logit_bias: there is no token {token_id!r}; ids go from 0 to {n_vocab - 1}")
        if not isinstance(bias, (int, float)) or not (bias == -math.inf or abs(bias) <= LARGEST_FLOAT):
            raise BadSettings(f"logit_bias of token {token_id} is {bias!r}: give a finite number or -inf")
