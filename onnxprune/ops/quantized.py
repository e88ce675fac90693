"""Quantized operators: integer weights go like float ones, their cut slots stand at the zero point.

The rules treat numbers as if they were dequantized. Whether a reader takes off the zero point that a value was made
with is seen to before (zero_points.py), so that `Tensor.zero` means zero here too.

Spec: https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html, https://onnx.ai/onnx/operators/onnx__QLinearConv.html,
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from string import ascii_lowercase

import numpy as np
import onnx_ir as ir

from onnxprune.engine.labels import Array
from onnxprune.engine.tensors import Tensor, drop_axes, insert_axes, spans
from onnxprune.ops.conv import convolve, living_groups, with_bias
from onnxprune.ops.elementwise import freeze_zero_axes
from onnxprune.ops.linear_integers import linear_qgemm, linear_qlinear_conv, linear_qlinear_matmul
from onnxprune.ops.matmul import macs_gemm, macs_matmul, matrix_product
from onnxprune.ops.pooling import resized
from onnxprune.ops.registry import Need, Node, Quantized, Shape, Site, Sized, Unsupported, operator

MS = "com.microsoft"
OUT = ~0
UNARY = {0: Quantized(1, 2), OUT: Quantized(3, 4)}
BINARY = {0: Quantized(1, 2), 3: Quantized(4, 5), OUT: Quantized(6, 7)}
MOST_INPUTS = 3 * 1024  # of QLinearConcat
SAFE = 64  # two products of a byte with weights up to this fit into 16 bits

LINEAR = "elementwise with scale and zero point of the axis, or with those of whole blocks"
dequantize = [operator("DequantizeLinear", domain=d, quantized={0: Quantized(1, 2)}, doc=LINEAR) for d in ("", MS)]
quantize = [operator("QuantizeLinear", domain=d, quantized={OUT: Quantized(1, 2)}, doc=LINEAR) for d in ("", MS)]
for home in (*dequantize, *quantize):
    home.pointwise = True
dynamic_quantize = operator(
    "DynamicQuantizeLinear",
    quantized={OUT: Quantized(~1, ~2)},
    doc="elementwise; axes whose cut slots are not zero are tied, since the range is taken over them",
)
qlinear_conv = [
    operator(
        "QLinearConv",
        domain=d,
        quantized={0: Quantized(1, 2), 3: Quantized(4, 5), 8: Quantized(), OUT: Quantized(6, 7)},
        doc="as Conv, with bias, and scale and zero point of the weight if they have an entry for each output",
    )
    for d in ("", MS)
]
conv_integer = operator("ConvInteger", quantized={0: Quantized(zero=2), 1: Quantized(zero=3)}, doc="as QLinearConv")
qlinear_matmul = operator("QLinearMatMul", quantized=BINARY, doc="as MatMul, with scale and zero point of the columns")
qgemm = operator(
    "QGemm",
    domain=MS,
    quantized={0: Quantized(1, 2), 3: Quantized(4, 5), 6: Quantized(), OUT: Quantized(7, 8)},
    doc="as Gemm, with scale and zero point of the columns",
)
matmul_integer = operator(
    "MatMulInteger",
    quantized={0: Quantized(zero=2), 1: Quantized(zero=3)},
    doc="as MatMul, with scale and zero point of the columns",
)
matmul_to_float = operator(
    "MatMulIntegerToFloat",
    domain=MS,
    quantized={0: Quantized(2, 4), 1: Quantized(3, 5)},
    doc="as MatMul, with bias, and scale and zero point of the columns",
)
dynamic_matmul = operator(
    "DynamicQuantizeMatMul",
    domain=MS,
    quantized={1: Quantized(2, 3)},
    doc="as DynamicQuantizeLinear, then as MatMul with bias, and scale and zero point of the columns",
)
matmul_nbits = operator(
    "MatMulNBits", domain=MS, doc="outputs one by one, inputs in whole blocks if zero points are not packed across them"
)
gather_blocks = operator("GatherBlockQuantized", domain=MS, doc="an embedding whose channels go in whole blocks")
qlinear_binary = operator("QLinearAdd", "QLinearMul", domain=MS, quantized=BINARY, doc="elementwise")
qlinear_where = operator(
    "QLinearWhere",
    domain=MS,
    quantized={1: Quantized(2, 3), 4: Quantized(5, 6), OUT: Quantized(7, 8)},
    doc="elementwise",
)
qlinear_unary = operator("QLinearLeakyRelu", "QLinearSigmoid", domain=MS, quantized=UNARY, doc="elementwise")
qlinear_softmax = operator("QLinearSoftmax", domain=MS, quantized=UNARY, doc="the axis is tied")
qlinear_pool = operator(
    *("QLinearGlobalAveragePool", "QLinearAveragePool"),
    domain=MS,
    quantized=UNARY,
    doc="batch and channels pass; spatial axes are tied",
)
nhwc_max_pool = operator("NhwcMaxPool", domain=MS, doc="batch and channels pass; spatial axes are tied")
qlinear_concat = operator(
    "QLinearConcat",
    domain=MS,
    quantized={OUT: Quantized(0, 1), **{k: Quantized(k + 1, k + 2) for k in range(2, MOST_INPUTS, 3)}},
    doc="as Concat",
)


# ---------------------------------------------------------------- scales and zero points
def scaled(op: Site, x: Tensor, *numbers: Tensor | None) -> Tensor:
    """Returns `x` unified with a scale and a zero point of the node's axis, nothing zero.

    They have one entry, one for each index of the axis, or (in `x`'s rank) one for each block of it.
    """
    rank = len(x.shape)
    axis, block = op.attr("axis", 1) % max(rank, 1), op.attr("block_size", 0)
    given = [n for n in numbers if n is not None]
    if not block:
        return op.unify(x, *(on_axis(op, n, axis, rank) for n in given), zero="none")
    if x.shape[axis] % block:
        return op.unify(*(_tied(op, t, axis) for t in (x, *given)), zero="none")
    split = (*x.shape[:axis], x.shape[axis] // block, block, *x.shape[axis + 1 :])
    rows = op.tie(op.reshape(x, split), axis + 1, why="quantized together")
    return op.reshape(op.unify(rows, *(insert_axes(n, [axis + 1]) for n in given), zero="none"), x.shape)


def on_axis(op: Site, t: Tensor, axis: int, rank: int) -> Tensor:
    """Returns a scale or zero point so that it broadcasts against a tensor of this rank, its entries along `axis`."""
    if max(t.shape, default=1) == 1:
        return Tensor(())
    return insert_axes(t, [k for k in range(rank) if k != axis % rank]) if len(t.shape) == 1 else t


def _tied(op: Site, t: Tensor, axis: int) -> Tensor:
    t = op.tie(t, axis, why="quantized in blocks that do not divide the axis")
    return Tensor(tuple(1 if k == axis else n for k, n in enumerate(t.shape)), t.arrays, t.zero)


def only_one(op: Site, *slots: int) -> None:
    """Raises Unsupported where a scale or zero point of an activation has more than one entry."""
    if any(max(t.shape, default=1) > 1 for t in map(op.get, slots) if t is not None):
        raise Unsupported("a scale for each row of an activation")


def keep_pairs(op: Site, slot: int, axis: int) -> None:
    """Wishes that neighbours on the contracted axis of an 8-bit weight go together.

    Where a processor has no dot product of bytes, onnxruntime adds the products of two neighbours in 16 bits, which
    overflow: what is left computes the same there only if the pairs of neighbours stay the same. Weights of 7 bits
    never overflow, nor do unsigned ones.
    """
    w = op[slot]
    a = w.on(axis % len(w.shape))
    if a is None or len(spans(a)) > 1:
        return
    slides = len(w.shape) > 2 and "Conv" in op.op and int(np.prod(w.shape[2:])) > 1
    if w.shape[axis] % 2 and slides:
        return  # the neighbour of the last channel is the first one of the next place
    pair_up(op, slot, a.ravel())


def pair_up(op: Site, slot: int, labels: Array) -> None:
    """Wishes that neighbours among the labels of an 8-bit weight's contracted axis go together, where it overflows."""
    content = op.value(slot)
    if op.trace.dtypes.get(op.name(slot) or "") != np.int8:
        return
    if content is not None and max(int(content.max()), -int(content.min())) <= SAFE:
        return
    pairs = labels[: len(labels) // 2 * 2]
    op.labels.prefer_pairs(pairs[::2], pairs[1::2])


def couple_dequantize(op: Site) -> Tensor:
    """A cut slot stands at its zero point, or its own scale is cut: it is zero afterwards."""
    x, scale = op[0], op[1]
    for axis in _contracted_by_readers(op.node, len(x.shape)):
        keep_pairs(op, 0, axis)
    y = scaled(op, x, scale, op.get(2))
    y = Tensor(x.shape, y.arrays)
    return Tensor(x.shape, y.arrays, frozenset(k for k in x.zero | _own(op, x, scale) if y.labelled(k)))


def _contracted_by_readers(node: ir.Node, rank: int) -> Iterator[int]:
    """Yields the axes over which nodes that onnxruntime fuses with this one sum: both factors are dequantized there."""
    for reader in node.outputs[0].uses():
        other = reader.node.inputs[0].producer() if reader.idx == 1 and reader.node.inputs[0] is not None else None
        if other is None or other.op_type != "DequantizeLinear":
            continue
        if reader.node.op_type == "Conv" and rank > 2:
            yield 1
        elif reader.node.op_type in ("MatMul", "Gemm") and rank > 1:
            transposed = reader.node.attributes.get("transB")
            yield rank - 1 if transposed is not None and transposed.as_int() else rank - 2


def _own(op: Site, x: Tensor, scale: Tensor) -> frozenset[int]:
    """Returns the axes along which cut slots have scales of their own, which are zero when they are cut."""
    if len(scale.shape) == len(x.shape) > 1:
        return scale.zero
    return frozenset({op.attr("axis", 1) % len(x.shape)} if scale.zero else ())


def couple_quantize(op: Site) -> Tensor:
    """Zero becomes the zero point; with a scale that is cut too (a divisor) any number does."""
    x, scale = op[0], op[1]
    if op.trace.dtypes[op.node.outputs[0].name or ""].kind not in "iu":
        freeze_zero_axes(op, scale, "a divisor would be zero where it is cut")
    y = scaled(op, x, scale, op.get(2))
    y = Tensor(x.shape, y.arrays)
    return Tensor(x.shape, y.arrays, frozenset(k for k in x.zero - _own(op, x, scale) if y.labelled(k)))


for _home in dequantize:
    _home.coupling(couple_dequantize)
for _home in quantize:
    _home.coupling(couple_quantize)


def in_range(op: Site, x: Tensor) -> Tensor:
    """Returns `x` without the freedom to lose slots that would count for its smallest and largest number."""
    moving = (k for k in range(len(x.shape)) if k not in x.zero)
    return op.tie(x, *moving, why="takes its range over channels that are not zero once they are cut")


@dynamic_quantize.coupling
def couple_dynamic_quantize(op: Site) -> list[Tensor]:
    """The range always includes 0, so slots that are zero when cut do not change it."""
    return [in_range(op, op[0]), Tensor(()), Tensor(())]


# ---------------------------------------------------------------- convolutions and matrix products
def couple_qlinear_conv(op: Site) -> Tensor:
    """A convolution with bias; padding stands at the zero point of the input."""
    if op.attr("channels_last", 0):
        raise Unsupported("channels-last layout")
    only_one(op, 1, 2, 6, 7)
    keep_pairs(op, 3, 1)
    y = convolve(op, op[0], op[3], w_slot=3, group=op.attr("group", 1), transposed=False)
    return columns(op, with_bias(op, y, op.get(8)), 1, 4, 5)


def columns(op: Site, y: Tensor, axis: int, *slots: int) -> Tensor:
    """Returns `y` with the scales and zero points of a weight, which may have an entry for each index of `axis`."""
    numbers = [on_axis(op, t, axis, len(y.shape)) for t in map(op.get, slots) if t is not None]
    return op.unify(y, *numbers, zero="first")


@conv_integer.coupling
def couple_conv_integer(op: Site) -> Tensor:
    """A convolution of numbers from which the zero points are taken off."""
    keep_pairs(op, 1, 1)
    y = convolve(op, op[0], op[1], w_slot=1, group=op.attr("group", 1), transposed=False)
    return columns(op, y, 1, 3)


def size_qlinear_conv(op: Sized) -> Iterable[Need]:
    """`group` is the number of living groups."""
    yield from living_groups(op, 3)


def macs_qlinear_conv(op: Node, x: Sequence[Shape | None], y: Sequence[Shape]) -> int:
    """Every output element takes one MAC per weight of its filter."""
    weight = x[1 if op.op == "ConvInteger" else 3]
    assert weight is not None
    return int(np.prod(y[0]) * np.prod(weight[1:]))


for _home in qlinear_conv:
    _home.coupling(couple_qlinear_conv)
    _home.sizes(size_qlinear_conv)
    _home.macs(macs_qlinear_conv)
    _home.linear(linear_qlinear_conv)
qlinear_matmul.linear(linear_qlinear_matmul)
qgemm.linear(linear_qgemm)
conv_integer.macs(macs_qlinear_conv)


@conv_integer.sizes
def size_conv_integer(op: Sized) -> Iterable[Need]:
    """`group` is the number of living groups."""
    yield from living_groups(op, 1)


@qlinear_matmul.coupling
def couple_qlinear_matmul(op: Site) -> Tensor:
    """A matrix product; scale and zero point of the second factor may have an entry for each column."""
    only_one(op, 1, 2, 6, 7)
    keep_pairs(op, 3, -2)
    return columns(op, matrix_product(op, op[0], op[3], [op.is_static(0), op.is_static(3)]), -1, 4, 5)


@qgemm.coupling
def couple_qgemm(op: Site) -> Tensor:
    """A matrix product plus an addend."""
    only_one(op, 1, 2, 7, 8)
    a, b = ("ca" if op.attr("transA", 0) else "ac"), ("bc" if op.attr("transB", 0) else "cb")
    keep_pairs(op, 3, b.index("c"))
    y, addend = op.product(f"{a},{b}->ab", 0, 3), op.get(6)
    return columns(op, y if addend is None else op.unify(y, addend), 1, 4, 5)


@matmul_integer.coupling
def couple_matmul_integer(op: Site) -> Tensor:
    """A matrix product of numbers from which the zero points are taken off."""
    only_one(op, 2)
    keep_pairs(op, 1, -2)
    return columns(op, matrix_product(op, op[0], op[1], [op.is_static(0), op.is_static(1)]), -1, 3)


@matmul_to_float.coupling
def couple_matmul_to_float(op: Site) -> Tensor:
    """A matrix product times both scales, plus a bias."""
    only_one(op, 2, 4)
    keep_pairs(op, 1, -2)
    y = matrix_product(op, op[0], op[1], [op.is_static(0), op.is_static(1)])
    return columns(op, y if op.get(6) is None else op.unify(y, op[6]), -1, 3, 5)


@dynamic_matmul.coupling
def couple_dynamic_matmul(op: Site) -> Tensor:
    """The first factor is quantized by its own range."""
    keep_pairs(op, 1, -2)
    y = matrix_product(op, in_range(op, op[0]), op[1], [op.is_static(0), op.is_static(1)])
    return columns(op, y if op.get(4) is None else op.unify(y, op[4]), -1, 2, 3)


qlinear_matmul.macs(macs_matmul)
qgemm.macs(macs_gemm)
matmul_integer.macs(macs_matmul)
matmul_to_float.macs(macs_matmul)
dynamic_matmul.macs(macs_matmul)


# ---------------------------------------------------------------- weights packed in blocks
def packed(op: Site, table: Tensor, blocks: int, whole: bool, *slots: int) -> Tensor:
    """Returns (rows, blocks) of a weight that is packed along its last axis, zero where a block's scale is cut.

    Args:
        op: the node.
        table: the packed weight, (rows, bytes) or (rows, blocks, bytes).
        blocks: how many blocks a row has.
        whole: whether blocks can go one by one.
        slots: inputs with a number for each block; of fewer where several blocks share a byte, which ties the blocks.
    """
    n = table.shape[0]
    whole = whole and int(np.prod(table.shape)) % (n * blocks) == 0
    parts = []
    for t in (table, *(t for t in map(op.get, slots) if t is not None)):
        each = int(np.prod(t.shape)) // n
        apart = op.reshape(t, (n, blocks, each // blocks) if whole and each % blocks == 0 else (n, 1, each))
        parts.append(drop_axes(_single(op.tie(apart, 2, why="packed together"), 2), [2]))
    if any(t.shape[1] < blocks for t in parts):
        parts = [_single(op.tie(t, 1, why="packed together"), 1) for t in parts]
    weight = op.unify(*parts, zero="first")
    return Tensor((n, blocks), weight.arrays, weight.zero)


def _single(t: Tensor, axis: int) -> Tensor:
    """Returns `t` with size 1 on an axis that no array spans."""
    return Tensor(tuple(1 if k == axis else n for k, n in enumerate(t.shape)), t.arrays, t.zero - {axis})


@matmul_nbits.coupling
def couple_matmul_nbits(op: Site) -> Tensor:
    """Outputs are rows of the weight; inputs are packed in blocks, each with a scale that is cut with it."""
    if op.has(4) or op.attr("weight_prepacked", 0):
        raise Unsupported("columns in another order")
    x, blocks, block = op[0], op.shape(1)[1], op.attr("block_size")
    weight = packed(op, op[1], blocks, op.attr("K") == blocks * block, 2, 3)
    if weight.labelled(1):
        x = op.tie(op.reshape(x, (*x.shape[:-1], blocks, block)), len(x.shape), why="packed together")
        x = drop_axes(_single(x, len(x.shape) - 1), [len(x.shape) - 1])
    else:
        x = op.tie(x, len(x.shape) - 1, why="packed together")
        x = Tensor((*x.shape[:-1], blocks), x.arrays, x.zero)
    lead = ascii_lowercase[: len(x.shape) - 1]
    y = op.product_of(f"{lead}z,yz->{lead}y", [x, weight], [op.is_static(0), op.is_static(1)])
    return y if op.get(5) is None else op.unify(y, op[5])


@matmul_nbits.sizes
def size_matmul_nbits(op: Sized) -> Iterable[Need]:
    """K inputs and N outputs stay."""
    for name, slot in (("K", 0), ("N", None)):
        size = op.new_out()[-1] if slot is None else op.new(slot)[-1]
        if op.attr(name) != size:
            yield Need(name, size)


@matmul_nbits.macs
def macs_matmul_nbits(op: Node, x: Sequence[Shape | None], y: Sequence[Shape]) -> int:
    """Every output element takes one MAC per contracted index."""
    assert x[0] is not None
    return int(np.prod(y[0]) * x[0][-1])


@gather_blocks.coupling
def couple_gather_blocks(op: Site) -> Tensor:
    """Rows are read at computed places; whole blocks of their channels can go."""
    rank, out, blocks = len(op[0].shape), op.out_shape(), op.shape(2)[-1]
    if rank != 2 or op.attr("gather_axis", 0) % rank or op.attr("quantize_axis", 1) % rank != 1 or blocks == 1:
        raise Unsupported("another layout than rows with a scale for each block")
    table = packed(op, op[0], blocks, out[-1] == blocks * op.attr("block_size", 128), 2, 3)
    table = op.tie(table, 0, why="is read at computed positions")
    if op.is_static(0) and not op.is_static(1):
        for a in table.arrays:
            op.produce(a)
    rows = op.take(table, 0, np.zeros(out[:-1], np.int64))
    if not rows.labelled(len(out) - 1):
        return Tensor(out, rows.arrays, rows.zero)
    wide = insert_axes(rows, [len(out)])
    return op.reshape(Tensor((*wide.shape[:-1], out[-1] // blocks), wide.arrays, wide.zero), out)


# ---------------------------------------------------------------- elementwise, pooling, concatenation
@qlinear_binary.coupling
def couple_qlinear_binary(op: Site) -> Tensor:
    """A sum is zero where both are, a product where one is."""
    return op.unify(op[0], op[3], zero="all" if op.op == "QLinearAdd" else "any")


@qlinear_where.coupling
def couple_qlinear_where(op: Site) -> Tensor:
    """The condition decides slot by slot; zero where both branches are."""
    branches = op.unify(op[1], op[4])
    y = op.unify(op[0], branches, zero="none")
    shift = len(y.shape) - len(branches.shape)
    return Tensor(y.shape, y.arrays, frozenset(k + shift for k in branches.zero))


@qlinear_unary.coupling
def couple_qlinear_unary(op: Site) -> Tensor:
    """The sigmoid of 0 is 0.5."""
    return op.unify(op[0], zero="none" if op.op == "QLinearSigmoid" else "all")


@qlinear_softmax.coupling
def couple_qlinear_softmax(op: Site) -> Tensor:
    """Every slot of the axis divides every other; before opset 13 all axes from it on."""
    rank = len(op[0].shape)
    axis, version = op.attr("axis", -1) % rank, op.attr("opset", 13)
    t = op.tie(op[0], *([axis] if version >= 13 else range(axis, rank)), why="normalised together")
    return Tensor(t.shape, t.arrays)


@qlinear_pool.coupling
@nhwc_max_pool.coupling
def couple_qlinear_pool(op: Site) -> Tensor:
    """A window of zeros gives zero."""
    rank = len(op[0].shape)
    last = op.attr("channels_last", 0) or op.op == "NhwcMaxPool"
    x = op.tie(op[0], *(range(1, rank - 1) if last else range(2, rank)), why="a window slides over it")
    return resized(x, op.out_shape())


@qlinear_concat.coupling
def couple_qlinear_concat(op: Site) -> Tensor:
    """Every third input from the third on is a tensor, its scale and zero point follow."""
    return op.concat([op[k] for k in range(2, len(op.inputs), 3)], op.attr("axis"))
