"""Getters that name what is wrong, overrides, and arrays of strings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemmafile.errors import BadFile
from gemmafile.files.gguf import Metadata
from gemmafile.files.gguf_writer import Typed, write_gguf
from gemmafile.files.open import open_model

FIELDS = {
    "an.int": Typed(-7, "int16"),
    "a.float": 0.5,
    "a.bool": True,
    "a.str": "text",
    "an.array": [1, 2, 3],
    "an.array.of.strings": ["a", "bc", "", "d"],
    "nested": [[1], [2, 3]],
}


@pytest.fixture
def metadata(tmp_path: Path) -> Metadata:
    write_gguf(tmp_path / "m.gguf", FIELDS, [])
    return open_model(tmp_path / "m.gguf").metadata


def test_it_is_a_mapping_in_file_order(metadata: Metadata):
    assert list(metadata) == list(FIELDS)
    assert len(metadata) == 7
    assert "an.int" in metadata
    assert metadata["an.int"] == -7
    assert metadata.get("none") is None
    with pytest.raises(KeyError):
        metadata["none"]


def test_getters_give_python_values(metadata: Metadata):
    assert (metadata.get_int("an.int"), metadata.get_float("a.float")) == (-7, 0.5)
    assert (metadata.get_bool("a.bool"), metadata.get_str("a.str")) == (True, "text")
    assert metadata.get_array("an.array").tolist() == [1, 2, 3]
    assert metadata.get_strings("an.array.of.strings").to_list() == ["a", "bc", "", "d"]
    whole = metadata.get_float("an.int")
    assert (whole, type(whole)) == (-7.0, float)


GETTERS: dict[str, Callable[..., Any]] = {
    "int": Metadata.get_int,
    "float": Metadata.get_float,
    "bool": Metadata.get_bool,
    "str": Metadata.get_str,
    "array": Metadata.get_array,
    "strings": Metadata.get_strings,
}


@pytest.mark.parametrize("kind", GETTERS)
def test_a_missing_key_never_defaults_by_itself(metadata: Metadata, kind: str):
    with pytest.raises(BadFile, match=r"m.gguf, key 'an.inte': the key is missing \(did you mean an.int\?\)"):
        GETTERS[kind](metadata, "an.inte")
    for default in (None, 5, "x"):
        assert GETTERS[kind](metadata, "an.inte", default) == default


@pytest.mark.parametrize(
    ("kind", "key", "message"),
    [
        ("int", "a.float", "is a float32, expected an integer"),
        ("int", "a.bool", "is a bool, expected an integer"),
        ("int", "an.array", "is an array of 3 int32, expected an integer"),
        ("float", "a.str", "is a string, expected a number"),
        ("float", "a.bool", "is a bool, expected a number"),
        ("bool", "an.int", "is an int16, expected true or false"),
        ("str", "an.array.of.strings", "is an array of 4 string, expected a string"),
        ("array", "an.array.of.strings", "is an array of 4 string, expected an array of numbers"),
        ("array", "nested", "is an array of 2 array, expected an array of numbers"),
        ("strings", "a.str", "is a string, expected an array of strings"),
    ],
)
def test_a_wrong_type_is_named_with_its_byte(metadata: Metadata, kind: str, key: str, message: str):
    for default in ((), (3,)):
        with pytest.raises(BadFile, match=rf"m.gguf, key '{key}', byte \d+: {message}"):
            GETTERS[kind](metadata, key, *default)


def test_overrides_replace_and_add(metadata: Metadata):
    metadata.override("an.int", 5)
    metadata.override("a.bool", False)
    metadata.override("new", "value")
    metadata.override("new.float", 1.5)
    assert (metadata.get_int("an.int"), metadata.get_bool("a.bool")) == (5, False)
    assert (metadata.get_str("new"), metadata.get_float("new.float")) == ("value", 1.5)
    assert len(metadata) == 9
    metadata.override("an.int", "five")
    with pytest.raises(BadFile, match=r"key 'an.int': was overridden with a string, expected an integer"):
        metadata.get_int("an.int")


def test_typed_remembers_the_type_of_the_file(metadata: Metadata):
    assert metadata.typed("an.int") == Typed(-7, "int16")
    assert [metadata.typed(key).type for key in FIELDS] == [
        "int16",
        "float32",
        "bool",
        "string",
        "int32",
        "string",
        "array",
    ]


def test_a_string_array_is_a_sequence(tmp_path: Path):
    words = [f"wörd {i}" * (i % 5) for i in range(300)]
    write_gguf(tmp_path / "m.gguf", {"words": words}, [])
    strings = open_model(tmp_path / "m.gguf").metadata.get_strings("words")
    assert len(strings) == 300
    assert list(strings) == strings.to_list() == strings[:] == words
    assert strings.to_bytes() == [word.encode() for word in words]
    assert [strings[i] for i in range(-300, 300)] == words + words
    for part in (slice(10, 20), slice(None, None, -7), slice(290, 400), slice(5, 5)):
        assert strings[part] == words[part]
    assert strings[np.int64(7)] == words[7]
    assert words[3] in strings
    assert strings.index(words[44]) == 44
    for wrong in (300, -301):
        with pytest.raises(IndexError):
            strings[wrong]
