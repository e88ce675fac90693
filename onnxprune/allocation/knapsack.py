"""One count for each group under a budget on all of them together: least total loss, by Lagrangian bisection.

The budget is not a sum over groups: a cut shrinks what produces and what consumes. So the cost of each group's counts
is read with all others as they stand, the knapsack of that table is solved, and the table is read again there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Counts = tuple[int, ...]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Excess = Callable[[Counts], float]

ROUNDS = 5  # of reading the table of costs
READINGS = 9  # counts at which a group's cost is read; between them it is a line
HALVINGS = 40
EXCHANGES = 2000  # that are tried in a round


def solve(allowed: Sequence[Ints], losses: Sequence[Floats], excess: Excess) -> Counts | None:
    """Returns the counts of least total loss with no excess, None where even the largest ones exceed.

    Args:
        allowed: for each group the counts it may have, rising from 0.
        losses: for each group the loss at each of them, rising from 0.
        excess: how far counts are over the budget, relative to it; at most 0 within. It falls as counts grow.
    """
    most = tuple(int(a[-1]) for a in allowed)
    if excess(most) > 0:
        return None
    free = (0,) * len(allowed)
    if excess(free) <= 0:
        return free

    def loss(counts: Counts) -> float:
        return float(sum(own[np.searchsorted(a, c)] for a, own, c in zip(allowed, losses, counts, strict=True)))

    best = most
    for start in (tuple(int(a[len(a) // 2]) for a in allowed), free):
        current = start
        for _ in range(ROUNDS):
            costs = _costs(allowed, excess, current)
            found = _bisect(allowed, losses, costs, excess, most)
            found = _exchanged(allowed, losses, excess, _filled(allowed, losses, costs, excess, found))
            if loss(found) < loss(best) - 1e-12:
                best = found
            if found == current:
                break
            current = found
    return best


def _costs(allowed: Sequence[Ints], excess: Excess, current: Counts) -> list[Floats]:
    """Returns for each group the excess at each of its counts, all other groups as they stand."""
    tables = []
    for g, counts in enumerate(allowed):
        places = np.unique(np.linspace(0, len(counts) - 1, min(READINGS, len(counts))).round().astype(np.int64))
        read = [excess((*current[:g], int(c), *current[g + 1 :])) for c in counts[places]] if len(counts) > 1 else [0.0]
        tables.append(np.interp(counts, counts[places], np.minimum.accumulate(read)))
    return tables


def _bisect(
    allowed: Sequence[Ints], losses: Sequence[Floats], costs: Sequence[Floats], excess: Excess, most: Counts
) -> Counts:
    """Returns the counts of the smallest price of cost that meets the budget."""

    def at(price: float) -> Counts:
        return tuple(int(a[np.argmin(own + price * c)]) for a, own, c in zip(allowed, losses, costs, strict=True))

    low, high, best = -30.0, 30.0, most
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        counts = at(float(np.exp(middle)))
        if excess(counts) <= 0:
            high, best = middle, counts
        else:
            low = middle
    return best


def _filled(
    allowed: Sequence[Ints], losses: Sequence[Floats], costs: Sequence[Floats], excess: Excess, counts: Counts
) -> Counts:
    """Returns the counts after units were given back while the budget holds, most loss for their cost first."""
    places = [int(np.searchsorted(a, c)) for a, c in zip(allowed, counts, strict=True)]
    step = max((len(a) for a in allowed), default=1)
    while step:
        gains = []
        for g, k in enumerate(places):
            if k >= step:
                paid = max(float(costs[g][k - step] - costs[g][k]), 1e-12)
                gains.append((-(losses[g][k] - losses[g][k - step]) / paid, g))
        for _, g in sorted(gains):
            places[g] -= step
            if excess(tuple(int(a[k]) for a, k in zip(allowed, places, strict=True))) <= 0:
                break
            places[g] += step
        else:
            step //= 2
    return tuple(int(a[k]) for a, k in zip(allowed, places, strict=True))


def _exchanged(allowed: Sequence[Ints], losses: Sequence[Floats], excess: Excess, counts: Counts) -> Counts:
    """Returns the counts after groups gave a unit back for one of another group, as long as that lowers the loss."""
    places = [int(np.searchsorted(a, c)) for a, c in zip(allowed, counts, strict=True)]
    tries = EXCHANGES

    def steps(by: int) -> list[tuple[float, int]]:
        """Returns what each group's loss changes by if its place moves, least first."""
        moved = ((k + by, own, g) for g, (k, own) in enumerate(zip(places, losses, strict=True)))
        return sorted((float(own[k] - own[k - by]), g) for k, own, g in moved if 0 <= k < len(own))

    def improve() -> bool:
        nonlocal tries
        for saved, g in steps(-1):
            for paid, h in steps(1):
                if saved + paid >= -1e-12 or not tries:
                    break
                if g == h:
                    continue
                tries -= 1
                places[g] -= 1
                places[h] += 1
                if excess(tuple(int(a[k]) for a, k in zip(allowed, places, strict=True))) <= 0:
                    return True
                places[g] += 1
                places[h] -= 1
        return False

    while improve():
        pass
    return tuple(int(a[k]) for a, k in zip(allowed, places, strict=True))
