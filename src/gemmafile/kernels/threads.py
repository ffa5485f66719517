"""The team: N threads walk one list of operations together.

`walk` is the compiled loop; `Team` keeps N - 1 Python threads parked and runs the walk on all of them. A walk
holds no Python lock. The result does not depend on N: chunks are whole rows or heads.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

from gemmafile.kernels.ops import (
    ARRIVED,
    BARRIER,
    GENERATION,
    KERNEL,
    N_OPS,
    N_THREADS,
    OP_BYTES,
    OPS,
    SPINS,
    YIELD,
)  # fmt: skip


def kernels() -> dict[str, Callable[..., None]]:
    from gemmafile.kernels import simd

    atomic_add, atomic_load, atomic_store = simd.atomic_add, simd.atomic_load, simd.atomic_store
    load, pause, call_kernel, call_yield = simd.load_i64, simd.pause, simd.call_kernel, simd.call_yield

    @simd.device
    def wait_for_all(shared):
        """The last thread to arrive opens the gate; the others spin a while, then let other programs run."""
        generation = atomic_load(shared + GENERATION)
        if atomic_add(shared + ARRIVED, 1) == load(shared + N_THREADS) - 1:
            atomic_store(shared + ARRIVED, 0)
            atomic_add(shared + GENERATION, 1)
            return
        turns = 0
        while atomic_load(shared + GENERATION) == generation:
            pause()
            turns += 1
            if turns > SPINS:
                call_yield(load(shared + YIELD))

    def walk(op, shared, thread):
        """All operations of `shared`, in order. `op` is not used."""
        alone = load(shared + N_THREADS) == 1
        op = load(shared + OPS)
        for _ in range(load(shared + N_OPS)):
            call_kernel(load(op + KERNEL), op, shared, thread)
            if load(op + BARRIER) and not alone:
                wait_for_all(shared)
            op += OP_BYTES

    return {"walk": walk}


_KernelType = ctypes.CFUNCTYPE(None, ctypes.c_ssize_t, ctypes.c_ssize_t, ctypes.c_ssize_t)


def yield_address() -> int:
    """The address of sched_yield."""
    address = ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value
    assert address is not None
    return address


class Team:
    """N threads, of which the caller is number 0."""

    def __init__(self, n_threads: int, walk: int):
        self.n_threads = n_threads
        self._walk: Any = _KernelType(walk)
        self._shared = 0
        self._go = [threading.Semaphore(0) for _ in range(n_threads - 1)]
        self._done = threading.Semaphore(0)
        self._closed = False
        self._threads = [
            threading.Thread(target=self._serve, args=(i + 1,), daemon=True, name=f"gemmafile-{i + 1}")
            for i in range(n_threads - 1)
        ]
        for thread in self._threads:
            thread.start()

    def run(self, shared: int) -> None:
        """Walk the operations of `shared` on all threads; returns when all are through."""
        self._shared = shared
        for gate in self._go:
            gate.release()
        self._walk(0, shared, 0)
        for _ in self._threads:
            self._done.acquire()

    def _serve(self, number: int) -> None:
        while True:
            self._go[number - 1].acquire()
            if self._closed:
                return
            self._walk(0, self._shared, number)
            self._done.release()

    def close(self) -> None:
        """Ends the threads; run() must not be under way."""
        if not self._closed:
            self._closed = True
            for gate in self._go:
                gate.release()
            for thread in self._threads:
                thread.join()
