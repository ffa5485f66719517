"""Sampling settings from flags and requests: what is read, and what is refused by name."""

from __future__ import annotations

import math

import pytest

from gemmafile.engine.sampler import Sampler, parse_logit_bias, parse_samplers, parse_sampling_seq
from gemmafile.engine.sampling_options import SAMPLERS, check_sampling
from gemmafile.errors import BadSettings
from gemmafile.settings import DEFAULT_SAMPLERS, SamplingSettings

BAD = [
    ("temperature", math.nan), ("temperature", math.inf), ("temperature", "hot"), ("temperature", None),
    ("top_p", -0.1), ("top_p", 1.5), ("top_p", math.nan), ("min_p", 2), ("typical_p", -1.0),
    ("top_n_sigma", math.nan), ("xtc_probability", 1.1), ("xtc_threshold", -0.1),
    ("dynatemp_range", -0.5), ("dynatemp_exponent", -1.0),
    ("repeat_penalty", 0.0), ("repeat_penalty", -1.0), ("repeat_penalty", math.inf), ("repeat_last_n", -2),
    ("presence_penalty", math.nan), ("frequency_penalty", math.inf),
    ("dry_multiplier", -1.0), ("dry_base", math.nan), ("dry_allowed_length", -1), ("dry_penalty_last_n", -2),
    ("dry_sequence_breakers", [""]), ("dry_sequence_breakers", "\n"), ("dry_sequence_breakers", [3]),
    ("mirostat", 3), ("mirostat_tau", -1.0), ("mirostat_eta", math.nan), ("min_keep", -1), ("n_probs", -1),
    ("top_k", 3.5), ("top_k", True), ("seed", "x"), ("samplers", ("top_q",)), ("samplers", (3,)),
    ("logit_bias", {100: 1.0}), ("logit_bias", {-1: 1.0}), ("logit_bias", {"a": 1.0}), ("logit_bias", {3: math.nan}),
    ("logit_bias", {3: math.inf}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD, ids=str)
def test_a_bad_value_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(BadSettings, match=name):
        Sampler(SamplingSettings(**{name: value}), 100)  # type: ignore[arg-type]


def test_values_that_turn_a_sampler_off_are_fine() -> None:
    off = SamplingSettings(
        temperature=-1, top_k=-1, top_p=1, min_p=0, typical_p=1, top_n_sigma=-1, xtc_probability=0, xtc_threshold=1,
        repeat_last_n=-1, dry_penalty_last_n=-1, dry_base=0, samplers=(), dry_sequence_breakers=["none"],
        logit_bias={99: -math.inf, 0: 3}, seed=2**80,
    )  # fmt: skip
    check_sampling(off, 100)


def test_the_message_says_what_to_give() -> None:
    with pytest.raises(BadSettings, match="top_p is 1.5: give a number from 0 to 1"):
        check_sampling(SamplingSettings(top_p=1.5), 100)
    with pytest.raises(BadSettings, match=r"logit_bias: there is no token 100; ids go from 0 to 99"):
        check_sampling(SamplingSettings(logit_bias={100: 1.0}), 100)


def test_samplers_by_name() -> None:
    assert parse_samplers("top_k;temperature") == ("top_k", "temperature")
    assert parse_samplers(" Top-K ; nucleus;temp;minp;typical;typ-p;") == (
        "top_k", "top_p", "temperature", "min_p", "typ_p", "typ_p",
    )  # fmt: skip
    assert parse_samplers("") == ()
    assert parse_samplers(";".join(DEFAULT_SAMPLERS)) == DEFAULT_SAMPLERS


def test_an_unknown_sampler_names_the_nearest() -> None:
    with pytest.raises(BadSettings, match=r"no sampler 'temprature' \(did you mean temperature\?\)"):
        parse_samplers("top_k;temprature")
    with pytest.raises(BadSettings, match="infill"):
        parse_samplers("infill")


def test_samplers_by_letter() -> None:
    assert parse_sampling_seq("edskypmxt") == DEFAULT_SAMPLERS == SAMPLERS
    assert parse_sampling_seq("tk") == ("temperature", "top_k")
    with pytest.raises(BadSettings, match="no sampler has the letter 'z'"):
        parse_sampling_seq("kz")


def test_logit_biases() -> None:
    assert parse_logit_bias(["15043+1", "2-inf", " 7 - 0.5 ", "8+1e2", "9-.25"]) == {
        15043: 1.0, 2: -math.inf, 7: -0.5, 8: 100.0, 9: -0.25,
    }  # fmt: skip
    assert parse_logit_bias(["3+1", "3+2"]) == {3: 3.0}


@pytest.mark.parametrize("entry", ["", "15043", "15043=1", "x+1", "-1+2", "3+nan", "3+", "3++1", "3+1 4+1"])
def test_a_bias_that_cannot_be_read_is_refused(entry: str) -> None:
    with pytest.raises(BadSettings, match="--logit-bias"):
        parse_logit_bias([entry])
