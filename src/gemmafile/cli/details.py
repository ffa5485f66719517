"""What --verbose says before the answer."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from gemmafile.cli.streams import Streams

if TYPE_CHECKING:
    from gemmafile.cli.run import Plan
    from gemmafile.completion import Answer
    from gemmafile.engine.sampler import Sampler
    from gemmafile.model_api import Model


def show_details(model: Model, plan: Plan, streams: Streams) -> None:
    """The model, the context and the backend, a line each."""
    config, engine = model.config, model.engine
    formats = Counter(tensor.format.name for tensor in model.file.tensors.values())
    asked = plan.context.context
    why = "the model's maximum" if asked == 0 else "as asked" if asked else "chosen"
    streams.detail(f"model       {model.file.path} ({model.file.n_bytes / 1e6:.0f} MB)")
    streams.detail(f"name        {model.metadata.get('general.name', '(not in the file)')}")
    streams.detail(
        f"sizes       {config.architecture}: {config.n_layers} layers, {config.embedding_dim} wide, "
        f"{config.n_heads} heads of {config.head_dim} sharing {config.n_kv_heads} kv heads, {config.n_vocab} tokens"
    )
    streams.detail(f"formats     {', '.join(f'{name} x {n}' for name, n in formats.most_common())}")
    streams.detail(f"context     {engine.n_context} of {config.n_context} tokens ({why})")
    streams.detail(f"KV cache    keys {plan.context.cache_type_k}, values {plan.context.cache_type_v}")
    streams.detail(f"backend     {engine.backend.name}, {engine.threads} threads")
    for note in engine.notes:
        streams.detail(f"note        {note}")


def show_sampler(sampler: Sampler, streams: Streams) -> None:
    """The chain and the seed, which makes a random answer repeatable."""
    settings = sampler.settings
    chain = f"mirostat {settings.mirostat}" if settings.mirostat else " -> ".join(settings.samplers)
    streams.detail(f"sampling    {chain}")
    streams.detail(f"seed        {sampler.seed}, temperature {settings.temperature:g}")


def show_prompt(model: Model, token_ids: list[int], streams: Streams) -> None:
    """--verbose-prompt: ids and pieces, one a line."""
    streams.show(f"prompt: {len(token_ids)} tokens")
    for token_id in token_ids:
        streams.show(f"{token_id:8d}  {model.tokenizer.piece_bytes(token_id, True).decode('utf-8', 'replace')!r}")


def describe_speed(answer: Answer) -> str:
    """ "prompt: 12 tokens, 80.5 tokens/s; answer: 40 tokens, 9.8 tokens/s"."""
    n = len(answer.token_ids)
    cached = len(answer.prompt_ids) - answer.n_computed
    parts = [f"prompt: {answer.n_computed} tokens{_speed(answer.n_computed, answer.prompt_s)}"]
    if cached:
        parts[0] += f" ({cached} more were in the cache)"
    parts.append(f"answer: {n} tokens{_speed(n - 1, answer.generation_s)}")
    return "; ".join(parts)


def _speed(n: int, seconds: float) -> str:
    return f", {n / seconds:.1f} tokens/s" if n > 0 and seconds > 0 else ""
