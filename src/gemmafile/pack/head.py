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


def parts(slot: int, runtimes: list[Runtime], pythons: list[str]) -> tuple[bytes, Part, Part, Part]:
    """A slot's bytes, and where start.sh, boot.py and unpack.py lie in it.

    The script's hash is of its text with one newline at the end: what a shell has after it read whole blocks of it.
    """
    start = _fill(
        text("start.sh"),
        RUNTIMES="\n".join(map(_row, runtimes)) or "none) ;;",
        PYTHONS=" ".join(f"python{version}" for version in pythons),
        PYTHON_LIST=" or ".join(pythons) or "3.11",
    ).encode()
    digest = hashlib.sha256(start.rstrip(b"\n") + b"\n").hexdigest()
    start = start.ljust(-(-len(start) // _BLOCK) * _BLOCK, b"\n")
    boot, boot_part = python_part("boot.py", SLOTS[slot] + len(start))
    unpack, unpack_part = python_part("unpack.py", SLOTS[slot] + len(start) + len(boot))
    content = start + boot + unpack
    if len(content) > SLOT_BYTES:
        raise GemmafileError(f"the head's code has {len(content)} bytes, and its slot {SLOT_BYTES}")
    return content.ljust(SLOT_BYTES, b"\n"), (SLOTS[slot], len(start), digest), boot_part, unpack_part


def page(script_part: Part, boot: Part, index: Part) -> bytes:
    """Page 0: whoever writes it changes the file from one edition to another."""
    python = _PYTHON.format(boot=boot, index=index)
    assert not set(python) & set('"$`%!\\\n'), "the same text stands in sh's and cmd's double quotes"
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
