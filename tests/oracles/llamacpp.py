"""llama.cpp as a judge: logits of every position from a native build, of one position from the xllamacpp wheel.

The native build is made by tools/build_llamacpp.py in .llamacpp/ (or $GEMMAFILE_LLAMACPP).
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
TIMEOUT_S = 900


@dataclass(frozen=True)
class LlamaCpp:
    """The tools of a native build, in one folder."""

    tools: Path

    def logits(
        self, model: Path, token_ids: np.ndarray, n_vocab: int, *, cache: str = "f32", flash: bool = False,
        repack: bool = False, ubatch: int = 512, threads: int | None = None,
    ) -> np.ndarray:  # fmt: skip
        """float32[T, V]: one sequence from its first token. `cache`  f32 or f16 · `repack`  its default when alone."""
        with tempfile.TemporaryDirectory() as folder:
            tokens, out = Path(folder, "tokens"), Path(folder, "logits")
            np.asarray(token_ids, np.int32).tofile(tokens)
            n_threads = threads or len(os.sched_getaffinity(0))
            options = [str(ubatch), cache, str(int(flash)), str(n_threads), str(int(repack))]
            self.run("llamacpp_logits", str(model), str(tokens), str(out), *options)
            return np.fromfile(out, np.float32).reshape(-1, n_vocab)

    def quantize(self, model: Path, target: Path, kind: str) -> Path:
        """`kind`  as llama-quantize names it, Q6_K, Q4_K_S, ...; every matrix gets it."""
        self.run("llama-quantize", "--pure", str(model), str(target), kind, "2")
        return target

    def run(self, tool: str, *arguments: str) -> str:
        """stdout of a tool. Raises RuntimeError with the end of its stderr."""
        done = subprocess.run(
            [self.tools / tool, *arguments], check=False, capture_output=True, text=True, timeout=TIMEOUT_S
        )
        if done.returncode:
            raise RuntimeError(f"{tool} {' '.join(arguments)}: exit {done.returncode}\n{done.stderr[-2000:]}")
        return done.stdout


def find() -> LlamaCpp | None:
    """The native build, if there is one."""
    tools = Path(os.environ.get("GEMMAFILE_LLAMACPP") or ROOT / ".llamacpp") / "bin"
    return LlamaCpp(tools) if (tools / "llamacpp_logits").exists() else None


def find_scripts() -> Path | None:
    """The folder of llama.cpp's converters in Python, if there is one."""
    folder = Path(os.environ.get("GEMMAFILE_LLAMACPP") or ROOT / ".llamacpp") / "src"
    return folder if (folder / "convert_hf_to_gguf.py").exists() else None


def next_token_logprobs(model: Path, prompts: list[np.ndarray], n_vocab: int) -> np.ndarray:
    """float64[len(prompts), V]: log-probabilities of the token after each prompt, by the xllamacpp wheel.

    Needs no compiler. NaN for a token that it left out.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_gpu_layers, params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 0, 1024, 1, False, -1
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
    server = xllamacpp.Server(params)
    result = np.full((len(prompts), n_vocab), np.nan)
    for row, prompt in zip(result, prompts, strict=True):
        answer = server.handle_completions(
            {"prompt": [int(token) for token in prompt], "n_predict": 1, "temperature": -1, "n_probs": n_vocab,
             "cache_prompt": False}
        )  # fmt: skip
        for entry in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            row[entry["id"]] = entry["logprob"]
    return result
