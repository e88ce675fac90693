"""Verbs on labels agree with numpy on what lives: the mask of a moved tensor is the moved mask."""

from __future__ import annotations

import numpy as np
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from onnxprune.engine.labels import Labels, Reason, settle
from onnxprune.engine.tensors import Tensor, Verbs, blocks, connected, drop_axes, insert_axes, lift, spans, to_letters

SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)
Shape = tuple[int, ...]


class World:
    """Labels with a tensor, and which of them live."""

    def __init__(self, number: int) -> None:
        self.rng = np.random.default_rng(number)
        self.labels = Labels()
        self.verbs = Verbs(self.labels, Reason("node", "Op", "why"))
        self.arrays: list[np.ndarray] = []

    def tensor(self, shape: Shape) -> Tensor:
        """Returns a tensor whose axes longer than 1 are fixed, labelled alone, or labelled together."""
        groups: dict[int, list[int]] = {}
        for axis, n in enumerate(shape):
            if n > 1:
                groups.setdefault(int(self.rng.integers(-1, 3)), []).append(axis)
        arrays = []
        for key, axes in groups.items():
            if key >= 0:
                arrays.append(self.labels.fresh(*(n if k in axes else 1 for k, n in enumerate(shape))))
                if self.rng.random() < 0.3:
                    flat = arrays[-1].reshape(-1)
                    self.labels.union(self.rng.choice(flat, 2), self.rng.choice(flat, 2))
        zero = frozenset(k for a in arrays if self.rng.random() < 0.7 for k in spans(a))
        self.arrays += arrays
        return Tensor(shape, tuple(arrays), zero)

    def settle(self) -> None:
        """Kills random slots with all that must go along, as long as nothing frozen dies and rectangles stay ones."""
        reasons = settle(self.labels, self.labels.classes)
        self.alive = np.ones(len(self.labels.classes), bool)
        arrays = [*self.arrays, *self.labels.rectangles]
        for _ in range(6 if arrays else 0):
            a = arrays[int(self.rng.integers(len(arrays)))]
            axis = int(self.rng.choice(spans(a)))
            before = self.alive.copy()
            self.alive[self.labels.find(a.take(int(self.rng.integers(a.shape[axis])), axis))] = False
            self.spread()
            if (~self.alive & (reasons >= 0)).any() or not all(map(self.is_rectangle, arrays)):
                self.alive = before

    def spread(self) -> None:
        """Kills parents without living children, and children of dead parents, until nothing changes."""
        count = -1
        while count != (count := int(self.alive.sum())):
            for d in self.labels.derivations:
                parents, children = self.labels.find(d.parents), self.labels.find(d.children)
                self.alive[children[~self.alive[parents]]] = False
                self.alive[parents[~self.alive[children].any(axis=1)]] = False

    def is_rectangle(self, a: np.ndarray) -> bool:
        """Returns whether some cells live, and they are the product of the slots in which any does."""
        alive = self.alive[self.labels.find(a)]
        slots = [alive.any(axis=tuple(j for j in range(a.ndim) if j != k), keepdims=True) for k in range(a.ndim)]
        product = np.ones((1,) * a.ndim, bool)
        for s in slots:
            product = product & s
        return bool(alive.any() and (alive == product).all())

    def mask(self, t: Tensor) -> np.ndarray:
        """Returns which cells of a tensor live."""
        mask = np.ones(t.shape, bool)
        for a in t.arrays:
            mask = mask & self.alive[self.labels.find(a)]
        return mask

    def zeros(self, t: Tensor) -> np.ndarray:
        """Returns cells that are said to be zero: dead in an array all of whose axes are zero when cut."""
        zeros = np.zeros(t.shape, bool)
        for a in t.arrays:
            if t.zero.issuperset(spans(a)):
                zeros = zeros | ~self.alive[self.labels.find(a)]
        return zeros


def refactored(shape: Shape, rng: np.random.Generator) -> Shape:
    """Returns another shape of as many elements."""
    primes = [p for n in shape for p in {1: [], 2: [2], 3: [3], 4: [2, 2]}[n]]
    if rng.random() < 0.5:
        primes = [int(p) for p in rng.permutation(primes)]
    new = [1]
    for p in primes:
        if rng.random() < 0.5:
            new[-1] *= p
        else:
            new.append(p)
    return tuple(new)


@seed(1)
@settings(max_examples=300, deadline=None)
@given(SHAPES, st.integers(0, 10**6))
def test_reshape(shape: Shape, number: int) -> None:
    w = World(number)
    t = w.tensor(shape)
    target = refactored(shape, w.rng)
    out = w.verbs.reshape(t, target)
    w.settle()
    assert out.shape == target
    np.testing.assert_array_equal(w.mask(out), w.mask(t).reshape(target))
    assert not (w.zeros(out) & ~w.zeros(t).reshape(target)).any()


@seed(2)
@settings(max_examples=100, deadline=None)
@given(SHAPES, st.integers(0, 10**6))
def test_transpose(shape: Shape, number: int) -> None:
    w = World(number)
    t = w.tensor(shape)
    perm = [int(k) for k in w.rng.permutation(len(shape))]
    out = w.verbs.transpose(t, perm)
    w.settle()
    np.testing.assert_array_equal(w.mask(out), w.mask(t).transpose(perm))
    np.testing.assert_array_equal(w.zeros(out), w.zeros(t).transpose(perm))


@seed(3)
@settings(max_examples=300, deadline=None)
@given(SHAPES, st.integers(0, 10**6))
def test_take(shape: Shape, number: int) -> None:
    """Slices, splits, tiles, paddings and gathers: index -1 is a slot of its own."""
    w = World(number)
    t = w.tensor(shape)
    axis = int(w.rng.integers(len(shape)))
    new = w.rng.random() < 0.4
    many = (int(w.rng.integers(1, 6)),) if new or w.rng.random() < 0.7 else (2, 3)
    index = w.rng.integers(-1 if new else 0, shape[axis], many)
    if t.on(axis) is None:
        index = np.maximum(index, 0)
    out = w.verbs.take(t, axis, index)
    w.settle()
    old = (index >= 0).reshape(*(1,) * axis, *many, *(1,) * (len(shape) - axis - 1))
    moved = w.mask(t).take(np.maximum(index, 0), axis)
    assert out.shape == moved.shape
    np.testing.assert_array_equal(w.mask(out) & old, moved & old)
    assert not (w.zeros(out) & old & ~w.zeros(t).take(np.maximum(index, 0), axis)).any()


@seed(4)
@settings(max_examples=300, deadline=None)
@given(SHAPES, st.integers(0, 10**6))
def test_concat(shape: Shape, number: int) -> None:
    w = World(number)
    axis = int(w.rng.integers(len(shape)))
    parts = []
    for _ in range(int(w.rng.integers(2, 4))):
        n = int(w.rng.integers(1, 4))
        parts.append(w.tensor(tuple(n if k == axis else m for k, m in enumerate(shape))))
    out = w.verbs.concat(parts, axis)
    w.settle()
    np.testing.assert_array_equal(w.mask(out), np.concatenate([w.mask(t) for t in parts], axis))


@seed(5)
@settings(max_examples=100, deadline=None)
@given(SHAPES, st.integers(0, 10**6))
def test_axes_of_size_one(shape: Shape, number: int) -> None:
    w = World(number)
    t = w.tensor(shape)
    rank = len(shape) + 2
    axes = sorted(int(k) for k in w.rng.permutation(rank)[:2])
    wide = insert_axes(t, axes)
    w.settle()
    np.testing.assert_array_equal(w.mask(wide), np.expand_dims(w.mask(t), tuple(axes)))
    back = drop_axes(wide, axes)
    assert (back.shape, back.zero) == (t.shape, t.zero)
    np.testing.assert_array_equal(w.mask(back), w.mask(t))
    assert lift(t, rank).shape == (1, 1, *shape)
    np.testing.assert_array_equal(w.mask(lift(t, rank)), w.mask(t)[None, None])


@seed(6)
@settings(max_examples=100, deadline=None)
@given(SHAPES, st.integers(0, 10**6))
def test_letters(shape: Shape, number: int) -> None:
    w = World(number)
    t = w.tensor(shape)
    term = "".join(str(c) for c in w.rng.permutation(list("abcdef"))[: len(shape)])
    out = to_letters(t, term, "abcdef")
    w.settle()
    np.testing.assert_array_equal(
        w.mask(out), np.einsum(f"{term}->{''.join(sorted(term))}", w.mask(t)).reshape(out.shape)
    )


@seed(7)
@settings(max_examples=300, deadline=None)
@given(SHAPES, st.integers(0, 10**6))
def test_blocks_are_minimal_and_cover_all_axes(shape: Shape, number: int) -> None:
    target = refactored(shape, np.random.default_rng(number))
    found = blocks(shape, target)
    assert [k for (a, b), _ in found for k in range(a, b)] == list(range(len(shape)))
    assert [k for _, (a, b) in found for k in range(a, b)] == list(range(len(target)))
    for (a, b), (c, d) in found:
        assert np.prod(shape[a:b]) == np.prod(target[c:d])
        inner = {int(np.prod(shape[a:k])) for k in range(a + 1, b)} & {
            int(np.prod(target[c:k])) for k in range(c + 1, d)
        }
        assert not inner


@seed(8)
@settings(max_examples=200, deadline=None)
@given(st.lists(st.sets(st.integers(0, 6), min_size=1, max_size=3), max_size=6))
def test_connected_sets(sets: list[set[int]]) -> None:
    found = connected(sets)
    assert sorted(k for c in found for k in c) == sorted(set().union(*sets))
    assert all(any(s <= c for c in found) for s in sets)
    for c in found:
        inside = [s for s in sets if s <= c]
        reached = set(inside[0])
        for _ in inside:
            reached |= {k for s in inside if s & reached for k in s}
        assert reached == c


def test_an_axis_that_lives_and_dies_as_one_is_frozen() -> None:
    w = World(0)
    a = w.labels.fresh(1, 4)
    w.labels.union(a, a[:, :1])
    out = w.verbs.tidy(Tensor((2, 4), (a,), frozenset({1})))
    assert out.arrays == ()
    assert out.zero == frozenset()
    assert settle(w.labels, w.labels.classes)[0] == 0


def test_a_tied_axis_leaves_whole_rows() -> None:
    w = World(0)
    a = w.labels.fresh(2, 3)
    out = w.verbs.tie(Tensor((2, 3), (a,)), 1)
    assert [x.shape for x in out.arrays] == [(2, 1)]
    assert not w.labels.reasons
    assert w.verbs.tie(out, 0).arrays == ()
    assert len(w.labels.reasons) == 1


def test_nested_spans_are_derived_and_crossing_ones_are_joined() -> None:
    w = World(0)
    row, cell = w.labels.fresh(3, 1), w.labels.fresh(3, 4)
    nested = w.verbs.unify(Tensor((3, 1), (row,)), Tensor((3, 4), (cell,)))
    assert [spans(a) for a in nested.arrays] == [(0, 1)]
    assert [d.children.shape for d in w.labels.derivations] == [(3, 4)]
    one, other = w.labels.fresh(3, 4, 1), w.labels.fresh(1, 4, 2)
    crossing = w.verbs.unify(Tensor((3, 4, 1), (one,)), Tensor((1, 4, 2), (other,)))
    assert [spans(a) for a in crossing.arrays] == [(0, 1, 2)]


def test_a_fixed_axis_freezes_what_it_meets() -> None:
    w = World(0)
    out = w.verbs.unify(Tensor((2, 3), (w.labels.fresh(1, 3),)), Tensor((2, 3)))
    assert out.arrays == ()
    assert w.labels.reasons[0].why == "meets a value of which everything stays along this axis"


def test_a_sum_over_slots_that_are_not_zero_ties_them() -> None:
    for zero, reasons in ((frozenset({1}), 0), (frozenset[int](), 1)):
        w = World(0)
        w.verbs.reduce(Tensor((2, 3), (w.labels.fresh(1, 3),), zero), [1], keepdims=False, exact=True)
        assert len(w.labels.reasons) == reasons
