"""Ratios of what was measured."""

from __future__ import annotations

import pytest

from gemmafile.bench.report import compare_by_processor
from gemmafile.bench.rounds import Result
from gemmafile.bench.runs import Trial
from gemmafile.bench.work import Work


def result(threads: int) -> Result:
    return Result(
        Trial("decode", 8, threads), Work(), ours=[10.0, 20.0, 5.0], core_shares=[0.5, 1.0, 0.25],
        rival={"repack 1": [4.0, 8.0], "repack 0": [3.0, 9.0]},
        rival_shares={"repack 1": [0.5, 1.0], "repack 0": [0.3, 0.9]},
    )  # fmt: skip


def test_a_busy_machine_does_not_change_the_ratio_by_processor_time() -> None:
    """20 tokens for each second of a core, against 10 with the better setting, whatever share of one there was."""
    assert compare_by_processor(result(threads=1)) == pytest.approx(2.0)


def test_several_threads_wait_for_each_other_on_processor_time() -> None:
    assert compare_by_processor(result(threads=2)) is None
