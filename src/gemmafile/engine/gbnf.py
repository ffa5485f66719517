"""GBNF, llama.cpp's grammar notation: read, checked, and written as llguidance's Lark.

In: the text of a grammar. Out: a Lark grammar of the same language, or BadSettings with line and column.
Next: grammar.py.

    root ::= "- " item ("," ws item)*      # rules; root is the whole answer
    item ::= [a-z]+ | [^0-9\\n] | .          # classes, a negated class, any character
    ws   ::= [ \\t]{0,20}                    # repetition: * + ? {m} {m,} {m,n}

The notation is that of llama.cpp's release b11549 (src/llama-grammar.cpp), but for its tokens (`<[id]>`, `<think>`),
which are refused: a grammar never asks for control tokens here. Rules defined twice, rules without end, empty
classes and ranges that run backwards are refused too; left recursion, which llama.cpp refuses, is fine.

Why every terminal that is written is one character: llguidance reads terminals greedily, the longest match and no
way back. With `word ::= [a-z]+` and `root ::= word "x"` a terminal for word would swallow every x and never end.
One character at a time leaves all choices to its parser, which follows all of them at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gemmafile.errors import BadSettings, nearest

LARGEST_COUNT = 2000
"""Repetitions beyond it are refused, as in llama.cpp; an upper bound beyond it is no bound."""

DEEPEST = 100
"""Groups within groups beyond it are refused: no one writes them."""

CHARACTERS = ((1, 0xD7FF), (0xE000, 0x10FFFF))
"""What `.` and negated classes are taken from: all of Unicode but NUL and the surrogates."""

ESCAPES = {"t": "\t", "r": "\r", "n": "\n", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-"}
HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
SPACE = " \t"


@dataclass(frozen=True)
class Class:
    """One character out of ranges of code points."""

    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Row:
    """One after another."""

    items: tuple[Node, ...]


@dataclass(frozen=True)
class Choice:
    items: tuple[Node, ...]


@dataclass(frozen=True)
class Repeat:
    """`most` None: without end."""

    item: Node
    least: int
    most: int | None


@dataclass(frozen=True)
class Rule:
    """A mention of a rule, and where in the text."""

    name: str
    place: int


Node = Class | Row | Choice | Repeat | Rule


def gbnf_to_lark(text: str) -> str:
    """A Lark grammar for llguidance. Raises BadSettings with line and column."""
    rules = Parser(text).parse()
    numbers = {name: f"rule{n}" for n, name in enumerate(rules)}
    classes: dict[Class, str] = {}
    lines = [f"start: {numbers['root']}"]
    for name, node in rules.items():
        lines.append(f"{numbers[name]}: {_lark(node, numbers, classes)}")
    lines += [f"{name}: /[{_class_body(item)}]/" for item, name in classes.items()]
    return "\n".join(lines) + "\n"


def _lark(node: Node, numbers: dict[str, str], classes: dict[Class, str]) -> str:
    if isinstance(node, Class):
        return classes.setdefault(node, f"CLASS{len(classes)}")
    if isinstance(node, Rule):
        return numbers[node.name]
    if isinstance(node, Repeat):
        if node.most == 0:
            return '""'
        most = "" if node.most is None else node.most
        return f"({_lark(node.item, numbers, classes)}){{{node.least},{most}}}"
    parts = [_lark(item, numbers, classes) for item in node.items]
    if isinstance(node, Choice):
        return f"({' | '.join(parts)})"
    return " ".join(parts) or '""'


def _class_body(item: Class) -> str:
    return "".join(f"\\x{{{low:x}}}-\\x{{{high:x}}}" for low, high in item.ranges)


class Parser:
    """Recursive descent over the text; `_at` is the place that is read next."""

    def __init__(self, text: str):
        self._text = text
        self._at = 0
        self._mentions: list[Rule] = []
        self._depth = 0

    def parse(self) -> dict[str, Node]:
        """All rules by name; every mentioned one is there, and root."""
        rules: dict[str, Node] = {}
        places: dict[str, int] = {}
        self._skip_space(newlines=True)
        while self._at < len(self._text):
            place, name = self._at, self._name()
            if name in rules:
                raise self._error(f"rule {name!r} is defined a second time", place)
            places[name], rules[name] = place, self._rule_body()
        for rule in self._mentions:
            if rule.name not in rules:
                raise self._error(f"there is no rule {rule.name!r}{nearest(rule.name, rules)}", rule.place)
        if "root" not in rules:
            raise self._error("there is no rule 'root', the whole answer", 0)
        for name in rules.keys() - _ending(rules):
            raise self._error(f"rule {name!r} never comes to an end", places[name])
        return rules

    def _rule_body(self) -> Node:
        self._skip_space()
        if not self._take("::="):
            raise self._error("expected ::= after the name of a rule")
        self._skip_space(newlines=True)
        node = self._choice(nested=False)
        if self._at < len(self._text) and self._peek() not in "\r\n":
            raise self._error(f"{self._peek()!r} was not expected here")
        self._skip_space(newlines=True)
        return node

    def _choice(self, nested: bool) -> Node:
        rows = [self._row(nested)]
        while self._take("|"):
            self._skip_space(newlines=True)
            rows.append(self._row(nested))
        return rows[0] if len(rows) == 1 else Choice(tuple(rows))

    def _row(self, nested: bool) -> Node:
        items: list[Node] = []
        while (node := self._item(nested)) is not None:
            self._skip_space(newlines=nested)
            items.append(self._repeated(node, nested))
        return items[0] if len(items) == 1 else Row(tuple(items))

    def _item(self, nested: bool) -> Node | None:
        """What stands here, without its repetition; None at the end of a row."""
        c = self._peek()
        if c == '"':
            return self._literal()
        if c == "[":
            return self._class()
        if c == ".":
            self._at += 1
            return Class(CHARACTERS)
        if c == "(":
            return self._group()
        if _in_name(c):
            rule = Rule(place=self._at, name=self._name())
            self._mentions.append(rule)
            return rule
        if c and c in "<!":
            raise self._error("tokens in grammars are not supported: write the text that is wanted")
        if c and c in "*+?{":
            raise self._error(f"{c!r} has nothing before it to repeat")
        return None

    def _group(self) -> Node:
        place = self._at
        self._at += 1
        self._depth += 1
        if self._depth > DEEPEST:
            raise self._error(f"more than {DEEPEST} groups within one another", place)
        self._skip_space(newlines=True)
        node = self._choice(nested=True)
        if not self._take(")"):
            raise self._error("this '(' is not closed", place)
        self._depth -= 1
        return node

    def _literal(self) -> Node:
        place = self._at
        self._at += 1
        items: list[Node] = []
        while not self._take('"'):
            code = self._character(place, "this string is not closed")
            if not any(low <= code <= high for low, high in CHARACTERS):
                raise self._error(f"U+{code:04X} is no character", place)
            items.append(Class(((code, code),)))
        return items[0] if len(items) == 1 else Row(tuple(items))

    def _class(self) -> Class:
        place = self._at
        self._at += 1
        negated = self._take("^")
        ranges: list[tuple[int, int]] = []
        while not self._take("]"):
            low = high = self._character(place, "this character class is not closed")
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] != "]":
                self._at += 1
                high = self._character(place, "this character class is not closed")
                if high < low:
                    raise self._error(f"this range runs backwards, from U+{low:04X} to U+{high:04X}")
            ranges.append((low, high))
        others = _subtract(CHARACTERS, _merge(ranges))
        characters = others if negated else _subtract(CHARACTERS, others)
        if not characters:
            raise self._error("this character class has no character in it", place)
        return Class(characters)

    def _character(self, place: int, unclosed: str) -> int:
        """Code point of one character, escapes resolved."""
        if self._at >= len(self._text):
            raise self._error(unclosed, place)
        c = self._text[self._at]
        self._at += 1
        if c != "\\":
            return ord(c)
        kind = self._text[self._at : self._at + 1]
        self._at += 1
        if kind in HEX_DIGITS:
            return self._hex(HEX_DIGITS[kind])
        if not kind or kind not in ESCAPES:
            raise self._error(
                f'there is no escape \\{kind}; there are \\x12 \\u1234 \\U00012345 \\t \\r \\n \\\\ \\" \\[ \\] \\-',
                self._at - 2,
            )
        return ord(ESCAPES[kind])

    def _hex(self, n_digits: int) -> int:
        digits = self._text[self._at : self._at + n_digits]
        if len(digits) < n_digits or any(c not in "0123456789abcdefABCDEF" for c in digits):
            raise self._error(f"expected {n_digits} hexadecimal digits")
        self._at += n_digits
        return int(digits, 16)

    def _repeated(self, node: Node, nested: bool) -> Node:
        """`node` with the repetitions that follow it."""
        while (c := self._peek()) and c in "*+?{":
            if isinstance(node, Row) and not node.items:
                raise self._error(f"{c!r} has nothing before it to repeat")
            self._at += 1
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(c) or self._bounds()
            self._skip_space(newlines=nested)
            node = Repeat(node, least, most)
        return node

    def _bounds(self) -> tuple[int, int | None]:
        """After "{": m} m,} m,n}."""
        place = self._at
        self._skip_space()
        least = self._number()
        most: int | None = least
        if self._take(","):
            self._skip_space()
            most = self._number() if self._peek().isdecimal() else None
        if not self._take("}"):
            raise self._error("expected '}'")
        if least > LARGEST_COUNT:
            raise self._error(f"{least} repetitions are more than the {LARGEST_COUNT} that are possible", place)
        if most is not None and most < least:
            raise self._error(f"at least {least} and at most {most} cannot both be", place)
        return least, most if most is None or most <= LARGEST_COUNT else None

    def _number(self) -> int:
        begin = self._at
        while self._peek() and self._peek() in "0123456789":
            self._at += 1
        if begin == self._at:
            raise self._error("expected a number")
        number = int(self._text[begin : self._at])
        self._skip_space()
        return number

    def _name(self) -> str:
        begin = self._at
        while _in_name(self._peek()):
            self._at += 1
        if begin == self._at:
            raise self._error(f"expected the name of a rule, found {self._peek()!r}")
        return self._text[begin : self._at]

    def _skip_space(self, newlines: bool = False) -> None:
        """Past spaces and comments, and past ends of lines if `newlines`."""
        space = SPACE + "\r\n" if newlines else SPACE
        while (c := self._peek()) and (c in space or c == "#"):
            if c == "#":
                while self._peek() and self._peek() not in "\r\n":
                    self._at += 1
            else:
                self._at += 1

    def _peek(self) -> str:
        """The next character; "" at the end."""
        return self._text[self._at : self._at + 1]

    def _take(self, expected: str) -> bool:
        if not self._text.startswith(expected, self._at):
            return False
        self._at += len(expected)
        return True

    def _error(self, message: str, place: int | None = None) -> BadSettings:
        place = self._at if place is None else place
        line = self._text.count("\n", 0, place) + 1
        column = place - self._text.rfind("\n", 0, place)
        return BadSettings(f"grammar, line {line}, column {column}: {message}")


def _ending(rules: dict[str, Node]) -> set[str]:
    """Names of the rules that some finite text follows."""
    ending: set[str] = set()

    def ends(node: Node) -> bool:
        if isinstance(node, Rule):
            return node.name in ending
        if isinstance(node, Repeat):
            return node.least == 0 or ends(node.item)
        if isinstance(node, Choice):
            return any(map(ends, node.items))
        return isinstance(node, Class) or all(map(ends, node.items))

    while more := {name for name, node in rules.items() if name not in ending and ends(node)}:
        ending |= more
    return ending


def _in_name(c: str) -> bool:
    return bool(c) and c.isascii() and (c.isalnum() or c == "-")


def _merge(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The same characters in ascending ranges that do not touch."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return tuple(merged)


def _subtract(whole: tuple[tuple[int, int], ...], holes: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    def pieces(low: int, high: int) -> Iterator[tuple[int, int]]:
        for first, last in holes:
            if first > low:
                yield low, min(high, first - 1)
            low = max(low, last + 1)
            if low > high:
                return
        yield low, high

    return tuple((low, high) for start, end in whole for low, high in pieces(start, end) if low <= high)
