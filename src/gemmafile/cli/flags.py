"""Flags and settings: every field of a settings dataclass is a flag, here both ways.

In: the words of a command line and the environment. Out: settings objects, or help text. Words are read by
llama.cpp's rule, which argparse cannot follow: a flag takes the next word whatever that looks like, so that
`-p "--- a line"` and `--temp -1` are what they seem. argparse only draws the help.
Flags of llama.cpp and llamafile that this engine does not act on are in `foreign.py`.
"""

from __future__ import annotations

import dataclasses
import os
import typing
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from gemmafile.cli.foreign import FOREIGN
from gemmafile.errors import BadSettings, nearest

S = TypeVar("S")

_SWITCH_WORDS = {"1": "on", "true": "on", "enabled": "on", "0": "off", "false": "off", "disabled": "off"}
"""Other spellings of on and off, as llama.cpp takes them."""


_OFF_WORDS = ("0", "false", "off", "disabled")
"""What a variable says to switch off what it is for."""


@dataclass(frozen=True)
class Flag:
    """A flag that sets `field` of a settings class.

    names     all spellings, the long one first · `off` spellings that mean False
    convert   a word to a value; raises ValueError with what was expected · None: the flag takes no value
    bare      the value when no value follows, for flags whose value may be left out
    """

    field: str
    names: tuple[str, ...]
    help: str
    convert: Callable[[str], Any] | None = None
    off: tuple[str, ...] = ()
    choices: tuple[Any, ...] | None = None
    bare: str | None = None
    repeats: bool = False
    metavar: str | None = None
    env: str | None = None

    def value_of(self, word: str, name: str) -> Any:
        """The value of a word that followed `name`. Raises BadSettings."""
        assert self.convert is not None
        if self.choices and "on" in self.choices:
            word = _SWITCH_WORDS.get(word.lower(), word)
        try:
            value = self.convert(word)
        except ValueError as error:
            raise BadSettings(f"{name} is {word!r}, expected {error}") from None
        if self.choices and value not in self.choices:
            near = nearest(str(value), map(str, self.choices))
            raise BadSettings(f"{name} is {word!r}, expected one of {', '.join(map(str, self.choices))}{near}")
        return value


MODEL = Flag(
    "model", ("--model", "-m"), "the model: a GGUF file, or the first part of a split one", str,
    metavar="FILE", env="LLAMA_ARG_MODEL",
)  # fmt: skip
HUB = [
    Flag("hf_repo", ("--hf-repo", "-hf", "-hfr"), "a model of the Hugging Face hub: fetched, or found in its cache",
         str, metavar="OWNER/REPO[:QUANT]"),
    Flag("hf_file", ("--hf-file", "-hff"), "which file of it, in place of :QUANT", str, metavar="NAME"),
    Flag("hf_token", ("--hf-token", "-hft"), "for models that ask for one (default: HF_TOKEN)", str, metavar="TOKEN"),
]  # fmt: skip
"""The model by a name of the hub: `cli/run.py` makes a path of it."""
HELP = Flag("help", ("--help", "-h"), "show this and exit")


@dataclass
class Given:
    """What a command line gave: values by field name, words that belong to no flag, and notes for the user."""

    values: dict[str, Any] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def flags_of(kind: type[Any]) -> list[Flag]:
    """The flags of a settings dataclass."""
    hints = typing.get_type_hints(kind)
    return [_flag_of(f, hints[f.name]) for f in dataclasses.fields(kind)]


def _flag_of(f: dataclasses.Field[Any], hint: Any) -> Flag:
    meta, extra = f.metadata, f.metadata["extra"]
    kinds = typing.get_args(hint) or (hint,)
    is_list = extra.get("action") == "append"
    plain: Callable[[str], Any] = str
    if not is_list and (int in kinds or float in kinds):
        plain = whole_number if int in kinds else number
    return Flag(
        f.name,
        meta["flags"],
        meta["help"] + _default_text(f, meta["help"]),
        convert=None if bool in kinds else plain,
        off=meta["off"],
        choices=extra.get("choices"),
        bare=extra.get("const"),
        repeats=is_list,
        metavar=meta["metavar"],
        env=meta["env"],
    )


def _default_text(f: dataclasses.Field[Any], help: str) -> str:
    shown = isinstance(f.default, (int, float, str)) and not isinstance(f.default, bool) and f.default != ""
    return f" (default: {f.default})" if shown and "default:" not in help else ""


def whole_number(word: str) -> int:
    """8192, or 8k for it."""
    try:
        return int(word[:-1]) * 1024 if word[-1:] in ("k", "K") else int(word)
    except ValueError:
        raise ValueError("a whole number") from None


def number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise ValueError("a number") from None


def read_words(words: list[str], flags: list[Flag]) -> Given:
    """The flags and values of a command line. Raises BadSettings, naming the nearest flag there is."""
    by_name = {name: flag for flag in flags for name in (*flag.names, *flag.off)}
    given, left = Given(), deque(words)
    while left:
        word = left.popleft()
        if word == "--":
            given.words += left
            break
        name, inline = _split(word, by_name)
        if name in by_name:
            _take(by_name[name], name, inline, left, given)
        elif name in FOREIGN:
            _take_foreign(name, inline, left, given)
        elif len(word) > 1 and word.startswith("-"):
            raise BadSettings(f"unknown flag {name}{nearest(name, [*by_name, *FOREIGN])}; --help lists them")
        else:
            given.words.append(word)
    return given


def _split(word: str, by_name: Mapping[str, Flag]) -> tuple[str, str | None]:
    """A word's flag, and its value where it was written --flag=value. --n_predict is --n-predict, as in llama.cpp."""
    if not word.startswith("--"):
        return word, None
    name, equals, value = word.partition("=")
    return name.replace("_", "-"), value if equals else None


def _take(flag: Flag, name: str, inline: str | None, left: deque[str], given: Given) -> None:
    if flag.convert is None:
        if inline is not None:
            raise BadSettings(f"{name} takes no value")
        given.values[flag.field] = name not in flag.off
        return
    if inline is None and flag.bare is not None:
        follows = bool(left) and _SWITCH_WORDS.get(left[0], left[0]) in (flag.choices or ())
        inline = left.popleft() if follows else flag.bare
    if inline is None:
        if not left:
            raise BadSettings(f"{name} needs a value: {flag.help}")
        inline = left.popleft()
    value = flag.value_of(inline, name)
    given.values[flag.field] = [*given.values.get(flag.field, ()), value] if flag.repeats else value


def _take_foreign(name: str, inline: str | None, left: deque[str], given: Given) -> None:
    flag = FOREIGN[name]
    for _ in range(flag.n_values if inline is None else 0):
        if left:
            left.popleft()
    if flag.refused:
        raise BadSettings(f"{name}: {flag.text}")
    if flag.text:
        given.notes.append(f"{name} is accepted and does nothing: {flag.text}")


def add_environment(given: Given, flags: list[Flag], environ: Mapping[str, str] = os.environ) -> None:
    """Fill what the command line did not give from the environment (LLAMA_ARG_...). Raises BadSettings."""
    for flag in flags:
        word = environ.get(flag.env, "") if flag.env else ""
        if word and flag.env and flag.field not in given.values:
            value = flag.value_of(word, flag.env) if flag.convert is not None else word.lower() not in _OFF_WORDS
            given.values[flag.field] = [value] if flag.repeats else value


def make_settings(kind: type[S], given: Given) -> S:
    """A settings object: what was given, defaults for the rest."""
    names = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in given.values.items() if name in names})


def help_text(usage: str, description: str, groups: list[tuple[str, list[Flag]]]) -> str:
    """What --help prints."""
    import argparse

    parser = argparse.ArgumentParser(
        prog="gemmafile", usage=usage, description=description, add_help=False, allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34),
    )  # fmt: skip
    for title, flags in groups:
        group = parser.add_argument_group(title)
        for flag in flags:
            shape: dict[str, Any] = {"action": "store_true"} if flag.convert is None else {"metavar": _metavar(flag)}
            if flag.bare is not None:
                shape["nargs"] = "?"
            help = flag.help.replace("%", "%%") + (f" [{flag.env}]" if flag.env else "")
            group.add_argument(*flag.names[:2], *flag.names[2:], *flag.off, dest=flag.field, help=help, **shape)
    return parser.format_help()


def _metavar(flag: Flag) -> str:
    return flag.metavar or ("|".join(map(str, flag.choices)) if flag.choices else "VALUE")
