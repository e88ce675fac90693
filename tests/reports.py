"""Reports of every kind with every field in use, and one name wherever a name stands."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from onnxprune.latency.timing import Spread, Timing
from onnxprune.proof.gate import Finding, Verdict
from onnxprune.reports.history import History, Step
from onnxprune.reports.records import Record
from onnxprune.reports.report import (
    ClassChange,
    Comparison,
    Count,
    Exactness,
    FrozenRow,
    GroupRow,
    Inspection,
    Interval,
    LatencyChange,
    MetricChange,
    OutputFidelity,
    Placement,
    Report,
    ScoreChange,
    SensitivityRow,
    TaskChange,
    Validation,
)
from onnxprune.tradeoff import Point, Sweep

NASTY = (
    "a\nb", "\x1b[31mred", "\u202eevil", "::error file=x::pwned", " ::warning::x", "##vso[task.setvariable x]y",
    "[bold red]markup[/]", "<script>alert(1)</script>", "]]>", "a|b", "``tick`", "x" * 1_000_000, "@everyone",
    ":smile:", "\udcff", "\r::error::y", "\x9b31m", "![](http://evil)", "$x$", "\x7f", "", "\"><img src=x onerror='a'>",
    "</style>", "{{ 7 * 7 }}", "&lt;b&gt;", "\ufffe\x00", "https://evil.example/x.png", "url(//evil)", "-->", "\u2028",
)  # fmt: skip

SHA = "ab" * 32


def task(name: str) -> TaskChange:
    interval = Interval(-0.5, 2.5)
    rows = tuple(ClassChange(k, 60, 99.0, 99.0 - drop, drop, interval) for k, drop in enumerate((0.0, 5.0, -1.5)))
    change = MetricChange(99.0, 98.0, 1.0, interval)
    return TaskChange(name, 180, name, change, change, rows, (1,))


def validation(name: str, value: float = 0.9) -> Validation:
    intervals = {"relative_error": Interval(0.05, 0.15)}
    outputs = (OutputFidelity(name, 0.1, value, 0.95, 20.0, 0.01, 256, intervals), OutputFidelity("y2", 0.05, 0.99))
    placement = (Placement(name, 3, {"Conv": 2, name: 1}),)
    return Validation((name,), 3e-7, 1e-3, (name, "b"), outputs, name, False, True, 1e-6, placement, (name,))


def pruning(name: str = "conv1.weight", value: float = 0.9, **changes: Any) -> Report:
    report = Report(
        tool="0.1.0",
        model=name,
        sha256=SHA,
        output=name,
        options={"ratio": 0.5, "include": [name], "criterion": "l1", "data": name, "data_samples": 3},
        macs=Count(1_353_344, 676_000),
        params=Count(100_000, 50_000),
        size=Count(400_000, 210_000),
        groups=(GroupRow(name, 16, 8, (name, name), 12.5, 3.0), GroupRow("other", 4, 0, (name,), 1.0, 1.0)),
        frozen=(FrozenRow(name, "Softmax", name, 10, (name,)), FrozenRow("", "", "others stay", 3, ())),
        notes=(name,),
        warnings=(name,),
        validation=validation(name, value),
        seconds={"load": 0.1, "cut": 0.2},
        command=f"onnxprune {name} --ratio 0.5",
        task=task(name),
        latency=LatencyChange(0.4, 0.25, 1.6, Interval(1.5, 1.7), 0.01, True, (name,), 1),
        sensitivity=(SensitivityRow(name, 16, (0, 4, 8), (0.0, 0.01, 0.3)), SensitivityRow("other", 4, (0,), (0.0,))),
    )
    return dataclasses.replace(report, **changes)


def inspection(name: str = "conv1.weight") -> Inspection:
    report = pruning(name)
    return Inspection("0.1.0", name, SHA, 1000, 100, 4000, report.groups, report.frozen, 500)


def comparison(name: str = "conv1.weight", exact: bool | None = True) -> Comparison:
    return Comparison(
        tool="0.1.0",
        model=name,
        sha256=SHA,
        pruned=name,
        pruned_sha256=SHA,
        macs=Count(1000, 250),
        params=Count(100, 50),
        size=Count(4000, 2100),
        exactness=Exactness(exact, name, 1e-7, 1e-3, 4, 2, (name,)),
        validation=validation(name),
        task=task(name),
        scores=(ScoreChange(name, 0.9, 0.8, 0.1, True, Interval(0.05, 0.15)), ScoreChange("loss", 1, 2, 1, False)),
        notes=(name,),
        warnings=(name,),
        seconds={"load": 0.1},
    )


def timing(name: str = "conv1.weight") -> Timing:
    return Timing(Spread(0.3, 0.4), Spread(0.2, 0.25), 1.6, 1.5, 1.7, 0.01, True, 300, (name,), 1, (name,))


def sweep(name: str = "conv1.weight") -> Sweep:
    points = (
        Point("macs=0.5", 500, 60, 2000, 0.01, 98.0, 0.3, name, name),
        Point(name, error=f"{name} is out of reach"),
    )
    figures = {"macs": 1000, "params": 100, "size": 4000, "top1": 99.0, "latency": 0.5}
    options = {"include": [name]}
    rows = pruning(name).sensitivity
    return Sweep(
        "0.1.0", name, SHA, "key", options, name, 64, **figures, points=points, sensitivity=rows, seconds={"a": 1.0}
    )


def verdict(name: str = "conv1.weight") -> Verdict:
    found = (Finding("max_drop", 1.0, 0.5, 0.9, True, name), Finding("min_speedup", 2.0, None, None, False, name))
    return Verdict(False, found, (name,))


def history(name: str = "conv1.weight") -> History:
    options = {"ratio": 0.5, "include": [name]}
    step = Step(1, "0.1.0", SHA, Count(10, 5), Count(8, 4), 100, Count(6, 3), name, 3, options, True)
    return History(name, SHA, (step,))


KINDS: dict[str, Callable[..., Record]] = {
    "bench": timing,
    "gate": verdict,
    "history": history,
    "inspect": inspection,
    "prune": pruning,
    "sweep": sweep,
    "validate": comparison,
}
