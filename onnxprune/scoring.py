"""Importance of units: a criterion is run on every member of a group, and the members weigh alike."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxprune.constants import constants
from onnxprune.coupling import Use
from onnxprune.criteria import Criterion
from onnxprune.labels import Array
from onnxprune.ops.zero_points import is_parameter_of_numbers, real
from onnxprune.tensors import spans
from onnxprune.units import Units

Scores = npt.NDArray[np.float64]


def score(units: Units, criterion: Criterion, seed: int) -> tuple[Scores, ...]:
    """Returns for each group the importance of its units, about 1 on average.

    The rows of a unit in one member are averaged, divided by the member's mean over the group, and averaged over the
    members, so that neither large tensors nor large units weigh more.
    """
    tensors = constants(units.coupling.model.graph)
    wanted: dict[tuple[int, int], list[int]] = {}
    for g, group in enumerate(units.groups):
        for member in group.members:
            wanted.setdefault(member, []).append(g)
    totals = [np.zeros(len(g)) for g in units.groups]
    counts = [0] * len(units.groups)
    for (u, k), where in sorted(wanted.items()):
        use = units.coupling.uses[u]
        node = units.coupling.nodes[use.node]
        if is_parameter_of_numbers(node, use.slot):
            continue
        values = tensors[use.name].numpy()
        if values.dtype.kind != "f":
            values = real(node, use.slot, values)
        rng = np.random.default_rng([seed, u, k])
        cells = criterion(_rows(values, use, use.arrays[k]), rng)
        per_unit = _per_unit(units, use.arrays[k], cells)
        for g in where:
            own = per_unit[units.groups[g].units]
            mean = own.mean()
            if np.isfinite(mean) and mean > 0:
                totals[g] += own / mean
                counts[g] += 1
    return tuple(t / max(c, 1) for t, c in zip(totals, counts, strict=True))


def _rows(values: np.ndarray, use: Use, array: Array) -> np.ndarray:
    """Returns a weight as (cells of the array, all weights on each)."""
    axes = spans(array)
    moved = np.moveaxis(values.reshape(use.shape), axes, range(len(axes)))
    return moved.reshape(array.size, -1)


def _per_unit(units: Units, array: Array, cells: Scores) -> Scores:
    """Returns the mean importance of each unit's cells, 0 for units that have none here."""
    of = units.of_label[array].reshape(-1)
    own = of >= 0
    total = np.bincount(of[own], cells[own], units.count)
    return total / np.maximum(np.bincount(of[own], minlength=units.count), 1)
