import pytest

from gemmafile.text.special import SpecialMatcher

TEXTS = {"<a>": 1, "<ab>": 2, "\n": 3, "\n\n": 4, "<a><b>": 5}
MATCHER = SpecialMatcher(TEXTS, control=[1, 2, 5])


def split(text: str, trusted: bool = True) -> list[str | int]:
    return list(MATCHER.split(text, [(len(text), trusted)]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("x", ["x"]),
        ("<a>", [1]),
        ("x<a>y<ab>", ["x", 1, "y", 2]),
        ("<<a>>", ["<", 1, ">"]),
        ("<a", ["<a"]),
        ("<a><b>", [5]),
        ("<a><c>", [1, "<c>"]),
        ("\n\n\n", [4, 3]),
    ],
)
def test_the_leftmost_then_the_longest_is_taken(text: str, expected: list[str | int]) -> None:
    assert split(text) == expected


def test_control_needs_trust_and_the_rest_does_not() -> None:
    assert split("<a>\n<ab>", trusted=False) == ["<a>", 3, "<ab>"]


def test_a_control_token_does_not_reach_across_two_parts() -> None:
    for cut in range(1, 3):
        assert list(MATCHER.split("<a>", [(cut, True), (3, True)])) == ["<a>"]
    assert list(MATCHER.split("x<a>y", [(1, False), (4, True), (5, False)])) == ["x", 1, "y"]
    assert list(MATCHER.split("<a><b>", [(3, True), (6, False)])) == [1, "<b>"], "the shorter one that is trusted"


def test_a_user_defined_token_reaches_across_parts() -> None:
    assert list(MATCHER.split("\n\n", [(1, True), (2, False)])) == [4]


def test_empty_parts_are_nothing() -> None:
    assert list(MATCHER.split("<a>", [(0, False), (3, True), (3, False)])) == [1]


def test_no_tokens_no_cuts() -> None:
    assert list(SpecialMatcher({}, ()).split("abc", [(3, True)])) == ["abc"]
    assert list(SpecialMatcher({"": 7}, ()).split("abc", [(3, True)])) == ["abc"]


def test_characters_that_mean_something_to_re() -> None:
    texts = {text: i for i, text in enumerate(["[x]", "^^", "--", "\\d", ".*", "(a)", "]]", "a-z"])}
    matcher = SpecialMatcher(texts, ())
    for text, i in texts.items():
        assert list(matcher.split(f"q{text}q", [(len(text) + 2, False)])) == ["q", i, "q"]
