"""Convolutions: plain, grouped, depthwise and transposed, in any number of spatial axes.

Spec: https://onnx.ai/onnx/operators/onnx__Conv.html, https://onnx.ai/onnx/operators/onnx__ConvTranspose.html
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from onnxprune.engine.labels import Array
from onnxprune.engine.tensors import UNFED, Tensor
from onnxprune.ops.linear import linear_conv, linear_conv_transpose
from onnxprune.ops.registry import Need, Node, Shape, Site, Sized, Unsupported, operator

conv = operator(
    "Conv",
    doc="input channels with weight axis 1, output channels with weight axis 0 and bias; equally many in every group",
)
conv_transpose = operator(
    "ConvTranspose", doc="input channels with weight axis 0, output channels with axis 1 and bias"
)
deform_conv = operator("DeformConv", doc="as Conv; offsets and masks are tied, and channels with offsets of their own")
conv.linear(linear_conv)
conv_transpose.linear(linear_conv_transpose)


@conv.coupling
def couple_conv(op: Site) -> Tensor:
    """Contracts the input channels; every group is a row of two rectangles, (group, o) and (group, c)."""
    y = convolve(op, op[0], op[1], w_slot=1, group=op.attr("group", 1), transposed=False)
    return with_bias(op, y, op.get(2))


@conv_transpose.coupling
def couple_conv_transpose(op: Site) -> Tensor:
    """As Conv, with the weight's first two axes in each other's role."""
    y = convolve(op, op[0], op[1], w_slot=1, group=op.attr("group", 1), transposed=True)
    return with_bias(op, y, op.get(2))


@deform_conv.coupling
def couple_deform_conv(op: Site) -> Tensor:
    """As Conv, read at computed places: one offset for every place of the kernel, for all channels alike."""
    for t in (op[2], op.get(4)):
        if t is not None:
            op.tie(t, *range(1, len(t.shape)), why="says where a convolution reads")
    x = op[0] if op.attr("offset_group", 1) == 1 else op.tie(op[0], 1, why="has offsets of its own in every group")
    y = convolve(op, x, op[1], w_slot=1, group=op.attr("group", 1), transposed=False)
    return with_bias(op, y, op.get(3))


def convolve(op: Site, x: Tensor, w: Tensor, *, w_slot: int, group: int, transposed: bool) -> Tensor:
    """Returns the labelled result of a convolution without bias, for any operator that is one.

    A weight makes its outputs, also one that data scale before.
    """
    if len(x.shape) < 3:
        raise Unsupported("an input without spatial axes")
    x, w = (op.tie(t, *range(2, len(t.shape)), why="a convolution slides over it") for t in (x, w))
    spatial = op.out_shape()[2:]
    x2, w2 = _two_axes(x), _two_axes(w)
    if group == 1:
        y = op.product_of("nc,co->no" if transposed else "nc,oc->no", [x2, w2], [False, True])
    else:
        y = _grouped(op, x2, w2, w_slot, group, transposed)
    return Tensor(y.shape + spatial, tuple(a.reshape(a.shape + (1,) * len(spatial)) for a in y.arrays), y.zero)


def with_bias(op: Site, y: Tensor, bias: Tensor | None) -> Tensor:
    """Returns `y` plus a bias over its channels (axis 1)."""
    if bias is None:
        return y
    after = (1,) * (len(y.shape) - 2)
    return op.unify(y, op.reshape(bias, bias.shape + after))


def _two_axes(t: Tensor) -> Tensor:
    return Tensor(t.shape[:2], tuple(a.reshape(a.shape[:2]) for a in t.arrays), t.zero & {0, 1})


def _grouped(op: Site, x: Tensor, w: Tensor, w_slot: int, group: int, transposed: bool) -> Tensor:
    """Returns (n, group x o) labels: a group lives as long as any of its outputs and any of its inputs does."""
    n, channels = x.shape
    outs = w.shape[1] if transposed else w.shape[0] // group
    x = op.tidy(x)
    if w_slot not in op.direct or x.labelled(0):
        rows = op.reshape(x, (n, group, channels // group))
        factor = op.reshape(w, (group, channels // group, outs) if transposed else (group, outs, channels // group))
        equation = "ngc,gco->ngo" if transposed else "ngc,goc->ngo"
        y = op.product_of(equation, [rows, factor], [False, True])
        return op.reshape(y, (n, group * outs))
    o, heads = op.labels.fresh(group, outs), op.labels.fresh(group, 1)
    op.produce(o)
    op.derive(heads, o)
    given = x.on(1)
    cells = heads
    if given is None:
        op.freeze(heads, UNFED)
    else:
        cells = given.reshape(group, channels // group)
        op.derive(heads, cells)
    op.labels.balances += [o, cells]
    op.claims[w_slot] = _weight_arrays(o, cells, w.shape, len(op.shape(w_slot)), transposed)
    y = Tensor((n, group * outs), (o.reshape(1, -1),) if o.size > 1 else (), frozenset({1}))
    return op.tidy(y)


def _weight_arrays(o: Array, c: Array, shape: Sequence[int], rank: int, transposed: bool) -> tuple[Array, ...]:
    """Returns the arrays of a grouped weight: one over axis 0, one over axes 0 and 1; an element lives if both do."""
    (group, outs), ins = o.shape, c.shape[-1]
    after = (1,) * (rank - 2)
    if transposed:  # (group * c, o)
        channels = shape[0] // group
        first = np.broadcast_to(c, (group, channels)).reshape(-1, 1, *after)
        both = np.broadcast_to(o[:, None, :], (group, channels, outs)).reshape(-1, outs, *after)
    else:  # (group * o, c)
        first = o.reshape(-1, 1, *after)
        both = np.broadcast_to(c[:, None, :], (group, outs, ins)).reshape(-1, ins, *after)
    return first, both


@conv.sizes
@deform_conv.sizes
@conv_transpose.sizes
def size_group(op: Sized) -> Iterable[Need]:
    """`group` is the number of living groups."""
    yield from living_groups(op, 1)


def living_groups(op: Sized, w_slot: int) -> Iterable[Need]:
    """Yields the number of living groups: living input channels over those of one group."""
    group = op.attr("group", 1)
    if group > 1:
        channels, weight = op.new(0)[1], op.new(w_slot)
        alive = channels // weight[1] if op.op != "ConvTranspose" else op.new_out()[1] // weight[1]
        if alive != group:
            yield Need("group", alive)


@conv.macs
@deform_conv.macs
def macs_conv(op: Node, x: Sequence[Shape | None], y: Sequence[Shape]) -> int:
    """Every output element takes one MAC per weight of its filter."""
    assert x[1] is not None
    return int(np.prod(y[0]) * np.prod(x[1][1:]))


@conv_transpose.macs
def macs_conv_transpose(op: Node, x: Sequence[Shape | None], y: Sequence[Shape]) -> int:
    """Every input element takes one MAC per weight that it is multiplied with."""
    assert x[0] is not None and x[1] is not None
    return int(np.prod(x[0]) * np.prod(x[1][1:]))
