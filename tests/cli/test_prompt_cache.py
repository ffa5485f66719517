"""--prompt-cache: what was read once is not read again, and changes no answer."""

from __future__ import annotations

import re
from pathlib import Path

from tests.cli.conftest import Runner

PROMPT = "Once upon a time there was a small model that read the same text again and again. " * 3


def n_read(err: str) -> int:
    """Tokens of the prompt that were computed, from the timings."""
    found = re.search(r"prompt: (\d+) token", err)
    assert found is not None, err
    return int(found[1])


def test_a_prompt_is_read_once(command: Runner, tiny_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "cache" / "prompt.keys"
    file.parent.mkdir()
    words = [tiny_path, "-p", PROMPT, "-n", 8, "--temp", 0, "-no-cnv", "-v"]
    plain = command("run", *words)
    first = command("run", *words, "--prompt-cache", file)
    content = file.read_bytes()
    again = command("run", *words, "--prompt-cache", file, "--prompt-cache-all")
    assert (plain.code, first.code, again.code) == (0, 0, 0)
    assert plain.out == first.out == again.out
    assert (n_read(first.err), n_read(again.err)) == (n_read(plain.err), 1)
    longer = [tiny_path, "-p", PROMPT + "And so on.", "-n", 2, "--temp", 0, "-no-cnv"]
    file.write_bytes(content)
    command("run", *longer, "--prompt-cache", file, "--prompt-cache-ro")
    assert file.read_bytes() == content
    command("run", *longer, "--prompt-cache", file)
    assert file.read_bytes() != content


def test_what_is_no_prompt_cache_is_said(command: Runner, tiny_path: Path, tmp_path: Path) -> None:
    words = ["run", tiny_path, "-p", "hi", "-n", 1, "-no-cnv"]
    cases = {
        ("--prompt-cache", tiny_path): "no file of saved keys",
        ("--prompt-cache", tmp_path / "none", "--prompt-cache-ro"): "no such prompt cache",
        ("--prompt-cache", tmp_path / "x", "--private"): "--private writes nothing",
        ("--prompt-cache", tmp_path / "no" / "x"): "cannot be written",
    }
    for flags, words_of_error in cases.items():
        done = command(*words, *flags)
        assert done.code != 0
        assert words_of_error in done.err
        assert "Traceback" not in done.err
