"""Integer labels for removable indices, and the constraints between them.

Every index of every axis that could be removed carries a label. `Labels` holds them in one vectorised union-find:
tied labels live and die together. Beside it stand the constraints that are no unions: *frozen* (must stay, with a
reason) and *derived* (a parent lives exactly as long as one of its children does).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Reason:
    """Why labels may not be cut: the node, its operator and what stands in the way."""

    node: str
    op: str
    why: str

    def __str__(self) -> str:
        return f"{self.op} ({self.node}): {self.why}" if self.op else self.why


@dataclass(frozen=True, eq=False)
class Derivation:
    """`parents[i]` lives if and only if any of `children[i]` (a row) does."""

    parents: Array
    children: Array


class UnionFind:
    """Vectorised union-find over integers; the smallest member of a class is its root, so results are deterministic."""

    def __init__(self, parent: Array | None = None) -> None:
        self._parent = np.zeros(0, np.int64) if parent is None else parent
        self._size = len(self._parent)

    def __len__(self) -> int:
        return self._size

    def grow(self, count: int) -> Array:
        """Returns `count` new integers, each a class of its own."""
        start, end = self._size, self._size + count
        if end > len(self._parent):
            room = np.arange(max(1024, 2 * end), dtype=np.int64)
            room[: len(self._parent)] = self._parent
            self._parent = room
        self._size = end
        return np.arange(start, end, dtype=np.int64)

    def find(self, labels: Array) -> Array:
        """Returns the roots of `labels`, in their shape."""
        parent = self._parent
        roots = parent[labels]
        while True:
            further = parent[roots]
            if np.array_equal(further, roots):
                break
            roots = further
        parent[labels] = roots
        return roots

    def union(self, one: Array, other: Array) -> None:
        """Ties two arrays of labels, element by element, with broadcasting."""
        a, b = (x.ravel() for x in np.broadcast_arrays(one, other))
        while a.size:
            a, b = self.find(a), self.find(b)
            differ = a != b
            a, b = a[differ], b[differ]
            np.minimum.at(self._parent, np.maximum(a, b), np.minimum(a, b))

    def copy(self) -> UnionFind:
        """Returns an independent copy."""
        return UnionFind(self._parent[: self._size].copy())


@dataclass
class Labels:
    """All labels of one model with what ties, freezes and derives them."""

    classes: UnionFind = field(default_factory=UnionFind)
    derivations: list[Derivation] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)
    rectangles: list[Array] = field(default_factory=list)
    balances: list[Array] = field(default_factory=list)  # (rows, columns): rows must stay equally long
    pairs: list[tuple[Array, Array]] = field(default_factory=list)
    _frozen: list[tuple[Array, int]] = field(default_factory=list)

    def fresh(self, *shape: int) -> Array:
        """Returns an array of new labels."""
        return self.classes.grow(int(np.prod(shape))).reshape(shape)

    def find(self, labels: Array) -> Array:
        """Returns the roots of `labels`."""
        return self.classes.find(labels)

    def union(self, one: Array, other: Array) -> None:
        """Ties labels, element by element."""
        self.classes.union(one, other)

    def freeze(self, labels: Array, reason: Reason) -> None:
        """Marks labels as ones that must stay. Frozen labels are not tied to each other by that."""
        if labels.size:
            self.reasons.append(reason)
            self._frozen.append((labels.ravel().copy(), len(self.reasons) - 1))

    def derive(self, parents: Array, children: Array) -> None:
        """Makes each parent live as long as one of its children does.

        Args:
            parents: n labels.
            children: (n, k) labels, a row for each parent.
        """
        if children.shape[1] == 1:
            self.union(parents, children[:, 0])
        else:
            self.derivations.append(Derivation(parents, children))

    def prefer_pairs(self, one: Array, other: Array) -> None:
        """Wishes that labels go two by two, element by element; units do without it where it would cost much."""
        self.pairs.append((one.ravel().copy(), other.ravel().copy()))

    def frozen_reasons(self, classes: UnionFind | None = None) -> Array:
        """Returns, for each root, the number of the first reason that freezes it, or -1 where it is free."""
        classes = classes or self.classes
        first = np.full(len(classes), len(self.reasons), np.int64)
        for labels, reason in self._frozen:
            np.minimum.at(first, classes.find(labels), reason)
        first[first == len(self.reasons)] = -1
        return first


def settle(labels: Labels, classes: UnionFind) -> Array:
    """Brings `classes` to its fixpoint and returns the reason number for each root (-1: free).

    A parent all of whose children are one class is tied to it; a frozen child freezes its parent.
    """
    open_ = tie_only_children(classes, labels.derivations)
    reasons = labels.frozen_reasons(classes)
    while True:
        changed = False
        for d in open_:
            parents, children = classes.find(d.parents), classes.find(d.children)
            child = reasons[children].max(axis=1)
            hit = (child >= 0) & (reasons[parents] < 0)
            if hit.any():
                reasons[parents[hit]] = child[hit]
                changed = True
        if not changed:
            return reasons


def tie_only_children(classes: UnionFind, derivations: Iterable[Derivation]) -> list[Derivation]:
    """Ties parents to children that are one class, until nothing changes; returns the rows that have several."""
    open_ = list(derivations)
    while True:
        before = len(open_)
        open_ = [d for d in (_single_children_tied(classes, d) for d in open_) if d is not None]
        if not _changed_by_ties(classes, open_) and len(open_) == before:
            return open_


def _single_children_tied(classes: UnionFind, derivation: Derivation) -> Derivation | None:
    """Returns the rows that still have two or more different children; the others become unions."""
    children = classes.find(derivation.children)
    single = (children == children[:, :1]).all(axis=1)
    if single.any():
        classes.union(derivation.parents[single], children[single, 0])
        if single.all():
            return None
        return Derivation(derivation.parents[~single], derivation.children[~single])
    return derivation


def _changed_by_ties(classes: UnionFind, open_: Iterable[Derivation]) -> bool:
    """Returns whether a row has become single since it was looked at."""
    for d in open_:
        children = classes.find(d.children)
        if (children == children[:, :1]).all(axis=1).any():
            return True
    return False
