"""Makes tests/models/goldens/ with transformers in float32, or checks that it would come out the same.

python -m tests.oracles.make_goldens           writes the files
python -m tests.oracles.make_goldens --diff    compares with them, exit 1 if they differ (part of `make check`)
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from tests.models.golden import Golden, golden_model
from tests.oracles import hf
from tools.make_tiny import PRESETS

TOLERANCE = 5e-4
"""Another processor or build of torch sums in another order; ten times what float32 costs these models."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Expected logits of the tiny models, by transformers.")
    parser.add_argument("--diff", action="store_true", help="compare, write nothing")
    args = parser.parse_args()
    all_same = True
    for name in PRESETS:
        model, token_ids = golden_model(name)
        golden = Golden.of(hf.logits(hf.build(model), token_ids), model)
        if args.diff:
            difference = _difference(golden, Golden.load(name))
            print(f"{name}: {difference or 'as committed'}")
            all_same &= not difference
        else:
            golden.save(name)
            print(f"{name}: written")
    return 0 if all_same else 1


def _difference(new: Golden, old: Golden) -> str:
    if new.weights != old.weights:
        return "the seed gives other weights: run without --diff and commit, if that is meant"
    max_abs = float(np.abs(new.logits - old.logits).max())
    return f"logits differ by {max_abs:.2g}" if not max_abs <= TOLERANCE else ""


if __name__ == "__main__":
    sys.exit(main())
