"""Names the first tensor in which two runs of a model differ. "Is it the kernel or the model?" in one command.

    python -m tools.compare cpu reference --model model.gguf
    python -m tools.compare reference transformers --model gemma2        (a preset of make_tiny.py, made from --seed)
    python -m tools.compare cpu hf:FOLDER --model model.gguf             (FOLDER: the same model for transformers)
    python -m tools.compare cpu llamacpp --model model.gguf              (logits only)

stdout: a line for each tensor (--all) or for the first that differs, and one for the logits. Exit 1 if they differ.
transformers and llamacpp need the packages of `make check`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gemmafile import Model
from gemmafile.errors import GemmafileError
from tools.distance import logit_distance, tensor_distance
from tools.make_tiny import PRESETS, TinyModel, make_tiny, tiny_tokens, write_tiny

PROMPT = "The quick brown fox jumps over the lazy dog, and then it sits down to think about what it has done."

Run = Iterator[tuple[str, np.ndarray]]
"""(name, float32[T, width]) in the order of computation; the last is ("logits", float32[T, V])."""

LAST = ("token_embd", "output", "logits")
"""Names of the last values of a tape: they may hold some rows only, so logits are asked for separately."""


class CannotRun(Exception):
    """A run that was asked for is not possible; the text says why."""


class Subject:
    """What is compared: a model file, its tokens, and the recipe of a tiny model if it is one."""

    def __init__(self, path: Path, token_ids: np.ndarray, tiny: TinyModel | None, cache: str):
        self.path, self.token_ids, self.tiny, self.cache = path, token_ids, tiny, cache

    def run(self, name: str) -> Run:
        if name in ("cpu", "reference"):
            return self._run_ours(name)
        if name == "llamacpp":
            return self._run_llamacpp()
        if name == "transformers" or name.startswith("hf:"):
            return self._run_transformers(name.removeprefix("hf:"))
        raise CannotRun(f"{name!r} is not one of cpu, reference, transformers, hf:FOLDER, llamacpp")

    def _open(self, backend: str) -> Model:
        return Model.open(self.path, backend=backend, cache_type_k=self.cache, cache_type_v=self.cache)

    def _run_ours(self, backend: str) -> Run:
        model = self._open(backend)
        for name, value in model.trace(self.token_ids.tolist()):
            if name not in LAST:
                yield name, value
        yield "logits", model.logits(self.token_ids.tolist())

    def _run_transformers(self, folder: str) -> Run:
        from tests.oracles import hf

        if folder == "transformers" and self.tiny is None:
            raise CannotRun("transformers runs presets of make_tiny.py; for another model give hf:FOLDER")
        judge = hf.build(self.tiny) if self.tiny and folder == "transformers" else hf.load(folder)
        return hf.trace(judge, self.token_ids)

    def _run_llamacpp(self) -> Run:
        from tests.oracles import llamacpp

        native = llamacpp.find()
        if native is None:
            raise CannotRun("llama.cpp is not built: python tools/build_llamacpp.py")
        n_vocab = self._open("reference").config.n_vocab
        yield "logits", native.logits(self.path, self.token_ids, n_vocab, cache=self.cache)


def compare(a: Run, b: Run, tolerance: float, *, show_all: bool) -> bool:
    """Prints what differs. True when every tensor that both have, and the logits, are within the tolerance.

    `tolerance`  largest difference of two elements over the judge's largest element
    """
    ours, judge = dict(a), dict(b)
    first = ""
    for name in (name for name in ours if name in judge and name != "logits"):
        if ours[name].shape != judge[name].shape:
            print(f"{name}: shape {ours[name].shape} against {judge[name].shape}")
            return False
        distance = tensor_distance(ours[name], judge[name])
        differs = not distance.relative <= tolerance
        if show_all or (differs and not first):
            print(f"{name}: {distance}{'   <- the first that differs' if differs and not first else ''}")
        first = first or (name if differs else "")
    n_common = len(ours.keys() & judge.keys()) - 1
    print(f"{n_common} tensors compared" + ("" if first else f", all within {tolerance:g}"))
    last = logit_distance(ours["logits"], judge["logits"])
    print(last)
    return not first and last.max_abs <= tolerance * float(np.abs(judge["logits"]).max())


def main() -> int:
    args = _parse()
    with tempfile.TemporaryDirectory() as folder:
        try:
            subject = _subject(args, Path(folder))
            same = compare(subject.run(args.a), subject.run(args.b), args.tolerance, show_all=args.all)
        except (CannotRun, GemmafileError) as error:
            print(f"compare: {error}", file=sys.stderr)
            return 2
    return 0 if same else 1


def _subject(args: argparse.Namespace, folder: Path) -> Subject:
    tiny, path = None, Path(args.model)
    if args.model in PRESETS:
        tiny = make_tiny(PRESETS[args.model], args.seed)
        path = write_tiny(tiny, folder / "tiny.gguf")
    if args.tokens:
        token_ids = np.array([int(token) for token in args.tokens.split(",")])
    elif tiny and args.prompt is None:
        token_ids = tiny_tokens(tiny.config, args.seed, 48)
    else:
        token_ids = np.array(Model.open(path, backend="reference").tokenize(args.prompt or PROMPT))
    return Subject(path, token_ids, tiny, args.cache)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Name the first tensor in which two runs of a model differ.")
    parser.add_argument("a", metavar="A", help="cpu, reference, transformers, hf:FOLDER or llamacpp")
    parser.add_argument("b", metavar="B", help="the judge, one of the same")
    parser.add_argument("--model", default="gemma2", help="a GGUF file, or a preset: " + ", ".join(PRESETS))
    parser.add_argument("--seed", type=int, default=1, help="of a preset's weights")
    parser.add_argument("--prompt", help="text to run (default: a sentence; for a preset, random tokens)")
    parser.add_argument("--tokens", help="token ids to run, separated by commas")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="relative to a tensor's largest element")
    parser.add_argument("--cache", default="f32", choices=("f32", "f16"), help="format of cached keys and values")
    parser.add_argument("--all", action="store_true", help="a line for every tensor")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
