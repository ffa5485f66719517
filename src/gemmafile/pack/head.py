"""The head: page 0 and a slot, filled in from the texts beside this file. Next: start.sh, boot.py, unpack.py."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from gemmafile.errors import GemmafileError
from gemmafile.pack.layout import PAGE, SLOT_BYTES, SLOTS

_PYTHON = (
    "import sys;f=open(sys.argv[1],'rb');f.seek({boot[0]});b=f.read({boot[1]});I=({index[0]},{index[1]},'{index[2]}');"
    "__import__('_sha2'if sys.version_info>(3,12)else'_sha256').sha256(b).hexdigest()=='{boot[2]}'"
    "or sys.exit('gemmafile: the boot code in this file is damaged');exec(compile(b,'boot.py','exec'))"
)

_BLOCK = 2048
"""What head.sh reads its script by; both slots begin at a multiple of it."""

assert all(offset % _BLOCK == 0 for offset in SLOTS)

_CHECKED = (
    "import sys,os;p=sys.argv.pop(1);"
    "__import__('_sha2'if sys.version_info>(3,12)else'_sha256').sha256(os.fsencode(p)).hexdigest()=='{digest}'"
    "or sys.exit('gemmafile: the first page of '+sys.argv[1]+' is damaged');exec(p)"
)
"""How start.sh has Python run page 0's line: itself part of start.sh, so that page 0's hash of that covers both."""

Part = tuple[int, int, str]
"""(offset, bytes, SHA-256 in hex) of a part of the file"""


@dataclass(frozen=True)
class Runtime:
    """A Python in the file, as the head must know it.

    `system`  what `uname -sm` says · `key` of its folder in the cache · `part` its tarball
    `program` inside the tarball · `loader` that starts it, or "" · `megabytes` unpacked
    """

    system: str
    key: str
    part: Part
    program: str
    loader: str
    megabytes: int


def text(name: str) -> str:
    """One of the texts beside this file."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def python_part(name: str, slot_offset: int) -> tuple[bytes, Part]:
    content = text(name).encode()
    return content, (slot_offset, len(content), hashlib.sha256(content).hexdigest())


@dataclass(frozen=True)
class Slot:
    """A slot before its script knows page 0's line. `number` 0 or 1 · `start` the script, one value still to be filled
    in · `boot`, `unpack` where those lie, and `code` their bytes"""

    number: int
    start: str
    boot: Part
    unpack: Part
    code: bytes


def lay_out(slot: int, runtimes: list[Runtime], pythons: list[str], is_private: bool) -> Slot:
    """A slot's texts and where they lie. is_private  the file's own arguments say --private"""
    start = _fill(
        text("start.sh"),
        RUNTIMES="\n".join(map(_row, runtimes)) or "none) ;;",
        PYTHONS=" ".join(f"python{version}" for version in pythons),
        PYTHON_LIST=" or ".join(pythons) or "3.11",
        PRIVATE="yes" if is_private else "",
    )
    size = len(_finished(start, "0" * 64))
    boot, boot_part = python_part("boot.py", SLOTS[slot] + size)
    unpack, unpack_part = python_part("unpack.py", SLOTS[slot] + size + len(boot))
    if size + len(boot) + len(unpack) > SLOT_BYTES:
        raise GemmafileError(f"the head's code has {size + len(boot) + len(unpack)} bytes, and its slot {SLOT_BYTES}")
    return Slot(slot, start, boot_part, unpack_part, boot + unpack)


def _finished(start: str, digest: str) -> bytes:
    """start.sh with the hash of page 0's line in it, filled to whole blocks."""
    script = _fill(start, CHECKED=_CHECKED.format(digest=digest)).encode()
    return script.ljust(-(-len(script) // _BLOCK) * _BLOCK, b"\n")


def fill(slot: Slot, index: Part) -> tuple[bytes, bytes]:
    """(page 0, the slot) for the index's place.

    Whoever writes page 0 changes the file from one edition to another. The script's hash in it is of its text with one
    newline at the end: what a shell has after it read whole blocks of it.
    """
    python = _PYTHON.format(boot=slot.boot, index=index)
    assert not set(python + _CHECKED) & set('"$`%!\\\n'), "the same text stands in sh's and cmd's double quotes"
    script = _finished(slot.start, hashlib.sha256(python.encode()).hexdigest())
    digest = hashlib.sha256(script.rstrip(b"\n") + b"\n").hexdigest()
    content = (script + slot.code).ljust(SLOT_BYTES, b"\n")
    return _page(python, (SLOTS[slot.number], len(script), digest)), content


def _page(python: str, script_part: Part) -> bytes:
    batch = _fill(text("head.cmd").rstrip("\n"), PYTHON=python).replace("\n", "\r\n")
    script = _fill(
        text("head.sh"),
        CMD=batch + "\r",
        PYTHON=python,
        SCRIPT_SKIP=str(script_part[0] // _BLOCK),
        SCRIPT_COUNT=str(script_part[1] // _BLOCK),
        SCRIPT_SHA256=script_part[2],
    ).encode()
    if len(script) > PAGE:
        raise GemmafileError(f"the head's first page has {len(script)} bytes of {PAGE}")
    return script.ljust(PAGE, b"\n")


def _row(runtime: Runtime) -> str:
    offset, size, digest = runtime.part
    blocks = f"skip={offset // 65536} count={-(-size // 65536)} size={size} sha={digest}"
    start = f"exe={runtime.program} ld={runtime.loader} mb={runtime.megabytes}"
    return f'"{runtime.system}") rt={runtime.key} {blocks} {start} ;;'


def _fill(template: str, **values: str) -> str:
    for name, value in values.items():
        template = template.replace(f"@{name}@", value)
    return template
