"""Importance of units: a criterion is run on every member of a group, and the members weigh alike."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxprune.abreast import looked_at
from onnxprune.criteria import OnWeights
from onnxprune.criteria.kinds import Rule, Scores
from onnxprune.criteria.magnitude import l1
from onnxprune.engine.coupling import Use
from onnxprune.engine.labels import Array
from onnxprune.engine.tensors import spans
from onnxprune.engine.units import Group, Member, Units
from onnxprune.graph.constants import constants
from onnxprune.ops import lookup
from onnxprune.ops.zero_points import is_parameter_of_numbers, real

__all__ = ["Scores", "has_scales", "score"]


def score(units: Units, criterion: OnWeights, seed: int, jobs: int = 1) -> tuple[Scores, ...]:
    """Returns for each group the importance of its units.

    A criterion sees the rows of one group in one member. The rows of a unit are averaged, divided by their mean over
    the group (but for criteria that compare as they are), and averaged over the members, so that neither large tensors
    nor large units weigh more. Groups without scales are ranked by l1 where a criterion asks for scales.

    Args:
        units: all removable units.
        criterion: what a unit is worth in one member.
        seed: of every random draw.
        jobs: members at a time; the result does not depend on it.
    """
    scaled = [not criterion.scales or has_scales(units, g) for g in units.groups]
    wanted: dict[Member, dict[int, Rule]] = {}
    for g, group in enumerate(units.groups):
        for member in group.members:
            if not (criterion.scales and scaled[g]) or is_scale(units, member):
                wanted.setdefault(member, {})[g] = criterion.rule if scaled[g] else l1
    tensors = constants(units.coupling.model.graph)
    totals = [np.zeros(len(g)) for g in units.groups]
    counts = [0] * len(units.groups)
    size = sum(tensors[units.coupling.uses[u].name].nbytes for u, _ in wanted)
    each = looked_at(lambda at: _scores_in(units, tensors, at, wanted[at], seed), sorted(wanted), jobs, size)
    for found in each:
        for g, per_unit in found.items():
            level = np.abs(per_unit).mean()
            if np.isfinite(level) and level > 0:
                totals[g] += per_unit if criterion.comparable else per_unit / level
                counts[g] += 1
    return tuple(t / max(c, 1) for t, c in zip(totals, counts, strict=True))


def _scores_in(
    units: Units, tensors: Mapping[str, ir.TensorProtocol], member: Member, rules: Mapping[int, Rule], seed: int
) -> dict[int, Scores]:
    """Returns what the rule of each group says of its units in one member, the mean over the rows of a unit."""
    u, k = member
    use = units.coupling.uses[u]
    node = units.coupling.nodes[use.node]
    if is_parameter_of_numbers(node, use.slot):
        return {}
    values = tensors[use.name].numpy()
    if values.dtype.kind != "f":
        values = real(node, use.slot, values)
    rows, found = _rows(values, use, use.arrays[k]), {}
    for g, rule in rules.items():
        own = units.groups[g].units
        cells, unit = _cells(units, use.arrays[k], own)
        rng = np.random.default_rng([seed, u, k, int(own[0])])
        with np.errstate(over="ignore", invalid="ignore"):
            sums = np.bincount(unit, rule(rows[_run(cells)], rng), len(own))
            found[g] = sums / np.maximum(np.bincount(unit, minlength=len(own)), 1)
    return found


def has_scales(units: Units, group: Group) -> bool:
    """Returns whether a BatchNormalization scales the units of a group."""
    return any(is_scale(units, member) for member in group.members)


def is_scale(units: Units, member: Member) -> bool:
    """Returns whether a member is the scale of a BatchNormalization."""
    use = units.coupling.uses[member[0]]
    home = lookup(units.coupling.nodes[use.node])
    return home is not None and use.slot in home.scale_slots


def _cells(units: Units, array: Array, own: Array) -> tuple[Array, Array]:
    """Returns the places in `array` that hold units of a group, and the number of each one's unit in the group."""
    number = np.full(units.count + 1, -1)
    number[own] = np.arange(len(own))
    of = number[units.of_label[array]].reshape(-1)
    cells = np.flatnonzero(of >= 0)
    return cells, of[cells]


def _run(cells: Array) -> Array | slice:
    """Returns neighbours as a slice, which copies nothing."""
    first, last = int(cells[0]), int(cells[-1])
    return slice(first, last + 1) if last - first + 1 == len(cells) else cells


def _rows(values: np.ndarray, use: Use, array: Array) -> np.ndarray:
    """Returns a weight as (cells of the array, all weights on each)."""
    axes = spans(array)
    moved = np.moveaxis(values.reshape(use.shape), axes, range(len(axes)))
    return moved.reshape(array.size, -1)
