"""What was measured, as one JSON object and as tables.

A share of the limit: the time that reading the weights (and the cached keys and values) takes at the measured rate,
or the arithmetic at its measured peak, whichever is longer, divided by the time it took.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from statistics import median
from typing import Any

from gemmafile.bench.machine import Limits
from gemmafile.bench.rounds import Measured, Result

QUIET_SHARE = 0.9

LIMIT_NAMES = {
    "read": "read_gb_per_s", "read_anonymous": "read_anonymous_gb_per_s", "int8": "int8_gops", "bf16": "bf16_gflops",
    "f32": "f32_gflops", "unit": "matrix_unit_gops",
}  # fmt: skip


def make_report(measured: Measured) -> dict[str, Any]:
    """Everything, in types JSON has. The headline is the first depth, with the most threads."""
    reads = {t: median(rates) for t, rates in measured.reads.items()}
    results = [
        describe_result(r, measured.limits[r.trial.threads], reads[r.trial.threads]) for r in measured.results.values()
    ]
    report: dict[str, Any] = {
        "model": measured.path.name,
        "cpu": cpu_name(),
        "load_average": load_average(),
        "weight_bytes": measured.weight_bytes,
        "repetitions": measured.plan.repetitions,
        "mapped": measured.plan.mmap,
        "in_huge_pages": None if measured.huge_share is None else round(measured.huge_share, 3),
    }
    headline = {"threads": max(measured.plan.threads), "depth": measured.plan.depths[0]}
    for kind in ("prefill", "decode"):
        chosen = [r for r in results if r["kind"] == kind and headline.items() <= r.items()]
        report[f"{kind}_tokens_per_s"] = chosen[0]["tokens_per_s"] if chosen else None
        report[f"{kind}_of_limit"] = chosen[0]["of_limit"] if chosen else None
        report[f"{kind}_ratio"] = chosen[0]["ratio"] if chosen else None
    for field, name in LIMIT_NAMES.items():
        report[name] = {str(t): round(getattr(limits, field), 3) for t, limits in measured.limits.items()}
    report["read_median_gb_per_s"] = {str(t): round(rate, 3) for t, rate in reads.items()}
    report["results"] = results
    if measured.rival is not None:
        report["rival"] = {"name": measured.rival.name, "where": measured.rival.where, "failures": measured.failures}
    return report


def describe_result(result: Result, limits: Limits, read_median: float) -> dict[str, Any]:
    """One trial: rates, what they come to in bytes and operations a second, and how near the limit that is.

    read_median  10^9 bytes a second at which the weights were read as a rule, where the limit is the best that was seen
    """
    trial, work = result.trial, result.work
    rate = median(result.ours)
    seconds = trial.tokens_made / rate
    shares = {"memory": work.read_s(limits) / seconds, "arithmetic": work.compute_s(limits) / seconds}
    bound = max(shares, key=lambda name: shares[name])
    theirs = {setting: describe_rates(rates) for setting, rates in result.rival.items()}
    best = max(theirs, key=lambda setting: theirs[setting]["tokens_per_s"], default=None)
    return {
        **asdict(trial),
        "steps": trial.steps if trial.kind == "batch" else None,
        **describe_rates(result.ours),
        "core_share": round(min(median(result.core_shares), 1.0), 3),
        "gb_per_s": round(work.n_bytes / seconds / 1e9, 3),
        "gops": round(work.n_operations / seconds / 1e9, 3),
        "read_fraction": round(shares["memory"], 4),
        "compute_fraction": round(shares["arithmetic"], 4),
        "of_limit": round(shares[bound], 4),
        "bound": bound,
        "of_median_read": round(work.n_bytes / seconds / 1e9 / read_median, 4),
        "rival": theirs,
        "best_setting": best,
        "ratio": round(median_ratio(result.ours, result.rival[best]), 3) if best is not None else None,
        "ratio_by_processor": compare_by_processor(result),
    }


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    """Of the ratios of runs that took turns: what slows both for a minute is in none of them."""
    return median(a / b for a, b in zip(ours, theirs, strict=False))


def compare_by_processor(result: Result) -> float | None:
    """The ratio of tokens by processor time: what a busy machine would show if it were not. For one thread alone:
    several wait for each other, and that is processor time too."""
    if result.trial.threads != 1 or not result.rival:
        return None
    ours = _by_share(result.ours, result.core_shares)
    theirs = max(_by_share(rates, result.rival_shares[setting]) for setting, rates in result.rival.items())
    return round(ours / theirs, 3)


def _by_share(rates: list[float], shares: list[float]) -> float:
    return median(rate / share for rate, share in zip(rates, shares, strict=True))


def describe_rates(rates: list[float]) -> dict[str, Any]:
    return {
        "tokens_per_s": round(median(rates), 3),
        "low": round(min(rates), 3),
        "high": round(max(rates), 3),
        "samples": [round(rate, 3) for rate in rates],
    }


def format_report(report: dict[str, Any]) -> Iterator[str]:
    """The same as lines of text: the machine, then the trials."""
    load = "" if report["load_average"] is None else f", load average {report['load_average']:.1f}"
    yield f"{report['model']}: {report['weight_bytes'] / 1e9:.3f} GB of weights for a token"
    yield f"{report['cpu']}; {report['repetitions']} rounds{load}"
    huge = "" if report["in_huge_pages"] is None else f", {report['in_huge_pages']:.0%} in huge pages"
    yield f"weights {'mapped' if report['mapped'] else 'in memory'}{huge}"
    yield ""
    peaks = f"{'int8 GOP/s':>12}{'unit GOP/s':>12}{'bf16 GF/s':>11}{'f32 GF/s':>10}"
    yield f"{'threads':>7}{'weights GB/s':>14}{'median':>8}{'memory GB/s':>13}{peaks}"
    for t in report["int8_gops"]:
        read, anonymous, int8, bf16, f32, unit = (report[name][t] for name in LIMIT_NAMES.values())
        usual = report["read_median_gb_per_s"][t]
        yield f"{t:>7}{read:>14.1f}{usual:>8.1f}{anonymous:>13.1f}{int8:>12.0f}{unit:>12.0f}{bf16:>11.0f}{f32:>10.0f}"
    yield ""
    rival = report.get("rival")
    theirs = f"{rival['name']:>28}{'ratio':>7}" if rival else ""
    yield f"{'':<14}{'threads':>7}{'depth':>7}{'tokens/s':>28}{'GB/s':>8}{'GOP/s':>8}{'of limit':>10}{theirs}"
    for r in report["results"]:
        yield format_result(r, beside_rival=rival is not None)
    for setting, reason in (rival or {"failures": {}})["failures"].items():
        yield f"{report['rival']['name']}, {setting}: {reason}"
    least = min(r["core_share"] for r in report["results"])
    if least < QUIET_SHARE:
        yield f"other programs took part: in one trial our threads had a core for {least:.0%} of the time"


def format_result(r: dict[str, Any], *, beside_rival: bool) -> str:
    name = f"{r['kind']} {r['tokens']}" if r["kind"] != "batch" else f"batch {r['rows']} x {r['steps']}"
    line = f"{name:<14}{r['threads']:>7}{r['depth']:>7}{format_rates(r):>28}{r['gb_per_s']:>8.1f}{r['gops']:>8.0f}"
    line += f"{100 * r['of_limit']:>9.0f}%"
    if beside_rival and r["best_setting"] is not None:
        line += f"{format_rates(r['rival'][r['best_setting']]):>28}{r['ratio']:>7.2f}  ({r['best_setting']}"
        line += f"; {r['ratio_by_processor']:.2f} by processor time)" if r["ratio_by_processor"] else ")"
    return line


def format_rates(rates: dict[str, Any]) -> str:
    return f"{rates['tokens_per_s']:.1f} ({rates['low']:.1f}-{rates['high']:.1f})"


def cpu_name() -> str:
    """As the system calls it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as f:
            return next((line.partition(":")[2].strip() for line in f if line.startswith("model name")), "unknown CPU")
    except OSError:
        return "unknown CPU"


def load_average() -> float | None:
    """Programs that wanted to run in the last minute, on average: over the number of cores, others took part."""
    import os

    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None
