"""Markdown to HTML: what it should look like, what may never come out of it, and that it ends."""

from __future__ import annotations

import random
import time

import pytest

from gemmafile.web.mathml import render_math
from gemmafile.web.render import MAX_CHARS, n_utf16, render, render_open
from tests.web.html_check import check_html


def test_the_common_things() -> None:
    html = render(
        "# Title\n\nsome *words* and `code`\n\n- one\n- [x] two\n\n| a | b |\n|:-:|--:|\n| 1 | 2 |\n\n~~gone~~"
    )
    for expected in (
        "<h3>Title</h3>", "<em>words</em>", "<code>code</code>", "<li>one</li>", "<li>☑ two</li>",
        '<th class="center">a</th>', '<td class="right">2</td>', "<s>gone</s>",
    ):  # fmt: skip
        assert expected in html
    check_html(html)


def test_code_is_coloured_and_can_be_copied() -> None:
    html = render('```python\ndef f():  # why\n    return "<b>"\n```')
    assert '<span class="k">def' in html
    assert '<span class="c"># why' in html
    assert "&lt;b&gt;" in html
    assert 'class="copy"' in html
    assert check_html(html).endswith('def f():  # why\n    return "<b>"\n')


@pytest.mark.parametrize("language", ["", "nonsense", "python title=x", '"><script>', "text", "c++", "C#", "js"])
def test_any_language_will_do(language: str) -> None:
    assert "x = 1" in check_html(render(f"```{language}\nx = 1\n```"))


@pytest.mark.parametrize(
    ("text", "is_display"),
    [("$x^2$", False), ("$$x^2$$", True), (r"\(x^2\)", False), (r"\[x^2\]", True), ("$$\nx^2\n$$", True)],
)
def test_formulas_as_models_write_them(text: str, is_display: bool) -> None:
    html = render(f"so {text}" if "\n" not in text else text)
    assert "<msup><mi>x</mi><mn>2</mn></msup>" in html
    assert ('display="block"' in html) == is_display


@pytest.mark.parametrize(
    "text", ["It costs $5 and $10.", r"a \$5 bill", "`$x$`", r"`\(x\)`", "$", "$$", r"\(", r"\[ \]"]
)
def test_what_is_no_formula(text: str) -> None:
    assert "<math" not in render(text)


def test_bounds_of_a_sum_are_above_and_below() -> None:
    assert "<munderover><mo>∑</mo>" in render_math(r"\sum_{i=1}^n i", True)
    assert "<msubsup><mo>∑</mo>" in render_math(r"\sum_{i=1}^n i", False)


# --- what may never come out -----------------------------------------------------------------------------------------

ATTACKS = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "[x](javascript:alert(1))", "[x](JaVaScRiPt:alert(1))",
    "[x](data:text/html;base64,PHN2Zz4=)", "[x](vbscript:x)", "[x](//evil.example)", "![x](https://evil.example/x.png)",
    "[x]: javascript:alert(1)\n\n[x]", '[a](https://x.example "t\\" onmouseover=alert(1)")', "<javascript:alert(1)>",
    "[x](https://x.example/\"onclick=alert(1))", "```\"><script>\nx\n```", "```a\nb\n```<script>", "&lt;script&gt;",
    r"$\text{<script>alert(1)</script>}$", r"$\text{&lt;script&gt;}$", r"$\href{javascript:alert(1)}{x}$",
    r"$\style{background:url(//evil.example)}{x}$", r"$\class{copy}{x}$", r"$\color{red\" onclick=x}x$",
    r"$\begin{array}{c\"onclick=1}x\end{array}$", "<!-- x -->", "<![CDATA[x]]>", "<?x?>", "www.evil.example<script>",
    "https://x.example/<script>", "| <b> |\n|---|\n| <i> |", "\x00<b>\x00", "[x](http://a\tb)", "<a href=x>",
]  # fmt: skip


@pytest.mark.parametrize("text", ATTACKS)
def test_attacks_stay_text(text: str) -> None:
    check_html(render(text))
    check_html("".join(part for part in render_open(text) if isinstance(part, str)))


def test_pictures_are_links() -> None:
    html = render("![a cat](https://x.example/cat.png)")
    assert "<img" not in html
    assert '<a href="https://x.example/cat.png"' in html


def test_links_tell_where_they_lead_and_tell_nobody_who_came() -> None:
    html = render("[click](https://x.example/?q=1)")
    assert 'title="https://x.example/?q=1"' in html
    assert 'rel="noopener noreferrer nofollow"' in html


PIECES = [
    "*", "**", "_", "`", "```", "~~~", "\n", "\n\n", "    ", "- ", "1. ", "> ", "# ", "| ", "|---|", "[", "](", ")",
    "![", "<", ">", "&amp;", "\\", "$", "$$", "\\(", "\\)", "\\[", "\\]", "\\frac", "{", "}", "^", "_",
    "\\begin{matrix}", "\\end{matrix}", "&", "\\\\", "~~", "---", "===", "python", "javascript:", "https://x.example",
    "www.x.example", "<script>", "onclick=", '"', "'", "\x00", "\u202e", "é", "漢", "😀", "\ud83d", "word ", "\t",
    "\r\n", "[x]", ":",
]  # fmt: skip


def test_random_texts(full: bool) -> None:
    """Sound HTML whatever the text, whole and in parts."""
    rng = random.Random(5)
    for _ in range(12_000 if full else 600):
        text = "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 60)))
        check_html(render(text))
        done, used, rest = render_open(text)
        check_html(done)
        check_html(rest)
        assert 0 <= used <= n_utf16(text)


def test_mutated_formulas(full: bool) -> None:
    seeds = [
        r"\frac{a}{b}+\sqrt[3]{x}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\sum_{i=1}^n\left(\frac{1}{i}\right]",
        r"\text{a}\mathbb{R}\operatorname{f}", r"\begin{cases}1&x>0\\0\end{cases}", r"\overset{a}{b}\underbrace{c}_{d}",
    ]  # fmt: skip
    rng = random.Random(6)
    for _ in range(8_000 if full else 500):
        letters = list(rng.choice(seeds))
        for _ in range(rng.randint(1, 8)):
            at = rng.randrange(len(letters))
            letters[at] = rng.choice(["", "{", "}", "\\", "&", "^", "_", "<", '"', letters[at] * 2])
            letters = letters or ["x"]
        check_html(render_math("".join(letters), rng.random() < 0.5))


# --- bounds ----------------------------------------------------------------------------------------------------------

HEAVY = {
    "brackets": "[" * 50_000, "link starts": "[a](" * 20_000, "emphasis": "*a_" * 30_000, "dollars": "$a " * 30_000,
    "quotes": ">" * 50_000, "backticks": "`a``b```" * 10_000, "lists": "- " * 20_000, "angles": "<a" * 40_000,
    "escapes": "\\(" * 40_000, "display": "\\[x\n" * 20_000, "tables": "|a" * 20_000 + "\n" + "|-" * 20_000,
    "braces": "$" + "{" * 3_000 + "$", "nested formula": "$" + r"\frac{" * 300 + "x" + "}" * 300 + "$",
    "references": "[a]: x\n" * 20_000 + "[a]" * 10_000, "links": "www.x.example " * 10_000, "line": "a" * MAX_CHARS,
    "bangs": "![" * 30_000, "entities": "&" * 60_000, "code": "```python\n" + "x = '" * 20_000,
    "strings": "```javascript\n" + "`${" * 10_000, "perl": "```perl\n" + "s{" * 8_000, "nests": "* a\n " * 20_000,
}  # fmt: skip


@pytest.mark.parametrize("name", HEAVY)
def test_heavy_texts_end_soon(name: str) -> None:
    start = time.monotonic()
    html = render(HEAVY[name], seconds=0.5)
    assert time.monotonic() - start < 8, "a test machine may be busy, but not that busy"
    check_html(html)


def test_too_long_a_text_is_shown_plain() -> None:
    html = render("*a* <b>" * MAX_CHARS)
    assert html.startswith('<div class="plain">*a* &lt;b&gt;')


# --- streaming -------------------------------------------------------------------------------------------------------

ANSWER = """A paragraph that
goes on.

1. first
2. second

   with a paragraph
3. third

```python
x = 1

y = 2
```

| a | b |
|---|---|
| 1 | 2 |

> quoted
lazy

$$
x^2

$$

The *end* 😀.
"""


@pytest.mark.parametrize("step", [1, 3, 7, 20, 1000])
def test_blocks_are_finished_once_and_add_up(step: int) -> None:
    """What the page does: it sends what is not finished yet, and keeps what is."""
    text, used, done = "", 0, ""
    for i in range(0, len(ANSWER), step):
        text += ANSWER[i : i + step]
        found = render_open(text[used:])  # no character outside the BMP is cut: they count two units each
        done += found.done
        used += len(text[used:].encode("utf-16-le")[: 2 * found.used].decode("utf-16-le"))
    final = done + render_open(text[used:]).open
    assert final == render(ANSWER)
    assert len(done) > len(final) / 2


def test_a_list_is_not_cut_by_half_a_marker() -> None:
    found = render_open("1. one\n\n2")
    assert (found.done, found.used) == ("", 0)
    assert render_open("one\n\n1. two\n\n2.").done == "<p>one</p>\n"


def test_an_unfinished_code_block_is_code_already() -> None:
    assert "<pre" in render_open("text\n\n```py\nx = 1").open


def test_used_counts_as_javascript_does() -> None:
    assert render_open("😀😀\n\nnext\n").used == 6
