"""`gemmafile compare`: the table, the plot, and what is left behind."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from gemmafile.cli.main import main
from gemmafile.kernels import compile
from gemmafile.quantize.comparison import Row
from gemmafile.quantize.plot import draw
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
    out, base = tmp_path / "plot.svg", str(tmp_path / "base")
    assert main(["compare", str(model), *words, "--types", "Q4_K_M", "-o", str(out), "--json", "--quiet"]) == 0
    row = json.loads(capfd.readouterr().out)[1]
    made = str(tmp_path / "q4.gguf")
    assert main(["quantize", "--quiet", str(model), made, "Q4_K_M"]) == 0
    assert main(["perplexity", str(model), *words, "--kl-divergence-base", base]) == 0
    capfd.readouterr()
    assert main(["perplexity", made, "--kl-divergence", "--kl-divergence-base", base]) == 0
    last = capfd.readouterr().out.splitlines()[3]
    assert f"{row['kld']:10.5f} ± {row['kld_error']:10.5f}" in last
    assert f"{row['perplexity']:9.4f}" in last


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_plot_of_few_dots_is_whole(count: int) -> None:
    rows = [Row(f"<{i}>", 10**6, 4.0, 10.0, 0.01, 0.001, 0.9, 5.0, 5.0) for i in range(count)]
    svg = ET.fromstring(draw([Row("exact", 1, 32, 1, 0, 0, 1, 1, 1), *rows], "a & b"))
    assert len(list(svg.iter("{http://www.w3.org/2000/svg}circle"))) == 2 * count


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--types", ","], "names none"), (["--types", "Q4_K_Z"], "there is no type"), (["-c", "2"], "-c is 4 or more"),
     (["-o", "plot.png"], "should end in .svg"), (["-o", "/no/such/folder/a.svg"], "is no folder"),
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
