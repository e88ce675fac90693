"""What a run says about itself: figures, reasons and warnings, as data. JSON is the source of all other formats."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from onnxprune.reports import records
from onnxprune.reports.measured import (
    ClassChange,
    Exactness,
    Interval,
    LatencyChange,
    MetricChange,
    OutputFidelity,
    Placement,
    ScoreChange,
    SensitivityRow,
    TaskChange,
    Validation,
)
from onnxprune.reports.records import Record

__all__ = [
    "ClassChange",
    "Comparison",
    "Count",
    "Exactness",
    "FrozenRow",
    "GroupRow",
    "Inspection",
    "Interval",
    "LatencyChange",
    "MetricChange",
    "OutputFidelity",
    "Placement",
    "Report",
    "ScoreChange",
    "SensitivityRow",
    "TaskChange",
    "Validation",
    "by_reason",
    "read",
    "units_of",
]


@dataclass(frozen=True)
class Count:
    """A figure of the original and of the pruned model."""

    before: int
    after: int

    @property
    def ratio(self) -> float:
        """The share that is left."""
        return self.after / self.before if self.before else 1.0


@dataclass(frozen=True)
class GroupRow:
    """A pruning group.

    Attributes:
        name: of the group.
        units: how many it has.
        cut: how many of them go.
        members: the weights that lose something with each unit.
        macs_per_unit: multiply-accumulates that go with one unit, all else uncut.
        params_per_unit: parameters that go with one unit.
    """

    name: str
    units: int
    cut: int
    members: tuple[str, ...]
    macs_per_unit: float
    params_per_unit: float


@dataclass(frozen=True)
class FrozenRow:
    """Channels that stay, and why.

    Attributes:
        node: where the reason lies.
        op: that node's operator.
        why: the reason.
        channels: how many it freezes.
        weights: the weights that they belong to.
    """

    node: str
    op: str
    why: str
    channels: int
    weights: tuple[str, ...]


@dataclass(frozen=True)
class Report(Record):
    """What a pruning run did.

    Attributes:
        tool: version of onnxprune.
        model: path of the original, empty if there is no file.
        sha256: of the original file.
        output: path of the pruned model, None if it was not written.
        options: what was asked for.
        macs: multiply-accumulates of one sample.
        params: parameters.
        size: bytes, data files included.
        groups: all pruning groups.
        frozen: what stays, and why.
        notes: what else is worth knowing.
        warnings: what should not be overlooked.
        validation: None if nothing was validated.
        seconds: by stage.
        command: the command line, empty if it was called from Python.
        task: what labelled data say; None without.
        latency: None if it was not measured.
        sensitivity: of every group that was measured.
    """

    kind: ClassVar[str] = "prune"

    tool: str
    model: str
    sha256: str
    output: str | None
    options: dict[str, Any]
    macs: Count
    params: Count
    size: Count
    groups: tuple[GroupRow, ...]
    frozen: tuple[FrozenRow, ...]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    validation: Validation | None = None
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    command: str = ""
    task: TaskChange | None = None
    latency: LatencyChange | None = None
    sensitivity: tuple[SensitivityRow, ...] = ()


@dataclass(frozen=True)
class Inspection(Record):
    """What could be cut out of a model.

    Attributes:
        tool: version of onnxprune.
        model: path of the model, empty if there is no file.
        sha256: of the file.
        macs: multiply-accumulates of one sample.
        params: parameters.
        size: bytes, data files included.
        groups: all pruning groups.
        frozen: what stays, and why.
        macs_at_half: multiply-accumulates that would be left at ratio 0.5.
        notes: what else is worth knowing.
    """

    kind: ClassVar[str] = "inspect"

    tool: str
    model: str
    sha256: str
    macs: int
    params: int
    size: int
    groups: tuple[GroupRow, ...]
    frozen: tuple[FrozenRow, ...]
    macs_at_half: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison(Record):
    """What `validate` found: three checks that are kept apart.

    Attributes:
        tool: version of onnxprune.
        model: path of the original, empty if there is no file.
        sha256: of the original file.
        pruned: path of the pruned model, empty if there is no file.
        pruned_sha256: of the pruned file.
        macs: multiply-accumulates of one sample.
        params: parameters.
        size: bytes, data files included.
        exactness: whether the cut is the plan's, and exact.
        validation: how far the outputs moved.
        task: what labelled data say; None without them.
        scores: what the metric script says; empty without one.
        notes: what else is worth knowing.
        warnings: what should not be overlooked.
        seconds: by stage.
    """

    kind: ClassVar[str] = "validate"

    tool: str
    model: str
    sha256: str
    pruned: str
    pruned_sha256: str
    macs: Count
    params: Count
    size: Count
    exactness: Exactness
    validation: Validation
    task: TaskChange | None = None
    scores: tuple[ScoreChange, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)


def by_reason(frozen: Sequence[FrozenRow]) -> list[tuple[str, int, list[FrozenRow]]]:
    """Returns each reason once, with the number of channels that it freezes and its rows, the largest first."""
    rows: dict[str, list[FrozenRow]] = {}
    for row in frozen:
        rows.setdefault(row.why, []).append(row)
    found = [(why, sum(row.channels for row in own), own) for why, own in rows.items()]
    return sorted(found, key=lambda each: -each[1])


def units_of(groups: Sequence[GroupRow]) -> Count:
    """Returns how many units there are, and how many are left."""
    total = sum(group.units for group in groups)
    return Count(total, total - sum(group.cut for group in groups))


def read(path: str | os.PathLike[str]) -> Report:
    """Returns the report of a pruning run in a JSON file.

    Raises:
        DataError: it is none.
    """
    return records.read(path, Report)
