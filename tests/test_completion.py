"""Stop strings in a stream, and what two prompts share."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemmafile.completion import StopStrings, keep_common_prefix
from gemmafile.engine.pages import Pages, Sequence
from gemmafile.errors import BadSettings, ContextOverflow

LETTERS = st.text("ab", max_size=12)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


def cut(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


@given(LETTERS, STOPS, st.lists(st.integers(0, 12), max_size=6))
def test_a_stream_is_cut_at_the_first_stop_string_however_it_comes(
    text: str, stops: list[str], places: list[int]
) -> None:
    """Where two stop strings overlap, the one that is complete first counts."""
    watch, shown = StopStrings(stops), ""
    for piece in cut(text, places):
        shown += watch.push(piece)
        if watch.found is not None:
            break
        assert not any(stop in shown for stop in stops)
    shown += watch.flush()
    ends = [at for at in range(len(text) + 1) if any(text[:at].endswith(stop) for stop in stops)]
    if not ends:
        assert (shown, watch.found) == (text, None)
    else:
        assert watch.found is not None
        assert text.startswith(shown + watch.found)
        assert not any(stop in shown for stop in stops)


@given(LETTERS, STOPS)
def test_only_what_may_begin_a_stop_string_is_held_back(text: str, stops: list[str]) -> None:
    watch = StopStrings(stops)
    shown = watch.push(text)
    held = watch.flush()
    if watch.found is None:
        assert shown + held == text
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)
    else:
        assert held == ""


def test_nothing_to_watch_for_holds_nothing_back() -> None:
    watch = StopStrings(["", ""])
    assert watch.push("abc") == "abc"
    assert watch.flush() == ""


def sequence(*token_ids: int) -> Sequence:
    made = Sequence(Pages(8, lambda page: None))
    made.extend(list(token_ids))
    return made


@pytest.mark.parametrize(
    ("cached", "wanted", "left"),
    [
        ([], [1, 2], [1, 2]),
        ([1, 2], [1, 2, 3], [3]),
        ([1, 2, 3], [1, 2, 3], [3]),
        ([1, 2, 3, 4], [1, 2], [2]),
        ([1, 2, 3], [1, 9, 3], [9, 3]),
        ([5], [1], [1]),
    ],
)
def test_what_a_prompt_shares_is_kept_and_its_last_token_always_computed(
    cached: list[int], wanted: list[int], left: list[int]
) -> None:
    made = sequence(*cached)
    assert keep_common_prefix(made, wanted, 100) == left
    assert made.token_ids + left == wanted


def test_a_prompt_that_does_not_fit_changes_nothing() -> None:
    made = sequence(1, 2, 3)
    with pytest.raises(ContextOverflow) as caught:
        keep_common_prefix(made, [9] * 11, 10)
    assert (caught.value.n_prompt, caught.value.n_context) == (11, 10)
    with pytest.raises(BadSettings, match="empty"):
        keep_common_prefix(made, [], 10)
    assert made.token_ids == [1, 2, 3]
