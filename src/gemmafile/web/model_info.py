"""What the page says of the model and of its settings: facts of the file, card, licence, notice, limits, defaults.

Everything comes from the file's metadata and, where the file is an archive, from the members that travel with the
weights. Nothing is fetched, and nothing is guessed: what a file does not say is left out.
"""

from __future__ import annotations

import dataclasses
import platform
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gemmafile import __version__
from gemmafile.errors import BadFile, GemmafileError
from gemmafile.files.card import read_front_matter
from gemmafile.pack.card import GEMMA_LICENCE, GEMMA_NOTICE
from gemmafile.settings import SamplingSettings
from gemmafile.web.prompts import CardTemplates, derive_templates, find_trained_format

if TYPE_CHECKING:
    from gemmafile.server.door import Door

MAX_MEMBER_BYTES: Final = 2 << 20


@dataclass(frozen=True)
class Papers:
    """Texts that travel with the weights, "" where there are none.

    sha256   of the weights, as the file's own manifest has it
    """

    card: str = ""
    licence: str = ""
    notice: str = ""
    sha256: str = ""
    packed_by: str = ""

    @property
    def limits(self) -> str:
        """The chapter on usage and limitations of the card."""
        return find_chapter(self.card, r"usage and limitations|limitations|limits")

    @property
    def front(self) -> Mapping[str, str | list[str]]:
        return read_front_matter(self.card)


def read_papers(path: str) -> Papers:
    """What a packed file, a llamafile or another archive carries beside its weights."""
    from gemmafile.files.open import find_archive

    try:
        bundle, _ = find_archive(Path(path))
    except GemmafileError:
        bundle = None
    if bundle is None:
        return Papers()

    def read(*names: str) -> str:
        for name in names:
            try:
                raw = bundle.read(name, MAX_MEMBER_BYTES)
            except BadFile:
                continue
            if raw is not None:
                return raw.decode("utf-8", "replace")
        return ""

    return Papers(read("README.md"), read("LICENSE"), read("NOTICE"), *_read_manifest(Path(path)))


def _read_manifest(path: Path) -> tuple[str, str]:
    from gemmafile.pack.verify import is_packed, read_manifest

    try:
        if not is_packed(path):
            return "", ""
        manifest = read_manifest(path).manifest
    except GemmafileError:
        return "", ""
    return (manifest.weights[0].sha256 if manifest.weights else ""), manifest.tool


def find_chapter(card: str, title: str) -> str:
    """The part of a Markdown text under the first heading that fits, with its sub-headings; "" where there is none."""
    lines = card.splitlines()
    start = level = None
    for i, line in enumerate(lines):
        match = re.match(r"(#{1,6})\s+(.*)", line)
        if match is None:
            continue
        if start is None:
            if re.fullmatch(title, match[2].strip(" #*"), re.IGNORECASE):
                start, level = i, len(match[1])
        elif level is not None and len(match[1]) <= level:
            return "\n".join(lines[start:i])
    return "" if start is None else "\n".join(lines[start:])


def body_of(card: str) -> str:
    """A card without its front matter."""
    lines = card.splitlines()
    marks = [i for i, line in enumerate(lines) if line.strip() == "---"][:2]
    return "\n".join(lines[marks[1] + 1 :]) if len(marks) == 2 and read_front_matter(card) else card


# --- what the page asks for when it opens ----------------------------------------------------------------------------


def describe(door: Door, papers: Papers) -> dict[str, Any]:
    """Names, sizes, defaults and templates: small, and needs no engine."""
    templates, source = find_templates(door, papers)
    trained = find_trained_format(door.chat_template)
    return {
        "model": door.model_name,
        "version": __version__,
        "context": door.n_context,
        "sampling": describe_sampling(door.sampling),
        "n_predict": door.run.n_predict,
        "tells_probabilities": not door.filters,
        "system": door.system or "",
        "templates": {
            "prompt": templates.prompt if templates else "",
            "history": templates.history if templates else "",
            "source": source,
            "user": trained.user,
            "bot": trained.bot,
        },
        "facts": describe_facts(door, papers),
        "notice": _notice(door, papers),
    }


def find_templates(door: Door, papers: Papers) -> tuple[CardTemplates | None, str]:
    """The card's two templates, else the model's own format in their words; and where they come from.

    A YAML block text ends with a line break, which is wanted after the prompt (an answer begins on a line of its own)
    and not after a turn (turns are joined by line breaks).
    """
    prompt, history = papers.front.get("prompt_template"), papers.front.get("history_template")
    if isinstance(prompt, str) and isinstance(history, str) and prompt and history:
        return CardTemplates(prompt, history.removesuffix("\n")), "card"
    return derive_templates(door.chat_template), "model"


def describe_facts(door: Door, papers: Papers) -> list[tuple[str, str]]:
    """(what, value) for the model panel, in the order of interest."""
    model, metadata = door.model, door.model.metadata
    config, info = model.config, door.client.info

    def text(key: str) -> str:
        value = metadata.get(key)
        return value if isinstance(value, str) else ""

    licence = papers.front.get("license") or text("general.license")
    link = papers.front.get("license_link") or text("general.license.link")
    facts = [
        ("Name", text("general.name") or door.model_name),
        ("Made by", text("general.organization") or text("general.author")),
        ("Made from", str(papers.front.get("base_model") or "")),
        ("Quantised by", str(papers.front.get("quantized_by") or text("general.quantized_by"))),
        ("Architecture", f"{config.architecture}, {config.n_layers} layers"),
        ("Parameters", _count(model.n_params)),
        ("Quantisation", model.file_type),
        ("Size", f"{model.n_bytes / 1e6:,.0f} MB, {8 * model.n_bytes / max(1, model.n_params):.2f} bits a weight"),
        ("Context", f"{door.n_context:,} tokens, trained with {config.n_context:,}"),
        ("Vocabulary", f"{door.tokenizer.n_tokens:,} tokens"),
        ("Device", f"CPU, {_processor()}" + (f", {info.threads} threads" if info is not None else "")),
        ("SHA-256", papers.sha256),
        ("Licence", " · ".join(str(part) for part in (licence, link) if part)),
        ("File", Path(model.path).name),
        ("Packed by", papers.packed_by),
        ("Engine", f"gemmafile {__version__}"),
    ]
    return [(name, value) for name, value in facts if value]


def describe_papers(door: Door, papers: Papers) -> dict[str, str]:
    """Markdown and plain text of the model panel: card, limits; licence, notice."""
    licence = papers.licence or (GEMMA_LICENCE if _is_gemma(door) else "")
    return {"card": body_of(papers.card), "limits": papers.limits, "licence": licence, "notice": _notice(door, papers)}


def _notice(door: Door, papers: Papers) -> str:
    return papers.notice.strip() or (GEMMA_NOTICE if _is_gemma(door) else "")


def _is_gemma(door: Door) -> bool:
    return door.model.config.architecture.startswith("gemma")


def _count(n: int) -> str:
    for size, unit in ((1e9, "billion"), (1e6, "million")):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n:,}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


# --- settings --------------------------------------------------------------------------------------------------------

_GROUPS: Final = {
    "temperature": "Main", "top_k": "Main", "top_p": "Main", "min_p": "Main", "seed": "Main",
    "repeat_penalty": "Repetition", "repeat_last_n": "Repetition", "presence_penalty": "Repetition",
    "frequency_penalty": "Repetition", "dry_multiplier": "Repetition", "dry_base": "Repetition",
    "dry_allowed_length": "Repetition", "dry_penalty_last_n": "Repetition",
}  # fmt: skip
_ELSEWHERE: Final = frozenset(
    {"grammar", "json_schema", "n_probs", "samplers", "logit_bias", "dry_sequence_breakers", "min_keep"}
)
"""Settings with a control of their own in the page, or none."""
_STEPS: Final = {"temperature": 0.05, "top_p": 0.01, "min_p": 0.01, "repeat_penalty": 0.05}


def describe_sampling(now: SamplingSettings) -> list[dict[str, Any]]:
    """A control for each field of SamplingSettings: name, label, kind, help, group, and the default of this server."""
    hints = typing.get_type_hints(SamplingSettings)
    controls = []
    for field in dataclasses.fields(SamplingSettings):
        if field.name in _ELSEWHERE:
            continue
        kind = {bool: "flag", int: "whole", float: "number"}.get(hints[field.name])
        if kind is None:
            continue
        controls.append(
            {
                "name": field.name,
                "label": field.name.replace("_", " "),
                "kind": kind,
                "help": field.metadata["help"],
                "group": _GROUPS.get(field.name, "More"),
                "choices": list(field.metadata["extra"].get("choices") or ()),
                "step": _STEPS.get(field.name, 1 if kind == "whole" else 0.05),
                "default": getattr(now, field.name),
            }
        )
    return controls
