"""The sampling fields of a request, under llama.cpp's names, as SamplingSettings. Every API that has them reads them
here; what a request does not say is as the server was started.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from typing import Any

from gemmafile.engine.sampling_options import check_sampling, parse_samplers, parse_sampling_seq
from gemmafile.errors import BadSettings
from gemmafile.server.adapters import check_adapters
from gemmafile.server.body import Fields
from gemmafile.server.door import Door
from gemmafile.server.errors import bad_request
from gemmafile.settings import SamplingSettings
from gemmafile.text.tokenizer import Tokenizer

NUMBERS = (
    "temperature", "top_p", "min_p", "typical_p", "top_n_sigma", "xtc_probability", "xtc_threshold", "dynatemp_range",
    "dynatemp_exponent", "repeat_penalty", "presence_penalty", "frequency_penalty", "dry_multiplier", "dry_base",
    "mirostat_tau", "mirostat_eta",
)  # fmt: skip
COUNTS = ("top_k", "repeat_last_n", "dry_allowed_length", "dry_penalty_last_n", "mirostat", "min_keep")

RANDOM_SEED = 2**32 - 1
"""llama.cpp's way to say -1."""
MOST_PROBS = 1000
MOST_GRAMMAR_CHARS = 1_000_000
_ID = re.compile("-?[0-9]{1,18}")
"""A key of logit_bias that is a token id; every other is a text."""


def read_sampling(fields: Fields, door: Door, **values: Any) -> SamplingSettings:
    """The settings of one answer; `values` are those that an API calls by another name. Raises ApiError, BadSettings.

    Fields: temperature, top_k, top_p, min_p, ... seed, samplers, logit_bias, ignore_eos, n_probs, grammar, json_schema.
    """
    if "lora" in fields:
        check_adapters(door, fields.raw("lora"))
    found: dict[str, Any] = {}
    for name in NUMBERS:
        if name in fields:
            found[name] = fields.number(name, 0.0)
    for name in COUNTS:
        if name in fields:
            found[name] = fields.whole(name, 0, -(2**31), 2**31 - 1)
    if "seed" in fields:
        seed = fields.whole("seed", -1, -(2**63), 2**64 - 1)
        found["seed"] = -1 if seed < 0 or seed == RANDOM_SEED else seed
    if "ignore_eos" in fields:
        found["ignore_eos"] = fields.flag("ignore_eos")
    if "post_sampling_probs" in fields:
        found["post_sampling_probs"] = fields.flag("post_sampling_probs")
    if "n_probs" in fields:
        found["n_probs"] = fields.whole("n_probs", 0, 0, MOST_PROBS)
    if "samplers" in fields:
        found["samplers"] = _read_samplers(fields)
    if "dry_sequence_breakers" in fields:
        found["dry_sequence_breakers"] = fields.texts("dry_sequence_breakers", 1000)
    if "logit_bias" in fields:
        found["logit_bias"] = read_logit_bias(fields, door.tokenizer)
    found |= _read_grammar(fields)
    found |= values
    settings = replace(door.sampling, **found)
    if settings.n_probs > MOST_PROBS:
        raise bad_request(f"at most {MOST_PROBS} probabilities a token", "n_probs")
    check_sampling(settings, door.model.config.n_vocab)
    return settings


def _read_samplers(fields: Fields) -> tuple[str, ...]:
    """Names in a list, or their letters in a string."""
    value = fields.raw("samplers")
    if isinstance(value, str):
        return parse_sampling_seq(value) if ";" not in value else parse_samplers(value)
    return parse_samplers(";".join(fields.texts("samplers", 100)))


def _read_grammar(fields: Fields) -> dict[str, Any]:
    """grammar (GBNF) or json_schema, whichever is there; llama.cpp refuses both at once."""
    grammar = fields.text("grammar") or None
    schema = fields.raw("json_schema")
    if grammar is not None and schema is not None:
        raise bad_request("either grammar or json_schema may be given, not both", "grammar")
    if schema is not None:
        if not isinstance(schema, (dict, bool)):
            raise fields.wrong("json_schema", "a JSON schema, which is an object")
        grammar_text = json.dumps(schema)
        found: dict[str, Any] = {"json_schema": grammar_text, "grammar": None}
    elif grammar is not None:
        grammar_text = grammar
        found = {"grammar": grammar, "json_schema": None}
    else:
        return {}
    if len(grammar_text) > MOST_GRAMMAR_CHARS:
        raise bad_request(f"the grammar has more than {MOST_GRAMMAR_CHARS} characters", "grammar")
    return found


def read_logit_bias(fields: Fields, tokenizer: Tokenizer) -> dict[int, float]:
    """{token id: bias} of any of llama.cpp's forms: [[id, bias]], [["text", bias]], {"id or text": bias}.

    false forbids a token; a text stands for each of its tokens.
    """
    value = fields.raw("logit_bias", {})
    if isinstance(value, dict):
        pairs: list[Any] = [[int(key) if _ID.fullmatch(key) else key, bias] for key, bias in value.items()]
    elif isinstance(value, list):
        pairs = value
    else:
        raise fields.wrong("logit_bias", "pairs of token and bias")
    if len(pairs) > tokenizer.n_tokens:
        raise bad_request("logit_bias names more tokens than there are", "logit_bias")
    biases: dict[int, float] = {}
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            raise fields.wrong("logit_bias", "pairs of token and bias")
        token, bias = pair
        if not isinstance(bias, (bool, int, float)) or bias is True:
            raise fields.wrong("logit_bias", "a number for each token, or false to forbid it")
        amount = -math.inf if bias is False else float(bias)
        if isinstance(token, str):
            ids = tokenizer.encode(token, add_special=False)
        elif isinstance(token, int) and not isinstance(token, bool):
            ids = [token]
        else:
            raise fields.wrong("logit_bias", "a token id or a text in each pair")
        for token_id in ids:
            if not 0 <= token_id < tokenizer.n_tokens:
                raise BadSettings(f"logit_bias: there is no token {token_id}; ids go to {tokenizer.n_tokens - 1}")
            biases[token_id] = amount
    return biases
