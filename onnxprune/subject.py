"""What a run is about: the model, loaded and coupled, with the data that it is calibrated on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxprune.calibration import Calibration, PictureOptions, find_test_data, open_calibration, open_script
from onnxprune.clock import Clock
from onnxprune.engine import cost
from onnxprune.engine.computed import with_computed_weights
from onnxprune.engine.coupling import Coupling, couple
from onnxprune.engine.frontier import samples_at_once
from onnxprune.errors import UsageError
from onnxprune.graph.flat import look_into
from onnxprune.graph.inputs import as_run, specs
from onnxprune.graph.model import Source
from onnxprune.graph.trace import trace

__all__ = ["DataLike", "DataSource", "ModelLike", "coupled", "opened", "processors"]

ModelLike = str | os.PathLike[str] | onnx.ModelProto | ir.Model | Any
DataLike = str | os.PathLike[str] | Mapping[str, np.ndarray] | Iterable[Mapping[str, np.ndarray]] | Any

MOST_SAMPLES, LEAST_SAMPLES = 1024, 64
WORK, MADE_UP_WORK = 2 * 10**12, 5 * 10**11  # MACs of one pass over the calibration data that are worth it
BATCH, LEAST_BATCHES = 64, 4


@dataclass(frozen=True)
class DataSource:
    """Where calibration data come from.

    Attributes:
        data: a path, arrays, feeds, a reader or opened data; None with a script, or to make some up.
        script: a Python file that gives them.
        pictures: how pixels become inputs.
    """

    data: DataLike | Calibration | None = None
    script: str | os.PathLike[str] | None = None
    pictures: PictureOptions | None = None

    def __post_init__(self) -> None:
        """Raises UsageError if there are two places."""
        if self.data is not None and self.script is not None:
            raise UsageError("calibration data and a data script are both given: give one of them")


def processors() -> int:
    """Returns how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def coupled(
    source: Source, approximate: bool, seed: int, providers: tuple[str, ...], clock: Clock, *, refits: bool = False
) -> Coupling:
    """Returns the coupling of a loaded model; with `refits`, of one whose weights can be written (computed.py)."""
    with clock.stage("trace"):
        model = with_computed_weights(source.model) if refits else source.model
        flat, traced = look_into(model, lambda view: trace(view, seed=seed, providers=providers))
    with clock.stage("couple"):
        return couple(flat.model if flat else model, traced, approximate=approximate, flat=flat)


def opened(source: Source, coupling: Coupling, where: DataSource, samples: int | None, seed: int) -> Calibration:
    """Returns calibration data; how much of it, unless that was said, by what a pass over the model costs."""
    data = where.data
    if isinstance(data, Calibration):
        return data
    wanted = as_run(specs(coupling.model), coupling.trace.feeds)
    if data is None and where.script is None and source.path is not None:
        data = find_test_data(source.path)
    work = MADE_UP_WORK if data is None and where.script is None else WORK
    affordable = int(min(max(work // max(cost.macs(coupling), 1), LEAST_SAMPLES), MOST_SAMPLES))
    count = samples or affordable
    batch = min(BATCH, samples_at_once(coupling), max(count // LEAST_BATCHES, 1))  # several: some are held out
    if where.script is not None:
        return open_script(os.fspath(where.script), wanted, samples=count, batch=batch, seed=seed)
    shapes = {name: v.shape for name, v in coupling.trace.feeds[0].items()}
    return open_calibration(data, wanted, samples=count, batch=batch, seed=seed, pictures=where.pictures, shapes=shapes)
