"""The user's own metric: a Python function, or a class that sums up batch by batch. It runs only when it is asked for.

`NAME(outputs, labels)` is called once for each model, with arrays of all samples by output name and with the labels,
and returns a number or a dict of numbers. A class is called for each model instead: `update(outputs, labels)` for every
batch, then `compute()`. More is better, unless `NAME.higher_is_better` is False, or a dict that says so by figure.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.calibration.arrays import shown_path
from onnxprune.calibration.script import execute, failure, running, split_script
from onnxprune.errors import DataError, UsageError, quote
from onnxprune.reports.report import Interval, ScoreChange

__all__ = ["MetricScript", "changes", "open_metric_script"]

PARTS = 20  # of the samples, each left out once
T_HALF = 2.093024054408263  # of Student's distribution with 19 degrees of freedom, 95 %

Batch = tuple[Mapping[str, np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class MetricScript:
    """A metric that a Python file defines.

    Attributes:
        path: of the file.
        name: of the function or class.
        target: the function or class itself.
        module: what the file filled.
    """

    path: Path
    name: str
    target: Callable[..., Any]
    module: types.ModuleType

    @property
    def streams(self) -> bool:
        """Whether it is a class that is given batches."""
        return isinstance(self.target, type)

    def higher_is_better(self, figure: str) -> bool:
        """Returns whether more of a figure is better."""
        told = getattr(self.target, "higher_is_better", True)
        return bool(told.get(figure, True)) if isinstance(told, Mapping) else bool(told)

    def of_batches(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Returns the figures of a class, which sees one batch at a time.

        Raises:
            DataError: the script failed, or gives no numbers.
        """
        metric = self._call("calling", self.target)
        for outputs, labels in batches:
            self._call("update of", metric.update, dict(outputs), labels)
        return self._figures(self._call("compute of", metric.compute))

    def of_all(self, outputs: Mapping[str, Any], labels: np.ndarray) -> dict[str, float]:
        """Returns the figures of a function, which sees all samples.

        Raises:
            DataError: the script failed, or gives no numbers.
        """
        return self._figures(self._call("calling", self.target, dict(outputs), labels))

    def _call(self, doing: str, function: Callable[..., Any], *arguments: Any) -> Any:
        with running(self.path, self.module):
            try:
                return function(*arguments)
            except (Exception, SystemExit) as error:
                raise failure(error, self.path, f"{doing} {self.name}") from error

    def _figures(self, value: Any) -> dict[str, float]:
        found = value if isinstance(value, Mapping) else {self.name: value}
        try:
            figures = {str(k): float(v) for k, v in found.items()}
        except (TypeError, ValueError):
            raise DataError(
                f"script {shown_path(self.path)}: {quote(self.name)} gives a {type(value).__name__}: "
                "return a number, or a dict of numbers by name"
            ) from None
        if not figures:
            raise DataError(f"script {shown_path(self.path)}: {quote(self.name)} gives no figures: return some")
        return figures


def open_metric_script(script: str | Path) -> MetricScript:
    """Returns the metric that `FILE.py:NAME` defines, after running the file.

    Raises:
        UsageError: there is no such file or name.
        DataError: the script failed; its traceback is in the error's notes.
    """
    path, name = split_script(script)
    if name is None:
        raise UsageError(f"metric script {shown_path(path)}: say which function or class with {path.name}:NAME")
    with running(path) as module:
        execute(path, module)
    target = vars(module).get(name)
    if not callable(target):
        there = ", ".join(k for k, v in vars(module).items() if callable(v) and not k.startswith("_"))
        raise UsageError(f"{shown_path(path)} defines no {quote(name)} that can be called: it has {there or 'none'}")
    if isinstance(target, type) and not all(callable(getattr(target, m, None)) for m in ("update", "compute")):
        raise UsageError(f"{shown_path(path)}: class {quote(name)} needs update(outputs, labels) and compute()")
    return MetricScript(path, name, target, module)


def changes(
    script: MetricScript, before: Callable[[], Iterable[Batch]], after: Callable[[], Iterable[Batch]]
) -> tuple[ScoreChange, ...]:
    """Returns what happened to every figure between two models.

    Args:
        script: the metric.
        before: starts a pass over outputs and labels of the original.
        after: the same of the pruned model, for the same samples.

    Raises:
        DataError: the script failed, or gives other figures for the two.
    """
    if script.streams:
        one, other = script.of_batches(before()), script.of_batches(after())
        spread: dict[str, Interval] = {}
    else:
        a, b = _together(before()), _together(after())
        one, other = script.of_all(*a), script.of_all(*b)
        spread = _jackknife(script, a, b, {k: one[k] - other.get(k, math.nan) for k in one})
    if one.keys() != other.keys():
        raise DataError(
            f"script {shown_path(script.path)} gives other figures for the pruned model than for the original"
        )
    found = []
    for name, value in one.items():
        higher = script.higher_is_better(name)
        interval = spread.get(name)
        if interval is not None and not higher:
            interval = Interval(-interval.high, -interval.low)
        drop = value - other[name] if higher else other[name] - value
        found.append(ScoreChange(name, value, other[name], drop, higher, interval))
    return tuple(found)


def _together(batches: Iterable[Batch]) -> tuple[dict[str, Any], np.ndarray]:
    """Returns all batches as one; outputs of another shape in each stay a list of arrays."""
    parts: dict[str, list[np.ndarray]] = {}
    labels: list[np.ndarray] = []
    for outputs, truth in batches:
        labels.append(truth)
        for name, value in outputs.items():
            parts.setdefault(name, []).append(value)
    return {name: _joined(values, labels) for name, values in parts.items()}, np.concatenate(labels)


def _joined(values: list[np.ndarray], labels: Sequence[np.ndarray]) -> Any:
    rows = all(v.ndim and len(v) == len(truth) for v, truth in zip(values, labels, strict=True))
    return np.concatenate(values) if rows and len({v.shape[1:] for v in values}) == 1 else values


def _jackknife(
    script: MetricScript,
    before: tuple[dict[str, Any], np.ndarray],
    after: tuple[dict[str, Any], np.ndarray],
    whole: Mapping[str, float],
) -> dict[str, Interval]:
    """Returns the 95 % interval of every difference: the metric on all samples but one part in twenty, twenty times.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap, 1993, section 11.5 (the grouped jackknife).
    """
    n = len(before[1])
    arrays = [*before[0].values(), *after[0].values()]
    if n < 2 * PARTS or not all(isinstance(v, np.ndarray) for v in arrays):
        return {}
    part = np.arange(n) % PARTS
    left: dict[str, list[float]] = {}
    for k in range(PARTS):
        keep = part != k
        try:
            one, other = (script.of_all({m: v[keep] for m, v in o.items()}, t[keep]) for o, t in (before, after))
        except DataError:
            return {}  # a metric that needs all samples has no interval
        for name in whole:
            left.setdefault(name, []).append(one.get(name, math.nan) - other.get(name, math.nan))
    found = {}
    for name, value in whole.items():
        values = np.array(left[name])
        error = math.sqrt((PARTS - 1) / PARTS * float(((values - values.mean()) ** 2).sum()))
        if math.isfinite(error):
            found[name] = Interval(value - T_HALF * error, value + T_HALF * error)
    return found
