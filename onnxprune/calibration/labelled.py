"""Labelled data: inputs with what is true of each sample, from every form that calibration data may have."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.calibration import arrays, checks
from onnxprune.calibration.batches import Block, Calibration, Feed, calibrate
from onnxprune.calibration.columns import ArrayRows, Column
from onnxprune.calibration.layout import Layout, layout
from onnxprune.calibration.opening import blocks_from_path
from onnxprune.calibration.pictures import PictureOptions
from onnxprune.errors import DataError, UsageError, quote
from onnxprune.graph.inputs import InputSpec

__all__ = ["LabelledData", "Labels", "open_labelled_data"]

Labels = str | os.PathLike[str] | np.ndarray
"""The name of the array that holds the labels, the path of another .npy or .npz file, or the labels themselves."""

_ALL = 1 << 60


@dataclass(frozen=True)
class LabelledData:
    """Inputs with their labels, in batches.

    Attributes:
        data: batches whose feeds hold the labels too.
        key: under which name.
    """

    data: Calibration
    key: str

    def batches(self) -> Iterator[tuple[Feed, np.ndarray]]:
        """Yields feeds for a session, each with the labels of its samples along axis 0.

        Raises:
            DataError: while it runs, naming the sample, as `Calibration.batches`.
        """
        for feed in self.data.batches():
            labels = feed.pop(self.key)
            yield feed, labels

    def inputs(self) -> Calibration:
        """Returns the inputs alone."""
        return replace(self.data, feeds=lambda: (feed for feed, _ in self.batches()))


def open_labelled_data(
    data: str | os.PathLike[str] | Mapping[str, Any],
    labels: Labels,
    specs: Sequence[InputSpec],
    *,
    samples: int | None = None,
    batch: int = 64,
    seed: int = 0,
    pictures: PictureOptions | None = None,
    classes: bool = True,
) -> LabelledData:
    """Returns labelled data as batches that the model accepts, read when they are asked for.

    Args:
        data: a path as calibration data have it, or arrays by name; samples along axis 0.
        labels: the name of an array in there, the path of another .npy or .npz, or an array.
        specs: what the model takes.
        samples: how many to take at most, a random choice; None for all.
        batch: how many to feed at once, unless the model declares its batch.
        seed: of the choice.
        pictures: how pixels become inputs.
        classes: True if the labels are class numbers, one per sample; else they may be anything.

    Raises:
        UsageError: a path is no readable file or folder, or an option makes no sense.
        DataError: the data are damaged, hostile, empty, or do not fit the model; there are no labels, or not one each.
    """
    if not specs:
        raise DataError("the model has no inputs, so that there is nothing to evaluate it on: leave the data out")
    if samples is not None and samples < 1:
        raise UsageError(f"{samples} samples are none: ask for 1 or more")
    place = layout(specs)
    source = "arrays in memory" if isinstance(data, Mapping) else arrays.shown_path(Path(data))
    named = isinstance(labels, str) and not labels.endswith((".npy", ".npz"))
    key = str(labels) if named else _free("labels", specs)
    if any(s.name == key for s in specs):
        raise UsageError(f"labels {quote(key)} are an input of the model: name the array that holds what is true")
    column = _probed(data, key, source) if named else _apart(labels)
    truth = _truth(key, column, classes)
    joint = Layout({**place.axes, key: 0}, place.fixed)
    both = (*specs, truth)
    wanted, options = samples or _ALL, pictures or PictureOptions()
    notes: tuple[str, ...] = ()
    if isinstance(data, Mapping):
        blocks = [arrays.from_dict(data, both if named else specs, joint)]
    else:
        blocks, notes = blocks_from_path(Path(data), both if named else specs, joint, wanted, options)
    if not named:
        blocks = _joined(blocks, column, truth, source)
    calibration = calibrate(blocks, both, joint, samples=wanted, batch=batch, seed=seed, source=source, warnings=notes)
    return LabelledData(calibration, key)


def _probed(data: str | os.PathLike[str] | Mapping[str, Any], key: str, source: str) -> Column:
    """Returns labels that lie with the data, or the first part of them, for a look at their type and shape."""
    if isinstance(data, Mapping):
        if key not in data:
            raise DataError(f"{source} hold no {quote(key)}, only {checks.shown(map(str, data))}: name the labels")
        return ArrayRows.of(checks.as_array(data[key], f"labels {key!r}"))
    path = Path(data)
    if not path.is_dir():
        return arrays.column_of(path, key)
    first = next((p for p in sorted(path.iterdir()) if p.suffix.lower() == ".npz" or p.name == f"{key}.npy"), None)
    if first is None:
        raise DataError(f"{source} holds no labels {quote(key)}: give the path of a .npy file that has them")
    return arrays.column_of(first, key if first.suffix.lower() == ".npz" else None)


def _apart(labels: Any) -> Column:
    """Returns labels that do not lie with the data."""
    if isinstance(labels, str | os.PathLike):
        return arrays.column_of(Path(labels))
    return ArrayRows.of(checks.as_array(labels, "labels"))


def _truth(key: str, column: Column, classes: bool) -> InputSpec:
    """Returns what labels must be, as if they were an input."""
    if classes:
        return InputSpec(key, np.dtype(np.int64), (None,))
    text = column.dtype.kind == "U"
    return InputSpec(key, np.dtype(object) if text else column.dtype, (None, *column.shape[1:]))


def _free(name: str, specs: Sequence[InputSpec]) -> str:
    taken = {s.name for s in specs}
    while name in taken:
        name += "_"
    return name


def _joined(blocks: Sequence[Block], column: Column, truth: InputSpec, where: str) -> list[Block]:
    """Returns blocks whose samples have their labels, in the order in which both are stored.

    Raises:
        DataError: there is not one label for each sample, or they are of no use as labels.
    """
    checks.castable(truth, column.dtype, f"{where}: its labels")
    if len(column.shape) != len(truth.shape):
        raise DataError(f"{where}: its labels have {len(column.shape)} axes: give one class number for each sample")
    total = sum(b.rows for b in blocks)
    if column.shape[0] != total:
        raise DataError(f"{where} has {total:,} samples and {column.shape[0]:,} labels: give one label for each sample")
    found, start = [], 0
    for block in blocks:
        rows = np.arange(start, start + block.rows)
        start += block.rows
        if block.whole:
            own = checks.contents(truth, column.read(rows), f"{where}, labels")
            found.append(replace(block, shared={**block.shared, truth.name: own}))
        else:
            found.append(replace(block, columns={**block.columns, truth.name: column.keep(rows)}))
    return found
