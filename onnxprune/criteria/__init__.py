"""Criteria: what a unit is worth. Each sees arrays (cells x features), never operators or graphs.

A criterion takes one member of a group, a matrix with a row for each cell (one index, or one index of each head) that
holds all weights on it, and returns one importance for each row.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from onnxprune.criteria.magnitude import l1, l2
from onnxprune.criteria.random import random

Matrix = npt.NDArray[np.floating]
Criterion = Callable[[Matrix, np.random.Generator], npt.NDArray[np.float64]]

CRITERIA: dict[str, Criterion] = {"l1": l1, "l2": l2, "random": random}

__all__ = ["CRITERIA", "Criterion"]
