"""`gemmafile verify FILE`: every byte held against the manifest, the manifest against its signature."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from gemmafile.errors import BackendUnavailable, BadFile, BadSettings
from gemmafile.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `gemmafile verify`."""
    parser.add_argument("file", metavar="FILE", type=Path, help="a packed file")
    parser.add_argument("--key", metavar="PEM", type=Path, help="it must be signed with this public key")
    parser.add_argument("--threads", "-t", metavar="N", type=int, default=0, help="default: as many as there are cores")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def main(args: argparse.Namespace) -> int:
    """0: whole; 1: damaged, or not signed as asked. Raises BadFile for a file without a manifest."""
    from gemmafile.pack.verify import find_damage, read_manifest

    if args.threads < 0:
        raise BadSettings(f"--threads is {args.threads}, expected 1 or more, or 0 for all cores")
    if not args.file.is_file():
        raise BadFile(args.file, "there is no such file")
    wanted = read_key(args.key) if args.key is not None else None
    checked = read_manifest(args.file)
    start_s = time.monotonic()
    total = sum(member.size for member in checked.manifest.members)
    with Progress(f"verifying {args.file.name}", total=total, bytes=True, rate=True, quiet=args.quiet) as progress:
        damages = find_damage(args.file, checked, progress.advance, args.threads)
    seconds = max(time.monotonic() - start_s, 1e-6)
    signature, is_good = judge_signature(checked, wanted)
    whole = not damages and is_good
    report: dict[str, Any] = {
        "file": str(args.file),
        "whole": not damages,
        "signature": signature,
        "signature_ok": is_good,
        "bytes": total,
        "seconds": round(seconds, 3),
        "gb_per_s": round(total / seconds / 1e9, 3),
        "unfinished_edit": checked.unfinished,
        "damage": [{"member": d.member, "what": d.what, "offset": d.offset} for d in damages],
    }
    if args.json:
        print(json.dumps(report, indent=2))
        return 0 if whole else 1
    if checked.unfinished:
        print("an edit of this file was cut short: what it had begun is not used, and the next edit removes it")
    for damage in damages[:20]:
        print(f"DAMAGED  {damage.member}: {damage.what} (byte {damage.offset:,})")
    if len(damages) > 20:
        print(f"DAMAGED  {len(damages) - 20} more places")
    print(signature)
    if not damages:
        print(f"{args.file}: whole, {total / 1e6:,.1f} MB in {seconds:.2f} s, {total / seconds / 1e9:.2f} GB/s")
    sys.stdout.flush()
    return 0 if whole else 1


def read_key(path: Path) -> bytes:
    from gemmafile.pack.sign import from_pem

    try:
        pem = path.read_bytes()
    except OSError as error:
        raise BadFile(path, f"cannot be read: {error.strerror or error}") from None
    try:
        from_pem(pem)
    except BadFile as error:
        raise BadSettings(f"--key {path}: {error.what}") from None
    return pem


def judge_signature(checked: Any, wanted: bytes | None) -> tuple[str, bool]:
    """What is to be said of the signature, and whether it will do."""
    from gemmafile.pack.sign import fingerprint, from_pem, is_signed_by

    if checked.signature is None or checked.public_key is None:
        return "not signed" + (", and --key asks for a signature" if wanted else ""), wanted is None
    try:
        name = fingerprint(checked.public_key)
        if not is_signed_by(checked.public_key, checked.signature, checked.raw):
            return f"BAD SIGNATURE: not made by the key {name} in this file over this manifest", False
    except BadFile:
        return "BAD SIGNATURE: the key in this file is damaged", False
    except BackendUnavailable as error:
        return f"signature not checked: {error}", wanted is None
    if wanted is None:
        return f"signed by the key {name}; only --key tells whether that is a key you trust", True
    if from_pem(wanted) != from_pem(checked.public_key):
        return f"BAD SIGNATURE: signed by another key, {name}", False
    return f"signed by the key you gave, {name}", True
