"""`gemmafile kernels list` and `gemmafile kernels build`: machine code that is kept, and code for other CPUs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from gemmafile.errors import BackendUnavailable, BadSettings
from gemmafile.kernels import kept, targets
from gemmafile.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `gemmafile kernels`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|build")
    listing = actions.add_parser("list", help="what machine code there is", allow_abbrev=False)
    listing.add_argument(
        "folder", metavar="DIR", nargs="?", type=Path, help="a folder made by `build` (default: what this machine has)"
    )
    building = actions.add_parser("build", help="compile all kernels for other CPUs", allow_abbrev=False)
    building.add_argument(
        "--cpu", metavar="CPU,...", default=",".join(targets.CARRIED),
        help=f"of {', '.join(targets.TARGETS)} (default: %(default)s)",
    )  # fmt: skip
    building.add_argument("--out", metavar="DIR", type=Path, required=True, help="gets a folder for each CPU")


def main(args: argparse.Namespace) -> int:
    """Raises BadSettings for a CPU or folder that is not there, BackendUnavailable without a compiler."""
    if args.action == "build":
        return build(args.cpu, args.out)
    return show(args.folder)


def build(cpus: str, out: Path) -> int:
    """Compile for each CPU of a comma-separated list into a folder of its name."""
    wanted = [targets.find_target(name.strip()) for name in cpus.split(",")]
    try:
        from gemmafile.kernels import build

        counts = {target: len(build.kernel_names(target)) for target in wanted}
    except ImportError as e:
        raise BackendUnavailable(f"kernels are compiled by Numba, which is not installed here ({e})") from e
    with Progress("compiling kernels", total=sum(counts.values())) as progress:
        for target in wanted:
            progress.note(target.name)
            build.build_target(target, out, progress.advance)
    return show(out)


def show(folder: Path | None) -> int:
    """Print what a folder holds, or the cache and the package."""
    if folder is not None and not folder.is_dir():
        raise BadSettings(f"{folder} is no folder")
    places = [("", folder)] if folder is not None else [("package", kept.carried_folder())]
    rows = [row for place, path in places for row in _carried_rows(place, path)]
    if folder is None:
        rows += _cached_rows(kept.cache_root())
    runnable = [target.name for target in targets.runnable()]
    print(f"this CPU runs: {', '.join(runnable) or 'none of the known targets'}")
    if not rows:
        print(f"no machine code in {folder}" if folder else "no machine code yet: the first start compiles it")
    for target, count, size, state in rows:
        print(f"{target:<24} {count:>4} kernels {size / 1e3:>8.1f} kB  {state}")
    return 0


Row = tuple[str, int, int, str]
"""target, kernels, bytes, what is to be said of it"""


def _carried_rows(place: str, folder: Path) -> Iterator[Row]:
    for carried in kept.read_manifests(folder):
        whole = [name for name in carried.hashes if carried.read(name)]
        size = sum((carried.folder / f"{name}.o").stat().st_size for name in whole)
        states = [_state(carried.sources), carried.compiler, place]
        if len(whole) < len(carried.hashes):
            states.insert(0, f"{len(carried.hashes) - len(whole)} missing or damaged")
        yield carried.target, len(whole), size, ", ".join(filter(None, states))


def _cached_rows(root: Path) -> Iterator[Row]:
    for folder in sorted(root.glob("*/native-*")):
        sizes = [path.stat().st_size for path in folder.glob("*.o")]
        here = "this CPU" if folder.name == targets.native_name() else "another CPU"
        yield folder.name, len(sizes), sum(sizes), f"{_state(folder.parent.name)}, cache, {here}"


def _state(sources: str) -> str:
    return "current" if sources == kept.sources() else "stale: made from other sources"
