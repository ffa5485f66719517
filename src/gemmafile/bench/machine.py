"""The machine's limits: bytes read and operations done a second, by as many threads as the engine uses.

The kernels are `kernels/limits.py`. Memory is read twice over: the model's own mapped pages, which is what making a
token has to do, and anonymous memory in huge pages, the best that the machine has.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from gemmafile.files.gguf import ModelFile
from gemmafile.kernels import amx, limits
from gemmafile.kernels.single import Single, address, aligned

ANONYMOUS_BYTES = 512 << 20
PEAK_S = 0.01
"""How long a peak is held in one measurement, about."""

PEAKS = {"int8": "int8_dot", "bf16": "bf16_dot", "f32": "f32_fma", "unit": "unit_dot"}
"""Arithmetic by its kind, and the kernel that measures it."""

Segments = Sequence[tuple[int, int]]
"""(address, bytes) of pieces of memory."""


@dataclass
class Limits:
    """What some threads can do, in 10^9 a second: bytes, and operations (a multiplication or an addition each).

    `read`  the model's mapped pages · `read_anonymous`  huge pages · `int8`, `bf16`, `f32`  dot products, fma ·
    `unit`  int8 on the matrix unit, 0 where there is none
    """

    read: float = 0.0
    read_anonymous: float = 0.0
    int8: float = 0.0
    bf16: float = 0.0
    f32: float = 0.0
    unit: float = 0.0

    def raise_to(self, other: Limits) -> None:
        """A limit is the best that was seen of it."""
        for f in fields(self):
            setattr(self, f.name, max(getattr(self, f.name), getattr(other, f.name)))


class Rate(NamedTuple):
    """10^9 a second, by the clock and by processor time: the second says what a busy machine would give if it were
    not, as long as the threads do not wait for each other."""

    by_clock: float
    by_processor: float


def take_rate(run: Callable[[], None], amount: float, n_threads: int) -> Rate:
    """The rate at which `run` does `amount` of something on so many threads."""
    clock, processor = time.perf_counter(), time.process_time()
    run()
    clock, processor = time.perf_counter() - clock, (time.process_time() - processor) / n_threads
    return Rate(amount / clock / 1e9, amount / max(processor, 1e-9) / 1e9)


class Reader:
    """Reads the same memory again and again, one segment behind the other."""

    def __init__(self, segments: Segments, n_threads: int):
        segments = [_whole_lines(*segment) for segment in segments]
        self.n_bytes = sum(n_bytes for _, n_bytes in segments)
        self._digests = aligned(64 * n_threads)
        self._single = Single(1, n_threads)
        for start, n_bytes in segments:
            fields = {limits.START: start, limits.BYTES: n_bytes, limits.READ_DIGEST: address(self._digests)}
            self._single.add("limits.read", fields)
        self._single.bind()

    def rate(self) -> Rate:
        """Of bytes."""
        return take_rate(self._single.run, self.n_bytes, self._single.n_threads)

    def close(self) -> None:
        self._single.team.close()


def _whole_lines(start: int, n_bytes: int) -> tuple[int, int]:
    """The part of a segment that its loads reach: from a multiple of 64 on, as many rounds of all streams as fit."""
    skipped = -start % 64
    return start + skipped, max(0, n_bytes - skipped) // (64 * limits.STREAMS) * (64 * limits.STREAMS)


class Peak:
    """The arithmetic of one kind, a key of PEAKS, with nothing around it."""

    def __init__(self, kind: str, n_threads: int):
        kernel = PEAKS[kind]
        n_bytes = limits.panel_bytes(kernel)
        self._digests, self._operands = aligned(64 * n_threads), aligned(n_bytes)
        # As float32 and as bfloat16 these are ordinary numbers: subnormal ones would be slow.
        rng = np.random.default_rng(1)
        self._operands.view(np.float32)[:] = rng.uniform(0.5, 1.0, n_bytes // 4)
        self._single = Single(1, n_threads)
        fields = {limits.PANEL: address(self._operands), limits.PEAK_DIGEST: address(self._digests)}
        self._single.add(f"limits.{kernel}", fields)
        self._single.bind()
        self._choose_turns()

    def rate(self) -> Rate:
        """Of operations."""
        return take_rate(self._single.run, self._operations, self._single.n_threads)

    def _choose_turns(self) -> None:
        """As many as take PEAK_S; handing over to the threads takes longer than the first few."""
        op, turns = self._single.ops[0], limits.CHUNK_TURNS * self._single.n_threads
        for _ in range(4):
            op[limits.TURNS // 8] = turns
            seconds = 1e-9 / take_rate(self._single.run, 1, self._single.n_threads).by_clock
            turns = max(turns, int(turns * PEAK_S / seconds))
        self._operations = int(op[limits.TURNS // 8]) * int(op[limits.OPERATIONS // 8])

    def close(self) -> None:
        self._single.team.close()


class Machine:
    """All limits of some threads, over the segments of a model, which must stay open, and anonymous memory."""

    def __init__(self, n_threads: int, mapped: Segments, anonymous: np.ndarray):
        self._anonymous = anonymous  # kept for as long as its address is used
        self._probes: dict[str, Reader | Peak] = {
            "read": Reader(mapped, n_threads),
            "read_anonymous": Reader([(address(anonymous), anonymous.nbytes)], n_threads),
            **{kind: Peak(kind, n_threads) for kind in PEAKS if kind != "unit" or amx.is_ready()},
        }
        self.measure()  # the first touch of every page

    def measure(self) -> Limits:
        """Each limit once."""
        return Limits(**{name: probe.rate().by_clock for name, probe in self._probes.items()})

    def close(self) -> None:
        for probe in self._probes.values():
            probe.close()


def anonymous_memory(n_bytes: int) -> np.ndarray:
    """uint8[n_bytes], touched, in huge pages where the system gives them."""
    memory = mmap.mmap(-1, n_bytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a system without them: small pages, then
            memory.madvise(mmap.MADV_HUGEPAGE)
    array = np.frombuffer(memory, np.uint8)
    array[:] = 1
    return array


def mapped_segments(file: ModelFile, names: Sequence[str]) -> list[tuple[int, int]]:
    """Where these tensors lie, neighbours joined."""
    places = sorted((file.address(name), file.data(name).nbytes) for name in names)
    joined: list[tuple[int, int]] = []
    for start, n_bytes in places:
        if joined and start - sum(joined[-1]) < mmap.PAGESIZE:
            before, _ = joined.pop()
            start, n_bytes = before, start + n_bytes - before
        joined.append((start, n_bytes))
    return joined
