"""Damage to GGUF files, by the thousand and repeatable: the same seed gives the same mutants.

    for name, mutant in mutants(path.read_bytes(), n=1000, seed=1): ...
    python -m tests.files.mutate MODEL.gguf FOLDER --count 1000 --seed 1

The damage knows where the fields of a sound file stand: counts, lengths, types, dimensions, offsets, values.
Give it small files: each mutant is a copy.
"""

from __future__ import annotations

import argparse
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

STRING, ARRAY, BOOL = 8, 9, 7
SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
FLOATS = {6: "<f", 12: "<d"}
SPANS_OF_AN_ARRAY = 4
"""Of a long array of strings, this many items at each end have fields to be damaged."""


class Span(NamedTuple):
    """A field of a sound file. `kind`: count, length, type, dim, offset, int, float, text, items, entry."""

    kind: str
    start: int
    size: int


def find_spans(data: bytes) -> tuple[list[Span], int]:
    """The fields of a sound GGUF file, and where its header ends."""
    spans = [Span("magic", 0, 4), Span("type", 4, 4), Span("count", 8, 8), Span("count", 16, 8)]
    n_tensors, n_keys = struct.unpack_from("<QQ", data, 8)
    position = 24
    for _ in range(n_keys):
        start = position
        position = _span_text(data, position, spans)
        type_id = struct.unpack_from("<I", data, position)[0]
        spans.append(Span("type", position, 4))
        position = _span_value(data, position + 4, type_id, spans)
        spans.append(Span("entry", start, position - start))
    for _ in range(n_tensors):
        start = position
        position = _span_tensor(data, position, spans)
        spans.append(Span("entry", start, position - start))
    return spans, position


def _span_text(data: bytes, position: int, spans: list[Span]) -> int:
    length = struct.unpack_from("<Q", data, position)[0]
    spans += [Span("length", position, 8), Span("text", position + 8, length)]
    return position + 8 + length


def _span_value(data: bytes, position: int, type_id: int, spans: list[Span]) -> int:
    if type_id == STRING:
        return _span_text(data, position, spans)
    if type_id != ARRAY:
        spans.append(Span("float" if type_id in FLOATS else "int", position, SCALAR_BYTES[type_id]))
        return position + SCALAR_BYTES[type_id]
    item_type, count = struct.unpack_from("<IQ", data, position)
    spans += [Span("type", position, 4), Span("count", position + 4, 8)]
    position += 12
    if item_type in SCALAR_BYTES:
        spans.append(Span("items", position, count * SCALAR_BYTES[item_type]))
        return position + count * SCALAR_BYTES[item_type]
    for i in range(count):
        at_an_end = i < SPANS_OF_AN_ARRAY or i >= count - SPANS_OF_AN_ARRAY
        position = _span_value(data, position, item_type, spans if at_an_end else [])
    return position


def _span_tensor(data: bytes, position: int, spans: list[Span]) -> int:
    position = _span_text(data, position, spans)
    n_dims = struct.unpack_from("<I", data, position)[0]
    spans.append(Span("type", position, 4))
    spans += [Span("dim", position + 4 + 8 * i, 8) for i in range(n_dims)]
    position += 4 + 8 * n_dims
    spans += [Span("type", position, 4), Span("offset", position + 4, 8)]
    return position + 12


class Sound(NamedTuple):
    """A sound file and what is known of it."""

    data: bytes
    spans: list[Span]
    header_end: int

    def pick(self, rng: random.Random, *kinds: str) -> Span:
        return rng.choice([span for span in self.spans if (not kinds or span.kind in kinds) and span.size])

    def replace(self, span: Span, new: bytes) -> bytes:
        return self.data[: span.start] + new + self.data[span.start + span.size :]


def flip_bits(rng: random.Random, file: Sound) -> bytes:
    data = bytearray(file.data)
    end = file.header_end if rng.random() < 0.8 else len(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        data[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return bytes(data)


def truncate(rng: random.Random, file: Sound) -> bytes:
    span = file.pick(rng)
    cut = rng.choice((span.start, span.start + 1, span.start + span.size - 1, rng.randrange(len(file.data))))
    return file.data[:cut]


def edit_number(rng: random.Random, file: Sound) -> bytes:
    """A count, length, dimension, offset, type or integer gets an awkward value."""
    span = file.pick(rng, "count", "length", "dim", "offset", "type", "int")
    top = 1 << (8 * span.size)
    old = int.from_bytes(file.data[span.start : span.start + span.size], "little")
    awkward = (
        0,
        1,
        2,
        3,
        7,
        old - 1,
        old + 1,
        2 * old,
        old // 2,
        len(file.data),
        top - 1,
        top - 8,
        top // 2,
        top // 2 - 1,
    )
    powers = (1 << rng.randrange(8 * span.size), rng.randrange(top), rng.randrange(64))
    return file.replace(span, (rng.choice(awkward + powers) % top).to_bytes(span.size, "little"))


def edit_float(rng: random.Random, file: Sound) -> bytes:
    if not any(span.kind == "float" for span in file.spans):
        return flip_bits(rng, file)
    span = file.pick(rng, "float")
    value = rng.choice((float("nan"), float("inf"), float("-inf"), 0.0, -1.0, 1e38, -1e-38, rng.gauss(0, 1e6)))
    return file.replace(span, struct.pack("<f" if span.size == 4 else "<d", value))


def edit_text(rng: random.Random, file: Sound) -> bytes:
    """Bytes of a string change: to no UTF-8, to control characters, to nothing; the length stays."""
    span = file.pick(rng, "text")
    old = bytearray(file.data[span.start : span.start + span.size])
    old[rng.randrange(span.size)] = rng.choice(
        (0x00, 0x0A, 0x1B, 0x22, 0x7B, 0x80, 0xC0, 0xF0, 0xFF, rng.randrange(256))
    )
    return file.replace(span, bytes(old))


def grow_text(rng: random.Random, file: Sound) -> bytes:
    """A string becomes empty, longer, or another; its length agrees."""
    length = file.pick(rng, "length")
    size = int.from_bytes(file.data[length.start : length.start + 8], "little")
    other = file.pick(rng, "text")
    old = file.data[length.start + 8 : length.start + 8 + size]
    new = rng.choice((b"", old * 2, b"x" * rng.choice((63, 64, 255, 256, 65535, 65536, 70000)), old[:-1]))
    new = rng.choice((new, file.data[other.start : other.start + other.size]))
    return file.replace(Span("", length.start, 8 + size), struct.pack("<Q", len(new)) + new)


def scramble(rng: random.Random, file: Sound) -> bytes:
    """A stretch becomes zeros, ones, or noise."""
    start = rng.randrange(file.header_end)
    size = min(rng.choice((4, 8, 16, 64, 256)), len(file.data) - start)
    return file.replace(Span("", start, size), rng.choice((bytes(size), b"\xff" * size, rng.randbytes(size))))


def copy_field(rng: random.Random, file: Sound) -> bytes:
    """A field takes the value of another of its kind: the same name, offset or type twice."""
    span = file.pick(rng)
    other = rng.choice([s for s in file.spans if s.kind == span.kind])
    return file.replace(span, file.data[other.start : other.start + other.size])


def move_chunk(rng: random.Random, file: Sound) -> bytes:
    """A stretch, or a whole entry, is doubled, dropped, or put elsewhere; half the time the counts agree."""
    span = (
        file.pick(rng, "entry") if rng.random() < 0.7 else Span("", rng.randrange(file.header_end), rng.randrange(200))
    )
    chunk = file.data[span.start : span.start + span.size]
    action = rng.choice(("double", "drop", "move"))
    if action == "drop":
        return _count_keys(file.replace(span, b""), -1 if rng.random() < 0.5 else 0)
    if action == "double":
        return _count_keys(file.replace(span, chunk + chunk), 1 if rng.random() < 0.5 else 0)
    goal = file.pick(rng, "entry").start
    return file.data[:goal] + chunk + file.data[goal:]


def nest_arrays(rng: random.Random, file: Sound) -> bytes:
    """A first key is added that holds arrays in arrays, deep or many."""
    depth, width = rng.choice(((1, 3), (2, 3), (7, 1), (8, 1), (9, 1), (2000, 1), (1, 20000), (3, 30)))
    payload = struct.pack("<IQ", 4, 1) + struct.pack("<I", 7)
    for _ in range(depth):
        payload = struct.pack("<IQ", ARRAY, width) + payload * width
        if len(payload) > 1 << 20:
            break
    name = b"mutant.nested"
    entry = struct.pack("<Q", len(name)) + name + struct.pack("<I", ARRAY) + payload
    return _count_keys(file.data[:24] + entry + file.data[24:], 1)


def append_junk(rng: random.Random, file: Sound) -> bytes:
    return file.data + rng.randbytes(rng.randrange(1, 4096))


def mix(rng: random.Random, file: Sound) -> bytes:
    """Two kinds of damage, the second one blind."""
    data = bytearray(rng.choice(MUTATIONS[:-1])(rng, file))
    for _ in range(rng.randrange(4) if data else 0):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def _count_keys(data: bytes, change: int) -> bytes:
    n_keys = struct.unpack_from("<Q", data.ljust(24, b"\0"), 16)[0]
    return data[:16] + struct.pack("<Q", (n_keys + change) % (1 << 64)) + data[24:]


Mutation = Callable[[random.Random, Sound], bytes]
MUTATIONS: tuple[Mutation, ...] = (
    flip_bits,
    truncate,
    edit_number,
    edit_number,
    edit_number,
    edit_float,
    edit_text,
    grow_text,
    scramble,
    copy_field,
    copy_field,
    move_chunk,
    nest_arrays,
    append_junk,
    mix,
)


def mutants(data: bytes, n: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """`n` damaged copies of the sound GGUF file `data`, each with a name that tells its kind and number.

    Mutant number i depends on the seed and i alone: it can be made again without the ones before.
    """
    file = Sound(data, *find_spans(data))
    for i in range(n):
        rng = random.Random(f"{seed}/{i}")
        mutation = rng.choice(MUTATIONS)
        yield f"{seed}-{i}-{mutation.__name__}", mutation(rng, file)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write damaged copies of a GGUF file.")
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, mutant in mutants(args.model.read_bytes(), args.count, args.seed):
        (args.folder / f"{name}.gguf").write_bytes(mutant)


if __name__ == "__main__":
    main()
