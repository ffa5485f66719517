# transformers' classes are typed in part only.
# mypy: disable-error-code="no-untyped-call,override,no-any-return"
"""transformers' own classes around this engine: `pipeline`, streamers, lm-eval and all that calls `generate` of a
PreTrainedModel keep working.

    from gemmafile.transformers import GemmafileForCausalLM
    model = GemmafileForCausalLM.from_pretrained("./gemma-2-2b-it", dtype="float32")
    pipeline("text-generation", model=model, tokenizer=tokenizer)

transformers hands over all ids at every step (its cache is off); the engine keeps a sequence for each row, and computes
only what the sequence does not have yet. So beams need nothing of their own; what insists on transformers' cache
(assistants, prompt lookup) is refused by it.
Needs the extra `transformers` (torch and transformers).
"""

from __future__ import annotations

from os import PathLike
from typing import Any

import numpy as np

from gemmafile.errors import BackendUnavailable, BadSettings
from gemmafile.model_api import Model

try:
    import torch
    from transformers import CONFIG_MAPPING, GenerationConfig, GenerationMixin, PreTrainedModel
    from transformers.modeling_outputs import CausalLMOutput
except ImportError as missing:
    raise BackendUnavailable(
        f"needs torch and transformers: pip install 'gemmafile[transformers]' ({missing})"
    ) from None

N_SEQUENCES = 8
"""Rows of a batch that are kept between steps; further ones are computed anew each time."""


class GemmafileForCausalLM(PreTrainedModel, GenerationMixin):
    """A causal language model whose forward pass is this engine's. Not for training: there are no gradients.

    `engine_model`  the Model underneath
    """

    main_input_name = "input_ids"
    _supports_sdpa = _supports_flash_attn = True

    def __init__(self, config: Any, model: Model):
        super().__init__(config)
        self.engine_model = model
        self.place = torch.nn.Parameter(torch.zeros(1), requires_grad=False)  # .device and .dtype look for one
        self._rows = [model.sequence]

    @classmethod
    def from_pretrained(cls, name: str | PathLike[str], **options: Any) -> GemmafileForCausalLM:
        """As `gemmafile.AutoModelForCausalLM.from_pretrained`, whose arguments these are."""
        from gemmafile.checkpoint_api.model import AutoModelForCausalLM
        from gemmafile.files.huggingface.checkpoint import Checkpoint

        card = AutoModelForCausalLM.from_pretrained(name, **{"n_sequences": N_SEQUENCES, **options})
        table = vars(card.config)
        kind = str(table.get("model_type", ""))
        if kind not in CONFIG_MAPPING:
            raise BadSettings(f"transformers has no configuration for {kind!r}")
        config = CONFIG_MAPPING[kind].from_dict({k: v for k, v in table.items() if k != "quantization_config"})
        model = cls(config, card.model)
        own = card.generation_config
        known = {"eos_token_id": own.eos_token_id, "pad_token_id": own.pad_token_id, "bos_token_id": own.bos_token_id}
        source = getattr(card.model.file, "source", card.model.file)
        told = (source.folder.json("generation_config.json") or {}) if isinstance(source, Checkpoint) else {}
        model.generation_config = GenerationConfig.from_dict({**told, **known, "use_cache": False})
        return model.eval()

    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, logits_to_keep: int = 0, **ignored: Any
    ) -> CausalLMOutput:
        """`.logits` float32[B, T, V], or of the last `logits_to_keep` positions; zeros where there is padding."""
        if input_ids is None:
            raise BadSettings("input_ids are needed: embeddings cannot be given")
        rows = np.atleast_2d(input_ids.detach().cpu().numpy())
        masks = np.ones_like(rows) if attention_mask is None else attention_mask.detach().cpu().numpy()
        width = logits_to_keep if isinstance(logits_to_keep, int) and logits_to_keep > 0 else rows.shape[1]
        width = min(width, rows.shape[1])
        logits = np.zeros((len(rows), width, self.engine_model.config.n_vocab), np.float32)
        taken: set[int] = set()
        for out, row, mask in zip(logits, rows, masks[:, -rows.shape[1] :], strict=True):
            shown = np.flatnonzero(mask)
            wanted = shown[shown >= rows.shape[1] - width]
            if len(wanted):
                out[wanted - (rows.shape[1] - width)] = self._compute(row[shown].tolist(), len(wanted), taken)
        return CausalLMOutput(logits=torch.from_numpy(logits).to(self.place.device))

    def _compute(self, ids: list[int], n: int, taken: set[int]) -> np.ndarray:
        """float32[n, V]: logits behind the last n ids. The sequence that has most of them goes on."""
        model = self.engine_model
        with model._lock:
            place = self._find_sequence(ids, taken)
            taken.add(place)
            sequence = self._rows[place]
            sequence.truncate(min(_shared(sequence.token_ids, ids), len(ids) - n))
            needed = ids[len(sequence) :]
            from gemmafile.engine.pages import OutOfPages

            try:
                logits = model.engine.forward(sequence, needed, want="all" if n > 1 else "last")
            except OutOfPages:
                for other in self._rows:
                    other.truncate(0)
                logits = model.engine.forward(sequence, ids, want="all" if n > 1 else "last")
            found: np.ndarray = logits[-n:]
        return found

    def _find_sequence(self, ids: list[int], taken: set[int]) -> int:
        free = [i for i in range(len(self._rows)) if i not in taken]
        best = max(free, key=lambda i: _shared(self._rows[i].token_ids, ids), default=None)
        has = -1 if best is None else _shared(self._rows[best].token_ids, ids)
        if (best is None or (has == 0 and len(self._rows[best]))) and len(self._rows) < N_SEQUENCES:
            self._rows.append(self.engine_model.engine.new_sequence())
            return len(self._rows) - 1
        return best if best is not None else len(taken) % len(self._rows)

    def prepare_inputs_for_generation(
        self, input_ids: Any, attention_mask: Any = None, **options: Any
    ) -> dict[str, Any]:
        """All ids, at every step."""
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "logits_to_keep": options.get("logits_to_keep") or 1,
        }

    def can_generate(self) -> bool:
        return True

    def _init_weights(self, module: Any) -> None:
        """There are none here."""

    def close(self) -> None:
        self.engine_model.close()


def _shared(ours: list[int], theirs: list[int]) -> int:
    """How many ids two begin with alike."""
    n = 0
    for a, b in zip(ours, theirs, strict=False):
        if a != b:
            break
        n += 1
    return n
