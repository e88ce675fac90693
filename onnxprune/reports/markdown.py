"""Reports as Markdown, for issues, pull requests and model cards. Nothing in a name can become markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from onnxprune.errors import quote
from onnxprune.reports.pages import Cell, Page, Section, Table, page_of
from onnxprune.reports.records import Record

__all__ = ["to_markdown"]

_ROWS = 1000
_FEWER = (_ROWS, 200, 50, 10, 0)  # rows of each table, as long as the text is too long


def to_markdown(report: Record, *, most: int | None = None) -> str:
    """Returns a report as a Markdown document with GitHub's tables.

    Args:
        report: of any kind.
        most: bytes; tables are cut short until the text fits. If it never does, the result is empty.
    """
    page = page_of(report)
    for rows in _FEWER:
        text = "\n".join(_lines(page, rows)) + "\n"
        if most is None or len(text.encode()) <= most:
            return text
    return ""


def _lines(page: Page, rows: int) -> Iterator[str]:
    yield f"# onnxprune: {_text(page.what)} of {_text(page.title)}"
    yield ""
    yield " ".join([_text(page.lead), *(f"**{_text(badge.text)}**" for badge in page.badges)])
    yield ""
    for warning in page.warnings:
        yield f"> **Warning:** {_text(warning)}"
        yield ""
    if page.tiles:
        headings = ("", "before", "after", "change", "")
        tiles = [(_text(t.label), _text(t.before), _text(t.after), _text(t.chip), _text(t.under)) for t in page.tiles]
        yield from _table(headings, tiles, {1, 2, 3}, _ROWS)
    for section in page.sections:
        yield from _section(section, rows)


def _section(section: Section, rows: int) -> Iterator[str]:
    if section.charts and not section.table:
        return
    yield f"## {_text(section.title)}" + (f" ({_text(section.aside)})" if section.aside else "")
    yield ""
    if section.intro:
        yield _text(section.intro)
        yield ""
    for label, value, is_code in section.facts:
        yield f"- {_text(label)}: {_code(value) if is_code else _text(value)}"
    for line in section.lines:
        yield f"- {_text(line)}"
    if section.facts or section.lines:
        yield ""
    if section.code:
        yield _code(section.code, 1000)
        yield ""
    if section.table is not None:
        yield from _section_table(section.table, rows)


def _section_table(table: Table, most: int) -> Iterator[str]:
    """Yields a table without its bars."""
    kinds = [cell.kind for cell in table.rows[0]] if table.rows else []
    columns = [k for k, kind in enumerate(kinds) if kind not in ("bar", "drop")]
    headings = [_heading(table, k) for k in columns]
    rows = [[_cell(row[k]) for k in columns] for row in table.rows[:most]]
    yield from _table(headings, rows, {n for n, k in enumerate(columns) if k in table.numbers}, most)
    if len(table.rows) > most:
        yield f"{len(table.rows) - most:,} more rows are in the JSON report."
        yield ""


def _heading(table: Table, k: int) -> str:
    """Returns what stands above a column; a bar's heading is that of the figure beside it."""
    return _text(table.headings[k] or (table.headings[k - 1] if k else ""))


def _cell(cell: Cell) -> str:
    if cell.kind != "name":
        return _text(cell.text)
    return _code(cell.text) + (f" {_text(cell.more)}" if cell.more else "")


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], numbers: set[int], most: int) -> Iterator[str]:
    if not most:
        return
    yield f"| {' | '.join(headings)} |"
    yield f"|{'|'.join('---:' if k in numbers else '---' for k in range(len(headings)))}|"
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


def _code(name: str, limit: int = 300) -> str:
    """Returns a name as a code span, in which nothing is markup but the end of the span and of a table's cell."""
    shown = quote(name, limit)[1:-1].replace("|", "\\|")
    if not shown.strip():
        return ""
    fence = "`" * (1 + max(map(len, _runs(shown)), default=0))
    pad = " " if "`" in shown else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def _runs(text: str) -> Iterable[str]:
    return re.findall("`+", text)


def _text(text: str) -> str:
    """Returns a text in which nothing is markup: no tags, links, mentions, formulas or cells."""
    shown = quote(text, 1000)[1:-1]
    shown = re.sub(r"[&<>@|$`*_~#\[\]\\!]", lambda found: f"&#{ord(found[0])};", shown)
    return shown.replace("://", "&#58;//").replace("www.", "www&#46;")
