"""What HTML may come out of the renderer: a parser that knows every element and attribute, and refuses the rest."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from gemmafile.web import mathml, render

VOID = frozenset({"br", "hr"})
ATTRIBUTES = {
    "a": {"href", "title", "target", "rel"}, "div": {"class", "tabindex"}, "span": {"class", "tabindex"},
    "button": {"class", "type"}, "pre": {"tabindex"}, "code": {"class"}, "ol": {"start"}, "td": {"class"},
    "th": {"class"},
}  # fmt: skip
CLASSES = re.compile(r"code|code-head|copy|math|table|plain|tex|left|right|center|[a-z]")


class Checker(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in render.ELEMENTS or tag in mathml.ELEMENTS, tag
        known = mathml.ATTRIBUTES if tag in mathml.ELEMENTS else ATTRIBUTES.get(tag, set())
        for name, value in attrs:
            assert name in known, (tag, name)
            if name == "href":
                assert re.match(r"(https?://|mailto:)", value or "", re.IGNORECASE), value
            elif name == "class":
                assert CLASSES.fullmatch(value or ""), value
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID, f"<{tag}/> is no way to close it in HTML"
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError("a comment")

    handle_decl = handle_pi = unknown_decl = handle_comment


def check_html(html: str) -> str:
    """The text of sound HTML. Fails the test for an element or attribute that should not be there."""
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert not checker.open, checker.open
    return "".join(checker.text)
