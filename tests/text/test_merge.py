import random
from itertools import pairwise

import pytest

from gemmafile.text.merge import NEVER, merge_symbols


def merge_by_scanning(symbols: list[str], ranks: dict[str, int]) -> list[str]:
    """The definition: look at all pairs, join the best, start again."""
    while len(symbols) > 1:
        best = min(ranks.get(left + right, NEVER) for left, right in pairwise(symbols))
        if best == NEVER:
            break
        at = next(i for i, (left, right) in enumerate(pairwise(symbols)) if ranks.get(left + right, NEVER) == best)
        symbols = [*symbols[:at], symbols[at] + symbols[at + 1], *symbols[at + 2 :]]
    return symbols


@pytest.mark.parametrize("seed", range(20))
def test_joins_are_those_of_the_definition(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(50):
        pieces = {"".join(rng.choice("abc") for _ in range(rng.randint(2, 5))) for _ in range(rng.randint(0, 20))}
        ranks = {piece: rng.randint(0, 6) for piece in sorted(pieces)}
        symbols = [rng.choice("abc") for _ in range(rng.randint(0, 40))]
        merged = merge_symbols(symbols, lambda left, right, ranks=ranks: ranks.get(left + right, NEVER))
        assert merged == merge_by_scanning(symbols, ranks)


def test_ties_go_to_the_left() -> None:
    assert merge_symbols(list("aaa"), lambda left, right: 0 if left + right == "aa" else NEVER) == ["aa", "a"]


def test_a_long_word_takes_time_in_proportion() -> None:
    """200,000 symbols: a second or so; a quadratic algorithm takes hours, and the test's time limit ends it."""
    pieces = {"a" * 2**k: k for k in range(1, 9)}
    merged = merge_symbols(["a"] * 200_000, lambda left, right: pieces.get(left + right, NEVER))
    assert "".join(merged) == "a" * 200_000
    assert merged[0] == "a" * 256
