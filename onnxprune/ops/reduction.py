"""Reductions, Softmax and whatever else looks along an axis as a whole.

Spec: https://onnx.ai/onnx/operators/onnx__ReduceSum.html, https://onnx.ai/onnx/operators/onnx__Softmax.html
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.engine.tensors import Tensor
from onnxprune.ops.elementwise import freeze_zero_axes
from onnxprune.ops.pooling import resized
from onnxprune.ops.registry import Scale, Site, Sized, Unsupported, operator
from onnxprune.ops.zero_points import MOVING

exact = operator(
    *("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"),
    size_slots=(1,),
    doc="the reduced axis can be cut where its slots are zero, else it is tied",
)
mean = operator(
    "ReduceMean",
    size_slots=(1,),
    doc="the reduced axis can be cut where its slots are zero (a factor restores the mean), else it is tied",
)
tying = operator(
    *("ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSum", "ReduceLogSumExp"),
    size_slots=(1,),
    doc="extremes: the reduced axis can be cut where its slots are zero (a node behind minds the 0), else, and where "
    "candidates are picked by them, it is tied",
)
softmax = operator("Softmax", "LogSoftmax", "Hardmax", doc="the axis is tied (before opset 13 all axes from it on)")
along = operator("CumSum", "LpNormalization", doc="the axis can be cut where its slots are zero, else it is tied")
products = operator("CumProd", doc="the axis is tied")
fourier = operator("DFT", doc="the axis and that of the two parts of a complex number are tied")
over = operator(
    "MeanVarianceNormalization", "LRN", doc="the channels are tied (of MeanVarianceNormalization, all axes)"
)
topk = operator("TopK", size_slots=(1,), doc="the axis is tied")
arg = operator("ArgMax", "ArgMin", doc="the axis is tied")
trilu = [operator("Trilu", domain=d, doc="the last two axes are tied") for d in ("", "com.microsoft")]


DECIDING = frozenset({"TopK", "ArgMax", "ArgMin", "NonMaxSuppression"})
PASSING = MOVING | {"Sigmoid", "Cast", "Mul", "Where"}


def reduced_axes(op: Site, since: int) -> list[int]:
    """Returns the axes of a reduction: an input from opset `since` on, an attribute before."""
    rank = len(op[0].shape)
    if op.has(1):
        given = op.value(1)
        if given is None:
            raise Unsupported("its axes are computed at run time")
        axes = [int(k) % rank for k in given.reshape(-1)]
    else:
        axes = [k % rank for k in op.attr("axes", ())]
    if not axes and not op.attr("noop_with_empty_axes", 0):
        return list(range(rank))
    return axes


@exact.coupling
def couple_exact(op: Site) -> Tensor:
    """Zero slots add nothing."""
    return op.reduce(op[0], reduced_axes(op, 13), keepdims=bool(op.attr("keepdims", 1)), exact=True)


@mean.coupling
def couple_mean(op: Site) -> Tensor:
    """Zero slots add nothing to the sum; that it is divided by fewer slots is put right by a factor behind it."""
    exact_or_opened = (
        op[0] if not op.approximate else Tensor(op[0].shape, op[0].arrays, frozenset(range(len(op[0].shape))))
    )
    why = "averages channels that are not zero once they are cut"
    axes = reduced_axes(op, 18)
    return op.reduce(exact_or_opened, axes, keepdims=bool(op.attr("keepdims", 1)), exact=True, why=why)


@mean.sizes
def size_mean(op: Sized) -> Iterable[Scale]:
    """Kept over old slots of the axes that are averaged."""
    old, new = op.old(0), op.new(0)
    given = op.before(1) if op.has(1) else None
    axes = op.attr("axes", ()) if given is None else given.reshape(-1).tolist()
    if not axes and op.attr("noop_with_empty_axes", 0):
        return
    axes = axes or range(len(old))
    kept = math.prod(new[k] for k in axes) / math.prod(old[k] for k in axes)
    if kept != 1 and not op.approximate:
        yield Scale(kept, output=0)


@tying.coupling
def couple_tying(op: Site) -> Tensor:
    """Looks at every slot of the axis."""
    if op.op == "ReduceLogSum":
        freeze_zero_axes(op, op[0], "the logarithm of a sum that would be zero where it is cut")
    # an extreme is that of the kept slots and of 0, which the cut ones are
    exact = op.op in ("ReduceMax", "ReduceMin") and op.version >= 8
    why = "compares channels that are not zero once they are cut"
    if exact and _decides(op.node.outputs[0]):
        exact, why = False, "candidates are picked by the largest of these, which a cut one, at 0, could be"
    out = op.reduce(op[0], reduced_axes(op, 18), keepdims=bool(op.attr("keepdims", 1)), exact=exact, why=why)
    return out if op.op in ("ReduceMax", "ReduceMin", "ReduceProd") else Tensor(out.shape, out.arrays)


def _decides(value: ir.Value) -> bool:
    """Returns whether candidates are picked by these numbers, as they are or moved to other places."""
    seen, front = set[int](), [value]
    while front:
        for use in front.pop().uses():
            if use.node.op_type in DECIDING:
                return True
            if use.node.op_type in PASSING and id(use.node) not in seen:
                seen.add(id(use.node))
                front += use.node.outputs
    return False


@tying.sizes
def size_tying(op: Sized) -> Iterable[Scale]:
    """An extreme over slots of which some are zero is that of the kept ones and of 0."""
    given = op.before(1) if op.has(1) else None
    axes = op.attr("axes", ()) if given is None else given.reshape(-1).tolist()
    if not axes and op.attr("noop_with_empty_axes", 0):
        return
    if op.op in ("ReduceMax", "ReduceMin") and any(k in op.cut_axes(0) for k in _from_zero(axes, len(op.old(0)))):
        yield Scale(0.0, output=0, by="Max" if op.op == "ReduceMax" else "Min")


def _from_zero(axes: Sequence[int], rank: int) -> list[int]:
    return [int(k) % rank for k in axes] or list(range(rank))


@softmax.coupling
def couple_softmax(op: Site) -> Tensor:
    """Every slot of the axis divides every other; nothing is zero afterwards."""
    rank = len(op[0].shape)
    axis = op.attr("axis", -1 if op.version >= 13 else 1) % rank
    axes = [axis] if op.version >= 13 else range(axis, rank)
    t = op.tie(op[0], *axes, why="normalised together")
    return Tensor(t.shape, t.arrays)


@along.coupling
def couple_along(op: Site) -> Tensor:
    """Zero slots add nothing to running sums and norms."""
    rank = len(op[0].shape)
    if op.op == "LpNormalization":
        axes = [op.attr("axis", -1) % rank]
    else:
        axis = op.value(1)
        axes = list(range(rank)) if axis is None else [int(axis.reshape(-1)[0]) % rank]
    t = op.tie(
        op[0], *(k for k in axes if k not in op[0].zero), why="runs along channels that are not zero once they are cut"
    )
    return t if op.op == "LpNormalization" else Tensor(t.shape, t.arrays, t.zero - set(axes))


@products.coupling
def couple_products(op: Site) -> Tensor:
    """A zero would make everything behind it zero."""
    axis = op.value(1)
    if axis is None:
        raise Unsupported("its axis is computed at run time")
    t = op.tie(op[0], int(axis.reshape(-1)[0]) % len(op[0].shape), why="runs along the channels")
    return Tensor(t.shape, t.arrays)


@fourier.coupling
def couple_fourier(op: Site) -> Tensor:
    """A linear map of the axis: what is zero elsewhere stays zero."""
    rank = len(op[0].shape)
    axis = op.attr("axis", 1)
    if op.version >= 20:
        given = op.value(2) if op.has(2) else np.array(-2)
        if given is None:
            raise Unsupported("its axis is computed at run time")
        axis = int(given.reshape(-1)[0])
    t = op.tie(op[0], axis % rank, rank - 1, why="is transformed as a whole")
    return resized(t, op.out_shape())


@over.coupling
def couple_over(op: Site) -> Tensor:
    """LRN normalises over channels; MeanVarianceNormalization has no epsilon in onnxruntime."""
    if op.op == "LRN":
        return op.tie(op[0], 1, why="normalised together")
    return op.tie_all(op[0], "onnxruntime divides by a variance that would be zero where it is cut")


@topk.coupling
def couple_topk(op: Site) -> list[Tensor]:
    """Values and indices keep the other axes."""
    t = op.tie(op[0], op.attr("axis", -1) % len(op[0].shape), why="picks along the axis")
    out = resized(t, op.out_shape())
    return [out, Tensor(out.shape, out.arrays)]


@arg.coupling
def couple_arg(op: Site) -> Tensor:
    """An index into the axis: all of it stays."""
    axis = op.attr("axis", 0)
    t = op.reduce(op[0], [axis], keepdims=bool(op.attr("keepdims", 1)), exact=False, why="an index into the axis")
    return Tensor(t.shape, t.arrays)


def couple_trilu(op: Site) -> Tensor:
    """Looks at positions on the last two axes."""
    rank = len(op[0].shape)
    return op.tie(op[0], rank - 2, rank - 1, why="depends on the position")


for _home in trilu:
    _home.coupling(couple_trilu)
