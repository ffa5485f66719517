"""LaTeX to MathML that is safe to put in a page.

latex2mathml builds a tree of elements; its own writer does not escape, and it knows `\\href` and `\\style`. So the tree
is written here: elements and attributes from a list, everything else escaped or left out.
"""

from __future__ import annotations

import re
from functools import lru_cache
from html import escape, unescape
from typing import Any, Final

MAX_CHARS: Final = 4000
MAX_DEPTH: Final = 60

ELEMENTS: Final = frozenset(
    "math mrow mi mn mo ms mtext mspace mfrac msqrt mroot mstyle mpadded mphantom menclose msub msup msubsup munder "
    "mover munderover mmultiscripts mprescripts none mtable mtr mtd".split()
)
ATTRIBUTES: Final = frozenset(
    "display displaystyle scriptlevel mathvariant mathcolor mathsize stretchy fence form accent accentunder minsize "
    "maxsize width height depth lspace rspace voffset linethickness notation columnalign columnspacing rowspacing "
    "movablelimits separator symmetric largeop".split()
)
_VALUE: Final = re.compile(r"[#A-Za-z0-9 .,%+-]{1,60}")
_UNDER: Final = {"msub": "munder", "msup": "mover", "msubsup": "munderover"}
_LARGE: Final = frozenset([*"∑∏∐⋃⋂⨆⋁⋀⨁⨂⨀", *"lim max min sup inf argmax argmin".split()])
"""Operators that have their bounds above and below in a formula of its own."""


@lru_cache(maxsize=512)
def render_math(latex: str, is_display: bool) -> str:
    """`latex` as a `<math>` element; as `<code>` where it cannot be read, is too long, or nested too deep."""
    plain = f'<code class="tex">{escape(latex)}</code>'
    if len(latex) > MAX_CHARS or latex.count("{") > 10 * MAX_DEPTH:
        return plain
    from latex2mathml.converter import convert_to_element

    try:
        tree = convert_to_element(latex, display="block" if is_display else "inline")
        return _write(tree, is_display, 0)
    except Exception:  # a parser of texts that a model makes up fails in ways of its own
        return plain


class _TooDeep(Exception):
    pass


def _write(element: Any, is_display: bool, depth: int) -> str:
    if depth > MAX_DEPTH:
        raise _TooDeep
    children = list(element)
    tag = str(element.tag)
    if is_display and tag in _UNDER and children and _text_of(children[0]) in _LARGE:
        tag = _UNDER[tag]
    text = escape(_text_of(element), quote=False)
    inside = text + "".join(_write(child, is_display, depth + 1) for child in children)
    if tag not in ELEMENTS:
        return f"<mrow>{inside}</mrow>"
    attributes = "".join(
        f' {name}="{value}"'
        for name, value in element.attrib.items()
        if name in ATTRIBUTES and _VALUE.fullmatch(value) and (tag == "math") == (name == "display")
    )
    return f"<{tag}{attributes}>{inside}</{tag}>"


def _text_of(element: Any) -> str:
    """The characters of an element; the library writes some of them as `&#x02211;`."""
    return unescape(element.text or "")
