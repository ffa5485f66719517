"""`gemmafile doctor`: what runs where, what this machine has, and what to do about what does not work here."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from gemmafile import __version__

MATRIX = {
    ("Linux", "x86_64"): ("proven", "machine code for AVX2 and AVX-512 (VNNI, AMX); Python inside; needs no C library"),
    ("Linux", "aarch64"): ("emulated", "run under qemu's emulator, never on a real CPU; Python inside"),
    ("macOS", "x86_64"): (
        "untested",
        "head and packages are written; a Python given by --runtime; NumPy answers, slowly",
    ),
    ("macOS", "aarch64"): (
        "untested",
        "head and packages are written; a Python given by --runtime; NumPy answers, slowly",
    ),
    ("Windows", "x86_64"): ("untested", "the cmd head is written; needs Python 3.11 or newer; NumPy answers, slowly"),
    ("Windows", "aarch64"): ("untested", "the cmd head is written; needs Python 3.12 or newer; NumPy answers, slowly"),
    ("FreeBSD", "x86_64"): ("untested", "sh head; Python and NumPy from the system's packages; NumPy answers, slowly"),
    ("FreeBSD", "aarch64"): ("untested", "sh head; Python and NumPy from the system's packages; NumPy answers, slowly"),
    ("OpenBSD", "x86_64"): ("untested", "sh head; Python and NumPy from the system's packages; NumPy answers, slowly"),
    ("OpenBSD", "aarch64"): ("untested", "sh head; Python and NumPy from the system's packages; NumPy answers, slowly"),
    ("NetBSD", "x86_64"): ("untested", "sh head; Python and NumPy from the system's packages; NumPy answers, slowly"),
    ("NetBSD", "aarch64"): ("untested", "sh head; Python and NumPy from the system's packages; NumPy answers, slowly"),
}
"""(system, processor) -> state and what it rests on"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `gemmafile doctor`."""
    parser.add_argument(
        "file", metavar="FILE", nargs="?", type=Path, help="a model: does it fit in this machine's memory?"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def main(args: argparse.Namespace) -> int:
    """Raises BadFile for a file that is no model."""
    report = examine(args.file)
    if args.json:
        print(json.dumps(report, ensure_ascii=False, indent=2))
    else:
        print("\n".join(lines_of(report)))
    return 0


def examine(path: Path | None) -> dict[str, Any]:
    """All that is to be told, fit for JSON."""
    report: dict[str, Any] = {
        "version": __version__,
        "matrix": [
            {"system": s, "processor": p, "state": state, "what": what} for (s, p), (state, what) in MATRIX.items()
        ],
        "here": here(),
        "kernels": kernel_tier(),
        "cache": cache_state(),
        "gpu": "not built in yet: the CPU answers",
        "confinement": confinement(),
    }
    if path is not None:
        report["model"] = model_needs(path)
    from gemmafile.cli.gotchas import gotchas

    report["gotchas"] = gotchas(report, path)
    return report


def here() -> dict[str, Any]:
    from gemmafile.engine.engine import physical_cores
    from gemmafile.files.placement import free_memory_bytes
    from gemmafile.kernels import targets

    return {
        "system": platform.system(),
        "release": platform.release(),
        "processor": targets.machine(),
        "cpu": _cpu_name(),
        "cores": physical_cores(),
        "features": sorted(targets.cpu_features()),
        "python": platform.python_version(),
        "python_from": sys.prefix,
        "why_this_python": _why_this_python(),
        "memory_free_bytes": free_memory_bytes(),
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "")
    except OSError:
        return platform.processor()


def _why_this_python() -> str:
    folder = Path(sys.prefix).name
    if folder.startswith("rt-"):
        return "it came in the packed file, and was unpacked into the cache"
    if os.environ.get("GEMMAFILE_PYTHON"):
        return "GEMMAFILE_PYTHON names it"
    return "it is the one that gemmafile is installed in, or the first on PATH that will do"


def kernel_tier() -> dict[str, Any]:
    from gemmafile.kernels import kept, targets
    from gemmafile.kernels.compile import why_not

    runnable = [target.name for target in targets.runnable()]
    carried = [c.target for c in kept.read_manifests(kept.carried_folder()) if c.sources == kept.sources()]
    usable = [name for name in runnable if name in carried]
    reason = why_not()
    if reason is not None:
        tier = f"the NumPy reference, slowly: {reason}"
    elif usable:
        tier = f"machine code for {usable[0]}, made when this was packed"
    else:
        tier = "machine code for this very CPU, compiled by Numba at the first start"
    return {"tier": tier, "runnable": runnable, "carried": carried, "compiled": reason is None}


def cache_state() -> dict[str, Any]:
    from gemmafile.kernels.kept import cache_root

    root = cache_root().parent
    state: dict[str, Any] = {"folder": str(root), "exists": os.path.isdir(root)}
    if not state["exists"]:
        return state
    try:
        names = [name for name in os.listdir(root) if name.startswith(("env-", "rt-")) and "." not in name]
    except OSError:  # another's
        names = []
    free = shutil.disk_usage(root).free
    noexec = hasattr(os, "statvfs") and bool(os.statvfs(root).f_flag & getattr(os, "ST_NOEXEC", 0))
    return state | {
        "unpacked": sorted(names),
        "free_bytes": free,
        "writable": os.access(root, os.W_OK),
        "noexec": noexec,
    }


def confinement() -> str:
    from gemmafile.pack.confine import describe

    return describe()


def model_needs(path: Path) -> dict[str, Any]:
    """Bytes of the weights and of the cache for the whole context, beside the memory that is free."""
    from gemmafile.files.open import open_model
    from gemmafile.files.placement import free_memory_bytes
    from gemmafile.kernels.cache import page_bytes
    from gemmafile.model.batch import PAGE
    from gemmafile.model.config import read_config
    from gemmafile.settings import ContextSettings

    with open_model(path) as model:
        config = read_config(model, ContextSettings())
        cache = page_bytes(config, "f16", "f16") * -(-config.n_context // PAGE)
        free = free_memory_bytes()
        return {
            "file": str(path), "architecture": config.architecture, "weights_bytes": model.n_bytes,
            "context": config.n_context, "cache_bytes": cache, "free_bytes": free,
            "fits": free == 0 or model.n_bytes + cache <= free,
        }  # fmt: skip


def lines_of(report: dict[str, Any]) -> list[str]:
    own, cache = report["here"], report["cache"]
    lines = ["What runs where"]
    lines += [f"  {r['system']:<8} {r['processor']:<8} {r['state']:<9} {r['what']}" for r in report["matrix"]]
    lines += [
        "",
        "This machine",
        f"  system       {own['system']} {own['release']}, {own['processor']}, {own['cores']} cores, {own['cpu']}",
        f"  features     {' '.join(own['features'])}",
        f"  Python       {own['python']} in {own['python_from']}: {own['why_this_python']}",
        f"  kernels      {report['kernels']['tier']}",
        f"  memory       {own['memory_free_bytes'] / 1e9:.1f} GB free",
        f"  cache        {cache['folder']}: "
        + (
            f"{len(cache['unpacked'])} unpacked, {cache['free_bytes'] / 1e9:.1f} GB left"
            if cache["exists"]
            else "not made yet"
        ),
        f"  GPU          {report['gpu']}",
        f"  confinement  {report['confinement']}",
    ]
    if "model" in report:
        model = report["model"]
        fits = "fits" if model["fits"] else "does not fit"
        lines += [
            "",
            "The model",
            f"  {model['architecture']}, {model['weights_bytes'] / 1e6:,.0f} MB of weights",
            f"  {model['cache_bytes'] / 1e6:,.0f} MB for a context of {model['context']} tokens, the most it takes",
            f"  {fits} in {model['free_bytes'] / 1e9:.1f} GB",
        ]
    lines += ["", "Known gotchas"]
    lines += [f"  [{g['here']:^7}] {g['gotcha']}: {g['fix']}" for g in report["gotchas"]]
    return lines
