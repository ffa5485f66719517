"""Work is counted from the tape: bytes and operations of a pass, by hand for one small model."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemmafile.bench.machine import Limits, mapped_segments
from gemmafile.bench.runs import Trial, context_needed
from gemmafile.bench.work import Pass, Work, arithmetic_of, count_work, weight_names
from gemmafile.files.open import open_model
from gemmafile.kernels import amx
from gemmafile.model.batch import PAGE
from gemmafile.model.config import read_config
from gemmafile.model.record import record
from gemmafile.model.tape import Tape
from gemmafile.model.weights import load_weights
from gemmafile.settings import ContextSettings
from tests.tiny import SIZES, write_small

E, F, D, H, K, L = 64, 96, 32, 2, 1, 2
A_LAYER = E * H * D + 2 * E * K * D + H * D * E + 3 * E * F
"""Weights of a layer's matrices."""


@pytest.fixture(scope="module")
def tape(tmp_path_factory: pytest.TempPathFactory) -> Tape:
    sizes = (SIZES["embedding_dim"], SIZES["feed_forward_dim"], SIZES["head_dim"], SIZES["n_heads"])
    assert (*sizes, SIZES["n_kv_heads"], SIZES["n_layers"]) == (E, F, D, H, K, L)
    with open_model(write_small(tmp_path_factory.mktemp("work") / "small.gguf")) as file:
        config = read_config(file, ContextSettings())
        names = weight_names(record(config, load_weights(file, config)))
        in_layers = [name for name in names if name.startswith("blk.")]
        assert sum(file.data(name).nbytes for name in in_layers) == 4 * L * A_LAYER
        assert sum(size for _, size in mapped_segments(file, names)) >= sum(file.data(name).nbytes for name in names)
        return record(config, load_weights(file, config))


def vocabulary(tape: Tape) -> int:
    return tape.ops[-1].out.width  # type: ignore[union-attr]


def test_a_token(tape: Tape) -> None:
    """Behind 9 positions: every matrix once, ten keys and values of each layer."""
    work, v = count_work(tape, [Pass(rows=1, depth=9, outputs=1)]), vocabulary(tape)
    assert work.operations == {"f32": 2 * (L * A_LAYER + v * E) + L * 4 * H * D * 10}
    assert work.n_bytes == 4 * (L * A_LAYER + v * E) + L * 2 * 2 * K * D * 10


def test_a_prompt_has_one_row_of_logits(tape: Tape) -> None:
    """And one of all that comes behind the last attention."""
    work, last = count_work(tape, [Pass(rows=5, depth=0, outputs=1)]), H * D * E + 3 * F * E + vocabulary(tape) * E
    before = L * A_LAYER - (H * D * E + 3 * F * E)
    assert work.operations == {"f32": 2 * (5 * before + last) + L * 4 * H * D * (1 + 2 + 3 + 4 + 5)}
    without = count_work(tape, [Pass(rows=5, depth=0, outputs=0)])
    assert work.n_bytes - without.n_bytes == 4 * last


def test_sequences_share_the_weights_but_not_their_keys(tape: Tape) -> None:
    one, four = (count_work(tape, [Pass(1, 9, n, n)]) for n in (1, 4))
    assert four.n_operations == 4 * one.n_operations
    assert four.n_bytes - one.n_bytes == 3 * L * 2 * 2 * K * D * 10


def test_a_window_bounds_what_a_row_sees(tape: Tape) -> None:
    """One of the two layers has a window: behind it, only the other grows."""
    near, far = (count_work(tape, [Pass(1, depth, 1)]) for depth in (5_000, 10_000))
    assert far.n_operations - near.n_operations == 4 * H * D * 5_000


@pytest.mark.parametrize(("name", "kind"), [("Q6_K", "int8"), ("Q4_0", "int8"), ("BF16", "bf16"), ("F16", "f32")])
def test_formats_are_multiplied_as(name: str, kind: str) -> None:
    assert arithmetic_of(name, 1) == kind


def test_more_than_a_few_rows_go_through_the_matrix_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    for is_ready, expected in ((True, ["int8", "unit", "f32"]), (False, ["int8", "int8", "f32"])):
        monkeypatch.setattr(amx, "is_ready", lambda is_ready=is_ready: is_ready)
        assert [arithmetic_of(name, rows) for name, rows in (("Q6_K", 3), ("Q6_K", 5), ("F32", 100))] == expected


def test_the_least_time_is_work_by_limit() -> None:
    work = Work(8e9, {"int8": 3e12, "f32": 1e11})
    limits = Limits(read=16, int8=1500, f32=200)
    assert work.read_s(limits) == pytest.approx(0.5)
    assert work.compute_s(limits) == pytest.approx(2.5)


def test_passes_of_the_engine() -> None:
    prefill = Trial("prefill", tokens=1100, threads=1, depth=7)
    assert prefill.passes(512) == [Pass(512, 7, 0), Pass(512, 519, 0), Pass(76, 1031, 1)]
    assert Trial("decode", tokens=2, threads=1, depth=7).passes(512) == [Pass(1, 7, 1), Pass(1, 8, 1)]
    batch = Trial("batch", tokens=10, threads=1, rows=4)
    assert (batch.steps, batch.tokens_made) == (3, 12)
    assert batch.passes(512) == [Pass(1, i, 4, 4) for i in range(3)]


def test_the_cache_holds_every_depth_and_one_test_more() -> None:
    tests = [Trial("prefill", 512, 1, 0), Trial("decode", 128, 1, 2000), Trial("batch", 10, 1, rows=8)]
    assert context_needed(tests) >= 2000 + max(512, 128, 8 * PAGE)


def test_neighbours_are_one_segment(tmp_path: Path) -> None:
    with open_model(write_small(tmp_path / "small.gguf")) as file:
        assert len(mapped_segments(file, list(file.tensors))) == 1
        apart = [name for name in file.tensors if name.endswith("ffn_up.weight")]
        assert mapped_segments(file, apart) == sorted((file.address(n), file.data(n).nbytes) for n in apart)
