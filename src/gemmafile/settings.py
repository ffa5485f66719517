"""Settings: one dataclass a concern. The CLI flag, the JSON field, the docs row and the default
all come from one field here, so they cannot drift.

A field is made with `option(default, "--flag", "-f", help=...)`. `cli/flags.py` turns the fields
into argparse flags; a server turns them into JSON fields by their Python names.
Defaults and names are llama.cpp's (release b11549, common/common.h) unless a comment says otherwise.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any


def option(default: Any, *flags: str, help: str, metavar: str | None = None, **extra: Any) -> Any:
    """A dataclass field that is also a command-line flag. `extra` reaches argparse (choices, nargs, ...)."""
    metadata = {"flags": flags, "help": help, "metavar": metavar, "extra": extra}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


DEFAULT_SAMPLERS = ("penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature")
"""Order of the chain, as llama.cpp: `--sampling-seq edskypmxt`."""


@dataclass
class SamplingSettings:
    """How the next token is chosen from the logits."""

    seed: int = option(-1, "--seed", "-s", help="random seed; negative: a new one each time", metavar="N")
    temperature: float = option(0.8, "--temp", "--temperature", help="temperature; 0: always the likeliest token", metavar="N")
    top_k: int = option(40, "--top-k", help="keep the K likeliest tokens; 0: all", metavar="N")
    top_p: float = option(0.95, "--top-p", help="keep the likeliest tokens that make up P; 1: all", metavar="N")
    min_p: float = option(0.05, "--min-p", help="keep tokens at least P times as likely as the likeliest; 0: all", metavar="N")
    typical_p: float = option(1.0, "--typical", "--typical-p", help="locally typical sampling; 1: off", metavar="N")
    top_n_sigma: float = option(-1.0, "--top-nsigma", "--top-n-sigma", help="keep logits within N standard deviations of the best; -1: off", metavar="N")
    xtc_probability: float = option(0.0, "--xtc-probability", help="chance of removing the top tokens; 0: off", metavar="N")
    xtc_threshold: float = option(0.1, "--xtc-threshold", help="XTC removes tokens above this probability; over 0.5: off", metavar="N")
    dynatemp_range: float = option(0.0, "--dynatemp-range", help="dynamic temperature range; 0: off", metavar="N")
    dynatemp_exponent: float = option(1.0, "--dynatemp-exp", help="dynamic temperature exponent", metavar="N")
    repeat_penalty: float = option(1.0, "--repeat-penalty", help="penalty on tokens seen lately; 1: off", metavar="N")
    repeat_last_n: int = option(64, "--repeat-last-n", help="how many tokens count as lately; 0: off, -1: the context", metavar="N")
    presence_penalty: float = option(0.0, "--presence-penalty", help="penalty on tokens already present; 0: off", metavar="N")
    frequency_penalty: float = option(0.0, "--frequency-penalty", help="penalty by count of a token; 0: off", metavar="N")
    dry_multiplier: float = option(0.0, "--dry-multiplier", help="DRY repetition penalty; 0: off", metavar="N")
    dry_base: float = option(1.75, "--dry-base", help="DRY base", metavar="N")
    dry_allowed_length: int = option(2, "--dry-allowed-length", help="repeats up to this length are free", metavar="N")
    dry_penalty_last_n: int = option(-1, "--dry-penalty-last-n", help="tokens DRY looks back; 0: off, -1: the context", metavar="N")
    dry_sequence_breakers: list[str] = option(["\n", ":", '"', "*"], "--dry-sequence-breaker", help="text that ends a DRY match (repeatable); 'none': no breakers", metavar="STR", action="append")
    mirostat: int = option(0, "--mirostat", help="mirostat 1 or 2; 0: off (then top-k, top-p, min-p and typical are not used)", metavar="N", choices=(0, 1, 2))
    mirostat_tau: float = option(5.0, "--mirostat-ent", help="mirostat target entropy", metavar="N")
    mirostat_eta: float = option(0.1, "--mirostat-lr", help="mirostat learning rate", metavar="N")
    min_keep: int = option(0, "--min-keep", help="samplers keep at least this many tokens", metavar="N")
    samplers: tuple[str, ...] = option(DEFAULT_SAMPLERS, "--samplers", help="order of samplers, separated by ';'", metavar="LIST")
    logit_bias: dict[int, float] = option({}, "--logit-bias", help="TOKEN_ID(+/-)BIAS, e.g. 15043+1 (repeatable)", metavar="ID±B", action="append")
    ignore_eos: bool = option(False, "--ignore-eos", help="go on past the end-of-answer token")
    n_probs: int = option(0, "--n-probs", help="log-probabilities of the N likeliest tokens with each token", metavar="N")
    grammar: str | None = option(None, "--grammar", help="GBNF grammar the answer must follow", metavar="GBNF")
    json_schema: str | None = option(None, "--json-schema", "-j", help="JSON schema the answer must follow; {}: any JSON", metavar="SCHEMA")


CACHE_TYPES = ("f32", "f16", "bf16")


@dataclass
class ContextSettings:
    """How the model is run: threads, context, KV cache, backend."""

    backend: str = option("cpu", "--backend", help="cpu (compiled kernels) or reference (NumPy: slow, obvious)", choices=("cpu", "reference"))
    threads: int | None = option(None, "--threads", "-t", help="threads for generation (default: physical cores)", metavar="N")
    threads_batch: int | None = option(None, "--threads-batch", "-tb", help="threads for reading the prompt (default: --threads)", metavar="N")
    context: int | None = option(None, "--ctx-size", "-c", help="context in tokens; 0: the model's maximum (default: that, shrunk to fit memory)", metavar="N")
    batch: int = option(2048, "--batch-size", "-b", help="prompt tokens handed over at once", metavar="N")
    ubatch: int = option(512, "--ubatch-size", "-ub", help="rows computed in one pass", metavar="N")
    cache_type_k: str = option("f16", "--cache-type-k", "-ctk", help="format of cached keys", choices=CACHE_TYPES)
    cache_type_v: str = option("f16", "--cache-type-v", "-ctv", help="format of cached values", choices=CACHE_TYPES)
    rope_scaling: str | None = option(None, "--rope-scaling", help="RoPE scaling: none or linear (default: the model's)", choices=("none", "linear"))
    rope_scale: float | None = option(None, "--rope-scale", help="RoPE context scaling factor, expands the context by N", metavar="N")
    rope_freq_base: float | None = option(None, "--rope-freq-base", help="RoPE base frequency (default: the model's)", metavar="N")
    rope_freq_scale: float | None = option(None, "--rope-freq-scale", help="RoPE frequency scale, 1/N of --rope-scale", metavar="N")
    override_kv: list[str] = option([], "--override-kv", help="KEY=TYPE:VALUE replaces a metadata value; TYPE int, float, bool or str (repeatable)", metavar="K=T:V", action="append")


def changed(settings: Any) -> dict[str, Any]:
    """The fields of a settings object that differ from their defaults."""
    default = type(settings)()
    return {f.name: v for f in dataclasses.fields(settings) if (v := getattr(settings, f.name)) != getattr(default, f.name)}
