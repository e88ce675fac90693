"""How many units of each group go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from math import gcd

import numpy as np

from onnxprune.labels import Array
from onnxprune.scoring import Scores
from onnxprune.units import Group, Units

ADDITIONS = {"Add", "Sum", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "FusedConv", "QLinearAdd"}


Counts = tuple[int, ...]


def at_ratio(units: Units, ratio: float, *, align: int, chosen: Sequence[bool]) -> Counts:
    """Returns how many units of each group go: floor(ratio x n) of every chosen one.

    Args:
        units: the removable units.
        ratio: share of units to cut, at least 0 and below 1.
        align: kept counts are rounded up to multiples of it.
        chosen: for each group whether it may be cut.
    """
    return tuple(
        cut_count(len(group), ratio, align, _width(units, group)) if ok else 0
        for group, ok in zip(units.groups, chosen, strict=True)
    )


def to_target(cost: Callable[[Counts], float], at: Callable[[float], Counts], target: float) -> Counts | None:
    """Returns the counts of the smallest ratio that brings `cost` down to `target`, None if none does.

    Between two ratios that differ by a unit in many groups, only as many groups as needed lose theirs.

    Args:
        cost: what counts leave; it falls as they grow.
        at: the counts of a ratio.
        target: what may be left.
    """
    low, high = 0.0, 1.0 - 1e-9
    if cost(at(high)) > target:
        return None
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (low, middle) if cost(at(middle)) <= target else (middle, high)
    before, after = at(low), at(high)
    few, many = 0, len(before)
    while few < many:
        middle_groups = (few + many) // 2
        if cost((*after[:middle_groups], *before[middle_groups:])) <= target:
            many = middle_groups
        else:
            few = middle_groups + 1
    return (*after[:few], *before[few:])


def least_important(units: Units, scores: Sequence[Scores], counts: Counts) -> Array:
    """Returns the units to cut: the `counts` least important of each group, but for the last of a family."""
    dead = np.zeros(units.count, bool)
    for group, importance, count in zip(units.groups, scores, counts, strict=True):
        dead[group.units[np.argsort(importance, kind="stable")[:count]]] = True
    _spare_families(units, scores, dead)
    return np.flatnonzero(dead)


def streams(units: Units) -> list[bool]:
    """Returns for each group whether several producers are joined in it by additions (a residual stream)."""
    coupling = units.coupling
    found = [False] * (len(units.groups) + 1)
    for node, seen in zip(coupling.nodes, coupling.seen, strict=True):
        if node.op_type not in ADDITIONS:
            continue
        met = [
            set(np.unique(units.group_of[units.of_label[np.concatenate([a.ravel() for a in t.arrays])]]).tolist())
            for t, v in zip(seen, node.inputs, strict=True)
            if t is not None and t.arrays and v is not None and v.name not in coupling.trace.static
        ]
        if len(met) > 1:
            for k in met[0].intersection(*met[1:]):
                found[k] = True
    return found[:-1]


def cut_count(units: int, ratio: float, align: int, width: int) -> int:
    """Returns how many of a group's units go so that kept channels (units x width) are a multiple of `align`."""
    kept = units - int(ratio * units + 1e-9)
    step = align // gcd(align, width)
    kept = -(-kept // step) * step
    return max(units - kept, 0)


def _width(units: Units, group: Group) -> int:
    """Returns how many channels one unit is in the first weight of its group."""
    u, k = group.members[0]
    of = units.of_label[units.coupling.uses[u].arrays[k]]
    return max(int((of == group.units[0]).sum()), 1)


def _spare_families(units: Units, scores: Sequence[Scores], dead: np.ndarray) -> None:
    """Brings back the most important unit of every family that would die out."""
    importance = np.zeros(units.count)
    for group, own in zip(units.groups, scores, strict=True):
        importance[group.units] = own
    for family in units.families:
        if dead[family].all():
            dead[family[int(np.argmax(importance[family]))]] = False


def select(units: Units, include: Sequence[str], exclude: Sequence[str]) -> list[bool]:
    """Returns for each group whether it may be cut, by globs over its name and those of its weights and their nodes."""
    chosen = []
    for group in units.groups:
        names = names_of(units, group)
        wanted = not include or any(fnmatchcase(n, p) for p in include for n in names)
        chosen.append(wanted and not any(fnmatchcase(n, p) for p in exclude for n in names))
    return chosen


def names_of(units: Units, group: Group) -> set[str]:
    """Returns the names that a pattern can mean a group by."""
    names = {group.name}
    for u, _ in group.members:
        use = units.coupling.uses[u]
        names |= {use.name, units.coupling.nodes[use.node].name or ""}
    return names - {""}
