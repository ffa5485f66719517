"""The reference replay: its parts against float64, and the law of rows on whole models."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gemmafile.engine.engine import Engine
from gemmafile.files.formats import format_by_name
from gemmafile.files.gguf import open_gguf
from gemmafile.kernels import reference
from gemmafile.kernels.cache import KVCache
from gemmafile.kernels.reference import ReferenceReplay, attend, gate, norm, rotate, soft_cap
from gemmafile.kernels.rotary import inverse_frequencies, rotary_table
from gemmafile.model.batch import PAGE, Batch
from gemmafile.model.config import Rope
from gemmafile.model.record import record
from gemmafile.model.tape import Attention, Tape, reads, writes
from gemmafile.settings import ContextSettings
from tests.kernels.random_blocks import random_rows
from tools.make_tiny import PRESETS, TinyConfig, make_tiny, tiny_tokens, write_tiny

F = np.float32
SMALL = TinyConfig(
    "gemma2", n_layers=2, embedding_dim=64, feed_forward_dim=96, n_heads=4, n_kv_heads=2, head_dim=32, n_vocab=416,
    window=70,
)  # fmt: skip
"""Its window crosses blocks of 64 and ends inside one."""


# --- operations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 15, 16, 64, 100])
def test_norm_equals_float64(n: int) -> None:
    """Over groups: one weight for each head."""
    rng = np.random.default_rng(n)
    x, w = rng.standard_normal((5, 3 * n), F), rng.standard_normal(n, F)
    groups = x.reshape(5, 3, n).astype(np.float64)
    expected = groups / np.sqrt((groups**2).mean(-1, keepdims=True) + 1e-6) * w
    np.testing.assert_allclose(norm(x, w, 1e-6), expected.reshape(5, -1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dim", [32, 20])
def test_rotation_equals_complex_numbers(interleaved: bool, dim: int) -> None:
    """A pair is a complex number turned by its angle; numbers of a head beyond `dim` stay."""
    rope = Rope(10_000.0, 2.0, dim, interleaved)
    x, positions = np.random.default_rng(2).standard_normal((6, 3 * 32), F), np.arange(100, 106)
    inv_freq = inverse_frequencies(rope, None)
    got = rotate(x, *rotary_table(inv_freq, positions), rope, 32).reshape(6, 3, 32)

    heads = x.reshape(6, 3, 32).astype(np.float64)
    first = np.arange(0, dim, 2) if interleaved else np.arange(dim // 2)
    second = first + 1 if interleaved else first + dim // 2
    angles = positions[:, None] / 2 * 10_000.0 ** (-2 * np.arange(dim // 2) / dim)
    turned = (heads[..., first] + 1j * heads[..., second]) * np.exp(1j * angles)[:, None]
    np.testing.assert_allclose(got[..., first], turned.real, rtol=0, atol=2e-5)
    np.testing.assert_allclose(got[..., second], turned.imag, rtol=0, atol=2e-5)
    np.testing.assert_array_equal(got[..., dim:], heads[..., dim:])


def test_rope_factors_divide_the_frequencies() -> None:
    rope = Rope(10_000.0, 1.0, 8, True, use_factors=True)
    factors = np.array([1, 2, 4, 8], F)
    np.testing.assert_array_equal(inverse_frequencies(rope, factors), inverse_frequencies(rope, None) / factors)


def llama3_factors(rope: Rope, factor: float, length: int) -> np.ndarray:
    """As a converter writes them: float64 rounded to float32."""
    turns = length / (2 * np.pi * rope.base ** (np.arange(0, rope.dim, 2) / rope.dim))
    smooth = np.clip((turns - 1) / 3, 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(F)


def test_llama3s_blended_frequencies_have_the_last_bits_that_models_are_trained_with() -> None:
    """As transformers' _compute_llama3_parameters; divided by the factors, 2 of the 5 in the band have other bits."""
    rope = Rope(10_000.0, 1.0, 64, True, use_factors=True)
    expected = "3ed7e89b 3e7a3ff4 3e029a8a 3d83b4e5 3cfab830"
    inv_freq = inverse_frequencies(rope, llama3_factors(rope, 8.0, 64))
    assert " ".join(f"{bits:08x}" for bits in inv_freq[3:8].view(np.uint32)) == expected


@pytest.mark.oracle
@pytest.mark.parametrize("length", [64, 100, 8192])
@pytest.mark.parametrize("factor", [2.0, 8.0, 32.0])
@pytest.mark.parametrize("dim", [32, 80, 128])
def test_llama3s_frequencies_equal_transformers(dim: int, factor: float, length: int) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    bands = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": length}
    scaling = {"rope_type": "llama3", "rope_theta": 10_000.0, "factor": factor} | bands
    config = LlamaConfig(
        hidden_size=dim, num_attention_heads=1, head_dim=dim, max_position_embeddings=1 << 17, rope_parameters=scaling
    )
    expected = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0].numpy()
    rope = Rope(10_000.0, 1.0, dim, True, use_factors=True)
    np.testing.assert_array_equal(inverse_frequencies(rope, llama3_factors(rope, factor, length)), expected)


def test_factors_that_are_not_llama3s_are_divided_by_as_they_stand() -> None:
    rope = Rope(10_000.0, 1.0, 64, True, use_factors=True)
    factors = np.linspace(1, 8, 32, dtype=F) ** 1.3
    np.testing.assert_array_equal(inverse_frequencies(rope, factors), inverse_frequencies(rope, None) / factors)


def test_gates_and_cap_equal_float64() -> None:
    rng = np.random.default_rng(3)
    x, up = (rng.standard_normal((9, 500)) * 4).astype(F), rng.standard_normal((9, 500), F)
    wide = x.astype(np.float64)
    gelu = 0.5 * wide * (1 + np.tanh(np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)))
    np.testing.assert_allclose(gate(x, up, "gelu"), gelu * up, rtol=0, atol=4e-6)
    np.testing.assert_allclose(gate(x, up, "silu"), wide / (1 + np.exp(-wide)) * up, rtol=0, atol=4e-6)
    np.testing.assert_allclose(soft_cap(x * 20, 30.0), 30 * np.tanh(wide * 20 / 30), rtol=0, atol=1e-5)


def test_gates_of_huge_numbers_are_finite() -> None:
    x = np.array([[-1e30, -200, 0, 200, 1e10]], F)
    for activation in ("gelu", "silu"):
        with np.errstate(over="ignore"):
            got = gate(x, np.ones_like(x), activation)[0]
        np.testing.assert_allclose(got, [0, 0, 0, 200, 1e10], atol=1e-6)


# --- attention -------------------------------------------------------------------------------------------------------

N_HEADS, N_KV_HEADS, HEAD_DIM = 6, 2, 24


def attention_op(window: int = 0, softcap: float = 0.0) -> Any:
    """The fields that attention reads."""
    return SimpleNamespace(
        n_heads=N_HEADS, n_kv_heads=N_KV_HEADS, head_dim=HEAD_DIM, scale=0.2, window=window, softcap=softcap, layer=0
    )


def attention_inputs(positions: np.ndarray, seed: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    n_stored = -(-(int(positions[-1]) + 1) // PAGE) * PAGE
    q = 2 * rng.standard_normal((len(positions), N_HEADS, HEAD_DIM), F)
    return q, *(rng.standard_normal((N_KV_HEADS, n_stored, HEAD_DIM), F) for _ in range(2))


def attend_float64(op: Attention, q: np.ndarray, keys: np.ndarray, values: np.ndarray, at: np.ndarray) -> np.ndarray:
    out = np.empty(q.shape)
    for t, head in itertools.product(range(len(q)), range(op.n_heads)):
        kv_head = head // (op.n_heads // op.n_kv_heads)
        seen = slice(max(0, at[t] - op.window + 1) if op.window else 0, at[t] + 1)
        s = keys[kv_head, seen].astype(np.float64) @ q[t, head] * op.scale
        s = op.softcap * np.tanh(s / op.softcap) if op.softcap else s
        p = np.exp(s - s.max())
        out[t, head] = p / p.sum() @ values[kv_head, seen]
    return out


@pytest.mark.parametrize("window", [0, 1, 63, 64, 65, 100])
@pytest.mark.parametrize("softcap", [0.0, 3.0])
@pytest.mark.parametrize("first", [0, 60, 127])
def test_attention_equals_float64(window: int, softcap: float, first: int) -> None:
    op, positions = attention_op(window, softcap), np.arange(first, first + 80)
    inputs = attention_inputs(positions)
    expected = attend_float64(op, *inputs, positions)
    np.testing.assert_allclose(attend(op, *inputs, positions), expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize("window", [0, 5, 64, 70])
@pytest.mark.parametrize("hidden", [1e30, np.inf, np.nan])
def test_what_a_row_does_not_see_changes_nothing(window: int, hidden: float) -> None:
    """The future and what lies behind the window, up to their very edges, whatever stands there."""
    position = np.array([150])
    q, keys, values = attention_inputs(position)
    expected = attend(attention_op(window), q, keys, values, position)
    first = 150 - window + 1 if window else 0
    for array, place in itertools.product((keys, values), (slice(0, first), slice(151, None))):
        array[:, place] = hidden
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(attend(attention_op(window), q, keys, values, position), expected)
    for edge in (first, 150):
        changed = values.copy()
        changed[:, edge] += 1
        assert (attend(attention_op(window), q, keys, changed, position) != expected).any(), f"{edge} is not seen"


def test_chunks_of_rows_do_not_change_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    op, positions = attention_op(window=70), np.arange(40, 200)
    inputs = attention_inputs(positions)
    whole = attend(op, *inputs, positions)
    monkeypatch.setattr(reference, "_CHUNK_NUMBERS", N_HEADS * 64 * 7)
    np.testing.assert_array_equal(attend(op, *inputs, positions), whole)


# --- whole models ----------------------------------------------------------------------------------------------------


def open_engine(folder: Path, config: TinyConfig, cache: str = "f32", fmt: str = "F32", **settings: Any) -> Engine:
    """A tiny model on the reference; `fmt` of its matrices is made of random blocks."""
    rng = np.random.default_rng(17)

    def encode(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
        if array.shape[1] % format_by_name(fmt).weights_per_block:
            return "F32", array
        rows = random_rows(fmt, rng, *array.shape, std=float(array.std()))
        return fmt, rows.view({"F16": "<f2", "BF16": "<u2"}.get(fmt, np.uint8))

    path = write_tiny(make_tiny(config, 11), folder / "tiny.gguf", None if fmt == "F32" else encode)
    context = ContextSettings(backend="reference", cache_type_k=cache, cache_type_v=cache, **settings)
    return Engine(open_gguf(path), context)


def logits_of(engine: Engine, ids: list[int], *steps: int) -> np.ndarray:
    """float32[T, V] of a new sequence computed in passes of `steps` rows, the last one over and over."""
    sequence, done, kept = engine.new_sequence(), 0, []
    for step in itertools.chain(steps, itertools.repeat(steps[-1])):
        kept.append(engine.forward(sequence, ids[done : done + step], want="all"))
        done += step
        if done >= len(ids):
            sequence.truncate(0)
            return np.concatenate(kept)
    raise AssertionError("unreachable")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = open_engine(tmp_path_factory.mktemp("small"), SMALL)
    yield engine
    engine.close()


def ids_of(config: TinyConfig, seed: int, n: int) -> list[int]:
    return [int(i) for i in tiny_tokens(config, seed, n)]


def test_prompt_in_one_pass_equals_token_by_token(small: Engine) -> None:
    """Over a page of 128, past the window of 70."""
    ids = ids_of(SMALL, 1, PAGE + 10)
    np.testing.assert_array_equal(logits_of(small, ids, 1), logits_of(small, ids, len(ids)))


@pytest.mark.parametrize("steps", [(127, 1, 1, 50), (128, 60), (1, 130, 7), (64, 65, 63)])
def test_chunks_of_a_prompt_do_not_change_it(small: Engine, steps: tuple[int, ...]) -> None:
    ids = ids_of(SMALL, 2, 200)
    np.testing.assert_array_equal(logits_of(small, ids, *steps), logits_of(small, ids, 200))


@pytest.mark.parametrize("preset", ["gemma2-odd", "gemma", "gemma3", "llama", "llama3"])
def test_prompt_equals_token_by_token_in_every_architecture(tmp_path: Path, preset: str) -> None:
    engine, ids = open_engine(tmp_path, PRESETS[preset]), ids_of(PRESETS[preset], 3, 14)
    np.testing.assert_array_equal(logits_of(engine, ids, 5, 1), logits_of(engine, ids, 14))


@pytest.mark.parametrize("fmt", ["F16", "BF16", "Q8_0", "Q6_K", "Q5_0", "Q4_K", "Q4_1", "Q4_0"])
def test_prompt_equals_token_by_token_in_every_format(tmp_path: Path, fmt: str) -> None:
    config = TinyConfig("gemma3", n_layers=1, feed_forward_dim=256, window=6)
    engine, ids = open_engine(tmp_path, config, fmt=fmt), ids_of(config, 4, 12)
    assert {w.format.name for w in (engine.weights.token_embd, engine.weights.layers[0].ffn_down)} == {fmt}
    together = logits_of(engine, ids, 12)
    assert np.isfinite(together).all()
    np.testing.assert_array_equal(logits_of(engine, ids, 7, 1), together)


@pytest.mark.parametrize("cache", ["f16", "bf16", "q8_0"])
def test_a_small_cache_keeps_the_law_and_stays_near(small: Engine, tmp_path: Path, cache: str) -> None:
    """Keys and values are read back from the cache even in the pass that stores them."""
    engine, ids = open_engine(tmp_path, SMALL, cache), ids_of(SMALL, 5, PAGE + 4)
    together = logits_of(engine, ids, len(ids))
    np.testing.assert_array_equal(logits_of(engine, ids, PAGE - 2, 1), together)
    difference = np.abs(together - logits_of(small, ids, len(ids))).max()
    assert 1e-6 < difference < {"f16": 0.02, "bf16": 0.2, "q8_0": 0.5}[cache]


def run_together(engine: Engine, prompts: list[list[int]], sizes: list[list[int]]) -> list[np.ndarray]:
    """Logits of several sequences computed in mixed passes: pass i takes sizes[i][s] tokens of sequence s.

    Pages are handed out by turns and in descending order, so that no table is the identity.
    """
    n_pages = [-(-len(p) // PAGE) for p in prompts]
    tables = np.zeros((len(prompts), max(n_pages)), np.int32)
    free = iter(range(sum(n_pages) - 1, -1, -1))
    for column in range(max(n_pages)):
        for s, n in enumerate(n_pages):
            if column < n:
                tables[s, column] = next(free)
    cache = KVCache(engine.config, sum(n_pages), "f32", "f32")
    replay = ReferenceReplay(record(engine.config, engine.weights), engine.config, engine.weights, cache)
    done, kept = [0] * len(prompts), [[] for _ in prompts]
    for counts in sizes:
        rows = [(s, p) for s, n in enumerate(counts) for p in range(done[s], done[s] + n)]
        sequences, positions = np.array(rows, np.int32).T
        ids = np.array([prompts[s][p] for s, p in rows], np.int32)
        logits = replay.run(Batch(ids, positions, sequences, tables, np.arange(len(rows), dtype=np.int32)))
        for s, n in enumerate(counts):
            kept[s].append(logits[sequences == s])
            done[s] += n
    assert done == [len(p) for p in prompts]
    return [np.concatenate(parts) for parts in kept]


def test_sequences_together_equal_each_alone(small: Engine) -> None:
    """Prompts being read beside others being answered, one absent from a pass, two over a page boundary."""
    prompts = [ids_of(SMALL, 6, PAGE + 12), ids_of(SMALL, 7, 9), ids_of(SMALL, 8, PAGE + 3), ids_of(SMALL, 9, 1)]
    sizes = [[PAGE - 1, 4, 0, 1], [1, 1, 100, 0], [1, 0, 27, 0], [1, 4, 1, 0], [10, 0, 3, 0]]
    together = run_together(small, prompts, sizes)
    for prompt, logits in zip(prompts, together, strict=True):
        np.testing.assert_array_equal(logits, logits_of(small, prompt, len(prompt)))


def test_what_a_sequence_left_behind_changes_nothing(small: Engine) -> None:
    """Tokens taken back, then others in their place: as if the first had never been."""
    ids, others = ids_of(SMALL, 10, 140), ids_of(SMALL, 11, 140)
    expected = logits_of(small, ids, 140)
    sequence = small.new_sequence()
    small.forward(sequence, ids[:50] + others[:120])
    sequence.truncate(50)
    np.testing.assert_array_equal(small.forward(sequence, ids[50:], want="all"), expected[50:])
    sequence.truncate(0)


def test_only_wanted_rows_have_logits(small: Engine) -> None:
    ids = ids_of(SMALL, 12, 20)
    everything = logits_of(small, ids, 20)
    for want, rows in (("last", slice(19, 20)), ("none", slice(0, 0))):
        sequence = small.new_sequence()
        logits = small.forward(sequence, ids, want=want)
        np.testing.assert_array_equal(logits, everything[rows])
        assert len(sequence) == 20
        sequence.truncate(0)


def test_trace_shows_every_value_in_order(small: Engine) -> None:
    ids = ids_of(SMALL, 13, 5)
    seen: list[tuple[str, tuple[int, ...]]] = []
    sequence = small.new_sequence()
    logits = small.forward(sequence, ids, trace=lambda name, array: seen.append((name, array.shape)))
    tape = record(small.config, small.weights)
    expected = [(v.name, (1 if v.on_outputs else 5, v.width)) for op in tape.ops for v in writes(op)]
    assert seen == expected
    assert seen[0][0] == "embedding"
    assert seen[-1] == ("logits", logits.shape)
    sequence.truncate(0)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_tape_reads_only_what_it_has_written_once(tmp_path: Path, preset: str) -> None:
    tape: Tape = open_engine(tmp_path, PRESETS[preset]).backend._tape  # type: ignore[attr-defined]
    written: set[int] = set()
    names: set[str] = set()
    for op in tape.ops:
        assert {value.id for value in reads(op)} <= written
        for value in writes(op):
            assert value.id not in written
            assert value.name not in names, "a trace could not tell them apart"
            written.add(value.id)
            names.add(value.name)


def test_infinite_weights_give_no_warnings(tmp_path: Path) -> None:
    """A broken model answers NaN; it does not stop the program."""
    model = make_tiny(SMALL, 1)
    model.weights["blk.0.ffn_norm.weight"][:] = np.inf
    engine = Engine(open_gguf(write_tiny(model, tmp_path / "tiny.gguf")), ContextSettings(backend="reference"))
    assert np.isnan(engine.forward(engine.new_sequence(), [1, 2, 3])).all()


@pytest.mark.oracle
@pytest.mark.parametrize("preset", PRESETS)
def test_values_between_the_layers_equal_transformers(tmp_path: Path, preset: str) -> None:
    """Every value that both have, past the window and over a page; logits are tests/models' business."""
    from tests.oracles import hf

    config = PRESETS[preset]
    model, ids = make_tiny(config, 23), tiny_tokens(config, 23, 150)
    engine = Engine(
        open_gguf(write_tiny(model, tmp_path / "tiny.gguf")),
        ContextSettings(backend="reference", cache_type_k="f32", cache_type_v="f32"),
    )
    ours: dict[str, np.ndarray] = {}
    engine.forward(engine.new_sequence(), ids.tolist(), want="all", trace=lambda name, a: ours.update({name: a.copy()}))
    n_compared = 0
    for name, theirs in hf.trace(hf.build(model), ids):
        if name in ours and name != "embedding":
            assert np.abs(ours[name] - theirs).max() < 3e-4 * max(1, np.abs(theirs).max()), name
            n_compared += 1
    assert n_compared >= 11 * config.n_layers
