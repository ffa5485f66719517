"""Flags of llama.cpp and llamafile that this engine knows and does not act on.

A flag whose absence changes no answer is accepted with a note, so that a command line that works there works here.
A flag that would change the answer, or the kind of answer, is refused with the reason: it is never dropped silently.
"""

from __future__ import annotations

from typing import NamedTuple


class Foreign(NamedTuple):
    """`n_values` words follow the flag · `text` why; "" for a flag that asks for what is done anyway."""

    n_values: int
    text: str
    refused: bool = False


def _table(rows: list[tuple[str, int, str]], *, refused: bool = False) -> dict[str, Foreign]:
    return {name: Foreign(n, text, refused) for names, n, text in rows for name in names.split()}


_SCHEDULING = "threads are placed by the operating system"
_LLAMAFILER = "clients are not told apart; there is one engine"
_GPU = "there is no GPU backend yet"
_LOG = "there is no log file: stderr can be redirected"
_SPECULATION = "speculative decoding is not supported yet"
_DOWNLOAD = "models come from the hub (-hf) or from a file (-m): fetch this one yourself, and give its path"
_YARN = "YaRN scaling is not supported"

FOREIGN = {
    **_table(
        [
            (
                "--cli --no-perf --perf --no-context-shift --jinja --nologo --ascii --warmup --props",
                0,
                "",
            ),
            ("--no-lookup --no-penalize-nl --no-repack --prefill-assistant --no-prefill-assistant", 0, ""),
            ("--no-warmup", 0, "it is a pass of one token, when a server starts"),
            ("--check-tensors", 0, "tensors are checked by `gemmafile inspect`"),
            ("--numa", 1, _SCHEDULING),
            ("--prio --prio-batch --poll --poll-batch --cpu-strict --cpu-strict-batch", 1, _SCHEDULING),
            ("--cpu-mask -C --cpu-range -Cr --cpu-mask-batch -Cb --cpu-range-batch -Crb", 1, _SCHEDULING),
            ("--defrag-thold -dt", 1, "the cache is paged"),
            ("--dump-kv-cache -dkvc --swa-full --kv-unified -kvu --no-kv-unified -no-kvu", 0, "the cache is paged"),
            ("--cont-batching -cb --no-cont-batching -nocb", 0, "there is one sequence"),
            ("--logdir -ld --log-file", 1, _LOG),
            ("--log-new --log-append --log-enable --log-prefix --log-timestamps", 0, _LOG),
            ("--log-colors --log-verbosity --verbosity -lv", 1, "-v shows more, --log-disable less"),
            ("--print-token-count -ptc", 1, "--verbose counts tokens"),
            ("--fast --precise --trap", 0, "there is one mode, the precise one"),
            ("--no-kv-offload -nkvo --recompile --nocompile --tinyblas --no-op-offload", 0, _GPU),
            ("--split-mode -sm --tensor-split -ts --main-gpu -mg --device -dev --fit", 1, _GPU),
            ("--sequences -ns", 1, "a run has one sequence"),
            ("--workers --keepalive --trust --ip-header --token-rate --token-burst --token-cidr", 1, _LLAMAFILER),
            ("--db --reserve-tokens --decay-delay -H --header", 1, _LLAMAFILER),
            ("--completion-mode --reuse-port --no-cache-idle-slots", 0, _LLAMAFILER),
            ("--media-path --models-dir --models-max --sleep-idle-seconds", 1, "there is one model, of text"),
            ("--tfs", 1, "tail-free sampling left llama.cpp too"),
            ("--penalize-nl", 0, "newlines are penalised like other tokens"),
        ]
    ),
    **_table(
        [
            ("--context-shift", 0, "generation stops when the context is full: nothing is dropped from it"),
            ("--model-draft -md --draft --draft-max --draft-min --threads-draft -td -ngld", 1, _SPECULATION),
            ("--lookup-cache-static -lcs --lookup-cache-dynamic -lcd", 1, _SPECULATION),
            ("--control-vector", 1, "control vectors are not supported yet"),
            ("--control-vector-scaled --control-vector-layer-range", 2, "control vectors are not supported yet"),
            ("--mmproj -mm --image", 1, "only text models are supported"),
            ("--model-url -mu", 1, _DOWNLOAD),
            ("--list-devices", 0, f"{_GPU}; `gemmafile doctor` tells of this machine"),
            ("--ppl-stride", 1, "windows that overlap are not supported: chunks are read as without it"),
            ("--chat-template-kwargs", 1, "only requests to a server bring variables of a template"),
            ("--yarn-orig-ctx --yarn-ext-factor --yarn-attn-factor --yarn-beta-slow --yarn-beta-fast", 1, _YARN),
            ("--grp-attn-n -gan --grp-attn-w -gaw", 1, "self-extend is not supported"),
            ("--cfg-scale --cfg-negative-prompt", 1, "classifier-free guidance is not supported"),
            ("--in-prefix-bos", 0, "not supported: write <bos> in --in-prefix"),
            ("--chatml", 0, "say --chat-template chatml"),
            ("--instruct -ins", 0, "say -cnv"),
            ("--random-prompt", 0, "left llama.cpp too: say -p"),
            ("--rpc", 1, "models run on this machine only"),
        ],
        refused=True,
    ),
}
"""Flag -> what is made of it."""
