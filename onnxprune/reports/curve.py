"""A trade-off curve as data: what each of several targets leaves of a model, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from onnxprune.reports.records import Record
from onnxprune.reports.report import SensitivityRow

__all__ = ["FILE", "Point", "Sweep"]

FILE = "sweep.json"


@dataclass(frozen=True)
class Point:
    """One cut of a sweep.

    Attributes:
        target: what was to be left, like `macs=0.5`.
        macs: multiply-accumulates of one sample that are left; 0 where the target is out of reach.
        params: parameters.
        size: bytes of the written model, data files included.
        divergence: of the outputs, on held-out calibration inputs.
        top1: share of labelled samples that is told right, in percent; None without labelled data.
        latency: milliseconds of one run; None if it was not asked for.
        plan: file of the plan, below the sweep's folder.
        output: file of the model, empty if it was not written.
        error: why there is no such cut.
    """

    target: str
    macs: int = 0
    params: int = 0
    size: int = 0
    divergence: float = 0.0
    top1: float | None = None
    latency: float | None = None
    plan: str = ""
    output: str = ""
    error: str = ""


@dataclass(frozen=True)
class Sweep(Record):
    """A trade-off curve.

    Attributes:
        tool: version of onnxprune.
        model: path of the model, empty if there is no file.
        sha256: of the file.
        key: what binds the points to model, options and data.
        options: what was asked for, whatever the target.
        data: calibration data, in words.
        samples: how many of them.
        macs: of the original.
        params: of the original.
        size: of the original.
        top1: of the original; None without labelled data.
        latency: of the original; None if it was not asked for.
        points: what was measured, in the order that was asked for.
        sensitivity: what each group costs the outputs.
        seconds: by stage, of the last run.
    """

    kind: ClassVar[str] = "sweep"

    tool: str
    model: str
    sha256: str
    key: str
    options: dict[str, Any]
    data: str
    samples: int
    macs: int
    params: int
    size: int
    top1: float | None = None
    latency: float | None = None
    points: tuple[Point, ...] = ()
    sensitivity: tuple[SensitivityRow, ...] = ()
    seconds: dict[str, float] | None = None
