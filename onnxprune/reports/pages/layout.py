"""What a page of a report shows, before it is laid out: tiles, sections, tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal, Protocol

from onnxprune.reports.report import Interval

__all__ = [
    "Badge",
    "Cell",
    "Check",
    "Page",
    "Section",
    "Table",
    "Tile",
    "bytes_in_short",
    "in_short",
    "names",
    "percent",
    "points",
    "signed",
    "spanned",
    "title",
]

Tone = Literal["", "good", "amber", "bad"]


@dataclass(frozen=True)
class Badge:
    """A word on what the figures are worth."""

    text: str
    tone: Tone = ""


@dataclass(frozen=True)
class Check:
    """Something that was checked.

    Attributes:
        name: what.
        passed: None if it could not be checked.
        message: what was found.
    """

    name: str
    passed: bool | None
    message: str


@dataclass(frozen=True)
class Tile:
    """A figure to see first.

    Attributes:
        label: what it is.
        figure: the figure.
        unit: stands behind it, smaller.
        under: what it was before, or where it comes from.
        share: how much of a bar is filled; None: no bar.
        chip: the change.
        tone: whether that is good.
        exact: the figure in full, shown when the mouse rests on it.
        before: the figure of the original, in full.
        after: the figure of the pruned model, in full.
    """

    label: str
    figure: str
    unit: str = ""
    under: str = ""
    share: float | None = None
    chip: str = ""
    tone: Tone = ""
    exact: str = ""
    before: str = ""
    after: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell of a table: text, a name, a bar that is filled by `share`, or a drop (share from -1 to 1)."""

    text: str = ""
    kind: Literal["text", "name", "bar", "drop"] = "text"
    share: float = 0.0
    hint: str = ""
    more: str = ""
    tone: Tone = ""


@dataclass(frozen=True)
class Table:
    """Rows, of which the first `open` are seen at once and those up to `most` on demand."""

    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numbers: frozenset[int]
    open: int = 40
    most: int = 1000


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: what it is about.
        aside: a few words beside the title.
        intro: how to read it.
        charts: SVG elements.
        table: rows.
        facts: label, value, and whether the value is code.
        lines: a list.
        code: a block of code.
        half: whether two such sections stand side by side.
    """

    title: str
    aside: str = ""
    intro: str = ""
    charts: Sequence[str] = ()
    table: Table | None = None
    facts: Sequence[tuple[str, str, bool]] = ()
    lines: Sequence[str] = ()
    code: str = ""
    half: bool = False


@dataclass(frozen=True)
class Page:
    """All that is shown of a report.

    Attributes:
        tool: version of onnxprune.
        what: the kind of report, in a word or two.
        title: the model.
        lead: what was done, in a sentence.
        badges: words on what the figures are worth.
        warnings: what should not be overlooked.
        tiles: the figures that are seen first.
        sections: the rest.
        checks: what was checked.
        seconds: how long it all took.
    """

    tool: str
    what: str
    title: str
    lead: str
    badges: Sequence[Badge] = ()
    warnings: Sequence[str] = ()
    tiles: Sequence[Tile] = ()
    sections: Sequence[Section] = ()
    checks: Sequence[Check] = ()
    seconds: float = 0.0


def in_short(value: float) -> str:
    """Returns a number in three digits: 1.35 M."""
    for power, letter in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= power * 0.9995:
            return _three_digits(value / power) + letter
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.3g}"


def bytes_in_short(value: int) -> str:
    """Returns bytes in three digits: 714 kB; 1 kB is 1,000 bytes."""
    if value < 1000:
        return f"{value} B"
    return f"{in_short(value)}B"


def _three_digits(value: float) -> str:
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f}"


def percent(share: float) -> str:
    """Returns a share in percent: 25.2 %."""
    return f"{100 * share:.1f} %"


def names(given: Iterable[str]) -> Cell:
    """Returns a cell with the first of some names, and how many more there are."""
    listed = list(given)
    if not listed:
        return Cell()
    more = f"+{len(listed) - 1:,}" if len(listed) > 1 else ""
    return Cell(listed[0], "name", more=more, hint=", ".join(name[:80] for name in listed[1:11]))


def signed(change: float) -> str:
    """Returns a change of a share: −74.8 %."""
    return f"{'−' if change < 0 else '+'}{abs(100 * change):.1f} %" if change else "unchanged"


def points(drop: float) -> str:
    """Returns a drop in percentage points as the change that it is: −1.0 points."""
    return f"{'−' if drop > 0 else '+'}{abs(drop):.1f} points" if round(drop, 1) else "unchanged"


class Dropped(Protocol):
    """What has lost something, in percentage points."""

    @property
    def interval(self) -> Interval:
        """Of the drop."""


def spanned(change: Dropped) -> str:
    """Returns the interval of a drop as that of the change: −2.0 to +0.3."""
    low, high = -change.interval.high or 0.0, -change.interval.low or 0.0
    return f"{low:+.1f} to {high:+.1f}".replace("-", "−")


def title(model: str) -> str:
    """Returns what a page about a model is headed by: the last part of its path."""
    return PurePath(model).name or "a model in memory"
