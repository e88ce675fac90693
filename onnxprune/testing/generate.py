"""Random cases for every operator: shapes, attributes and versions drawn from a seed."""

from __future__ import annotations

import numpy as np

from onnxprune.testing import draw_fused, draw_positions, draw_standard
from onnxprune.testing.cases import Case
from onnxprune.testing.draw import GENERATORS

__all__ = ["GENERATORS", "draw_fused", "draw_positions", "draw_standard", "random_case"]


def random_case(domain: str, op: str, seed: int) -> Case:
    """Returns a random case of one operator; raises KeyError where it has no generator."""
    return GENERATORS[domain, op](op, np.random.default_rng(seed))
