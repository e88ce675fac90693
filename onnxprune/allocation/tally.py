"""What any counts of units would leave, without a cut.

The length of an axis is linear in the counts of the groups that share it; the size of a weight is a product of such
lengths, and so are, as a rule, the MACs of a node. These sums are made once for a model; then a question costs a few
numpy operations, however many nodes there are. What does not have this form is asked of its own rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from onnxprune.allocation.knapsack import Counts
from onnxprune.engine import cost
from onnxprune.engine.coupling import Use
from onnxprune.engine.cutting import Cutting
from onnxprune.engine.labels import Array
from onnxprune.engine.tensors import spans
from onnxprune.engine.units import Units
from onnxprune.graph.constants import constants
from onnxprune.ops import Node, Unsupported, lookup
from onnxprune.ops.registry import MacsRule, Shape

__all__ = ["Tally"]

MOST_VARIABLES = 3  # axes of different lengths that one node's MACs are taken apart by

Lengths = npt.NDArray[np.float64]
Form = tuple[int, tuple[tuple[int, int], ...]]  # a length: what is fixed of it, and (group, indices of each unit)
Axes = tuple[int, ...]  # numbers of forms
Term = tuple[float, Axes]  # a factor, and the lengths that are multiplied


class Tally:
    """Costs as functions of counts: how many units of each group go."""

    def __init__(self, units: Units) -> None:
        self.units = units
        self._sizes = np.array([len(g) for g in units.groups], np.int64)
        self._forms = _Forms(units)
        self._batch = cost.batch_size(units.coupling)
        self._macs = self._sum_macs()
        self._weights, self._bytes = self._sum_weights()
        rows = [(k, g, m) for k, (_, terms) in enumerate(self._forms.found) for g, m in terms]
        self._row, self._group, self._times = np.array(rows or np.zeros((0, 3)), np.int64).T
        self._fixed = np.array([fixed for fixed, _ in self._forms.found], np.float64)

    def macs(self, counts: Counts) -> float:
        """Returns the multiply-accumulates of one sample that are left."""
        return self._value(self._macs, counts) // self._batch

    def weights(self, counts: Counts) -> float:
        """Returns the parameters that are left, as `cost.parameters` counts them."""
        return self._value(self._weights, counts)

    def nbytes(self, counts: Counts) -> float:
        """Returns the bytes of constants that are left."""
        return self._value(self._bytes, counts)

    def _value(self, total: _Sum, counts: Counts) -> float:
        alive = (self._sizes - np.asarray(counts, np.int64)).astype(np.float64)
        moved = np.bincount(self._row, self._times * alive[self._group], len(self._fixed))
        return total.at(self._fixed + moved, lambda: _sketch(self.units, counts))

    # ---------------------------------------------------------------- sums
    def _sum_macs(self) -> _Sum:
        coupling = self.units.coupling
        terms: list[Term] = []
        others: list[Other] = []
        for index, node in enumerate(coupling.nodes):
            home = lookup(node)
            if home is None or home.macs.rule is None:
                continue
            try:
                shown, turns = Node(node, 1, coupling.trace), coupling.turns(index)
                work = _Work(shown, home.macs.rule, turns, *self._shapes(index))
                found = work.terms(self._forms)
            except _Irregular:
                others.append(_exact(index))
                continue
            except (Unsupported, IndexError):
                continue  # it counts for nothing, see `cost.node_macs`
            if found is None:
                others.append(work.direct)
            else:
                terms += found
        return _Sum.of(terms, others)

    def _sum_weights(self) -> tuple[_Sum, _Sum]:
        """Returns the sums of the parameters and of their bytes."""
        coupling = self.units.coupling
        tensors = constants(coupling.model.graph)
        whole = float(cost.parameters(coupling.model)), float(sum(t.nbytes for t in tensors.values()))
        numbers: list[Term] = [(whole[0], ())]
        data: list[Term] = [(whole[1], ())]
        others: tuple[list[Other], list[Other]] = [], []
        seen: set[tuple[str, Axes]] = set()
        met: set[str] = set()
        for use in coupling.uses:
            tensor, size = tensors[use.name], float(np.prod(use.shape))
            counted = float(tensor.dtype.is_floating_point() or len(tensor.shape) > 1)
            each = tensor.nbytes / max(size, 1.0)
            if use.name not in met:
                numbers.append((-counted * size, ()))
                data.append((-float(tensor.nbytes), ()))
            try:
                axes = tuple(self._forms.axis(use.shape, use.arrays, k) for k in range(len(use.shape)))
            except _Irregular:
                if use.name not in met:
                    others[0].append(_size_of(use, counted))
                    others[1].append(_size_of(use, each))
            else:
                if (use.name, axes) not in seen:  # another mask is another tensor: it is copied
                    seen.add((use.name, axes))
                    numbers.append((counted, axes))
                    data.append((each, axes))
            met.add(use.name)
        return _Sum.of(numbers, others[0]), _Sum.of(data, others[1])

    def _shapes(self, index: int) -> tuple[list[Axes | None], list[Axes]]:
        """Returns the shapes of a node's inputs and outputs, as forms."""
        coupling = self.units.coupling
        uses = coupling.uses_of.get(index, {})
        before: list[Axes | None] = []
        for slot, t in enumerate(coupling.seen[index]):
            what = uses.get(slot, t)
            before.append(None if what is None else self._axes(what.shape, what.arrays))
        after = []
        for v in coupling.nodes[index].outputs:
            t = coupling.tensors.get(v.name or "")
            if t is None:
                raise Unsupported("an output's shape is not known")
            after.append(self._axes(t.shape, t.arrays))
        return before, after

    def _axes(self, shape: Shape, arrays: Sequence[Array]) -> Axes:
        return tuple(self._forms.axis(shape, arrays, k) for k in range(len(shape)))


class _Irregular(Exception):
    """A length that is not linear in the counts: it depends on which units go."""


class _Forms:
    """The lengths of axes, each kept once."""

    def __init__(self, units: Units) -> None:
        self.units = units
        self.found: list[Form] = []
        self._number: dict[Form, int] = {}
        self._known: dict[tuple[int, int], Array | None] = {}
        self._sizes = np.array([len(g) for g in units.groups], np.int64)

    def full(self, number: int) -> int:
        """Returns a length before the cut."""
        fixed, terms = self.found[number]
        return fixed + sum(m * int(self._sizes[g]) for g, m in terms)

    def varies(self, number: int) -> bool:
        """Returns whether a length depends on the counts."""
        return bool(self.found[number][1])

    def axis(self, shape: Shape, arrays: Sequence[Array], axis: int) -> int:
        """Returns the number of the form of an axis.

        Raises:
            _Irregular: it has none.
        """
        along = [a for a in arrays if a.shape[axis] > 1]
        positions = [p for p in (self._positions(a, axis) for a in along) if p is not None]
        if any(not np.array_equal(p, positions[0]) for p in positions[1:]):
            raise _Irregular
        form = self._form(positions[0]) if positions else (shape[axis], ())
        if form not in self._number:
            self._number[form] = len(self.found)
            self.found.append(form)
        return self._number[form]

    def _positions(self, a: Array, axis: int) -> Array | None:
        """Returns the unit of each position on an axis; None where none of them can go, since all rows are alike."""
        key = (id(a), axis)
        if key not in self._known:
            rows = np.moveaxis(self.units.of_label[a], axis, 0).reshape(a.shape[axis], -1)
            if (rows == rows[:, :1]).all():
                self._known[key] = rows[:, 0]
            elif (rows == rows[:1]).all():
                self._known[key] = None
            else:
                self._known[key] = self._apart(rows, spans(a)[-1] == axis)
        return self._known[key]

    @staticmethod
    def _apart(rows: Array, last: bool) -> Array | None:
        """Returns the same where each row of a rectangle may lose other positions, along its last axis or another."""
        alike = np.sort(rows, axis=0 if last else 1)
        if not (alike == (alike[:, :1] if last else alike[:1])).all():
            raise _Irregular
        return alike[:, 0] if last else None

    def _form(self, positions: Array) -> Form:
        own = positions[positions >= 0]
        times = np.bincount(own, minlength=1)
        terms = []
        for g in np.unique(self.units.group_of[own]).tolist():
            members = times[self.units.groups[g].units[self.units.groups[g].units < len(times)]]
            if len(members) < self._sizes[g] or (members != members[0]).any():
                raise _Irregular
            terms.append((g, int(members[0])))
        return len(positions) - len(own), tuple(terms)


Other = Callable[[Lengths, Callable[[], Cutting]], float]


@dataclass(frozen=True, eq=False)
class _Sum:
    """A sum of products of lengths, and of what has another form.

    Attributes:
        factors: (n,) factor of each product.
        axes: (n, w) numbers of the lengths that it multiplies; -1 for none.
        others: what is asked for its value.
    """

    factors: Lengths
    axes: Array
    others: tuple[Other, ...]

    @staticmethod
    def of(terms: Sequence[Term], others: Sequence[Other]) -> _Sum:
        """Returns a sum, equal products taken together."""
        together: dict[Axes, float] = {}
        for factor, axes in terms:
            key = tuple(sorted(axes))
            together[key] = together.get(key, 0.0) + factor
        kept = [(factor, axes) for axes, factor in together.items() if factor]
        width = max((len(axes) for _, axes in kept), default=0)
        table = np.full((len(kept), width), -1, np.int64)
        for k, (_, axes) in enumerate(kept):
            table[k, : len(axes)] = axes
        return _Sum(np.array([factor for factor, _ in kept], np.float64), table, tuple(others))

    def at(self, lengths: Lengths, cutting: Callable[[], Cutting]) -> float:
        """Returns the value at these lengths."""
        with_one = np.append(lengths, 1.0)  # what -1 stands for
        total = float(self.factors @ with_one[self.axes].prod(axis=1))
        if self.others:
            made: list[Cutting] = []

            def once() -> Cutting:
                if not made:
                    made.append(cutting())
                return made[0]

            total += sum(other(lengths, once) for other in self.others)
        return float(round(total))


@dataclass(frozen=True, eq=False)
class _Work:
    """The MACs of one node, run so many times, as a function of lengths."""

    node: Node
    rule: MacsRule
    turns: int
    before: list[Axes | None]
    after: list[Axes]

    def at(self, length: Callable[[int], int]) -> int:
        """Returns the MACs where every length is what `length` says."""
        before = [None if axes is None else tuple(map(length, axes)) for axes in self.before]
        return self.turns * self.rule(self.node, before, [tuple(map(length, axes)) for axes in self.after])

    def direct(self, lengths: Lengths, _: Callable[[], Cutting]) -> float:
        """Returns the MACs at these lengths, by the rule."""
        return float(self.at(lambda number: int(lengths[number])))

    def terms(self, forms: _Forms) -> list[Term] | None:
        """Returns the MACs as a polynomial, of degree two at most in each length; None if they are none.

        It is found by asking the rule at lengths 0, 1 and 2, and checked at others.
        """
        named = sorted({number for axes in (*self.before, *self.after) if axes is not None for number in axes})
        variables = [v for v in named if forms.varies(v)]
        if len(variables) > MOST_VARIABLES:
            return None
        fixed = {v: forms.full(v) for v in named}
        values = np.zeros((3,) * len(variables))
        for point in product(range(3), repeat=len(variables)):
            values[point] = self.at((fixed | dict(zip(variables, point, strict=True))).__getitem__)
        for k in range(len(variables)):
            zero, one, two = (values.take(i, k) for i in range(3))
            square = (two - 2 * one + zero) / 2
            values = np.stack([zero, one - zero - square, square], k)
        found = [
            (float(values[powers]), tuple(v for v, p in zip(variables, powers, strict=True) for _ in range(p)))
            for powers in product(range(3), repeat=len(variables))
            if values[powers]
        ]
        for share in (1.0, 0.5, 0.3):
            at = fixed | {v: max(int(fixed[v] * share), 1) for v in variables}
            told = sum(factor * float(np.prod([at[v] for v in axes])) for factor, axes in found)
            if abs(told - self.at(at.__getitem__)) > 1e-6 * max(abs(told), 1.0):
                return None
        return found


def _exact(index: int) -> Other:
    return lambda _, cutting: float(cost.node_macs(cutting().coupling, index, cutting()))


def _size_of(use: Use, each: float) -> Other:
    return lambda _, cutting: each * float(np.prod(cutting().shape_of(use)))


def _sketch(units: Units, counts: Counts) -> Cutting:
    """Returns a cut with these counts, whichever units they are."""
    gone = [group.units[:count] for group, count in zip(units.groups, counts, strict=True)]
    return Cutting(units, np.concatenate([np.zeros(0, np.int64), *gone]))
