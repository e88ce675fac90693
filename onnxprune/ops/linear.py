"""Nodes that are linear in a constant weight, as matrices: what compensation refits.

A view turns a weight into (groups, outputs, features), an input into rows of features, and an output into rows of
outputs, at the same sampled places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from onnxprune.ops.registry import Node, Shape

Matrix = npt.NDArray[np.floating]
Places = npt.NDArray[np.intp]


class Linear(Protocol):
    """One linear node.

    Attributes:
        weight: input slot of the weight.
        bias: input slot of a bias over the outputs, or None where the node takes none.
        channel: axis of the node's output that holds the outputs.
    """

    weight: int
    bias: int | None
    channel: int

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        """Returns a weight, or labels broadcast to its shape, as (groups, outputs, features)."""
        ...

    def restore(self, matrix: np.ndarray) -> np.ndarray:
        """Returns a weight in the node's own shape."""
        ...

    def places(self, shape: Shape, share: float, rng: np.random.Generator) -> np.ndarray:
        """Returns sampled places of an output of this shape, about `share` of them, at least one a sample."""
        ...

    def patches(self, x: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Returns (groups, rows, features) of an input at these places of the output."""
        ...

    def outputs(self, y: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Returns (groups, rows, outputs) of an output at these places."""
        ...


@dataclass(frozen=True)
class LinearConv:
    """A convolution: features are the input channels times the kernel's taps (im2col)."""

    shape: Shape
    groups: int
    strides: Sequence[int]
    dilations: Sequence[int]
    pads: Sequence[int]
    weight: int = 1
    bias: int | None = 2
    channel: int = 1

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        """Returns (groups, outputs, channels x taps)."""
        return weight.reshape(self.groups, self.shape[0] // self.groups, -1)

    def restore(self, matrix: np.ndarray) -> np.ndarray:
        """Returns (outputs, channels, *kernel)."""
        return matrix.reshape(self.shape)

    def places(self, shape: Shape, share: float, rng: np.random.Generator) -> np.ndarray:
        """Returns flat spatial positions, the same in every sample."""
        count = int(np.prod(shape[2:]))
        return np.sort(rng.choice(count, max(1, min(count, round(share * count))), replace=False))

    def patches(self, x: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Returns the windows that make the outputs at `places`, channel by channel."""
        kernel, rank = self.shape[2:], x.ndim - 2
        padded = np.pad(x, [(0, 0), (0, 0), *((self.pads[k], self.pads[k + rank]) for k in range(rank))])
        spread = [d * (k - 1) + 1 for d, k in zip(self.dilations, kernel, strict=True)]
        windows = np.lib.stride_tricks.sliding_window_view(padded, spread, axis=tuple(range(2, 2 + rank)))
        windows = windows[tuple(slice(None, None, step) for step in (1, 1, *self.strides, *self.dilations))]
        where: tuple[slice | Places, ...] = np.unravel_index(places, windows.shape[2 : 2 + rank])
        taken = windows[slice(None), slice(None), *where]  # (n, c, places, *kernel)
        rows = np.moveaxis(taken, 1, 2).reshape(len(x) * len(places), self.groups, -1)
        return np.moveaxis(rows, 1, 0)

    def outputs(self, y: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Returns the outputs at `places`."""
        flat = y.reshape(*y.shape[:2], -1)[:, :, places]
        rows = np.moveaxis(flat, 1, 2).reshape(len(y) * len(places), self.groups, -1)
        return np.moveaxis(rows, 1, 0)


@dataclass(frozen=True)
class LinearProduct:
    """A matrix product with a constant second factor of two axes."""

    transposed: bool
    weight: int = 1
    bias: int | None = None
    channel: int = -1

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        """Returns (1, outputs, features)."""
        return (weight if self.transposed else weight.T)[None]

    def restore(self, matrix: np.ndarray) -> np.ndarray:
        """Returns the weight in its own orientation."""
        return np.ascontiguousarray(matrix[0] if self.transposed else matrix[0].T)

    def places(self, shape: Shape, share: float, rng: np.random.Generator) -> np.ndarray:
        """Returns rows of the output with all but the last axis flattened."""
        rows = int(np.prod(shape[:-1]))
        least = min(rows, shape[0] if len(shape) > 1 else 1)
        return np.sort(rng.choice(rows, max(least, round(share * rows)), replace=False))

    def patches(self, x: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Returns the rows that make the outputs at `places`."""
        return x.reshape(1, -1, x.shape[-1]).take(places, axis=1)

    def outputs(self, y: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Returns the outputs at `places`."""
        return y.reshape(1, -1, y.shape[-1]).take(places, axis=1)


def linear_conv(node: Node) -> LinearConv | None:
    """Returns a convolution as a matrix, None where its padding is not written down and not nothing."""
    shape, out = node.shape(1), node.out_shape()
    rank = len(shape) - 2
    strides, dilations = list(node.attr("strides", [1] * rank)), list(node.attr("dilations", [1] * rank))
    pads = list(node.attr("pads", [0] * 2 * rank))
    auto = node.attr("auto_pad", "NOTSET")
    auto = auto if isinstance(auto, str) else auto.decode()
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        for k in range(rank):
            spread = dilations[k] * (shape[2 + k] - 1) + 1
            total = max((out[2 + k] - 1) * strides[k] + spread - node.shape(0)[2 + k], 0)
            small = total // 2
            pads[k], pads[k + rank] = (small, total - small) if auto == "SAME_UPPER" else (total - small, small)
    if any(p < 0 for p in pads):
        return None
    return LinearConv(shape, node.attr("group", 1), strides, dilations, pads)


def linear_gemm(node: Node) -> LinearProduct | None:
    """Returns a Gemm as a matrix, None where its factors or its first operand are turned."""
    if node.attr("transA", 0) or node.attr("alpha", 1.0) != 1 or node.attr("beta", 1.0) != 1:
        return None
    return LinearProduct(bool(node.attr("transB", 0)), bias=2)


def linear_matmul(node: Node) -> LinearProduct | None:
    """Returns a MatMul as a matrix where its second factor is one."""
    return LinearProduct(False) if len(node.shape(1)) == 2 and len(node.shape(0)) > 1 else None
