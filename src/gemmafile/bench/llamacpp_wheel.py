"""llama.cpp in the xllamacpp wheel, timed in a process of its own: `python -m` with the words of `main`.

Its server keeps what two prompts share, so that a second prompt starts behind the first: at a depth.
"""

from __future__ import annotations

import json
import random
import sys
from importlib import import_module
from typing import Any


def main(words: list[str]) -> None:
    """MODEL PROMPT PREDICT DEPTH THREADS REPACK; prints {"prefill": tokens a second, "decode": ...}."""
    model, prompt, predict, depth, threads, repack = words[0], *map(int, words[1:])
    server = open_server(model, prompt + predict + depth + 8, threads, repack=bool(repack))
    ids = random.Random(1).choices(range(100, 1000), k=depth + prompt + 8)
    rates: dict[str, float] = {}
    complete(server, ids[: depth + 1], 1)
    if prompt:
        rates["prefill"] = complete(server, ids[: depth + 1 + prompt], 1)["prompt_per_second"]
    if predict:
        # One token of the prompt is always computed again; the first token made belongs to that.
        rates["decode"] = complete(server, ids[: depth + 1], predict + 1)["predicted_per_second"]
    print(json.dumps(rates))


def open_server(model: str, context: int, threads: int, *, repack: bool) -> Any:
    xllamacpp: Any = import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_gpu_layers, params.n_parallel = model, context, 0, 1
    params.verbosity, params.no_extra_bufts = -1, not repack
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    return xllamacpp.Server(params)


def complete(server: Any, token_ids: list[int], n_predict: int) -> dict[str, float]:
    """The server's own timings of one completion."""
    request = {"prompt": token_ids, "n_predict": n_predict, "temperature": 0, "ignore_eos": True, "cache_prompt": True}
    timings: dict[str, float] = server.handle_completions(request)["timings"]
    return timings


if __name__ == "__main__":
    main(sys.argv[1:])
