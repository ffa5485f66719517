"""The kernels that measure the machine do all the work they are timed for: no byte and no product is left out."""

from __future__ import annotations

import numpy as np
import pytest

from gemmafile.kernels import amx, limits
from gemmafile.kernels.cache import round_bf16
from gemmafile.kernels.single import Single, address, aligned

THREADS = (1, 3)
PEAKS = (*limits.PRODUCTS_A_LANE, "unit_dot")
ROUND = 64 * limits.STREAMS


def run(kernel: str, fields: dict[int, int], n_threads: int) -> Single:
    single = Single(1, n_threads)
    single.add(f"limits.{kernel}", fields)
    single.bind().run()
    single.team.close()
    return single


@pytest.mark.parametrize("n_threads", THREADS)
@pytest.mark.parametrize("n_bytes", [0, ROUND, limits.CHUNK_BYTES, 5 * limits.CHUNK_BYTES + 7 * ROUND + 100])
def test_every_word_is_read_once(n_bytes: int, n_threads: int) -> None:
    memory = np.random.default_rng(1).integers(0, 256, n_bytes + 1, np.uint8)[1:]  # nothing need be aligned
    digests = aligned(64 * n_threads)
    digests[:] = 7
    fields = {limits.START: address(memory), limits.BYTES: n_bytes, limits.READ_DIGEST: address(digests)}
    run("read", fields, n_threads)
    reached = memory[: n_bytes // ROUND * ROUND].reshape(-1, 64)
    mixed = np.bitwise_xor.reduce(digests.reshape(-1, 64) ^ 7, axis=0)
    np.testing.assert_array_equal(mixed, np.bitwise_xor.reduce(reached, axis=0))


def ones(name: str) -> np.ndarray:
    """A panel of ones of the kind that a kernel multiplies."""
    n_bytes = limits.panel_bytes(name)
    if name not in ("bf16_dot", "f32_fma"):
        return np.ones(n_bytes, np.uint8)
    numbers = np.ones(n_bytes // (4 // limits.PRODUCTS_A_LANE[name]), np.float32)
    return (round_bf16(numbers) if name == "bf16_dot" else numbers).view(np.uint8)


@pytest.mark.parametrize("n_threads", THREADS)
@pytest.mark.parametrize("name", PEAKS)
def test_a_peak_makes_the_products_it_says(name: str, n_threads: int) -> None:
    """Ones times ones: the sums, of 16 lanes, are the number of products; an addition belongs to each."""
    if name == "unit_dot" and not amx.is_ready():
        pytest.skip("no matrix unit")
    panel, digests, turns = aligned(limits.panel_bytes(name)), aligned(64 * n_threads), 3 * limits.CHUNK_TURNS + 5
    panel[:] = ones(name)
    fields = {limits.PANEL: address(panel), limits.TURNS: turns, limits.PEAK_DIGEST: address(digests)}
    single = run(name, fields, n_threads)
    n_products = int(single.ops[0, limits.OPERATIONS // 8]) * turns // 2
    assert n_products > 1e5
    sums = digests.view(np.float32 if name in ("bf16_dot", "f32_fma") else np.int32).reshape(-1, 16).sum(axis=0)
    assert sums.tolist() == [n_products / 16] * 16


def test_every_step_has_operands_of_its_own() -> None:
    """A product that did not depend on the step could be computed once: each byte of the weights counts."""
    panel, digest = aligned(limits.panel_bytes("int8_dot")), aligned(64)
    steps = panel.reshape(limits.STEPS, limits.STEP_BYTES)
    steps[:] = np.arange(1, limits.STEPS + 1, dtype=np.uint8)[:, None]
    fields = {limits.PANEL: address(panel), limits.TURNS: 1, limits.PEAK_DIGEST: address(digest)}
    single = run("int8_dot", fields, 1)
    products = int(single.ops[0, limits.OPERATIONS // 8]) // 2 // limits.STEPS // 16
    expected = products * sum(step * step for step in range(1, limits.STEPS + 1))
    assert digest.view(np.int32).tolist() == [expected] * 16
