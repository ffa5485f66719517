"""Flags: every one a user of llama.cpp or llamafile would try on a run, what it sets, and what a mistake is told."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from gemmafile.cli.flags import (
    HELP,
    HUB,
    MODEL,
    Flag,
    Given,
    add_environment,
    flags_of,
    help_text,
    make_settings,
    read_words,
    whole_number,
)
from gemmafile.cli.foreign import FOREIGN
from gemmafile.cli.perplexity import PerplexitySettings
from gemmafile.cli.run import GROUPS, make_plan
from gemmafile.errors import BadSettings
from gemmafile.settings import ContextSettings, RunSettings, SamplingSettings, from_fields

FLAGS: list[Flag] = [MODEL, *HUB, HELP, *(flag for _, kind in GROUPS for flag in flags_of(kind))]


def read(*words: str, environ: dict[str, str] | None = None) -> Given:
    given = read_words(list(words), FLAGS)
    add_environment(given, FLAGS, environ or {})
    return given


def settings_of(*words: str) -> dict[str, Any]:
    """Every setting a command line leads to, by name."""
    plan = make_plan(read("-m", "model.gguf", *words))
    return {**vars(plan.run), **vars(plan.sampling), **vars(plan.context), "prompt": plan.prompt, "system": plan.system}


PARSED: list[tuple[str, str, Any]] = [
    # words, setting, value: the flags of llama.cpp and llamafile that concern a run, in all their spellings
    ("-p hello", "prompt", "hello"),
    ("--prompt hello", "prompt", "hello"),
    ("-n 5", "n_predict", 5),
    ("-n -1", "n_predict", -1),
    ("-n -2", "n_predict", -2),
    ("--n-predict 5", "n_predict", 5),
    ("--predict 5", "n_predict", 5),
    ("--n_predict 5", "n_predict", 5),
    ("-c 0", "context", 0),
    ("-c 512", "context", 512),
    ("-c 8k", "context", 8192),
    ("--ctx-size 4096", "context", 4096),
    ("-ngl 999", "gpu_layers", "999"),
    ("-ngl auto", "gpu_layers", "auto"),
    ("--n-gpu-layers all", "gpu_layers", "all"),
    ("--gpu-layers 0", "gpu_layers", "0"),
    ("--gpu disable", "gpu", "disable"),
    ("--special", "special", True),
    ("-sp", "special", True),
    ("--temp 0.5", "temperature", 0.5),
    ("--temperature 1e-1", "temperature", 0.1),
    ("--temp -1", "temperature", -1.0),
    ("--temp=-1.5e0", "temperature", -1.5),
    ("--top-k 0", "top_k", 0),
    ("--top-p 1.0", "top_p", 1.0),
    ("--min-p 0", "min_p", 0.0),
    ("--seed -1", "seed", -1),
    ("-s 42", "seed", 42),
    ("--repeat-penalty 1.1", "repeat_penalty", 1.1),
    ("--repeat-last-n -1", "repeat_last_n", -1),
    ("--presence-penalty 0.1", "presence_penalty", 0.1),
    ("--frequency-penalty -0.1", "frequency_penalty", -0.1),
    ("-t 4", "threads", 4),
    ("--threads 4", "threads", 4),
    ("-tb 2", "threads_batch", 2),
    ("--threads-batch 2", "threads_batch", 2),
    ("-b 256", "batch", 256),
    ("--batch-size 256", "batch", 256),
    ("-ub 64", "ubatch", 64),
    ("--ubatch-size 64", "ubatch", 64),
    ("--chat", "conversation", True),
    ("-cnv", "conversation", True),
    ("--conversation", "conversation", True),
    ("-no-cnv", "conversation", False),
    ("--no-conversation", "conversation", False),
    ("-i", "interactive", True),
    ("--interactive", "interactive", True),
    ("-if", "interactive_first", True),
    ("--interactive-first", "interactive_first", True),
    ("-st", "single_turn", True),
    ("-sys X", "system", "X"),
    ("--system-prompt X", "system", "X"),
    ("--chat-template gemma", "chat_template", "gemma"),
    ("--system-policy user-turn", "system_policy", "user-turn"),
    ("-r User:", "reverse_prompts", ["User:"]),
    ("-r A --reverse-prompt B", "reverse_prompts", ["A", "B"]),
    ("--grammar root::=[a]", "grammar", "root::=[a]"),
    ("-j {}", "json_schema", "{}"),
    ("--json-schema {}", "json_schema", "{}"),
    ("--no-display-prompt", "display_prompt", False),
    ("--silent-prompt", "display_prompt", False),
    ("--display-prompt", "display_prompt", True),
    ("--escape", "escape", True),
    ("-e", "escape", True),
    ("--no-escape", "escape", False),
    ("--ignore-eos", "ignore_eos", True),
    ("--keep 4", "keep", 4),
    ("-fa", "flash_attn", "on"),
    ("-fa on", "flash_attn", "on"),
    ("-fa off", "flash_attn", "off"),
    ("-fa 1", "flash_attn", "on"),
    ("--flash-attn auto", "flash_attn", "auto"),
    ("-fa -v", "flash_attn", "on"),
    ("-v", "verbose", True),
    ("--verbose", "verbose", True),
    ("--verbose-prompt", "verbose_prompt", True),
    ("--log-disable", "log_disable", True),
    ("-ctk bf16", "cache_type_k", "bf16"),
    ("--cache-type-v f32", "cache_type_v", "f32"),
    ("--in-prefix A", "in_prefix", "A"),
    ("--in-suffix B", "in_suffix", "B"),
    ("-mli", "multiline_input", True),
    ("--color", "color", "on"),
    ("-co off", "color", "off"),
    ("--simple-io", "simple_io", True),
    ("--samplers top_k;temperature", "samplers", ("top_k", "temperature")),
    ("--sampling-seq kt", "samplers", ("top_k", "temperature")),
    ("--typical 0.9", "typical_p", 0.9),
    ("--mirostat 2", "mirostat", 2),
    ("--mirostat-lr 0.2", "mirostat_eta", 0.2),
    ("--mirostat-ent 4", "mirostat_tau", 4.0),
    ("--dynatemp-range 0.5", "dynatemp_range", 0.5),
    ("--dynatemp-exp 2", "dynatemp_exponent", 2.0),
    ("--xtc-probability 0.5", "xtc_probability", 0.5),
    ("--xtc-threshold 0.2", "xtc_threshold", 0.2),
    ("--dry-multiplier 0.8", "dry_multiplier", 0.8),
    ("--dry-base 2", "dry_base", 2.0),
    ("--dry-allowed-length 3", "dry_allowed_length", 3),
    ("--dry-penalty-last-n 9", "dry_penalty_last_n", 9),
    (r"--dry-sequence-breaker \n --dry-sequence-breaker .", "dry_sequence_breakers", ["\n", "."]),
    ("--top-nsigma -1", "top_n_sigma", -1.0),
    ("--logit-bias 5+1 --logit-bias 7-inf", "logit_bias", {5: 1.0, 7: -math.inf}),
    ("--rope-scaling none", "rope_scaling", "none"),
    ("--rope-scale 2", "rope_scale", 2.0),
    ("--rope-freq-base 1e6", "rope_freq_base", 1e6),
    ("--rope-freq-scale 0.5", "rope_freq_scale", 0.5),
    ("--override-kv a=int:1 --override-kv b=str:x", "override_kv", ["a=int:1", "b=str:x"]),
    ("--backend reference", "backend", "reference"),
]


@pytest.mark.parametrize(("words", "name", "value"), PARSED, ids=[words for words, _, _ in PARSED])
def test_a_flag_sets_its_setting(words: str, name: str, value: Any) -> None:
    assert settings_of(*words.split(" "))[name] == value


def test_without_flags_the_defaults_stand() -> None:
    given = read()
    for kind in (RunSettings, SamplingSettings, ContextSettings):
        assert make_settings(kind, given) == kind()


@pytest.mark.parametrize("prompt", ["-", "--", "---", "-n 5 is a flag", "--temp", "", "=", "a=b", "-p"])
def test_a_flag_takes_the_next_word_whatever_it_looks_like(prompt: str) -> None:
    assert read("-p", prompt, "-n", "3").values == {"prompt": prompt, "n_predict": 3}


@pytest.mark.parametrize(
    "words",
    [
        "--cli", "--no-warmup", "--numa distribute", "--poll 50",
        "--prio 2", "--cpu-mask ff", "-C ff", "--cpu-range 0-3", "--defrag-thold 0.1", "--dump-kv-cache",
        "--logdir x", "--log-file x", "--log-new", "--log-append", "--print-token-count 5", "--fast",
        "--precise", "--trap", "--recompile", "--nocompile", "--tinyblas", "-sm layer",
        "-ts 1,2", "-mg 0", "-nkvo", "-cb", "--jinja", "--tfs 1.0", "--prefill-assistant",
    ],
)  # fmt: skip
def test_a_flag_that_changes_no_answer_is_accepted(words: str) -> None:
    given = read(*words.split(), "-n", "3")
    assert given.values == {"n_predict": 3}
    assert not given.words
    assert all(" does nothing: " in note for note in given.notes)


@pytest.mark.parametrize(
    "words",
    [
        "--control-vector x", "--control-vector-scaled x 1", "--mmproj x", "--image x", "-md x", "--draft 5",
        "-mu x", "--list-devices", "--ppl-stride 4", "--chat-template-kwargs {}",
        "--context-shift", "--grp-attn-n 2", "--cfg-scale 2", "--rpc x",
        "--instruct", "--chatml", "--random-prompt", "--yarn-ext-factor 1",
    ],
)  # fmt: skip
def test_a_flag_that_would_change_the_answer_is_refused(words: str) -> None:
    with pytest.raises(BadSettings, match=rf"^{words.split()[0]}: \w+"):
        read(*words.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--tmep 1", r"unknown flag --tmep \(did you mean --temp\?\)"),
        ("--n-predit 1", r"did you mean --n-predict\?"),
        ("--numaa x", r"did you mean --numa\?"),
        ("-ngk 1", r"unknown flag -ngk \(did you mean -ngl\?\)"),
        ("-n5", r"unknown flag -n5"),
        ("-n", "-n needs a value: tokens to generate"),
        ("-n five", "-n is 'five', expected a whole number"),
        ("-n 1.5", "expected a whole number"),
        ("--temp warm", "--temp is 'warm', expected a number"),
        ("--special=1", "--special takes no value"),
        ("-ctk q9", "-ctk is 'q9', expected one of f32, f16, bf16, q8_0"),
        ("--mirostat 3", "--mirostat is '3', expected one of 0, 1, 2"),
        ("--gpu nvida", r"--gpu is 'nvida'.*did you mean nvidia\?"),
        ("-fa=maybe", "unknown flag -fa=maybe"),
        ("--flash-attn=maybe", "--flash-attn is 'maybe', expected one of on, off, auto"),
        ("--samplers topk;nope", "there is no sampler 'nope'"),
        ("--sampling-seq kq", "no sampler has the letter 'q'"),
        ("--logit-bias 5", "--logit-bias '5': give TOKEN_ID"),
        ("-p a -f b", "-p and -f were both given"),
        (r"-p \xff", "-p: the .* escapes are not UTF-8"),
        ("other.gguf", "one model, please: 'other.gguf' and 'model.gguf' were given"),
    ],
)
def test_a_mistake_is_named(words: str, message: str) -> None:
    with pytest.raises(BadSettings, match=message):
        settings_of(*words.split(" "))


@pytest.mark.parametrize("words", [[], [""], ["-m", ""]], ids=["none", "empty", "empty-m"])
def test_a_model_without_a_name_is_no_folder(words: list[str]) -> None:
    with pytest.raises(BadSettings, match=r"^which model\?"):
        make_plan(read(*words))


def test_no_flag_means_two_things() -> None:
    names = [name for flag in FLAGS for name in (*flag.names, *flag.off)]
    assert len(names) == len(set(names))
    assert not set(names) & set(FOREIGN)
    assert not {name for flag in flags_of(PerplexitySettings) for name in flag.names} & set(FOREIGN)
    fields = [field.name for _, kind in GROUPS for field in dataclasses.fields(kind)]
    assert len(fields) == len(set(fields))


ENVIRONMENT = [
    ("CTX_SIZE", "4096", "context", 4096), ("N_PREDICT", "-2", "n_predict", -2), ("THREADS", "3", "threads", 3),
    ("BATCH", "64", "batch", 64), ("UBATCH", "32", "ubatch", 32), ("FLASH_ATTN", "1", "flash_attn", "on"),
    ("TEMPERATURE", "0", "temperature", 0.0), ("TOP_K", "1", "top_k", 1), ("TOP_P", "0.5", "top_p", 0.5),
    ("MIN_P", "0.1", "min_p", 0.1), ("REPEAT_PENALTY", "1.2", "repeat_penalty", 1.2),
    ("PRESENCE_PENALTY", "1", "presence_penalty", 1.0), ("FREQUENCY_PENALTY", "1", "frequency_penalty", 1.0),
    ("CACHE_TYPE_K", "f32", "cache_type_k", "f32"), ("CACHE_TYPE_V", "bf16", "cache_type_v", "bf16"),
    ("ROPE_SCALING_TYPE", "linear", "rope_scaling", "linear"), ("ROPE_SCALE", "2", "rope_scale", 2.0),
    ("ROPE_FREQ_BASE", "5", "rope_freq_base", 5.0), ("ROPE_FREQ_SCALE", "2", "rope_freq_scale", 2.0),
    ("N_GPU_LAYERS", "99", "gpu_layers", "99"), ("CHAT_TEMPLATE", "gemma", "chat_template", "gemma"),
    ("CHAT_TEMPLATE_FILE", "x", "chat_template_file", "x"), ("MODEL", "x.gguf", "model", "x.gguf"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "word", "field", "value"), ENVIRONMENT)
def test_environment_fills_what_flags_left_open(name: str, word: str, field: str, value: Any) -> None:
    assert read(environ={f"LLAMA_ARG_{name}": word}).values == {field: value}


def test_a_flag_beats_the_environment() -> None:
    assert read("-c", "8", environ={"LLAMA_ARG_CTX_SIZE": "4096"}).values == {"context": 8}


def test_an_empty_variable_is_no_variable() -> None:
    assert read(environ={"LLAMA_ARG_CTX_SIZE": ""}).values == {}


def test_a_mistake_in_the_environment_is_named() -> None:
    with pytest.raises(BadSettings, match="LLAMA_ARG_TOP_K is 'x', expected a whole number"):
        read(environ={"LLAMA_ARG_TOP_K": "x"})


def test_help_shows_every_flag() -> None:
    groups = [("a title", FLAGS)]
    text = " ".join(help_text("usage", "what it does", groups).split())
    for flag in FLAGS:
        for name in (*flag.names, *flag.off):
            assert name in text
    assert "(default: 0.8)" in text
    assert "[LLAMA_ARG_CTX_SIZE]" in text


@pytest.mark.parametrize(("word", "value"), [("0", 0), ("-2", -2), ("8k", 8192), ("2K", 2048), ("-1k", -1024)])
def test_whole_numbers(word: str, value: int) -> None:
    assert whole_number(word) == value


def test_settings_from_a_program() -> None:
    assert from_fields(SamplingSettings, {"temperature": 0, "top_k": 5}) == SamplingSettings(temperature=0, top_k=5)
    assert from_fields(ContextSettings, {"threads": None}).threads is None


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (SamplingSettings, {"temprature": 1}, r"no setting 'temprature' \(did you mean temperature\?\)"),
        (SamplingSettings, {"temperature": "hot"}, "temperature is 'hot', expected a number"),
        (SamplingSettings, {"top_k": 1.5}, "top_k is 1.5, expected a whole number"),
        (SamplingSettings, {"top_k": True}, "top_k is True, expected a whole number"),
        (SamplingSettings, {"ignore_eos": 1}, "ignore_eos is 1, expected True or False"),
        (SamplingSettings, {"grammar": 5}, "grammar is 5, expected text"),
        (ContextSettings, {"backend": "gpu"}, "backend is 'gpu', expected one of cpu, reference"),
        (ContextSettings, {"context": "big"}, "context is 'big', expected a whole number"),
    ],
)
def test_a_programs_mistake_is_named(kind: type[Any], values: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSettings, match=message):
        from_fields(kind, values)


def test_where_the_model_lies_is_said_as_in_llamacpp() -> None:
    given = read("--no-mmap", "--mlock", "--huge-pages", "on", "-lm", "mmap+mlock")
    assert given.values == {"mmap": False, "mlock": True, "huge_pages": "on", "load_mode": "mmap+mlock"}
    assert read("--no-mmap", "--mmap").values == {"mmap": True}
