"""Importance matrices: llama.cpp's two kinds of file, and what is measured."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from gemmafile.cli.main import main
from gemmafile.errors import BadFile, GemmafileError
from gemmafile.files.gguf_writer import Typed, write_gguf
from gemmafile.model_api import Model
from gemmafile.quantize.collect import Collector
from gemmafile.quantize.importance import Entry, Importance, load_importance, save_importance
from tests.tiny import write_small

TEXT = Path(__file__).resolve().parent.parent / "models" / "text.txt"
EXACT = ["-ctk", "f32", "-ctv", "f32", "--log-disable"]

GOLDEN: dict[str, dict[str, tuple[list[float], float]]] = {
    "llama": {
        "blk.0.attn_q.weight": ([210.30972, 142.26447, 522.04242, 214.35402], 19647.686),
        "blk.1.attn_output.weight": ([125.26166, 215.46568, 182.9644, 213.85695], 14525.977),
        "blk.1.ffn_down.weight": ([32.04118, 33.47335, 63.59541, 125.70773], 11410.361),
    },
    "gemma2": {
        "blk.0.attn_q.weight": ([285.77673, 185.98061, 294.3168, 358.09662], 19976.793),
        "blk.1.attn_output.weight": ([159.51917, 326.15057, 185.97366, 188.79442], 12646.677),
        "blk.1.ffn_down.weight": ([50.20169, 83.28835, 131.59549, 59.19099], 12214.527),
    },
}
"""First sums of squares and their total, by llama.cpp (release b11549) for `write_small` models:
llama-imatrix -m MODEL -f tests/models/text.txt -c 64 -b 64 -ub 64 --chunks 5 -fa off -ctk f32 -ctv f32 -t 1"""

TOLERANCE = {"llama": 1e-5, "gemma2": 2e-3}
"""Relative. llama.cpp reads Gemma's GELU from a table of float16."""


def entry(n: int, count: int = 6, seed: int = 1) -> Entry:
    return Entry(np.random.default_rng(seed).random(n, np.float32) + 1, count)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_sums_are_llama_cpps(architecture: str, backend: str, tmp_path: Path) -> None:
    path, out = write_small(tmp_path / "small.gguf", architecture), tmp_path / "im.gguf"
    words = ["-f", TEXT, "-c", 64, "--chunks", 5, "-o", out, "--backend", backend, *EXACT]
    assert main(["imatrix", str(path), *map(str, words)]) == 0
    made = load_importance(out)
    assert (made.n_chunks, made.chunk_rows, made.datasets) == (5, 64, [str(TEXT)])
    assert len(made.entries) == 14
    for name, (first, total) in GOLDEN[architecture].items():
        assert made.entries[name].count == 320
        assert made.entries[name].sums[:4] == pytest.approx(first, rel=TOLERANCE[architecture])
        assert made.entries[name].sums.sum() == pytest.approx(total, rel=TOLERANCE[architecture])


@pytest.mark.parametrize("legacy", [False, True])
def test_what_is_written_is_read_again(legacy: bool, tmp_path: Path) -> None:
    given = Importance({"a.weight": entry(8), "b.weight": entry(3, 1024)}, ["text.txt"], 2, 512)
    save_importance(tmp_path / "im", given, legacy=legacy)
    read = load_importance(tmp_path / "im")
    assert (read.n_chunks, read.datasets, read.entries.keys()) == (2, ["text.txt"], given.entries.keys())
    for name, one in given.entries.items():
        np.testing.assert_allclose(read.entries[name].mean(), one.mean(), rtol=1e-6)
    if not legacy:
        assert read.entries["b.weight"].count == 1024


def test_a_legacy_file_by_hand(tmp_path: Path) -> None:
    """Values are means times the number of calls; what follows the entries may be missing."""
    raw = struct.pack("<i", 1) + struct.pack("<i", 3) + b"w.w" + struct.pack("<ii2f", 4, 2, 8.0, 2.0)
    for ending, dataset in ((b"", []), (struct.pack("<ii", 4, 2) + b"t1", ["t1"])):
        (tmp_path / "im.dat").write_bytes(raw + ending)
        read = load_importance(tmp_path / "im.dat")
        assert read.entries["w.w"].mean().tolist() == [2.0, 0.5]
        assert read.datasets == dataset


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "im"
    good = Importance({"a.weight": entry(8)}, ["text"], 1)
    save_importance(path, good, legacy=True)
    whole = path.read_bytes()
    for cut in range(len(whole) - 12):
        path.write_bytes(whole[:cut])
        with pytest.raises(BadFile):
            load_importance(path)
    for bad in (np.nan, np.inf, -1):
        good.entries["a.weight"].sums[2] = bad
        for legacy in (False, True):
            save_importance(path, good, legacy=legacy)
            with pytest.raises(BadFile, match="negative, infinite or NaN"):
                load_importance(path)
    one = np.ones(4, np.float32)
    for tensors in (
        [("a.weight", "F32", (4,), one)],
        [("a.weight.in_sum2", "F32", (4,), one)],
        [("a.weight.in_sum2", "F32", (4,), one), ("a.weight.counts", "F32", (2,), one[:2])],
    ):
        write_gguf(path, {}, tensors)
        with pytest.raises(BadFile):
            load_importance(path)
    with pytest.raises(BadFile, match="cannot be read"):
        load_importance(tmp_path / "missing")


@pytest.mark.parametrize(("key", "value"), [("chunk_size", 0), ("chunk_size", -5), ("chunk_count", -1)])
def test_counts_that_cannot_be_are_refused(key: str, value: int, tmp_path: Path) -> None:
    """A chunk of no rows was a division by zero when a .dat was made of it."""
    keys = {"imatrix.chunk_size": 64, "imatrix.chunk_count": 1, f"imatrix.{key}": Typed(value, "int32")}
    ones = np.ones(4, np.float32)
    tensors = [("a.weight.in_sum2", "F32", (4,), ones), ("a.weight.counts", "F32", (1,), ones[:1])]
    write_gguf(tmp_path / "im.gguf", keys, tensors)
    with pytest.raises(BadFile, match="says that it has"):
        load_importance(tmp_path / "im.gguf")


def test_files_are_put_together(tmp_path: Path) -> None:
    for name, count in (("one", 512), ("two", 1024)):
        save_importance(tmp_path / name, Importance({"a.weight": entry(4, count)}, [name], count // 512))
    words = ["--in-file", tmp_path / "one", "--in-file", tmp_path / "two", "-o", tmp_path / "both", "--log-disable"]
    assert main(["imatrix", *map(str, words)]) == 0
    both = load_importance(tmp_path / "both")
    assert (both.n_chunks, both.datasets) == (3, ["one", "two"])
    assert both.entries["a.weight"].count == 1536
    np.testing.assert_allclose(both.entries["a.weight"].sums, 2 * entry(4).sums)


def test_sums_of_another_size_do_not_mix() -> None:
    importance = Importance({"a.weight": entry(4)})
    with pytest.raises(BadFile):
        importance.add(Importance({"a.weight": entry(5)}))
    with pytest.raises(BadFile, match="another model"):
        importance.columns("a.weight", 5)
    assert importance.columns("b.weight", 5) is None


def test_chosen_entries() -> None:
    importance = Importance({"blk.0.ffn_up.weight": entry(1), "blk.0.attn_q.weight": entry(1)})
    assert list(importance.only(included=["ffn"]).entries) == ["blk.0.ffn_up.weight"]
    assert list(importance.only(excluded=["ffn"]).entries) == ["blk.0.attn_q.weight"]


def test_rows_in_two_parts_count_once(tmp_path: Path) -> None:
    """attn_output of a quantised model reads each row in two parts: the sums are those of the rows."""
    path = write_small(tmp_path / "small.gguf", "llama", embedding_dim=64, feed_forward_dim=64)
    with Model.open(path) as exact:
        collector = Collector(exact)
        exact.engine.forward(exact.sequence, [1, 2, 3, 4], want="all", trace=collector.take)
    made = tmp_path / "q8.gguf"
    assert main(["quantize", "--quiet", str(path), str(made), "Q8_0"]) == 0
    with Model.open(made) as model:
        other = Collector(model)
        model.engine.forward(model.sequence, [1, 2, 3, 4], want="all", trace=other.take)
    assert other.counts == collector.counts
    for name, sums in collector.sums.items():
        assert other.sums[name].sum() == pytest.approx(sums.sum(), rel=0.03)


def test_what_is_not_finite_is_said(tmp_path: Path) -> None:
    with Model.open(write_small(tmp_path / "small.gguf")) as model:
        collector = Collector(model)
        model.engine.forward(model.sequence, [1, 2], want="all", trace=collector.take)
        collector.sums["blk.0.attn_q.weight"][0] = np.inf
        with pytest.raises(GemmafileError, match="not finite"):
            collector.importance(1, 2, "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.gguf"], "which text?"),
        (["model.gguf", "-f", str(TEXT), "--chunks", "0"], "--chunks"),
        (["model.gguf", "-f", str(TEXT), "-c", "3"], "-c is 3"),
        (["--in-file", "missing"], "missing: cannot be read"),
    ],
)
def test_what_cannot_be_is_said(words: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["imatrix", *words]) != 0
    err = capfd.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_the_output_is_measured_when_asked_for(tmp_path: Path) -> None:
    path = write_small(tmp_path / "small.gguf", "llama", embedding_dim=64)
    words = [str(path), "-f", str(TEXT), "-c", "64", "--chunks", "1", "-o", str(tmp_path / "im.dat"), "--log-disable"]
    assert main(["imatrix", *words, "--process-output"]) == 0
    assert "output.weight" in load_importance(tmp_path / "im.dat").entries
    assert main(["imatrix", *words]) == 0
    assert "output.weight" not in load_importance(tmp_path / "im.dat").entries
