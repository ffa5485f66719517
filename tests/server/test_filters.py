"""Filters: what they cover up, in one piece or a character at a time, in prompts and in answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemmafile.errors import BadFile, BadSettings
from gemmafile.server import filters
from gemmafile.server.filters import MASK, Chain, Filter, load_filters
from gemmafile.settings import ServeSettings
from tests.server.running import running

PERSONAL = [
    ("write to jane.doe+x@mail.example.org, please", "write to [mail], please"),
    ("call +49 170 1234567 now", "call [phone] now"),
    ("(555) 123-4567 or 555-123-4567", "[phone] or [phone]"),
    ("DE89 3704 0044 0532 0130 00 is mine", "[account] is mine"),
    ("card 4111 1111 1111 1111.", "card [account]."),
    ("on 2024-11-23 at 10:30 we were 12,500 in 3.11.7", "on 2024-11-23 at 10:30 we were 12,500 in 3.11.7"),
    ("@ home + away (a) 5", "@ home + away (a) 5"),
]


def spell(made: Filter, text: str, step: int) -> str:
    answer = made.start_answer()
    return "".join(answer.push(text[i : i + step]) for i in range(0, len(text), step)) + answer.flush()


@pytest.mark.parametrize(("text", "expected"), PERSONAL)
def test_personal_data(text: str, expected: str) -> None:
    (made,) = load_filters(["personal-data"])
    assert made.change_prompt(text) == expected
    assert {spell(made, text, step) for step in (1, 2, 3, 7, 1000)} == {expected}


def test_prose_is_not_held_back() -> None:
    answer = load_filters(["personal-data"])[0].start_answer()
    assert answer.push("It was a dark night, and ") == "It was a dark night, and "


def test_what_is_held_back_is_bounded() -> None:
    answer = load_filters(["personal-data"])[0].start_answer()
    assert len(answer.push("1" * 10_000)) >= 9_900


def test_words_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("# a comment\nfrobnicate\nblue moon\n\n")
    (made,) = load_filters([f"words:{tmp_path / 'words'}"])
    text = "Frobnicate once in a BLUE MOON, unfrobnicated; blue moons, blue, moon"
    expected = f"{MASK} once in a {MASK}, unfrobnicated; blue moons, blue, moon"
    assert made.change_prompt(text) == expected
    assert {spell(made, text, step) for step in (1, 2, 5, 1000)} == {expected}


def test_filters_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="did you mean personal-data"):
        load_filters(["personal-date"])
    for wrong in ("words", "personal-data:x"):
        with pytest.raises(BadSettings):
            load_filters([wrong])
    (tmp_path / "empty").write_text("\n")
    for name in ("none", "empty"):
        with pytest.raises(BadFile):
            load_filters([f"words:{tmp_path / name}"])


class Strict:
    """Refuses prompts with a word, and answers that get longer than three characters."""

    def __init__(self, argument: str) -> None:
        self.argument = argument

    def change_prompt(self, text: str) -> str:
        if self.argument in text:
            raise filters.Refused(f"{self.argument} is not talked about here")
        return text

    def start_answer(self) -> Strict:
        return Strict(self.argument)

    def push(self, text: str) -> str:
        self.n = getattr(self, "n", 0) + len(text)
        if self.n > 3:
            raise filters.Refused("enough")
        return text

    def flush(self) -> str:
        return ""


@pytest.mark.parametrize("stream", [False, True])
def test_a_filter_of_others(small_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    monkeypatch.setitem(filters.BUILT_IN, "strict", Strict)
    with running(small_path, ServeSettings(filters=["strict:Fight"])) as server:
        found = server.post("/completion", {"prompt": "the Fight club", "stream": stream})
        assert found.status == 400
        assert found.json["error"]["message"] == "Fight is not talked about here"
        found = server.post("/completion", {"prompt": "the", "n_predict": 50, "ignore_eos": True, "stream": stream})
        last = found.events[-1] if stream else found.json
        assert last["stop"]
        text = "".join(event["content"] for event in found.events) if stream else last["content"]
        assert len(text) <= 3
        assert server.post("/completion", {"prompt": "the", "n_probs": 1}).status == 400
        assert len(server.door.client.jobs) == 0


def test_only_what_changes_is_encoded_again(small_path: Path) -> None:
    from gemmafile.files.open import open_model
    from gemmafile.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(open_model(small_path).metadata)
    chain = Chain(load_filters(["personal-data"]), tokenizer)
    control = [i for i in range(tokenizer.n_tokens) if tokenizer.is_control(i)][:2]
    odd = [tokenizer.encode("a")[-1]] * 3
    ids = [control[0], *odd, control[1], *tokenizer.encode("mail a@b.cd now", add_special=False), control[0]]
    changed = chain.change_ids(ids)
    assert changed[:5] == ids[:5]
    assert changed[-1] == ids[-1]
    assert tokenizer.decode(changed[5:-1]) == "mail [mail] now"
