"""What is written is read back as it was; what cannot be written leaves no file behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemmafile.errors import BadFile
from gemmafile.files.formats import FORMATS
from gemmafile.files.gguf import StringArray
from gemmafile.files.gguf_writer import Typed, write_gguf, write_split
from gemmafile.files.metadata import DTYPES
from gemmafile.files.open import open_model

SCALAR_TYPES = (*DTYPES, "string")
CHARACTERS = "abcé▁🐈\0\n\x1b\"'{\u2028"


def random_value(rng: random.Random, type_name: str) -> Any:
    if type_name == "string":
        return "".join(rng.choices(CHARACTERS, k=rng.choice((0, 1, 7, 300))))
    if type_name == "bool":
        return rng.random() < 0.5
    if type_name.startswith("float"):
        value = rng.choice((0.0, -0.0, float("inf"), float("-inf"), float("nan"), rng.gauss(0, 1e9), 1e-42))
        return float(np.float32(value)) if type_name == "float32" else value
    limits = np.iinfo(type_name)
    return rng.choice((int(limits.min), int(limits.max), 0, 1, rng.randint(int(limits.min), int(limits.max))))


def random_field(rng: random.Random, depth: int = 0) -> Typed:
    type_name = rng.choice(SCALAR_TYPES)
    shape = rng.choice(("scalar", "list", "list", "numpy", "nested"))
    if shape == "nested" and depth < 3:
        return Typed(tuple(_an_array(rng, depth + 1) for _ in range(rng.randrange(4))), "array")
    if shape == "scalar" and depth == 0:
        return Typed(random_value(rng, type_name), type_name)
    values = [random_value(rng, type_name) for _ in range(rng.choice((0, 1, 2, 33)))]
    if shape == "numpy" and type_name != "string":
        return Typed(np.array(values, type_name), type_name)
    return Typed(values, type_name)


def _an_array(rng: random.Random, depth: int) -> Typed:
    field = random_field(rng, depth)
    assert isinstance(field.value, (list, tuple, np.ndarray))
    return field


def plain(value: Any) -> Any:
    """Arrays of any kind as lists, NaN as a word: fit for ==."""
    if isinstance(value, Typed):
        return plain(value.value)
    if isinstance(value, (list, tuple, np.ndarray, StringArray)):
        return [plain(item) for item in (value.tolist() if isinstance(value, np.ndarray) else value)]
    return "NaN" if value != value else value


@pytest.mark.parametrize("seed", range(8))
def test_random_files_come_back_as_they_were_and_can_be_written_again(tmp_path: Path, seed: int, full: bool):
    rng = random.Random(seed)
    for _ in range(300 if full else 25):
        fields = {f"key.{i}": random_field(rng) for i in range(rng.randrange(12))}
        tensors = [random_tensor(rng, i) for i in range(rng.randrange(6))]
        alignment, version = rng.choice((8, 32, 64, 4096)), rng.choice((2, 3))
        path = tmp_path / "random.gguf"
        write_gguf(path, fields, tensors, alignment=alignment, version=version)
        model = open_model(path)
        expected = fields if alignment == 32 else {**fields, "general.alignment": Typed(alignment, "uint32")}
        assert {key: plain(value) for key, value in model.metadata.items()} == {
            k: plain(v) for k, v in expected.items()
        }
        assert {key: model.metadata.typed(key).type for key in model.metadata} == {
            k: v.type for k, v in expected.items()
        }
        assert [(t.name, t.format.id, t.shape) for t in model.tensors.values()] == [
            (t[0], t[1].id, t[2]) for t in tensors
        ]
        assert all(model.data(name).tobytes() == data for name, _, _, data in tensors)
        assert all(tensor.offset % alignment == 0 for tensor in model.tensors.values())
        copy_model(model, tmp_path / "copy.gguf", alignment, version)
        assert (tmp_path / "copy.gguf").read_bytes() == path.read_bytes()


def copy_model(model: Any, path: Path, alignment: int, version: int) -> None:
    fields = {key: model.metadata.typed(key) for key in model.metadata}
    tensors = [(t.name, t.format, t.shape, model.data(t.name)) for t in model.tensors.values()]
    write_gguf(path, fields, tensors, alignment=alignment, version=version)


def random_tensor(rng: random.Random, i: int) -> tuple[str, Any, tuple[int, ...], bytes]:
    fmt = rng.choice(list(FORMATS.values()))
    outer = tuple(rng.randint(1, 3) for _ in range(rng.randrange(4)))
    columns = fmt.weights_per_block * rng.randint(1, 3)
    return f"tensor.{i}", fmt, (*outer, columns), rng.randbytes(int(np.prod(outer)) * fmt.row_bytes(columns))


@pytest.mark.parametrize(
    ("value", "type_name"),
    [
        (5, "uint32"),
        (-5, "int32"),
        (2**32, "uint64"),
        (-(2**31) - 1, "int64"),
        (1.5, "float32"),
        (True, "bool"),
        ("x", "string"),
        (b"x", "string"),
        ([1, -2], "int32"),
        ([1, 2**31], "int64"),
        ([1, 2**63], "uint64"),
        ([1, 2.5], "float32"),
        ([True, False], "bool"),
        (["a"], "string"),
        (np.arange(3, dtype=np.uint16), "uint16"),
        (np.array([1.5]), "float64"),
        (np.int8(3), "int8"),
        (Typed(7, "int8"), "int8"),
        (Typed([], "float64"), "float64"),
        (["a", "b"], "string"),
        ([[1], ["a"]], "array"),
        ((), "array"),
    ],
)
def test_types_are_inferred(tmp_path: Path, value: Any, type_name: str):
    write_gguf(tmp_path / "a.gguf", {"k": value}, [])
    typed = open_model(tmp_path / "a.gguf").metadata.typed("k")
    assert typed.type == type_name
    assert plain(typed) == plain(value if not isinstance(value, bytes) else "x")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Typed(256, "uint8"), "256 is no uint8"),
        (Typed("x", "float32"), "'x' is no float32"),
        (Typed([1, 300], "uint8"), "not an array of uint8"),
        (Typed(1, "uint7"), "no GGUF value type is called 'uint7'"),
        ([], "an empty list has no type"),
        ([1, "a"], "an array holds one type, not string and uint32"),
        (2**64, "no integer type holds"),
        (None, "cannot hold a NoneType"),
        ({"a": 1}, "cannot hold a dict"),
        (np.zeros((2, 2), np.int32), "no one-dimensional array"),
    ],
)
def test_values_that_fit_no_type(tmp_path: Path, value: Any, message: str):
    with pytest.raises(ValueError, match=message):
        write_gguf(tmp_path / "a.gguf", {"k": value}, [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([("a", "F32", (2,), bytes(7))], "tensor 'a': has 7 bytes, its shape takes 8"),
        ([("a", "F32", (2,), np.zeros(2, np.float16))], "float16 is not F32"),
        ([("a", "Q8_0", (33,), bytes(34))], r"Q8_0 cannot have the shape \(33,\)"),
        ([("a", "F32", (), bytes(4))], "cannot have the shape"),
        ([("a", "F32", (1, 0), b"")], "cannot have the shape"),
        ([("a", "F32", (1,) * 5, bytes(4))], "cannot have the shape"),
        ([("a", "F32", (1,), bytes(4))] * 2, "a name must be new"),
        ([("", "F32", (1,), bytes(4))], "1 to 255 bytes"),
    ],
)
def test_tensors_that_cannot_be(tmp_path: Path, tensors: list[Any], message: str):
    with pytest.raises(ValueError, match=message):
        write_gguf(tmp_path / "a.gguf", {}, tensors)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("kind", "name"), [("F32", "f4"), ("F16", "f2"), ("BF16", "u2"), ("I32", "i4"), ("F64", "f8")])
def test_arrays_of_any_layout_and_byte_order(tmp_path: Path, kind: str, name: str):
    array = np.arange(24).reshape(6, 4).astype(f">{name}")[::2]
    write_gguf(tmp_path / "a.gguf", {}, [("a", kind, (3, 4), array), ("b", kind, (4, 3), array.T)])
    model = open_model(tmp_path / "a.gguf")
    assert model.data("a").view(f"<{name}").reshape(3, 4).tolist() == array.tolist()
    assert model.data("b").view(f"<{name}").reshape(4, 3).tolist() == array.T.tolist()


def test_functions_are_called_one_at_a_time_in_order(tmp_path: Path):
    calls = []

    def make(i: int) -> np.ndarray:
        calls.append(i)
        return np.full(4, i, np.float32)

    tensors = [(f"t{i}", "F32", (4,), lambda i=i: make(i)) for i in range(5)]
    write_gguf(tmp_path / "a.gguf", {}, tensors)
    assert calls == [0, 1, 2, 3, 4]
    assert [open_model(tmp_path / "a.gguf").data(f"t{i}").view(np.float32)[0] for i in calls] == calls


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "a.gguf"
    write_gguf(path, {"n": 1}, [])
    before = path.read_bytes()

    def fail() -> bytes:
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        write_gguf(path, {"n": 2}, [("a", "F32", (1,), bytes(4)), ("b", "F32", (1,), fail)])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_model_may_be_rewritten_while_it_is_mapped(tmp_path: Path):
    path = tmp_path / "a.gguf"
    write_gguf(path, {"n": 1}, [("a", "F32", (4,), bytes(range(16)))])
    with open_model(path) as model:
        copy_model(model, path, 64, 3)
        assert model.data("a").tobytes() == bytes(range(16))
    assert open_model(path).data("a").tobytes() == bytes(range(16))


def test_a_link_stays_one_and_a_pipe_stays_one(tmp_path: Path):
    """As root, a model written to /dev/null would else take its place."""
    (tmp_path / "link").symlink_to(tmp_path / "far")
    write_gguf(tmp_path / "link", {"n": 1}, [])
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "far").is_file()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadFile, match="is no ordinary file"):
        write_gguf(tmp_path / "pipe", {}, [])
    assert (tmp_path / "pipe").is_fifo()


@contextmanager
def half_written(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that has begun to write a file and goes on for a minute."""
    code = (
        "import signal, sys, time\nfrom gemmafile.files.gguf_writer import write_gguf\n"
        "for name in ('SIGTERM', 'SIGHUP'): signal.signal(getattr(signal, name), signal.SIG_DFL)\n"  # behind nohup
        "def read():\n    yield bytes(16)\n    print('half', flush=True)\n    time.sleep(60)\n"
        "write_gguf(sys.argv[1], {}, [('a', 'F32', (8,), read)])"
    )
    with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_process_asked_to_end_leaves_no_half_of_a_file(number: signal.Signals, tmp_path: Path):
    """Forty gigabytes under a hidden name would be left for nobody."""
    with half_written(tmp_path / "a.gguf") as process:
        assert len(list(tmp_path.iterdir())) == 1
        process.send_signal(number)
        assert process.wait(30) == -number
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_goes_with_the_next_of_its_name(tmp_path: Path):
    """A living one's half stays, and so does another name's."""
    with half_written(tmp_path / "a.gguf") as dead, half_written(tmp_path / "a.gguf"):
        assert len(list(tmp_path.glob(".*.part"))) == 2
        dead.kill()
        dead.wait(30)
        write_gguf(tmp_path / "b.gguf", {}, [])
        assert len(list(tmp_path.glob(".*.part"))) == 2
        write_gguf(tmp_path / "a.gguf", {"n": 1}, [])
        assert len(list(tmp_path.glob(".*.part"))) == 1
    write_gguf(tmp_path / "a.gguf", {"n": 1}, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "b.gguf"]


def test_a_whole_file_is_held_until_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Between the closing and the renaming another process may come by."""
    replace = Path.replace

    def replace_late(part: Path, target: Path) -> Path:
        monkeypatch.undo()
        write_gguf(tmp_path / "a.gguf", {"n": 2}, [])
        return replace(part, target)

    monkeypatch.setattr(Path, "replace", replace_late)
    write_gguf(tmp_path / "a.gguf", {"n": 1}, [])
    with open_model(tmp_path / "a.gguf") as file:
        assert file.metadata["n"] == 1


def test_a_place_that_cannot_be_written_to(tmp_path: Path):
    with pytest.raises(BadFile, match=r"a.gguf: cannot be written: No such file or directory"):
        write_gguf(tmp_path / "none" / "a.gguf", {}, [])
    (tmp_path / "file").touch()
    with pytest.raises(BadFile, match="cannot be written: Not a directory"):
        write_gguf(tmp_path / "file" / "a.gguf", {}, [])
    (tmp_path / "folder").mkdir()
    with pytest.raises(BadFile, match="cannot be written: Is a directory"):
        write_gguf(tmp_path / "folder", {}, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize(("alignment", "version"), [(0, 3), (48, 3), (4, 3), (1 << 30, 3), (32, 1), (32, 4)])
def test_alignments_and_versions_that_cannot_be_read_are_not_written(tmp_path: Path, alignment: int, version: int):
    with pytest.raises(ValueError, match=r"alignment|version"):
        write_gguf(tmp_path / "a.gguf", {}, [], alignment=alignment, version=version)


def test_the_alignment_takes_the_place_of_the_key(tmp_path: Path):
    write_gguf(tmp_path / "a.gguf", {"general.alignment": 64}, [("a", "F32", (1,), bytes(4))], alignment=128)
    model = open_model(tmp_path / "a.gguf")
    assert model.metadata["general.alignment"] == 128
    assert model.tensors["a"].offset % 128 == 0
    write_gguf(tmp_path / "a.gguf", {"general.alignment": 64}, [])
    assert "general.alignment" not in open_model(tmp_path / "a.gguf").metadata


@pytest.mark.parametrize(("n_tensors", "n_parts"), [(0, 2), (1, 3), (7, 3), (9, 3)])
def test_split_parts_hold_every_tensor_once(tmp_path: Path, n_tensors: int, n_parts: int):
    tensors = [(f"t{i}", "I8", (3,), bytes([i] * 3)) for i in range(n_tensors)]
    paths = write_split(tmp_path / "model.v2", {"n": 1}, tensors, n_parts, alignment=64)
    assert [path.name for path in paths] == [f"model.v2-{i + 1:05d}-of-{n_parts:05d}.gguf" for i in range(n_parts)]
    model = open_model(paths[0])
    assert [model.data(name).tolist() for name in model.tensors] == [[i] * 3 for i in range(n_tensors)]
