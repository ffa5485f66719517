"""What choosing a token costs, by chain and shape of the distribution, in milliseconds of one core.

    python -m benchmarks.sampler [n_vocab]

Limits: the default chain under 1 ms over 256,000 logits, any chain under 3 ms. Exits 1 if one is passed. Then what
grammars cost within a string, where nearly every token is allowed: the mask, and a choice by three chains.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable

import numpy as np

from gemmafile.engine.grammar import Grammar, GrammarVocabulary
from gemmafile.engine.sampler import Sampler
from gemmafile.settings import SamplingSettings

LETTERS = "eeetaoinshrdlu    ,.ABCé日"

OPEN = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
"""No truncation at all."""

CHAINS: dict[str, dict[str, object]] = {
    "default": {},
    "greedy": {"temperature": 0.0},
    "default, n_probs 20": {"n_probs": 20},
    "default, penalties over 64": {"repeat_penalty": 1.1},
    "default, DRY over 8192": {"dry_multiplier": 0.8, "dry_penalty_last_n": -1, "dry_sequence_breakers": ["none"]},
    "no truncation": OPEN,
    "top_k 5000": OPEN | {"top_k": 5000},
    "top_p alone": OPEN | {"top_p": 0.95},
    "typical alone": OPEN | {"typical_p": 0.95},
    "top_n_sigma alone": OPEN | {"top_n_sigma": 3.0},
    "dynamic temperature": OPEN | {"dynatemp_range": 0.5},
    "mirostat 1": {"mirostat": 1},
    "mirostat 2": {"mirostat": 2},
    "truncation, then penalties": {
        "samplers": ("top_p", "penalties", "temperature"),
        "repeat_penalty": 1.1,
    },
    "everything": {
        "top_k": 0,
        "typical_p": 0.99,
        "top_n_sigma": 5.0,
        "min_p": 1e-6,
        "xtc_probability": 1.0,
        "dynatemp_range": 0.5,
        "repeat_penalty": 1.1,
        "repeat_last_n": -1,
        "n_probs": 20,
    },
}


def shapes(n_vocab: int) -> dict[str, np.ndarray]:
    """float32[n_vocab] as a model gives them, and the hard cases."""
    noise = np.random.default_rng(0).standard_normal(n_vocab).astype(np.float32)
    peaked = noise * np.float32(3)
    peaked[7] = 25
    return {"peaked": peaked, "wide": noise * np.float32(3), "flat": noise * np.float32(0.01), "tied": noise * 0}


def measure_ms(sampler: Sampler, logits: np.ndarray, repeats: int = 25) -> float:
    """Median milliseconds of this thread for one choice."""
    return median_ms(lambda: sampler.sample(logits), repeats)


def median_ms(call: Callable[[], object], repeats: int = 25) -> float:
    times = []
    for _ in range(repeats):
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    return sorted(times)[repeats // 2] * 1e3


def main() -> int:
    n_vocab = int(sys.argv[1]) if len(sys.argv) > 1 else 256_000
    history = np.random.default_rng(1).integers(0, n_vocab, 8192).tolist()
    kinds = shapes(n_vocab)
    too_slow = 0
    print(f"{n_vocab} logits, ms".ljust(30) + "".join(f"{kind:>9}" for kind in kinds))
    for name, chosen in CHAINS.items():
        row = []
        for logits in kinds.values():
            sampler = Sampler(SamplingSettings(seed=1, **chosen), n_vocab, n_context=8192)  # type: ignore[arg-type]
            sampler.accept_prompt(history)
            row.append(measure_ms(sampler, logits))
        limit = 1.0 if name == "default" else 3.0
        too_slow += max(row) > limit * n_vocab / 256_000
        print(name.ljust(30) + "".join(f"{ms:9.2f}" for ms in row) + ("   over the limit" if max(row) > limit else ""))
    measure_grammars(n_vocab, kinds["wide"])
    return 1 if too_slow else 0


def measure_grammars(n_vocab: int, logits: np.ndarray) -> None:
    """Prints milliseconds of one thread for masks and choices, tokens being words of random letters."""
    choose = random.Random(1)
    words = ["".join(choose.choices(LETTERS, k=choose.randrange(1, 10))) for _ in range(n_vocab - 257)]
    tokens = [bytes([i]) for i in range(256)] + [word.encode() for word in words] + [b"<end>"]
    vocabulary = GrammarVocabulary(tokens, eog_ids=[n_vocab - 1], control_ids=[])
    start = time.perf_counter()
    assert vocabulary.tokenizer
    print(f"\nvocabulary for grammars: {time.perf_counter() - start:.2f} s, once a model")
    grammars = {
        "JSON schema": lambda: Grammar.from_json_schema({"type": "string"}, vocabulary),
        "GBNF": lambda: Grammar.from_gbnf('root ::= "\\"" [^\\"]* "\\""', vocabulary),
    }
    for name, make in grammars.items():
        start = time.perf_counter()
        grammar = make()
        made_ms = (time.perf_counter() - start) * 1e3
        grammar.accept(ord('"'))

        def next_mask(grammar: Grammar = grammar) -> None:
            grammar.accept(ord("e"))
            grammar.allowed()

        row = [f"mask {median_ms(next_mask):5.2f}"]
        for chain in ("default", "greedy", "top_p alone"):
            sampler = Sampler(SamplingSettings(seed=1, **CHAINS[chain]), n_vocab, grammar=grammar)  # type: ignore[arg-type]

            def next_choice(sampler: Sampler = sampler) -> None:
                sampler.sample(logits)
                sampler.accept(ord("e"))

            row.append(f"{chain} {median_ms(next_choice):5.2f}")
        print(f"{name.ljust(12)} made in {made_ms:.1f}   {'   '.join(row)}")


if __name__ == "__main__":
    sys.exit(main())
