"""What is shown of a report, before it is laid out: HTML, Markdown and JUnit XML all show the same page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onnxprune.reports.pages import kinds, pruning
from onnxprune.reports.pages.layout import Badge, Cell, Check, Page, Section, Table, Tile
from onnxprune.reports.records import Record

__all__ = ["Badge", "Cell", "Check", "Page", "Section", "Table", "Tile", "page_of"]

_PAGES: dict[str, Callable[[Any], Page]] = {
    "bench": kinds.timing_page,
    "gate": kinds.verdict_page,
    "inspect": kinds.inspection_page,
    "prune": pruning.pruning_page,
    "sweep": kinds.sweep_page,
    "validate": kinds.comparison_page,
}


def page_of(report: Record) -> Page:
    """Returns what is shown of a report of any kind."""
    return _PAGES[report.kind](report)
