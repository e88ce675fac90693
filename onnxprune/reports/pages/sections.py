"""The parts of a page, each made of one kind of rows in a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from onnxprune.reports.pages.layout import (
    Cell,
    Check,
    Section,
    Table,
    Tone,
    in_short,
    names,
    percent,
    points,
    signed,
    spanned,
)
from onnxprune.reports.report import (
    ClassChange,
    FrozenRow,
    GroupRow,
    OutputFidelity,
    ScoreChange,
    SensitivityRow,
    TaskChange,
    Validation,
    by_reason,
)
from onnxprune.reports.svg import Axis, Line, line_chart

__all__ = [
    "classes_section",
    "exactness",
    "fidelity_section",
    "frozen_sections",
    "groups_section",
    "output_checks",
    "proof_section",
    "scores_section",
    "sensitivity_section",
]

_NAMED_LINES = 6  # curves with a colour of their own; the rest are grey


def groups_section(groups: Sequence[GroupRow], measured: Mapping[str, SensitivityRow], *, with_cut: bool) -> Section:
    """Returns the section with a row and a bar for each group."""
    headings = ["group", *(["kept", "", "cut"] if with_cut else ["units"]), "MACs / unit", "parameters / unit"]
    if measured:
        headings.append("divergence")
    headings.append("weights")
    rows = [_group(group, measured, with_cut) for group in groups]
    numbers = frozenset(range(2 if with_cut else 1, len(headings) - 1))
    intro = "Units of a group are coupled: each goes in all of the group's weights at once."
    if measured:
        intro += " Divergence is what cutting this group alone, as deep as here, does to the outputs."
    return Section("Groups", f"{len(groups):,}", intro, table=Table(headings, rows, numbers))


def _group(group: GroupRow, measured: Mapping[str, SensitivityRow], with_cut: bool) -> list[Cell]:
    kept = group.units - group.cut
    share = kept / group.units if group.units else 1.0
    bar = Cell(kind="bar", share=share, hint=f"{kept:,} of {group.units:,} kept")
    cut = [
        bar,
        Cell(f"{kept:,} / {group.units:,}"),
        Cell(signed(share - 1) if group.cut else "–"),
    ]
    cells = [
        Cell(group.name, "name"),
        *(cut if with_cut else [Cell(f"{group.units:,}")]),
        Cell(in_short(group.macs_per_unit), hint=f"{group.macs_per_unit:,.0f}"),
        Cell(in_short(group.params_per_unit), hint=f"{group.params_per_unit:,.0f}"),
    ]
    if measured:
        cells.append(Cell(_divergence_at(measured.get(group.name), group.cut)))
    return [*cells, names(group.members)]


def _divergence_at(row: SensitivityRow | None, cut: int) -> str:
    """Returns the divergence at a count, between two levels by a straight line."""
    if row is None:
        return ""
    levels = sorted(zip(row.counts, row.divergence, strict=False))
    for (low, one), (high, two) in pairwise(levels):
        if low <= cut <= high:
            return f"{one + (two - one) * (cut - low) / max(high - low, 1):.2g}"
    return ""


def sensitivity_section(rows: Sequence[SensitivityRow]) -> Section:
    """Returns the section with a curve for each group, those that cost most in colour."""
    worst = sorted(rows, key=lambda row: -max(row.divergence, default=0.0))[:_NAMED_LINES]
    coloured = {id(row) for row in worst}
    lines = [_curve(row, faint=False) for row in worst]
    lines += [_curve(row, faint=True) for row in rows if id(row) not in coloured]
    chart = line_chart(
        lines,
        title="divergence of the outputs over the share of each group that is cut",
        x=Axis("share of the group that is cut", percent=True, low=0.0, high=1.0),
        y=Axis("divergence of the outputs", log=True),
        width=1040,
        height=340,
    )
    aside = f"the {len(worst)} most sensitive of {len(rows):,} groups in colour" if len(rows) > len(worst) else ""
    intro = "Each group is cut alone, its consumers are refitted, and the outputs are compared on held-out inputs."
    return Section("Sensitivity", aside, intro, charts=[chart])


def _curve(row: SensitivityRow, *, faint: bool) -> Line:
    levels = [(count, cost) for count, cost in zip(row.counts, row.divergence, strict=False) if count]
    points = [(count / max(row.units, 1), cost) for count, cost in levels]
    notes = [f"{count:,} of {row.units:,} cut, divergence {cost:.3g}" for count, cost in levels]
    return Line(row.name, points, faint=faint, notes=notes)


def classes_section(task: TaskChange) -> Section:
    """Returns the section with a row for each class."""
    rows = sorted(task.per_class, key=lambda row: (-row.drop, row.label))
    scale = max((abs(row.drop) for row in rows), default=0.0) or 1.0
    headings = ("class", "samples", "before", "after", "", "change", "95 % interval")
    table = Table(headings, [_class(row, scale) for row in rows], frozenset({1, 2, 3, 5, 6}), open=20)
    top5 = "" if task.top5 is None else f" Top-5: {task.top5.before:.1f} % before, {task.top5.after:.1f} % after."
    intro = f"Measured on {task.source}. The classes that lost most come first.{top5}"
    return Section("Accuracy by class", f"{task.samples:,} samples", intro, table=table)


def _class(row: ClassChange, scale: float) -> list[Cell]:
    tone: Tone = "bad" if row.interval.low > 0 else "good" if row.interval.high < 0 else ""
    return [
        Cell(str(row.label)),
        Cell(f"{row.samples:,}"),
        Cell(f"{row.before:.1f} %"),
        Cell(f"{row.after:.1f} %"),
        Cell(kind="drop", share=row.drop / scale, tone=tone),
        Cell(points(row.drop) if round(row.drop, 1) else "–", tone=tone),
        Cell(spanned(row)),
    ]


def scores_section(scores: Sequence[ScoreChange]) -> Section:
    """Returns the section with the figures of the user's own metric."""
    rows = [_score(score) for score in scores]
    headings = ("figure", "before", "after", "worse by", "95 % interval")
    return Section("Scores", "by the metric script", table=Table(headings, rows, frozenset({1, 2, 3, 4})))


def _score(score: ScoreChange) -> list[Cell]:
    interval = "" if score.interval is None else f"{score.interval.low:.4g} to {score.interval.high:.4g}"
    figures = (f"{value:.4g}" for value in (score.before, score.after, score.drop))
    return [Cell(score.name, "name"), *map(Cell, figures), Cell(interval)]


def proof_section(found: Validation) -> Section:
    """Returns the section with what was compared."""
    if found.error is None:
        intro = "Axes were opened that cannot be cut exactly, so there is no comparison with zeroed weights."
    else:
        intro = "The written file was compared with the original whose cut weights are set to zero, in onnxruntime."
    facts = [] if found.error is None else [("difference", exactness(found.error, found.tolerance), False)]
    facts += [("at", "; ".join(found.sizes), False), ("on", ", ".join(found.provider), False)]
    if found.noise is not None:
        facts.append(("the provider's own noise", f"{found.noise:.1e}", False))
    facts += [
        (
            f"nodes on {place.provider}",
            f"{place.nodes:,} ({', '.join(f'{n} {op}' for op, n in place.ops.items())})",
            False,
        )
        for place in found.placement
    ]
    return Section("Proof", intro=intro, facts=facts)


def exactness(error: float, tolerance: float) -> str:
    """Returns what the comparison with the masked original found, in words."""
    return f"{error:.1e} from the original with the cut weights at zero, up to {tolerance:.1e} allowed"


def output_checks(found: Validation) -> Iterator[Check]:
    """Yields, for each output, whether it has collapsed."""
    for each in found.fidelity:
        agreement = "" if each.top1_agreement is None else f", top-1 agreement {percent(each.top1_agreement)}"
        moved = f"relative error {each.relative_error:.3g}, cosine {each.cosine:.4f}{agreement}"
        yield Check(f"output {each.name} has not collapsed", not each.collapsed, moved)


def fidelity_section(found: Validation) -> Section:
    """Returns the section with a row for each output."""
    headings = ("output", "relative error", "cosine", "SNR", "KL", "same top class", "samples")
    rows = [_output(each) for each in found.fidelity]
    intro = f"Measured on {found.inputs}." if found.inputs else "Measured on made-up inputs." if found.made_up else ""
    return Section("Fidelity", "how far each output moved", intro, table=Table(headings, rows, frozenset(range(1, 7))))


def _output(each: OutputFidelity) -> list[Cell]:
    return [
        Cell(each.name, "name"),
        _with_interval(each, "relative_error", "{:.3g}"),
        _with_interval(each, "cosine", "{:.4f}"),
        Cell("" if each.snr is None else f"{each.snr:.1f} dB"),
        _with_interval(each, "kl", "{:.3g}"),
        Cell("" if each.top1_agreement is None else percent(each.top1_agreement)),
        Cell(f"{each.samples:,}" if each.samples else ""),
    ]


def _with_interval(each: OutputFidelity, name: str, form: str) -> Cell:
    value = getattr(each, name)
    if value is None:
        return Cell()
    interval = each.intervals.get(name)
    hint = f"95 %: {form.format(interval.low)} to {form.format(interval.high)}" if interval else ""
    return Cell(form.format(value), hint=hint)


def frozen_sections(frozen: Sequence[FrozenRow]) -> Iterator[Section]:
    """Yields the section with what stays and why, if anything does."""
    if not frozen:
        return
    rows = [
        [Cell(f"{row.channels:,}"), Cell(why), Cell(row.op), Cell(row.node, "name"), names(row.weights)]
        for why, _, own in by_reason(frozen)
        for row in own
    ]
    total = sum(row.channels for row in frozen)
    headings = ("channels", "why they stay", "operator", "node", "weights")
    yield Section("Frozen", f"{total:,} channels", table=Table(headings, rows, frozenset({0}), open=15))


def notes_sections(notes: Sequence[str]) -> Iterator[Section]:
    """Yields the section with what else is worth knowing, if anything is."""
    if notes:
        yield Section("Notes", lines=notes)
