"""Rows that may lose different columns: heads their dims, groups of a convolution channels, directions of a cell units.

A unit under a rectangle is a column, one *slot* of every row. Where nothing lines the rows up, any slot of each row
will do as well, as long as all rows lose as many: units may be put together anew. Nothing does so if wherever the slots
of a row stand, in values and in constants, all of them stand side by side and in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from onnxprune.engine.coupling import Coupling
from onnxprune.engine.labels import Array
from onnxprune.engine.tensors import spans
from onnxprune.engine.units import Rows, Units, distinct_rectangles

__all__ = ["find_rows", "lost", "rearranged"]


def find_rows(units: Units) -> tuple[Rows, ...]:
    """Returns the groups whose units may be put together of other slots."""
    roots = units.coupling.labels.find(np.arange(len(units.of_label)))
    rows = _Rows.of(units, roots)
    rows.leave(rows.lined_up(units, roots))
    together: dict[bytes, list[Array]] = {}
    for k, row in enumerate(rows.found):
        if not rows.bad[k]:
            together.setdefault(units.of_label[row].tobytes(), []).append(row)
    labels_in = np.bincount(units.of_label[np.unique(roots)] + 1, minlength=units.count + 1)[1:]
    found = []
    for several in together.values():
        slots = np.stack(several, axis=1)
        own = units.of_label[slots[:, 0]]
        g = int(units.group_of[own[0]])
        whole = np.array_equal(np.sort(own), units.groups[g].units) and (labels_in[own] == len(several)).all()
        if whole and len(several) > 1:
            found.append(Rows(g, slots[np.argsort(own)]))
    return tuple(sorted(found, key=lambda each: each.group))


def rearranged(units: Units, rows: Iterable[Rows], orders: Iterable[Array]) -> Units:
    """Returns the units of a model, some put together anew.

    Args:
        units: as `find_units` finds them.
        rows: some of what `find_rows` finds.
        orders: for each, (units, rows) which slot of each row the units of the group take, by place.
    """
    rows = tuple(rows)
    of_root = np.full(len(units.of_label), -1)
    for each, order in zip(rows, orders, strict=True):
        taken = np.take_along_axis(each.slots, order, 0)
        of_root[taken] = units.groups[each.group].units[:, None]
    new = of_root[units.coupling.labels.find(np.arange(len(of_root)))]
    return replace(units, of_label=np.where(new >= 0, new, units.of_label), rows=rows)


def lost(rows: Rows, living: np.ndarray) -> Array:
    """Returns (rows, n) the places of the slots that each row loses, where `living` tells it of every label."""
    gone = ~living[rows.slots]
    return np.stack([np.flatnonzero(row) for row in gone.T])


class _Rows:
    """Rows of rectangles, and of every root label the row that it stands in and its place there, -1 if in none."""

    def __init__(self, count: int) -> None:
        self.found: list[Array] = []
        self.row, self.place = (np.full(count, -1) for _ in range(2))
        self.bad, self.sizes = np.zeros(0, bool), np.zeros(1, np.int64)

    @staticmethod
    def of(units: Units, roots: Array) -> _Rows:
        """Returns the rows of all rectangles whose columns are units."""
        labels, rows = units.coupling.labels, _Rows(len(roots))
        known: dict[bytes, int] = {}
        bad: set[int] = set()
        for rectangle in distinct_rectangles(labels, [*labels.rectangles, *labels.balances], units.reasons):
            for row in rectangle.reshape(-1, rectangle.shape[-1]):
                if row.tobytes() in known:
                    continue
                k = known[row.tobytes()] = len(rows.found)
                rows.found.append(row)
                others = rows.row[row]
                if (others >= 0).any() or len(np.unique(row)) < len(row) or (units.of_label[row] < 0).any():
                    bad |= {k, *others[others >= 0].tolist()}
                rows.row[row], rows.place[row] = k, np.arange(len(row))
        rows.bad = np.zeros(len(rows.found), bool)
        rows.sizes = np.array([*map(len, rows.found), 0])
        rows.leave(bad)
        return rows

    def leave(self, which: Iterable[int]) -> None:
        """Marks rows that other rows are lined up with."""
        self.bad[list(which)] = True

    def lined_up(self, units: Units, roots: Array) -> set[int]:
        """Returns the rows that something lines up with others, or takes apart."""
        coupling = units.coupling
        found: set[int] = set()
        for a in _arrays(coupling):
            found |= self._scattered(roots[a].reshape(-1, a.shape[spans(a)[-1]] if spans(a) else 1))
        for one, other in coupling.labels.pairs:
            found |= self._in(roots[one]) | self._in(roots[other])
        for d in coupling.labels.derivations:
            found |= self._in(roots[d.parents]) | self._broken(roots[d.children])
        return found

    def _in(self, roots: Array) -> set[int]:
        """Returns the rows that labels stand in."""
        rows = np.unique(self.row[roots])
        return set(rows[rows >= 0].tolist())

    def _broken(self, roots: Array) -> set[int]:
        """Returns the rows of which a set of labels, a row of `roots`, holds some slots and not all."""
        sets = np.arange(len(roots))[:, None]
        held = np.unique(sets * len(self.row) + roots)
        rows = self.row[held % len(self.row)]
        keys, counts = np.unique(held // len(self.row) * len(self.sizes) + rows, return_counts=True)
        rows = keys % len(self.sizes)  # -1 has become the last one, of size 0
        return set(rows[counts < self.sizes[rows]].tolist())

    def _scattered(self, lines: Array) -> set[int]:
        """Returns the rows that do not stand side by side and in order, all of them, along the lines of an array."""
        row, place = self.row[lines], self.place[lines]
        if not (row >= 0).any():
            return set()
        sizes = self.sizes[row]
        follows = (row[:, 1:] == row[:, :-1]) & (place[:, 1:] == place[:, :-1] + 1)
        edge = np.zeros((len(lines), 1), bool)
        before, behind = np.hstack([edge, follows]), np.hstack([follows, edge])
        wrong = (row >= 0) & (((place > 0) & ~before) | ((place < sizes - 1) & ~behind))
        return set(np.unique(row[wrong]).tolist())


def _arrays(coupling: Coupling) -> Iterator[Array]:
    """Yields every array of labels that stands over the axes of something, once."""
    tensors = [*coupling.tensors.values(), *(t for seen in coupling.seen for t in seen if t is not None)]
    tensors += [*(each.tensor for each in coupling.folded), *(each.tensor for each in coupling.selected)]
    arrays = [*(a for t in tensors for a in t.arrays), *(a for use in coupling.uses for a in use.arrays)]
    yield from {id(a): a for a in arrays}.values()
