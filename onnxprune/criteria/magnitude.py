"""Magnitude of weights: Li et al., Pruning Filters for Efficient ConvNets, 2017 (https://arxiv.org/abs/1608.08710)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def l1(weights: npt.NDArray[np.floating], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Returns the sum of absolute weights of each row."""
    return np.abs(weights).sum(axis=1, dtype=np.float64)


def l2(weights: npt.NDArray[np.floating], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Returns the Euclidean norm of each row."""
    return np.sqrt(np.square(weights, dtype=np.float64).sum(axis=1))
