"""Redundancy: what of a unit no other unit can stand in for.

Babaeizadeh et al., NoiseOut: A Simple Way to Prune Neural Networks, 2016 (https://arxiv.org/abs/1611.06211), and the
folding of near-duplicates, Wang et al., Forget the Data and Fine-Tuning! Just Fold the Network to Compress, 2025
(https://arxiv.org/abs/2502.10216). The merge itself is left to the refit (`--compensate lstsq`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnxprune.criteria.kinds import Inputs, Scores

RIDGE = 1e-6


def correlation(seen: Inputs) -> Scores:
    """Returns for each unit the energy that its best substitute leaves unexplained: (1 - correlation^2) x variance.

    Units go one by one, the least first, and stand in for nobody after that: of two duplicates one stays. So the
    score is what was left when a unit's turn came, never less than that of units before it.
    """
    assert seen.covariance is not None
    left = unexplained(seen.covariance, seen.unit)
    substitute, alive, scores = left.argmin(axis=1), np.ones(len(left), bool), np.zeros(len(left))
    so_far = 0.0
    for _ in range(len(left)):
        least = np.where(alive, left[np.arange(len(left)), substitute], np.inf)
        u = int(np.argmin(least))
        so_far = scores[u] = max(so_far, float(least[u]))
        alive[u], left[:, u] = False, np.inf
        orphans = substitute == u
        substitute[orphans] = left[orphans].argmin(axis=1)
    return scores[seen.unit]


def unexplained(covariance: Scores, unit: npt.NDArray[np.int64]) -> Scores:
    """Returns (units, units): the variance of u that its best prediction from v leaves; all of it where u = v."""
    count = int(unit.max(initial=-1)) + 1
    own = np.bincount(unit, covariance.diagonal(), count)
    left = np.empty((count, count))
    for v in range(count):
        J = np.flatnonzero(unit == v)
        block = covariance[np.ix_(J, J)]
        level = float(np.trace(block)) / len(J)
        left[:, v] = own
        if level > 0:
            with_v = covariance[:, J]
            solved = np.linalg.solve(block + RIDGE * level * np.eye(len(J)), with_v.T)
            left[:, v] -= np.bincount(unit, np.einsum("cj,jc->c", with_v, solved), count)
        left[v, v] = own[v]
    return np.maximum(left, 0)
