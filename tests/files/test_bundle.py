"""Models in archives: wherever the archive begins, however the model lies in it; and ollama's store."""

from __future__ import annotations

import hashlib
import json
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest

from gemmafile.errors import BadFile
from gemmafile.files.bundle import choose_weights, find_bundle
from gemmafile.files.gguf import ModelFile
from gemmafile.files.open import open_model, title_of
from tests.tiny import write_small


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("model") / "model.gguf")


def write_archive(
    path: Path, model: Path, *, head: bytes = b"", align: int = 1, name: str = "model.gguf",
    method: int = zipfile.ZIP_STORED, args: str | None = None, forget_head: bool = False,
) -> Path:  # fmt: skip
    """A ZIP with a model in it behind `head`; `forget_head`: its offsets count from behind the head."""
    with path.open("wb") as file:
        if not forget_head:
            file.write(head)
        with zipfile.ZipFile(file, "w") as archive:
            if args is not None:
                archive.writestr(".args", args)
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            pad = -(file.tell() + 30 + len(name) + 4) % align
            info.extra = b"\x35\xd9" + pad.to_bytes(2, "little") + bytes(pad)
            archive.writestr(info, model.read_bytes())
    if forget_head:
        path.write_bytes(head + path.read_bytes())
    return path


def same_model(one: ModelFile, other: ModelFile) -> bool:
    return list(one.tensors) == list(other.tensors) and all(
        np.array_equal(one.data(name), other.data(name)) for name in one.tensors
    )


@pytest.mark.parametrize(
    "shape",
    [
        {"head": b"MZqFpD='\n" + bytes(65527), "align": 65536},
        {"head": b"\x7fELF" + bytes(1000), "align": 1},
        {"head": b"x" * 777, "forget_head": True},
        {"align": 4096},
        {"name": "models/deep/model.gguf", "align": 64},
    ],
)
def test_a_model_is_found_wherever_it_lies(tmp_path: Path, model: Path, shape: dict[str, object]) -> None:
    path = write_archive(tmp_path / "x.llamafile", model, **shape)  # type: ignore[arg-type]
    plain = open_model(model)
    assert same_model(open_model(path), plain)
    assert same_model(open_model(f"{path}@model.gguf"), plain)
    assert all(open_model(path).address(name) % 8 == 0 for name in plain.tensors)


def test_args_of_a_llamafile_are_read(tmp_path: Path, model: Path) -> None:
    path = write_archive(tmp_path / "x.llamafile", model, args="-m\nmodel.gguf\n--temp\n0\n...\n")
    bundle = find_bundle(path)
    assert bundle is not None
    assert bundle.default_args() == ["-m", "model.gguf", "--temp", "0", "..."]


def test_an_argument_may_hold_what_other_systems_end_lines_with(tmp_path: Path, model: Path) -> None:
    args = "-r\r\n \n\n-p\na\u2028b\x0cc\x85d\r\n...\n"
    bundle = find_bundle(write_archive(tmp_path / "a.llamafile", model, args=args))
    assert bundle is not None
    assert bundle.default_args() == ["-r", " ", "-p", "a\u2028b\x0cc\x85d", "..."]


@pytest.mark.parametrize("name", ["out-of-africa.gguf", "state-of-the-art-Q6_K.gguf", "a-00002-of-9.gguf"])
def test_a_name_with_of_in_it_is_no_part(name: str, tmp_path: Path, model: Path) -> None:
    bundle = find_bundle(write_archive(tmp_path / "a.zip", model, name=name))
    assert bundle is not None
    assert choose_weights(bundle).name == name


@pytest.mark.parametrize(
    ("words", "title"),
    [("a/b.gguf", "b"), ("B.GGUF", "B"), ("m-00001-of-00002.gguf", "m"), ("ollama:gemma2:2b", "gemma2-2b"),
     ("ollama:hf.co/me/it-GGUF:Q6_K", "it-GGUF-Q6_K"), ("x.llamafile", "x"), ("gemma-2.5-it", "gemma-2.5-it")],
)  # fmt: skip
def test_what_a_file_made_of_a_model_is_called(words: str, title: str) -> None:
    assert title_of(words) == title


def test_of_a_folder_that_has_no_name_it_is_the_one_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gemma").mkdir()
    monkeypatch.chdir(tmp_path / "gemma")
    assert title_of(".") == "gemma"
    assert title_of("..") == tmp_path.name


def test_what_cannot_be_opened_says_why(tmp_path: Path, model: Path) -> None:
    packed = write_archive(tmp_path / "packed.zip", model, method=zipfile.ZIP_DEFLATED)
    with pytest.raises(BadFile, match="is compressed"):
        open_model(packed)
    with pytest.raises(BadFile, match=r"has no model 'modle.gguf' \(did you mean model.gguf\?\)"):
        open_model(f"{write_archive(tmp_path / 'a.zip', model)}@modle.gguf")
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as archive:
        archive.writestr("readme", "nothing")
    with pytest.raises(BadFile, match="without a GGUF"):
        open_model(tmp_path / "none.zip")
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.write(model, "a.gguf")
        archive.write(model, "b.gguf")
    with pytest.raises(BadFile, match="several models"):
        open_model(tmp_path / "two.zip")
    assert open_model(f"{tmp_path / 'two.zip'}@b.gguf").tensors
    with pytest.raises(BadFile, match="no archive"):
        open_model(f"{__file__}@x.gguf")


def test_a_file_whose_name_has_an_at_is_itself(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "a@b.gguf"
    path.write_bytes(model.read_bytes())
    assert open_model(path).tensors


def test_damaged_directories_give_one_error(tmp_path: Path, model: Path, full: bool) -> None:
    good = write_archive(tmp_path / "x.zip", model, align=64, args="-m\nmodel.gguf\n").read_bytes()
    start = good.rindex(b"PK\1\2", 0, good.rindex(b"PK\1\2")) - 8
    random_ = random.Random(1)
    for _ in range(4000 if full else 300):
        bad = bytearray(good)
        for _ in range(random_.choice([1, 1, 2, 5])):
            bad[random_.randrange(start, len(bad))] = random_.randrange(256)
        if random_.random() < 0.1:
            del bad[random_.randrange(start, len(bad)) :]
        path = tmp_path / "bad.zip"
        path.write_bytes(bad)
        try:
            open_model(path)
        except BadFile as error:
            assert "\n" not in str(error)


def test_models_of_ollama(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = model.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    manifest = tmp_path / "manifests/a.host/library/gemma2/2b"
    manifest.parent.mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / f"sha256-{digest}").write_bytes(content)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"}
    manifest.write_text(json.dumps({"layers": [{"mediaType": "x", "digest": "sha256:0"}, layer]}))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    assert same_model(open_model("ollama:gemma2:2b"), open_model(model))
    assert same_model(open_model("ollama:a.host/library/gemma2:2b"), open_model(model))
    with pytest.raises(BadFile, match=r"no such model here \(did you mean gemma2:2b\?\)"):
        open_model("ollama:gemma2")
    layer["digest"] = "sha256:../../etc/passwd"
    manifest.write_text(json.dumps({"layers": [layer]}))
    with pytest.raises(BadFile, match="expected a SHA-256"):
        open_model("ollama:gemma2:2b")
