"""Chat templates come with model files, so they are strangers' programs: they run here, and cannot run away.

Jinja's immutable sandbox, set up as transformers sets it up, inside the bounds of `bounds.py`. Loops, calls, filters,
`+ * % **` and `~`, and lists and dicts written in a template are rewritten to pass a check. Filters and methods are
those that chat templates use; a template that needs another one fails with its name. `chat.py` is the only caller.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import wraps
from typing import Any, Final

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.environment import Template
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context
from jinja2.visitor import NodeTransformer

from gemmafile.text.bounds import (
    CURRENT,
    MAX_ITEMS,
    Budget,
    Refused,
    check_chars,
    check_items,
    check_value,
    step,
    take,
    write,
)

MAX_SOURCE_CHARS: Final = 1 << 17

_TEXT_METHODS = (
    "capitalize count endswith find format index isalnum isalpha isdigit islower isnumeric isspace isupper join lower "
    "lstrip partition removeprefix removesuffix replace rfind rpartition rsplit rstrip split splitlines startswith "
    "strip title upper"
)
_METHODS: Final[list[tuple[Any, frozenset[str]]]] = [
    (str, frozenset(_TEXT_METHODS.split())),
    (Mapping, frozenset("get items keys values".split())),
    ((list, tuple), frozenset("count index".split())),
]
"""The attributes of data that a template may use."""

_FILTERS: Final = (
    "abs capitalize count d default dictsort e escape first float int items last length list lower map max min reject "
    "rejectattr reverse round safe select selectattr sort title trim truncate unique upper"
)
"""Jinja's filters that are kept as they are; those that can make long texts are written anew below."""

_FAILURES: Final = (
    *(TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError),
    *(RecursionError, MemoryError, SyntaxError),
)
"""What can go wrong while a template is compiled or run; anything else is a bug of ours."""

_WIDE_PERCENT: Final = re.compile(r"%(?:\([^)]*\))?[-+ #0]*(?:\*|\d{4}|\d*\.(?:\*|\d{4}))")
_PLAIN_FORMAT: Final = re.compile(r"(?:[^{}]|\{\{|\}\}|\{\w*(?:![rsa])?(?::[^{}\d]*\d{0,3}(?:\.\d{1,3})?[^{}\d]?)?\})*")


class TemplateFailure(Exception):
    """A template did not compile, stopped with an error, or reached a bound. `line` 0: not known.

    `is_refusal`  it said no to the messages itself
    """

    def __init__(self, what: str, line: int, is_refusal: bool = False):
        super().__init__(what)
        self.what, self.line, self.is_refusal = what, line, is_refusal


# --- compiling and running -------------------------------------------------------------------------------------------


def compile_template(source: str, rewrite_text: Callable[[str], str] = str) -> Template:
    """The template, ready for `render`. `rewrite_text` maps each text written in the source to what it shall write.

    Raises TemplateFailure with the line where the source is wrong.
    """
    if len(source) > MAX_SOURCE_CHARS:
        raise TemplateFailure(f"it has {len(source)} characters; at most {MAX_SOURCE_CHARS} are taken", 0)
    environment = _make_environment()
    try:
        tree = _Guard(rewrite_text).visit(environment.parse(source))
        code = environment.compile(tree, filename="<chat template>")
        return Template.from_code(environment, code, environment.globals)
    except TemplateSyntaxError as error:
        raise TemplateFailure(error.message or "syntax error", error.lineno) from None
    except _FAILURES as error:
        raise TemplateFailure(_describe(error), 0) from None


def render(template: Template, variables: Mapping[str, Any], input_chars: int) -> str:
    """The text a template makes of `variables`, which hold `input_chars` characters. Raises TemplateFailure."""
    budget = Budget(input_chars)
    token = CURRENT.set(budget)
    pieces: list[str] = []
    try:
        for piece in template.root_render_func(template.new_context(dict(variables))):
            budget.step(written=len(piece))
            pieces.append(piece)
    except _FAILURES as error:
        raise TemplateFailure(_describe(error), _find_line(error), isinstance(error, Refused)) from None
    finally:
        CURRENT.reset(token)
    return "".join(pieces)


def _describe(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it nests too deeply"
    text = str(error).split("\n")[0][:500]
    return text if isinstance(error, TemplateError) and text else f"{type(error).__name__}: {text}"


def _find_line(error: BaseException) -> int:
    """The line of the template where the error arose."""
    line, frame = 0, error.__traceback__
    while frame is not None:
        template = frame.tb_frame.f_globals.get("__jinja_template__")
        if isinstance(template, Template):
            line = template.get_corresponding_lineno(frame.tb_lineno)
        frame = frame.tb_next
    return line


# --- the environment -------------------------------------------------------------------------------------------------


def _make_environment() -> ImmutableSandboxedEnvironment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, finalize=_finalize, extensions=[_Generation, LoopControlExtension]
    )
    kept = {name: environment.filters[name] for name in _FILTERS.split()} | _OWN_FILTERS
    environment.filters = {name: _guard_filter(function) for name, function in kept.items()}
    environment.filters |= {"guard_loop": _guard_loop, "guard_value": check_value, "guard_text": _guard_text}
    environment.globals = dict(_GLOBALS)
    return environment


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset("+ * % **".split())

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            return check_value(_percent(left, right))
        _check_operands(operator, left, right)
        return check_value(super().call_binop(context, operator, left, right))

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        step()
        return check_value(super().call(context, function, *args, **kwargs))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, (Namespace, LoopContext, Macro)):  # Jinja's own, looked after by Jinja
            return super().is_safe_attribute(obj, attr, value)
        return any(isinstance(obj, kind) and attr in names for kind, names in _METHODS)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Jinja asks this of every attribute it looks up; here the methods that can make long texts become ours."""
        text, name = getattr(value, "__self__", None), getattr(value, "__name__", "")
        if not isinstance(text, str):
            return None
        if name == "join":
            return lambda items: _join(text, take(items))
        if name == "replace":
            return lambda old, new, count=-1: _replace(text, old, new, count)
        if name == "format":
            return lambda *args, **kwargs: _format(text, *args, **kwargs)
        return None


class _Generation(Extension):
    """{% generation %} marks, for training, what a model wrote; here it is only a scope."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Guard(NodeTransformer):
    """Rewrites a parsed template so that all it does passes a check."""

    def __init__(self, rewrite_text: Callable[[str], str]):
        self.rewrite_text = rewrite_text

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        node.data = self.rewrite_text(node.data)
        return node

    def visit_Const(self, node: nodes.Const) -> nodes.Node:
        if isinstance(node.value, str):
            node.value = self.rewrite_text(node.value)
        return node

    def visit_For(self, node: nodes.For) -> nodes.Node:
        """Each turn is a step, and writes at most the plain text of the body."""
        written = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        assert isinstance(node.iter, nodes.Expr)
        node.iter = _apply_filter("guard_loop", node.iter, nodes.Const(written, lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        """a ~ b becomes plain(a) + plain(b)."""
        self.generic_visit(node)
        joined, *others = [_apply_filter("guard_text", part) for part in node.nodes]
        for other in others:
            joined = nodes.Add(joined, other, lineno=node.lineno)
        return joined

    def visit_List(self, node: nodes.List | nodes.Tuple | nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        is_target = isinstance(node, nodes.Tuple) and node.ctx != "load"
        return node if is_target else _apply_filter("guard_value", node)

    visit_Tuple = visit_Dict = visit_List


def _apply_filter(name: str, value: nodes.Expr, *args: nodes.Expr) -> nodes.Expr:
    return nodes.Filter(value, name, list(args), [], None, None, lineno=value.lineno)


def _guard_loop(items: Iterable[Any], written: int) -> Iterator[Any]:
    for item in items:
        step(written)
        yield item


def _guard_text(value: Any) -> str:
    """Without the mark that `safe` leaves: it would escape what it is joined to."""
    return str.__str__(write(value))


def _guard_filter(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        step()
        if any(isinstance(value, Namespace) for value in args):
            raise TemplateError("a namespace is not data")
        return check_value(function(*args, **kwargs))

    return guarded


@pass_context
def _finalize(context: Context, value: Any) -> str:
    text = write(value)
    step(written=len(text))
    return text


# --- what templates call ---------------------------------------------------------------------------------------------


def _check_operands(operator: str, left: Any, right: Any) -> None:
    """Will the result be of bounded size?"""
    sized = (str, list, tuple)
    if operator == "+" and isinstance(left, sized) and isinstance(right, sized):
        (check_chars if isinstance(left, str) else check_items)(len(left) + len(right))
    elif operator == "*":
        for sequence, times in ((left, right), (right, left)):
            if isinstance(sequence, sized) and isinstance(times, int):
                (check_chars if isinstance(sequence, str) else check_items)(len(sequence) * max(0, times))
    elif operator == "**" and (not -64 <= right <= 64 if isinstance(right, int) else not isinstance(right, float)):
        raise TemplateError("powers are taken up to 64")


def _join(separator: str, items: list[Any]) -> str:
    texts = [write(item) for item in items]
    check_chars(sum(map(len, texts)) + len(separator) * len(texts))
    return separator.join(texts)


def _replace(text: str, old: str, new: str, count: int | None = -1) -> str:
    count = -1 if count is None else count
    n = text.count(old) if count < 0 else min(count, text.count(old))
    check_chars(len(text) + n * max(0, len(new) - len(old)))
    return text.replace(old, new, count)


def _percent(text: str, values: Any) -> str:
    if _WIDE_PERCENT.search(text):
        raise TemplateError("% takes widths up to 999")
    items = values if isinstance(values, tuple) else (values,)
    check_chars(len(text) + text.count("%") * (999 + max((len(write(item)) for item in items), default=0)))
    return str.__mod__(text, values)


def _format(text: str, *args: Any, **kwargs: Any) -> str:
    if not _PLAIN_FORMAT.fullmatch(text):
        raise TemplateError("format takes plain fields, with widths up to 999")
    longest = max((len(write(value)) for value in (*args, *kwargs.values())), default=0)
    check_chars(len(text) + text.count("{") * (999 + longest))
    return text.format(*args, **kwargs)


def _filter_join(value: Iterable[Any], d: Any = "", attribute: str | None = None) -> str:
    items = take(value)
    return _join(write(d), items if attribute is None else [item.get(attribute) for item in items])


def _filter_replace(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    return _replace(write(text), write(old), write(new), count)


def _filter_indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    margin = width if isinstance(width, str) else " " * min(width, 1000)
    lines = (text + "\n").splitlines()
    check_chars(len(text) + len(margin) * len(lines))
    return "\n".join(margin + line if (line or blank) and (i or first) else line for i, line in enumerate(lines))


def _filter_tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers: plain JSON, without HTML escapes."""
    if indent is not None and not (isinstance(indent, int) and 0 <= indent <= 16):
        raise TemplateError("tojson takes an indent of 0 to 16")
    check_value(value)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _range(*args: int) -> range:
    numbers = range(*args)
    check_items(min(len(numbers), MAX_ITEMS + 1))
    return numbers


def _raise_exception(message: Any) -> None:
    raise Refused(write(message))


def _strftime_now(pattern: str) -> str:
    if len(pattern) > 100 or re.search(r"\d", pattern):
        raise TemplateError("strftime_now takes a short pattern without widths")
    return datetime.now().strftime(pattern)


_OWN_FILTERS: Final[dict[str, Callable[..., Any]]] = {
    "string": write,
    "join": _filter_join,
    "replace": _filter_replace,
    "indent": _filter_indent,
    "tojson": _filter_tojson,
}
_GLOBALS: Final[dict[str, Any]] = {
    "namespace": Namespace,
    "dict": dict,
    "range": _range,
    "raise_exception": _raise_exception,
    "strftime_now": _strftime_now,
}
