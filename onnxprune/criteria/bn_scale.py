"""Scale of the normalisation behind a channel: Liu et al., Learning Efficient Convolutional Networks through Network
Slimming, 2017 (https://arxiv.org/abs/1708.06519).
"""

from __future__ import annotations

import numpy as np

from onnxprune.criteria.kinds import Matrix, Scores


def bn_scale(scales: Matrix, rng: np.random.Generator) -> Scores:
    """Returns the absolute scale of each row: the deviation of the channel behind its BatchNormalization."""
    sums: Scores = np.abs(scales).sum(axis=1, dtype=np.float64)
    return sums
