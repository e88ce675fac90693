"""What a model is worth on labelled data: top-1, top-5 and every class, and what a pruning took from each of them.

Hits are kept per sample, so that two models are compared on the same samples: the interval of a drop is Newcombe's
hybrid score interval for the difference of paired proportions.

See `onnxprune.intervals` for the sources.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnxprune.calibration.batches import Calibration
from onnxprune.calibration.labelled import LabelledData, Labels, open_labelled_data
from onnxprune.calibration.pictures import PictureOptions
from onnxprune.errors import DataError, quote
from onnxprune.graph.inputs import InputSpec
from onnxprune.graph.running import Runner
from onnxprune.proof.intervals import paired
from onnxprune.reports.report import ClassChange, Interval, MetricChange, TaskChange

__all__ = ["ClassRow", "Labelled", "TaskMetric", "compare", "open_labelled"]

TOP = 5

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ClassRow:
    """Accuracy on the samples of one class.

    Attributes:
        label: the class.
        samples: how many samples have it.
        top1: share of them that is told right, in percent.
    """

    label: int
    samples: int
    top1: float


@dataclass(frozen=True, eq=False)
class TaskMetric:
    """How well one model does on labelled samples.

    Attributes:
        top1: share of samples whose highest score is the label's, in percent.
        top5: share of samples whose label is among the five highest, in percent; None with five classes or fewer.
        samples: how many there were.
        per_class: a row for each class that occurs, by label.
        output: the output that was taken for scores.
        labels: of every sample.
        hits: whether each sample is told right.
        near: whether each sample's label is among the five highest; None where `top5` is.
    """

    top1: float
    top5: float | None
    samples: int
    per_class: tuple[ClassRow, ...]
    output: str
    labels: npt.NDArray[np.int64] = field(repr=False)
    hits: Bools = field(repr=False)
    near: Bools | None = field(repr=False)


@dataclass(frozen=True)
class Labelled:
    """Labelled data to measure models on, as often as needed.

    Attributes:
        data: inputs with labels.
        output: the output that holds scores; None: the first that can be one.
    """

    data: LabelledData
    output: str | None = None

    @property
    def samples(self) -> int:
        """How many there are in one pass."""
        return self.data.data.samples

    @property
    def source(self) -> str:
        """What the data are, in words."""
        return self.data.data.source

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know of the data, one line each."""
        return self.data.data.warnings

    def inputs(self) -> Calibration:
        """Returns the inputs without their labels."""
        return self.data.inputs()

    def measure(self, subject: Path | onnx.ModelProto, providers: Sequence[str]) -> TaskMetric:
        """Returns how well a model does, in one pass over the data.

        Args:
            subject: a message, or the path of a model.
            providers: onnxruntime's names of execution providers, in order.

        Raises:
            DataError: a label is no class of the model, or no output holds scores; or as `Calibration.batches`.
        """
        name = self.output
        labels: list[np.ndarray] = []
        places: list[np.ndarray] = []
        classes = 0
        for outputs, truth in self._outputs(subject, providers):
            name = scores_of(outputs, len(truth), name)
            found = np.asarray(outputs[name]).reshape(len(truth), -1)
            if found.shape[1] == 1:  # the class itself instead of scores
                places.append(np.where(found[:, 0] == truth, 0, TOP))
            else:
                classes = found.shape[1]
                _check_labels(truth, classes, sum(map(len, labels)), self.source)
                places.append(place_of(found, truth))
            labels.append(truth)
        return _metric(np.concatenate(labels), np.concatenate(places), classes, name or "")

    def _outputs(
        self, subject: Path | onnx.ModelProto, providers: Sequence[str]
    ) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        runner = Runner(subject, providers)
        for feed, truth in self.data.batches():
            yield runner(feed), truth


def open_labelled(
    path: str | os.PathLike[str] | Mapping[str, Any],
    labels: Labels,
    specs: Sequence[InputSpec],
    *,
    samples: int | None = None,
    batch: int = 64,
    seed: int = 0,
    pictures: PictureOptions | None = None,
    output: str | None = None,
) -> Labelled:
    """Returns labelled data to measure models on; nothing but what a batch needs is ever in memory.

    Args:
        path: of the data, in any form that calibration data have, or arrays by name; samples along axis 0.
        labels: name of the array in there with one class number for each sample, path of another .npy or .npz file
            that holds it, or the array.
        specs: what the model takes, from `onnxprune.inputs.specs`.
        samples: how many to take at most, a random choice; None for all.
        batch: how many to feed at once, unless the model declares its batch.
        seed: of the choice.
        pictures: how pixels become inputs.
        output: name of the output with the scores; None: the first that can be one.

    Raises:
        UsageError: a path is no readable file or folder, or an option makes no sense.
        DataError: the data are damaged, hostile, empty, or do not fit the model; there are no labels, or not one each.
    """
    found = open_labelled_data(path, labels, specs, samples=samples, batch=batch, seed=seed, pictures=pictures)
    return Labelled(found, output)


def compare(before: TaskMetric, after: TaskMetric, source: str = "") -> TaskChange:
    """Returns what was lost between two models measured on the same samples, in percentage points, with intervals.

    Args:
        before: of the original.
        after: of the pruned model.
        source: what the data are, in words.
    """
    if not np.array_equal(before.labels, after.labels):
        raise ValueError("the two models were not measured on the same samples")
    classes = []
    for row in before.per_class:
        own = before.labels == row.label
        change = _change(before.hits[own], after.hits[own])
        classes.append(ClassChange(row.label, row.samples, change.before, change.after, change.drop, change.interval))
    near = None
    if before.near is not None and after.near is not None:
        near = _change(before.near, after.near)
    worst = sorted(classes, key=lambda c: (-c.drop, c.label))
    return TaskChange(
        source=source,
        samples=before.samples,
        output=before.output,
        top1=_change(before.hits, after.hits),
        top5=near,
        per_class=tuple(classes),
        worst=tuple(c.label for c in worst if c.drop > 0)[:TOP],
    )


# ---------------------------------------------------------------- scores
def scores_of(outputs: Mapping[str, np.ndarray], rows: int, wanted: str | None) -> str:
    """Returns the output that holds scores (samples x classes), or class numbers where none does.

    Raises:
        DataError: there is none, or `wanted` is none.
    """
    if wanted is not None and wanted not in outputs:
        raise DataError(f"the model has no output {quote(wanted)}: it has {', '.join(map(quote, list(outputs)[:8]))}")
    candidates = [wanted] if wanted is not None else list(outputs)
    for kinds, many in (("fV", True), ("iu", False)):
        for name in candidates:
            value = outputs[name]
            width = value.size // max(rows, 1)
            flat = value.ndim >= 1 and value.shape[0] == rows and (value.ndim < 2 or value.shape[1] == width)
            if flat and value.dtype.kind in kinds and (width > 1) == many:
                return name
    shapes = ", ".join(f"{quote(n)} {list(outputs[n].shape)}" for n in candidates[:8])
    raise DataError(
        f"no output is a row of class scores for each of {rows} samples ({shapes}): "
        "name the output, or measure with a metric script"
    )


def place_of(scores: np.ndarray, labels: np.ndarray) -> npt.NDArray[np.int64]:
    """Returns the place of each label among its sample's scores, 0 for the highest; of equal scores the first wins.

    A sample with a score that is not a number is in the last place: such a model tells nothing.
    """
    scores = scores.astype(np.float64) if scores.dtype.kind == "V" else scores
    own = np.take_along_axis(scores, labels[:, None], 1)
    ahead = (scores > own) | ((scores == own) & (np.arange(scores.shape[1]) < labels[:, None]))
    places = ahead.sum(1)
    places[np.isnan(scores).any(1)] = max(scores.shape[1], TOP)
    return np.asarray(places, np.int64)


def _check_labels(labels: np.ndarray, classes: int, start: int, where: str) -> None:
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise DataError(
            f"{where}: label {labels[first]} of sample {start + first} of those taken is no class of the model, "
            f"which has 0 to {classes - 1}: give the class numbers that it was trained on"
        )


def _metric(labels: np.ndarray, places: np.ndarray, classes: int, output: str) -> TaskMetric:
    hits = places == 0
    near = places < TOP if classes > TOP else None
    rows = []
    for label in np.unique(labels).tolist():
        own = hits[labels == label]
        rows.append(ClassRow(label, len(own), percent(own)))
    return TaskMetric(
        top1=percent(hits),
        top5=None if near is None else percent(near),
        samples=len(labels),
        per_class=tuple(rows),
        output=output,
        labels=labels,
        hits=hits,
        near=near,
    )


def percent(hits: Bools) -> float:
    """Returns the share of True, in percent."""
    return 100.0 * int(hits.sum()) / max(len(hits), 1)


# ---------------------------------------------------------------- intervals
def _change(before: Bools, after: Bools) -> MetricChange:
    one, two = percent(before), percent(after)
    low, high = paired(before, after)
    return MetricChange(one, two, one - two, Interval(100 * low, 100 * high))
