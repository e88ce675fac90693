"""Reports as Markdown, for issues, pull requests and model cards. Nothing in a name can become markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from onnxprune.errors import quote
from onnxprune.report import GroupRow, Report, by_reason, units_of

__all__ = ["to_markdown"]

_ROWS = 1000


def to_markdown(report: Report) -> str:
    """Returns the report as a Markdown document with GitHub's tables."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    yield f"# onnxprune report: {_text(report.model) or 'a model in memory'}"
    yield ""
    for warning in report.warnings:
        yield f"> **Warning:** {_text(warning)}"
        yield ""
    counts = {"MACs": report.macs, "parameters": report.params, "bytes": report.size, "units": units_of(report.groups)}
    figures = [(name, f"{c.before:,}", f"{c.after:,}", f"{100 * c.ratio:.1f} %") for name, c in counts.items()]
    yield from _table(("", "before", "after", "left"), figures, numbers={1, 2, 3})
    yield f"- original: {_code(report.model)}, SHA-256 {_code(report.sha256)}"
    yield f"- written: {'nothing' if report.output is None else _code(report.output)}"
    yield f"- onnxprune {_text(report.tool)}, options: {_code(_options(report))}"
    yield from (f"- {_text(note)}" for note in report.notes)
    yield ""
    yield from _validation(report)
    if report.groups:
        yield from _section("Groups")
        headings = ("group", "units", "cut", "MACs/unit", "parameters/unit", "members")
        yield from _table(headings, [_group(group) for group in report.groups], numbers={1, 2, 3, 4})
    if report.frozen:
        frozen = [
            (_text(why), f"{row.channels:,}", _code(row.op), _code(row.node), _names(row.weights))
            for why, _, own in by_reason(report.frozen)
            for row in own
        ]
        yield from _section("Frozen")
        yield from _table(("why", "channels", "op", "node", "weights"), frozen, numbers={1})


def _group(group: GroupRow) -> tuple[str, ...]:
    per_unit = (f"{group.macs_per_unit:,.0f}", f"{group.params_per_unit:,.0f}")
    return _code(group.name), f"{group.units:,}", f"{group.cut:,}", *per_unit, _names(group.members)


def _validation(report: Report) -> Iterator[str]:
    found = report.validation
    if found is None:
        yield "Not validated."
        yield ""
        return
    yield from _section("Validation")
    if found.error is None:
        yield "The cut is approximate: there is no comparison with zeroed weights."
    else:
        yield (
            f"The cut is exact: {found.error:.1e} from the original with the cut weights at zero, "
            f"up to {found.tolerance:.1e} allowed."
        )
    yield f"On {', '.join(map(_code, found.provider))} at {'; '.join(map(_code, found.sizes))}."
    yield ""
    rows = [
        (
            _code(each.name),
            f"{each.relative_error:.3g}",
            f"{each.cosine:.4f}",
            "" if each.top1_agreement is None else f"{100 * each.top1_agreement:.1f} %",
        )
        for each in found.fidelity
    ]
    headings = ("output (made-up inputs)", "relative error", "cosine", "top-1 agreement")
    if rows:
        yield from _table(headings, rows, numbers={1, 2, 3})


def _section(title: str) -> Iterator[str]:
    yield f"## {title}"
    yield ""


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: set[int]) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield f"|{'|'.join('---:' if k in numbers else '---' for k in range(len(headings)))}|"
    yield from (f"| {' | '.join(row)} |" for row in rows[:_ROWS])
    yield ""
    if len(rows) > _ROWS:
        yield f"{len(rows) - _ROWS:,} more rows are in the JSON report."
        yield ""


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(map(_code, names[:3]))
    return f"{shown}, {len(names) - 3:,} more" if len(names) > 3 else shown


def _options(report: Report) -> str:
    given = {name: value for name, value in sorted(report.options.items()) if value not in (None, [], False)}
    return ", ".join(f"{name}={value}" for name, value in given.items())


def _code(name: str) -> str:
    """Returns a name as a code span, in which nothing is markup but the end of the span and of a table's cell."""
    shown = quote(name, 300)[1:-1].replace("|", "\\|")
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
    shown = re.sub(r"[&<>@|$:`*_~#\[\]\\!]", lambda found: f"&#{ord(found[0])};" if found[0] != ":" else ":", shown)
    return shown.replace("://", "&#58;//").replace("www.", "www&#46;")
