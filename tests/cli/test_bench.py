"""gemmafile bench: what it prints, and how it deals with an engine that it is compared with. Never how fast."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from gemmafile import __version__
from gemmafile.bench import machine, rivals
from gemmafile.bench.report import median_ratio
from tests.cli.conftest import Done, Runner
from tests.oracles import llamacpp

QUICK = ("-p", 20, "-n", 4, "-r", 2, "-t", 1)

FAKE = """#!{python}
import json, os, signal, sys
if "--help" in sys.argv:
    print("--repack <0|1>" if {has_repack} else "no such thing")
    sys.exit()
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
with open({log!r}, "a") as f:
    print(given.get("--repack"), given["-d"], given["-t"], file=f)
{body}
tests = []
for key, other, rate in (("-p", "n_prompt", 1000.0), ("-n", "n_gen", 10.0)):
    if int(given[key]):
        sizes = {{"n_prompt": 0, "n_gen": 0}} | {{other: int(given[key])}}
        tests.append(sizes | {{"avg_ts": rate * (1 + int(given.get("--repack", 0)))}})
print(json.dumps(tests))
"""


@pytest.fixture(autouse=True)
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ANONYMOUS_BYTES", 1 << 20)
    monkeypatch.setattr(machine, "PEAK_S", 1e-4)


def write_fake(folder: Path, body: str = "", has_repack: bool = True) -> Path:
    path = folder / "llama-bench"
    log = str(folder / "calls")
    path.write_text(FAKE.format(python=sys.executable, body=body, log=log, has_repack=has_repack))
    path.chmod(0o755)
    return path


def last_line(done: Done) -> dict[str, Any]:
    assert done.out.endswith("\n")
    report: dict[str, Any] = json.loads(done.out.splitlines()[-1])
    return report


def test_the_last_line_is_json(command: Runner, tiny_path: Path) -> None:
    done = command("bench", tiny_path, "-p", 20, "-n", 4, "-r", 2, "-t", "1,2", "-d", "0,30", "-b", "2,3")
    assert done.code == 0, done.err
    report = last_line(done)
    for name in ("read_gb_per_s", "read_anonymous_gb_per_s", "int8_gops", "bf16_gflops", "f32_gflops"):
        assert list(report[name]) == ["1", "2"]
        assert all(value > 0 for value in report[name].values())
    assert (report["gemmafile"], report["model"]) == (__version__, tiny_path.name)
    assert (report["prefill_ratio"], report["decode_ratio"]) == (None, None)
    tests = [(r["kind"], r["threads"], r["depth"], r["rows"]) for r in report["results"]]
    assert tests == [
        (kind, threads, depth, rows)
        for threads in (1, 2)
        for kind, depth, rows in (
            ("prefill", 0, 1), ("decode", 0, 1), ("prefill", 30, 1), ("decode", 30, 1), ("batch", 0, 2), ("batch", 0, 3)
        )
    ]  # fmt: skip
    for r in report["results"]:
        assert 0 < r["low"] <= r["tokens_per_s"] <= r["high"]
        assert len(r["samples"]) == 2
        assert min(r[name] for name in ("gb_per_s", "gops", "of_limit", "core_share")) >= 0
        assert r["of_limit"] == max(r["read_fraction"], r["compute_fraction"])
    with_most_threads = [r["tokens_per_s"] for r in report["results"] if r["threads"] == 2 and r["depth"] == 0]
    assert [report["prefill_tokens_per_s"], report["decode_tokens_per_s"]] == with_most_threads[:2]


def test_only_what_was_asked_for(command: Runner, tiny_path: Path) -> None:
    report = last_line(command("bench", tiny_path, *QUICK, "-p", 0))
    assert [r["kind"] for r in report["results"]] == ["decode"]
    assert report["prefill_tokens_per_s"] is None
    report = last_line(command("bench", tiny_path, *QUICK, "-n", 0))
    assert [r["kind"] for r in report["results"]] == ["prefill"]


def test_llamacpp_is_timed_in_turn_and_by_its_better_setting(command: Runner, tiny_path: Path, tmp_path: Path) -> None:
    done = command("bench", tiny_path, *QUICK, "-d", "0,30", "--vs", f"llamacpp={write_fake(tmp_path)}")
    assert done.code == 0, done.err
    report = last_line(done)
    assert (tmp_path / "calls").read_text().splitlines() == ["1 0 1", "0 0 1", "1 30 1", "0 30 1"] * 2
    for r in report["results"]:
        expected = {"prefill": 2000.0, "decode": 20.0}[r["kind"]]
        assert r["best_setting"] == "repack 1"
        assert r["rival"]["repack 1"]["samples"] == [expected] * 2
        assert r["rival"]["repack 0"]["tokens_per_s"] == expected / 2
        assert r["ratio"] == pytest.approx(r["tokens_per_s"] / expected, abs=1e-3)
        assert r["ratio_by_processor"] > 0
    assert report["decode_ratio"] == report["results"][1]["ratio"]
    assert report["rival"] == {"name": "llama.cpp", "where": str(tmp_path / "llama-bench"), "failures": {}}


def test_a_llama_bench_without_repack(command: Runner, tiny_path: Path, tmp_path: Path) -> None:
    write_fake(tmp_path, has_repack=False)
    report = last_line(command("bench", tiny_path, *QUICK, "--vs", f"llamacpp={tmp_path}"))
    assert {r["best_setting"] for r in report["results"]} == {"defaults"}


FAKE_BATCHED = """#!{python}
import json, sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
with open({log!r}, "a") as f:
    print(given["-npl"], given["-ntg"], given["-t"], "--no-repack" in sys.argv, file=f)
{body}
print("main: some line of a log")
print(json.dumps({{"pl": int(given["-npl"]), "speed_tg": 5.0 * int(given["-npl"])}}))
"""


def write_fake_batched(folder: Path, body: str = "") -> None:
    path = folder / "llama-batched-bench"
    path.write_text(FAKE_BATCHED.format(python=sys.executable, body=body, log=str(folder / "batches")))
    path.chmod(0o755)


def test_batches_are_timed_by_llama_batched_bench(command: Runner, tiny_path: Path, tmp_path: Path) -> None:
    write_fake_batched(tmp_path)
    words = ("-p", 0, "-n", 8, "-r", 2, "-t", 1, "-b", "2,4", "--vs", f"llamacpp={write_fake(tmp_path)}")
    done = command("bench", tiny_path, *words)
    assert done.code == 0, done.err
    report = last_line(done)
    expected = [f"{rows} {8 // rows} 1 {no_repack}" for no_repack in (False, True) for rows in (2, 4)]
    assert (tmp_path / "batches").read_text().splitlines() == expected * 2
    for r in report["results"][1:]:
        assert r["rival"]["repack 0"]["samples"] == [5.0 * r["rows"]] * 2
        assert r["ratio"] == pytest.approx(r["tokens_per_s"] / (5.0 * r["rows"]), rel=1e-2)


def test_batches_that_fail_leave_the_rest(command: Runner, tiny_path: Path, tmp_path: Path) -> None:
    write_fake_batched(tmp_path, "sys.exit(3)")
    words = ("-p", 0, "-n", 4, "-r", 1, "-t", 1, "-b", "2", "--vs", f"llamacpp={write_fake(tmp_path)}")
    done = command("bench", tiny_path, *words)
    assert done.code == 0, done.err
    report = last_line(done)
    assert [r["ratio"] is None for r in report["results"]] == [False, True]
    assert list(report["rival"]["failures"]) == ["repack 1, batches", "repack 0, batches"]


def test_ratios_are_of_runs_that_took_turns() -> None:
    """A minute in which everything took twice as long is in neither ratio."""
    assert median_ratio([10.0, 5.0, 10.0], [5.0, 2.5, 5.0]) == 2.0
    assert median_ratio([10.0, 5.0, 5.0, 12.0], [5.0, 2.5, 2.5, 4.0]) == 2.0


def test_where_the_weights_lie_is_reported(command: Runner, tiny_path: Path) -> None:
    report = last_line(command("bench", tiny_path, *QUICK, "-p", 0, "--no-mmap", "--huge-pages", "off"))
    assert report["mapped"] is False
    assert report["in_huge_pages"] == 0
    assert report["read_median_gb_per_s"]["1"] <= report["read_gb_per_s"]["1"]
    (result,) = report["results"]
    assert result["of_median_read"] == pytest.approx(result["gb_per_s"] / report["read_median_gb_per_s"]["1"], rel=0.05)


CRASH = "if given['--repack'] == '1':\n    print('trap', file=sys.stderr)\n    os.kill(os.getpid(), signal.SIGILL)"


def test_a_crash_is_told_and_the_other_setting_counts(command: Runner, tiny_path: Path, tmp_path: Path) -> None:
    done = command("bench", tiny_path, *QUICK, "--vs", f"llamacpp={write_fake(tmp_path, CRASH)}")
    assert done.code == 0, done.err
    report = last_line(done)
    assert report["rival"]["failures"] == {"repack 1": "killed by SIGILL: trap"}
    assert "llama.cpp, repack 1: killed by SIGILL: trap" in done.out
    assert {r["best_setting"] for r in report["results"]} == {"repack 0"}
    assert (tmp_path / "calls").read_text().split()[::3] == ["1", "0", "0"]  # not tried again


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("sys.exit(3)", "exit 3: nothing on stderr"),
        ("print('garbage'); sys.exit()", "its answer is no JSON: 'garbage\\n'"),
        ("print('[{}]'); sys.exit()", "its answer is not that of llama-bench: KeyError('n_prompt') in '[{}]\\n'"),
    ],
)
def test_a_rival_without_an_answer(command: Runner, tiny_path: Path, tmp_path: Path, body: str, reason: str) -> None:
    """Our own figures are shown all the same; the exit code says that the comparison is missing."""
    done = command("bench", tiny_path, *QUICK, "--vs", f"llamacpp={write_fake(tmp_path, body)}")
    report = last_line(done)
    assert done.code == 1
    assert report["rival"]["failures"] == {"repack 1": reason, "repack 0": reason}
    assert report["decode_tokens_per_s"] > 0
    assert report["decode_ratio"] is None


def test_llama_bench_is_found_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = write_fake(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("GEMMAFILE_LLAMACPP", str(tmp_path / "nothing"))
    assert rivals.find_rival("llamacpp").where == str(program)


def test_the_wheel_is_taken_where_there_is_no_llama_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "xllamacpp.py").write_text("""
from types import SimpleNamespace
def CommonParams():
    return SimpleNamespace(model=SimpleNamespace(), cpuparams=SimpleNamespace(), cpuparams_batch=SimpleNamespace())
class Server:
    def __init__(self, params):
        self.factor = 1.0 if params.no_extra_bufts else 2.0
    def handle_completions(self, request):
        n = len(request["prompt"]) * self.factor
        return {"timings": {"prompt_per_second": n, "predicted_per_second": request["n_predict"] * self.factor}}
""")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("GEMMAFILE_LLAMACPP", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    wheel = rivals.find_rival("llamacpp")
    assert (wheel.name, tuple(wheel.settings)) == ("llama.cpp (xllamacpp)", ("repack 1", "repack 0"))
    task = rivals.Task(prompt=7, predict=4, depth=30, threads=1)
    assert wheel.run(tmp_path, task, "repack 1").tokens_per_s == {"prefill": 2.0 * 38, "decode": 2.0 * 5}
    assert wheel.run(tmp_path, task, "repack 0").tokens_per_s == {"prefill": 38.0, "decode": 5.0}


def test_there_is_nobody_to_compare_with(
    command: Runner, tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("GEMMAFILE_LLAMACPP", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = command("bench", tiny_path, *QUICK, "--vs", "llamacpp")
    assert (done.code, done.out) == (2, "")
    assert "no llama-bench" in done.err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("-d", "0,x"), "-d is '0,x', expected whole numbers"),
        (("-t", "0"), "-t is 0, expected 1 to"),
        (("-r", "0"), "-r is 0, expected 1 to"),
        (("-b", "513"), "-b is 513, expected 1 to 512"),
        (("-p", "-1"), "-p is -1, expected 0 to"),
        (("-p", "0", "-n", "0"), "nothing to measure"),
        (("--vs", "llamacp"), "did you mean llamacpp?"),
        (("--vs", "llamacpp=/nowhere"), "/nowhere is no program"),
    ],
)
def test_what_cannot_be_measured_is_said(
    command: Runner, tiny_path: Path, words: tuple[str, ...], complaint: str
) -> None:
    done = command("bench", tiny_path, *words)
    assert (done.code, done.out) == (2, "")
    assert complaint in done.err
    assert done.err.count("\n") == 1


def test_help_names_every_flag(command: Runner) -> None:
    done = command("bench", "--help")
    assert done.code == 0
    for flag in ("-p", "-n", "-d", "-b", "-t", "-r", "--vs"):
        assert f" {flag} " in done.out


@pytest.mark.oracle
@pytest.mark.parametrize("setting", ["repack 1", "repack 0"])
def test_the_real_rivals_answer(setting: str, smollm2_path: Path) -> None:
    found: list[rivals.Rival] = [rivals.Wheel()]
    if (judge := llamacpp.find()) is not None:
        found.append(rivals.find_rival(f"llamacpp={judge.tools}"))
    for rival in found:
        rates = rival.run(smollm2_path, rivals.Task(prompt=16, predict=2, depth=20, threads=1), setting)
        assert set(rates.tokens_per_s) == {"prefill", "decode"}
        assert min(rates.tokens_per_s.values()) > 0
        assert 0 < rates.core_share < 1.5
