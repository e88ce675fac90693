"""The baseline that any other criterion has to beat."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def random(weights: npt.NDArray[np.floating], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Returns a uniform draw for each row, independent of the weights."""
    return rng.random(len(weights))
