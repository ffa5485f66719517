"""tokenizer.model: SentencePiece's protocol buffer, read for its pieces.

ModelProto   1: pieces (repeated)   2: trainer_spec
piece        1: text   2: score, float32   3: type, as in `tokenizer.ggml.token_type`
trainer_spec 3: model_type, 1 unigram (when missing), 2 BPE
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gemmafile.errors import BadFile, UnsupportedModel

MAX_PIECES = 1 << 22
NORMAL, BYTE = 1, 6
_BPE = 2


class Piece(NamedTuple):
    text: str
    score: float
    type: int


def read_pieces(path: Path, raw: bytes) -> list[Piece]:
    """The pieces by their ids. Raises BadFile for what is no such file, UnsupportedModel for another kind of model."""
    pieces: list[Piece] = []
    kind = 1
    for number, value in _fields(path, raw, 0, len(raw)):
        if number == 1 and isinstance(value, tuple):
            pieces.append(_read_piece(path, raw, *value, len(pieces)))
        elif number == 2 and isinstance(value, tuple):
            kinds = [v for n, v in _fields(path, raw, *value) if n == 3 and isinstance(v, int)]
            kind = kinds[-1] if kinds else kind
    if not pieces or len(pieces) > MAX_PIECES:
        raise BadFile(path, f"has {len(pieces)} pieces: no SentencePiece model, or not all of it")
    if kind != _BPE:
        raise UnsupportedModel(path, f"is a SentencePiece model of kind {kind}, expected BPE (2)")
    return pieces


def _read_piece(path: Path, raw: bytes, start: int, end: int, number: int) -> Piece:
    text, score, kind = "", 0.0, NORMAL
    for field, value in _fields(path, raw, start, end):
        if field == 1 and isinstance(value, tuple):
            try:
                text = raw[value[0] : value[1]].decode()
            except UnicodeDecodeError:
                raise BadFile(path, "is not UTF-8", field=f"piece {number}", byte=value[0]) from None
        elif field == 2 and isinstance(value, float):
            score = value
        elif field == 3 and isinstance(value, int):
            kind = value
    if not 1 <= kind <= BYTE or not abs(score) < 1e30:
        raise BadFile(path, f"has type {kind} and score {score}", field=f"piece {number}", byte=start)
    return Piece(text, score, kind)


def _fields(path: Path, raw: bytes, at: int, end: int) -> Iterator[tuple[int, int | float | tuple[int, int]]]:
    """(field number, value): an int, a float32, or the (start, end) of bytes."""
    while at < end:
        start = at
        tag, at = _varint(path, raw, at, end)
        kind = tag & 7
        value: int | float | tuple[int, int]
        if kind == 0:
            value, at = _varint(path, raw, at, end)
        elif kind == 2:
            size, at = _varint(path, raw, at, end)
            value, at = (at, at + size), at + size
        elif kind == 5 and at + 4 <= end:
            value, at = struct.unpack_from("<f", raw, at)[0], at + 4
        elif kind == 1:
            value, at = 0, at + 8
        else:
            raise BadFile(path, "is no SentencePiece model", byte=start)
        if at > end:
            raise BadFile(path, "is cut short, or no SentencePiece model", byte=start)
        yield tag >> 3, value


def _varint(path: Path, raw: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 64:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise BadFile(path, "is cut short, or no SentencePiece model", byte=at)
