"""The team: N threads walk one list of operations together.

`walk` is the compiled loop; `Team` keeps N Python threads parked and runs the walk on all of them. A walk holds no
Python lock. The result does not depend on N: chunks are whole rows or heads.
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
    """N threads that walk together; the caller waits.

    The caller is not one of them: an interrupt (Ctrl-C) can then strike it anywhere without leaving the others in
    the middle of a walk. It is raised when the walk is over.
    """

    def __init__(self, n_threads: int, walk: int):
        self.n_threads = n_threads
        self._walk: Any = _KernelType(walk)
        self._shared = 0
        self._number = 0
        self._asked, self._finished = [0] * n_threads, [0] * n_threads
        """For each thread the last walk that it is to go on, and that it has been on."""
        self._go = [threading.Event() for _ in range(n_threads)]
        self._wake = threading.Event()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._serve, args=(i,), daemon=True, name=f"gemmafile-{i}")
            for i in range(n_threads)
        ]
        for thread in self._threads:
            thread.start()

    def run(self, shared: int, n_threads: int | None = None) -> None:
        """Walk the operations of `shared` on all threads, or the first `n_threads` (what `shared` says too); returns
        when they are through."""
        walking = range(n_threads or self.n_threads)
        self._shared = shared
        number = self._number + 1
        interrupt: KeyboardInterrupt | None = None
        while True:
            try:
                # Every step may be done twice: an interrupt can come between any two of them.
                self._number = number
                for i in walking:
                    if self._finished[i] != number:
                        self._asked[i] = number
                        self._go[i].set()
                while any(self._finished[i] != number for i in walking):
                    self._wake.wait()
                    self._wake.clear()
                break
            except KeyboardInterrupt as e:
                interrupt = e
        if interrupt is not None:
            raise interrupt

    def _serve(self, thread: int) -> None:
        while not self._closed:
            self._go[thread].wait()
            self._go[thread].clear()
            number = self._asked[thread]  # woken to close, or twice for one walk: nothing new is asked
            if self._finished[thread] != number:
                self._walk(0, self._shared, thread)
                self._finished[thread] = number
                self._wake.set()

    def close(self) -> None:
        """Ends the threads; run() must not be under way."""
        self._closed = True
        for gate in self._go:
            gate.set()
        for thread in self._threads:
            thread.join()
