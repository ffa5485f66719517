"""`gemmafile quantize` and what is behind it: files, flags, errors, memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gemmafile.cli.main import main
from gemmafile.files.gguf import open_gguf
from gemmafile.files.gguf_writer import write_gguf
from gemmafile.kernels import compile
from gemmafile.kernels.formats_on import format_module
from gemmafile.model_api import Model
from gemmafile.quantize.importance import Entry, Importance, save_importance
from gemmafile.quantize.mixture import FILE_TYPES, choose_formats, file_type_by_name
from gemmafile.quantize.stream import SLAB_WEIGHTS
from tools.make_tiny import PRESETS, make_tiny, write_tiny

if compile.why_not():
    pytest.skip(f"no compiled kernels: {compile.why_not()}", allow_module_level=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(make_tiny(PRESETS["gemma2"], seed=5), tmp_path_factory.mktemp("model") / "model.gguf")


def run(capfd: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capfd.readouterr()
    code = main(["quantize", *map(str, words)])
    return (code, *capfd.readouterr())


def test_a_format_that_rows_do_not_fit_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_tiny(make_tiny(PRESETS["gemma3-plain"], seed=5), tmp_path / "model.gguf")
    code, _, err = run(capfd, "--token-embedding-type", "q4_k", path, tmp_path / "out.gguf", "Q4_1")
    assert code in (1, 2)
    assert "rows of 160 weights are no whole number of blocks of 256; Q5_0 fits" in err
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("kind", ["Q4_K_M", "Q2_K", "IQ4_XS", "Q4_0"])
def test_a_quantised_model_runs(kind: str, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.gguf"
    code, text, _ = run(capfd, model, out, kind)
    assert code == 0
    assert f"{out}: " in text
    ids = list(range(3, 40))  # random weights attend sharply: a little noise goes far
    with Model.open(model) as exact, Model.open(out) as made:
        assert made.metadata["general.file_type"] == FILE_TYPES[kind].number
        a, b = exact.logits(ids), made.logits(ids)
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > (0.25 if kind == "Q2_K" else 0.6)


def test_the_mixture_is_spread_over_the_layers(model: Path) -> None:
    with open_gguf(model) as file:
        formats = choose_formats(file, file_type_by_name("q4_k_m"))
    assert formats["token_embd.weight"].name == "Q6_K"
    assert [formats[f"blk.{i}.attn_v.weight"].name for i in range(4)] == ["Q4_K", "Q4_K", "Q6_K", "Q6_K"]
    assert formats["blk.0.attn_norm.weight"].name == "F32"
    assert list(formats)[:2] == ["output_norm.weight", "token_embd.weight"]


def test_threads_and_slabs_do_not_change_the_file(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    made = []
    for n_threads, slab in ((1, SLAB_WEIGHTS), (3, 1), (2, 7000)):
        monkeypatch.setattr("gemmafile.quantize.stream.SLAB_WEIGHTS", slab)
        out = tmp_path / f"{n_threads}.gguf"
        assert run(capfd, model, out, "Q3_K_L", n_threads)[0] == 0
        made.append(out.read_bytes())
    assert made[0] == made[1] == made[2]


def test_flags_may_stand_anywhere(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.gguf"
    assert run(capfd, model, out, "--pure", "--token-embedding-type", "Q8_0", "Q4_0", "2")[0] == 0
    between = out.read_bytes()
    assert run(capfd, "--pure", "--token-embedding-type", "Q8_0", model, out, "Q4_0", "2")[0] == 0
    assert out.read_bytes() == between
    code, _, errors = run(capfd, model, "--pur", out, "Q4_0")
    assert (code, "--pure" in errors) == (2, True)


def test_the_name_of_the_result_may_be_left_out(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capfd, model, "q8_0", 2)
    made = model.with_name("model.Q8_0.gguf")
    assert (code, made.exists()) == (0, True)
    assert str(made) in text
    made.unlink()


def test_copy_and_dry_run(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "copy.gguf"
    assert run(capfd, model, out, "COPY")[0] == 0
    with open_gguf(model) as a, open_gguf(out) as b:
        assert a.tensors.keys() == b.tensors.keys()
        assert all((a.data(name) == b.data(name)).all() for name in a.tensors)
    code, text, _ = run(capfd, "--dry-run", model, tmp_path / "none.gguf", "Q5_K_S")
    assert code == 0
    assert "token_embd.weight                       F32 -> Q6_K" in text
    assert not (tmp_path / "none.gguf").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["IN", "OUT", "Q4_K_X"], "there is no type 'Q4_K_X' (did you mean Q4_K_S?)"),
        (["IN"], "expected gemmafile quantize"),
        (["--tensor-type", "attn_v", "IN", "OUT", "Q4_0"], "expected REGEX=FORMAT"),
        (["--tensor-type", "attn_v=Q4_K_M", "IN", "OUT", "Q4_0"], "cannot become 'Q4_K_M'"),
        (["--tensor-type", "(=Q8_0", "IN", "OUT", "Q4_0"], "no regular expression"),
        (["--imatrix", "missing", "IN", "OUT", "Q4_0"], "missing: cannot be read"),
        (["--imatrix", "IN", "IN", "OUT", "Q4_0"], "no importance matrix"),
        (["--include-weights", "x", "IN", "OUT", "Q4_0"], "give --imatrix"),
        (["IN", "OUT", "Q2_K_S"], "needs an importance matrix"),
        (["IN", "IN", "Q8_0"], "is the model itself"),
        (["IN", "OUT", "Q8_0", "-t", "-3"], "number of threads"),
        (["IN", "nowhere/out.gguf", "Q8_0"], "cannot be written"),
        (["IN", "OUT", "--calibration", "IN", "--target-bpw", "nan"], "--target-bpw is nan"),
        (["IN", "OUT", "--calibration", "IN", "--target-bpw", "inf"], "--target-bpw is inf"),
        (["IN", "OUT", "--calibration", "IN", "--target-bpw", "1"], "are too few"),
        (["IN", "OUT", "--calibration", "IN", "--target-size", "1K"], "are too few"),
        (["IN", "IN", "--calibration", "IN", "--target-bpw", "5"], "is the model itself"),
        (["IN", "nowhere/out.gguf", "--calibration", "IN", "--target-bpw", "5"], "cannot be written"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(
    words: list[str], message: str, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    places = {"IN": str(model), "OUT": str(tmp_path / "out.gguf"), "nowhere/out.gguf": str(tmp_path / "no" / "out")}
    code, _, err = run(capfd, *(places.get(word, word) for word in words))
    assert code in (1, 2)
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_first(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=1000))
    code, out, err = run(capfd, model, tmp_path / "out.gguf", "Q8_0")
    assert (code, out) == (1, "")
    assert "0 MB are left on that disk" in err


def test_quantised_once_is_not_quantised_again_unasked(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    once, twice = tmp_path / "once.gguf", tmp_path / "twice.gguf"
    assert run(capfd, model, once, "Q6_K")[0] == 0
    code, _, err = run(capfd, once, twice, "Q4_K_S")
    assert code == 2
    assert "--allow-requantize" in err
    assert run(capfd, "--allow-requantize", once, twice, "Q4_K_S")[0] == 0


def test_a_nan_leaves_no_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tiny = make_tiny(PRESETS["gemma2"], seed=5)
    tiny.weights["blk.1.ffn_up.weight"][17, 3] = np.nan
    model = write_tiny(tiny, tmp_path / "model.gguf")
    code, _, err = run(capfd, model, tmp_path / "out.gguf", "Q4_K_M")
    assert code == 1
    assert "tensor 'blk.1.ffn_up.weight': holds an infinity or a NaN" in err
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_an_importance_matrix_of_another_model(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_importance(tmp_path / "size", Importance({"blk.0.attn_q.weight": Entry(np.ones(7, np.float32), 3)}))
    save_importance(tmp_path / "name", Importance({"blk.90.attn_q.weight": Entry(np.ones(7, np.float32), 3)}))
    for file, message in (("size", "it belongs to another model"), ("name", "names no matrix of this model")):
        code, _, err = run(capfd, "--imatrix", tmp_path / file, model, tmp_path / "out.gguf", "Q4_K_M")
        assert code != 0
        assert message in err


def test_models_with_experts_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    metadata = {"general.architecture": "llama", "llama.block_count": 1, "llama.expert_count": 8}
    write_gguf(tmp_path / "moe.gguf", metadata, [("token_embd.weight", "F32", (4, 32), np.ones((4, 32), np.float32))])
    code, _, err = run(capfd, tmp_path / "moe.gguf", tmp_path / "out.gguf", "Q8_0")
    assert code == 1
    assert "has experts" in err


def test_memory_does_not_grow_with_the_tensor(tmp_path: Path) -> None:
    """A tensor of 256 MB in a process that may have little more memory of its own than Python takes."""
    if not sys.platform.startswith("linux"):
        pytest.skip("RLIMIT_DATA counts anonymous memory on Linux only")
    path = tmp_path / "big.gguf"
    metadata = {"general.architecture": "llama", "llama.block_count": 1}
    one = np.ones((4096, 16384), "<u2") * np.uint16(0x3C00)
    write_gguf(path, metadata, [("blk.0.ffn_down.weight", "BF16", one.shape, one)])
    limit = 200 << 20
    code = (
        "import resource, sys\n"
        "from gemmafile.cli.main import main\n"
        "import gemmafile.quantize.write\n"
        f"resource.setrlimit(resource.RLIMIT_DATA, ({limit}, {limit}))\n"
        f"sys.exit(main(['quantize', {str(path)!r}, {str(tmp_path / 'out.gguf')!r}, 'Q8_0', '2']))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    with open_gguf(tmp_path / "out.gguf") as made:
        rows = made.data("blk.0.ffn_down.weight")[: 34 * 8]
        assert format_module("Q8_0").dequantize(rows) == pytest.approx(np.ones(256) * 2.0**-7, rel=0.01)
