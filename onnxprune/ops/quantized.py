"""Quantized operators: integer weights go like float ones, their zero slots stand at the zero point.

Spec: https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html, https://onnx.ai/onnx/operators/onnx__QLinearConv.html
"""

from __future__ import annotations

import onnx_ir as ir

from onnxprune.ops.elementwise import freeze_zero_axes
from onnxprune.ops.registry import Site, Unsupported, operator
from onnxprune.tensors import Tensor

dequantize = operator("DequantizeLinear", doc="elementwise with scale and zero point of the axis")
quantize = operator("QuantizeLinear", doc="elementwise; the scale of an axis is frozen")

ZERO_POINTS = {"DequantizeLinear": {0: 2}}


def zero_point_slot(node: ir.Node, slot: int) -> int | None:
    """Returns the input that holds the zero point of weight `slot`, None for weights that are zero at 0."""
    return ZERO_POINTS.get(node.op_type, {}).get(slot)


def along_axis(op: Site, t: Tensor, like: Tensor) -> Tensor:
    """Returns a scale or zero point in the rank of `like`, on the node's axis."""
    if len(t.shape) != 1 or t.shape[0] == 1:
        return op.reshape(t, ()) if t.shape else t
    if op.attr("block_size", 0):
        raise Unsupported("blocked quantization")
    axis = op.attr("axis", 1) % len(like.shape)
    return op.reshape(t, tuple(t.shape[0] if k == axis else 1 for k in range(len(like.shape))))


@dequantize.coupling
def couple_dequantize(op: Site) -> Tensor:
    """A cut weight stands at its zero point, so it is zero afterwards."""
    x = op[0]
    rest = [along_axis(op, t, x) for t in op.inputs[1:] if t is not None]
    y = op.unify(x, *rest, zero="none")
    return Tensor(y.shape, y.arrays, frozenset(k for k in x.zero if y.labelled(k)))


@quantize.coupling
def couple_quantize(op: Site) -> Tensor:
    """Zero becomes the zero point, which the next DequantizeLinear takes off again."""
    x = op[0]
    rest = [along_axis(op, t, x) for t in op.inputs[1:] if t is not None]
    freeze_zero_axes(op, rest[0], "a divisor would be zero where it is cut")
    y = op.unify(x, *rest, zero="none")
    return Tensor(y.shape, y.arrays, frozenset(k for k in x.zero if y.labelled(k)))
