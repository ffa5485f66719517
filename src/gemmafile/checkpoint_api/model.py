"""AutoModelForCausalLM: a model by its name, and `generate` with the arguments of transformers.

Weights stay in the format of their file, mapped, unless `torch_dtype` or a quantisation asks for another: then the
matrices are made anew in memory. Whatever the type of the weights, what flows between the layers is float32, so
float16 weights do not overflow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from types import SimpleNamespace
from typing import Any

import numpy as np

from gemmafile.checkpoint_api.arguments import check_devices, read_bits, read_dtype, reformatted
from gemmafile.checkpoint_api.arrays import Device, Ids, Outputs, make_array, read_rows, torch_if_loaded
from gemmafile.checkpoint_api.generation import DEFAULT_NEW_TOKENS, GenerationConfig, make_choice, process
from gemmafile.checkpoint_api.in_memory import FLOATS
from gemmafile.checkpoint_api.sources import find_path, say
from gemmafile.checkpoint_api.weights import HoldsWeights
from gemmafile.convert.to_checkpoint import TORCH_NAMES, config_json
from gemmafile.errors import BadSettings, ContextOverflow, nearest
from gemmafile.files.gguf import ModelFile
from gemmafile.files.huggingface.checkpoint import Checkpoint
from gemmafile.files.open import open_model
from gemmafile.model_api import Model
from gemmafile.settings import ContextSettings, from_fields

ATTENTION = {None: "cpu", "flash_attention_2": "cpu", "flash_attention_3": "cpu", "sdpa": "cpu", "eager": "reference"}
"""attn_implementation -> backend: ours is fused and has soft caps and windows; eager is the slow NumPy reference."""
MAX_ANSWERS = 1 << 16
_NOT_NEEDED = ("token_type_ids", "cache_implementation", "early_stopping", "length_penalty", "synced_gpus",
               "remove_invalid_values")  # fmt: skip
"""Arguments of transformers' generate that change nothing here: of beams, of its cache, of several machines."""
_NOT_HERE = ("output_attentions", "output_hidden_states")
_OWN = ("threads", "context", "backend", "cache_type_k", "cache_type_v")


class AutoModelForCausalLM:
    """`AutoModelForCausalLM.from_pretrained(name)` makes a CausalLM."""

    @classmethod
    def from_pretrained(
        cls, name: str | PathLike[str], *, revision: str | None = None, torch_dtype: Any = None, dtype: Any = None,
        device_map: Any = None, quantization_config: Any = None, attn_implementation: str | None = None,
        load_in_8bit: bool = False, load_in_4bit: bool = False, **options: Any,
    ) -> CausalLM:  # fmt: skip
        """A model from a folder, a GGUF, a llamafile or a name of the hub's.

        torch_dtype, dtype   float32, float16, bfloat16 (torch's or names): the type of the matrices; None or "auto":
                             as they are stored. Quantised files stay as they are. float32: keys and values too
        device_map           "auto", "cpu", "cuda", a number, a table: there is one device, the CPU; asking for another
                             is said in a line and runs on the CPU
        quantization_config  BitsAndBytesConfig or a table with load_in_8bit or load_in_4bit: Q8_0, or `four_bits`
        attn_implementation  flash_attention_2, sdpa, None: fused attention · "eager": the reference, slow
        options              threads, context, cache_type_k, ... of ContextSettings; transformers' others are ignored
        Raises BadFile, UnsupportedModel, BadSettings; what the hub does not give is a GemmafileError.
        """
        if attn_implementation not in ATTENTION:
            known = [kind for kind in ATTENTION if kind]
            what = f"attn_implementation is {attn_implementation!r}{nearest(str(attn_implementation), known)}"
            raise BadSettings(f"{what}: expected {', '.join(known)}")
        bits = read_bits(quantization_config, load_in_8bit, load_in_4bit)
        wanted = read_dtype(torch_dtype if torch_dtype is not None else dtype)
        check_devices(device_map)
        path = find_path(name, revision)
        own = {key: value for key, value in options.items() if key in _OWN and value is not None}

        def open_as(wanted: str | None) -> Model:
            cache = {"cache_type_k": "f32", "cache_type_v": "f32"} if wanted == "F32" else {}
            settings = from_fields(ContextSettings, {"backend": ATTENTION[attn_implementation], **cache, **own})
            file = open_model(path, settings, say)
            try:
                changed = reformatted(file, bits, wanted)
                return Model(path, settings, say, n_sequences=options.get("n_sequences") or 1, file=changed)
            except BaseException:
                file.close()
                raise

        return CausalLM(open_as(wanted), wanted, open_as)


class Config(SimpleNamespace):
    """config.json's keys as attributes."""

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


class CausalLM(HoldsWeights):
    """A model in the shape of transformers': `generate`, a call for logits, `config`, `generation_config`.

    `model`  the Model underneath
    """

    def __init__(self, model: Model, dtype: str | None = None, reopen: Callable[[str], Model] | None = None):
        self.model, self._reopen = model, reopen
        self.config = Config(**_read_config(model))
        self.generation_config = _read_generation(model)
        self._dtype = dtype or _own_dtype(model.file)

    @property
    def device(self) -> Any:
        """torch.device("cpu") where torch is loaded, else "cpu"."""
        torch = torch_if_loaded()
        return Device("cpu") if torch is None else torch.device("cpu")

    @property
    def dtype(self) -> Any:
        torch = torch_if_loaded()
        return TORCH_NAMES[self._dtype] if torch is None else getattr(torch, TORCH_NAMES[self._dtype])

    def to(self, *place: Any, **options: Any) -> CausalLM:
        """Itself, its matrices in the type among the arguments; a device that is not the CPU is said to be missing."""
        device = next((p for p in place if isinstance(p, (str, int)) or hasattr(p, "type")), options.get("device"))
        check_devices(device)
        dtype = read_dtype(next((p for p in place if p is not None and p is not device), options.get("dtype")))
        return self if dtype is None else self._cast(dtype)

    def cuda(self, *place: Any) -> CausalLM:
        return self.to("cuda")

    def cpu(self) -> CausalLM:
        return self

    def eval(self) -> CausalLM:
        return self

    def train(self, mode: bool = True) -> CausalLM:
        if mode:
            raise BadSettings("this model answers and is not trained: train(False) or eval()")
        return self

    def requires_grad_(self, required: bool = True) -> CausalLM:
        return self.train(required)

    def can_generate(self) -> bool:
        return True

    @property
    def name_or_path(self) -> str:
        return str(self.model.file.path)

    def close(self) -> None:
        self.model.close()

    # --- logits --------------------------------------------------------------------------------------------------

    def __call__(self, input_ids: Any = None, attention_mask: Any = None, *, labels: Any = None, **_: Any) -> Outputs:
        """`.logits` float32[B, T, V]; rows of padding are zeros. With labels [B, T] `.loss` too: the mean negative
        log-likelihood of each token behind those before it, -100: not counted."""
        rows, kind = read_rows(input_ids, "input_ids")
        masks = _read_masks(attention_mask, rows)
        logits = np.zeros((len(rows), len(rows[0]), self.model.config.n_vocab), np.float32)
        for i, (row, mask) in enumerate(zip(rows, masks, strict=True)):
            kept = [t for t, shown in enumerate(mask) if shown]
            if kept:
                logits[i, kept] = self.model.logits([row[t] for t in kept])
        torch = torch_if_loaded() if kind == "pt" else None
        loss = None if labels is None else _mean_loss(logits, read_rows(labels, "labels")[0])
        if torch is None:
            return Outputs(loss=loss, logits=logits)
        return Outputs(loss=None if loss is None else torch.tensor(loss), logits=torch.from_numpy(logits))

    forward = __call__

    # --- answers -------------------------------------------------------------------------------------------------

    def generate(
        self, inputs: Any = None, generation_config: Any = None, *, input_ids: Any = None, attention_mask: Any = None,
        streamer: Any = None, tokenizer: Any = None, logits_processor: Any = None, stopping_criteria: Any = None,
        num_beams: int = 1, use_cache: bool = True, **values: Any,
    ) -> Any:  # fmt: skip
        """Prompts with their answers: ids [B, T], those that ended sooner filled up with the padding token.

        inputs      ids [B, T] or [T], as torch's, NumPy's or lists, or a mapping with input_ids and attention_mask
        values      fields of GenerationConfig: max_new_tokens, do_sample, temperature, seed, stop_strings ...
        streamer    gets the prompt and then each token (one prompt only) · tokenizer  for stop_strings
        logits_processor, stopping_criteria  callables of (ids [1, T], scores [1, V]) as in transformers
        With return_dict_in_generate: `.sequences`, and `.scores`, `.logits` if asked for, an array [B, V] a step.
        Raises BadSettings, ContextOverflow.
        """
        if isinstance(inputs, Mapping):
            input_ids, attention_mask = inputs.get("input_ids"), inputs.get("attention_mask", attention_mask)
        else:
            input_ids = input_ids if inputs is None else inputs
        for name in _NOT_NEEDED:
            values.pop(name, None)
        for name in _NOT_HERE:
            if values.pop(name, None):
                raise BadSettings(f"{name} is not here: what flows between the layers is not kept")
        if num_beams != 1:
            raise BadSettings(f"num_beams is {num_beams}: beam search is not here, greedy and sampling are")
        config = self._config(generation_config, values)
        rows, kind = read_rows(input_ids, "input_ids")
        masks = _read_masks(attention_mask, rows)
        if config.min_length:
            config.min_new_tokens = max(config.min_new_tokens or 0, config.min_length - len(rows[0]))
        stops = [config.stop_strings] if isinstance(config.stop_strings, str) else list(config.stop_strings or [])
        if stops and tokenizer is None:
            raise BadSettings("stop_strings need the tokenizer: generate(..., tokenizer=tokenizer)")
        n_answers = len(rows) * config.num_return_sequences
        if n_answers > MAX_ANSWERS:
            raise BadSettings(f"{n_answers} answers are asked for at once, expected at most {MAX_ANSWERS}")
        prompts = [row for row in range(len(rows)) for _ in range(config.num_return_sequences)]
        if streamer is not None and len(prompts) > 1:
            raise BadSettings("a streamer follows one answer: give one prompt")
        torch = torch_if_loaded() if kind == "pt" else None
        make = _arrays(torch)
        if streamer is not None:
            streamer.put(make([rows[0]]))
        run = _Run(
            config, make_choice(config, torch), tokenizer, stops, streamer, make, logits_processor, stopping_criteria
        )
        answers = []
        for place in prompts:
            prompt = [t for t, shown in zip(rows[place], masks[place], strict=True) if shown]
            answers.append(self._answer(prompt, len(rows[place]), run))
        if streamer is not None:
            streamer.end()
        sequences = _fill([rows[p] + a.ids for p, a in zip(prompts, answers, strict=True)], self._pad_id(config))
        result = make_array(sequences, kind or "np")
        if not config.return_dict_in_generate:
            return result
        scores, logits = (_steps([getattr(a, name) for a in answers], torch) for name in ("scores", "logits"))
        return Outputs(
            sequences=result,
            scores=scores if config.output_scores else None,
            logits=logits if config.output_logits else None,
        )

    def _config(self, given: Any, values: dict[str, Any]) -> GenerationConfig:
        base = self.generation_config
        if given is not None:
            table = given.to_dict() if hasattr(given, "to_dict") else given
            if not isinstance(table, Mapping):
                raise BadSettings(f"generation_config is {given!r:.60}, expected a GenerationConfig or a table")
            own = base.to_dict()
            kept = {name: own[name] for name in ("eos_token_id", "pad_token_id", "bos_token_id")}
            base = GenerationConfig.from_table({**kept, **{k: v for k, v in table.items() if v is not None}})
        return base.changed(values)

    def _pad_id(self, config: GenerationConfig) -> int:
        if config.pad_token_id is not None and config.pad_token_id >= 0:  # some configurations say -1 for none
            return config.pad_token_id
        return min(config.end_ids, default=0)

    def _answer(self, prompt: list[int], width: int, run: _Run) -> _Answer:
        """`width`  of the prompt with its padding, which max_length counts."""
        config, model = run.config, self.model
        room = model.n_context - len(prompt)
        if room < 1 or not prompt:
            raise ContextOverflow(len(prompt), model.n_context) if prompt else BadSettings("the prompt is empty")
        most = config.max_new_tokens
        if most is None:
            most = DEFAULT_NEW_TOKENS if config.max_length is None else max(1, config.max_length - width)
        answer, ids = _Answer([], [], []), list(prompt)
        with model._lock:
            logits = self._compute(ids)
            for n_new in range(min(most, room)):
                scores = run.score(logits, ids, n_new)
                if config.output_scores:
                    answer.scores.append(scores)
                if config.output_logits:
                    answer.logits.append(logits.copy())
                token = run.choose(scores)
                ids.append(token)
                answer.ids.append(token)
                if run.streamer is not None:
                    run.streamer.put(run.make([token]))
                if token in config.end_ids or run.is_over(ids, answer.ids, scores) or n_new + 1 == min(most, room):
                    break
                logits = self._compute(ids)
        return answer

    def _compute(self, ids: list[int]) -> np.ndarray:
        """Logits float32[V] behind the ids; what the cache has of them is not computed again."""
        sequence = self.model.sequence
        n = 0
        for ours, theirs in zip(sequence.token_ids, ids[:-1], strict=False):
            if ours != theirs:
                break
            n += 1
        sequence.truncate(n)
        logits: np.ndarray = self.model.engine.forward(sequence, ids[n:])[-1]
        return logits

    def __repr__(self) -> str:
        return f"<CausalLM {self.model.file.path}: {self.model.config.architecture}, {TORCH_NAMES[self._dtype]}>"


@dataclass
class _Answer:
    """`scores`, `logits`  float32[V] a step."""

    ids: list[int]
    scores: list[np.ndarray]
    logits: list[np.ndarray]


@dataclass
class _Run:
    """What all answers of one call share."""

    config: GenerationConfig
    choose: Callable[[np.ndarray], int]
    tokenizer: Any
    stops: Sequence[str]
    streamer: Any
    make: Callable[[Sequence[Any]], Any]
    processors: Any
    criteria: Any

    def score(self, logits: np.ndarray, ids: list[int], n_new: int) -> np.ndarray:
        if self.processors is None:
            return process(self.config, logits, ids, n_new)
        torch, scores = torch_if_loaded(), logits.astype(np.float32)[None]
        for processor in self.processors if isinstance(self.processors, Sequence) else [self.processors]:
            given = scores if torch is None else torch.from_numpy(scores)
            scores = np.asarray(processor(self.make([ids]), given), np.float32)
        return process(self.config, scores[0], ids, n_new)

    def is_over(self, ids: list[int], new: list[int], scores: np.ndarray) -> bool:
        if self.stops:
            text = self.tokenizer.decode(new, skip_special_tokens=False)
            if any(stop in text for stop in self.stops):
                return True
        if self.criteria is None:
            return False
        criteria = self.criteria if isinstance(self.criteria, Sequence) else [self.criteria]
        return any(bool(np.all(np.asarray(c(self.make([ids]), scores)))) for c in criteria)


# --- parts of a model and of its answers ------------------------------------------------------------------------------


def _read_config(model: Model) -> dict[str, Any]:
    """config.json: the checkpoint's own, or what one of this model would have."""
    source = getattr(model.file, "source", model.file)
    if isinstance(source, Checkpoint):
        return dict(source.folder.config)
    return config_json(model.file, model.config, _own_dtype(model.file))


def _read_generation(model: Model) -> GenerationConfig:
    source, table = getattr(model.file, "source", model.file), {}
    if isinstance(source, Checkpoint):
        table = source.folder.json("generation_config.json") or {}
    config = GenerationConfig.from_table(table)
    if "tokenizer.ggml.tokens" in model.metadata:
        if config.eos_token_id is None:  # what a checkpoint says of its ends is believed
            config.eos_token_id = sorted(model.tokenizer.eog_ids) or None
        if config.pad_token_id is None:
            config.pad_token_id = model.tokenizer.pad_id
    return config


def _own_dtype(file: ModelFile) -> str:
    formats = [info.format.name for info in file.tensors.values() if len(info.shape) == 2]
    return formats[0] if formats and formats[0] in FLOATS else "BF16"


def _read_masks(mask: Any, rows: list[list[int]]) -> list[list[int]]:
    if mask is None:
        return [[1] * len(row) for row in rows]
    masks, _ = read_rows(mask, "attention_mask")
    if [len(row) for row in masks] != [len(row) for row in rows]:
        raise BadSettings("attention_mask and input_ids have different shapes")
    return masks


def _fill(rows: list[list[int]], pad_id: int) -> list[list[int]]:
    longest = max(map(len, rows))
    return [row + [pad_id] * (longest - len(row)) for row in rows]


def _arrays(torch: Any) -> Callable[[Sequence[Any]], Any]:
    if torch is None:
        return lambda rows: np.array(rows, np.int64).view(Ids)
    return lambda rows: torch.tensor(rows, dtype=torch.int64)


def _mean_loss(logits: np.ndarray, labels: list[list[int]]) -> float:
    """Of float32[B, T, V] and labels [B, T]. Raises BadSettings for labels that do not fit."""
    ids = np.array(labels)[:, 1:]
    if ids.shape != (logits.shape[0], logits.shape[1] - 1) or (ids >= logits.shape[2]).any():
        raise BadSettings("labels are not the shape of input_ids, or hold what is no token id")
    places = np.nonzero(ids >= 0)
    rows = logits[:, :-1][places].astype(np.float64)
    largest = rows.max(axis=1)
    log_sums = largest + np.log(np.exp(rows - largest[:, None]).sum(axis=1))
    return float(np.mean(log_sums - rows[np.arange(len(rows)), ids[places]])) if len(rows) else float("nan")


def _steps(answers: list[list[np.ndarray]], torch: Any) -> tuple[Any, ...]:
    """An array [B, V] a step; an answer that has ended keeps its last scores."""
    n = max(map(len, answers))
    steps = [np.stack([a[min(i, len(a) - 1)] for a in answers]) for i in range(n)] if n else []
    return tuple(steps if torch is None else map(torch.from_numpy, steps))
