"""The page out of a packed file, with an empty home: the card in it fills the templates and the model panel."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gemmafile.cli.main import main
from tests.tiny import write_small
from tests.web.browsing import TIMEOUT_MS, Watch, answers, ask
from tests.web.test_prompts import HISTORY, PROMPT

pytestmark = pytest.mark.oracle

ROOT = Path(__file__).resolve().parents[2]
CARD = f"""---
license: gemma
license_link: https://ai.google.dev/gemma/terms
base_model: google/gemma-2-tiny
quantized_by: nobody
prompt_template: |
  {PROMPT.replace(chr(10), chr(10) + "  ")}
history_template: |
  {HISTORY.replace(chr(10), chr(10) + "  ")}
---
# A tiny model

It says *nothing* of use.

## Usage and Limitations

Do not believe it.

## Citation

None.
"""


@dataclass
class Served:
    url: str
    home: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("packed-page")
    home = folder / "home"
    home.mkdir()
    model, packed = write_small(folder / "tiny-it-F32.gguf", "gemma2"), folder / "tiny.llamafile"
    (folder / "card.md").write_text(CARD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEMMAFILE_CACHE", str(ROOT / "build/pack-tests"))
        words = ["pack", model, "-o", packed, "--card", folder / "card.md", "--accept-license", "--no-runtime"]
        if main([*map(str, words), "--cpu", "none", "--quiet"]):
            pytest.skip("packages cannot be fetched here")
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(home), "GEMMAFILE_PYTHON": sys.executable,
               "GEMMAFILE_CACHE": str(home / ".cache/gemmafile")}  # fmt: skip
    words = [packed, "--port", "0", "--nobrowser", "--backend", "reference", "-c", "512", "-n", "8"]
    process = subprocess.Popen(
        [*map(str, words)], env=environ, cwd=folder, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stderr is not None
        lines: list[str] = []
        for line in process.stderr:
            lines.append(line)
            if match := re.search(r"http://127\.0\.0\.1:\d+", line):
                yield Served(match[0], home)
                break
        else:
            pytest.fail("".join(lines))
    finally:
        process.terminate()
        process.wait(60)
        if process.stderr is not None:
            process.stderr.close()


def test_the_card_in_the_file_fills_the_page(browser: Any, served: Served) -> None:
    watch = Watch()
    context = browser.new_context()
    context.set_default_timeout(TIMEOUT_MS * 2)
    page = context.new_page()
    watch.see(page)
    page.goto(served.url + "/")
    page.wait_for_selector("html[data-started]", state="attached")
    page.click("#settings-open")
    page.click("text=Prompt format")
    assert page.input_value("#set-prompt_template") == PROMPT + "\n"
    assert page.input_value("#set-history_template") == HISTORY
    assert page.is_checked("input[name=mode][value=model]"), "the trained format, until somebody wants another"
    page.check("input[name=mode][value=template]")
    page.wait_for_selector("#template-warnings li")
    assert "Gemma is provided under" in page.inner_text("#notice")
    ask(page, "Hi")
    assert answers(page)
    assert page.query_selector(".problem") is None
    page.click("#model-name")
    page.wait_for_selector(".papers")
    panel = page.inner_text("dialog")
    for words in (
        "google/gemma-2-tiny",
        "nobody",
        "SHA-256",
        "CPU",
        "Gemma is provided under",
        "ai.google.dev/gemma/terms",
    ):
        assert words in panel
    assert re.search(r"\b[0-9a-f]{64}\b", panel)
    page.click("dialog summary >> text=Usage and limitations")
    assert "Do not believe it." in page.inner_text("dialog")
    page.click("dialog summary >> text=Licence")
    assert watch.complaints == []
    assert all(url.startswith(served.url) for _, url in watch.requests)
    page.context.close()
    assert [p for p in os.listdir(served.home) if p != ".cache"] == []
