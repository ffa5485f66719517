"""An ollama Modelfile for a GGUF: the chat template in Go's language, stop texts, sampling, licence."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from gemmafile.errors import BadSettings
from gemmafile.files.gguf import ModelFile

GEMMA: Final = """{{- $system := "" }}
{{- range $i, $message := .Messages }}
{{- if eq .Role "system" }}{{ $system = printf "%s%s\\n\\n" $system .Content }}
{{- else if eq .Role "user" }}<start_of_turn>user
{{ $system }}{{ .Content }}<end_of_turn>
{{ $system = "" }}
{{- else if eq .Role "assistant" }}<start_of_turn>model
{{ .Content }}<end_of_turn>
{{ end }}
{{- end }}<start_of_turn>model
"""
CHATML: Final = """{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
LLAMA3: Final = """{{- range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>

{{ .Content }}<|eot_id|>{{ end }}<|start_header_id|>assistant<|end_header_id|>

"""
TEMPLATES: Final = {
    "<start_of_turn>": (GEMMA, ("<start_of_turn>", "<end_of_turn>")),
    "<|start_header_id|>": (LLAMA3, ("<|start_header_id|>", "<|eot_id|>")),
    "<|im_start|>": (CHATML, ("<|im_start|>", "<|im_end|>")),
}
"""A text of the model's own template -> the template and its stop texts."""

_SAMPLING: Final = {"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}


def write_modelfile(file: ModelFile, target: Path, licence: str | None = None) -> str:
    """The text of a Modelfile whose model is `target`. Raises BadSettings for a path that it cannot name."""
    if any(c in str(target) for c in '\n"'):
        raise BadSettings(f"{str(target)!r} cannot be named in a Modelfile")
    lines = [f"FROM {target}"]
    template = file.metadata.get("tokenizer.chat_template")
    marker = next((marker for marker in TEMPLATES if isinstance(template, str) and marker in template), None)
    if marker is None and str(file.metadata.get("general.architecture", "")).startswith("gemma"):
        marker = "<start_of_turn>"
    if marker is not None:
        text, stops = TEMPLATES[marker]
        lines += [f'TEMPLATE """{text}"""', *(f'PARAMETER stop "{stop}"' for stop in stops)]
    for key, name in _SAMPLING.items():
        value: Any = file.metadata.get(f"general.sampling.{key}")
        if isinstance(value, (int, float)):
            lines.append(f"PARAMETER {name} {value:g}")
    if licence is not None:
        lines.append('LICENSE """' + licence.replace('"""', "'''") + '"""')
    return "\n".join(lines) + "\n"
