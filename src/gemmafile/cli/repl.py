"""The chat in a terminal, or over a pipe: a message a line, an answer, and commands that begin with a slash."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gemmafile import __version__
from gemmafile.cli.answers import write_answer
from gemmafile.cli.conversation import ASSISTANT, USER, Conversation
from gemmafile.cli.details import describe_speed, show_prompt
from gemmafile.cli.lines import LineReader
from gemmafile.cli.run import Plan, read_text
from gemmafile.cli.streams import Streams
from gemmafile.errors import ContextOverflow, GemmafileError, nearest
from gemmafile.settings import SamplingSettings

if TYPE_CHECKING:
    from gemmafile.completion import Answer
    from gemmafile.model_api import Model

PROMPT = "> "


def run_chat(model: Model, plan: Plan, streams: Streams) -> int:
    """Chats until the input ends; returns the exit code."""
    settings = plan.run
    template = model.chat_template(plan.template, settings.system_policy)
    with LineReader(settings, streams) as reader:
        chat = Chat(model, plan, streams, Conversation(template, plan.system), reader.is_terminal)
        if reader.is_terminal and not settings.single_turn:
            name = model.metadata.get("general.name", Path(plan.model_path).name)
            streams.say(f"{__version__} · {name} · context {model.n_context} · /help, ctrl-d to leave")
        if plan.prompt is not None:
            if reader.is_terminal and settings.display_prompt and not settings.single_turn:
                streams.write(f"{PROMPT}{plan.prompt}\n")
            chat.send(plan.prompt)
            if settings.single_turn:
                return 0
        chat.listen(reader)
    return chat.exit_code


class Chat:
    """Takes messages and commands until told to stop.

    `is_attended`  somebody sits at a terminal: ctrl-c stops an answer, not the program
    `exit_code`    not 0 when something went wrong and nobody was there to see it
    """

    def __init__(self, model: Model, plan: Plan, streams: Streams, conversation: Conversation, is_attended: bool):
        self.model, self.plan, self.streams, self.conversation = model, plan, streams, conversation
        self.is_attended, self.exit_code = is_attended, 0
        self._attached: list[str] = []
        self._last: Answer | None = None
        self._n_regenerated = 0
        self._is_over = False

    def listen(self, reader: LineReader) -> None:
        """Reads messages until the input ends, /exit, or ctrl-c where nothing was typed."""
        interrupted = False
        while not self._is_over:
            try:
                message = reader.read_message(PROMPT if self.is_attended else "")
            except KeyboardInterrupt:
                self.streams.write("\n")
                if interrupted or not reader.discarded_text():
                    return
                interrupted = True
                continue
            interrupted = False
            if message is None:
                if self.is_attended:
                    self.streams.write("\n")
                return
            self._take(message)

    def _take(self, message: str) -> None:
        """A command, or a message to be answered. Errors are said, and the chat goes on."""
        command = re.fullmatch(r"/([a-zA-Z?]+)(?:\s+(.*))?", message.rstrip(), re.DOTALL)
        try:
            if command:
                self._obey(command[1].lower(), (command[2] or "").strip())
            elif message.strip():
                self.send(message)
                self._is_over = self.plan.run.single_turn
        except GemmafileError as error:
            self.streams.show(f"gemmafile: {error}")
            self.exit_code = 0 if self.is_attended else error.exit_code

    # --- messages ------------------------------------------------------------------------------------------------

    def send(self, message: str) -> None:
        """Answers a message. Raises GemmafileError, the chat as it was before, when that cannot be done."""
        self.conversation.add(USER, "\n\n".join([*self._attached, message]))
        self._n_regenerated = 0
        try:
            is_answered = self._answer()
        except GemmafileError:
            self.conversation.take_back_message()
            raise
        if is_answered:
            self._attached.clear()
        else:
            self.conversation.take_back_message()

    def _answer(self) -> bool:
        """Writes an answer and keeps it; False when it was stopped before its first word."""
        settings = self.plan.run
        token_ids = self.conversation.encode()
        if settings.verbose_prompt:
            show_prompt(self.model, token_ids, self.streams)
        try:
            text, self._last = write_answer(
                self.model, token_ids, self._sampling(), settings, self.streams,
                ctrl_c_stops_it=self.is_attended and not settings.single_turn, in_chat=not settings.single_turn,
            )  # fmt: skip
        except ContextOverflow as error:
            raise GemmafileError(
                f"the chat has {error.n_prompt} tokens with this message and the context holds {error.n_context}: "
                "/clear forgets the chat, /undo its last turn, -c gives a larger context"
            ) from None
        self.streams.end_line()
        if not text and self._last.ending == "cancelled":
            return False
        self.conversation.add(ASSISTANT, self._without_control(self._last) if settings.special else text)
        return True

    def _without_control(self, answer: Answer) -> str:
        """The text of an answer that was shown with its control tokens: those belong to the template."""
        text = self.model.tokenizer.decode(answer.token_ids, at_start=False)
        return text.partition(answer.stop_text)[0] if answer.stop_text else text

    def _sampling(self) -> SamplingSettings:
        """The settings; with a fixed seed, /regen moves it, or the answer would be the same again."""
        sampling = self.plan.sampling
        return replace(sampling, seed=sampling.seed + self._n_regenerated) if sampling.seed >= 0 else sampling

    # --- commands ------------------------------------------------------------------------------------------------

    def _obey(self, name: str, argument: str) -> None:
        """Runs a command. Raises GemmafileError for one there is not, naming the nearest."""
        if name not in COMMANDS:
            raise GemmafileError(f"there is no command /{name}{nearest(name, COMMANDS)}; /help lists them")
        getattr(self, COMMANDS[name][1].__name__)(argument)

    def help(self, argument: str) -> None:
        for name, (text, _) in COMMANDS.items():
            self.streams.show(f"  /{name:<9} {text}")
        self.streams.show('  """ ... """  a message of several lines; so does a \\ at a line\'s end, or alt-return')
        self.streams.show("  ctrl-c stops an answer, ctrl-d leaves; a space before a slash makes it plain text")

    def clear(self, argument: str) -> None:
        self.conversation.clear()
        self._attached.clear()

    def undo(self, argument: str) -> None:
        if self.conversation.take_back_message() is None:
            raise GemmafileError("/undo: there is no message to take back")

    def regen(self, argument: str) -> None:
        before = self.conversation.take_back_answer()
        if before is None:
            raise GemmafileError("/regen: there is no answer to give again")
        self._n_regenerated += 1
        is_answered = False
        try:
            is_answered = self._answer()
        finally:
            if not is_answered:
                self.conversation.add(ASSISTANT, before)

    def stats(self, argument: str) -> None:
        self.streams.show(describe_speed(self._last) if self._last else "no answer yet")

    def context(self, argument: str) -> None:
        n_used, n_context = len(self.model.sequence), self.model.n_context
        n_messages = len(self.conversation.messages)
        self.streams.show(f"{n_used} of {n_context} tokens ({100 * n_used // n_context}%), {n_messages} messages")

    def save(self, argument: str) -> None:
        if not argument:
            raise GemmafileError("/save needs a file: /save chat.md, or chat.json")
        self.conversation.save(_path(argument))
        self.streams.show(f"saved {len(self.conversation.messages)} messages in {argument}")

    def system(self, argument: str) -> None:
        if argument:
            self.conversation.set_system(argument)
        else:
            self.streams.show(self.conversation.system or "there is no system prompt: /system TEXT sets one")

    def read(self, argument: str) -> None:
        if not argument:
            raise GemmafileError("/read needs a file, whose text goes before your next message")
        self._attached.append(read_text(str(_path(argument))))
        self.streams.show(f"{argument}: {len(self._attached[-1])} characters go before your next message")

    def exit(self, argument: str) -> None:
        self._is_over = True


def _path(text: str) -> Path:
    """The path a person wrote, ~ and ~name replaced where they mean somebody. Raises GemmafileError."""
    if "\0" in text:
        raise GemmafileError(f"{text!r} cannot be the name of a file")
    return Path(os.path.expanduser(text))


COMMANDS: dict[str, tuple[str, Callable[[Chat, str], None]]] = {
    "help": ("this list", Chat.help),
    "clear": ("forget the chat, but not the system prompt", Chat.clear),
    "undo": ("take the last message and its answer back", Chat.undo),
    "regen": ("give the last answer again, in other words", Chat.regen),
    "system": ("TEXT: set the system prompt; alone: show it", Chat.system),
    "read": ("FILE: put a file's text before the next message", Chat.read),
    "save": ("FILE: write the chat down, as text or .json", Chat.save),
    "context": ("how full the context is", Chat.context),
    "stats": ("how fast the last answer was", Chat.stats),
    "exit": ("leave", Chat.exit),
}
