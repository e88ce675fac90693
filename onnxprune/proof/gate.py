"""Reports judged again without running anything: each limit against the worst that its figure may be.

It fails closed: a figure that is missing or no number fails, and so does one whose interval is missing, since the
worse end of the interval is what is judged.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from onnxprune.errors import DataError, UsageError, quote
from onnxprune.latency.timing import Timing
from onnxprune.proof.gate_limits import Limits, option
from onnxprune.reports import records
from onnxprune.reports.records import Record
from onnxprune.reports.report import (
    Comparison,
    Count,
    Interval,
    LatencyChange,
    OutputFidelity,
    Report,
    ScoreChange,
    TaskChange,
    Validation,
)

__all__ = ["Finding", "Verdict", "gate", "judge", "lines"]

Judged = Report | Comparison | Timing


@dataclass(frozen=True)
class Finding:
    """One limit and what a report says of it.

    Attributes:
        gate: name of the limit.
        limit: what is allowed; 1 for what is only true or false.
        figure: what was measured; None if that is missing.
        bound: what was judged, the worse end of the figure's interval; None if that is missing.
        passed: whether the limit holds.
        told: all of it in one line.
    """

    gate: str
    limit: float
    figure: float | None
    bound: float | None
    passed: bool
    told: str


@dataclass(frozen=True)
class Verdict(Record):
    """What a gate found.

    Attributes:
        passed: whether every limit holds.
        findings: a row for each limit and each report that tells of it.
        reports: paths of the reports.
    """

    kind: ClassVar[str] = "gate"

    passed: bool
    findings: tuple[Finding, ...]
    reports: tuple[str, ...] = ()

    @property
    def failed(self) -> tuple[Finding, ...]:
        """The limits that do not hold."""
        return tuple(f for f in self.findings if not f.passed)


def gate(paths: Sequence[str | os.PathLike[str]], limits: Limits, *, measured: bool = False) -> Verdict:
    """Returns whether the reports in some files hold all limits.

    Args:
        paths: JSON reports of `prune`, `validate` or `bench` on one model; each limit must be told of by one of them,
            and hold in all that tell of it.
        limits: what must hold.
        measured: judge the figures as they were measured instead of the ends of their intervals.

    Raises:
        UsageError: there is no limit or no report.
        DataError: a file is no such report, or they are of different models.
    """
    reports = [_read(path) for path in paths]
    found = {r.sha256 for r in reports if not isinstance(r, Timing)}
    if len(found) > 1:
        raise DataError("the reports are of different originals, going by their hashes: judge each model by its own")
    verdict = judge(reports, limits, measured=measured)
    return dataclasses.replace(verdict, reports=tuple(os.fspath(p) for p in paths))


def _read(path: str | os.PathLike[str]) -> Judged:
    found: Record = records.read(path, Report, Comparison, Timing)
    assert isinstance(found, Report | Comparison | Timing)
    return found


def judge(reports: Sequence[Judged], limits: Limits, *, measured: bool = False) -> Verdict:
    """Returns whether reports on one model hold all limits; see `gate`.

    Raises:
        UsageError: there is no limit or no report.
    """
    if not limits.given:
        raise UsageError("nothing is judged without a limit: give one, like --max-drop 1 or --min-cut 0.4")
    if not reports:
        raise UsageError("nothing is judged without a report: give the path of one")
    findings: list[Finding] = []
    for name, question in _QUESTIONS.items():
        limit = getattr(limits, name)
        if limit is None or limit is False:
            continue
        told = [f for f in (question(name, float(limit), report, measured) for report in reports) if f is not None]
        findings += told or [_missing(name, float(limit), "no report tells of it")]
    findings += [f for f in map(_inexact, reports) if f is not None and not limits.exact]
    return Verdict(all(f.passed for f in findings), tuple(findings))


# ---------------------------------------------------------------- answers
def _missing(name: str, limit: float, why: str) -> Finding:
    return Finding(name, limit, None, None, False, f"{option(name)} {limit:g}: {why}, and what is not known fails")


def _answer(
    name: str,
    limit: float,
    figure: float,
    interval: Interval | None,
    measured: bool,
    *,
    what: str,
    unit: str = "",
    certain: bool = False,
) -> Finding:
    """Returns the finding on one figure.

    Args:
        name: of the limit, which begins with `max` or `min`.
        limit: what is allowed.
        figure: what was measured.
        interval: of it.
        measured: whether the figure itself is judged.
        what: it is, in words.
        unit: of it.
        certain: whether it was counted, so that it needs no interval.
    """
    most = name.startswith("max")
    bound = figure
    if not measured and not certain:
        if interval is None:
            return _missing(
                name, limit, f"{what} is {figure:.4g}{unit} without an interval, which --measured does without"
            )
        end = interval.high if most else interval.low
        bound = end if math.isnan(end) else max(figure, end) if most else min(figure, end)
    if not (math.isfinite(figure) and math.isfinite(bound)):
        return _missing(name, limit, f"{what} is no number")
    passed = bound <= limit if most else bound >= limit
    worst = "" if certain or measured else f" ({'up' if most else 'down'} to {bound:.4g})"
    wanted = f"at {'most' if most else 'least'} {limit:g}"
    return Finding(name, limit, figure, bound, passed, f"{option(name)}: {what} is {figure:.4g}{unit}{worst}, {wanted}")


def _worst(findings: Sequence[Finding]) -> Finding:
    """Returns the finding that fails, or else the one nearest to its limit."""
    most = findings[0].gate.startswith("max")

    def place(f: Finding) -> tuple[bool, float]:
        return f.passed, math.inf if f.bound is None else (-f.bound if most else f.bound)

    return min(findings, key=place)


def _drop(name: str, limit: float, report: Judged, measured: bool) -> Finding | None:
    scores: tuple[ScoreChange, ...] = report.scores if isinstance(report, Comparison) else ()
    if scores:
        found = [
            _answer(name, limit, s.drop, s.interval, measured, what=f"the drop of {quote(s.name)}") for s in scores
        ]
        return _worst(found)
    task = _task(report)
    if task is None:
        return None
    return _answer(name, limit, task.top1.drop, task.top1.interval, measured, what="the drop of top-1", unit=" points")


def _top5(name: str, limit: float, report: Judged, measured: bool) -> Finding | None:
    task = _task(report)
    if task is None or task.top5 is None:
        return None
    return _answer(name, limit, task.top5.drop, task.top5.interval, measured, what="the drop of top-5", unit=" points")


def _class_drop(name: str, limit: float, report: Judged, measured: bool) -> Finding | None:
    task = _task(report)
    if task is None or not task.per_class:
        return None
    return _worst(
        [
            _answer(
                name,
                limit,
                c.drop,
                c.interval,
                measured,
                what=f"the drop of class {c.label}, from {c.before:.4g} % of {c.samples:,} samples,",
                unit=" points",
            )
            for c in task.per_class
        ]
    )


def _task(report: Judged) -> TaskChange | None:
    return None if isinstance(report, Timing) else report.task


def _speedup(name: str, limit: float, report: Judged, measured: bool) -> Finding | None:
    found: Timing | LatencyChange | None
    if isinstance(report, Timing):
        found, interval = report, Interval(report.low, report.high)
    elif isinstance(report, Report) and report.latency is not None:
        found, interval = report.latency, report.latency.interval
    else:
        return None
    answer = _answer(name, limit, found.speedup, interval, measured, what="the speedup", unit="x")
    if limit > 1 and not found.conclusive:
        told = f"{answer.told}; and it is not conclusive, the original differs from itself by {found.noise:.1%}"
        return dataclasses.replace(answer, passed=False, told=told)
    return answer


def _size(name: str, limit: float, report: Judged, measured: bool) -> Finding | None:
    if isinstance(report, Timing):
        return None
    size = report.size
    if limit > 1:
        return _answer(name, limit, size.after, None, measured, what="the size", unit=" bytes", certain=True)
    return _share(name, limit, size, size.after, measured, "the share of the bytes that is left")


def _cut(name: str, limit: float, report: Judged, measured: bool) -> Finding | None:
    if isinstance(report, Timing):
        return None
    gone = report.macs.before - report.macs.after
    return _share(name, limit, report.macs, gone, measured, "the share of the MACs that is gone")


def _share(name: str, limit: float, count: Count, part: int, measured: bool, what: str) -> Finding:
    share = part / count.before if count.before > 0 else math.nan
    return _answer(name, limit, share, None, measured, what=what, certain=True)


def _outputs(report: Judged) -> tuple[OutputFidelity, ...]:
    """Returns the outputs that were compared; none where some could not be."""
    found: Validation | None = None if isinstance(report, Timing) else report.validation
    return () if found is None or found.unlike else found.fidelity


def _on(report: Judged) -> str:
    """Returns what the fidelity was measured on, where that says less than it seems to."""
    found: Validation | None = None if isinstance(report, Timing) else report.validation
    if found is None:
        return ""
    return " on made-up inputs" if found.made_up else " on inputs of the refit" if found.held_out is False else ""


def _divergence(name: str, limit: float, report: Judged, measured: bool) -> Finding | None:
    found = []
    for o in _outputs(report):
        figure, key = (o.relative_error, "relative_error") if o.kl is None else (o.kl, "kl")
        what = f"the {'relative error' if o.kl is None else 'KL divergence'} of {quote(o.name)}{_on(report)}"
        found.append(_answer(name, limit, figure, o.intervals.get(key), measured, what=what))
    return _worst(found) if found else None


def _error(name: str, limit: float, report: Judged, measured: bool) -> Finding | None:
    found = [
        _answer(
            name,
            limit,
            o.relative_error,
            o.intervals.get("relative_error"),
            measured,
            what=f"the relative error of {quote(o.name)}{_on(report)}",
        )
        for o in _outputs(report)
    ]
    return _worst(found) if found else None


def _agreement(name: str, limit: float, report: Judged, measured: bool) -> Finding | None:
    found = []
    for o in _outputs(report):
        if o.top1_agreement is not None:
            what = f"the top-1 agreement of {quote(o.name)}{_on(report)}"
            interval = o.intervals.get("top1_agreement")
            found.append(_answer(name, limit, o.top1_agreement, interval, measured, what=what))
    return _worst(found) if found else None


def _exact(name: str, limit: float, report: Judged, measured: bool) -> Finding | None:
    if isinstance(report, Timing):
        return None
    wrong = _inexact(report)
    if wrong is not None:
        return wrong
    found = report.validation
    if isinstance(report, Comparison):
        proved = report.exactness.exact is True
        why = report.exactness.why
    else:
        proved = found is not None and found.error is not None and found.error <= found.tolerance
        why = "the pruning was not validated, or its cut is approximate"
    if not proved:
        return _missing(name, limit, why)
    return Finding(name, limit, 1.0, 1.0, True, f"{option(name)}: the cut is exact")


def _inexact(report: Judged) -> Finding | None:
    """Returns a failure where a report itself says that the cut is wrong, whatever the limits are."""
    if isinstance(report, Comparison) and report.exactness.exact is False:
        problem = next(iter(report.exactness.problems), report.exactness.why)
        return Finding("exact", 1.0, 0.0, 0.0, False, f"--exact: the cut is not exact: {problem}")
    found = None if isinstance(report, Timing) else report.validation
    if found is not None and found.error is not None and not found.error <= found.tolerance:
        told = f"--exact: the cut is {found.error:.1e} from the masked original, {found.tolerance:.1e} is allowed"
        return Finding("exact", 1.0, found.error, found.error, False, told)
    return None


_QUESTIONS: dict[str, Callable[[str, float, Judged, bool], Finding | None]] = {
    "max_drop": _drop,
    "max_class_drop": _class_drop,
    "max_top5_drop": _top5,
    "min_speedup": _speedup,
    "max_size": _size,
    "min_cut": _cut,
    "max_divergence": _divergence,
    "min_agreement": _agreement,
    "max_error": _error,
    "exact": _exact,
}


def lines(verdict: Verdict) -> Iterator[str]:
    """Yields a verdict as it is printed: one line for each limit, the failed ones first."""
    for finding in sorted(verdict.findings, key=lambda f: f.passed):
        yield f"{'passed' if finding.passed else 'FAILED'}  {finding.told}"
