"""`gemmafile compare`: the table, the plot, and what is left behind."""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from gemmafile.cli.main import main
from gemmafile.kernels import compile
from gemmafile.quantize.comparison import Row
from gemmafile.quantize.plot import PAGE, PNG_SCALE, as_png, as_svg, draw
from tools.make_tiny import PRESETS, make_tiny, write_tiny

TEXT = Path(__file__).resolve().parent.parent / "models" / "text.txt"

if compile.why_not():
    pytest.skip(f"no compiled kernels: {compile.why_not()}", allow_module_level=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(make_tiny(PRESETS["llama3"], seed=5), tmp_path_factory.mktemp("model") / "model.gguf")


def test_types_and_files_beside_each_other(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / "own.gguf"
    assert main(["quantize", "--quiet", str(model), str(made), "Q5_K_S"]) == 0
    words = [str(model), "-f", str(TEXT), "-c", "64", "--chunks", "2", "--types", f"Q8_0,q3_k_s,{made}"]
    out, tmp = tmp_path / "plot.svg", tmp_path / "tmp"
    tmp.mkdir()
    assert main(["compare", *words, "-o", str(out), "--tmp", str(tmp), "--json", "--quiet"]) == 0
    rows = json.loads(capfd.readouterr().out)
    assert [row["name"] for row in rows] == ["model.gguf", "Q8_0", "Q3_K_S", "own.gguf"]
    assert rows[0]["kld"] == 0
    assert 0 < rows[1]["kld"] < rows[3]["kld"] < rows[2]["kld"]
    assert rows[1]["bits"] > rows[3]["bits"] > rows[2]["bits"]
    assert all(row["reading"] > 0 and row["writing"] > 0 for row in rows)
    assert list(tmp.iterdir()) == []
    svg = ET.parse(out).getroot()
    assert {title.text.partition(":")[0] for title in svg.iter("{http://www.w3.org/2000/svg}title") if title.text} == {
        "Q8_0", "Q3_K_S", "own.gguf",
    }  # fmt: skip
    assert main(["compare", *words, "-o", str(out), "--tmp", str(tmp)]) == 0
    table = capfd.readouterr().out
    assert re.search(r"Q3_K_S +0\.\d +\d\.\d\d +\d+\.\d{4} +\d\.\d{6} ± \d\.\d{6} +\d+\.\d\d% ", table)


def test_the_figures_are_those_of_perplexity(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["-f", str(TEXT), "-c", "64", "--chunks", "3"]
    fine = ["--activations", "fine"]  # what `run` answers: that is what is timed
    out, base = tmp_path / "plot.svg", str(tmp_path / "base")
    assert main(["compare", str(model), *words, "--types", "Q4_K_M", "-o", str(out), "--json", "--quiet"]) == 0
    row = json.loads(capfd.readouterr().out)[1]
    made = str(tmp_path / "q4.gguf")
    assert main(["quantize", "--quiet", str(model), made, "Q4_K_M"]) == 0
    assert main(["perplexity", str(model), *words, *fine, "--kl-divergence-base", base]) == 0
    capfd.readouterr()
    assert main(["perplexity", made, *fine, "--kl-divergence", "--kl-divergence-base", base]) == 0
    last = capfd.readouterr().out.splitlines()[3]
    assert f"{row['kld']:10.5f} ± {row['kld_error']:10.5f}" in last
    assert f"{row['perplexity']:9.4f}" in last


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_plot_of_few_dots_is_whole(count: int) -> None:
    rows = [Row(f"<{i}>", 10**6, 4.0, 10.0, 0.01, 0.001, 0.9, 5.0, 5.0) for i in range(count)]
    svg = ET.fromstring(as_svg(draw([Row("exact", 1, 32, 1, 0, 0, 1, 1, 1), *rows], "a & b")))
    assert len(list(svg.iter("{http://www.w3.org/2000/svg}circle"))) == 2 * count


@pytest.mark.oracle
def test_a_png_shows_what_the_svg_shows() -> None:
    """Each dot is blue where the SVG has it; words are there; nothing is drawn at the edges."""
    import io

    import numpy as np
    from PIL import Image

    rows = [Row(f"Q{i}_K é", i * 10**7, 4.0, 10.0, 10.0**-i, 0.001, 0.9, 5.0, 20.0 / i) for i in (2, 4, 8)]
    marks = draw(rows, "a & b")
    pixels = np.asarray(Image.open(io.BytesIO(as_png(marks))).convert("RGB"))
    assert pixels.shape == (PAGE[1] * PNG_SCALE, PAGE[0] * PNG_SCALE, 3)
    circles = list(ET.fromstring(as_svg(marks)).iter("{http://www.w3.org/2000/svg}circle"))
    assert len(circles) == 6
    for circle in circles:
        x, y = (round(PNG_SCALE * float(circle.attrib[name])) for name in ("cx", "cy"))
        assert tuple(pixels[y, x]) == (0x25, 0x63, 0xEB)
    assert (pixels[: 30 * PNG_SCALE] < 100).any(), "the title"
    assert all((edge == 255).all() for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]))


def test_a_png_without_pillow_is_said_before_the_measuring(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert main(["compare", str(model), "-f", str(TEXT), "-o", str(tmp_path / "plot.png"), "--quiet"]) == 1
    assert "pip install 'gemmafile[plot]'" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--types", ","], "names none"), (["--types", "Q4_K_Z"], "there is no type"), (["-c", "2"], "-c is 4 or more"),
     (["-o", "plot.jpg"], "should end in .svg or .png"), (["-o", "/no/such/folder/a.svg"], "is no folder"),
     (["--tmp", "/no/such/folder"], "cannot be written to"), (["--types", "none.gguf", "-c", "64"], "no such file")],
)  # fmt: skip
def test_what_cannot_be_is_said(
    words: list[str], message: str, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plot.svg"
    assert main(["compare", "--quiet", str(model), "-f", str(TEXT), "-o", str(out), *words]) != 0
    err = capfd.readouterr().err
    assert message in err
    assert not out.exists()
