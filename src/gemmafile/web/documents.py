"""A dropped file to text: text of any kind by its encoding, PDF by pypdf. Anything else is refused by name.

A PDF is a program of sorts: it is read in a process that can be stopped (worker.py), page by page, up to bounds.
"""

from __future__ import annotations

import codecs
import io
import logging
from typing import Any, Final

from gemmafile.errors import BadSettings

MAX_BYTES: Final = 32 << 20
MAX_CHARS: Final = 2_000_000
MAX_PAGES: Final = 1000

_BOMS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_BINARY: Final = {
    b"PK\3\4": "a ZIP archive or an office document", b"\x89PNG": "a picture", b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture", b"\x7fELF": "a program", b"MZ": "a program", b"\x1f\x8b": "a compressed file",
    b"GGUF": "a model", b"\xd0\xcf\x11\xe0": "an old office document", b"7z\xbc\xaf": "an archive",
}  # fmt: skip


def extract_text(name: str, raw: bytes) -> dict[str, Any]:
    """{"kind": "pdf" or "text", "text", "pages": of a PDF, "note": what had to be left out, or ""}.

    Raises BadSettings for a file that holds no text.
    """
    if b"%PDF-" in raw[:1024]:
        return _read_pdf(name, raw)
    text = _decode(name, raw)
    note = "" if len(text) <= MAX_CHARS else f"only the first {MAX_CHARS:,} characters"
    return {"kind": "text", "text": text[:MAX_CHARS], "pages": None, "note": note}


def _decode(name: str, raw: bytes) -> str:
    for mark, encoding in _BOMS:
        if raw.startswith(mark):
            return raw[len(mark) :].decode(encoding, "replace")
    what = next((what for magic, what in _BINARY.items() if raw.startswith(magic)), None)
    if what is not None or b"\0" in raw[:65536]:
        raise BadSettings(f"{name!r} is {what or 'not text'}: text, Markdown, source code and PDF can be read")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("cp1252", "replace")


def _read_pdf(name: str, raw: bytes) -> dict[str, Any]:
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    parts: list[str] = []
    notes: list[str] = []
    try:
        reader = PdfReader(io.BytesIO(raw))
        if reader.is_encrypted and not reader.decrypt(""):
            raise BadSettings(f"{name!r} is locked with a password")
        n_pages = len(reader.pages)
        n_chars, n_failed = 0, 0
        for i in range(min(n_pages, MAX_PAGES)):
            try:
                parts.append(reader.pages[i].extract_text())
            except BadSettings:
                raise
            except Exception:  # one broken page is no reason to lose the others
                n_failed += 1
                continue
            n_chars += len(parts[-1])
            if n_chars > MAX_CHARS:
                notes.append(f"only the first {i + 1} of {n_pages} pages")
                break
    except (PyPdfError, ValueError, KeyError, TypeError, AttributeError, IndexError, OSError, RecursionError) as error:
        raise BadSettings(f"{name!r} is a PDF that cannot be read: {type(error).__name__}") from None
    if n_pages > MAX_PAGES and not notes:
        notes.append(f"only the first {MAX_PAGES} of {n_pages} pages")
    if n_failed:
        notes.append(f"{n_failed} pages could not be read")
    text = "\n\n".join(part.strip() for part in parts if part.strip())[:MAX_CHARS]
    if not text:
        raise BadSettings(f"{name!r} holds no text: it may be a scan")
    return {"kind": "pdf", "text": text, "pages": n_pages, "note": "; ".join(notes)}
