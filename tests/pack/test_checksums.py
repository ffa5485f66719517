"""CRC-32 of a whole from its parts': what zlib says of the same bytes."""

from __future__ import annotations

import random
import zlib

import pytest

from gemmafile.pack.checksums import PartChecksums, join_crc


@pytest.mark.parametrize("n_bytes", [0, 1, 7, 4096, 100_003])
def test_two_texts_one_behind_the_other(n_bytes: int) -> None:
    random_ = random.Random(n_bytes)
    first, second = random_.randbytes(333), random_.randbytes(n_bytes)
    assert join_crc(zlib.crc32(first), zlib.crc32(second), n_bytes) == zlib.crc32(first + second)


def test_parts_and_whole_whatever_the_blocks() -> None:
    raw = random.Random(1).randbytes(10_000)
    parts = [(100, 900), (1000, 1), (1001, 0), (5000, 5000), (4000, 2000), (0, 10)]  # they touch, overlap, leave gaps
    for size in (1, 7, 1000, 4096, 10_000):
        checksums = PartChecksums(parts)
        for at in range(0, len(raw), size):
            checksums.add(memoryview(raw)[at : at + size])
        assert checksums.whole == zlib.crc32(raw)
        assert [checksums.of(*part) for part in parts] == [zlib.crc32(raw[a : a + n]) for a, n in parts]


def test_a_stream_that_ends_early() -> None:
    checksums = PartChecksums([(10, 10), (30, 10)])
    checksums.add(memoryview(b"x" * 15))
    assert checksums.whole == zlib.crc32(b"x" * 15)
    assert checksums.of(10, 10) == zlib.crc32(b"x" * 5)
    assert checksums.of(30, 10) == 0


def test_without_parts_it_is_the_whole() -> None:
    checksums = PartChecksums()
    for block in (b"abc", b"", b"defg"):
        checksums.add(memoryview(block))
    assert checksums.whole == zlib.crc32(b"abcdefg")
