"""The model card's prompt and history templates, filled in as the old web page does.

The expected texts were made by running the page's `template` function under node.
"""

from typing import Any

import pytest

from gemmafile.errors import BadSettings
from gemmafile.text.card_template import render_card_template

PROMPT = "<start_of_turn>system\n{{prompt}}<end_of_turn>\n{{history}}\n<start_of_turn>{{char}}"
HISTORY = "<start_of_turn>{{name}}\n{{message}}<end_of_turn>"


def session(*transcript: Any, **values: Any) -> dict[str, Any]:
    return {"prompt": "Be kind.", "transcript": list(transcript), **values}


def test_the_cards_own_templates() -> None:
    turns = (["{{user}}", "Hi"], ["{{char}}", [{"content": " Hel"}, {"content": "lo"}]], ["{{user}}", "Bye"])
    assert render_card_template(PROMPT, HISTORY, session(*turns)) == (
        "<start_of_turn>system\nBe kind.<end_of_turn>\n"
        "<start_of_turn>User\nHi<end_of_turn>\n<start_of_turn>Llama\nHello<end_of_turn>\n"
        "<start_of_turn>User\nBye<end_of_turn>\n<start_of_turn>Llama"
    )


def test_the_names_are_the_sessions() -> None:
    text = render_card_template(PROMPT, HISTORY, session(["{{user}}", "Hi"], char="model", user="user"))
    assert "<start_of_turn>user\nHi" in text
    assert text.endswith("<start_of_turn>model")


def test_what_is_put_in_is_expanded_too() -> None:
    """The trap: a message can name the fields."""
    text = render_card_template(
        "{{history}}|{{message}}", "{{message}}", session(["{{user}}", "{{prompt}} {{char}} {{x}}"])
    )
    assert text == "Be kind. Llama undefined|Be kind. Llama undefined"


def test_fields_of_what_is_put_in_see_the_session_alone() -> None:
    assert (
        render_card_template("{{message}}", "", session(["{{user}}", "<{{message}}{{name}}>"]))
        == "<undefinedundefined>"
    )


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{}}", "undefined"),
        ("{{ prompt }}", "undefined"),
        ("{{pro\nmpt}}", "{{pro\nmpt}}"),
        ("{{{char}}}", "undefined}"),
        ("{char}", "{char}"),
        ("{{char", "{{char"),
        ("{{type}}{{image_selected}}", "chat"),
        ("{{transcript}}", "User,a$&\\1"),
        ("{{message}}", "a$&\\1"),
    ],
)
def test_odd_fields(template: str, expected: str) -> None:
    assert render_card_template(template, "", session(["{{user}}", "a$&\\1"])) == expected


def test_an_empty_chat() -> None:
    assert render_card_template("[{{history}}{{message}}]", HISTORY, session()) == "[]"


@pytest.mark.parametrize("values", [{"prompt": "{{prompt}}"}, {"prompt": "{{a}}", "a": "{{b}}{{b}}", "b": "{{a}}"}])
def test_expansion_without_end_is_refused(values: dict[str, str]) -> None:
    with pytest.raises(BadSettings, match="expands without end"):
        render_card_template("{{prompt}}", "", {"transcript": [], **values})


def test_a_malformed_transcript_is_refused() -> None:
    with pytest.raises(BadSettings, match=r"transcript: expected a list of \[name, text\]"):
        render_card_template("", "", {"transcript": ["hello"]})
