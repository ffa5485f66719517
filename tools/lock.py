"""Writes requirements.lock (runtime and tests) and requirements-check.lock (what `make check` adds).

    python tools/lock.py          (about a minute: it installs everything into a scratch environment)

Takes the newest versions that pyproject.toml allows; local labels such as +cpu are dropped, so that any build of a
release satisfies the lock.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOT_LOCKED = {"pip", "gemmafile"}


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder, "bin", "python")
        base = _install_and_list(python, "setuptools>=77", f"{ROOT}[test]")
        everything = _install_and_list(python, f"{ROOT}[test,check]")
    _write("requirements.lock", "Runtime and tests", sorted(base, key=str.lower))
    _write(
        "requirements-check.lock",
        "What `make check` adds",
        ["-r requirements.lock", *sorted(everything - base, key=str.lower)],
    )
    return 0


def _install_and_list(python: Path, *requirements: str) -> set[str]:
    """Installs and returns every package there is now as name==version."""
    subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze"], check=True, capture_output=True, text=True
    )
    pins = (line.partition("+")[0] for line in listed.stdout.split())
    return {pin for pin in pins if pin.partition("==")[0] not in NOT_LOCKED}


def _write(name: str, title: str, lines: list[str]) -> None:
    target = ROOT / name
    partial = target.with_suffix(".partial")
    partial.write_text(f"# {title}; made by tools/lock.py from pyproject.toml.\n" + "\n".join(lines) + "\n")
    os.replace(partial, target)
    print(f"{name}: {len(lines)} lines")


if __name__ == "__main__":
    sys.exit(main())
