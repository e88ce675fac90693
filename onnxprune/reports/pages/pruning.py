"""What the page of a pruning shows."""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.reports.command_line import as_arguments
from onnxprune.reports.pages.layout import Badge, Check, Page, Section, Tile, title
from onnxprune.reports.pages.sections import (
    classes_section,
    exactness,
    fidelity_section,
    frozen_sections,
    groups_section,
    notes_sections,
    output_checks,
    proof_section,
    sensitivity_section,
)
from onnxprune.reports.pages.tiles import count_tile, fidelity_tile, latency_tile, task_tile
from onnxprune.reports.report import Report, units_of

__all__ = ["pruning_page"]


def pruning_page(report: Report) -> Page:
    """Returns the page of a pruning."""
    units = units_of(report.groups)
    touched = sum(group.cut > 0 for group in report.groups)
    return Page(
        tool=report.tool,
        what="pruning report",
        title=title(report.model),
        lead=f"{units.before - units.after:,} of {units.before:,} units were cut, in {touched:,} of "
        f"{len(report.groups):,} groups.",
        badges=list(_badges(report)),
        warnings=report.warnings,
        tiles=_filled_up(list(_tiles(report)), count_tile("Units", units)),
        sections=list(_sections(report)),
        checks=list(_checks(report)),
        seconds=sum(report.seconds.values()),
    )


def _badges(report: Report) -> Iterator[Badge]:
    found = report.validation
    if found is None:
        yield Badge("not validated", "amber")
    elif found.error is None:
        yield Badge("approximate cut", "amber")
    else:
        yield Badge("exact cut, proved", "good")
    if report.output is None:
        yield Badge("not written")


def _checks(report: Report) -> Iterator[Check]:
    found = report.validation
    if found is None:
        yield Check("the cut is exact", None, "not validated")
    elif found.error is None:
        yield Check("the cut is exact", None, "the cut is approximate: there is no comparison with zeroed weights")
    else:
        yield Check("the cut is exact", found.error <= found.tolerance, exactness(found.error, found.tolerance))
    if found is not None:
        yield from output_checks(found)


def _tiles(report: Report) -> Iterator[Tile]:
    yield count_tile("MACs", report.macs)
    yield count_tile("Parameters", report.params)
    yield count_tile("Size", report.size, in_bytes=True)
    if report.latency is not None:
        yield latency_tile(report.latency)
    if report.task is not None:
        yield task_tile(report.task)
    if report.validation is not None and report.validation.fidelity:
        yield fidelity_tile(report.validation)


def _filled_up(tiles: list[Tile], another: Tile) -> list[Tile]:
    """Returns tiles that fill their rows of three or four."""
    return [*tiles[:3], another, *tiles[3:]] if len(tiles) in (3, 5) else tiles


def _sections(report: Report) -> Iterator[Section]:
    measured = {row.name: row for row in report.sensitivity}
    if report.groups:
        yield groups_section(report.groups, measured, with_cut=True)
    if report.sensitivity:
        yield sensitivity_section(report.sensitivity)
    if report.task is not None:
        yield classes_section(report.task)
    if report.validation is not None:
        yield proof_section(report.validation)
        if report.validation.fidelity:
            yield fidelity_section(report.validation)
    yield from frozen_sections(report.frozen)
    yield from notes_sections(report.notes)
    yield _made(report)


def _made(report: Report) -> Section:
    asked = {k: v for k, v in report.options.items() if k not in ("data", "data_samples")}
    facts = [("original", report.model or "in memory", True), ("its SHA-256", report.sha256, True)]
    facts.append(("written", report.output or "nothing", report.output is not None))
    if "data" in report.options:
        facts.append(("refitted on", str(report.options["data"]), False))
    if report.seconds:
        facts.append(("seconds", ", ".join(f"{stage} {s:.1f}" for stage, s in report.seconds.items()), False))
    facts.append(("onnxprune", report.tool, False))
    command = report.command or f"onnxprune {report.model or 'MODEL'} {as_arguments(asked)}"
    return Section("How it was made", facts=facts, code=command)
