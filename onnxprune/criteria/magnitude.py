"""Magnitude of weights: Li et al., Pruning Filters for Efficient ConvNets, 2017 (https://arxiv.org/abs/1608.08710)."""

from __future__ import annotations

import numpy as np

from onnxprune.criteria.kinds import Matrix, Scores


def l1(weights: Matrix, rng: np.random.Generator) -> Scores:
    """Returns the sum of absolute weights of each row."""
    sums: Scores = np.abs(weights).sum(axis=1, dtype=np.float64)
    return sums


def l2(weights: Matrix, rng: np.random.Generator) -> Scores:
    """Returns the Euclidean norm of each row."""
    norms: Scores = np.sqrt(np.square(weights, dtype=np.float64).sum(axis=1))
    return norms
