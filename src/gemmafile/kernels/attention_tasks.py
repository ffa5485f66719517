"""What attention has to do in a pass, cut into tasks: lists that all layers with one window share.

Runs of a sequence's rows are cut into tiles; where tiles are too few or too unequal for the threads, a tile is cut
into parts of one segment of positions each. How it is cut changes no bit (docs/numerics.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from gemmafile.kernels import attention as a
from gemmafile.kernels.arena import aligned_bytes
from gemmafile.kernels.attention_tiles import SEGMENT
from gemmafile.kernels.cache import CACHE_TYPES, KVCache
from gemmafile.model.batch import PAGE, Batch

TASKS_A_THREAD = 4
"""No tile of one kv head may be more than a share of 1 / (TASKS_A_THREAD * threads) of a layer's work, unless it is one
segment or there is no room for its parts."""


class AttentionTasks:
    """The lists of tasks of a pass, and what the kernels need beside them.

    `shape`  int64, address of what all layers share · `lists[window]`  address of the list of a window's layers
    """

    def __init__(self, cache: KVCache, windows: Iterable[int], max_rows: int):
        config = cache.config
        self._kinds = cache.kind_k, cache.kind_v
        self._n_kv, self._group = config.n_kv_heads, config.n_heads // config.n_kv_heads
        group = self._group
        self._tile_tokens = a.tile_tokens(group, cache.width)
        self._most_parts = cache.n_pages * PAGE // SEGMENT + max_rows
        n_entries = self._most_parts + max_rows
        part_bytes = a.partial_bytes(group, cache.width)
        self._partials = aligned_bytes(self._most_parts * self._n_kv * part_bytes)
        self._counters = aligned_bytes(8 * n_entries * self._n_kv)
        keys, values = cache.keys[0].strides, cache.values[0].strides
        self._shape = np.zeros(a.SHAPE_SLOTS, np.int64)
        fields = {
            a.S_KEY_PAGE: keys[0], a.S_KEY_HEAD: keys[1], a.S_KEY_BLOCK: keys[2], a.S_VALUE_PAGE: values[0],
            a.S_VALUE_HEAD: values[1], a.S_N_KV: self._n_kv, a.S_GROUP: group, a.S_HEAD_DIM: config.head_dim,
            a.S_WIDTH: cache.width, a.S_SIZE_K: CACHE_TYPES[cache.kind_k].n_bytes,
            a.S_SIZE_V: CACHE_TYPES[cache.kind_v].n_bytes, a.S_MOST_ROWS: a.most_rows(group, cache.width),
            a.S_PARTIALS: self._partials.ctypes.data, a.S_PARTIAL_BYTES: part_bytes,
            a.S_COUNTERS: self._counters.ctypes.data,
        }  # fmt: skip
        for at, value in fields.items():
            self._shape[at // 8] = value
        self._entries = {window: np.zeros((n_entries, a.ENTRY_BYTES // 8), np.int64) for window in set(windows)}
        self._headers = {window: np.zeros(2, np.int64) for window in self._entries}
        for window, header in self._headers.items():
            header[a.ENTRIES // 8] = self._entries[window].ctypes.data
        self.shape = int(self._shape.ctypes.data)
        self.lists = {window: int(header.ctypes.data) for window, header in self._headers.items()}

    def kernels(self, n_rows: int) -> dict[int, str]:
        """The kernels that attention calls in a pass of so many rows, by their places in the shape."""
        names = {a.S_TILES_K: self._kinds[0], a.S_TILES_V: self._kinds[1]}
        if n_rows * self._group > a.FEW_ROWS:
            names[a.S_TILES_F32] = "f32"
        return {at: f"attention_tiles.{kind}" for at, kind in names.items()}

    @property
    def buffers(self) -> Sequence[np.ndarray]:
        """Memory that nothing is kept in from pass to pass: zeros will do."""
        return self._partials, self._counters

    @property
    def all_kernels(self) -> set[str]:
        return set(self.kernels(a.FEW_ROWS + 1).values())

    def set_kernels(self, addresses: dict[int, int]) -> None:
        """Addresses of those kernels."""
        for at, address in addresses.items():
            self._shape[at // 8] = address

    def fill(self, batch: Batch, row_tables: np.ndarray, threads: int) -> None:
        """The tasks of a pass. row_tables int64[T]: address of each row's page table."""
        tiles = []
        for first, length in batch.runs():
            for start in range(first, first + length, self._tile_tokens):
                n = min(self._tile_tokens, first + length - start)
                tiles.append((start, n, int(row_tables[start]), int(batch.positions[start])))
        tiles.reverse()  # the last see the most: they go first, so that no thread has a long one at the end
        for window, header in self._headers.items():
            entries = self._cut(tiles, window, threads)
            self._entries[window][: len(entries)] = entries
            header[a.N_TASKS // 8] = len(entries)

    def _cut(self, tiles: list[tuple[int, int, int, int]], window: int, threads: int) -> list[tuple[int, ...]]:
        lows = [max(0, position - window + 1) if window else 0 for *_, position in tiles]
        work = [n * (position + n - low) for low, (_, n, _, position) in zip(lows, tiles, strict=True)]
        most = sum(work) * self._n_kv / (TASKS_A_THREAD * threads) if threads > 1 else float("inf")
        entries: list[tuple[int, ...]] = []
        slot = counter = 0
        for low, amount, tile in zip(lows, work, tiles, strict=True):
            _, n, _, position = tile
            first, last = low // SEGMENT, (position + n - 1) // SEGMENT
            parts = last - first + 1
            if parts == 1 or amount <= most or slot + parts * n > self._most_parts:
                entries.append((*tile, first, last, last, 0, 1, 0, 0))
                continue
            entries += [(*tile, first + i, first + i, last, i, parts, slot, counter) for i in range(parts)]
            slot += parts * n
            counter += self._n_kv
        return entries
