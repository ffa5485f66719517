"""What a backend is: something that replays a tape for a batch, and how one is chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

import numpy as np

from gemmafile.kernels.cache import KVCache
from gemmafile.model.batch import Batch
from gemmafile.model.config import ModelConfig
from gemmafile.model.tape import Tape
from gemmafile.model.weights import ModelWeights

Trace = Callable[[str, np.ndarray], None]
"""Called with a value's name and float32[T, width] after it is computed; the array is only lent."""

PEAK_GROUP = 128


Told: TypeAlias = Callable[[int, int], None]
"""How many of how many."""


class Backend(Protocol):
    """A replay bound to one tape and one KV cache."""

    name: str

    def run(self, batch: Batch, trace: Trace | None = None) -> np.ndarray:
        """Replay the tape: stores the rows' keys and values, returns logits float32[n_outputs, V], lent until
        the next call."""

    def run_hidden(self, batch: Batch) -> np.ndarray:
        """As `run`, without the output matrix: the hidden state after the last norm, float32[n_outputs, E]."""

    def peaks(self, n_outputs: int) -> np.ndarray | None:
        """Of the logits of the last pass the largest of each PEAK_GROUP neighbours, NaN where one is not finite:
        float32[n_outputs, V / PEAK_GROUP], lent as they are. None: not computed."""

    def prepare(self, told: Told | None = None) -> None:
        """The process is about to be confined: start now whatever processes a later pass will need.

        told  hears how much of how much is done: compile what is missing now, so that no pass waits for it
        """

    def rest(self) -> None:
        """No pass for a while: memory of values goes back to the system until the next. What was lent is lost."""

    def n_walked(self) -> int:
        """A number that is another as long as a pass gets on. May be asked from another thread."""

    def close(self) -> None: ...


def make_backend(
    name: str, tape: Tape, config: ModelConfig, weights: ModelWeights, cache: KVCache,
    *, threads: int, threads_batch: int, max_rows: int, say: Callable[[str], None],
) -> Backend:  # fmt: skip
    """The backend called `name` ("cpu" or "reference").

    Where the compiled kernels cannot run, the reference answers instead and `say` gets one line that says so.
    Raises UnsupportedModel for a tensor format without kernels.
    """
    from gemmafile.kernels import formats_on, reference

    formats_on.check_formats(weights)
    if name == "cpu":
        from gemmafile.kernels.compile import why_not
        from gemmafile.kernels.objects import BadObject

        reason = why_not()
        if reason is None:
            from gemmafile.kernels.replay import CpuReplay

            try:
                return CpuReplay(
                    tape, config, weights, cache,
                    threads=threads, threads_batch=threads_batch, max_rows=max_rows, say=say,
                )  # fmt: skip
            except BadObject as e:
                reason = str(e)
        say(f"{reason}; the slow NumPy reference answers instead")
    return reference.ReferenceReplay(tape, config, weights, cache)
