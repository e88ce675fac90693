"""What a model is for: labelled data, and how well the original and what was made of it do on them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxprune.calibration import PictureOptions
from onnxprune.calibration.labelled import Labels
from onnxprune.clock import Clock
from onnxprune.errors import UsageError
from onnxprune.graph.inputs import InputSpec
from onnxprune.graph.model import Source
from onnxprune.graph.running import ready
from onnxprune.proof import metrics
from onnxprune.proof.metrics import Labelled, TaskMetric, open_labelled
from onnxprune.reports.report import TaskChange

__all__ = ["EvaluationSource", "Task", "opened_task"]


@dataclass(frozen=True)
class EvaluationSource:
    """Where labelled data are.

    Attributes:
        data: a path, or arrays by name; None: there are none.
        labels: the name of the labels in there, or a path or array of their own.
        pictures: how pixels become inputs.
    """

    data: str | os.PathLike[str] | Mapping[str, Any] | None = None
    labels: Labels | None = None
    pictures: PictureOptions | None = None

    def __post_init__(self) -> None:
        """Raises UsageError if one half is missing."""
        if (self.data is None) != (self.labels is None):
            raise UsageError("labelled data need both: evaluate (--eval PATH) and labels (--labels KEY)")


@dataclass(eq=False)
class Task:
    """Labelled data, and how well the original does on them.

    Attributes:
        data: the labelled data.
        original: the model before the cut, as loaded.
        providers: onnxruntime's names of execution providers.
        before: how well it does.
    """

    data: Labelled
    original: Source
    providers: tuple[str, ...]
    before: TaskMetric = field(init=False)

    def __post_init__(self) -> None:
        """Measures the original."""
        self.before = self.measured(self.original.served)

    def measured(self, model: Path | ir.Model) -> TaskMetric:
        """Returns how well a model does."""
        with ready(model, self.original.external) as subject:
            return self.data.measure(subject, self.providers)

    def change(self, model: Path | ir.Model) -> TaskChange:
        """Returns what a pruned model has lost."""
        return metrics.compare(self.before, self.measured(model), self.data.source)


def opened_task(
    source: Source,
    inputs: Sequence[InputSpec],
    where: EvaluationSource,
    seed: int,
    providers: tuple[str, ...],
    clock: Clock,
) -> Task | None:
    """Returns the labelled data with what the original does on them, None where there are none."""
    if where.data is None or where.labels is None:
        return None
    with clock.stage("evaluate"):
        data = open_labelled(where.data, where.labels, inputs, seed=seed, pictures=where.pictures)
        return Task(data, source, providers)
