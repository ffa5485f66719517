"""`gemmafile chat`: the chat of `gemmafile run`, also with a model that another program serves.

`--connect URL` talks to any server that has OpenAI's API; without it, this is `gemmafile run` in a conversation.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

from gemmafile import __version__
from gemmafile.cli.conversation import Conversation
from gemmafile.cli.flags import HELP, Flag, add_environment, flags_of, help_text, make_settings, read_words
from gemmafile.cli.lines import LineReader
from gemmafile.cli.remote import Answered, Remote
from gemmafile.cli.repl import PROMPT, Chat
from gemmafile.cli.run import Plan, make_sampling, read_text
from gemmafile.cli.streams import Streams
from gemmafile.errors import BadSettings, GemmafileError
from gemmafile.settings import ContextSettings, RunSettings, SamplingSettings, changed, option

USAGE = "gemmafile chat --connect URL [flags]\n       gemmafile chat MODEL [flags of gemmafile run]"
DESCRIPTION = "Chats with a model that a server offers by OpenAI's API: gemmafile's own, llama.cpp's, ollama's, others."

SENT = ("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "top_k", "min_p", "repeat_penalty")
"""Sampling settings that are sent where a flag was given; what a server does not know, it ignores or refuses."""


@dataclass
class ConnectSettings:
    """Which server, and which of its models."""

    connect: str | None = option(
        None, "--connect", help="address of the server, e.g. http://127.0.0.1:8080", metavar="URL"
    )
    model: str = option(
        "", "--model", "-m", help="name of the model (default: the first that the server lists)", metavar="NAME"
    )
    api_key: str = option("", "--api-key", help="its API key (also OPENAI_API_KEY)", metavar="KEY", env="LLAMA_API_KEY")
    timeout: int = option(600, "--timeout", "-to", help="seconds to wait for the server to say something", metavar="N")


GROUPS: tuple[tuple[str, type[Any]], ...] = (
    ("server", ConnectSettings),
    ("prompt and output", RunSettings),
    ("sampling", SamplingSettings),
)


def main(words: list[str]) -> int:
    """Runs the words behind `gemmafile chat`; returns the exit code."""
    is_help = bool({"-h", "--help"} & set(words))
    if not is_help and not any(word.partition("=")[0] == "--connect" for word in words):
        from gemmafile.cli import run

        return run.main([*words, "-cnv"])
    groups = [("help", [HELP]), *((title, flags_of(kind)) for title, kind in GROUPS)]
    flags: list[Flag] = [flag for _, members in groups for flag in members]
    if is_help:
        print(help_text(USAGE, DESCRIPTION, groups))
        return 0
    given = read_words(words, flags)
    add_environment(given, flags)
    if given.words:
        raise BadSettings(f"{given.words[0]!r} belongs to no flag; the model of a server is named by -m")
    run_settings = make_settings(RunSettings, given)
    settings = make_settings(ConnectSettings, given)
    plan = Plan(settings.connect or "", run_settings, make_sampling(given, run_settings), ContextSettings())
    plan.prompt = run_settings.prompt if run_settings.file is None else read_text(run_settings.file)
    system = run_settings.system_prompt
    plan.system = read_text(run_settings.system_prompt_file) if run_settings.system_prompt_file else system
    return talk(settings, plan, Streams(quiet=run_settings.log_disable, verbose=run_settings.verbose))


def talk(settings: ConnectSettings, plan: Plan, streams: Streams) -> int:
    """Chats until the input ends; returns the exit code."""
    key = settings.api_key or os.environ.get("OPENAI_API_KEY", "")
    remote = Remote(settings.connect or "", key, settings.model, settings.timeout)
    name = remote.find_model()
    with LineReader(plan.run, streams) as reader:
        chat = RemoteChat(remote, plan, streams, reader.is_terminal)
        if reader.is_terminal and not plan.run.single_turn:
            streams.say(f"{__version__} · {name} at {remote.address} · /help, ctrl-d to leave")
        if plan.prompt is not None:
            if reader.is_terminal and plan.run.display_prompt and not plan.run.single_turn:
                streams.write(f"{PROMPT}{plan.prompt}\n")
            chat.send(plan.prompt)
            if plan.run.single_turn:
                return chat.exit_code
        chat.listen(reader)
    return chat.exit_code


class RemoteChat(Chat):
    """The same chat, its answers made elsewhere."""

    def __init__(self, remote: Remote, plan: Plan, streams: Streams, is_attended: bool):
        nothing: Any = None  # the server has the model and its template
        super().__init__(nothing, plan, streams, Conversation(nothing, plan.system), is_attended)
        self.remote = remote
        self._answered: Answered | None = None

    def _answer(self) -> bool:
        """Writes an answer and keeps it; False when it was stopped before its first word."""
        answered = self._answered = Answered()
        try:
            for piece in self.remote.answer(self.conversation.messages, self._fields(), answered):
                self.streams.write(piece)
        except KeyboardInterrupt:
            if not self.is_attended or self.plan.run.single_turn:
                raise
            answered.ending = "cancelled"
        self.streams.end_line()
        if not answered.text and answered.ending == "cancelled":
            return False
        self.conversation.add("assistant", answered.text)
        return True

    def _fields(self) -> dict[str, Any]:
        sampling = changed(replace(self._sampling()))
        fields = {name: sampling[name] for name in SENT if name in sampling}
        run = self.plan.run
        if run.n_predict >= 0:
            fields["max_tokens"] = run.n_predict
        if run.reverse_prompts:
            fields["stop"] = run.reverse_prompts
        return fields

    def stats(self, argument: str) -> None:
        self.streams.show(self._answered.describe() if self._answered else "no answer yet")

    def context(self, argument: str) -> None:
        used = self._answered.usage if self._answered else {}
        if not used:
            raise GemmafileError("/context: the server has not said how many tokens the chat has")
        self.streams.show(f"{used.get('total_tokens')} tokens, {len(self.conversation.messages)} messages")
