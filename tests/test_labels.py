"""Union-find, derivations and their fixpoint against naive implementations."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from onnxprune.engine.labels import Labels, Reason, UnionFind, settle

SIZE = 7
INDEX = st.integers(0, SIZE - 1)
PAIRS = st.lists(st.tuples(INDEX, INDEX), max_size=8)
DERIVATIONS = st.lists(st.tuples(INDEX, st.lists(INDEX, min_size=1, max_size=3)), max_size=4)
FROZEN = st.lists(st.lists(INDEX, min_size=1, max_size=2), max_size=2)


def naive_roots(pairs: list[tuple[int, int]]) -> list[int]:
    """Returns the smallest member of every class, by repeated replacement."""
    root = list(range(SIZE))
    for a, b in pairs * SIZE:
        root = [min(root[a], root[b]) if r in (root[a], root[b]) else r for r in root]
    return root


def rows(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    array = np.array(pairs, np.int64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


@seed(1)
@settings(max_examples=200, deadline=None)
@given(PAIRS, PAIRS)
def test_union_finds_the_smallest_member(first: list[tuple[int, int]], second: list[tuple[int, int]]) -> None:
    classes = UnionFind()
    labels = classes.grow(SIZE)
    classes.union(*rows(first))
    other = classes.copy()
    classes.union(*rows(second))
    assert classes.find(labels).tolist() == naive_roots(first + second)
    assert other.find(labels).tolist() == naive_roots(first)


def test_union_broadcasts() -> None:
    classes = UnionFind()
    a, b = classes.grow(6).reshape(2, 3), classes.grow(3).reshape(1, 3)
    classes.union(a, b)
    assert classes.find(a).tolist() == [[0, 1, 2], [0, 1, 2]]
    assert classes.find(b).tolist() == [[0, 1, 2]]


def test_new_labels_are_alone_and_old_ones_stay() -> None:
    classes = UnionFind()
    first = classes.grow(2000)
    classes.union(first[:1000], first[1000:])
    more = classes.grow(5000)
    assert len(classes) == 7000
    assert classes.find(more).tolist() == list(range(2000, 7000))
    assert classes.find(first).tolist() == [*range(1000), *range(1000)]


def made(
    pairs: list[tuple[int, int]], derivations: list[tuple[int, list[int]]], frozen: list[list[int]]
) -> tuple[Labels, np.ndarray]:
    """Returns labels under these constraints, and their settled reasons."""
    labels = Labels()
    labels.fresh(SIZE)
    labels.union(*rows(pairs))
    for parent, children in derivations:
        labels.derive(np.array([parent]), np.array([children]))
    for k, group in enumerate(frozen):
        labels.freeze(np.array(group), Reason(str(k), "Op", "a reason"))
    return labels, settle(labels, labels.classes)


@seed(2)
@settings(max_examples=200, deadline=None)
@given(PAIRS, DERIVATIONS, FROZEN)
def test_settled_labels_hold_in_every_solution(
    pairs: list[tuple[int, int]], derivations: list[tuple[int, list[int]]], frozen: list[list[int]]
) -> None:
    """What is tied lives and dies together in every assignment that meets the constraints; what is frozen lives."""
    labels, reasons = made(pairs, derivations, frozen)
    roots = labels.find(np.arange(SIZE))
    for alive in product([False, True], repeat=SIZE):
        meets = (
            all(alive[a] == alive[b] for a, b in pairs)
            and all(alive[p] == any(alive[c] for c in cs) for p, cs in derivations)
            and all(alive[k] for group in frozen for k in group)
        )
        if meets:
            assert all(alive[k] == alive[roots[k]] for k in range(SIZE))
            assert all(alive[k] for k in range(SIZE) if reasons[roots[k]] >= 0)


def naive_settle(
    pairs: list[tuple[int, int]], derivations: list[tuple[int, list[int]]], frozen: list[list[int]]
) -> tuple[list[int], set[int]]:
    """Returns roots and frozen roots: single children tied, frozen children freezing their parents."""
    pairs = list(pairs)
    while True:
        root = naive_roots(pairs)
        more = [(p, cs[0]) for p, cs in derivations if len({root[c] for c in cs}) == 1 and root[p] != root[cs[0]]]
        if not more:
            break
        pairs += more
    cold = {root[k] for group in frozen for k in group}
    for _ in range(SIZE):
        cold |= {root[p] for p, cs in derivations if cold & {root[c] for c in cs}}
    return root, cold


@seed(3)
@settings(max_examples=200, deadline=None)
@given(PAIRS, DERIVATIONS, FROZEN)
def test_settle_finds_the_naive_fixpoint(
    pairs: list[tuple[int, int]], derivations: list[tuple[int, list[int]]], frozen: list[list[int]]
) -> None:
    labels, reasons = made(pairs, derivations, frozen)
    root, cold = naive_settle(pairs, derivations, frozen)
    assert labels.find(np.arange(SIZE)).tolist() == root
    assert {k for k in set(root) if reasons[k] >= 0} == cold


def test_the_first_reason_is_kept() -> None:
    labels, reasons = made([(0, 1)], [], [[1], [0]])
    assert str(labels.reasons[reasons[0]]) == "Op (0): a reason"
    assert reasons[0] == 0


def test_freezing_nothing_gives_no_reason() -> None:
    labels = Labels()
    labels.freeze(labels.fresh(0), Reason("n", "Op", "why"))
    assert labels.reasons == []
