"""Nodes that are linear in a constant weight, as matrices: what compensation refits.

A view turns a weight into (groups, outputs, features), an input into rows of features, and an output into rows of
outputs, at the same sampled places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
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
        direct: what the node makes is not linear in the weight (an activation or a cell stands behind): the old
            weights tell what is wanted.
    """

    @property
    def weight(self) -> int:
        """The input slot of the weight."""
        ...

    @property
    def bias(self) -> int | None:
        """The input slot of the bias, if there can be one."""
        ...

    @property
    def channel(self) -> int:
        """The axis of the outputs."""
        ...

    @property
    def direct(self) -> bool:
        """Whether the old weights tell what is wanted."""
        ...

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        """Returns a weight, or labels broadcast to its shape, as (groups, outputs, features)."""
        ...

    def restore(self, matrix: np.ndarray) -> np.ndarray:
        """Returns a weight in the node's own shape."""
        ...

    def places(self, shape: Shape, share: float, rng: np.random.Generator) -> np.ndarray:
        """Returns sampled places of an output of this shape, about `share` of them, at least one a sample."""
        ...

    def patches(self, x: np.ndarray, places: np.ndarray, features: Places | None = None) -> np.ndarray:
        """Returns (groups, rows, features) of an input at these places of the output.

        Args:
            x: the input.
            places: where in the output.
            features: (groups, k) which of each group's features, None for all.
        """
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
    direct: bool = False

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

    def patches(self, x: np.ndarray, places: np.ndarray, features: Places | None = None) -> np.ndarray:
        """Returns the windows that make the outputs at `places`, channel by channel."""
        kernel, rank, strides, dilations = self.shape[2:], x.ndim - 2, np.array(self.strides), np.array(self.dilations)
        padded = self._padded(x)
        sizes = padded.shape[2:]
        ends = (np.array(sizes) - dilations * (np.array(kernel) - 1) - 1) // strides + 1
        corners = np.stack(np.unravel_index(places, ends)) * strides[:, None]
        taps = np.indices(kernel).reshape(rank, -1) * dilations[:, None]
        inside = np.ravel_multi_index(tuple(corners[:, :, None] + taps[:, None, :]), sizes)
        return self._rows(padded, inside, features)

    def outputs(self, y: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Returns the outputs at `places`."""
        return self._rows(y, places[:, None])

    def columns(self, x: np.ndarray) -> np.ndarray:
        """Returns (samples, groups, features, places): the windows of all outputs; features as in `matrix`."""
        padded = self._padded(x)
        windows = [padded[taps] for taps in self._taps(padded.shape[2:])]
        return np.stack(windows, axis=2).reshape(len(x), self.groups, -1, int(np.prod(windows[0].shape[2:])))

    def spread(self, columns: np.ndarray, shape: Shape) -> np.ndarray:
        """Returns what numbers for columns come to for each number of an input of this shape: the sums over windows."""
        sizes = self._sizes(shape)
        padded = np.zeros((*shape[:2], *sizes), columns.dtype)
        taps = self._taps(sizes)
        windows = columns.reshape(*shape[:2], len(taps), *padded[taps[0]].shape[2:])
        for k, tap in enumerate(taps):
            padded[tap] += windows[:, :, k]
        return padded[
            (slice(None), slice(None), *(slice(self.pads[k], self.pads[k] + n) for k, n in enumerate(shape[2:])))
        ]

    def stacked(self, y: np.ndarray) -> np.ndarray:
        """Returns an output as (samples, groups, outputs, places)."""
        return y.reshape(len(y), self.groups, -1, int(np.prod(y.shape[2:])))

    def laid(self, stacked: np.ndarray, shape: Shape) -> np.ndarray:
        """Returns an output that is stacked as the node makes it of an input of this shape."""
        first = self._taps(self._sizes(shape))[0]
        return stacked.reshape(shape[0], -1, *(len(range(at.start, at.stop, at.step)) for at in first[2:]))

    def _padded(self, x: np.ndarray) -> np.ndarray:
        """Returns an input with its padding."""
        rank = x.ndim - 2
        return np.pad(x, [(0, 0), (0, 0), *((self.pads[k], self.pads[k + rank]) for k in range(rank))])

    def _sizes(self, shape: Shape) -> list[int]:
        """Returns the sizes that an input of this shape has with its padding."""
        rank = len(shape) - 2
        return [n + self.pads[k] + self.pads[k + rank] for k, n in enumerate(shape[2:])]

    def _taps(self, sizes: Sequence[int]) -> list[tuple[slice, ...]]:
        """Returns for each tap of the kernel where all outputs read it in an input of these sizes, padding included."""
        steps = [range(0, n * d, d) for n, d in zip(self.shape[2:], self.dilations, strict=True)]
        ends = [size - step[-1] for size, step in zip(sizes, steps, strict=True)]
        return [
            (
                slice(None),
                slice(None),
                *(slice(k, k + end, s) for k, end, s in zip(tap, ends, self.strides, strict=True)),
            )
            for tap in product(*steps)
        ]

    def _rows(self, x: np.ndarray, inside: np.ndarray, features: Places | None = None) -> np.ndarray:
        """Returns (groups, rows, channels x taps): what stands at (places, taps) of every channel and sample."""
        channels = np.arange(x.shape[1]) * int(np.prod(x.shape[2:]))
        at = (inside[:, None, :] + channels[:, None]).reshape(len(inside), self.groups, -1)
        if features is not None:
            at = np.take_along_axis(at, features[None], axis=2)
        rows = x.reshape(len(x), -1).take(at.reshape(-1), axis=1, mode="wrap")  # none is outside, and this is faster
        return np.moveaxis(rows.reshape(len(x) * len(inside), self.groups, -1), 1, 0)


@dataclass(frozen=True)
class LinearProduct:
    """A matrix product with a constant second factor of two axes."""

    transposed: bool
    weight: int = 1
    bias: int | None = None
    channel: int = -1
    direct: bool = False

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

    def patches(self, x: np.ndarray, places: np.ndarray, features: Places | None = None) -> np.ndarray:
        """Returns the rows that make the outputs at `places`."""
        return at_features(x.reshape(1, -1, x.shape[-1]).take(places, axis=1), features)

    def outputs(self, y: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Returns the outputs at `places`."""
        return y.reshape(1, -1, y.shape[-1]).take(places, axis=1)

    def columns(self, x: np.ndarray) -> np.ndarray:
        """Returns (1, 1, features, places): all rows."""
        return x.reshape(-1, x.shape[-1]).T[None, None]

    def spread(self, columns: np.ndarray, shape: Shape) -> np.ndarray:
        """Returns the same numbers as an input of this shape."""
        rows: np.ndarray = columns[0, 0].T
        return rows.reshape(shape)

    def stacked(self, y: np.ndarray) -> np.ndarray:
        """Returns an output as (1, 1, outputs, places)."""
        return self.columns(y)

    def laid(self, stacked: np.ndarray, shape: Shape) -> np.ndarray:
        """Returns an output that is stacked as the node makes it of an input of this shape."""
        return self.spread(stacked, (*shape[:-1], stacked.shape[2]))


@dataclass(frozen=True)
class LinearConvTranspose:
    """A transposed convolution: a plain one, with the kernel turned, over the input with zeros between its elements."""

    shape: Shape
    strides: Sequence[int]
    plain: LinearConv
    weight: int = 1
    bias: int | None = 2
    channel: int = 1
    direct: bool = False

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        """Returns (groups, outputs, channels x taps)."""
        groups, outs = self.plain.groups, self.shape[1]
        turned = np.flip(weight, tuple(range(2, len(self.shape)))).reshape(groups, -1, outs, *self.shape[2:])
        return np.moveaxis(turned, 2, 1).reshape(groups, outs, -1)

    def restore(self, matrix: np.ndarray) -> np.ndarray:
        """Returns (channels, outputs of a group, *kernel)."""
        groups, outs = self.plain.groups, self.shape[1]
        turned = np.moveaxis(matrix.reshape(groups, outs, -1, *self.shape[2:]), 1, 2).reshape(self.shape)
        return np.ascontiguousarray(np.flip(turned, tuple(range(2, len(self.shape)))))

    def places(self, shape: Shape, share: float, rng: np.random.Generator) -> np.ndarray:
        """Returns flat spatial positions, the same in every sample."""
        return self.plain.places(shape, share, rng)

    def patches(self, x: np.ndarray, places: np.ndarray, features: Places | None = None) -> np.ndarray:
        """Returns the windows that make the outputs at `places`, channel by channel."""
        spread = [(n - 1) * step + 1 for n, step in zip(x.shape[2:], self.strides, strict=True)]
        wide = np.zeros((*x.shape[:2], *spread), x.dtype)
        wide[(slice(None), slice(None), *(slice(None, None, step) for step in self.strides))] = x
        return self.plain.patches(wide, places, features)

    def outputs(self, y: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Returns the outputs at `places`."""
        return self.plain.outputs(y, places)


@dataclass(frozen=True)
class LinearCell:
    """The product of a recurrent cell's inputs with W: one group for each direction."""

    directions: int
    weight: int = 1
    bias: int | None = 3
    channel: int = -1
    direct: bool = True

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        """Returns (directions, gates x hidden, features), as it is."""
        return weight

    def restore(self, matrix: np.ndarray) -> np.ndarray:
        """Returns the weight, as it is."""
        return matrix

    def places(self, shape: Shape, share: float, rng: np.random.Generator) -> np.ndarray:
        """Returns steps of samples."""
        return _some(int(np.prod(shape)) // self._width(shape), share, rng)

    def patches(self, x: np.ndarray, places: np.ndarray, features: Places | None = None) -> np.ndarray:
        """Returns what is read at these steps, the same in each direction."""
        rows = x.reshape(1, -1, x.shape[-1]).take(places, axis=1)
        return at_features(np.broadcast_to(rows, (self.directions, *rows.shape[1:])), features)

    def outputs(self, y: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Raises: what the gates are fed is not among the node's outputs."""
        raise NotImplementedError("a recurrent cell does not show what its gates are fed")

    def _width(self, shape: Shape) -> int:
        return shape[-1]


@dataclass(frozen=True)
class LinearState(LinearCell):
    """The product of a recurrent cell's own state with R, as the states of all steps tell; `x` is the node's output Y.

    Attributes:
        batch_first: Y is (batch, steps, directions, hidden), else (steps, directions, batch, hidden).
        gates: how many there are.
        apart: the last gate reads something else than the state.
    """

    batch_first: bool = False
    gates: int = 4
    apart: bool = False
    weight: int = 2

    def patches(self, x: np.ndarray, places: np.ndarray, features: Places | None = None) -> np.ndarray:
        """Returns the states after these steps, in each direction."""
        rows = np.moveaxis(x, 2 if self.batch_first else 1, 0)
        return at_features(rows.reshape(self.directions, -1, x.shape[-1]).take(places, axis=1), features)

    def _width(self, shape: Shape) -> int:
        return shape[-1] * self.directions


def at_features(rows: np.ndarray, features: Places | None) -> np.ndarray:
    """Returns of rows (groups, rows, features) some of each group's features: (groups, k), None for all."""
    if features is None:
        return rows
    found = [x.take(k, axis=1) for x, k in zip(rows, features, strict=True)]
    return found[0][None] if len(found) == 1 else np.stack(found)


def _some(rows: int, share: float, rng: np.random.Generator) -> Places:
    return np.sort(rng.choice(rows, max(1, round(share * rows)), replace=False))


def linear_conv_transpose(node: Node) -> LinearConvTranspose | None:
    """Returns a transposed convolution as a matrix, None where its padding is not written down."""
    shape, rank = node.shape(1), len(node.shape(1)) - 2
    auto = node.attr("auto_pad", "NOTSET")
    if (auto if isinstance(auto, str) else auto.decode()) != "NOTSET" or node.attr("output_shape") is not None:
        return None
    strides, dilations = list(node.attr("strides", [1] * rank)), list(node.attr("dilations", [1] * rank))
    pads, more = list(node.attr("pads", [0] * 2 * rank)), list(node.attr("output_padding", [0] * rank))
    around = [dilations[k] * (shape[2 + k] - 1) for k in range(rank)]
    begin = [around[k] - pads[k] for k in range(rank)]
    end = [around[k] - pads[k + rank] + more[k] for k in range(rank)]
    if min(begin + end) < 0:
        return None
    groups = node.attr("group", 1)
    turned = (shape[1] * groups, shape[0] // groups, *shape[2:])
    return LinearConvTranspose(shape, strides, LinearConv(turned, groups, [1] * rank, dilations, [*begin, *end]))


def linear_cells(node: Node) -> tuple[LinearCell, ...]:
    """Returns the two products of a recurrent cell: with its inputs, and with its own state."""
    directions, gates = node.shape(1)[0], node.shape(1)[1] // node.shape(2)[2]
    apart = node.op == "GRU" and not node.attr("linear_before_reset", 0)  # the reset state is what that gate reads
    state = LinearState(directions, batch_first=bool(node.attr("layout", 0)), gates=gates, apart=apart)
    return LinearCell(directions), state


def linear_fused_conv(node: Node) -> LinearConv | None:
    """Returns a convolution with an activation behind it as a matrix."""
    view = linear_conv(node)
    return view and replace(view, direct=True)


def linear_fused_gemm(node: Node) -> LinearProduct | None:
    """Returns a Gemm with an activation behind it as a matrix."""
    view = linear_gemm(node)
    return view and replace(view, direct=True)


def linear_fused_matmul(node: Node) -> LinearProduct | None:
    """Returns a product of factors as they stand, the second perhaps transposed, as a matrix."""
    turned = ("transA", "transBatchA", "transBatchB")
    if node.attr("alpha", 1.0) != 1 or any(node.attr(name, 0) for name in turned):
        return None
    view = linear_matmul(node)
    return view and replace(view, transposed=bool(node.attr("transB", 0)))


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
