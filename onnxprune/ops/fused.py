"""Operators that onnxruntime's optimisers fuse: each has the labels of the operators that it is made of.

Spec: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from onnxprune.engine.tensors import Tensor, insert_axes
from onnxprune.ops.conv import convolve, living_groups, macs_conv, with_bias
from onnxprune.ops.linear import linear_fused_conv, linear_fused_gemm, linear_fused_matmul
from onnxprune.ops.matmul import macs_gemm, matrix_product
from onnxprune.ops.normalization import (
    mean_and_variance,
    restored_root_mean_square,
    root_mean_square,
    size_rms_norm,
)
from onnxprune.ops.registry import Need, Node, Scale, Shape, Site, Sized, Unsupported, operator

MS = "com.microsoft"

fused_conv = operator("FusedConv", domain=MS, doc="as Conv, then elementwise with the tensor that is added")
fused_gemm = operator("FusedGemm", domain=MS, doc="as Gemm")
fused_matmul = operator("FusedMatMul", "TransposeMatMul", domain=MS, doc="as MatMul of the transposed factors")
skip_layer_norm = operator("SkipLayerNormalization", domain=MS, doc="elementwise; the last axis is tied")
skip_rms_norm = operator(
    "SkipSimplifiedLayerNormalization", domain=MS, doc="elementwise, then as RMSNormalization over the last axis"
)
simplified = operator("SimplifiedLayerNormalization", doc="as RMSNormalization")
embed = operator("EmbedLayerNormalization", domain=MS, doc="embeddings and normalisation: the last axis is tied")

SILENT = {"Relu", "LeakyRelu", "Tanh", "Elu", "Selu", "Celu", "Gelu", "HardSwish", "ThresholdedRelu", "Softsign"}


# ---------------------------------------------------------------- matrix products
@fused_conv.coupling
def couple_fused_conv(op: Site) -> Tensor:
    """A convolution plus bias, plus a residual tensor, then an activation."""
    y = with_bias(op, convolve(op, op[0], op[1], w_slot=1, group=op.attr("group", 1), transposed=False), op.get(2))
    added = op.get(3)
    return activated(op, y if added is None else op.unify(y, added))


def activated(op: Site, y: Tensor) -> Tensor:
    """Returns `y` behind the activation that the node names: cut slots stay zero only if f(0) = 0."""
    name = op.attr("activation") or "Relu"
    name = name if isinstance(name, str) else name.decode()
    low, high = (*op.attr("activation_params", ()), *(-np.inf, np.inf))[:2] if name == "Clip" else (0, 0)
    silent = name in SILENT or (name == "Clip" and low <= 0 <= high)
    return y if silent else Tensor(y.shape, y.arrays)


@fused_conv.sizes
def size_fused_conv(op: Sized) -> Iterable[Need]:
    """`group` is the number of living groups."""
    yield from living_groups(op, 1)


@fused_gemm.coupling
def couple_fused_gemm(op: Site) -> Tensor:
    """A matrix product plus an addend, then an activation."""
    a, b = ("ca" if op.attr("transA", 0) else "ac"), ("bc" if op.attr("transB", 0) else "cb")
    y, addend = op.product(f"{a},{b}->ab", 0, 1), op.get(2)
    return activated(op, y if addend is None else op.unify(y, addend))


@fused_matmul.coupling
def couple_fused_matmul(op: Site) -> Tensor:
    """A matrix product of factors that are transposed first."""
    factors = [_turned(op, op[k], name) for k, name in enumerate("AB")]
    return matrix_product(op, factors[0], factors[1], [op.is_static(0), op.is_static(1)])


def _turned(op: Site, t: Tensor, name: str) -> Tensor:
    """Returns a factor as MatMul takes it: with `transBatch` its first axis stands behind the batch axes."""
    order = list(range(len(t.shape)))
    if op.attr(f"transBatch{name}", 0) and len(order) > 2:
        order = [*order[1:-1], 0, order[-1]]
    if op.attr(f"trans{name}", 0) and len(order) > 1:
        order[-2:] = order[:-3:-1]
    return op.transpose(t, order)


fused_conv.macs(macs_conv)
fused_conv.linear(linear_fused_conv)
fused_gemm.macs(macs_gemm)
fused_gemm.linear(linear_fused_gemm)
fused_matmul.linear(linear_fused_matmul)


@fused_matmul.macs
def macs_fused_matmul(op: Node, x: Sequence[Shape | None], y: Sequence[Shape]) -> int:
    """Every output element takes one MAC per contracted index."""
    assert x[0] is not None
    inner = x[0][-1]
    if op.attr("transA", 0) and len(x[0]) > 1:
        inner = x[0][0 if op.attr("transBatchA", 0) and len(x[0]) > 2 else -2]
    return int(np.prod(y[0]) * inner)


# ---------------------------------------------------------------- normalisations
@skip_layer_norm.coupling
def couple_skip_layer_norm(op: Site) -> list[Tensor | None]:
    """The sum of input, residual and bias is normalised, and may be an output of its own."""
    total = _sum(op, 4)
    y, stats = mean_and_variance(op, total, op[2], op.get(3))
    found: list[Tensor | None] = [y, stats, stats, op.tidy(total)]
    return found[: len(op.node.outputs)]


def _sum(op: Site, bias: int) -> Tensor:
    """Returns the first two inputs and the bias added up."""
    return op.unify(op[0], op[1], *(t for t in (op.get(bias),) if t is not None))


@skip_rms_norm.coupling
def couple_skip_rms_norm(op: Site) -> list[Tensor | None]:
    """As RMSNormalization of the sum of input, residual and bias."""
    if any(v.name for v in op.node.outputs[1:3]):
        raise Unsupported("its statistics are read")
    total = _sum(op, 3)
    y = root_mean_square(op, total, 2)
    return [y, None, None, op.tidy(total)][: len(op.node.outputs)]


@skip_rms_norm.sizes
def size_skip_rms_norm(op: Sized) -> Iterable[Need | Scale]:
    """As RMSNormalization; epsilon is 1e-12 unless given."""
    yield from restored_root_mean_square(op, 0, 2, epsilon=1e-12)


@simplified.coupling
def couple_simplified(op: Site) -> list[Tensor | None]:
    """The name of RMSNormalization before opset 23."""
    if any(v.name for v in op.node.outputs[1:]):
        raise Unsupported("its statistics are read")
    return [root_mean_square(op, op[0], 1), *[None] * (len(op.node.outputs) - 1)]


simplified.sizes(size_rms_norm)


@embed.coupling
def couple_embed(op: Site) -> list[Tensor | None]:
    """Tables read at computed positions, added up and normalised; their sum may be an output of its own."""
    rows = [Tensor((*op.shape(0), 1))]
    for t in (op[2], op[3], op.get(4)):
        if t is not None:
            table = op.tie(t, 0, why="is read at computed positions")
            for a in table.arrays:
                op.produce(a)
            rows.append(insert_axes(op.take(table, 0, np.zeros((), np.int64)), [0, 1]))
    total = op.unify(*rows, zero="none")
    total = Tensor(total.shape, total.arrays, frozenset({2} if total.labelled(2) else ()))
    y, _ = mean_and_variance(op, total, op[5], op[6])
    mask = Tensor(op.out_shape(1)) if len(op.node.outputs) > 1 and op.node.outputs[1].name else None
    return [y, mask, op.tidy(total)][: len(op.node.outputs)]
