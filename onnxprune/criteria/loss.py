"""True change of the outputs when a unit is masked: the oracle of Molchanov et al., Pruning Convolutional Neural
Networks for Resource Efficient Inference, 2017 (https://arxiv.org/abs/1611.06440), with the dense model's outputs in
the place of labels.
"""

from __future__ import annotations

import numpy as np


def loss(dense: np.ndarray, masked: np.ndarray) -> float:
    """Returns the squared change of an output over its energy."""
    a, b = dense.astype(np.float64), masked.astype(np.float64)
    return float(np.square(a - b).sum() / (np.square(a).sum() or 1.0))
