"""What a file that is no GGUF looks like, in words for an error message."""

from __future__ import annotations

import re

HEAD_BYTES = 512
"""How much of a file's beginning `describe_content` looks at."""

_MAGICS: tuple[tuple[bytes, str], ...] = (
    (b"lmgg", "is a GGML file from before GGUF: convert the model again"),
    (b"fmgg", "is a GGMF file from before GGUF: convert the model again"),
    (b"tjgg", "is a GGJT file from before GGUF: convert the model again"),
    (b"\x89PNG", "is a PNG image"),
    (b"\xff\xd8\xff", "is a JPEG image"),
    (b"GIF8", "is a GIF image"),
    (b"%PDF", "is a PDF document"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the model itself: run `git lfs pull`"),
    (b"MZqFpD", "is an Actually Portable Executable (a llamafile?)"),
    (b"MZ", "is a Windows program"),
    (b"\x7fELF", "is an ELF program"),
    (b"PK\x03\x04", "is a ZIP archive (or a PyTorch checkpoint)"),
    (b"\x1f\x8b", "is a gzip archive: unpack it first"),
    (b"\xfd7zXZ", "is an xz archive: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is a Zstandard archive: unpack it first"),
    (b"BZh", "is a bzip2 archive: unpack it first"),
    (b"7z\xbc\xaf", "is a 7z archive: unpack it first"),
    (b"Rar!", "is a RAR archive: unpack it first"),
    (b"\x93NUMPY", "is a NumPy array"),
    (b"\x89HDF", "is an HDF5 file"),
    (b"PAR1", "is a Parquet file"),
    (b"SQLite format 3", "is an SQLite database"),
    *((bytes([0x80, protocol]), "is a Python pickle (an old PyTorch checkpoint?)") for protocol in range(2, 6)),
    (b"#!", "is a script"),
)


def describe_content(head: bytes, n_bytes: int) -> str:
    """ "is a PNG image" for the first HEAD_BYTES of a file of `n_bytes`; what it starts with when unknown."""
    for magic, words in _MAGICS:
        if head.startswith(magic):
            return words
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= n_bytes - 8:
        return "is a safetensors file"
    if head[257:262] == b"ustar":
        return "is a tar archive: unpack it first"
    if not any(head):
        return "starts with zeros (an unfinished download?)"
    return _describe_text(head) or f"starts with {head[:8]!r}"


def _describe_text(head: bytes) -> str | None:
    """The same for text, None for other bytes."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return "is HTML (a web page saved in place of the model?)"
    if text.startswith(b"<?xml"):
        return "is XML"
    if re.search(rb"[^\t\n\r\x20-\x7e\x80-\xff]", head):
        return None
    if text.startswith((b"{", b"[")):
        return "is JSON text"
    try:
        head[:-3].decode()  # a character may be cut at the end
    except UnicodeDecodeError as error:
        if error.start < len(head) - 7:
            return None
    return "is a text file"
