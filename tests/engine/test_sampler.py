"""The sampler as a whole: what it chooses, how often, from which seed; what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gemmafile.engine.sampler import Choice, Sampler
from gemmafile.errors import GemmafileError
from gemmafile.settings import SamplingSettings
from tests.engine import naive_sampler as naive

LOGITS = np.array([1.0, 3.0, 2.5, -1.0, 2.0, 0.5, -4.0, 1.5], np.float32)
PLAIN = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0}


def make(n_vocab: int = len(LOGITS), **settings: object) -> Sampler:
    return Sampler(SamplingSettings(**{"seed": 7} | settings), n_vocab)  # type: ignore[arg-type]


def choose(sampler: Sampler, n: int, logits: np.ndarray = LOGITS) -> list[int]:
    return [sampler.sample(logits).token_id for _ in range(n)]


def accept_each(sampler: Sampler, n: int) -> list[int]:
    chosen = []
    for _ in range(n):
        chosen.append(sampler.sample(LOGITS).token_id)
        sampler.accept(chosen[-1])
    return chosen


CHAINS: dict[str, tuple[dict[str, object], naive.Ranked]] = {
    "plain": (PLAIN, naive.rank(LOGITS)),
    "default": (
        {},
        naive.temperature(naive.min_p(naive.top_p(naive.rank(LOGITS), 0.95), 0.05), 0.8),
    ),
    "temperature first": (
        {"samplers": ("temperature", "top_p"), "top_p": 0.8, "temperature": 2.0},
        naive.top_p(naive.temperature(naive.rank(LOGITS), 2.0), 0.8),
    ),
    "top-k last": (PLAIN | {"samplers": ("typ_p", "top_k"), "top_k": 3}, naive.top_k(naive.rank(LOGITS), 3)),
    "xtc": (
        PLAIN | {"xtc_probability": 1.0, "xtc_threshold": 0.15},
        naive.xtc(naive.rank(LOGITS), 0.15),
    ),
    "biases": (
        PLAIN | {"logit_bias": {0: 2.0, 1: -math.inf}},
        naive.resort([(i, x + {0: 2.0, 1: -math.inf}.get(i, 0.0)) for i, x in enumerate(LOGITS.tolist())]),
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_tokens_are_drawn_as_often_as_they_are_likely(name: str, full: bool) -> None:
    settings, expected = CHAINS[name]
    n = 40_000 if full else 6000
    counts = np.bincount(choose(make(**settings), n), minlength=len(LOGITS))
    chances = np.zeros(len(LOGITS))
    chances[[token_id for token_id, _ in expected]] = naive.probabilities(expected)
    assert (counts[chances == 0] == 0).all()
    likely = chances > 0
    chi_square = ((counts - n * chances)[likely] ** 2 / (n * chances[likely])).sum()
    assert chi_square < {2: 13.8, 3: 16.3, 4: 18.5, 5: 20.5, 6: 22.5, 7: 24.3}[likely.sum() - 1]  # 1 in 1000 above


def test_xtc_strikes_as_often_as_asked() -> None:
    likeliest_left = PLAIN | {"top_k": 1, "samplers": ("xtc", "top_k")}
    sampler = make(**likeliest_left, xtc_probability=0.25, xtc_threshold=0.05)
    chosen = choose(sampler, 2000)
    assert set(chosen) == {1, 0}
    assert chosen.count(0) == pytest.approx(500, abs=60)  # three deviations


def test_one_seed_one_answer() -> None:
    for settings in ({}, PLAIN, {"mirostat": 2}, {"xtc_probability": 0.5}):
        first = accept_each(make(seed=11, **settings), 50)
        assert accept_each(make(seed=11, **settings), 50) == first
        assert accept_each(make(seed=12, **settings), 50) != first


def test_the_stream_of_a_seed_is_fixed() -> None:
    """Uniform numbers of NumPy's Generator(PCG64(1)), looked up in the sorted distribution by hand."""
    assert choose(make(seed=1, **PLAIN), 12) == [2, 0, 1, 0, 1, 2, 7, 1, 2, 1, 4, 2]


def test_a_negative_seed_is_another_each_time() -> None:
    first, second = make(seed=-1, **PLAIN), make(seed=-1, **PLAIN)
    assert first.seed != second.seed
    assert choose(make(seed=first.seed, **PLAIN), 30) == choose(first, 30)


def test_each_choice_draws_one_number() -> None:
    """Whether or not there was anything to draw: so what came before shifts nothing."""
    certain = np.where(np.arange(8) == 2, np.float32(0), np.float32(-np.inf)).astype(np.float32)
    sampler, other = make(seed=5, **PLAIN), make(seed=5, **PLAIN)
    assert sampler.sample(certain).token_id == 2
    other.sample(LOGITS)
    assert choose(sampler, 20) == choose(other, 20)


def test_reset_begins_anew() -> None:
    for settings in ({"repeat_penalty": 1.5}, {"mirostat": 1}, {"xtc_probability": 0.5}):
        sampler = make(**settings)
        first = accept_each(sampler, 30)
        sampler.reset()
        assert accept_each(sampler, 30) == first


def test_a_copy_goes_on_alike_and_alone() -> None:
    pieces = [b"a", b"b", b"c", b"d", b"e", b"f", b"\n", b":"]
    for settings in (
        PLAIN | {"frequency_penalty": 0.3},
        PLAIN | {"dry_multiplier": 1.0, "dry_allowed_length": 1},
        {"mirostat": 2},
        {"xtc_probability": 0.5},
    ):
        sampler = Sampler(SamplingSettings(seed=3, **settings), len(LOGITS), token_bytes=pieces)  # type: ignore[arg-type]
        accept_each(sampler, 10)
        copy = sampler.copy()
        sampler.accept_prompt([6, 7])  # the copy must not see them
        before = sampler.copy()
        ours = accept_each(sampler, 40)
        alone = Sampler(sampler.settings, len(LOGITS), token_bytes=pieces)
        accept_each(alone, 10)
        assert accept_each(copy, 40) == accept_each(alone, 40)
        assert accept_each(before, 40) == ours


def test_a_copy_has_breakers_of_its_own() -> None:
    pieces = [b"a", b"b", b"c", b"d", b"e", b"f", b"\n", b":"]
    settings = SamplingSettings(temperature=0.0, dry_multiplier=1.0)
    sampler = Sampler(settings, len(LOGITS), token_bytes=pieces)
    sampler.accept_prompt([3, 4, 1, 3, 4])
    copy = sampler.copy()
    sampler.accept(7)
    assert (sampler.sample(LOGITS).token_id, copy.sample(LOGITS).token_id) == (1, 2)


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_greedy_takes_the_likeliest_and_of_equals_the_lowest_id(temperature: float) -> None:
    sampler = make(temperature=temperature)
    assert set(choose(sampler, 5)) == {1}
    tied = np.array([0, 5, 1, 5, 5], np.float32)
    assert set(choose(make(5, temperature=temperature), 5, tied)) == {1}


def test_greedy_still_heeds_what_edits_or_removes() -> None:
    assert choose(make(temperature=0.0, logit_bias={1: -5.0}), 1) == [2]
    penalised = make(temperature=0.0, repeat_penalty=2.0)
    penalised.accept_prompt([1])
    assert choose(penalised, 1) == [2]
    late = make(temperature=0.0, repeat_penalty=2.0, samplers=("temperature", "penalties"))
    late.accept_prompt([1])
    assert choose(late, 1) == [1]
    assert choose(make(temperature=0.0, xtc_probability=1.0, xtc_threshold=0.25), 1) == [2]
    assert len(set(choose(make(temperature=0.0, samplers=("top_k",)), 50))) > 1  # no temperature in this chain


def test_history_reaches_back_as_far_as_asked() -> None:
    for last_n, n_context, expected in ((2, 0, 1), (3, 0, 2), (-1, 0, 2), (-1, 2, 1), (-1, 3, 2), (0, 0, 1)):
        settings = SamplingSettings(temperature=0.0, presence_penalty=3.0, repeat_last_n=last_n)
        sampler = Sampler(settings, len(LOGITS), n_context=n_context)
        sampler.accept_prompt([1, 6, 6])
        assert sampler.sample(LOGITS).token_id == expected, (last_n, n_context)


def test_ignore_eos_never_ends() -> None:
    settings = SamplingSettings(temperature=0.0, ignore_eos=True)
    assert Sampler(settings, len(LOGITS), eog_ids=(1, 2)).sample(LOGITS).token_id == 4
    settings.logit_bias = {1: 100.0}
    assert Sampler(settings, len(LOGITS), eog_ids=(1, 2)).sample(LOGITS).token_id == 4


def test_mirostat_steers_towards_its_surprise() -> None:
    logits = np.random.default_rng(0).standard_normal(2000).astype(np.float32) * np.float32(2.5)
    for version in (1, 2):
        sampler = make(2000, mirostat=version, mirostat_tau=4.0, temperature=1.0, top_k=1)
        ranked, surprise = naive.rank(logits), 8.0
        restated = naive.mirostat_1 if version == 1 else naive.mirostat_2
        for _ in range(40):
            token_id = sampler.sample(logits).token_id
            kept = restated(ranked, surprise, *([2000] if version == 1 else []))
            chances = dict(zip([i for i, _ in kept], naive.probabilities(kept), strict=True))
            assert token_id in chances
            surprise -= 0.1 * (-math.log2(chances[token_id]) - 4.0)


def test_mirostat_takes_no_notice_of_truncations_and_penalties() -> None:
    sampler = make(mirostat=2, mirostat_tau=20.0, top_k=1, repeat_penalty=1e30)
    assert len(set(accept_each(sampler, 100))) > 4


def test_log_probabilities_are_the_models() -> None:
    chances = naive.probabilities(naive.rank(LOGITS))
    logprobs = {i: math.log(chance) for (i, _), chance in zip(naive.rank(LOGITS), chances, strict=True)}
    sampler = make(temperature=0.1, logit_bias={3: 50.0}, n_probs=3)
    choice = sampler.sample(LOGITS)
    assert choice.token_id == 3
    assert choice.logprob == pytest.approx(logprobs[3], abs=1e-6)
    assert [i for i, _ in choice.top] == [1, 2, 4]
    assert [x for _, x in choice.top] == pytest.approx([logprobs[i] for i in (1, 2, 4)], abs=1e-6)
    unasked = make().sample(LOGITS)
    assert (unasked.logprob, unasked.top) == (None, [])
    assert [i for i, _ in make(n_probs=99).sample(LOGITS).top] == [i for i, _ in naive.rank(LOGITS)]


def test_logits_are_left_alone() -> None:
    logits = LOGITS.copy()
    logits.flags.writeable = False
    sampler = make(repeat_penalty=1.2, logit_bias={0: 1.0}, n_probs=2)
    for _ in range(3):
        choice = sampler.sample(logits)
        assert isinstance(choice, Choice)
        sampler.accept(choice.token_id)
    assert np.array_equal(logits, LOGITS)


@pytest.mark.parametrize(
    ("value", "found"), [(math.nan, "NaN"), (math.inf, r"\+inf"), (None, "-inf for every token")], ids=str
)
def test_unusable_logits_are_an_error(value: float | None, found: str) -> None:
    logits = LOGITS.copy()
    if value is None:
        logits[:] = -np.inf
    else:
        logits[3] = value
    for settings in ({}, {"temperature": 0.0}, {"mirostat": 1}, PLAIN):
        with pytest.raises(GemmafileError, match=f"no usable numbers.*{found}"):
            make(**settings).sample(logits)


def test_settings_that_leave_no_token_are_an_error() -> None:
    for settings in ({}, {"temperature": 0.0}, {"mirostat": 2}, {"typical_p": 0.5}):
        with pytest.raises(GemmafileError, match="no token can be chosen"):
            make(2, logit_bias={0: -math.inf, 1: -math.inf}, **settings).sample(LOGITS[:2])


def test_a_whole_vocabulary(full: bool) -> None:
    """256,000 logits through every kind of chain: the choice is among the likely, and finite."""
    logits = np.random.default_rng(1).standard_normal(256_000).astype(np.float32) * np.float32(3)
    order = np.argsort(-logits)
    chains = ({}, PLAIN, {"top_k": 5000}, {"mirostat": 1}, {"typical_p": 0.9, "top_k": 0}, {"dynatemp_range": 0.5})
    for settings in chains:
        sampler = make(256_000, n_probs=5, **settings)
        for _ in range(10 if full else 2):
            choice = sampler.sample(logits)
            assert math.isfinite(choice.logprob)
            assert [i for i, _ in choice.top] == order[:5].tolist()
            if not settings:
                assert choice.token_id in order[:40]


@pytest.mark.parametrize("temperature", [1e-19, 1e-21, 1e-38, 1e-46, 1e-308, 5e-324])
@pytest.mark.parametrize(
    "more",
    [{}, {"top_k": 0}, {"n_probs": 2}, {"post_sampling_probs": True, "n_probs": 2}, {"mirostat": 1}, {"mirostat": 2},
     {"dynatemp_range": 1e-46}],
)  # fmt: skip
def test_next_to_no_temperature_takes_the_likeliest(temperature: float, more: dict[str, object]) -> None:
    sampler = make(temperature=temperature, seed=1, **more)
    assert sampler.sample(LOGITS).token_id == int(LOGITS.argmax())


def test_a_bias_beyond_all_numbers_is_an_error_in_words() -> None:
    large = np.full(len(LOGITS), 3e38, np.float32)
    with pytest.raises(GemmafileError, match="no token can be chosen|numbers"):
        make(temperature=0.5, top_k=3, logit_bias={2: 3e38}).sample(large)
