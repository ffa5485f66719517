"""The door: everything that routes share. One object, made by whoever starts the server (launch.py, tests)."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from gemmafile.errors import BadSettings, GemmafileError
from gemmafile.server import constraints
from gemmafile.server.body import Limits
from gemmafile.server.filters import Chain, load_filters
from gemmafile.server.metrics import Metrics
from gemmafile.settings import RunSettings, SamplingSettings, ServeSettings

if TYPE_CHECKING:
    from gemmafile.model.config import ModelConfig
    from gemmafile.server.client import EngineClient
    from gemmafile.text.chat import ChatTemplate
    from gemmafile.text.tokenizer import Tokenizer


FILE_TYPES: Final = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 25: "IQ4_NL", 30: "IQ4_XS",
    32: "BF16",
}  # fmt: skip
"""`general.file_type` of GGUF -> name. Source: llama.cpp, include/llama.h, llama_ftype."""


@dataclass(frozen=True)
class ModelFacts:
    """What the model's file says of itself, without its weights.

    `n_params` numbers in its tensors · `n_bytes` of the file · `metadata` the file's keys, a mapping
    """

    path: str
    config: ModelConfig
    n_params: int
    n_bytes: int
    metadata: Mapping[str, Any]

    @property
    def file_type(self) -> str:
        """What most of its tensors are, by the file's own word; "" where it says nothing that is known."""
        value = self.metadata.get("general.file_type")
        return FILE_TYPES.get(value, "") if isinstance(value, int) else ""


@dataclass
class Door:
    """What every route may use.

    client       the engine · `tokenizer`, `chat_template` of the model · `model` the file's own words
    settings     of the server · `run`, `sampling` the flags it was started with: the defaults of every request
    template     name or source of a chat template; None: the model's · `system` for chats that have none
    model_name   in the APIs · `metrics` what is counted
    closers      what is called when the server ends, by those who have something to close
    """

    client: EngineClient
    tokenizer: Tokenizer
    model: ModelFacts
    settings: ServeSettings = field(default_factory=ServeSettings)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    run: RunSettings = field(default_factory=RunSettings)
    template: str | None = None
    system: str | None = None
    started_s: float = field(default_factory=time.time)
    metrics: Metrics = field(default_factory=Metrics)
    stopping: Callable[[], None] | None = None
    closers: list[Callable[[], None]] = field(default_factory=list)

    def stop(self) -> None:
        """Have the server end, as a signal would."""
        if self.stopping is not None:
            self.stopping()

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """Raises BadFile where the model's own does not compile."""
        from gemmafile.text.chat import ChatTemplate

        architecture = self.model.config.architecture
        return ChatTemplate(self.template, architecture, self.tokenizer, self.run.system_policy)

    def prepare(self) -> None:
        """Have ready what the first chat needs. Raises BadFile or BadSettings."""
        assert self.chat_template is not None
        assert self.filters is not None

    def warm_up(self) -> None:
        """Do once what the first chat and the first grammar find cold. May be called on another thread."""
        with contextlib.suppress(GemmafileError):  # a template may refuse such a chat
            if self.chat_template.takes_tools is not None:
                self.chat_template.encode([{"role": "user", "content": "x"}])
        constraints.prepare()

    @property
    def model_name(self) -> str:
        if self.settings.alias:
            return self.settings.alias
        name = self.model.path.replace("\\", "/").rpartition("/")[2]
        return name.removesuffix(".gguf").removesuffix(".llamafile") or "model"

    @property
    def n_context(self) -> int:
        """Positions of one sequence: the engine's, once it is there."""
        return self.client.info.n_ctx if self.client.info is not None else self.model.config.n_context

    @cached_property
    def filters(self) -> Chain:
        """What --filter asks for. Raises BadSettings."""
        return Chain(load_filters(self.settings.filters), self.tokenizer)

    @cached_property
    def limits(self) -> Limits:
        return Limits(max_bytes=int(self.settings.max_body_mb * 1_000_000))

    @property
    def file_metadata(self) -> Mapping[str, Any]:
        return self.model.metadata


def check_serve_settings(settings: ServeSettings) -> None:
    """Raises BadSettings for values that cannot be meant."""
    least: Sequence[tuple[str, float | None, float]] = (
        ("--parallel", settings.parallel, 1), ("--max-queue", settings.max_queue, 0),
        ("--timeout", settings.timeout, 1), ("--max-body-mb", settings.max_body_mb, 0.001),
        ("--max-connections", settings.max_connections, 1), ("--stop-timeout", settings.stop_timeout, 0),
        ("--keep-alive", settings.keep_alive, 0), ("--max-tokens", settings.max_tokens, 1),
        ("--max-seconds", settings.max_seconds, 0), ("--port", settings.port, 0),
    )  # fmt: skip
    for flag, value, low in least:
        if value is not None and not value >= low:
            raise BadSettings(f"{flag} is {value:g}, expected {low:g} or more")
    if settings.port is not None and settings.port > 65535:
        raise BadSettings(f"--port is {settings.port}, expected 0 to 65535")
    if (settings.ssl_key_file is None) != (settings.ssl_cert_file is None):
        raise BadSettings("HTTPS needs both --ssl-key-file and --ssl-cert-file")
    if settings.path is not None and not os.path.isdir(settings.path):
        raise BadSettings(f"--path {settings.path}: there is no such folder")
    if settings.prefix and not settings.prefix.startswith("/"):
        raise BadSettings(f"--api-prefix {settings.prefix!r} has to begin with a slash")
