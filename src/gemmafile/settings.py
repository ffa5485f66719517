"""Settings: one dataclass a concern. The CLI flag, the JSON field, the docs row and the default
all come from one field here, so they cannot drift.

A field is made with `option(default, "--flag", "-f", help=...)`. `cli/flags.py` turns the fields
into argparse flags; a server turns them into JSON fields by their Python names.
Defaults and names are llama.cpp's (release b11549, common/common.h) unless a comment says otherwise.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from gemmafile.errors import BadSettings, nearest

S = TypeVar("S")


def option(
    default: Any, *flags: str, help: str, metavar: str | None = None, env: str | None = None, off: tuple[str, ...] = (), **extra: Any
) -> Any:
    """A dataclass field that is also a command-line flag.

    env    environment variable read where the flag is not given
    off    flags that set a bool field to False
    extra  reaches argparse (choices, nargs, ...)
    """
    metadata = {"flags": flags, "help": help, "metavar": metavar, "env": env, "off": off, "extra": extra}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


DEFAULT_SAMPLERS = ("penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature")
"""Order of the chain, as llama.cpp: `--sampling-seq edskypmxt`."""


@dataclass
class SamplingSettings:
    """How the next token is chosen from the logits."""

    seed: int = option(-1, "--seed", "-s", help="random seed; negative: a new one each time", metavar="N")
    temperature: float = option(0.8, "--temp", "--temperature", help="temperature; 0: always the likeliest token", metavar="N", env="LLAMA_ARG_TEMPERATURE")
    top_k: int = option(40, "--top-k", help="keep the K likeliest tokens; 0: all", metavar="N", env="LLAMA_ARG_TOP_K")
    top_p: float = option(0.95, "--top-p", help="keep the likeliest tokens that make up P; 1: all", metavar="N", env="LLAMA_ARG_TOP_P")
    min_p: float = option(0.05, "--min-p", help="keep tokens at least P times as likely as the likeliest; 0: all", metavar="N", env="LLAMA_ARG_MIN_P")
    typical_p: float = option(1.0, "--typical", "--typical-p", help="locally typical sampling; 1: off", metavar="N")
    top_n_sigma: float = option(-1.0, "--top-nsigma", "--top-n-sigma", help="keep logits within N standard deviations of the best; -1: off", metavar="N")
    xtc_probability: float = option(0.0, "--xtc-probability", help="chance of removing the top tokens; 0: off", metavar="N")
    xtc_threshold: float = option(0.1, "--xtc-threshold", help="XTC removes tokens above this probability; over 0.5: off", metavar="N")
    dynatemp_range: float = option(0.0, "--dynatemp-range", help="dynamic temperature range; 0: off", metavar="N")
    dynatemp_exponent: float = option(1.0, "--dynatemp-exp", help="dynamic temperature exponent", metavar="N")
    repeat_penalty: float = option(1.0, "--repeat-penalty", help="penalty on tokens seen lately; 1: off", metavar="N", env="LLAMA_ARG_REPEAT_PENALTY")
    repeat_last_n: int = option(64, "--repeat-last-n", help="how many tokens count as lately; 0: off, -1: the context", metavar="N")
    presence_penalty: float = option(0.0, "--presence-penalty", help="penalty on tokens already present; 0: off", metavar="N", env="LLAMA_ARG_PRESENCE_PENALTY")
    frequency_penalty: float = option(0.0, "--frequency-penalty", help="penalty by count of a token; 0: off", metavar="N", env="LLAMA_ARG_FREQUENCY_PENALTY")
    dry_multiplier: float = option(0.0, "--dry-multiplier", help="DRY repetition penalty; 0: off", metavar="N")
    dry_base: float = option(1.75, "--dry-base", help="DRY base", metavar="N")
    dry_allowed_length: int = option(2, "--dry-allowed-length", help="repeats up to this length are free", metavar="N")
    dry_penalty_last_n: int = option(64, "--dry-penalty-last-n", help="tokens DRY looks back; 0: off, -1: the context", metavar="N")
    dry_sequence_breakers: list[str] = option(["\n", ":", '"', "*"], "--dry-sequence-breaker", help="text that ends a DRY match (repeatable); 'none': no breakers", metavar="STR", action="append")
    mirostat: int = option(0, "--mirostat", help="mirostat 1 or 2; 0: off (then top-k, top-p, min-p and typical are not used)", metavar="N", choices=(0, 1, 2))
    mirostat_tau: float = option(5.0, "--mirostat-ent", help="mirostat target entropy", metavar="N")
    mirostat_eta: float = option(0.1, "--mirostat-lr", help="mirostat learning rate", metavar="N")
    min_keep: int = option(0, "--min-keep", help="samplers keep at least this many tokens", metavar="N")
    samplers: tuple[str, ...] = option(DEFAULT_SAMPLERS, "--samplers", help="order of samplers, separated by ';'", metavar="LIST")
    logit_bias: dict[int, float] = option({}, "--logit-bias", help="TOKEN_ID(+/-)BIAS, e.g. 15043+1 (repeatable)", metavar="ID±B", action="append")
    ignore_eos: bool = option(False, "--ignore-eos", help="go on past the end-of-answer token")
    n_probs: int = option(0, "--n-probs", help="log-probabilities of the N likeliest tokens with each token", metavar="N")
    post_sampling_probs: bool = option(False, "--post-sampling-probs", help="--n-probs of what the token was drawn from, after all samplers")
    grammar: str | None = option(None, "--grammar", help="GBNF grammar the answer must follow", metavar="GBNF")
    json_schema: str | None = option(None, "--json-schema", "-j", help="JSON schema the answer must follow; {}: any JSON", metavar="SCHEMA")


LOAD_MODES = ("auto", "none", "mmap", "mlock", "mmap+mlock", "dio")
CACHE_TYPES = ("f32", "f16", "bf16", "q8_0")


@dataclass
class ContextSettings:
    """How the model is run: threads, context, KV cache, backend."""

    backend: str = option("cpu", "--backend", help="cpu (compiled kernels) or reference (NumPy: slow, obvious)", choices=("cpu", "reference"))
    threads: int | None = option(None, "--threads", "-t", help="threads for generation (default: physical cores)", metavar="N", env="LLAMA_ARG_THREADS")
    threads_batch: int | None = option(None, "--threads-batch", "-tb", help="threads for reading the prompt (default: --threads)", metavar="N")
    context: int | None = option(None, "--ctx-size", "-c", help="context in tokens; 0: the model's maximum (default: that, shrunk to fit memory)", metavar="N", env="LLAMA_ARG_CTX_SIZE")
    batch: int = option(2048, "--batch-size", "-b", help="prompt tokens handed over at once", metavar="N", env="LLAMA_ARG_BATCH")
    ubatch: int = option(512, "--ubatch-size", "-ub", help="rows computed in one pass", metavar="N", env="LLAMA_ARG_UBATCH")
    cache_type_k: str = option("f16", "--cache-type-k", "-ctk", help="format of cached keys", choices=CACHE_TYPES, env="LLAMA_ARG_CACHE_TYPE_K")
    cache_type_v: str = option("f16", "--cache-type-v", "-ctv", help="format of cached values", choices=CACHE_TYPES, env="LLAMA_ARG_CACHE_TYPE_V")
    activations: str = option("fine", "--activations", help="fine: attention's output, the last product and a small model's gate and up read activations of 15 bits; int8: every product 8, as llama.cpp (for figures to lay beside its own)", choices=("fine", "int8"))
    mmap: bool = option(True, "--mmap", help="map the model's file (the default); --no-mmap: read it into memory", off=("--no-mmap",))
    mlock: bool = option(False, "--mlock", help="hold the model in memory: it is neither swapped out nor dropped")
    load_mode: str = option("auto", "--load-mode", "-lm", help="auto: as --mmap and --mlock say; none and dio: --no-mmap; mlock: --no-mmap --mlock; mmap; mmap+mlock", choices=LOAD_MODES, env="LLAMA_ARG_LOAD_MODE")
    huge_pages: str = option("auto", "--huge-pages", help="auto: wherever they are to be had for nothing; on: read the file again into huge pages if need be; off: never", choices=("auto", "on", "off"))
    rope_scaling: str | None = option(None, "--rope-scaling", help="RoPE scaling: none or linear (default: the model's)", choices=("none", "linear"), env="LLAMA_ARG_ROPE_SCALING_TYPE")
    rope_scale: float | None = option(None, "--rope-scale", help="RoPE context scaling factor, expands the context by N", metavar="N", env="LLAMA_ARG_ROPE_SCALE")
    rope_freq_base: float | None = option(None, "--rope-freq-base", help="RoPE base frequency (default: the model's)", metavar="N", env="LLAMA_ARG_ROPE_FREQ_BASE")
    rope_freq_scale: float | None = option(None, "--rope-freq-scale", help="RoPE frequency scale, 1/N of --rope-scale", metavar="N", env="LLAMA_ARG_ROPE_FREQ_SCALE")
    lora: list[str] = option([], "--lora", help="a LoRA adapter: GGUF, or the folder that PEFT saved (repeatable, or with commas)", metavar="FILE", action="append")
    lora_scaled: list[str] = option([], "--lora-scaled", help="the same, scaled: adapter.gguf:0.5 (repeatable, or with commas)", metavar="FILE:SCALE", action="append")
    override_kv: list[str] = option([], "--override-kv", help="KEY=TYPE:VALUE replaces a metadata value; TYPE int, float, bool or str (repeatable)", metavar="K=T:V", action="append")


SYSTEM_POLICIES = ("merge", "user-turn", "error", "system-turn")
GPU_NAMES = ("auto", "disable", "disabled", "nvidia", "cublas", "amd", "rocm", "hip", "rocblas", "apple", "metal", "vulkan", "vk")


@dataclass
class RunSettings:
    """What `gemmafile run` does with a model: the prompt, the mode, what is shown."""

    prompt: str | None = option(None, "--prompt", "-p", help="text to go on from; with -cnv: the first message", metavar="TEXT")
    file: str | None = option(None, "--file", "-f", help="read the prompt from a file; -: stdin", metavar="FILE")
    n_predict: int = option(-1, "--n-predict", "--predict", "-n", help="tokens to generate; -1: no limit, -2: until the context is full", metavar="N", env="LLAMA_ARG_N_PREDICT")
    conversation: bool | None = option(None, "--conversation", "-cnv", "--chat", help="chat, by the model's template (default: when there is no prompt, or with -st, -sys)", off=("--no-conversation", "-no-cnv"))
    single_turn: bool = option(False, "--single-turn", "-st", help="one answer, then exit")
    interactive: bool = option(False, "--interactive", "-i", help="completion: wait for more text after each answer")
    interactive_first: bool = option(False, "--interactive-first", "-if", help="completion: wait for text before the first answer")
    system_prompt: str | None = option(None, "--system-prompt", "-sys", help="system prompt of a chat", metavar="TEXT")
    system_prompt_file: str | None = option(None, "--system-prompt-file", "-sysf", "-spf", help="read the system prompt from a file", metavar="FILE")
    system_policy: str = option("merge", "--system-policy", help="system prompt for a model without a system role: merged into the first message, a user turn of its own, an error, or a system turn all the same", choices=SYSTEM_POLICIES)
    chat_template: str | None = option(None, "--chat-template", help="name of a built-in template, or a Jinja template (default: the model's)", metavar="NAME|JINJA", env="LLAMA_ARG_CHAT_TEMPLATE")
    chat_template_file: str | None = option(None, "--chat-template-file", help="read the Jinja template from a file", metavar="FILE", env="LLAMA_ARG_CHAT_TEMPLATE_FILE")
    reverse_prompts: list[str] = option([], "--reverse-prompt", "-r", help="stop when this text is generated (repeatable)", metavar="TEXT", action="append")
    in_prefix: str = option("", "--in-prefix", help="text before each input (turns the chat template off)", metavar="TEXT")
    in_suffix: str = option("", "--in-suffix", help="text after each input (turns the chat template off)", metavar="TEXT")
    escape: bool | None = option(None, "--escape", "-e", help="\\n, \\t, \\x41 ... are escapes in -p, -r, --in-prefix, --in-suffix (the default), and in -f when this is given", off=("--no-escape",))
    special: bool = option(False, "--special", "-sp", help="print control tokens")
    display_prompt: bool = option(True, "--display-prompt", help="print the prompt before the answer (the default)", off=("--no-display-prompt", "--silent-prompt"))
    prompt_cache: str | None = option(None, "--prompt-cache", help="file that keeps what was read: begins with what it holds, and is written at the end", metavar="FILE")
    prompt_cache_all: bool = option(False, "--prompt-cache-all", help="accepted: answers are always kept along with prompts")
    prompt_cache_ro: bool = option(False, "--prompt-cache-ro", help="--prompt-cache is read and not written")
    keep: int = option(0, "--keep", help="accepted: generation stops when the context is full, nothing is shifted out", metavar="N")
    grammar_file: str | None = option(None, "--grammar-file", help="read the GBNF grammar from a file", metavar="FILE")
    json_schema_file: str | None = option(None, "--json-schema-file", "-jf", help="read the JSON schema from a file", metavar="FILE")
    sampling_seq: str | None = option(None, "--sampling-seq", "--sampler-seq", help="order of samplers by their letters, e.g. edskypmxt", metavar="LETTERS")
    gpu_layers: str = option("auto", "--n-gpu-layers", "--gpu-layers", "-ngl", help="layers on the GPU: a number, auto or all (there is no GPU backend yet)", metavar="N", env="LLAMA_ARG_N_GPU_LAYERS")
    gpu: str | None = option(None, "--gpu", help="auto or disable (there is no GPU backend yet)", choices=GPU_NAMES)
    flash_attn: str = option("auto", "--flash-attn", "-fa", help="accepted: attention is always fused", choices=("on", "off", "auto"), nargs="?", const="on", env="LLAMA_ARG_FLASH_ATTN")
    multiline_input: bool = option(False, "--multiline-input", "-mli", help="a message ends with a line that ends in \\ or /, or with ctrl-d")
    color: str = option("auto", "--color", "-co", help="colour what you type", choices=("on", "off", "auto"), nargs="?", const="on")
    simple_io: bool = option(False, "--simple-io", help="no line editing, no history, no colour")
    unsecure: bool = option(False, "--unsecure", help="do not confine the engine (by default it may not write files, connect, or start programs)")
    private: bool = option(False, "--private", help="write nothing anywhere: no history, no caches, no /save")
    verbose: bool = option(False, "--verbose", "-v", help="show the model, the settings in force and the timings")
    verbose_prompt: bool = option(False, "--verbose-prompt", help="show the token ids of the prompt")
    log_disable: bool = option(False, "--log-disable", help="nothing on stderr but errors")


POOLINGS = ("mean", "cls", "last")
LOG_FORMS = ("off", "line", "json")


@dataclass
class ServeSettings:
    """What `gemmafile serve` offers, to whom, and within which limits."""

    host: str = option("127.0.0.1", "--host", help="address to listen on; other than this machine's own: an API key is asked for", metavar="ADDR", env="LLAMA_ARG_HOST")
    port: int | None = option(None, "--port", help="port; 0: any that is free (default: 8080, or the next one that is free)", metavar="N", env="LLAMA_ARG_PORT")
    listen: str | None = option(None, "--listen", "-l", help="--host and --port in one", metavar="HOST:PORT")
    server: bool = option(False, "--server", "--v2", help="serve, whatever other flags say")
    browser: bool = option(True, "--browser", help="open the page in a browser where there is one (the default)", off=("--nobrowser", "--no-browser"))
    webui: bool = option(True, "--webui", "--ui", help="offer the chat page (the default)", off=("--no-webui", "--no-ui"), env="LLAMA_ARG_WEBUI")
    parallel: int = option(16, "--parallel", "-np", help="answers made at the same time; more of them wait for their turn", metavar="N", env="LLAMA_ARG_N_PARALLEL")
    max_queue: int = option(256, "--max-queue", help="requests that may wait; further ones are refused with 429", metavar="N")
    alias: str | None = option(None, "--alias", "-a", help="name of the model in the APIs (default: the file's)", metavar="NAME", env="LLAMA_ARG_ALIAS")
    api_keys: list[str] = option([], "--api-key", help="key that every request but /health must bring (repeatable, or separated by commas)", metavar="KEY", action="append", env="LLAMA_API_KEY")
    api_key_file: str | None = option(None, "--api-key-file", help="file of such keys, one a line", metavar="FILE")
    allowed_hosts: list[str] = option([], "--allow-host", help="name this server is also known by: requests to other names are refused (repeatable)", metavar="NAME", action="append")
    cors_origins: list[str] = option([], "--cors-origins", help="other origins whose pages may ask, separated by commas; *: all", metavar="LIST", action="append", env="LLAMA_ARG_CORS_ORIGINS")
    prefix: str = option("", "--api-prefix", "--url-prefix", help="path in front of all others", metavar="PATH", env="LLAMA_ARG_API_PREFIX")
    path: str | None = option(None, "--path", "--www-root", help="folder of files to serve instead of the chat page", metavar="DIR", env="LLAMA_ARG_STATIC_PATH")
    ssl_key_file: str | None = option(None, "--ssl-key-file", help="private key (PEM): answer by HTTPS", metavar="FILE", env="LLAMA_ARG_SSL_KEY_FILE")
    ssl_cert_file: str | None = option(None, "--ssl-cert-file", help="certificate (PEM): answer by HTTPS", metavar="FILE", env="LLAMA_ARG_SSL_CERT_FILE")
    timeout: int = option(3600, "--timeout", "-to", help="seconds after which a client that takes none of its answer is dropped", metavar="N", env="LLAMA_ARG_TIMEOUT")
    keep_alive: int = option(75, "--keep-alive", help="seconds an idle connection is kept", metavar="N")
    stop_timeout: float = option(10.0, "--stop-timeout", help="seconds that answers under way have after SIGTERM or ctrl-c", metavar="N")
    max_body_mb: float = option(16.0, "--max-body-mb", help="largest request, in MB", metavar="N")
    max_connections: int = option(1024, "--max-connections", help="connections at a time", metavar="N")
    max_tokens: int | None = option(None, "--max-tokens", help="most tokens of an answer, whatever a request asks for", metavar="N")
    max_seconds: float | None = option(None, "--max-seconds", help="most seconds of an answer, whatever a request asks for", metavar="N")
    embeddings: bool = option(False, "--embeddings", "--embedding", help="accepted: embeddings are always offered", env="LLAMA_ARG_EMBEDDINGS")
    pooling: str | None = option(None, "--pooling", help="how an embedding is made of its tokens (default: the model's, else mean)", choices=POOLINGS, env="LLAMA_ARG_POOLING")
    embd_normalize: int = option(2, "--embd-normalize", help="norm of embeddings: -1 none, 0 largest value int16, 1 taxicab, 2 Euclidean, more: p-norm", metavar="N")
    metrics: bool = option(False, "--metrics", help="offer /metrics for Prometheus", env="LLAMA_ARG_ENDPOINT_METRICS")
    slots: bool = option(True, "--slots", help="offer GET /slots (the default)", off=("--no-slots", "--slots-endpoint-disable"), env="LLAMA_ARG_ENDPOINT_SLOTS")
    slot_save_path: str | None = option(None, "--slot-save-path", help="folder where /slots saves prompts that were read", metavar="DIR")
    cache_prompt: bool = option(True, "--cache-prompt", help="what prompts share is read once (the default)", off=("--no-cache-prompt",), env="LLAMA_ARG_CACHE_PROMPT")
    cache_disk: str | None = option(None, "--cache-disk", help="folder where read prompts outlive the server", metavar="DIR")
    log_requests: str = option("off", "--log-requests", help="a line, or a JSON object, on stderr for each request", choices=LOG_FORMS)
    log_text: bool = option(False, "--log-text", help="--log-requests shows prompts and answers too")
    filters: list[str] = option([], "--filter", help="NAME or NAME:ARGUMENT of a filter on what is asked and answered, e.g. personal-data or words:FILE (repeatable)", metavar="NAME", action="append")
    threads_http: int | None = option(None, "--threads-http", help="accepted: one thread answers HTTP, the engine is a process of its own", metavar="N", env="LLAMA_ARG_THREADS_HTTP")
    slot_prompt_similarity: float | None = option(None, "--slot-prompt-similarity", "-sps", help="accepted: prompts share what they have in common, whatever the slot", metavar="N")
    cache_ram: int | None = option(None, "--cache-ram", "-cram", help="MiB of what ended answers leave in the cache for prompts that begin alike; 0: none, -1: no limit (default: 512 tokens for each of --parallel, 8192 at least)", metavar="N")
    cache_reuse: int | None = option(None, "--cache-reuse", help="accepted: prompts share what they have in common from their start", metavar="N")


def changed(settings: Any) -> dict[str, Any]:
    """The fields of a settings object that differ from their defaults."""
    default = type(settings)()
    return {f.name: v for f in dataclasses.fields(settings) if (v := getattr(settings, f.name)) != getattr(default, f.name)}


def from_fields(kind: type[S], values: Mapping[str, Any]) -> S:
    """A settings object from field names and values, as a program or a request gives them.

    Raises BadSettings for a name there is not, with the nearest, and for a value of another kind.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    for name, value in values.items():
        if name not in fields:
            raise BadSettings(f"there is no setting {name!r}{nearest(name, fields)}")
        if (expected := _expected(value, hints[name], fields[name].metadata["extra"].get("choices"))) is not None:
            raise BadSettings(f"{name} is {value!r}, expected {expected}")
    return kind(**values)


def _expected(value: Any, hint: Any, choices: tuple[Any, ...] | None) -> str | None:
    """What a field wants instead of `value`; None when the value will do."""
    kinds = typing.get_args(hint) or (hint,)
    if typing.get_origin(hint) in (list, dict, tuple) or (value is None and type(None) in kinds):
        return None
    if choices is not None:
        return None if value in choices else f"one of {', '.join(map(str, choices))}"
    for kind, accepted, words in _PLAIN:
        if kind in kinds:
            return None if isinstance(value, accepted) and (kind is bool or not isinstance(value, bool)) else words
    return None


_PLAIN = ((bool, bool, "True or False"), (str, str, "text"), (int, int, "a whole number"), (float, (int, float), "a number"))
"""(type of a field, types taken for it, what the error calls them)"""
