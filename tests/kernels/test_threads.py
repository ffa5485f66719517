"""The team of threads: all walk, an interrupt waits for the end of the walk, and the next walk is whole."""

from __future__ import annotations

import signal
import threading
import time

import numpy as np
import pytest

from gemmafile.kernels.formats_on import format_module
from gemmafile.kernels.ops import ARRIVED, GENERATION, N_THREADS
from gemmafile.kernels.single import make_product
from tests.kernels.random_blocks import random_rows


def test_an_interrupt_comes_after_the_walk_and_breaks_nothing() -> None:
    """Ctrl-C at random moments of many walks: each walk ends whole, and no thread is left behind."""
    rng = np.random.default_rng(1)
    rows, x = random_rows("Q8_0", rng, 256, 256), rng.standard_normal((64, 256)).astype(np.float32)
    wanted = format_module("Q8_0").multiply(x, rows)
    single, out = make_product("q8_0.matmul", "int8_32", x, rows, 3)
    caught, main, is_armed = 0, threading.get_ident(), False
    stop = threading.Event()

    def strike() -> None:
        delays = np.random.default_rng(2)
        while not stop.is_set():
            time.sleep(float(delays.uniform(0, 0.003)))
            signal.pthread_kill(main, signal.SIGINT)

    def interrupt(*_: object) -> None:
        """Once for each walk: a second strike, behind it, would reach the test."""
        nonlocal is_armed
        if is_armed:
            is_armed = False
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    striker = threading.Thread(target=strike)
    ends = time.monotonic() + 2
    striker.start()
    try:
        while time.monotonic() < (ends if caught > 10 else ends + 30):  # longer on a machine that is busy
            out[:] = 0
            try:
                is_armed = True
                single.run()
                is_armed = False
                np.testing.assert_array_equal(out, wanted)
            except KeyboardInterrupt:
                caught += 1
                assert not out.any() or (out == wanted).all(), "a walk was left in its middle"
    finally:
        stop.set()
        striker.join()
        signal.signal(signal.SIGINT, before)
    out[:] = 0
    single.run()
    np.testing.assert_array_equal(out, wanted)
    single.team.close()
    assert caught > 10


@pytest.mark.parametrize("n_threads", [1, 2, 7])
def test_a_closed_team_leaves_no_thread(n_threads: int) -> None:
    before = threading.active_count()
    rng = np.random.default_rng(1)
    rows, x = random_rows("F32", rng, 40, 64), rng.standard_normal((2, 64)).astype(np.float32)
    single, _ = make_product("dots.f32_matvec", None, x, rows, n_threads)
    single.run()
    assert threading.active_count() == before + n_threads
    single.team.close()
    assert threading.active_count() == before


def test_threads_that_sat_out_the_last_walk_end_too() -> None:
    """As with -t 2 -tb 3: a walk of all, then one of fewer, then the end."""
    rng = np.random.default_rng(1)
    rows, x = random_rows("F32", rng, 40, 64), rng.standard_normal((2, 64)).astype(np.float32)
    single, _ = make_product("dots.f32_matvec", None, x, rows, 3)
    single.run()
    single.shared[N_THREADS // 8] = 2
    single.team.run(single.shared.ctypes.data, 2)
    closing = threading.Thread(target=single.team.close, daemon=True)
    closing.start()
    closing.join(20)
    is_stuck = closing.is_alive()
    single.shared[[ARRIVED // 8, GENERATION // 8]] += 1  # opens the gate: a stuck test must not keep a core busy
    assert not is_stuck
