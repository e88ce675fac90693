"""Layer-adaptive magnitude: Lee et al., Layer-adaptive Sparsity for the Magnitude-based Pruning, 2021
(https://arxiv.org/abs/2010.07611), with rows in the place of single weights.
"""

from __future__ import annotations

import numpy as np

from onnxprune.criteria.kinds import Matrix, Scores


def lamp(weights: Matrix, rng: np.random.Generator) -> Scores:
    """Returns the energy of each row over that of all rows with at least as much.

    Within a layer the order is that of the energy; across layers it tells what share of the rest would go.
    """
    energy: Scores = np.square(weights, dtype=np.float64).sum(axis=1)
    order = np.argsort(energy)
    rest = np.cumsum(energy[order][::-1])[::-1]
    first = np.searchsorted(energy[order], energy)  # equals share the sum from the first of them on
    return energy / np.maximum(rest[first], np.finfo(np.float64).tiny)
