"""Sets of channels that leave the groups of grouped convolutions equally long.

A grouped convolution needs equally many channels in each of its groups, whichever these are. Where a channel shuffle
stands between two of them, no single channel leaves both alike, but sets of channels do: as many from every group of
either neighbour. `balanced` finds such sets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from onnxprune.engine.labels import Array, UnionFind

__all__ = ["balanced"]

Place = tuple[int, int]  # (which array, which row of it)
Type = tuple[tuple[Place, int], ...]  # how many of its labels stand in each row of each array
MOST_STEPS = 400  # of the search for one set, at each size
MOST_TIMES = 4  # a row loses at most so many times what the first class takes of it
MOST_FAILURES = 8  # searches in vain, after which a shuffle counts as one that no small set leaves balanced


def balanced(classes: UnionFind, free: np.ndarray, arrays: Sequence[Array]) -> np.ndarray:
    """Ties free classes that take equally many labels from all rows of each array, and returns what can't be matched.

    Args:
        classes: labels that go together; matched classes are tied in it.
        free: for each label whether it may go.
        arrays: (rows, columns) labels; the rows of each must stay equally long.

    Returns:
        For each label whether its class touches an array and belongs to no such set.
    """
    counts: dict[int, Counter[Place]] = {}
    for k, a in enumerate(arrays):
        for row, labels in enumerate(classes.find(a)):
            for root, n in zip(*np.unique(labels, return_counts=True), strict=True):
                counts.setdefault(int(root), Counter())[k, row] += int(n)
    members: dict[Type, list[int]] = {}
    for root in sorted(counts):
        if free[root]:
            members.setdefault(tuple(sorted(counts[root].items())), []).append(root)
    left = set(counts)
    for kinds in _sets(members, [a.shape for a in arrays]):
        for _ in range(min(len(members[kind]) // n for kind, n in kinds.items())):
            roots = np.array([members[kind].pop(0) for kind, n in kinds.items() for _ in range(n)])
            classes.union(roots, roots[:1])
            left.difference_update(roots.tolist())
    unmatched = np.zeros(len(classes), bool)
    unmatched[sorted(left)] = True
    return unmatched[classes.find(np.arange(len(classes)))]


def _sets(members: dict[Type, list[int]], shapes: Sequence[tuple[int, ...]]) -> Iterator[Counter[Type]]:
    """Yields sets of types that are balanced together, the commonest types first; `members` shrinks meanwhile."""
    failures = 0
    for kind in sorted(members, key=lambda kind: (-len(members[kind]), kind)):
        while members[kind] and failures < MOST_FAILURES:
            left = {other: len(found) for other, found in members.items() if found}
            found = _Search(left, shapes).run(kind)
            if found is None:
                failures += 1
                break
            yield found


class _Search:
    """Adds types to one until every array is balanced, depth first."""

    def __init__(self, left: dict[Type, int], shapes: Sequence[tuple[int, ...]]) -> None:
        self.left, self.shapes = left, shapes
        self.steps = 0
        self.taken: Counter[Type] = Counter()
        self.touched: Counter[int] = Counter()  # how many of the types taken stand in each array
        self.totals = [[0] * rows for rows, *_ in shapes]  # labels taken from each row
        self.at: dict[Place, list[Type]] = {}
        for kind in sorted(left, key=lambda kind: (-left[kind], kind)):
            for place, _ in kind:
                self.at.setdefault(place, []).append(kind)

    def run(self, first: Type) -> Counter[Type] | None:
        """Returns how many of each type, `first` among them, are balanced together; None if no such set is found."""
        least = max(n for _, n in first)
        if any(n > self._may_lose(at, n) for at, n in first):
            return None
        self._take(first, 1)
        for most in range(least, MOST_TIMES * least + 1):  # labels that a row may lose: small sets are found first
            self.steps = 0
            if self._balanced(most):
                return +self.taken
        return None

    def _balanced(self, most: int) -> bool:
        """Takes further types until nothing lacks, or leaves what is taken as it was."""
        self.steps += 1
        place = self._lacking()
        if place is None:
            return True
        for kind in self.at.get(place, ()):
            fits = self.taken[kind] < self.left[kind] and all(
                self.totals[at[0]][at[1]] + n <= self._may_lose(at, most) for at, n in kind
            )
            if fits and self.steps < MOST_STEPS:
                self._take(kind, 1)
                if self._balanced(most):
                    return True
                self._take(kind, -1)
        return False

    def _take(self, kind: Type, times: int) -> None:
        self.taken[kind] += times
        for (array, row), n in kind:
            self.totals[array][row] += times * n
            self.touched[array] += times

    def _may_lose(self, place: Place, most: int) -> int:
        """Returns how many labels a row may lose: at least one stays."""
        return min(most, self.shapes[place[0]][1] - 1)

    def _lacking(self) -> Place | None:
        """Returns the first row that has fewer labels than another one of its array, None where all are alike."""
        for array in sorted(self.touched):
            total = self.totals[array]
            most = max(total)
            if min(total) < most:
                return array, next(row for row, n in enumerate(total) if n < most)
        return None
