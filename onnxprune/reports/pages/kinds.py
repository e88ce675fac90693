"""What the pages of all reports but that of a pruning show."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxprune import __version__
from onnxprune.latency.timing import Timing, verdict
from onnxprune.reports.command_line import as_arguments
from onnxprune.reports.pages.layout import (
    Badge,
    Cell,
    Check,
    Page,
    Section,
    Table,
    Tile,
    bytes_in_short,
    in_short,
    percent,
    title,
)
from onnxprune.reports.pages.sections import (
    classes_section,
    exactness,
    fidelity_section,
    frozen_sections,
    groups_section,
    notes_sections,
    output_checks,
    scores_section,
    sensitivity_section,
)
from onnxprune.reports.pages.tiles import count_tile, fidelity_tile, latency_tile, plain_tile, task_tile
from onnxprune.reports.report import Comparison, Count, Inspection, Interval, LatencyChange

if TYPE_CHECKING:
    from onnxprune.proof.gate import Verdict
    from onnxprune.tradeoff import Sweep

__all__ = ["comparison_page", "inspection_page", "sweep_page", "timing_page", "verdict_page"]


def inspection_page(found: Inspection) -> Page:
    """Returns the page of an inspection."""
    units = sum(group.units for group in found.groups)
    half = Count(found.macs, found.macs_at_half)
    tiles = [
        plain_tile("MACs", in_short(found.macs), f"{found.macs:,}"),
        plain_tile("Parameters", in_short(found.params), f"{found.params:,}"),
        plain_tile("Size", bytes_in_short(found.size), f"{found.size:,} bytes"),
        Tile("MACs left at ratio 0.5", percent(half.ratio), under="expected", share=half.ratio),
    ]
    sections = [
        *([groups_section(found.groups, {}, with_cut=False)] if found.groups else []),
        *frozen_sections(found.frozen),
        *notes_sections(found.notes),
        Section("The model", facts=[("model", found.model, True), ("SHA-256", found.sha256, True)]),
    ]
    lead = f"{units:,} units in {len(found.groups):,} groups can be cut." if found.groups else "Nothing can be cut."
    return Page(found.tool, "inspection", title(found.model), lead, tiles=tiles, sections=sections)


def comparison_page(found: Comparison) -> Page:
    """Returns the page of a validation."""
    exact = found.exactness
    badge = {
        True: Badge("exact cut", "good"),
        False: Badge("not the cut of its plan", "bad"),
        None: Badge("exactness not checked"),
    }
    tiles = [count_tile("MACs", found.macs), count_tile("Parameters", found.params)]
    tiles.append(count_tile("Size", found.size, in_bytes=True))
    if found.task is not None:
        tiles.append(task_tile(found.task))
    if found.validation.fidelity:
        tiles.append(fidelity_tile(found.validation))
    facts = [("exactness", exact.why, False)]
    if exact.error is not None and exact.tolerance is not None:
        facts.append(("difference", exactness(exact.error, exact.tolerance), False))
    facts.append(("weights", f"{exact.weights:,} lost something, {exact.refitted:,} were refitted", False))
    facts += [("problem", problem, False) for problem in exact.problems]
    files = [("original", found.model, True), ("its SHA-256", found.sha256, True), ("pruned", found.pruned, True)]
    sections = [
        *([classes_section(found.task)] if found.task is not None else []),
        *([scores_section(found.scores)] if found.scores else []),
        *([fidelity_section(found.validation)] if found.validation.fidelity else []),
        Section("Exactness", facts=facts),
        *notes_sections(found.notes),
        Section("The models", facts=files),
    ]
    return Page(
        tool=found.tool,
        what="validation",
        title=title(found.pruned),
        lead=f"Compared with {title(found.model)}.",
        badges=[badge[exact.exact]],
        warnings=found.warnings,
        tiles=tiles,
        sections=sections,
        checks=[Check("the cut is exact", exact.exact, exact.why), *output_checks(found.validation)],
        seconds=sum(found.seconds.values()),
    )


def timing_page(found: Timing) -> Page:
    """Returns the page of a measurement of latency."""
    change = LatencyChange(
        found.original.p50, found.pruned.p50, found.speedup, Interval(found.low, found.high), found.noise,
        found.conclusive, found.provider, found.threads,
    )  # fmt: skip
    rows = [(name, each) for name, each in (("original", found.original), ("pruned", found.pruned))]
    cells = [[Cell(name), Cell(f"{each.p10:.4g}"), Cell(f"{each.p50:.4g}")] for name, each in rows]
    table = Table(("", "ms, one run in ten is faster", "ms, median"), cells, frozenset({1, 2}))
    facts = [
        ("rounds", f"{found.rounds:,}, each runs the original, the pruned model and the original again", False),
        ("noise", f"{found.noise:.1%}: how far the original differs from itself", False),
        ("on", ", ".join(found.provider) or "CPUExecutionProvider", False),
        ("threads", str(found.threads) if found.threads else "the provider's choice", False),
        ("inputs", "; ".join(found.inputs), False),
    ]
    sections = [Section("Milliseconds of one run", table=table), Section("How it was measured", facts=facts)]
    badge = Badge("conclusive", "good") if found.conclusive else Badge("not conclusive", "amber")
    checks = [Check("latency", True if found.conclusive else None, verdict(found))]
    tiles = [latency_tile(change)]
    return Page(__version__, "latency", "Latency", verdict(found), [badge], (), tiles, sections, checks)


def sweep_page(found: Sweep) -> Page:
    """Returns the page of a sweep."""
    from onnxprune.reports.tradeoff_view import chart, columns, lines, rows

    headings = columns(found)
    cells = [[Cell(text) for text in row] for row in rows(found)]
    table = Table(headings, cells, frozenset(range(1, len(headings) - 1)), open=60)
    out_of_reach = list(lines(found))
    facts = [("model", found.model, True), ("its SHA-256", found.sha256, True)]
    facts.append(("refitted and measured on", f"{found.data}, {found.samples:,} samples", False))
    sections = [
        Section(
            "Trade-off",
            intro="Each point is a cut of its own, with a plan that makes it again.",
            charts=[chart(found, width=1040, height=340)],
        ),
        Section("Points", table=table),
        *([Section("Out of reach", lines=out_of_reach)] if out_of_reach else []),
        *([sensitivity_section(found.sensitivity)] if found.sensitivity else []),
        Section("How it was made", facts=facts, code=f"onnxprune sweep {found.model} {as_arguments(found.options)}"),
    ]
    tiles = [
        plain_tile("MACs", in_short(found.macs), f"{found.macs:,}"),
        plain_tile("Parameters", in_short(found.params), f"{found.params:,}"),
        plain_tile("Size", bytes_in_short(found.size), f"{found.size:,} bytes"),
    ]
    if found.top1 is not None:
        tiles.append(
            Tile("Top-1 accuracy", f"{found.top1:.1f}", "%", under="of the original", after=f"{found.top1:.2f} %")
        )
    had = len(cells) - 1
    lead = f"{had:,} of {len(found.points):,} targets could be had. The figures are the original's."
    return Page(found.tool, "sweep", title(found.model), lead, tiles=tiles, sections=sections)


def verdict_page(found: Verdict) -> Page:
    """Returns the page of a gate."""
    failed = len(found.failed)
    badge = Badge("passed", "good") if found.passed else Badge("blocked", "bad")
    words = {True: Cell("holds", tone="good"), False: Cell("fails", tone="bad")}
    rows = [[Cell(each.gate), words[each.passed], Cell(each.told)] for each in found.findings]
    lead = f"{failed:,} of {len(found.findings):,} limits do not hold." if failed else "All limits hold."
    sections = [
        Section("Limits", table=Table(("limit", "", "what was found"), rows, frozenset())),
        Section("Reports", lines=found.reports),
    ]
    checks = [Check(each.gate, each.passed, each.told) for each in found.findings]
    return Page(__version__, "gate", "Gate", lead, [badge], sections=sections, checks=checks)
