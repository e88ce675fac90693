"""Line charts as SVG: for reports in HTML, where the page's colours hold, and as files of their own.

Nothing in them comes from elsewhere, and no name in them becomes markup. The same lines give the same text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from onnxprune.errors import quote

__all__ = ["COLOURS", "Axis", "Line", "line_chart"]

# Told apart also by those who see fewer colours (after Okabe and Ito); a page may set others.
COLOURS = ("#3b6fd4", "#d1622b", "#1f9d7a", "#b0559c", "#c79a1e", "#5aa9d6", "#7d6bd0", "#7a8290")

_INK, _FAINT_INK, _GRID, _PAPER = (
    "var(--ink,#1f2733)",
    "var(--faint,#6b7482)",
    "var(--grid,#e3e7ed)",
    "var(--paper,#ffffff)",
)
_FAINT_LINE = "var(--rest,#c9d0da)"
_TEXT = "font:11px system-ui,-apple-system,'Segoe UI',sans-serif"
_CHARACTER = 6.0  # width of one, in pixels, at the size above
_NAME = 32  # characters of a name in the legend
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 24, 14, 44
_ROW = 19  # height of a row of the legend
_LARGEST = 1e100  # beyond it nothing is drawn, nor is what is not finite
_SMALLEST = 1e-12  # what a logarithmic axis shows of zero
_APART = 1e-100  # what a linear axis can tell from zero: steps of the smallest floats have no logarithm


@dataclass(frozen=True)
class Line:
    """A curve.

    Attributes:
        name: what it shows.
        points: x and y; those that are not finite are left out.
        faint: drawn in grey behind the others, without marks and not in the legend.
        joined: whether a line runs through the points, which are marked in any case.
        notes: what is told of each point when the mouse rests on it; none: its coordinates.
    """

    name: str
    points: Sequence[tuple[float, float]]
    faint: bool = False
    joined: bool = True
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Axis:
    """How an axis is labelled and scaled.

    Attributes:
        label: what it shows.
        percent: values are shares, shown in percent.
        log: logarithmic.
        low: the least that it spans.
        high: the most that it spans.
    """

    label: str = ""
    percent: bool = False
    log: bool = False
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class _Scale:
    """From values to pixels."""

    axis: Axis
    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        low, high, value = (_logged(v) if self.axis.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def told(self, value: float) -> str:
        """Returns a value as its axis shows it."""
        if self.axis.percent:
            return f"{100 * value:.4g} %"
        if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
            mantissa, exponent = f"{value:.2e}".split("e")
            return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
        return f"{value:.4g}"


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x: Axis | None = None,
    y: Axis | None = None,
    width: int = 640,
    height: int = 300,
    legend: bool = True,
) -> str:
    """Returns a chart of lines as one SVG element.

    Args:
        lines: what to draw, the first in the first colour.
        title: what those are told who cannot see it.
        x: the horizontal axis.
        y: the vertical axis.
        width: pixels; a page may scale it.
        height: pixels without the legend.
        legend: whether names stand below the chart.
    """
    x, y = x or Axis(), y or Axis()
    kept = [(line, _finite(line)) for line in lines]
    across = _scale(x, [p[0] for _, points in kept for p in points], _LEFT, width - _RIGHT, 7)
    up = _scale(y, [p[1] for _, points in kept for p in points], height - _BOTTOM, _TOP, 6)
    named = [line for line in lines if not line.faint]
    entries = list(_legend([line.name for line in named], width, height)) if legend and len(named) > 1 else []
    rows = 1 + max((row for *_, row in entries), default=-1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {width} {height + rows * _ROW}" '
        f'width="{width}" height="{height + rows * _ROW}" style="{_TEXT};max-width:100%;height:auto">',
        f"<title>{_text(title)}</title>",
        f'<rect width="100%" height="100%" style="fill:{_PAPER}"/>',
        *_grid(across, up, width, height),
    ]
    colours = {id(line): _colour(k) for k, line in enumerate(named)}
    for line, points in sorted(kept, key=lambda each: not each[0].faint):
        parts.extend(_drawn(line, points, across, up, colours.get(id(line), _FAINT_LINE)))
    for k, (name, left, middle, _) in enumerate(entries):
        parts.append(f'<rect x="{left}" y="{middle - 2}" width="14" height="4" rx="2" style="fill:{_colour(k)}"/>')
        parts.append(f'<text x="{left + 20}" y="{middle + 4}" style="fill:{_INK}">{name}</text>')
    return "".join(parts) + "</svg>"


def _colour(k: int) -> str:
    k %= len(COLOURS)
    return f"var(--line-{k + 1},{COLOURS[k]})"


def _text(text: str, limit: int = 200) -> str:
    return escape(quote(text, limit)[1:-1])


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit // 2 - 1]}…{text[-(limit // 2) :]}"


def _finite(line: Line) -> list[tuple[float, float, str]]:
    """Returns the points that can be drawn, with what is told of each."""
    notes = [*line.notes[: len(line.points)], *[""] * (len(line.points) - len(line.notes))]
    pairs = zip(line.points, notes, strict=True)
    return [(x, y, note) for (x, y), note in pairs if abs(x) <= _LARGEST and abs(y) <= _LARGEST]


# -------------------------------------------------------------------------------------------------- scales
def _logged(value: float) -> float:
    return math.log10(max(value, _SMALLEST))


def _scale(axis: Axis, values: Sequence[float], start: float, end: float, count: int) -> _Scale:
    """Returns a scale that begins and ends at a tick."""
    given = [v for v in (axis.low, axis.high) if v is not None]
    if axis.log:
        positive = [v for v in (*values, *given) if v > 0] or [0.1, 1.0]
        low, high = math.floor(_logged(min(positive))), math.ceil(_logged(max(positive)))
        high = max(high, low + 1)
        step = -(-(high - low) // count)
        ticks = tuple(10.0**k for k in range(low, high + step, step))
        return _Scale(axis, ticks[0], ticks[-1], start, end, ticks)
    found = [*values, *given] or [0.0, 1.0]
    least, most = min(found), max(found)
    size = max(abs(least), abs(most))
    if most - least <= max(1e-12 * size, _APART):
        margin = (size if size > _APART else 10.0) / 20
        least, most = least - margin, most + margin
    apart = _nice((most - least) / (count - 1))
    first, last = math.floor(least / apart + 1e-9), math.ceil(most / apart - 1e-9)
    ticks = tuple(round(k * apart, 12) if apart > 1e-9 else k * apart for k in range(first, last + 1))
    return _Scale(axis, ticks[0], ticks[-1], start, end, ticks)


def _nice(step: float) -> float:
    """Returns the next of 1, 2, 2.5, 5 and 10, times a power of ten."""
    power: float = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0, 20.0) if factor * power >= step * (1 - 1e-9))


# -------------------------------------------------------------------------------------------------- parts
def _grid(across: _Scale, up: _Scale, width: int, height: int) -> Iterator[str]:
    for tick in up.ticks:
        level = f"{up.at(tick):.1f}"
        yield f'<line x1="{_LEFT}" x2="{width - _RIGHT}" y1="{level}" y2="{level}" style="stroke:{_GRID}"/>'
        yield (
            f'<text x="{_LEFT - 8}" y="{up.at(tick) + 4:.1f}" text-anchor="end" style="fill:{_FAINT_INK}">'
            f"{up.told(tick)}</text>"
        )
    for tick in across.ticks:
        yield (
            f'<text x="{across.at(tick):.1f}" y="{height - _BOTTOM + 17}" text-anchor="middle" '
            f'style="fill:{_FAINT_INK}">{across.told(tick)}</text>'
        )
    middle = (_TOP + height - _BOTTOM) / 2
    yield (
        f'<text x="{(_LEFT + width - _RIGHT) / 2:.0f}" y="{height - 8}" text-anchor="middle" '
        f'style="fill:{_INK}">{_text(across.axis.label)}</text>'
    )
    yield (
        f'<text transform="translate(13 {middle:.0f}) rotate(-90)" text-anchor="middle" '
        f'style="fill:{_INK}">{_text(up.axis.label)}</text>'
    )


def _drawn(
    line: Line, points: Sequence[tuple[float, float, str]], across: _Scale, up: _Scale, colour: str
) -> Iterator[str]:
    """Yields a line with its dots."""
    places = [(across.at(x), up.at(y)) for x, y, _ in points]
    name = _text(line.name)
    if line.joined and len(places) > 1:
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
        yield (
            f'<polyline points="{path}" style="fill:none;stroke:{colour};stroke-width:{1.2 if line.faint else 2};'
            f'stroke-linejoin:round"><title>{name}</title></polyline>'
        )
    if not line.faint:
        for (px, py), (x, y, note) in zip(places, points, strict=True):
            told = _text(note) if note else f"{across.told(x)}, {up.told(y)}"
            yield (
                f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.2" style="fill:{colour};stroke:{_PAPER};stroke-width:1">'
                f"<title>{name}: {told}</title></circle>"
            )


def _legend(names: Sequence[str], width: int, height: int) -> Iterator[tuple[str, float, float, int]]:
    """Yields each name as it is shown, where its mark begins, the middle of its row, and the row."""
    left, row = float(_LEFT), 0
    for name in names:
        shown = _short(quote(name, 200)[1:-1], _NAME)
        needs = 20 + _CHARACTER * len(shown) + 18
        if left > _LEFT and left + needs > width - _RIGHT:
            left, row = float(_LEFT), row + 1
        yield escape(shown), round(left, 1), height + row * _ROW + _ROW / 2 - 2, row
        left += needs
