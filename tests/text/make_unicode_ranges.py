"""Writes src/gemmafile/text/unicode_ranges.py: which characters are letters, numbers and punctuation.

    python tests/text/make_unicode_ranges.py > src/gemmafile/text/unicode_ranges.py

Needs the character data of Unicode 16.0: Python 3.14, or `pip install unicodedataplus==16.0.0.post1`.
"""

from __future__ import annotations

import sys
import textwrap
import unicodedata
from itertools import pairwise

VERSION = "16.0.0"
CATEGORIES = {"LETTER": "L", "NUMBER": "N", "PUNCTUATION": "P"}
HEAD = f'''"""Characters by kind, Unicode {VERSION}: written by tests/text/make_unicode_ranges.py, not by hand.

Python's `re` has no \\\\p{{L}}, and `unicodedata` is of another version in every Python. Unicode {VERSION} is what HF
tokenizers 0.21 to 0.23 use. Each entry is a code point in hex, or the first and last of a range.
"""
'''


def category_of() -> object:
    """`category(character)` of Unicode 16.0. Raises SystemExit where this Python has no such data."""
    if unicodedata.unidata_version == VERSION:
        return unicodedata.category
    try:
        import unicodedataplus  # type: ignore[import-not-found]
    except ImportError:
        sys.exit(f"Unicode {VERSION} needed, this Python has {unicodedata.unidata_version}; see the head of this file")
    if unicodedataplus.unidata_version != VERSION:
        sys.exit(f"Unicode {VERSION} needed, unicodedataplus has {unicodedataplus.unidata_version}")
    return unicodedataplus.category


def find_ranges(code_points: list[int]) -> list[str]:
    """Ascending code points as "41-5A" and "AA"."""
    breaks = [i for i, (a, b) in enumerate(pairwise(code_points), 1) if b != a + 1]
    runs = [code_points[i:j] for i, j in pairwise([0, *breaks, len(code_points)])]
    return [f"{run[0]:X}" if len(run) == 1 else f"{run[0]:X}-{run[-1]:X}" for run in runs]


def main() -> None:
    category = category_of()
    print(HEAD, end="")
    for name, letter in CATEGORIES.items():
        ranges = find_ranges([c for c in range(0x110000) if category(chr(c))[0] == letter])  # type: ignore[operator]
        body = "\n".join(textwrap.wrap(" ".join(ranges), 118, break_on_hyphens=False, break_long_words=False))
        print(f'\n{name} = """\n{body}\n"""')


if __name__ == "__main__":
    main()
