"""The comparison as an SVG: divergence over size and over speed, two panels, a dot a type."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape

from gemmafile.quantize.comparison import Row

WIDTH, HEIGHT, LEFT, TOP, GAP = 420, 300, 70, 50, 90
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#333}.title{font-size:14px;font-weight:600}"
    ".tick{fill:#777;font-size:11px}"
    ".grid{stroke:#ddd}.axis{stroke:#888}.dot{fill:#2563eb}@media(prefers-color-scheme:dark){svg{background:#111}"
    "text{fill:#ddd}.tick{fill:#999}.grid{stroke:#333}.dot{fill:#7aa2ff}}"
)


def draw(rows: Sequence[Row], title: str) -> str:
    """An SVG document. The exact model is left out: its divergence, zero, has no place on a logarithmic axis."""
    shown = [row for row in rows if row.kld > 0]
    width, height = 2 * (LEFT + WIDTH) + GAP, TOP + HEIGHT + 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        f"<style>{_STYLE}</style>",
        f'<text class="title" x="{LEFT}" y="24">{escape(title)}: KL divergence from it, nats a token</text>',
    ]
    if shown:
        panels: list[tuple[str, Callable[[Row], float]]] = [
            ("MB", lambda row: row.n_bytes / 1e6),
            ("tokens written a second", lambda row: row.writing),
        ]
        for i, (label, x_of) in enumerate(panels):
            parts += _panel(shown, x_of, label, LEFT + i * (LEFT + WIDTH + GAP - 20))
    return "\n".join([*parts, "</svg>", ""])


def _panel(rows: Sequence[Row], x_of: Callable[[Row], float], label: str, left: float) -> Iterator[str]:
    low, high = _bounds([x_of(row) for row in rows])
    powers = [math.log10(row.kld) for row in rows]
    bottom, top = math.floor(min(powers)), max(math.ceil(max(powers)), math.floor(min(powers)) + 1)

    def x(value: float) -> float:
        return left + WIDTH * (value - low) / (high - low)

    def y(power: float) -> float:
        return TOP + HEIGHT * (top - power) / (top - bottom)

    for decade in range(bottom, top + 1):
        yield f'<line class="grid" x1="{left}" x2="{left + WIDTH}" y1="{y(decade):.1f}" y2="{y(decade):.1f}"/>'
        yield f'<text class="tick" x="{left - 8}" y="{y(decade) + 4:.1f}" text-anchor="end">{10.0**decade:g}</text>'
    for value in _ticks(low, high):
        yield f'<text class="tick" x="{x(value):.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{value:g}</text>'
    yield f'<line class="axis" x1="{left}" x2="{left + WIDTH}" y1="{TOP + HEIGHT}" y2="{TOP + HEIGHT}"/>'
    yield f'<text x="{left + WIDTH / 2}" y="{TOP + HEIGHT + 42}" text-anchor="middle">{escape(label)}</text>'
    for row, power in zip(rows, powers, strict=True):
        at = f'cx="{x(x_of(row)):.1f}" cy="{y(power):.1f}"'
        yield f'<circle class="dot" {at} r="4"><title>{escape(row.name)}: {row.kld:.6f}</title></circle>'
        yield f'<text x="{x(x_of(row)) + 7:.1f}" y="{y(power) - 5:.1f}">{escape(row.name)}</text>'


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
