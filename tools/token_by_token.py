"""How far we are from llama.cpp's default, beside how far llama.cpp itself is in its other settings, on real texts.

    python -m tools.token_by_token model.gguf TEXT... [--positions 2000] [--chunk 500]

For each text and for all of them: mean KL divergence from llama.cpp's default (flash attention, repacked weights, f16
cache), share of positions with the same best token, the largest logit gap (in the default's logits) at which the best
tokens differ, the largest difference of any logit, and perplexity against the default's. Needs the native llama.cpp of
`make check`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from gemmafile import Model
from tests.oracles import llamacpp
from tools.distance import log_softmax

DEFAULT = (True, True)
SETTINGS = {(False, True): "no flash attention", (True, False): "no repacking", (False, False): "neither"}
ROWS = 128


def statistics(ours: np.ndarray, judge: np.ndarray, following: np.ndarray) -> np.ndarray:
    """float64[5, T]: KL(judge ‖ ours), 1 where the best tokens differ, the judge's gap there, the largest difference of
    a logit, and how much more surprised of the next token than the judge (NaN for the last).

    `ours`, `judge`  float32[T, V] · `following`  int[T - 1]
    """
    parts = []
    for start in range(0, len(judge), ROWS):
        x, y = ours[start : start + ROWS].astype(np.float64), judge[start : start + ROWS].astype(np.float64)
        log_x, log_y, i = log_softmax(x), log_softmax(y), np.arange(len(y))
        best, chosen = y.argmax(axis=1), x.argmax(axis=1)
        surprise, n = np.full(len(y), np.nan), len(following[start : start + ROWS])
        surprise[:n] = (log_y - log_x)[i[:n], following[start : start + n]]
        kl = (np.exp(log_y) * (log_y - log_x)).sum(axis=1)
        parts.append(np.stack([kl, best != chosen, y[i, best] - y[i, chosen], np.abs(x - y).max(axis=1), surprise]))
    return np.concatenate(parts, axis=1)


def line(name: str, s: np.ndarray) -> str:
    return (
        f"{name:20s} {s.shape[1]:6d} positions  KL {s[0].mean():.5f}  top-1 {1 - s[1].mean():.4f}  "
        f"gap {s[2].max():.3f}  logits {s[3].max():.2f}  perplexity {100 * np.expm1(np.nanmean(s[4])):+.2f}%"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="token_by_token", description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--positions", type=int, default=2000, help="tokens of each text")
    parser.add_argument("--chunk", type=int, default=500, help="tokens read at a time, from an empty cache")
    options = parser.parse_args()
    native = llamacpp.find()
    if native is None:
        print("token_by_token: no native llama.cpp; python tools/build_llamacpp.py makes one", file=sys.stderr)
        return 1
    found: dict[str, list[np.ndarray]] = {}
    with Model.open(options.model) as model:
        for text in options.texts:
            ids = model.tokenize(text.read_text(errors="replace"), add_special=False)[: options.positions]
            here: dict[str, list[np.ndarray]] = {}
            for start in range(0, len(ids), options.chunk):
                chunk = model.tokenize("") + ids[start : start + options.chunk]
                runs = {
                    key: native.logits(
                        options.model, np.array(chunk), model.config.n_vocab, cache="f16", flash=key[0], repack=key[1]
                    )
                    for key in (DEFAULT, *SETTINGS)
                }
                judge, following = runs.pop(DEFAULT), np.array(chunk[1:])
                here.setdefault("gemmafile", []).append(statistics(model.logits(chunk), judge, following))
                for key, name in SETTINGS.items():
                    here.setdefault(name, []).append(statistics(runs[key], judge, following))
            print(text)
            for name, parts in here.items():
                print("  " + line(name, np.concatenate(parts, axis=1)), flush=True)
                found.setdefault(name, []).extend(parts)
    print("all texts")
    for name, parts in found.items():
        print("  " + line(name, np.concatenate(parts, axis=1)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
