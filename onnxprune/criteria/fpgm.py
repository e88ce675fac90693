"""Distance from the geometric median: He et al., Filter Pruning via Geometric Median for Deep Convolutional Neural
Networks Acceleration, 2019 (https://arxiv.org/abs/1811.00250).
"""

from __future__ import annotations

import numpy as np

from onnxprune.criteria.kinds import Matrix, Scores


def fpgm(weights: Matrix, rng: np.random.Generator) -> Scores:
    """Returns the sum of each row's distances to all others: the least are in the middle, and others can replace them.

    A row of zeros is not special here.
    """
    x = weights.astype(np.float64) - weights.mean(axis=0, dtype=np.float64)
    energy = np.square(x).sum(axis=1)
    squared = energy[:, None] + energy - 2 * x @ x.T
    distances: Scores = np.sqrt(np.maximum(squared, 0)).sum(axis=1)
    return distances
