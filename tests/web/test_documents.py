"""Dropped files to text, in this process and in the confined one."""

from __future__ import annotations

import base64
import contextlib
import io
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest

from gemmafile.errors import BadSettings
from gemmafile.web import worker
from gemmafile.web.documents import MAX_CHARS, extract_text
from gemmafile.web.worker import Worker


def make_pdf(*pages: str) -> bytes:
    """A PDF of these lines, one a page."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"", b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    kids = []
    for text in pages:
        content = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET".encode()
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content))
        resources = "/Resources << /Font << /F1 3 0 R >> >>"
        page = f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {len(objects)} 0 R {resources} >>"
        objects.append(page.encode())
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>".encode()
    out = io.BytesIO()
    out.write(b"%PDF-1.4\n")
    places = []
    for i, content in enumerate(objects, 1):
        places.append(out.tell())
        out.write(b"%d 0 obj\n%s\nendobj\n" % (i, content))
    start = out.tell()
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    out.write(b"".join(b"%010d 00000 n \n" % place for place in places))
    out.write(b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start))
    return out.getvalue()


@pytest.fixture(scope="module")
def child() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.close()


def call(child: Worker, name: str, raw: bytes, seconds: float = 60) -> Any:
    return child.call_now("extract", seconds, {"name": name, "data": base64.b64encode(raw).decode()})


def test_a_pdf(child: Worker) -> None:
    found = call(child, "a.pdf", make_pdf("Hello there", "Second page"))
    assert found == {"kind": "pdf", "text": "Hello there\n\nSecond page", "pages": 2, "note": ""}


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("Grüße".encode(), "Grüße"),
        ("Grüße".encode("cp1252"), "Grüße"),
        (b"\xef\xbb\xbfx", "x"),
        (b"\xff\xfe" + "é😀".encode("utf-16-le"), "é😀"),
        (b"", ""),
    ],
)
def test_encodings(raw: bytes, text: str) -> None:
    assert extract_text("a.txt", raw)["text"] == text


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"PK\3\4rest", "ZIP"),
        (b"\x89PNG\r\n", "picture"),
        (b"GGUF\3", "model"),
        (b"a\0b", "not text"),
        (b"\x7fELF", "program"),
    ],
)
def test_what_is_no_text_is_named(raw: bytes, what: str) -> None:
    with pytest.raises(BadSettings, match=what):
        extract_text("file", raw)


def test_a_long_text_is_cut_and_that_is_said() -> None:
    found = extract_text("a.txt", b"x" * (MAX_CHARS + 5))
    assert len(found["text"]) == MAX_CHARS
    assert "only the first" in found["note"]


@pytest.mark.parametrize("raw", [b"%PDF-1.4", b"%PDF-1.7\n" + b"\0" * 500, make_pdf("x")[:200], make_pdf("")])
def test_broken_and_empty_pdfs_are_refused(child: Worker, raw: bytes) -> None:
    with pytest.raises(BadSettings):
        call(child, "a.pdf", raw)


def test_mutated_pdfs(child: Worker, full: bool) -> None:
    """Text or a refusal, never anything else; the child lives on or another takes its place."""
    seed = make_pdf("Some words", "and more", "words")
    rng = random.Random(3)
    for _ in range(2000 if full else 60):
        raw = bytearray(seed)
        for _ in range(rng.randint(1, 12)):
            at = rng.randrange(len(raw))
            raw[at : at + rng.randint(0, 4)] = bytes(rng.choices(b"0123456789 /<>[]()RX\n\xff", k=rng.randint(0, 4)))
        with contextlib.suppress(BadSettings):
            assert isinstance(call(child, "a.pdf", bytes(raw), 20)["text"], str)
    assert call(child, "a.pdf", seed)["pages"] == 3


# --- the child -------------------------------------------------------------------------------------------------------


@pytest.fixture
def obedient() -> Iterator[Worker]:
    made = Worker("tests.web.child_functions")
    yield made
    made.close()


def test_a_call_that_takes_too_long_ends_and_the_next_one_works(obedient: Worker) -> None:
    assert obedient.call_now("add", 30, {"a": 1, "b": 2}) == 3
    start = time.monotonic()
    with pytest.raises(BadSettings, match=r"longer than 0\.3 s"):
        obedient.call_now("sleep", 0.3, {"seconds": 50})
    assert time.monotonic() - start < 20
    assert obedient.call_now("add", 30, {"a": 1, "b": 2}) == 3


def test_a_slow_start_is_not_the_calls() -> None:
    made = Worker("tests.web.slow_to_start")
    try:
        assert made.call_now("add", 1.0, {"a": 1, "b": 2}) == 3
    finally:
        made.close()


def test_a_child_that_dies_is_replaced(obedient: Worker) -> None:
    assert obedient.call_now("add", 30, {"a": 1, "b": 2}) == 3
    assert obedient._process is not None
    obedient._process.kill()
    obedient._process.wait()
    assert obedient.call_now("add", 30, {"a": 2, "b": 2}) == 4


def test_the_child_writes_nothing_and_connects_to_nobody(obedient: Worker, tmp_path: Any) -> None:
    from gemmafile.pack import confine

    if not confine.has_seccomp():
        pytest.skip("this system has no seccomp")
    for what in ("file", "socket"):
        assert obedient.call_now("attempt", 30, {"what": what, "path": str(tmp_path / "x")}) == "PermissionError"
    assert not (tmp_path / "x").exists()


def test_the_childs_memory_is_bounded(obedient: Worker) -> None:
    with pytest.raises(BadSettings, match="MemoryError"):
        obedient.call_now("fill", 30, {"n_bytes": 2 * worker.MEMORY_BYTES})
    assert obedient.call_now("add", 30, {"a": 1, "b": 2}) == 3
