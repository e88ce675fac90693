"""How much of a unit arrives at its consumer."""

from __future__ import annotations

import numpy as np

from onnxprune.criteria.kinds import Inputs, Scores


def mean(seen: Inputs) -> Scores:
    """Returns the mean absolute activation; behind a ReLU that is the mean.

    Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient Inference, 2017
    (https://arxiv.org/abs/1611.06440).
    """
    return seen.magnitude


def rms(seen: Inputs) -> Scores:
    """Returns the root of the mean squared activation."""
    return np.sqrt(seen.square)


def apoz(seen: Inputs) -> Scores:
    """Returns the share of activations that are not zero, so that a high average percentage of zeros (APoZ) goes first.

    Hu et al., Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep Architectures, 2016
    (https://arxiv.org/abs/1607.03250).
    """
    return 1 - seen.zeros


def wanda(seen: Inputs) -> Scores:
    """Returns the sum of |weight| x norm of the activation over the weights that read a cell.

    Sun et al., A Simple and Effective Pruning Approach for Large Language Models, 2024
    (https://arxiv.org/abs/2306.11695), summed over outputs as whole units go.
    """
    magnitude: Scores = np.abs(seen.weights).sum(axis=1)
    return magnitude * np.sqrt(seen.square)
