"""How many units of each group go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from math import gcd
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.allocation.knapsack import Counts, solve
from onnxprune.criteria.scoring import Scores
from onnxprune.engine.labels import Array
from onnxprune.engine.units import Group, Units

if TYPE_CHECKING:
    from onnxprune.allocation.sensitivity import Sensitivity
    from onnxprune.reports.report import SensitivityRow

ADDITIONS = {"Add", "Sum", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "FusedConv", "QLinearAdd"}


def at_ratio(units: Units, ratio: float, *, steps: Counts, most: Counts) -> Counts:
    """Returns how many units of each group go: floor(ratio x n) of each, as far as its cap and its steps let them.

    Args:
        units: the removable units.
        ratio: share of units to cut, at least 0 and below 1.
        steps: for each group, what kept counts are rounded up to multiples of.
        most: for each group, how many units may go at most.
    """
    return tuple(
        _on_step(len(group), min(int(ratio * len(group) + 1e-9), cap), step)
        for group, step, cap in zip(units.groups, steps, most, strict=True)
    )


def steps_of(units: Units, align: int) -> Counts:
    """Returns for each group the step of kept units that makes kept channels multiples of `align`."""
    return tuple(align // gcd(align, _width(units, group)) for group in units.groups)


def filled(excess: Callable[[Counts], float], counts: Counts, units: Units, steps: Counts) -> Counts:
    """Returns counts that give back what a budget leaves unused: step by step, the largest that fits first.

    Args:
        excess: how far counts overshoot the budget; zero or less where they hold it.
        counts: counts that hold it.
        units: the removable units.
        steps: for each group, the multiple that kept counts are.
    """
    now = list(counts)

    def back(g: int) -> Counts:
        n = len(units.groups[g])
        return (*now[:g], max(n - ((n - now[g]) // steps[g] + 1) * steps[g], 0), *now[g + 1 :])

    if not excess(counts) <= 0:
        return counts
    left = sorted(((-excess(back(g)), g) for g, count in enumerate(counts) if count), key=lambda item: item[0])
    for _, g in left:
        while now[g] and excess(back(g)) <= 0:
            now[g] = back(g)[g]
    return tuple(now)


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


def _on_step(units: int, count: int, step: int) -> int:
    """Returns the largest count up to `count` that leaves a multiple of `step`, or 0."""
    return max(units - -(-(units - count) // step) * step, 0)


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


def by_sensitivity(
    sensitivity: Sensitivity,
    excess: Callable[[Counts], float],
    *,
    steps: Counts,
    most: Counts,
    levels: Sequence[Sequence[int]] | None = None,
) -> Counts | None:
    """Returns the counts within a budget that move the outputs least, None where no counts are within it.

    The divergences of groups cut alone are added up; between measured levels their square roots are lines.

    Args:
        sensitivity: what each group costs the outputs; a group that was not measured loses nothing.
        excess: how far counts are over the budget, zero or less within it.
        steps: for each group, the multiple that kept counts are where any unit goes.
        most: for each group, how many units may go at most.
        levels: for each group, the kept counts to choose from; None: all.
    """
    allowed, losses = [], []
    for g, (curve, step, cap) in enumerate(zip(sensitivity.curves, steps, most, strict=True)):
        counts = np.arange(min(curve.counts[-1], curve.units - 1, cap) + 1)
        counts = counts[(counts == 0) | ((curve.units - counts) % step == 0)]
        if levels is not None:
            counts = counts[(counts == 0) | np.isin(curve.units - counts, levels[g])]
        allowed.append(counts)
        losses.append(_loss(curve, counts))
    return solve(allowed, losses, excess)


def foretold(sensitivity: Sensitivity, counts: Counts) -> float:
    """Returns what counts are expected to cost the outputs: the sum of what groups cost that are cut alone."""
    return sum(float(_loss(curve, np.array(count))) for curve, count in zip(sensitivity.curves, counts, strict=True))


def _loss(curve: SensitivityRow, counts: Array) -> np.ndarray:
    """Returns what a group costs the outputs at counts; between measured levels its square root is a line."""
    level = np.sqrt(np.maximum.accumulate(curve.divergence))
    return np.asarray(np.interp(counts, curve.counts, level) ** 2)


def by_importance(
    units: Units,
    scores: Sequence[Scores],
    *,
    steps: Counts,
    most: Counts,
    ratio: float | None = None,
    excess: Callable[[Counts], float] | None = None,
    costs: Sequence[float] | None = None,
) -> Counts | None:
    """Returns the counts when units of all groups are compared: those of least importance for their cost go.

    None where no counts are within the budget.

    Args:
        units: the removable units.
        scores: importance of each group's units, about 1 on average.
        steps: for each group, the multiple that kept counts are rounded up to.
        most: for each group, how many units may go at most; groups of which none may go don't count for the ratio.
        ratio: the share of all units to cut (rounded down), or None with a budget.
        excess: how far counts are over a budget, zero or less within it; None with a ratio.
        costs: what one unit of each group takes along; None: all alike.
    """
    ends = [min(len(group) - 1, cap) for group, cap in zip(units.groups, most, strict=True)]
    price = np.maximum(np.ones(len(ends)) if costs is None else np.asarray(costs, np.float64), 1e-30)
    keys = [np.sort(own)[:end] / price[g] for g, (own, end) in enumerate(zip(scores, ends, strict=True))]
    owners = np.repeat(np.arange(len(ends)), ends)
    order = owners[np.argsort(np.concatenate([np.zeros(0), *keys]), kind="stable")]

    def at(gone: int) -> Counts:
        counts = np.bincount(order[:gone], minlength=len(ends)).tolist()
        return tuple(_on_step(len(g), c, step) for g, c, step in zip(units.groups, counts, steps, strict=True))

    if ratio is not None:
        total = sum(len(group) for group, end in zip(units.groups, ends, strict=True) if end)
        return at(min(int(ratio * total + 1e-9), len(order)))
    assert excess is not None
    if excess(at(len(order))) > 0:
        return None
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if excess(at(middle)) <= 0 else (middle + 1, high)
    return at(high)
