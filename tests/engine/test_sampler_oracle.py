"""The same candidates and logits as llama.cpp's own samplers leave (release b11549, in the xllamacpp wheel)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from gemmafile.engine import truncation
from gemmafile.engine.candidates import Candidates
from gemmafile.engine.penalties import Dry, apply_penalties
from gemmafile.settings import SamplingSettings

pytestmark = pytest.mark.oracle

N_VOCAB = 4000


def distributions() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(11)
    noise = rng.standard_normal(N_VOCAB).astype(np.float32)
    holes = noise * np.float32(3)
    holes[rng.random(N_VOCAB) < 0.5] = -np.inf
    peaked = noise * np.float32(2)
    peaked[77] = 15  # more, and float32 loses the others in llama.cpp's entropy
    return {"likely": noise * np.float32(3), "flat": noise * np.float32(0.1), "holes": holes, "peaked": peaked}


def same(candidates: Candidates, theirs: list[tuple[int, float]], where: object, edge: float = 2e-6) -> None:
    """Equal ids and logits; only a token of next to no probability may be on one side alone, at the edge."""
    ours = [(candidates.token(rank), float(value)) for rank, value in enumerate(candidates.values)]
    assert [x for _, x in ours] == sorted((x for _, x in ours), reverse=True)
    weights = candidates.weights() / candidates.weights().sum()
    shared = min(len(ours), len(theirs))
    assert float(weights[shared:].sum()) <= edge, where
    assert len(theirs) - shared <= 2, where
    assert [i for i, _ in ours[:shared]] == [i for i, _ in theirs[:shared]], where
    np.testing.assert_allclose([x for _, x in ours[:shared]], [x for _, x in theirs[:shared]], 2e-5, 2e-5, str(where))


def compare(act: Callable[[Candidates], None], *samplers: tuple[object, ...], edge: float = 2e-6) -> None:
    from tests.engine.llamacpp_samplers import Chain

    for kind, logits in distributions().items():
        chain = Chain()
        for sampler in samplers:
            chain.add(*sampler)  # type: ignore[arg-type]
        candidates = Candidates(logits)
        act(candidates)
        same(candidates, chain.apply(logits)[0], (kind, samplers), edge)
        chain.close()


@pytest.mark.parametrize("k", [0, 1, 40, 3000])
def test_top_k(k: int) -> None:
    compare(lambda candidates: truncation.keep_top_k(candidates, k), ("top_k", k))


@pytest.mark.parametrize(("p", "min_keep"), [(0.0, 0), (0.3, 0), (0.95, 0), (0.999, 0), (0.1, 30)])
def test_top_p(p: float, min_keep: int) -> None:
    # llama.cpp adds up thousands of float32 one by one: its edge lies some 1e-5 off
    compare(lambda candidates: truncation.keep_top_p(candidates, p, min_keep), ("top_p", p, min_keep), edge=5e-4)


@pytest.mark.parametrize(("p", "min_keep"), [(0.05, 0), (0.5, 0), (1.0, 0), (0.9, 30)])
def test_min_p(p: float, min_keep: int) -> None:
    compare(lambda candidates: truncation.keep_min_p(candidates, p, min_keep), ("min_p", p, min_keep))


@pytest.mark.parametrize(("p", "min_keep"), [(0.2, 0), (0.9, 0), (0.1, 30)])
def test_typical(p: float, min_keep: int) -> None:
    from tests.engine.llamacpp_samplers import Chain

    logits = distributions()["likely"]  # -inf makes llama.cpp's entropy NaN
    candidates = Candidates(logits)
    truncation.keep_typical(candidates, p, min_keep)
    same(candidates, Chain().add("typical", p, min_keep).apply(logits)[0], p, edge=1e-4)


@pytest.mark.parametrize("n", [-1.0, 0.5, 2.0])
def test_top_n_sigma(n: float) -> None:
    compare(lambda candidates: truncation.keep_top_n_sigma(candidates, n), ("top_n_sigma", n))


@pytest.mark.parametrize(("threshold", "min_keep"), [(0.001, 0), (0.05, 0), (0.6, 0), (0.001, 3999)])
def test_xtc(threshold: float, min_keep: int) -> None:
    compare(
        lambda candidates: truncation.exclude_top_choices(candidates, threshold, min_keep),
        ("xtc", 1.0, threshold, min_keep, 1),
    )


@pytest.mark.parametrize("value", [(0.0, 0.0, 1.0), (0.8, 0.0, 1.0), (0.8, 0.5, 1.0), (1.0, 2.0, 0.5)])
def test_temperature(value: tuple[float, float, float]) -> None:
    def act(candidates: Candidates) -> None:
        truncation.keep_top_k(candidates, 1000)  # fewer than are not -inf: of those llama.cpp counts the dead too
        truncation.apply_temperature(candidates, *value)

    compare(act, ("top_k", 1000), ("temp_ext", *value))


def test_the_default_chain() -> None:
    def act(candidates: Candidates) -> None:
        truncation.keep_top_k(candidates, 40)
        truncation.keep_top_p(candidates, 0.95)
        truncation.keep_min_p(candidates, 0.05)
        truncation.apply_temperature(candidates, 0.8)

    compare(act, ("top_k", 40), ("top_p", 0.95, 0), ("min_p", 0.05, 0), ("temp_ext", 0.8, 0.0, 1.0))


def test_penalties_and_biases() -> None:
    from tests.engine.llamacpp_samplers import Chain

    rng = np.random.default_rng(4)
    said = rng.integers(0, 60, 100).tolist()
    for logits in distributions().values():
        for repeat, frequency, presence in ((1.3, 0.0, 0.0), (1.0, 0.4, -0.2), (0.5, 0.1, 3.0)):
            chain = Chain().add("penalties", N_VOCAB, 64, repeat, frequency, presence).accept(said)
            candidates = Candidates(logits)
            apply_penalties(candidates, np.array(said[-64:], np.int32), repeat, frequency, presence)
            same(candidates, chain.apply(logits)[0], (repeat, frequency, presence))
            chain.close()


@pytest.mark.parametrize("allowed", [0, 1, 2, 5])
def test_dry(allowed: int) -> None:
    """With breakers of one token, where the two ways of finding them are one."""
    from tests.engine.llamacpp_samplers import Chain

    rng = np.random.default_rng(allowed)
    pieces = [bytes([65 + i]) for i in range(8)]
    for trial in range(60):
        said = rng.integers(0, 2 + trial % 7, 5 + 2 * trial).tolist()
        said += said[-20:] if trial % 2 else []
        settings = SamplingSettings(
            dry_multiplier=0.7, dry_base=1.0 + (trial % 4) / 3, dry_allowed_length=allowed, dry_sequence_breakers=["G"]
        )
        dry = Dry(settings, pieces)
        for token_id in said:
            dry.accept(token_id)
        logits = rng.standard_normal(8).astype(np.float32)
        candidates = Candidates(logits)
        last_n = 10 + trial
        dry.apply(candidates, np.array(said[-last_n:], np.int32))
        chain = Chain().add_dry(0.7, settings.dry_base, allowed, last_n, [[6]]).accept(said)
        same(candidates, chain.apply(logits)[0], (said, settings))
        chain.close()


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat(version: int) -> None:
    """As long as both see the same choices, the same candidates are kept step after step."""
    from tests.engine.llamacpp_samplers import Chain

    surprise, tau, eta = 10.0, 5.0, 0.1
    arguments = ("mirostat", N_VOCAB, 3, tau, eta, 100) if version == 1 else ("mirostat_v2", 3, tau, eta)
    chain, logits = Chain().add(*arguments), distributions()["likely"]
    for step in range(60):
        candidates = Candidates(logits)
        if version == 1:
            truncation.keep_mirostat_1(candidates, surprise, N_VOCAB)
        else:
            truncation.keep_mirostat_2(candidates, surprise)
        left, chosen = chain.apply(logits)
        same(candidates, left, step, edge=5e-4)
        weights = candidates.weights() / candidates.weights().sum()
        rank = [candidates.token(rank) for rank in range(len(candidates))].index(chosen)
        surprise -= eta * (-math.log2(float(weights[rank])) - tau)


def test_defaults_and_order() -> None:
    import xllamacpp

    theirs, ours = xllamacpp.CommonParams().sampling, SamplingSettings()
    names = {
        "temp": "temperature", "typ_p": "typical_p",
        "penalty_last_n": "repeat_last_n", "penalty_repeat": "repeat_penalty",
        "penalty_freq": "frequency_penalty", "penalty_present": "presence_penalty",
    }  # fmt: skip
    same_names = (
        "top_k top_p min_p min_keep n_probs xtc_probability xtc_threshold dynatemp_range dynatemp_exponent "
        "dry_multiplier dry_base dry_allowed_length dry_penalty_last_n mirostat mirostat_tau mirostat_eta ignore_eos"
    )
    for theirs_name, ours_name in (names | {name: name for name in same_names.split()}).items():
        assert getattr(ours, ours_name) == pytest.approx(getattr(theirs, theirs_name)), ours_name
    assert ";".join(ours.samplers) == theirs.samplers
