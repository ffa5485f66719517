"""Default arguments that a model file brings along: the `.args` of a llamafile, ours or another's.

One argument a line. A line `...` is where the user's words go; without one, the file's arguments count only when the
user gave none. Flags of a server that a llamafile names are left out where there is no such server here.
"""

from __future__ import annotations

from pathlib import Path

from gemmafile.cli.flags import Flag, Given, add_environment, read_words
from gemmafile.cli.foreign import FOREIGN

applied: set[str] = set()
"""Files whose arguments are in the words already: a packed file has looked at its own."""


def merge_args(lines: list[str], words: list[str]) -> list[str]:
    """A file's default arguments and the user's."""
    if "..." in lines:
        at = lines.index("...")
        return [*lines[:at], *words, *(line for line in lines[at + 1 :] if line != "...")]
    return words or lines


def with_defaults(words: list[str], flags: list[Flag], given: Given) -> Given:
    """The words read again with the model's default arguments among them, where it has any. Raises BadFile."""
    model = given.values.get("model", given.words[0] if len(given.words) == 1 else None)
    if model is None or model in applied or str(model).endswith(".gguf"):
        return given
    from gemmafile.files.open import find_archive

    bundle, member = find_archive(Path(str(model)))
    if bundle is None:
        return given
    system = bundle.read("system-prompt.txt")
    if system is not None and not {"system_prompt", "system_prompt_file"} & given.values.keys():
        given.values["system_prompt"] = system.decode("utf-8", "replace")
    lines = bundle.default_args()
    if not lines:
        return given
    lines, named = without_foreign(lines)
    user = without_model(words, str(model))
    if named is not None and member is None and any(Path(w.name).name == Path(named).name for w in bundle.weights):
        model = f"{bundle.path}@{Path(named).name}"
    merged = read_words(["-m", str(model), *merge_args(lines, user)], flags)
    add_environment(merged, flags)
    if "system_prompt" in given.values and "system_prompt_file" not in merged.values:
        merged.values.setdefault("system_prompt", given.values["system_prompt"])
    return merged


def without_model(words: list[str], model: str) -> list[str]:
    """The user's words but the model's name, with its flag."""
    kept, left = [], list(words)
    while left:
        word = left.pop(0)
        if word in ("-m", "--model") and left and left[0] == model:
            left.pop(0)
        elif word not in (model, f"--model={model}"):
            kept.append(word)
    return kept


def without_foreign(lines: list[str]) -> tuple[list[str], str | None]:
    """A file's arguments but its -m and flags that are refused here; and what -m named."""
    kept: list[str] = []
    named, left = None, list(lines)
    while left:
        line = left.pop(0)
        if line in ("-m", "--model") and left:
            named = left.pop(0).removeprefix("/zip/")
        elif line in FOREIGN and FOREIGN[line].refused:
            del left[: FOREIGN[line].n_values]
        else:
            kept.append(line)
    return kept, named
