"""--override-kv KEY=TYPE:VALUE."""

from __future__ import annotations

from typing import Any

import pytest

from gemmafile.errors import BadSettings
from gemmafile.overrides import parse_override


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("a.b=int:-5", ("a.b", -5)),
        ("a=float:1e-3", ("a", 0.001)),
        ("a=bool:true", ("a", True)),
        ("a=bool:false", ("a", False)),
        ("a=str:x=y:z", ("a", "x=y:z")),
        ("a=str:", ("a", "")),
    ],
)
def test_entries_are_read(entry: str, expected: tuple[str, Any]) -> None:
    key, value = parse_override(entry)
    assert (key, value) == expected
    assert type(value) is type(expected[1])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("a", "give KEY=TYPE:VALUE"),
        ("=int:1", "give KEY=TYPE:VALUE"),
        ("a=1", "give KEY=TYPE:VALUE"),
        ("a=integer:1", r"no type 'integer' \(did you mean int\?\)"),
        ("a=int:1.5", "'1.5' is no int"),
        ("a=bool:1", "'1' is no bool"),
        ("a=float:x", "'x' is no float"),
    ],
)
def test_a_mistake_is_named(entry: str, message: str) -> None:
    with pytest.raises(BadSettings, match=message):
        parse_override(entry)
