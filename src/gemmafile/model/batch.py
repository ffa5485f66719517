"""A batch: the rows of one pass, whatever they belong to.

Row t is one token: its id, its position, and the sequence it belongs to, whose page table says where the
keys and values of earlier positions lie. A single user reading a prompt, sixteen users decoding and a draft
being checked are all the same thing. One sequence is the case n = 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PAGE = 128
"""Positions in a page of the KV cache."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """The rows of one pass; rows of a sequence stand together, positions ascending by one.

    token_ids    int32[T]
    positions    int32[T]  of each row in its sequence
    sequences    int32[T]  row -> row of `page_tables`, ascending
    page_tables  int32[n, P]  position p of sequence s lies in page page_tables[s, p // PAGE]
    outputs      int32[n_outputs]  rows whose logits are wanted, ascending
    """

    token_ids: np.ndarray
    positions: np.ndarray
    sequences: np.ndarray
    page_tables: np.ndarray
    outputs: np.ndarray

    @property
    def n_rows(self) -> int:
        return len(self.token_ids)

    def runs(self) -> list[tuple[int, int]]:
        """(first row, number of rows) of each sequence in the batch."""
        starts = np.flatnonzero(np.diff(self.sequences, prepend=-1))
        ends = np.append(starts[1:], self.n_rows)
        return [(int(a), int(b - a)) for a, b in zip(starts, ends, strict=True)]
