"""Reports as people read them in a terminal or a log. Names come from models: none of them may steer either."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnxprune.errors import quote
from onnxprune.reports.report import Count, FrozenRow, GroupRow, Inspection, OutputFidelity, Report, by_reason, units_of

__all__ = ["console_on", "print_inspection", "print_lines", "print_report", "print_table", "safe"]

_WIDE = 10_000  # columns of a log: nothing is wrapped, since a part of a name could then begin a line
_TOP = 3


def safe(text: str, limit: int = 400) -> str:
    """Returns a text that can be printed anywhere: one line, without escape sequences or commands to CI services."""
    shown = quote(text, limit)[1:-1]
    shown = shown.replace("##", "#\\#")  # ##[error] and ##vso[...] count anywhere in a line
    return re.sub(r"(^|\s)::", r"\1\\::", shown)  # ::error:: counts at its beginning


def console_on(file: TextIO) -> Console:
    """Returns a console that takes no text for markup."""
    terminal = file.isatty()
    return Console(file=file, width=None if terminal else _WIDE, markup=False, emoji=False, highlight=False)


def print_report(report: Report, console: Console, *, dry_run: bool = False, verbose: bool = False) -> None:
    """Prints what a pruning run did."""
    print_lines(console, [f"model: {safe(report.model) or '(in memory)'}"])
    console.print(_before_after(report))
    lines = [*_units_lines(report), *_proof_lines(report, dry_run)]
    lines += [*_measured_lines(report), *_frozen_lines(report.frozen, verbose)]
    lines += [f"note: {safe(note)}" for note in report.notes]
    if verbose:
        console.print(_group_table(report.groups, with_cut=True))
        lines.append("seconds: " + ", ".join(f"{stage} {s:.2f}" for stage, s in report.seconds.items()))
    if report.output is not None:
        lines.append(f"written: {safe(report.output)}")
    print_lines(console, lines)


def print_inspection(inspection: Inspection, console: Console) -> None:
    """Prints what can be cut out of a model, and what stays and why."""
    units = sum(group.units for group in inspection.groups)
    left = Count(inspection.macs, inspection.macs_at_half)
    lines = [
        f"model: {safe(inspection.model) or '(in memory)'}",
        f"MACs {inspection.macs:,} · parameters {inspection.params:,} · bytes {inspection.size:,}",
        f"{units:,} units in {len(inspection.groups):,} groups; "
        f"--ratio 0.5 is expected to leave {_percent(left)} of the MACs",
    ]
    print_lines(console, lines if inspection.groups else [*lines[:2], "nothing can be cut"])
    if inspection.groups:
        console.print(_group_table(inspection.groups, with_cut=False))
    print_lines(console, _all_frozen_lines(inspection.frozen))
    print_lines(console, [f"note: {safe(note)}" for note in inspection.notes])


# -------------------------------------------------------------------------------------------------- parts
def _before_after(report: Report) -> Table:
    counts = {"MACs": report.macs, "parameters": report.params, "bytes": report.size, "units": units_of(report.groups)}
    rows = [(name, f"{count.before:,}", f"{count.after:,}", _percent(count)) for name, count in counts.items()]
    if report.latency is not None:
        was, now = report.latency.before, report.latency.after
        rows.append(("latency, ms", f"{was:.3g}", f"{now:.3g}", f"{now / was:.1%}".replace("%", " %") if was else ""))
    if report.task is not None:
        rows.append(("top-1, %", f"{report.task.top1.before:.1f}", f"{report.task.top1.after:.1f}", ""))
    return _table(("", "before", "after", "left"), rows, numbers={1, 2, 3})


def _units_lines(report: Report) -> Iterable[str]:
    units = units_of(report.groups)
    touched = sum(group.cut > 0 for group in report.groups)
    yield (
        f"cut: {units.before - units.after:,} of {units.before:,} units, "
        f"in {touched:,} of {len(report.groups):,} groups"
    )
    ratio = report.options.get("ratio")
    if ratio is not None:
        yield f"MACs expected to remain at ratio {ratio:g}: {_percent(report.macs)}"


def _proof_lines(report: Report, dry_run: bool) -> Iterable[str]:
    found = report.validation
    if found is None:
        yield "dry run: no model was written" if dry_run else "not validated: nothing is proved (--no-validate)"
        return
    sizes = f"{len(found.sizes)} size{'s' if len(found.sizes) != 1 else ''}"
    where = f"at {sizes} on {', '.join(map(safe, found.provider))}"
    if found.error is None:
        yield f"cut is approximate: no comparison with zeroed weights; runs {where}"
    else:
        yield (
            f"cut is exact: {found.error:.0e} from the original with the cut weights at zero "
            f"(up to {found.tolerance:.0e} allowed), {where}"
        )
    inputs = "made-up inputs" if found.made_up else f"on {safe(found.inputs, 100)}"
    for each in found.fidelity[:_TOP]:
        yield f"fidelity of {safe(each.name, 80)}: {_fidelity(each)} ({inputs})"
    if len(found.fidelity) > _TOP:
        yield f"fidelity of {len(found.fidelity) - _TOP:,} more outputs: see --json or --report"


def _measured_lines(report: Report) -> Iterable[str]:
    """Yields what was measured of the task and of time."""
    if report.task is not None:
        task = report.task
        low, high = task.top1.interval.low, task.top1.interval.high
        yield (
            f"top-1 drop: {task.top1.drop:.1f} points ({low:.1f} to {high:.1f}) "
            f"on {task.samples:,} samples of {safe(task.source, 100)}"
        )
        rows = {row.label: row for row in task.per_class}
        worst = [f"{label} lost {rows[label].drop:.1f}" for label in task.worst[:_TOP] if label in rows]
        if worst:
            yield f"classes that lost most, in points: {', '.join(worst)}"
    if report.latency is not None:
        latency = report.latency
        low, high = latency.interval.low, latency.interval.high
        doubt = "" if latency.conclusive else f", not conclusive (noise {latency.noise:.1%})"
        yield f"speedup: {latency.speedup:.2f} ({low:.2f} to {high:.2f}){doubt}"


def _fidelity(each: OutputFidelity) -> str:
    top = "" if each.top1_agreement is None else f", top-1 agreement {100 * each.top1_agreement:.1f} %"
    return f"relative error {each.relative_error:.3g}, cosine {each.cosine:.4f}{top}"


def _frozen_lines(frozen: Sequence[FrozenRow], verbose: bool) -> Iterable[str]:
    reasons = by_reason(frozen)
    if not reasons:
        return
    yield f"frozen: {sum(row.channels for row in frozen):,} channels"
    for why, channels, rows in reasons if verbose else reasons[:_TOP]:
        yield f"  {channels:,}: {safe(why, 200)} ({_places(rows)})"
    if len(reasons) > _TOP and not verbose:
        yield f"  and {len(reasons) - _TOP:,} more reasons: see -v or `onnxprune inspect`"


def _places(rows: Sequence[FrozenRow]) -> str:
    names = [f"{safe(row.op, 40)} {safe(row.node, 80)}".strip() or "several places" for row in rows]
    more = f", {len(names) - _TOP:,} more" if len(names) > _TOP else ""
    return ", ".join(names[:_TOP]) + more


def _group_table(groups: Sequence[GroupRow], *, with_cut: bool) -> Table:
    headings = ("group", "units", *(["cut"] if with_cut else []), "MACs/unit", "params/unit", "members")
    rows = [_group_row(group, with_cut) for group in groups]
    return _table(headings, rows, numbers=set(range(1, len(headings) - 1)))


def _group_row(group: GroupRow, with_cut: bool) -> tuple[str, ...]:
    cut = [f"{group.cut:,}"] if with_cut else []
    per_unit = (f"{group.macs_per_unit:,.0f}", f"{group.params_per_unit:,.0f}")
    return safe(group.name, 60), f"{group.units:,}", *cut, *per_unit, _names(group.members, _TOP)


def _all_frozen_lines(frozen: Sequence[FrozenRow]) -> Iterable[str]:
    """Yields every reason and, below it, every place: as lines, since a table would cut the reasons short."""
    if frozen:
        yield f"frozen: {sum(row.channels for row in frozen):,} channels"
    for why, channels, rows in by_reason(frozen):
        yield f"  {channels:,}: {safe(why)}"
        for row in rows:
            where = f"{safe(row.op, 40)} {safe(row.node, 80)}".strip() or "several places"
            yield f"    {row.channels:,} at {where}{': ' if row.weights else ''}{_names(row.weights, _TOP)}"


def _names(names: Sequence[str], limit: int) -> str:
    more = f", {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(safe(name, 60) for name in names[:limit]) + more


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: set[int]) -> Table:
    """Returns a table of safe texts; in a narrow terminal names are cut short, numbers never."""
    table = Table(box=box.SIMPLE_HEAD)
    for k, heading in enumerate(headings):
        table.add_column(heading, justify="right" if k in numbers else "left", no_wrap=k in numbers)
    for row in rows:  # columns of names may become narrower, but no name is wrapped: its rest could begin a line
        table.add_row(*(Text(cell, no_wrap=True, overflow="ellipsis") for cell in row))
    return table


def print_table(console: Console, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table of safe texts: names in the first and the last column, numbers between them."""
    console.print(_table(headings, rows, numbers=set(range(1, len(headings) - 1))))


def _percent(count: Count) -> str:
    return f"{100 * count.ratio:.1f} %"


def print_lines(console: Console, lines: Iterable[str]) -> None:
    """Prints lines as they are: none is wrapped, and nothing in them is markup."""
    for line in lines:
        console.print(Text(line), soft_wrap=True)
