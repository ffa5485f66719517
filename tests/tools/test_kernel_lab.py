"""kernel_lab.py: it times a kernel only beside the word whether it is right."""

from __future__ import annotations

import re

import numpy as np
import pytest

from gemmafile.bench import machine
from tools import kernel_lab


@pytest.fixture(autouse=True)
def short_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PEAK_S", 1e-4)


@pytest.mark.parametrize("kind", kernel_lab.TOKENS)
@pytest.mark.parametrize("name", ["Q6_K", "BF16"])
def test_a_right_kernel(name: str, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    if kind == "unit" and kernel_lab.kernel_of(name, kind, 1)[0] is None:
        pytest.skip(f"no matrix unit, or no kernel of {name} for it")
    words = [name, "--kind", kind, "--rows", "100", "--columns", "512", "--repeats", "2", "--threads", "2"]
    assert kernel_lab.main(words) == 0
    out = capsys.readouterr().out
    assert "100 x 512 weights" in out
    assert "bit for bit" in out
    for title in ("by clock", "by processor"):
        line = next(line for line in out.splitlines() if line.startswith(title))
        assert all(float(number) >= 0 for number in re.findall(r"[\d.]+", line))


def test_a_wrong_kernel(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    module = kernel_lab.format_module("Q8_0")
    monkeypatch.setattr(kernel_lab, "format_module", lambda name: module)
    monkeypatch.setattr(module, "multiply", lambda x, rows: np.zeros((len(x), len(rows)), np.float32))
    assert kernel_lab.main(["Q8_0", "--rows", "40", "--columns", "64", "--repeats", "1"]) == 1
    assert "WRONG: 40 of the numbers" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["Q6_K", "--columns", "300"], ["F32", "--rows", "-1"], ["Q9"]])
def test_what_cannot_be_tried(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        kernel_lab.main(words)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err
