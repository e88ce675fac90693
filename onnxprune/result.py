"""What a pruning gives back: the model, its plan and its report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxprune import __version__
from onnxprune.criteria.ranking import weight_notes
from onnxprune.engine import cost
from onnxprune.graph.model import Source, check_output, check_unchanged, save
from onnxprune.options import Options
from onnxprune.plan import Plan
from onnxprune.proof.validation import Judge
from onnxprune.reports.findings import collapse_warnings, frozen_rows, group_rows, notes, number_warnings
from onnxprune.reports.report import Count, LatencyChange, Report, Validation
from onnxprune.study import Cut, Study
from onnxprune.task import Task

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

__all__ = ["Result", "assembled", "judge_of"]


@dataclass(eq=False)
class Result:
    """A pruned model with its plan and report.

    Attributes:
        model: the pruned graph in memory.
        plan: which units were cut.
        report: figures, reasons and warnings.
    """

    model: ir.Model
    plan: Plan
    report: Report
    _source: Source = field(repr=False)
    _judge: Judge | None = field(repr=False)
    _task: Task | None = field(repr=False, default=None)
    _timed: Callable[[Path | ir.Model], tuple[LatencyChange, tuple[str, ...]]] | None = field(repr=False, default=None)

    def save(self, path: str | os.PathLike[str], *, in_place: bool = False) -> Report:
        """Writes the model atomically, validated as a file, and returns the report with the figures of that file.

        Raises:
            UsageError: `path` is the input or its data and `in_place` is not set.
            ValidationError: the written file is not what it should be; the destination is as it was.
            RunError: it cannot be written.
        """
        target = Path(path)
        check_output(target, self._source, in_place)
        files = save(self.model, target, external=self._source.external, check=self._measure)
        size = Count(self.report.size.before, sum(f.stat().st_size for f in files))
        self.report = replace(self.report, output=str(target), size=size)
        return self.report

    def measure(self) -> None:
        """Measures the model in memory, where it is not written.

        Raises:
            ModelError: the original's files are no longer those that were loaded.
            ValidationError: it is not what it should be.
        """
        self._measure(self.model)

    def _measure(self, subject: Path | ir.Model) -> None:
        """Puts what is measured on the pruned model into the report; the original is measured as its file stands."""
        check_unchanged(self._source)
        if self._judge is not None:
            self.report = _judged(self.report, self._judge.judge(subject))
        if self._task is not None:
            self.report = replace(self.report, task=self._task.change(subject))
        if self._timed is not None:
            latency, doubts = self._timed(subject)
            self.report = replace(self.report, latency=latency, warnings=(*self.report.warnings, *doubts))

    def to_gs(self) -> gs.Graph:
        """Returns the pruned model as an onnx-graphsurgeon graph."""
        import onnx_graphsurgeon as gs

        return gs.import_onnx(ir.to_proto(self.model))


def assembled(study: Study, found: Cut, options: Options) -> Report:
    """Returns the report of a cut model that nothing was measured on yet."""
    source, cutting, data = study.source, found.chosen.cutting, study.used_data
    warnings = [*number_warnings(cutting.units, study.jobs), *(data.warnings if data else ())]
    if data is not None and data.synthetic:
        warnings.append(
            "no calibration data was given: weights were refitted on made-up inputs; "
            "a few hundred real ones (--calib) keep far more accuracy"
        )
    known = study.known.curves if study.known is not None and options.measures else ()
    return Report(
        tool=__version__,
        model=str(source.path or ""),
        sha256=source.sha256,
        output=None,
        options=options.to_dict() | ({"data": data.source, "data_samples": data.samples} if data else {}),
        macs=Count(cost.macs(cutting.coupling), cost.macs(cutting.coupling, cutting)),
        params=Count(cost.parameters(source.model), cost.parameters(found.model)),
        size=Count(source.size, _bytes(found.model)),
        groups=group_rows(cutting),
        frozen=frozen_rows(cutting.units),
        notes=(*notes(cutting), *weight_notes(cutting, options.criterion), *_mixed(study), *found.chosen.notes),
        warnings=tuple(warnings),
        seconds=dict(study.clock.seconds),
        sensitivity=tuple(c for c in known if len(c.counts) > 1),
    )


def _mixed(study: Study) -> Iterator[str]:
    """Yields a line if weights were refitted on more than the inputs that were given."""
    if study.mixed:
        given = study.data.samples
        yield f"weights were refitted on mixtures of the {given:,} inputs, too (--samples {given} leaves them out)"


def judge_of(study: Study, found: Cut, task: Task | None) -> Judge:
    """Returns what compares the result with the original: on labelled inputs if there are, since no weight saw them."""
    data = study.used_data if task is None else task.data.inputs()
    return Judge(
        study.source,
        found.chosen.cutting,
        study.providers,
        study.options.seed,
        exact=not study.coupling.approximate,
        data=data if data is not None and not data.synthetic else None,
        held_out=task is not None and study.options.max_drop is None,
    )


def _judged(report: Report, validation: Validation) -> Report:
    fresh = tuple(w for w in collapse_warnings(validation) if w not in report.warnings)
    return replace(report, validation=validation, warnings=(*report.warnings, *fresh))


def _bytes(model: ir.Model) -> int:
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
