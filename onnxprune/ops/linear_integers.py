"""Layers that quantize by themselves, as matrices over the real numbers that their integers stand for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.ops.linear import LinearConv, LinearProduct, Places, linear_conv
from onnxprune.ops.registry import Node, Shape

__all__ = ["LinearIntegers", "linear_qgemm", "linear_qlinear_conv", "linear_qlinear_matmul"]


@dataclass(frozen=True)
class LinearIntegers:
    """A layer whose input and output are integers; what it makes is rounded and cut off, so the old weights tell.

    Attributes:
        plain: the layer in real numbers.
        scale: of the input.
        zero: zero point of the input.
        bias: input slot of the bias.
    """

    plain: LinearConv | LinearProduct
    scale: float
    zero: float
    bias: int | None
    weight: int = 3
    direct: bool = True

    @property
    def channel(self) -> int:
        """The axis of the outputs."""
        return self.plain.channel

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        """Returns (groups, outputs, features)."""
        return self.plain.matrix(weight)

    def restore(self, matrix: np.ndarray) -> np.ndarray:
        """Returns the weight in the node's own shape."""
        return self.plain.restore(matrix)

    def places(self, shape: Shape, share: float, rng: np.random.Generator) -> np.ndarray:
        """Returns places of the output."""
        return self.plain.places(shape, share, rng)

    def patches(self, x: np.ndarray, places: np.ndarray, features: Places | None = None) -> np.ndarray:
        """Returns the real numbers that make the outputs at `places`."""
        return self.plain.patches((x.astype(np.float32) - self.zero) * np.float32(self.scale), places, features)

    def outputs(self, y: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Raises: what the layer makes is not linear in its weights."""
        raise NotImplementedError("a layer of integers does not show what was rounded")


def linear_qlinear_conv(node: Node) -> LinearIntegers | None:
    """Returns a convolution of integers as a matrix, None where its padding is not written down."""
    if node.attr("channels_last", 0):
        return None
    names = [ir.Value(name=node.name(0)), ir.Value(name=node.name(3))]
    plain = ir.Node("", "Conv", names, attributes=node.node.attributes.values())
    plain.outputs[0].name = node.node.outputs[0].name
    return _integers(node, linear_conv(Node(plain, node.version, node.trace)), 8)


def linear_qlinear_matmul(node: Node) -> LinearIntegers | None:
    """Returns a product of integers as a matrix where its second factor is one."""
    matrix = len(node.shape(3)) == 2 and len(node.shape(0)) > 1
    return _integers(node, LinearProduct(False) if matrix else None, None)


def linear_qgemm(node: Node) -> LinearIntegers | None:
    """Returns a Gemm of integers as a matrix, None where its first operand is turned, or the product scaled."""
    if node.attr("transA", 0) or node.attr("alpha", 1.0) != 1:
        return None
    return _integers(node, LinearProduct(bool(node.attr("transB", 0))), 6)


def _integers(node: Node, plain: LinearConv | LinearProduct | None, bias: int | None) -> LinearIntegers | None:
    scale, zero = node.value(1), node.value(2) if node.has(2) else np.zeros(())
    if plain is None or scale is None or zero is None or scale.size != 1 or zero.size != 1:
        return None
    return LinearIntegers(plain, float(scale.reshape(())), float(zero.reshape(())), bias)
