"""Labelled tensors and the verbs that rules speak: tie, unify, join, contract, reduce, take, reshape.

A `Tensor` is what coupling knows of a value: its shape at the traced sizes, its label arrays and the axes whose cut
slots are exactly zero in the masked original. A label array has the tensor's rank, size 1 or full on every axis; an
axis is spanned by at most one array; an index lives if and only if its label lives, and arrays on different axes mean
their product. An axis longer than 1 without an array is *fixed*.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from onnxprune.engine.labels import Array, Labels, Reason

Zero = Literal["all", "any", "first", "none"]

MEETS = "meets a value of which everything stays along this axis"
JOINED = "concatenated with channels that stay"
UNFED = "its input channels all stay"
FOLLOWS = frozenset({MEETS, JOINED, UNFED})
"""Reasons that say what a node met, and not why that stays."""


@dataclass(frozen=True, eq=False)
class Tensor:
    """A value's shape, label arrays and exactly-zero axes."""

    shape: tuple[int, ...]
    arrays: tuple[Array, ...] = ()
    zero: frozenset[int] = frozenset()

    def on(self, axis: int) -> Array | None:
        """Returns the label array that spans `axis`, or None."""
        return next((a for a in self.arrays if a.shape[axis] > 1), None)

    def labelled(self, axis: int) -> bool:
        """Returns whether an array spans `axis`."""
        return self.on(axis) is not None


def spans(array: Array) -> tuple[int, ...]:
    """Returns the axes that a label array spans."""
    return tuple(k for k, n in enumerate(array.shape) if n > 1)


def leaf(labels: Labels, shape: Sequence[int], *, zero: bool) -> Tensor:
    """Returns a tensor with fresh labels on every axis longer than 1; `zero`: these are zero where they are cut."""
    axes = [k for k, n in enumerate(shape) if n > 1]
    arrays = tuple(labels.fresh(*(n if k == axis else 1 for k, n in enumerate(shape))) for axis in axes)
    return Tensor(tuple(shape), arrays, frozenset(axes if zero else ()))


class Verbs:
    """The closed vocabulary of coupling rules, over one set of labels; `reason` says on whose behalf."""

    def __init__(self, labels: Labels, reason: Reason, approximate: bool = False) -> None:
        self.labels = labels
        self.reason = reason
        self.approximate = approximate

    def remember(self, array: Array) -> None:
        """Demands that the living cells of `array` stay a rectangle."""
        self.labels.rectangles.append(array)

    # ---------------------------------------------------------------- freezing and tying
    def freeze(self, labels: Array, why: str = "") -> None:
        """Marks labels as ones that stay; `why` replaces the rule's general reason."""
        self.labels.freeze(labels, replace(self.reason, why=why) if why else self.reason)

    def freeze_all(self, *tensors: Tensor | None, why: str = "") -> None:
        """Ties and freezes nothing but marks every label of these tensors as one that stays."""
        for t in tensors:
            for a in t.arrays if t else ():
                self.freeze(a, why)

    def tidy(self, t: Tensor) -> Tensor:
        """Returns `t` with roots for labels and no array constant along an axis it spans.

        An axis whose labels are all one, spanning nothing else, cannot lose any index: it is frozen and becomes fixed.
        """
        arrays = []
        for a in t.arrays:
            a = self.labels.find(a)
            for axis in spans(a):
                first = a.take([0], axis)
                if np.array_equal(np.broadcast_to(first, a.shape), a):
                    a = first
            if a.size > 1:
                arrays.append(a)
                if len(spans(a)) > 1:
                    self.remember(a)
            else:
                self.freeze(a, "all channels of this axis could only go together")
        zero = frozenset(k for k in t.zero if any(a.shape[k] > 1 for a in arrays))
        return Tensor(t.shape, tuple(arrays), zero)

    def tie(self, t: Tensor, *axes: int, why: str = "") -> Tensor:
        """Makes all indices along each axis live and die together; what else their array spans can still go in rows."""
        for axis in axes:
            a = t.on(axis)
            if a is None:
                continue
            if spans(a) == (axis,):
                self.freeze(a, why)
                t = Tensor(t.shape, tuple(x for x in t.arrays if x is not a), t.zero - {axis})
            else:
                self.labels.union(a, a.take([0], axis))
                t = self.tidy(t)
        return t

    def tie_all(self, t: Tensor, why: str = "") -> Tensor:
        """Ties every axis: nothing of `t` can be cut."""
        return self.tie(t, *range(len(t.shape)), why=why)

    # ---------------------------------------------------------------- combining
    def join(self, shape: Sequence[int], arrays: Sequence[Array], axes: Iterable[int]) -> Array:
        """Returns one array of fresh labels spanning `axes`, from which every given array is derived."""
        axes = sorted(axes)
        full = tuple(n if k in axes else 1 for k, n in enumerate(shape))
        joint = self.labels.fresh(*full)
        for a in arrays:
            self.derive(a, joint)
        self.remember(joint)
        return joint

    def derive(self, parent: Array, child: Array) -> None:
        """Makes labels of `parent` live as long as one cell of `child` over the axes that only `child` spans does."""
        extra = [k for k in range(child.ndim) if child.shape[k] > 1 and parent.shape[k] == 1]
        rest = [k for k in range(child.ndim) if k not in extra]
        parents = np.broadcast_to(parent, tuple(1 if k in extra else n for k, n in enumerate(child.shape)))
        rows = child.transpose(rest + extra).reshape(parents.size, -1)
        self.labels.derive(parents.transpose(rest + extra).ravel(), rows)

    def unify(self, *tensors: Tensor, zero: Zero = "all") -> Tensor:
        """Returns the broadcast result of an elementwise operator: labels that meet are tied.

        Args:
            tensors: operands, broadcast as numpy does.
            zero: whether a cut slot of the result is zero if it is in `all`, `any` or the `first` operand, or never.
        """
        rank = max(len(t.shape) for t in tensors)
        lifted = [lift(self.tidy(t), rank) for t in tensors]
        shape = tuple(int(n) for n in np.broadcast_shapes(*(t.shape for t in lifted)))
        while mixed := [k for k in range(rank) if _meets_fixed(lifted, k)]:  # a tie can fix other axes of its array
            for axis in mixed:
                lifted = [self.tie(t, axis, why=MEETS) for t in lifted]
        merged = self.merge(shape, [a for t in lifted for a in t.arrays])
        return self.tidy(Tensor(shape, tuple(merged), self._zero_axes(lifted, shape, zero)))

    @staticmethod
    def _zero_axes(tensors: Sequence[Tensor], shape: Sequence[int], zero: Zero) -> frozenset[int]:
        if zero == "none":
            return frozenset()
        if zero == "first":
            return tensors[0].zero
        quantifier = any if zero == "any" else all
        return frozenset(k for k in range(len(shape)) if quantifier(k in t.zero for t in tensors))

    def merge(self, shape: Sequence[int], arrays: Sequence[Array]) -> list[Array]:
        """Returns arrays of one index space, one for each connected set of axes: equal spans are united, nested ones
        derived, crossing ones joined."""
        merged = []
        for axes in connected(spans(a) for a in arrays):
            here = [a for a in arrays if axes.issuperset(spans(a))]
            full = [a for a in here if set(spans(a)) == axes]
            for a in full[1:]:
                self.labels.union(full[0], a)
            part = [a for a in here if set(spans(a)) != axes]
            if full:
                for a in part:
                    self.derive(a, full[0])
                merged.append(full[0])
            else:
                merged.append(self.join(shape, part, axes))
        return merged

    # ---------------------------------------------------------------- contraction and reduction
    def contract(self, equation: str, *tensors: Tensor) -> Tensor:
        """Returns the result of a sum of products (an Einsum equation with distinct letters in each term).

        Contracted labels are tied across the operands. The sum is exact where a factor is zero at the cut slots; else
        the contracted axis is tied.
        """
        terms, result = equation.split("->")
        letters = result + "".join(sorted(set(terms) - set(result) - {","}))
        spread = [to_letters(t, term, letters) for t, term in zip(tensors, terms.split(","), strict=True)]
        product = self.unify(*spread, zero="any")
        return self.reduce(product, range(len(result), len(letters)), keepdims=False, exact=True)

    def reduce(self, t: Tensor, axes: Iterable[int], *, keepdims: bool, exact: bool, why: str = "") -> Tensor:
        """Returns the result of a reduction over `axes`; `exact`: zero slots do not change it, so they may be cut."""
        axes = sorted(k % len(t.shape) for k in axes)
        for axis in axes:
            if not (exact and axis in t.zero):
                t = self.tie(t, axis, why=why or "sums over channels that are not zero once they are cut")
        arrays = []
        for a in t.arrays:
            gone = [k for k in axes if a.shape[k] > 1]
            rest = tuple(1 if k in gone else n for k, n in enumerate(a.shape))
            if gone and max(rest) > 1:
                parent = self.labels.fresh(*rest)
                self.derive(parent, a)
                arrays.append(parent)
            elif not gone:
                arrays.append(a)
        out = Tensor(tuple(1 if k in axes else n for k, n in enumerate(t.shape)), tuple(arrays), t.zero - set(axes))
        return self.tidy(out if keepdims else drop_axes(out, axes))

    # ---------------------------------------------------------------- movement
    def take(self, t: Tensor, axis: int, index: Array, *, fill_zero: bool = False) -> Tensor:
        """Returns `t` with `axis` replaced by the axes of `index`; -1 in a one-dimensional index means a new slot.

        Slices, splits, tiles, paddings and gathers with constant indices are all calls of it.
        """
        axis %= len(t.shape)
        arrays = []
        for a in t.arrays:
            if a.shape[axis] > 1:
                moved = a.take(np.maximum(index, 0), axis)
                if (index < 0).any():
                    new = self.labels.fresh(*moved.shape)
                    moved = np.where(_along(index < 0, axis, moved.ndim), new, moved)
                arrays.append(moved)
            else:
                arrays.append(a.reshape(a.shape[:axis] + (1,) * index.ndim + a.shape[axis + 1 :]))
        shift = index.ndim - 1
        zero = {k if k < axis else k + shift for k in t.zero if k != axis}
        if axis in t.zero and (fill_zero or not (index < 0).any()):
            zero |= set(range(axis, axis + index.ndim))
        shape = t.shape[:axis] + index.shape + t.shape[axis + 1 :]
        return self.tidy(Tensor(shape, tuple(arrays), frozenset(zero)))

    def transpose(self, t: Tensor, perm: Sequence[int]) -> Tensor:
        """Returns `t` with its axes in the order of `perm`."""
        perm = list(perm)
        return Tensor(
            tuple(t.shape[k] for k in perm),
            tuple(a.transpose(perm) for a in t.arrays),
            frozenset(perm.index(k) for k in t.zero),
        )

    def reshape(self, t: Tensor, shape: Sequence[int]) -> Tensor:
        """Returns `t` in another shape of as many elements; arrays that fall into one block of axes are joined."""
        shape = tuple(int(n) for n in shape)
        if t.shape == shape:
            return t
        t = self.tidy(t)
        if not t.arrays:
            return Tensor(shape)
        cut = blocks(t.shape, shape)
        for old, _ in cut:
            t = self._one_array(t, set(range(*old)))
        arrays, zero = list(t.arrays), set()
        for old, new in cut:
            touched = [k for k in range(*old) if t.labelled(k)]
            if touched and all(k in t.zero for k in touched):
                zero |= set(range(*new))
        for n, a in enumerate(arrays):
            full = list(a.shape)
            target: list[int] = []
            for old, new in cut:
                if any(a.shape[k] > 1 for k in range(*old)):
                    full[slice(*old)] = t.shape[slice(*old)]
                    target += shape[slice(*new)]
                else:
                    target += [1] * (new[1] - new[0])
            arrays[n] = np.broadcast_to(a, full).reshape(target)
        return self.tidy(Tensor(shape, tuple(arrays), frozenset(zero)))

    def _one_array(self, t: Tensor, axes: set[int]) -> Tensor:
        """Returns `t` with the arrays that span any of `axes` joined into one."""
        inside = [a for a in t.arrays if axes.intersection(spans(a))]
        if len(inside) < 2:
            return t
        joint = self.join(t.shape, inside, {k for a in inside for k in spans(a)})
        return Tensor(t.shape, (*(a for a in t.arrays if not any(a is x for x in inside)), joint), t.zero)

    def concat(self, tensors: Sequence[Tensor], axis: int) -> Tensor:
        """Returns the concatenation along `axis`; the other axes are unified."""
        axis %= len(tensors[0].shape)
        tensors = [self.tidy(t) for t in tensors]
        rows = self._rows(tensors, axis)
        while not all(t.labelled(k) for t in tensors for k in rows):
            for k in rows:
                if not all(t.labelled(k) for t in tensors):
                    tensors = [self.tie(t, k, why=MEETS) for t in tensors]
            rows = self._rows(tensors, axis)
        touched = {axis, *rows}
        zero = {k for k in touched if all(k in t.zero or not t.labelled(k) for t in tensors)}
        others = [Tensor(t.shape, tuple(a for a in t.arrays if not touched & {*spans(a)}), t.zero) for t in tensors]
        other = self.unify(*(_shrink(t, touched) for t in others))
        shape = list(other.shape)
        for k in rows:
            shape[k] = tensors[0].shape[k]
        shape[axis] = sum(t.shape[axis] for t in tensors)
        if not any(t.labelled(axis) for t in tensors):
            return Tensor(tuple(shape), other.arrays, other.zero)
        joined = np.concatenate([self._slots(t, axis, touched) for t in tensors], axis)
        return self.tidy(Tensor(tuple(shape), (*other.arrays, joined), other.zero | zero))

    @staticmethod
    def _rows(tensors: Sequence[Tensor], axis: int) -> set[int]:
        """Returns the axes that are spanned together with `axis`, directly or through another array."""
        if not any(t.labelled(axis) for t in tensors):
            return set()
        groups = connected([{axis}, *(spans(a) for t in tensors for a in t.arrays)])
        return next(g for g in groups if axis in g) - {axis}

    def _slots(self, t: Tensor, axis: int, touched: set[int]) -> Array:
        """Returns one array of `t` over all of `touched`, with frozen labels where `axis` is fixed."""
        inside = [a for a in t.arrays if touched & {*spans(a)}]
        if not t.labelled(axis):
            label = self.labels.fresh(*(n if k == axis else 1 for k, n in enumerate(t.shape)))
            self.freeze(label, JOINED)
            inside.append(label)
        return inside[0] if len(inside) == 1 else self.join(t.shape, inside, touched)


def lift(t: Tensor, rank: int) -> Tensor:
    """Returns `t` with leading axes of size 1 up to `rank`."""
    more = rank - len(t.shape)
    if not more:
        return t
    ones = (1,) * more
    return Tensor(
        ones + t.shape, tuple(a.reshape(ones + a.shape) for a in t.arrays), frozenset(k + more for k in t.zero)
    )


def drop_axes(t: Tensor, axes: Iterable[int]) -> Tensor:
    """Returns `t` without `axes`, none of which is spanned."""
    gone = set(axes)
    keep = [k for k in range(len(t.shape)) if k not in gone]
    return Tensor(
        tuple(t.shape[k] for k in keep),
        tuple(a.reshape([a.shape[k] for k in keep]) for a in t.arrays),
        frozenset(keep.index(k) for k in t.zero if k in keep),
    )


def insert_axes(t: Tensor, axes: Iterable[int]) -> Tensor:
    """Returns `t` with axes of size 1 at the given places of the result."""
    axes = sorted(axes)
    keep = [k for k in range(len(t.shape) + len(axes)) if k not in axes]

    def expand(shape: tuple[int, ...]) -> tuple[int, ...]:
        sizes = iter(shape)
        return tuple(1 if k in axes else next(sizes) for k in range(len(shape) + len(axes)))

    return Tensor(
        expand(t.shape), tuple(a.reshape(expand(a.shape)) for a in t.arrays), frozenset(keep[k] for k in t.zero)
    )


def to_letters(t: Tensor, term: str, letters: str) -> Tensor:
    """Returns `t`, whose axes are named by `term`, with an axis for each of `letters`, size 1 where it has none."""
    order = sorted(range(len(term)), key=lambda k: letters.index(term[k]))
    moved = Tensor(
        tuple(t.shape[k] for k in order),
        tuple(a.transpose(order) for a in t.arrays),
        frozenset(order.index(k) for k in t.zero),
    )
    return insert_axes(moved, [k for k, letter in enumerate(letters) if letter not in term])


def connected(sets: Iterable[Iterable[int]]) -> list[set[int]]:
    """Returns the connected components of sets of axes that share members, smallest axis first."""
    components: list[set[int]] = []
    for s in map(set, sets):
        touching = [c for c in components if c & s]
        components = [c for c in components if not c & s] + [s.union(*touching)]
    return sorted(components, key=min)


def blocks(old: Sequence[int], new: Sequence[int]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Returns the minimal pairs of axis ranges (of `old`, of `new`) that hold equally many elements each."""
    edges_old, edges_new = (np.cumprod([1, *s]).tolist() for s in (old, new))
    found, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        a, b = min(i + 1, len(old)), min(j + 1, len(new))
        while edges_old[a] != edges_new[b]:
            if edges_old[a] < edges_new[b]:
                a += 1
            else:
                b += 1
        found.append(((i, a), (j, b)))
        i, j = a, b
    return found


def _meets_fixed(tensors: Sequence[Tensor], axis: int) -> bool:
    """Returns whether an axis has labels in some of the tensors and is fixed in others."""
    labelled = [t.labelled(axis) for t in tensors if t.shape[axis] > 1]
    return any(labelled) and not all(labelled)


def _along(vector: np.ndarray, axis: int, rank: int) -> np.ndarray:
    return vector.reshape([-1 if k == axis else 1 for k in range(rank)])


def _shrink(t: Tensor, axes: set[int]) -> Tensor:
    """Returns `t` with size 1 on `axes`, which no array of it spans."""
    return Tensor(tuple(1 if k in axes else n for k, n in enumerate(t.shape)), t.arrays, t.zero - axes)
