"""The comparison as a picture: divergence over size and over speed, two panels, a dot a type.

What is drawn is a list of lines, dots and words, in pixels from the upper left corner; `as_svg` writes it as text,
`as_png` by Pillow (the extra `plot`).
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from gemmafile.errors import GemmafileError
from gemmafile.quantize.comparison import Row

WIDTH, HEIGHT, LEFT, TOP, GAP = 420, 300, 70, 50, 90
PAGE = 2 * (LEFT + WIDTH) + GAP, TOP + HEIGHT + 60
PNG_SCALE = 2
"""Pixels of a PNG for each of the drawing: sharp on today's screens."""
DOT = 4
COLOURS = {"text": "#333", "title": "#333", "tick": "#777", "grid": "#ddd", "axis": "#888", "dot": "#2563eb"}
ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}
"""As Pillow names them: left, middle or right, on the base line."""
SIZES = {"text": 12, "title": 14, "tick": 11}
_STYLE = (
    "text{{font:{text}px system-ui,sans-serif;fill:#333}}.title{{font-size:{title}px;font-weight:600}}"
    ".tick{{font-size:{tick}px;fill:#777}}"
).format(**SIZES) + (
    ".grid{stroke:#ddd}.axis{stroke:#888}.dot{fill:#2563eb}@media(prefers-color-scheme:dark){svg{background:#111}"
    "text{fill:#ddd}.tick{fill:#999}.grid{stroke:#333}.dot{fill:#7aa2ff}}"
)


@dataclass(frozen=True, slots=True)
class Line:
    """`kind`  grid or axis"""

    kind: str
    x1: float
    x2: float
    y: float


@dataclass(frozen=True, slots=True)
class Dot:
    """`words`  are shown by who asks for them, in an SVG."""

    x: float
    y: float
    words: str


@dataclass(frozen=True, slots=True)
class Text:
    """`kind`  text, title or tick · `y`  of its base line · `anchor`  of x: start, middle or end"""

    kind: str
    x: float
    y: float
    words: str
    anchor: str = "start"


Mark = Line | Dot | Text


def draw(rows: Sequence[Row], title: str) -> list[Mark]:
    """The marks. The exact model is left out: its divergence, zero, has no place on a logarithmic axis."""
    shown = [row for row in rows if row.kld > 0]
    marks: list[Mark] = [Text("title", LEFT, 24, f"{title}: KL divergence from it, nats a token")]
    if shown:
        panels: list[tuple[str, Callable[[Row], float]]] = [
            ("MB", lambda row: row.n_bytes / 1e6),
            ("tokens written a second", lambda row: row.writing),
        ]
        for i, (label, x_of) in enumerate(panels):
            marks += _panel(shown, x_of, label, LEFT + i * (LEFT + WIDTH + GAP - 20))
    return marks


def as_svg(marks: Sequence[Mark]) -> bytes:
    """An SVG document, light or dark as its reader is."""
    width, height = PAGE
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    return "\n".join([head, f"<style>{_STYLE}</style>", *map(_svg_element, marks), "</svg>", ""]).encode()


def _svg_element(mark: Mark) -> str:
    match mark:
        case Line(kind, x1, x2, y):
            return f'<line class="{kind}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
        case Dot(x, y, words):
            title = f"<title>{escape(words)}</title>"
            return f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{DOT}">{title}</circle>'
        case Text(kind, x, y, words, anchor):
            return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def check_png() -> None:
    """Raises GemmafileError where there is no Pillow: said before the measuring."""
    try:
        import PIL.ImageFont  # noqa: F401
    except ImportError:
        raise GemmafileError(
            "a PNG is drawn by Pillow, which is not installed: pip install 'gemmafile[plot]', or ask for an .svg"
        ) from None


def as_png(marks: Sequence[Mark]) -> bytes:
    """A PNG of PNG_SCALE times PAGE, on white. Raises GemmafileError where there is no Pillow."""
    check_png()
    from PIL import Image, ImageDraw, ImageFont

    scale = PNG_SCALE
    image = Image.new("RGB", (PAGE[0] * scale, PAGE[1] * scale), "white")
    canvas = ImageDraw.Draw(image)
    for mark in marks:
        match mark:
            case Line(kind, x1, x2, y):
                canvas.line((x1 * scale, y * scale, x2 * scale, y * scale), COLOURS[kind], scale)
            case Dot(x, y):
                canvas.circle((x * scale, y * scale), DOT * scale, COLOURS["dot"])
            case Text(kind, x, y, words, anchor):
                font = ImageFont.load_default(SIZES[kind] * scale)
                canvas.text((x * scale, y * scale), words, COLOURS[kind], font, ANCHORS[anchor])
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()


def _panel(rows: Sequence[Row], x_of: Callable[[Row], float], label: str, left: float) -> Iterator[Mark]:
    low, high = _bounds([x_of(row) for row in rows])
    powers = [math.log10(row.kld) for row in rows]
    bottom, top = math.floor(min(powers)), max(math.ceil(max(powers)), math.floor(min(powers)) + 1)

    def x(value: float) -> float:
        return left + WIDTH * (value - low) / (high - low)

    def y(power: float) -> float:
        return TOP + HEIGHT * (top - power) / (top - bottom)

    for decade in range(bottom, top + 1):
        yield Line("grid", left, left + WIDTH, y(decade))
        yield Text("tick", left - 8, y(decade) + 4, f"{10.0**decade:g}", "end")
    for value in _ticks(low, high):
        yield Text("tick", x(value), TOP + HEIGHT + 18, f"{value:g}", "middle")
    yield Line("axis", left, left + WIDTH, TOP + HEIGHT)
    yield Text("text", left + WIDTH / 2, TOP + HEIGHT + 42, label, "middle")
    for row, power in zip(rows, powers, strict=True):
        yield Dot(x(x_of(row)), y(power), f"{row.name}: {row.kld:.6f}")
        yield Text("text", x(x_of(row)) + 7, y(power) - 5, row.name)


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    """The values with some room about them."""
    low, high = min(values), max(values)
    room = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers."""
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 8)
    first = math.ceil(low / step)
    return [round(i * step, 10) for i in range(first, math.floor(high / step) + 1)]
