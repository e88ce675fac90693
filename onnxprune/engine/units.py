"""From labels to units: the smallest sets of labels that can go alone, and the groups they form.

Without a constraint a unit is one label. Labels under rectangles and derivations are tried as *columns* (the last axis
of every rectangle is free, the others are tied), then as rows, then as the largest rectangle of a component leads; the
way that covers more weight wins, the finer one where they cover the same. Groups of grouped convolutions may also lose
equal numbers of any columns. Labels that had better go two by two do so unless that covers much less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations

import numpy as np
import numpy.typing as npt

from onnxprune.engine.balance import balanced
from onnxprune.engine.coupling import Coupling
from onnxprune.engine.labels import Array, Labels, UnionFind, settle, tie_only_children

Floats = npt.NDArray[np.float64]


Member = tuple[int, int]
"""A place in a constant: (number of the use, number of its array)."""
Members = tuple[Member, ...]


@dataclass(frozen=True, eq=False)
class Group:
    """Units that appear in the same places."""

    name: str
    units: Array
    members: Members

    def __len__(self) -> int:
        return len(self.units)


@dataclass(frozen=True, eq=False)
class Rows:
    """A group whose units take one slot of every row of a rectangle each, and may take any.

    Attributes:
        group: its number.
        slots: (units, rows) the labels that are the slots, as roots.
    """

    group: int
    slots: Array

    @property
    def key(self) -> bytes:
        """What equal rows have in common, whichever group they are."""
        return self.slots.tobytes()


@dataclass(frozen=True, eq=False)
class Units:
    """All removable units of a model.

    Attributes:
        of_label: for each label its unit, or -1 where it stays.
        groups: units by the places they appear in.
        families: sets of units of which at least one must stay.
        reasons: for each label the number of the reason why it is frozen, or -1.
        rows: the groups whose units were put together anew, as they stood before (engine/rows.py).
    """

    coupling: Coupling
    of_label: Array
    groups: tuple[Group, ...]
    families: tuple[Array, ...]
    reasons: Array
    rows: tuple[Rows, ...] = ()

    @cached_property
    def count(self) -> int:
        """The number of units."""
        return int(self.of_label.max(initial=-1)) + 1

    @cached_property
    def group_of(self) -> Array:
        """For each unit the number of its group; the last entry, -1, is for labels without a unit."""
        groups = np.full(self.count + 1, -1)
        for k, group in enumerate(self.groups):
            groups[group.units] = k
        return groups


@dataclass(frozen=True)
class _Way:
    """How the labels of a component are read: which axis of its rectangles is free, and whether pairs are kept.

    Attributes:
        free: the axis, counted from the end.
        paired: whether labels that had better go two by two do so.
        matched: whether the groups of grouped convolutions lose equal numbers rather than the same columns.
        led: whether that axis is the largest rectangle's, and the others leave the one free that follows from it.
    """

    free: int
    paired: bool
    matched: bool = False
    led: bool = False


@dataclass
class _Attempt:
    """One way to read the rectangles: the classes it makes, and which roots may go."""

    classes: UnionFind
    removable: np.ndarray


def find_units(coupling: Coupling) -> Units:
    """Returns the units and groups of a coupled model."""
    labels = coupling.labels
    reasons = coupling.settled()
    products = distinct_rectangles(labels, labels.rectangles, reasons)
    balances = distinct_rectangles(labels, labels.balances, reasons)
    component = _components(labels, [*products, *balances], reasons)
    weight = _weights(coupling)
    produced = np.zeros(len(labels.classes), bool)
    for a in coupling.produced:
        produced[a.ravel()] = True
    depth = max((r.ndim for r in [*products, *balances]), default=1)
    paired = (True, False) if labels.pairs else (False,)
    ways = [_Way(free, pairs) for pairs in paired for free in range(1, depth + 1)]
    ways += [_Way(1, pairs, matched=True) for pairs in paired if balances]
    ways += [_Way(free, pairs, led=True) for pairs in paired for free in range(1, depth + 1) if depth > 1]

    def attempt(ways: Sequence[_Way], choice: Array) -> _Attempt:
        return _attempt(labels, products, balances, ways, choice, component, reasons)

    attempts = [attempt([way], np.zeros(len(component), np.int64)) for way in ways]
    final = attempt(ways, _choose(attempts, component, weight, produced))
    return _assemble(coupling, final, produced, reasons)


def distinct_rectangles(labels: Labels, rectangles: Sequence[Array], reasons: Array) -> list[Array]:
    """Returns each rectangle with anything free in it once, however it is turned, as roots without repeated rows."""
    found: dict[bytes, Array] = {}
    each = (labels.find(a).reshape([n for n in a.shape if n > 1]) for a in {id(a): a for a in rectangles}.values())
    for roots in {_key(roots): roots for roots in each}.values():
        if (reasons[roots] >= 0).all():
            continue
        for axis in range(roots.ndim):
            flat = np.moveaxis(roots, axis, 0).reshape(roots.shape[axis], -1)
            _, first = np.unique(flat, axis=0, return_index=True)
            roots = roots.take(np.sort(first), axis)
        roots = roots.reshape([n for n in roots.shape if n > 1])
        turned = [roots.transpose(p) for p in permutations(range(roots.ndim))]
        keys = [_key(r) for r in turned]
        if roots.ndim > 1 and not any(key in found for key in keys):
            found[keys[0]] = roots
    return list(found.values())


def _key(rectangle: Array) -> bytes:
    """Returns what equal rectangles have in common."""
    return repr(rectangle.shape).encode() + rectangle.tobytes()


def _components(labels: Labels, rectangles: list[Array], reasons: Array) -> Array:
    """Returns for each label the component of free labels that rectangles and derivations link it to."""
    links = labels.classes.copy()
    free = reasons < 0

    def link(rows: Array) -> None:
        roots = labels.find(rows)
        anchor = np.where(free[roots], roots, np.iinfo(np.int64).max).min(axis=1, keepdims=True)
        ok = free[roots] & (anchor < np.iinfo(np.int64).max)
        links.union(roots[ok], np.broadcast_to(anchor, roots.shape)[ok])

    for r in rectangles:
        link(r.reshape(1, -1))
    for one, other in labels.pairs:
        link(np.concatenate([one, other])[None])
    for d in labels.derivations:
        link(np.concatenate([d.parents[:, None], d.children], axis=1))
    return links.find(np.arange(len(labels.classes)))


def _attempt(
    labels: Labels,
    products: list[Array],
    balances: list[Array],
    ways: Sequence[_Way],
    choice: Array,
    component: Array,
    reasons: Array,
) -> _Attempt:
    """Ties every rectangle along all axes but one, and pairs, in the one of `ways` that is each component's choice."""
    classes = labels.classes.copy()
    matched, led = [], []
    for r in [*products, *balances]:
        here = int(component[r.ravel()[int((reasons[r.ravel()] < 0).argmax())]])
        way = ways[choice[here]]
        if way.matched and any(r is b for b in balances):
            matched.append(r)
        elif way.led:
            led.append((r, way.free, here))
        else:
            _leave_free(classes, r, way.free)
    _follow(labels, classes, led)
    paired = np.array([way.paired for way in ways])
    for one, other in labels.pairs:
        wanted = paired[choice[component[one]]] & paired[choice[component[other]]]
        classes.union(one[wanted], other[wanted])
    reasons = settle(labels, classes)
    roots = classes.find(np.arange(len(classes)))
    removable = (reasons < 0)[roots]
    if matched:
        removable &= ~balanced(classes, removable, matched)
        roots = classes.find(roots)
    for d in labels.derivations:  # a parent with several children goes only with the last of them: it stays
        parents, children = classes.find(d.parents), classes.find(d.children)
        several = (children != children[:, :1]).any(axis=1)
        removable[np.isin(roots, parents[several])] = False
    return _Attempt(classes, removable)


def _leave_free(classes: UnionFind, rectangle: Array, free: int) -> None:
    """Ties a rectangle along all axes but one, counted from the end."""
    for axis in range(rectangle.ndim):
        if axis != max(rectangle.ndim - free, 0):
            classes.union(rectangle, rectangle.take([0], axis))


def _follow(labels: Labels, classes: UnionFind, led: list[tuple[Array, int, int]]) -> None:
    """Ties rectangles: of each component the largest first, others where these ties leave one axis free of ties.

    Args:
        labels: of the model.
        classes: what is tied in this attempt.
        led: the rectangles, each with the free axis it has where it leads, and its component.
    """
    waiting = sorted(led, key=lambda each: -each[0].size)
    derivations = labels.derivations
    while waiting:
        derivations = tie_only_children(classes, derivations)
        axes = [_untied(classes, r) for r, _, _ in waiting]
        if min(map(len, axes)) > 1:
            leaders: dict[int, int] = {}
            for k, (_, free, here) in enumerate(waiting):
                if leaders.setdefault(here, k) == k:
                    axes[k] = [free]
        for (r, _, _), untied in zip(waiting, axes, strict=True):
            if len(untied) == 1:
                _leave_free(classes, r, untied[0])
        waiting = [each for each, untied in zip(waiting, axes, strict=True) if len(untied) > 1]


def _untied(classes: UnionFind, rectangle: Array) -> list[int]:
    """Returns the axes, counted from the end, along which a rectangle is of several classes."""
    roots = classes.find(rectangle)
    return [roots.ndim - a for a in range(roots.ndim) if (roots != roots.take([0], a)).any()]


def _choose(attempts: list[_Attempt], component: Array, weight: Floats, produced: np.ndarray) -> Array:
    """Returns for each component which attempt covers the most weight, the first of equals."""
    n = len(component)
    cover = np.zeros((len(attempts), n))
    for k, attempt in enumerate(attempts):
        roots = attempt.classes.find(np.arange(n))
        made = np.zeros(n, bool)
        made[roots[produced]] = True
        able = attempt.removable & made[roots]
        whole = np.zeros(n)
        np.maximum.at(whole, component[able], np.bincount(roots[able], weight[able], n)[roots[able]])
        # what is one unit only cannot lose anything: the largest unit of a component does not count
        np.add.at(cover[k], component[able], weight[able])
        cover[k] -= whole
    best = np.zeros(n, np.int64)
    for k in range(1, len(attempts)):
        better = cover[k] > 1.25 * np.take_along_axis(cover, best[None], 0)[0] + 1e-9
        best[better] = k
    return best


def _weights(coupling: Coupling) -> Floats:
    """Returns for each label how many weight elements hang on it."""
    weight = np.zeros(len(coupling.labels.classes))
    for use in coupling.uses:
        size = float(np.prod(use.shape))
        for a in use.arrays:
            np.add.at(weight, a.ravel(), size / a.size)
    return weight


def _assemble(coupling: Coupling, attempt: _Attempt, produced: np.ndarray, reasons: Array) -> Units:
    """Numbers the removable classes that a parameter produces, and groups them by where they appear."""
    of_label, count = _numbered(attempt, produced)
    makers = _makers(coupling, of_label, count)
    groups, taken = [], set()
    for members, units in _by_members(coupling, of_label, count):
        maker = coupling.uses[makers[units[0]] if makers[units[0]] >= 0 else members[0][0]].name
        name, again = maker, 2
        while name in taken:
            name, again = f"{maker}:{again}", again + 1
        taken.add(name)
        groups.append(Group(name, units, members))
    grouped = np.zeros(count + 1, bool)
    for g in groups:
        grouped[g.units] = True
    of_label = np.where(grouped[of_label], of_label, -1)
    return Units(coupling, of_label, tuple(groups), _families(coupling, of_label, groups, count), reasons)


def _numbered(attempt: _Attempt, produced: np.ndarray) -> tuple[Array, int]:
    """Returns for each label the number of its unit, -1 where it may not go or nothing makes it, and the units."""
    n = len(produced)
    roots = attempt.classes.find(np.arange(n))
    made, able = np.zeros(n, bool), np.zeros(n, bool)
    made[roots[produced]] = True
    able[roots[attempt.removable]] = True
    units, of_label = np.unique(roots, return_inverse=True)
    counts = (able & made)[units]
    return np.where(counts, np.cumsum(counts) - 1, -1)[of_label], int(counts.sum())


def _by_members(coupling: Coupling, of_label: Array, count: int) -> list[tuple[Members, Array]]:
    """Returns the units that appear in the same arrays of constants, behind these arrays and in their order."""
    pattern = np.zeros(count, np.int64)  # of each unit, where it appears: a number in `patterns`
    patterns: list[Members] = [()]
    for u, use in enumerate(coupling.uses):
        for k, a in enumerate(use.arrays):
            here = distinct(of_label[a], count)
            old, new = np.unique(pattern[here], return_inverse=True)
            pattern[here] = len(patterns) + new
            patterns += [(*patterns[each], (u, k)) for each in old]
    found = [(patterns[each], np.flatnonzero(pattern == each)) for each in np.unique(pattern[pattern > 0])]
    return sorted(found, key=lambda one: one[0])


def _makers(coupling: Coupling, of_label: Array, count: int) -> Array:
    """Returns for each unit the number of the first use of a constant that produces it, -1 without one."""
    produced = np.zeros(len(of_label), bool)
    for a in coupling.produced:
        produced[coupling.labels.find(a).ravel()] = True
    makers = np.full(count, -1)
    for u, use in enumerate(coupling.uses):
        for a in use.arrays:
            if len(use.shape) > 1:
                made = distinct(of_label[a[produced[coupling.labels.find(a)]]], count)
                makers[made[makers[made] < 0]] = u
    return makers


def distinct(numbers: Array, count: int) -> Array:
    """Returns which of so many numbers (of units, of groups) appear, in order; -1 stands for none."""
    there = np.zeros(count + 1, bool)
    there[numbers] = True
    return np.flatnonzero(there[:-1])


def _families(coupling: Coupling, of_label: Array, groups: list[Group], count: int) -> tuple[Array, ...]:
    """Returns the sets of units of which one must stay: children of a living parent, indices of one axis."""
    sets: dict[bytes, Array] = {}
    group_of = np.full(count, -1)
    for k, g in enumerate(groups):
        group_of[g.units] = k
    sizes = np.array([len(g) for g in groups])

    def add(units: Array) -> None:
        if not units.size or (units < 0).any():
            return
        units = distinct(units, count)
        if units.tobytes() not in sets:
            inside = np.bincount(group_of[units], minlength=len(groups))
            if not ((inside == sizes) & (inside > 0)).any():  # a whole group keeps one anyway
                sets[units.tobytes()] = units

    for d in coupling.labels.derivations:
        for row in np.unique(of_label[d.children], axis=0):
            if (row != row[0]).any():  # a parent of one unit goes with it
                add(row)
    for a in {id(a): a for t in coupling.tensors.values() for a in t.arrays}.values():
        add(of_label[a])
    return tuple(sets[k] for k in sorted(sets))


__all__ = ["Group", "Member", "Rows", "Units", "distinct", "distinct_rectangles", "find_units"]
