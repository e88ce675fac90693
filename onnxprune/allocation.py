"""How many units of each group go."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from math import gcd

import numpy as np

from onnxprune.labels import Array
from onnxprune.scoring import Scores
from onnxprune.units import Group, Units


def uniform(units: Units, scores: Sequence[Scores], ratio: float, *, align: int, chosen: Sequence[bool]) -> Array:
    """Returns the units to cut: the floor(ratio x n) least important of every chosen group.

    Args:
        units: the removable units.
        scores: importance of each group's units.
        ratio: share of units to cut, at least 0 and below 1.
        align: kept counts are rounded up to multiples of it.
        chosen: for each group whether it may be cut.
    """
    dead = np.zeros(units.count, bool)
    for group, importance, ok in zip(units.groups, scores, chosen, strict=True):
        if ok:
            count = cut_count(len(group), ratio, align, _width(units, group))
            order = np.argsort(importance, kind="stable")
            dead[group.units[order[:count]]] = True
    _spare_families(units, scores, dead)
    return np.flatnonzero(dead)


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
    """Returns for each group whether it may be cut, by globs over the names of the group, its weights and their nodes."""
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
