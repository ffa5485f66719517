"""`gemmafile pull`, against a hub on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gemmafile.cli.main import main
from gemmafile.errors import BadSettings
from gemmafile.files.hub import choose_files, split_hub_name
from gemmafile.files.open import open_model
from tests.checkpoints import write_checkpoint
from tests.files.hub_server import Hub
from tests.files.huggingface.test_checkpoint import small
from tests.tiny import write_small


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("google/gemma-2-27b-it", ("google/gemma-2-27b-it", None)),
        ("bartowski/gemma-2-2b-it-GGUF:Q6_K", ("bartowski/gemma-2-2b-it-GGUF", "Q6_K")),
        ("hf:a/b", ("a/b", None)),
        ("gemma", None),
        ("../x", None),
        ("./x", None),
        ("/x/y", None),
        ("a/b/c", None),
        ("a/..", None),
    ],
)
def test_names(name: str, expected: tuple[str, str | None] | None) -> None:
    assert split_hub_name(name) == expected


GGUFS = ["m-Q4_K_M.gguf", "m-Q6_K-00001-of-00002.gguf", "m-Q6_K-00002-of-00002.gguf", "mmproj-F16.gguf", "README.md"]


def test_which_files_are_taken() -> None:
    assert choose_files("a/b", GGUFS, "q4_k_m") == ["m-Q4_K_M.gguf"]
    assert choose_files("a/b", GGUFS, None) == GGUFS[1:3], "Q6_K where none is asked for"
    checkpoint = ["model-00001-of-00002.safetensors", "config.json", "tokenizer.model", "LICENSE"]
    others = ["pytorch_model.bin", "flax_model.msgpack", "original/consolidated.safetensors", "x.gguf"]
    assert choose_files("a/b", checkpoint + others, None) == checkpoint
    assert choose_files("a/b", ["sub/x.gguf"], None) == ["sub/x.gguf"]


@pytest.mark.parametrize(
    ("files", "quant", "words"),
    [
        (GGUFS, "Q6_L", "did you mean Q6_K"),
        (["a-Q4_0.gguf", "a-Q8_0.gguf"], None, "Q4_0, Q8_0"),
        (["a-Q6_K.gguf", "b-Q6_K.gguf"], "Q6_K", "several of that kind"),
        (["pytorch_model.bin", "config.json"], None, "never loaded"),
        (["config.json"], None, "neither"),
        (["model.safetensors"], "Q6_K", "no GGUF"),
    ],
)
def test_what_is_not_to_be_had(files: list[str], quant: str | None, words: str) -> None:
    with pytest.raises(BadSettings, match=words):
        choose_files("a/b", files, quant)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    checkpoint = write_checkpoint(tmp_path / "repo", small("gemma2"), shards=2)
    (checkpoint / "pytorch_model.bin").write_bytes(b"\x80\x02")
    ggufs = tmp_path / "ggufs"
    ggufs.mkdir()
    for name in ("tiny-Q6_K.gguf", "tiny-F16.gguf"):
        write_small(ggufs / name)
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    with Hub({"google/tiny": checkpoint, "someone/tiny-GGUF": ggufs}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
class TestPull:
    def pull(self, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
        code = main(["pull", "--quiet", *words])
        captured = capsys.readouterr()
        return code, captured.out.strip(), captured.err

    def test_a_checkpoint_without_its_pickles(self, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
        code, path, _ = self.pull(capsys, "google/tiny")
        assert code == 0
        with open_model(path) as model:
            assert len(model.paths) == 2
        assert not (Path(path) / "pytorch_model.bin").exists()

    def test_again_and_offline_fetch_nothing(
        self, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, path, _ = self.pull(capsys, "google/tiny")
        hub.requests.clear()
        assert self.pull(capsys, "google/tiny")[1] == path
        assert not [r for r in hub.requests if r[0] == "GET" and "resolve" in r[1]]
        hub.requests.clear()
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert self.pull(capsys, "google/tiny")[1:] == (path, "")
        assert not hub.requests
        code, _, err = self.pull(capsys, "google/other")
        assert code == 1
        assert "HF_HUB_OFFLINE" in err

    def test_one_quantisation(self, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
        code, path, _ = self.pull(capsys, "someone/tiny-GGUF:f16")
        assert code == 0
        assert path.endswith("tiny-F16.gguf")
        assert not (Path(path).parent / "tiny-Q6_K.gguf").exists()

    @pytest.mark.parametrize("words", [[], ["-o", "here"]])
    def test_what_is_here_needs_no_room(
        self, hub: Hub, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        import shutil

        monkeypatch.chdir(tmp_path)
        assert self.pull(capsys, "someone/tiny-GGUF:F16", *words)[0] == 0
        monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**9, 10**9, 0))
        code, _, err = self.pull(capsys, "someone/tiny-GGUF:F16", *words)
        assert (code, err) == (0, "")
        code, _, err = self.pull(capsys, "someone/tiny-GGUF:Q6_K", *words)
        assert code == 1
        assert "0 MB left" in err

    @pytest.mark.parametrize("words", [["-hf", "someone/tiny-GGUF:F16"],
                                       ["-hf", "someone/tiny-GGUF", "-hff", "tiny-F16.gguf"]])  # fmt: skip
    def test_a_run_fetches_its_model(
        self, hub: Hub, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = ["run", *words, "-p", "a", "-n", "2", "--temp", "0", "--backend", "reference"]
        assert main(run) == 0
        assert capsys.readouterr().out.startswith("a")
        assert [name for kind, name, _ in hub.requests if kind == "GET" and "resolve" in name][-1].endswith("F16.gguf")
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert main(run) == 0
        capsys.readouterr()
        assert main([*run, "-hff", "tiny-F16.gguff"]) == 2
        assert "did you mean tiny-F16.gguf?" in capsys.readouterr().err
        assert main([*run, "-m", "x.gguf"]) == 2
        assert "leave out the other one" in capsys.readouterr().err

    def test_into_a_folder(self, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.pull(capsys, "google/tiny", "-o", str(tmp_path / "here"))[1] == str(tmp_path / "here")
        assert (tmp_path / "here" / "config.json").is_file()

    def test_an_interrupted_download_goes_on(
        self, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import huggingface_hub.constants

        monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 500)  # what is written at once
        hub.cut["tiny-Q6_K.gguf"] = 1000
        self.pull(capsys, "someone/tiny-GGUF:Q6_K")  # may have resumed by itself already
        code, path, _ = self.pull(capsys, "someone/tiny-GGUF:Q6_K")
        assert code == 0
        assert Path(path).read_bytes() == (hub.repos["someone/tiny-GGUF"] / "tiny-Q6_K.gguf").read_bytes()
        assert any(
            asked.startswith("bytes=1000-") for _, name, asked in hub.requests if name.endswith("tiny-Q6_K.gguf")
        )

    def test_a_wrong_byte_is_found(self, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
        hub.corrupt.add("tiny-Q6_K.gguf")
        code, _, err = self.pull(capsys, "someone/tiny-GGUF:Q6_K")
        assert code == 1
        assert "SHA-256" in err
        hub.corrupt.clear()
        assert self.pull(capsys, "someone/tiny-GGUF:Q6_K")[0] == 0, "the bad file is gone"

    def test_gated(self, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        hub.gated.add("google/tiny")
        code, _, err = self.pull(capsys, "google/tiny")
        assert code == 1
        assert f"accept its terms at {hub.url}/google/tiny" in err
        assert "HF_TOKEN" in err
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        assert "no access yet" in self.pull(capsys, "google/tiny")[2]
        monkeypatch.setenv("HF_TOKEN", hub.token)
        assert self.pull(capsys, "google/tiny")[0] == 0

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (["nobody/nothing"], "the hub has no nobody/nothing"),
            (["google/tiny", "--revision", "v9"], "no such revision"),
            (["tiny"], "expected OWNER/REPO"),
        ],
    )
    def test_what_is_not_there(self, hub: Hub, words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
        code, _, err = self.pull(capsys, *words)
        assert code == 2
        assert told in err
        assert "Traceback" not in err

    def test_no_hub(self, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        code, _, err = self.pull(capsys, "google/tiny")
        assert code == 1
        assert "could not be fetched" in err
