"""Intervals of proportions, 95 %.

Source: Wilson, "Probable inference", JASA 22 (1927); Newcombe, "Improved confidence intervals for the difference
between binomial proportions based on paired data", Statistics in Medicine 17 (1998), method 10.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

__all__ = ["paired", "wilson"]

Z = 1.959963984540054
"""Half the width of a two-sided interval of 95 %, in standard deviations."""

Bools = npt.NDArray[np.bool_]


def wilson(hits: int, samples: int) -> tuple[float, float]:
    """Returns the limits of a proportion, 95 %: Wilson's score interval; (0, 1) of no samples."""
    if not samples:
        return 0.0, 1.0
    p, z2 = hits / samples, Z * Z
    middle = p + z2 / (2 * samples)
    half = Z * math.sqrt(p * (1 - p) / samples + z2 / (4 * samples * samples))
    scale = 1 + z2 / samples
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def paired(before: Bools, after: Bools) -> tuple[float, float]:
    """Returns the limits of how much smaller the share of True is in `after`, 95 %: Newcombe's method 10.

    Args:
        before: whether each sample is a hit of the first model.
        after: whether the same sample is a hit of the second.
    """
    n = len(before)
    if not n:
        return -1.0, 1.0
    both = int((before & after).sum())
    lost, won = int(before.sum()) - both, int(after.sum()) - both
    neither = n - both - lost - won
    p1, p2 = (both + lost) / n, (both + won) / n
    l1, u1 = wilson(both + lost, n)
    l2, u2 = wilson(both + won, n)
    phi = _phi(both, lost, won, neither)
    d1, e1, d2, e2 = p1 - l1, u1 - p1, p2 - l2, u2 - p2
    down = math.sqrt(max(d1 * d1 - 2 * phi * d1 * e2 + e2 * e2, 0.0))
    up = math.sqrt(max(e1 * e1 - 2 * phi * e1 * d2 + d2 * d2, 0.0))
    return max(p1 - p2 - down, -1.0), min(p1 - p2 + up, 1.0)


def _phi(both: int, lost: int, won: int, neither: int) -> float:
    """Returns the correlation of two hits, shrunk for small counts as in Newcombe's equation for method 10."""
    scale = (both + lost) * (won + neither) * (both + won) * (lost + neither)
    if not scale:
        return 0.0
    product = float(both * neither - lost * won)
    if product > 0:
        product = max(product - (both + lost + won + neither) / 2, 0.0)
    return product / math.sqrt(scale)
