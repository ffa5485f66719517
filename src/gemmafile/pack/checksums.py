"""CRC-32 of a stream as a whole and of its parts, in one pass: the whole's is put together from the parts'.

It is how a damaged chunk of weights is traced to the tensor: a manifest has the CRC-32 of each. What it is not is
proof: that is SHA-256's business (hashing.py).
Source: RFC 1952, section 8; the product of polynomials modulo the CRC's, as in zlib's crc32_combine.
"""

from __future__ import annotations

import bisect
import zlib
from collections.abc import Iterable

_POLYNOMIAL = 0xEDB88320
_ONE, _X8 = 1 << 31, 1 << 23  # 1 and x^8: the highest bit is the coefficient of x^0


def _multiply(a: int, b: int) -> int:
    product, bit = 0, _ONE
    while bit:
        if a & bit:
            product ^= b
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
        bit >>= 1
    return product


def join_crc(first: int, second: int, n_bytes: int) -> int:
    """CRC-32 of two texts one behind the other, from theirs; the second has `n_bytes`."""
    power, base = _ONE, _X8
    while n_bytes:
        if n_bytes & 1:
            power = _multiply(power, base)
        base = _multiply(base, base)
        n_bytes >>= 1
    return _multiply(power, first) ^ second


class PartChecksums:
    """CRC-32 of a stream and of the parts (offset, bytes) of it; parts may touch and overlap."""

    def __init__(self, parts: Iterable[tuple[int, int]] = ()) -> None:
        self._cuts = sorted({0} | {at for offset, size in parts for at in (offset, offset + size)})
        self._found = [0] * len(self._cuts)
        self._at = 0

    def add(self, block: memoryview) -> None:
        """The next bytes of the stream."""
        while block:
            number = bisect.bisect_right(self._cuts, self._at) - 1
            last = number + 1 == len(self._cuts)
            here = block if last else block[: self._cuts[number + 1] - self._at]
            self._found[number] = zlib.crc32(here, self._found[number])
            self._at += len(here)
            block = block[len(here) :]

    @property
    def whole(self) -> int:
        return self.of(0, self._at)

    def of(self, offset: int, size: int) -> int:
        """Of a part that was asked for, as far as the stream had it."""
        ends = [*self._cuts[1:], max(self._at, self._cuts[-1])]
        crc, stop = 0, min(offset + size, self._at)
        for number in range(bisect.bisect_left(self._cuts, offset), len(self._cuts)):
            if self._cuts[number] >= stop:
                break
            crc = join_crc(crc, self._found[number], min(ends[number], stop) - self._cuts[number])
        return crc
