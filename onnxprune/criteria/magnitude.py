"""Magnitude of weights: Li et al., Pruning Filters for Efficient ConvNets, 2017 (https://arxiv.org/abs/1608.08710)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxprune.criteria.kinds import Matrix, Scores

_STRIPE = 1 << 18  # bytes of weights that are looked at together: they fit in the cache of a processor


def l1(weights: Matrix, rng: np.random.Generator) -> Scores:
    """Returns the sum of absolute weights of each row."""
    return _sums(weights, np.abs)


def l2(weights: Matrix, rng: np.random.Generator) -> Scores:
    """Returns the Euclidean norm of each row."""
    return np.sqrt(_sums(weights, lambda stripe: np.square(stripe, dtype=np.float64)))


def _sums(weights: Matrix, term: Callable[[Matrix], Matrix]) -> Scores:
    """Returns for each row the sum of a term of its weights, in float64, stripe by stripe as they lie in memory."""
    sums = np.zeros(len(weights))
    columnwise = weights.strides[0] < weights.strides[1]
    length = weights.shape[1] if columnwise else len(weights)
    wide = max(1, _STRIPE * length // max(weights.nbytes, 1))
    for part in (slice(first, first + wide) for first in range(0, length, wide)):
        if columnwise:
            sums += term(weights[:, part]).sum(axis=1, dtype=np.float64)
        else:
            sums[part] = term(weights[part]).sum(axis=1, dtype=np.float64)
    return sums
