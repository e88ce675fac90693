"""Downhill along slopes, with what earlier steps told of the curvature, for as long as held-out samples gain by it.

Nocedal, Updating quasi-Newton matrices with limited storage, 1980.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from onnxprune.refit.moments import Floats

__all__ = ["Weights", "descend"]

FIRST = 1 / 3  # of the first step, which each part's scale takes for its own
TRIES = 4  # of shorter steps, where one leads up
SHORTEST = 1e-2  # of the one before
WORTH = 0.005  # of the error on what is held out, that a step takes away at least

Weights = list[Floats]


def descend(
    start: Weights,
    look: Callable[[Weights], tuple[float, Weights]],
    held: Callable[[Weights], float],
    scaled: Callable[[Weights], Weights],
    steps: int,
) -> Weights | None:
    """Returns weights with less error on what is held out than those at the start; None where there are none.

    Args:
        start: arrays of any shapes.
        look: tells the error of weights on what they are fitted to, and its slope.
        held: tells their error on what is held out.
        scaled: makes the step that a slope asks for, as far as curvature is known beforehand.
        steps: that are taken at most.
    """
    best, least = None, held(start)
    w, (error, slope) = start, look(start)
    seen = list[tuple[Weights, Weights]]()
    for _ in range(steps):
        way = _way(slope, seen, scaled)
        down, length = _dot(slope, way), 1.0 if seen else FIRST
        if not down > 0:
            break
        for _ in range(TRIES):
            new = [a - length * b for a, b in zip(w, way, strict=True)]
            lower, ahead = look(new)
            if lower < error:
                break
            length *= max(SHORTEST, down * length / (2 * (lower - error + down * length)))  # a parabola's lowest point
        else:
            break
        step, bend = _less(new, w), _less(ahead, slope)
        if _dot(step, bend) > 0:
            seen.append((step, bend))
        w, error, slope = new, lower, ahead
        if not (left := held(w)) <= (1 - WORTH) * least:
            break
        best, least = w, left
    return best


def _way(slope: Weights, seen: Sequence[tuple[Weights, Weights]], scaled: Callable[[Weights], Weights]) -> Weights:
    """Returns where to go against, as steps and how the slope changed along them tell."""
    way, parts = slope, list[float]()
    for step, bend in reversed(seen):
        parts.append(_dot(step, way) / _dot(step, bend))
        way = [a - parts[-1] * b for a, b in zip(way, bend, strict=True)]
    way = scaled(way)
    if seen:
        step, bend = seen[-1]
        length = _dot(step, bend) / _dot(bend, scaled(bend))
        way = [length * a for a in way]
    for (step, bend), part in zip(seen, reversed(parts), strict=True):
        by = part - _dot(bend, way) / _dot(step, bend)
        way = [a + by * b for a, b in zip(way, step, strict=True)]
    return way


def _less(a: Weights, b: Weights) -> Weights:
    return [x - y for x, y in zip(a, b, strict=True)]


def _dot(a: Weights, b: Weights) -> float:
    return float(sum(np.vdot(x, y) for x, y in zip(a, b, strict=True)))
