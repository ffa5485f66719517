"""`gemmafile bench`: tokens a second of a model on this machine.

Times a model reading tokens (prefill), making them (decode) and making them for several sequences at once (batch),
beside what this machine's memory and arithmetic allow and, if asked, beside llama.cpp. Everything is measured in turn,
round by round. Prints tables, then one line of JSON.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gemmafile import __version__
from gemmafile.cli.flags import HELP, HUB, MODEL, add_environment, flags_of, help_text, make_settings, read_words
from gemmafile.cli.run import model_path
from gemmafile.cli.streams import Streams
from gemmafile.errors import BadSettings
from gemmafile.settings import option

if TYPE_CHECKING:
    from gemmafile.bench.rounds import Plan

MOST = 1 << 20


@dataclass
class BenchSettings:
    """What to measure, how often, and against whom."""

    prompt: int = option(512, "--n-prompt", "-p", help="tokens to read; 0: none", metavar="N")
    predict: int = option(128, "--n-gen", "-n", help="tokens to make; 0: none", metavar="N")
    depths: str = option("0", "--n-depth", "-d", help="positions before them", metavar="N[,N]")
    rows: str = option(
        "", "--batches", "-b", help="sequences that make tokens side by side, e.g. 2,4,8,16", metavar="N[,N]"
    )
    threads: str = option("", "--threads", "-t", help="threads (default: physical cores)", metavar="N[,N]")
    repetitions: int = option(3, "--repetitions", "-r", help="rounds; medians and extremes are shown", metavar="N")
    vs: str | None = option(
        None, "--vs", help="time llama.cpp in turn: llamacpp, or llamacpp=PATH of its llama-bench", metavar="ENGINE"
    )
    mmap: bool = option(True, "--mmap", help="map the model (the default); --no-mmap: read it", off=("--no-mmap",))
    huge_pages: str = option("auto", "--huge-pages", help="as `gemmafile run` has it", choices=("auto", "on", "off"))
    log_disable: bool = option(False, "--log-disable", help="nothing on stderr but errors")


def main(words: list[str]) -> int:
    """Runs the words behind `gemmafile bench`; returns the exit code, 1 when a rival gave nothing at all."""
    groups = [("model and measurements", [MODEL, *HUB, *flags_of(BenchSettings), HELP])]
    flags = [flag for _, members in groups for flag in members]
    given = read_words(words, flags)
    if given.values.get("help"):
        print(help_text("gemmafile bench MODEL [flags]", __doc__.split("\n\n")[1], groups))
        return 0
    add_environment(given, flags)
    settings = make_settings(BenchSettings, given)
    streams = Streams(quiet=settings.log_disable)
    path, plan = Path(model_path(given)), make_plan(settings)
    from gemmafile.bench.report import format_report, make_report
    from gemmafile.bench.rivals import find_rival
    from gemmafile.bench.rounds import measure

    rival = find_rival(settings.vs) if settings.vs is not None else None
    measured = measure(path, plan, rival, streams.say)
    report = {"gemmafile": __version__, **make_report(measured)}
    for line in (*format_report(report), json.dumps(report)):
        streams.write(f"{line}\n")
    return 1 if rival is not None and not any(result.rival for result in measured.results.values()) else 0


def make_plan(settings: BenchSettings) -> Plan:
    """Raises BadSettings, naming the flag, for a number that cannot be measured."""
    from gemmafile.bench.rounds import Plan
    from gemmafile.engine.engine import MAX_THREADS, physical_cores

    plan = Plan(
        threads=read_numbers("-t", settings.threads, 1, MAX_THREADS) or (physical_cores(),),
        prompt=_within("-p", settings.prompt, 0, MOST),
        predict=_within("-n", settings.predict, 0, MOST),
        depths=read_numbers("-d", settings.depths, 0, MOST) or (0,),
        rows=read_numbers("-b", settings.rows, 1, 512),
        repetitions=_within("-r", settings.repetitions, 1, 1000),
        mmap=settings.mmap,
        huge_pages=settings.huge_pages,
    )
    if not plan.all_trials():
        raise BadSettings("nothing to measure: give tokens to read (-p) or to make (-n)")
    return plan


def read_numbers(flag: str, text: str, least: int, most: int) -> tuple[int, ...]:
    """ "0,2048" as (0, 2048): each number once. Raises BadSettings."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not all(word.isascii() and word.isdecimal() for word in words):
        raise BadSettings(f"{flag} is {text!r}, expected whole numbers with commas between them")
    return tuple(dict.fromkeys(_within(flag, int(word), least, most) for word in words))


def _within(flag: str, value: int, least: int, most: int) -> int:
    if not least <= value <= most:
        raise BadSettings(f"{flag} is {value}, expected {least} to {most}")
    return value
