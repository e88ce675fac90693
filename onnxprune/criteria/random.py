"""The baseline that any other criterion has to beat."""

from __future__ import annotations

import numpy as np

from onnxprune.criteria.kinds import Matrix, Scores


def random(weights: Matrix, rng: np.random.Generator) -> Scores:
    """Returns a uniform draw for each row, independent of the weights."""
    return rng.random(len(weights))
