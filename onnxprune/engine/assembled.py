"""A weight that nodes put together from constants, every element of them once: recurrent gates in another order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.errors import OnnxPruneError
from onnxprune.graph.partial import run_nodes

__all__ = ["Assembled", "assemble"]


@dataclass(frozen=True, eq=False)
class Assembled:
    """Constants and the order in which a node reads their elements.

    Attributes:
        parts: the constants by name; their elements are numbered one behind the other.
        order: the number of the element at each place of what is read.
        grid: it has no integers.
    """

    parts: Mapping[str, np.ndarray]
    order: np.ndarray
    grid: None = None

    def reals(self) -> np.ndarray:
        """Returns the numbers as they are read."""
        return np.asarray(np.concatenate([part.reshape(-1) for part in self.parts.values()])[self.order])

    def growth(self, reals: np.ndarray) -> np.ndarray:
        """Returns 1: there is no scale."""
        return np.ones(())

    def holding(self, reals: np.ndarray, growth: np.ndarray) -> dict[str, np.ndarray]:
        """Returns what the constants are to hold for new numbers."""
        flat = np.empty(self.order.size, reals.dtype)
        flat[self.order] = reals
        ends = np.cumsum([part.size for part in self.parts.values()])[:-1]
        split = zip(self.parts.items(), np.split(flat, ends), strict=True)
        return {name: new.reshape(part.shape).astype(part.dtype) for (name, part), new in split}


def assemble(
    model: ir.Model, nodes: Sequence[ir.Node], made: str, given: Mapping[str, ir.TensorProtocol], parts: Sequence[str]
) -> Assembled | None:
    """Returns how nodes put a value together; None where elements are left out, used twice, or computed with.

    The nodes are run on the numbers of the elements.

    Args:
        model: the model.
        nodes: nodes that only move elements, in order.
        made: the value that they make.
        given: the constants that they read.
        parts: those of them whose elements are moved.
    """
    held = {name: given[name].numpy() for name in parts}
    numbers, count = dict[str, np.ndarray](), 0
    for name, x in held.items():
        numbers[name] = np.arange(count, count + x.size).reshape(x.shape)
        count += x.size
    others = {name: tensor for name, tensor in given.items() if name not in numbers}
    try:
        order = run_nodes(model, nodes, made, others, numbers)
    except OnnxPruneError:
        return None
    return Assembled(held, order) if np.array_equal(np.sort(order, axis=None), np.arange(count)) else None
