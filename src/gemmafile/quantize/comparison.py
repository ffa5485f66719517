"""A model in several file types beside each other: size, speed, and how far each is from the exact model.

Each type is written to a folder, opened, measured on the same text, and deleted. `plot.py` draws the result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from gemmafile.files.open import open_model, title_of
from gemmafile.measure.divergence import BaseWriter, Divergence, Summary, open_base
from gemmafile.measure.perplexity import Score, cut_text, negative_log_likelihoods, read_chunk
from gemmafile.model_api import Model
from gemmafile.quantize.importance import Importance
from gemmafile.quantize.mixture import choose_formats, file_type_by_name
from gemmafile.quantize.write import Plan, quantise_file
from gemmafile.settings import ContextSettings

WRITTEN_TOKENS = 24
"""Tokens made to time the writing."""


@dataclass(frozen=True, slots=True)
class Row:
    """One type. `kld`, `kld_error` in nats a token · `top` share of tokens · speeds in tokens a second"""

    name: str
    n_bytes: int
    bits: float
    perplexity: float
    kld: float
    kld_error: float
    top: float
    reading: float
    writing: float

    def as_dict(self) -> dict[str, float | str]:
        return asdict(self)


def compare(
    path: str,
    names: Sequence[str],
    text: str,
    folder: Path,
    settings: ContextSettings,
    *,
    n_chunks: int = -1,
    importance: Importance | None = None,
    allow_requantize: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[Row]:
    """A row for the model itself, which the others are held against, and one for each name: a type, or a GGUF file.

    folder  for what is written on the way
    Raises GemmafileError of whatever kind went wrong.
    """
    base_path = folder / "base"
    for name in names:
        if not _is_file(name):
            file_type_by_name(name)  # what is misspelt is said before hours of work
    with Model(path, settings, say=say) as model:
        chunks = cut_text(model, text, settings.context or 512, n_chunks)
        score, seconds = Score(), 0.0
        with BaseWriter(base_path, chunks, model.config.n_vocab) as base:
            for chunk in chunks:
                start = time.perf_counter()
                for logits, token_ids in read_chunk(model, chunk):
                    seconds += time.perf_counter() - start
                    score.add(negative_log_likelihoods(logits, token_ids))
                    base.add(logits)
                    start = time.perf_counter()
        n_bytes, bits = _size(model)
        speed = sum(map(len, chunks)) / seconds
        yield Row(
            Path(path).name or title_of(path),
            n_bytes,
            bits,
            score.perplexity,
            0.0,
            0.0,
            1.0,
            speed,
            _time_writing(model),
        )
    for name in names:
        if _is_file(name):
            yield measure(name, Path(name).name, base_path, settings, n_chunks, say)
            continue
        say(f"{name}: quantising")
        made = folder / f"{name}.gguf"
        try:
            with open_model(path) as file:
                file_type = file_type_by_name(name)
                formats = choose_formats(file, file_type, has_importance=importance is not None)
                plan = Plan(file_type, formats, importance, allow_requantize)
                quantise_file(file, made, plan, n_threads=settings.threads or 0, quiet=True)
            yield measure(str(made), file_type.name, base_path, settings, n_chunks, say)
        finally:
            made.unlink(missing_ok=True)


def _is_file(name: str) -> bool:
    return name.endswith(".gguf")


def measure(
    path: str, name: str, base_path: Path, settings: ContextSettings, n_chunks: int, say: Callable[[str], None]
) -> Row:
    """How far the model at `path` is from the base."""
    base = open_base(base_path)
    found, seconds, n_read = Divergence(), 0.0, 0
    with Model(path, settings, say=say) as model:
        for rows, ids in zip(base.rows, base.chunks.tolist(), strict=True):
            done, start = 0, time.perf_counter()
            for logits, token_ids in read_chunk(model, ids):
                seconds += time.perf_counter() - start
                found.add(logits, rows[done : done + len(logits)], token_ids)
                done += len(logits)
                start = time.perf_counter()
            n_read += len(ids)
        n_bytes, bits = _size(model)
        return _row(name, n_bytes, bits, found.summary(), n_read / seconds, _time_writing(model))


def _row(name: str, n_bytes: int, bits: float, summary: Summary, reading: float, writing: float) -> Row:
    kld = summary.divergence()
    perplexity, top = summary.perplexity().value, summary.top_agreement().value
    return Row(name, n_bytes, bits, perplexity, kld.value, kld.error, top, reading, writing)


def _size(model: Model) -> tuple[int, float]:
    """Bytes of the tensors, and bits a weight."""
    tensors = model.file.tensors.values()
    n_bytes = sum(tensor.n_bytes for tensor in tensors)
    return n_bytes, 8 * n_bytes / sum(tensor.n_weights for tensor in tensors)


def _time_writing(model: Model) -> float:
    """Tokens a second, one after the other, behind a short prompt."""
    n = min(WRITTEN_TOKENS, model.n_context - 3)
    model.sequence.truncate(0)
    model.engine.forward(model.sequence, [0, 1], want="last")
    start = time.perf_counter()
    for token_id in range(n):
        model.engine.forward(model.sequence, [token_id % model.config.n_vocab], want="last")
    return n / (time.perf_counter() - start)


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Lines of a table."""
    yield (
        f"{'':<28} {'MB':>9} {'bits':>6} {'perplexity':>11} {'KL divergence':>22} {'same top':>9}"
        f" {'reading':>9} {'writing':>9}"
    )
    for row in rows:
        divergence = f"{row.kld:.6f} ± {row.kld_error:.6f}"
        yield (
            f"{row.name:<28} {row.n_bytes / 1e6:9.1f} {row.bits:6.2f} {row.perplexity:11.4f} {divergence:>22}"
            f" {100 * row.top:8.2f}% {row.reading:9.1f} {row.writing:9.1f}"
        )
