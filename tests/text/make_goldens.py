"""Writes tests/text/goldens/: the token ids of awkward texts, by HF tokenizers built from the models' own arrays.

python -m tests.text.make_goldens           writes the files
python -m tests.text.make_goldens --diff    compares with them, exit 1 if they differ

One line a text: [text, ids], control tokens read, no BOS. Needs the `tokenizers` package; takes half a minute.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, TypeAlias

from gemmafile.files.open import open_model
from tests.text.fuzz import make_texts
from tests.text.judges import hf_from_metadata
from tools.get_model import get_model

FOLDER = Path(__file__).with_name("goldens")
MODELS = ("smollm2", "gemma3")
N_TEXTS, MAX_CHARS = 120, 40

Golden: TypeAlias = list[tuple[str, list[int]]]


def read_golden(name: str) -> Golden:
    lines = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [tuple(json.loads(line)) for line in lines]


def make_golden(judge: Any) -> Golden:
    texts = [text[:MAX_CHARS] for text in make_texts(N_TEXTS, seed=11)]
    return [(text, judge.encode(text, add_special_tokens=False).ids) for text in texts]


def write_golden(name: str, golden: Golden) -> None:
    lines = [json.dumps(entry, separators=(",", ":")) + "\n" for entry in golden]
    (FOLDER / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description="Token ids of awkward texts, by HF tokenizers.")
    parser.add_argument("--diff", action="store_true", help="compare, write nothing")
    args = parser.parse_args()
    all_same = True
    for name in MODELS:
        golden = make_golden(hf_from_metadata(open_model(get_model(name)).metadata))
        if args.diff:
            same = golden == read_golden(name)
            print(f"{name}: {'as committed' if same else 'differs'}")
            all_same &= same
        else:
            write_golden(name, golden)
            print(f"{name}: written")
    return 0 if all_same else 1


if __name__ == "__main__":
    sys.exit(main())
