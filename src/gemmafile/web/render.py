"""Markdown to HTML that is safe to put in the page: for the page, the page without JavaScript, and the model card.

In: text that nobody has checked. Out: HTML of a fixed set of elements (`ELEMENTS`). HTML in the text stays text, links
lead to http, https or mailto and nowhere else, pictures become links, and neither length nor nesting nor time is
unbounded. A streamed answer is rendered block by block (`render_open`): what is finished once, the rest again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from html import escape
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from gemmafile.web.clock import Clock, TooSlow
from gemmafile.web.highlight import highlight
from gemmafile.web.mathml import render_math

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.rules_block import StateBlock
    from markdown_it.rules_core import StateCore
    from markdown_it.rules_inline import StateInline
    from markdown_it.token import Token

MAX_CHARS: Final = 400_000
MAX_SECONDS: Final = 1.0
MAX_OPEN_CODE: Final = 8_000
"""An unfinished code block longer than this waits for its colours."""

ELEMENTS: Final = frozenset(
    "p h3 h4 h5 h6 ul ol li blockquote pre code div span button strong em s hr br a table thead tbody tr th td".split()
)

MAX_FORMULA_LINES: Final = 200

_LANGUAGE: Final = re.compile(r"[A-Za-z0-9_+#.-]{1,30}")
_LINES: Final = re.compile(r"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+$")
_SAFE_LINK: Final = re.compile(r"(?:https?://|mailto:)[^\s]+", re.IGNORECASE)
_HEADINGS: Final = {"h1": "h3", "h2": "h4", "h3": "h5", "h4": "h6", "h5": "h6", "h6": "h6"}


class Rendered(NamedTuple):
    """done   HTML of the finished blocks of the text
    used   how much of the text they are, in UTF-16 units as JavaScript counts
    open   HTML of the rest, which what follows may still change
    """

    done: str
    used: int
    open: str


def render(text: str, seconds: float = MAX_SECONDS) -> str:
    """A whole text. One that is too long or takes too long comes back as plain text."""
    if len(text) > MAX_CHARS:
        return _plain(text)
    try:
        return _Page(seconds).render(text)
    except (TooSlow, RecursionError):
        return _plain(text)


def render_open(text: str, seconds: float = MAX_SECONDS) -> Rendered:
    """A text that goes on: `text` is what has come since the last finished block."""
    if len(text) > MAX_CHARS:
        return Rendered("", 0, _plain(text))
    try:
        return _Page(seconds).render_open(text)
    except (TooSlow, RecursionError):
        return Rendered("", 0, _plain(text))


def _plain(text: str) -> str:
    return f'<div class="plain">{escape(text, quote=False)}</div>'


def n_utf16(text: str) -> int:
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


class _Page:
    """One rendering: the parser with its time limit."""

    def __init__(self, seconds: float):
        self.env: dict[str, Any] = {"clock": Clock(seconds), "max_code": None}
        self.parser = _make_parser()

    def render(self, text: str) -> str:
        return str(self.parser.render(text, self.env))

    def render_open(self, text: str) -> Rendered:
        tokens = self.parser.parse(text, self.env)
        lines = _LINES.findall(text)
        cut = _find_cut(tokens, lines)
        split = next((i for i, token in enumerate(tokens) if token.map and token.map[0] >= cut), len(tokens))
        done = self._write(tokens[:split])
        self.env["max_code"] = MAX_OPEN_CODE
        return Rendered(done, n_utf16("".join(lines[:cut])), self._write(tokens[split:]))

    def _write(self, tokens: Sequence[Token]) -> str:
        return str(self.parser.renderer.render(tokens, self.parser.options, self.env))


def _find_cut(tokens: Sequence[Token], lines: Sequence[str]) -> int:
    """The line where the unfinished block begins.

    That is the last block of all; but a last line that has not ended may yet turn out to belong to the block before
    (`2` becomes the second item of a list), so then it is the block before.
    """
    starts = [token.map[0] for token in tokens if token.level == 0 and token.map and token.nesting >= 0]
    is_cut_short = bool(lines) and not lines[-1].endswith(("\n", "\r"))
    if is_cut_short and len(starts) > 1 and starts[-1] == len(lines) - 1:
        return starts[-2]
    return starts[-1] if starts else 0


@cache
def _make_parser() -> MarkdownIt:
    from markdown_it import MarkdownIt
    from mdit_py_plugins.dollarmath import dollarmath_plugin
    from mdit_py_plugins.gfm_autolink import gfm_autolink_plugin

    md = MarkdownIt("commonmark", {"html": False, "maxNesting": 20}).enable(["table", "strikethrough"])
    md.use(gfm_autolink_plugin)
    md.use(dollarmath_plugin, allow_labels=False, allow_space=False, allow_digits=False, double_inline=True)
    md.inline.ruler.before("escape", "math_brackets", _bracket_math)
    md.block.ruler.before("fence", "math_brackets", _bracket_math_block, {"alt": ["paragraph"]})
    md.inline.ruler.before("text", "clock", _check_inline)
    md.block.ruler.before("code", "clock", _check_block)
    md.core.ruler.push("page", _shape)
    md.disable("image")
    md.inline.ruler.before("link", "picture", _picture)
    md.validateLink = lambda url: _SAFE_LINK.fullmatch(url) is not None  # type: ignore[method-assign]
    for name, rule in _RULES.items():
        md.add_render_rule(name, rule)
    return md


# --- the time limit, asked at every inline position and at every block -----------------------------------------------


def _check_inline(state: StateInline, silent: bool) -> bool:
    state.env["clock"].check()
    return False


def _check_block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    state.env["clock"].check()
    return False


# --- what Markdown proper does not have ------------------------------------------------------------------------------

_BRACKETS: Final = {r"\(": r"\)", r"\[": r"\]"}


def _bracket_math(state: StateInline, silent: bool) -> bool:
    r"""\( ... \) and \[ ... \], as models write formulas."""
    opening = state.src[state.pos : state.pos + 2]
    if opening not in _BRACKETS:
        return False
    end = state.src.find(_BRACKETS[opening], state.pos + 2, state.posMax)
    if end < 0 or not state.src[state.pos + 2 : end].strip():
        return False
    if not silent:
        token = state.push("math_inline" if opening == r"\(" else "math_inline_double", "math", 0)
        token.content = state.src[state.pos + 2 : end]
    state.pos = end + 2
    return True


def _bracket_math_block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    r"""A line that begins with \[, up to the line that ends with \]."""
    if state.is_code_block(start) or not state.src.startswith(r"\[", state.bMarks[start] + state.tShift[start]):
        return False
    for line in range(start, min(end, start + MAX_FORMULA_LINES)):
        state.env["clock"].check()
        if line > start and (state.isEmpty(line) or state.sCount[line] < state.blkIndent):
            return False
        if state.src[state.bMarks[line] : state.eMarks[line]].rstrip().endswith(r"\]"):
            break
    else:
        return False
    if not silent:
        text = state.getLines(start, line + 1, state.blkIndent, False).strip()
        token = state.push("math_block", "math", 0)
        token.block, token.content, token.map = True, text[2:-2], [start, line + 1]
        state.line = line + 1
    return True


def _picture(state: StateInline, silent: bool) -> bool:
    """`![text](address)` becomes a link: a picture would be fetched from elsewhere."""
    if state.src[state.pos] != "!" or state.src[state.pos + 1 : state.pos + 2] != "[":
        return False
    if not silent:
        state.pending += "🖼 "
    state.pos += 1
    return True


_TASK: Final = re.compile(r"\[([ xX])\](?=\s)")


def _shape(state: StateCore) -> None:
    """Headings below those of the page; boxes of task lists; no line of text that a browser could not show."""
    for i, token in enumerate(state.tokens):
        token.tag = _HEADINGS.get(token.tag, token.tag)
        if token.type == "inline" and i >= 2 and state.tokens[i - 2].type == "list_item_open" and token.children:
            first = token.children[0]
            if first.type == "text" and (match := _TASK.match(first.content)):
                first.content = ("☐" if match[1] == " " else "☑") + first.content[3:]


# --- writing ---------------------------------------------------------------------------------------------------------


def _write_code(renderer: Any, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    token = tokens[at]
    words = token.info.split(maxsplit=1)
    language = words[0] if words and _LANGUAGE.fullmatch(words[0]) else ""
    code = token.content.removesuffix("\n")
    is_long = env["max_code"] is not None and len(code) > env["max_code"]
    inside = highlight(code, "" if is_long else language, env["clock"])
    return (
        f'<div class="code"><div class="code-head"><span>{escape(language) or "text"}</span>'
        '<button type="button" class="copy">Copy</button></div>'
        f'<pre tabindex="0"><code>{inside}</code></pre></div>\n'
    )


def _write_inline_math(renderer: Any, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    return _math(tokens[at].content, False, env)


def _write_display_math(renderer: Any, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    tag = "div" if tokens[at].block else "span"
    return f'<{tag} class="math" tabindex="0">{_math(tokens[at].content, True, env)}</{tag}>'


def _math(latex: str, is_display: bool, env: Any) -> str:
    env["clock"].check()
    return render_math(latex.strip(), is_display)


def _write_link_open(renderer: Any, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    address = str(tokens[at].attrGet("href") or "")
    if not _SAFE_LINK.fullmatch(address):  # [text]() has none
        return "<a>"
    url = escape(address)
    title = escape(str(tokens[at].attrGet("title") or "")) or url
    return f'<a href="{url}" title="{title}" target="_blank" rel="noopener noreferrer nofollow">'


def _write_table_open(renderer: Any, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    return '<div class="table" tabindex="0"><table>\n'


def _write_table_close(renderer: Any, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    return "</table></div>\n"


def _write_cell_open(renderer: Any, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    """markdown-it aligns with a style attribute, which the page's security policy forbids."""
    side = str(tokens[at].attrGet("style") or "").removeprefix("text-align:")
    name = f' class="{side}"' if side in ("left", "center", "right") else ""
    return f"<{tokens[at].tag}{name}>"


_RULES: Final = {
    "fence": _write_code, "code_block": _write_code, "math_inline": _write_inline_math,
    "math_inline_double": _write_display_math, "math_block": _write_display_math, "link_open": _write_link_open,
    "table_open": _write_table_open, "table_close": _write_table_close, "th_open": _write_cell_open,
    "td_open": _write_cell_open,
}  # fmt: skip
