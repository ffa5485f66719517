"""`gemmafile pull OWNER/REPO[:QUANT]`: a model from the Hugging Face hub; its path goes to stdout."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="OWNER/REPO[:QUANT]", help="google/gemma-2-27b-it, or REPO-GGUF:Q6_K")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit")
    parser.add_argument("-o", "--local-dir", metavar="DIR", type=Path, help="default: the hub's cache (HF_HOME)")
    parser.add_argument("--no-verify", action="store_true", help="do not hold what was fetched against its SHA-256")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def main(args: argparse.Namespace) -> int:
    """Raises BadSettings, BadFile, GemmafileError."""
    from gemmafile.files.hub import pull_model

    def say(line: str) -> None:
        if not args.quiet:
            print(f"gemmafile: {line}", file=sys.stderr)

    path = pull_model(
        args.name, args.revision, args.local_dir, quiet=args.quiet, verify=not args.no_verify, say=say
    )  # fmt: skip
    print(path)
    return 0
