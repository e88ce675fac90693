"""Where the zero of a quantized value stands.

A cut slot of a quantized value holds its zero point in the masked original, not 0, and that is what `Tensor.zero` says
of it. Operators that only move elements pass it on. A node that takes off another zero point, or none at all, finds no
zero there: `agrees` tells, by following the value back to the nodes that made it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxprune.ops.registry import lookup

# Operators that move elements, or pick among them, so that a zero point passes through
MOVING = frozenset(
    {"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Concat", "Split", "Slice", "Gather", "GatherND"}
    | {"Identity", "Expand", "Tile", "MaxPool", "GlobalMaxPool", "DepthToSpace", "SpaceToDepth", "Resize", "Upsample"}
    | {"NhwcMaxPool"}
)
_NARROW = ("int4", "uint4", "int2", "uint2", "float8")


def is_narrow(dtype: np.dtype | None) -> bool:
    """Returns whether numbers of this type are quantized ones: integers of at most 16 bits, and the 8-bit floats."""
    if dtype is None:
        return False
    return (dtype.kind in "iu" and dtype.itemsize <= 2) or dtype.name.startswith(_NARROW)


def agrees(node: ir.Node, slot: int) -> bool:
    """Returns whether cut slots of quantized input `slot` stand where this node takes them for zero."""
    if _moves(node):
        return True
    value = node.inputs[slot]
    wanted = _point(node, slot)
    return value is not None and all(_same(point, wanted) for point in _made_at(value, node, slot))


def blank(node: ir.Node, slot: int, shape: tuple[int, ...]) -> np.ndarray | None:
    """Returns what stands for zero in a quantized constant that `node` reads, as an array that broadcasts to `shape`.

    None where it is a zero point or a scale itself, which must not be masked: zero is where the zero point stands,
    whatever the scale, and a runtime would not fuse a layer whose bias has another scale than what is multiplied.
    """
    if is_parameter_of_numbers(node, slot):
        return None
    content = _content(_blank_point(node, slot))
    if content is None or content.size <= 1:
        return np.zeros(()) if content is None else content.reshape(())
    return along(node, content, shape)


def along(node: ir.Node, content: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns a scale or zero point of more than one number as it broadcasts against a quantized weight."""
    rank = len(shape)
    if node.op_type == "DynamicQuantizeLSTM":  # for each direction, perhaps for each of its columns
        return content.reshape(content.shape[0], 1, -1)
    axis = _axis(node, rank)
    if content.ndim > 1:
        if content.ndim == rank and content.shape[axis] < shape[axis]:  # a number for each block
            block = -(-shape[axis] // content.shape[axis])
            return content.repeat(block, axis).take(np.arange(shape[axis]), axis)
        return content
    return content.reshape([-1 if k == axis else 1 for k in range(rank)])


def scale_of(node: ir.Node, slot: int) -> ir.Value | None:
    """Returns the scale that goes with a quantized input."""
    home = lookup(node)
    place = home.quantized[slot].scale if home is not None and slot in home.quantized else None
    return _at(node, place)


def is_parameter_of_numbers(node: ir.Node, slot: int) -> bool:
    """Returns whether an input is the scale or the zero point of quantized numbers."""
    home = lookup(node)
    return home is not None and any(slot in (q.scale, q.zero) for q in home.quantized.values())


def real(node: ir.Node, slot: int, values: np.ndarray) -> np.ndarray:
    """Returns the numbers that a quantized constant stands for, as far as the node that reads it tells."""
    zero, scale = _content(_blank_point(node, slot)), _content(scale_of(node, slot))
    numbers = values.astype(np.float32)
    if zero is not None:
        numbers = numbers - (along(node, zero, values.shape) if zero.size > 1 else zero.reshape(())).astype(np.float32)
    if scale is not None:
        numbers = numbers * (along(node, scale, values.shape) if scale.size > 1 else scale.reshape(()))
    return numbers


def _axis(node: ir.Node, rank: int) -> int:
    """Returns the axis of a weight that has a scale for each index."""
    axis, transposed = node.attributes.get("axis"), node.attributes.get("transB")
    if node.op_type in ("DequantizeLinear", "QuantizeLinear"):
        return (1 if axis is None else axis.as_int()) % max(rank, 1)
    if "Conv" in node.op_type or (transposed is not None and transposed.as_int()):
        return 0
    return rank - 1


def _moves(node: ir.Node) -> bool:
    return node.op_type in MOVING and lookup(node) is not None


def _at(node: ir.Node, place: int | None) -> ir.Value | None:
    """Returns input k, or output k where the place is ~k."""
    if place is None:
        return None
    if place < 0:
        return node.outputs[~place]
    return node.inputs[place] if place < len(node.inputs) else None


def _point(node: ir.Node, slot: int) -> ir.Value | None:
    """Returns the zero point that a node takes off an input (k) or puts on an output (~k); None where that is 0."""
    home = lookup(node)
    if home is None or slot not in home.quantized:
        return None
    return _at(node, home.quantized[slot].zero)


def _blank_point(node: ir.Node, slot: int) -> ir.Value | None:
    """Returns the zero point of a constant that `node` reads: its own, or behind moving nodes that of the first reader
    that has one."""
    if not _moves(node):
        return _point(node, slot)
    for v in node.outputs:
        for reader in v.uses():
            point = _blank_point(reader.node, reader.idx)
            content = _content(point)
            if content is not None and (content.size <= 1 or (content == content.reshape(-1)[0]).all()):
                return point
    return None


def _made_at(value: ir.Value, reader: ir.Node, slot: int) -> Iterator[ir.Value | None]:
    """Yields the zero points at which cut slots of a value stand, from every place that it comes from."""
    node = value.producer()
    if node is None or node.op_type == "Constant":
        yield _blank_point(reader, slot)
    elif _moves(node):
        for k, v in enumerate(node.inputs):
            if v is not None and (k == 0 or node.op_type == "Concat"):
                yield from _made_at(v, node, k)
    else:
        yield _point(node, ~node.outputs.index(value))


def _same(one: ir.Value | None, other: ir.Value | None) -> bool:
    if one is other:
        return True
    a, b = _content(one), _content(other)
    if (one is not None and a is None) or (other is not None and b is None):
        return False  # computed: only the very same value is known to agree
    a, b = (np.zeros((), np.int64) if x is None else x.astype(np.int64) for x in (a, b))
    if a.size == 1 or b.size == 1:
        return bool((a == b).all())
    return np.array_equal(a, b)


def _content(value: ir.Value | None) -> np.ndarray | None:
    """Returns the numbers of a constant, None where there is none or it is computed."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()
