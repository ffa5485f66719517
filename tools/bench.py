"""Speed of a model on this machine, beside the machine's own limit and, where it is built, llama.cpp.

    python -m tools.bench MODEL [-p 256] [-n 64] [-r 3] [-t THREADS]

Rounds are interleaved (ours, theirs, ours, ...) because a shared machine changes from minute to minute; the median and
the range of the rounds are shown. A token cannot be made faster than the weights can be read: that limit is measured
here too. llama.cpp is taken from .llamacpp/ (tools/build_llamacpp.py), with and without repacking its weights.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

from gemmafile import Model
from gemmafile.errors import GemmafileError

ROOT = Path(__file__).resolve().parent.parent
LLAMA_BENCH = Path(os.environ.get("GEMMAFILE_LLAMACPP") or ROOT / ".llamacpp") / "bin" / "llama-bench"
READ_BYTES = 1 << 29
ROUND_TIMEOUT_S = 600


@dataclass
class Rates:
    """Tokens per second of each round: of reading a prompt, and of making tokens."""

    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)


def read_bandwidth(n_threads: int) -> float:
    """GB/s at which this many threads read memory: the best of five passes over half a GB."""
    parts = np.array_split(np.ones(READ_BYTES // 8, np.uint64), n_threads)
    best_s = min(_together([lambda part=part: np.bitwise_or.reduce(part) for part in parts]) for _ in range(5))
    return READ_BYTES / best_s / 1e9


def _together(jobs: list[Callable[[], object]]) -> float:
    """Seconds until all jobs, a thread each, are done."""
    threads = [threading.Thread(target=job) for job in jobs]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start


def measure_ours(model: Model, n_prompt: int, n_generate: int, rates: Rates) -> None:
    """One round: a prompt of random tokens read into an empty context, then tokens made behind it."""
    engine = model.engine
    rng = np.random.default_rng(1)
    token_ids = rng.integers(0, engine.config.n_vocab, n_prompt).tolist()
    sequence = engine.new_sequence()
    start = time.perf_counter()
    logits = engine.forward(sequence, token_ids)
    rates.prefill.append(n_prompt / (time.perf_counter() - start))
    start = time.perf_counter()
    for _ in range(n_generate):
        logits = engine.forward(sequence, [int(logits[-1].argmax())])
    rates.decode.append(n_generate / (time.perf_counter() - start))
    sequence.truncate(0)


def measure_llamacpp(path: Path, n_prompt: int, n_generate: int, n_threads: int, repack: int, rates: Rates) -> None:
    """One round of llama-bench."""
    sizes = ["-p", str(n_prompt), "-n", str(n_generate), "-t", str(n_threads), "-r", "1", "--repack", str(repack)]
    done = subprocess.run(
        [LLAMA_BENCH, "-m", path, *sizes, "-o", "json"],
        check=True, capture_output=True, text=True, timeout=ROUND_TIMEOUT_S,
    )  # fmt: skip
    for test in json.loads(done.stdout):
        (rates.prefill if test["n_prompt"] else rates.decode).append(test["avg_ts"])


def bytes_per_token(model: Model) -> int:
    """Weights that must be read to make one token: all but an embedding table that is not the output matrix too."""
    sizes = {name: model.file.data(name).nbytes for name in model.file.tensors}
    return sum(sizes.values()) - (sizes["token_embd.weight"] if "output.weight" in sizes else 0)


def show(name: str, rates: Rates) -> None:
    cells = [f"{median(values):8.1f} ({min(values):.1f}-{max(values):.1f})" for values in (rates.prefill, rates.decode)]
    print(f"{name:<24}{cells[0]:>26}{cells[1]:>26}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Tokens per second, beside what the memory allows.")
    parser.add_argument("model", type=Path)
    parser.add_argument("-p", "--prompt-tokens", type=int, default=256)
    parser.add_argument("-n", "--generate", type=int, default=64)
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("-t", "--threads", type=int)
    args = parser.parse_args()
    try:
        return bench(args.model, args.prompt_tokens, args.generate, args.rounds, args.threads)
    except GemmafileError as error:
        print(f"bench: {error}", file=sys.stderr)
        return error.exit_code


def bench(path: Path, n_prompt: int, n_generate: int, n_rounds: int, n_threads: int | None) -> int:
    with Model.open(path, threads=n_threads, context=n_prompt + n_generate + 1) as model:
        threads = model.engine.threads
        n_bytes = bytes_per_token(model)
        runs: dict[str, Callable[[Rates], None]] = {
            "gemmafile": lambda rates: measure_ours(model, n_prompt, n_generate, rates)
        }
        if LLAMA_BENCH.exists():
            for repack in (1, 0):
                runs[f"llama.cpp repack {repack}"] = lambda rates, repack=repack: measure_llamacpp(  # type: ignore[misc]
                    path, n_prompt, n_generate, threads, repack, rates
                )
        measure_ours(model, n_prompt, 2, Rates())  # compiles what is not compiled yet, touches every page
        rates = {name: Rates() for name in runs}
        bandwidths = [read_bandwidth(threads)]
        for _ in range(n_rounds):
            for name, run in runs.items():
                run(rates[name])
            bandwidths.append(read_bandwidth(threads))
    print(f"{path.name}: {n_bytes / 1e9:.3f} GB read for a token, {threads} threads, {n_rounds} rounds")
    print(f"{'tokens/s':<24}{f'read {n_prompt}':>26}{f'make {n_generate}':>26}")
    for name, values in rates.items():
        show(name, values)
    low, high = min(bandwidths), max(bandwidths)
    print(f"memory is read at {low:.1f}-{high:.1f} GB/s here: at most {high * 1e9 / n_bytes:.1f} tokens/s can be made")
    return 0


if __name__ == "__main__":
    sys.exit(main())
