"""Gathering and scattering: embeddings, tables, constant and computed indices.

Spec: https://onnx.ai/onnx/operators/onnx__Gather.html, https://onnx.ai/onnx/operators/onnx__ScatterND.html
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from onnxprune.engine.tensors import Tensor
from onnxprune.ops.registry import Need, Site, Sized, operator

gather = operator(
    "Gather",
    size_slots=(1,),
    doc="constant indices move labels; computed ones tie the axis (an embedding's other axis passes)",
)
gather_nd = operator(
    "GatherND", size_slots=(1,), doc="the indexed axes are tied, the others pass (also those of a table)"
)
scatter_nd = operator("ScatterND", size_slots=(1,), doc="the indexed axes are tied, the others unify with the updates")


@gather.coupling
def couple_gather(op: Site) -> Tensor:
    """Constant indices run on the labels; a parameter read at computed places produces its other axes."""
    t, axis = op[0], op.attr("axis", 0) % len(op[0].shape)
    index = op.value(1)
    if index is not None and t.labelled(axis):
        return op.take(t, axis, index.astype(np.int64) % t.shape[axis])
    t = op.tie(t, axis, why="is read at computed positions")
    if op.is_static(0) and not op.is_static(1):
        for a in t.arrays:
            op.produce(a)
    places = np.zeros(op.shape(1), np.int64)
    return op.take(t, axis, places)


@gather.sizes
def size_gather(op: Sized) -> Iterable[Need]:
    """Constant indices into a cut axis become ranks among the kept; those of cut slots go."""
    axis = op.attr("axis", 0) % len(op.old(0))
    index = op.before(1)
    if axis not in op.cut_axes(0) or index is None:
        return
    n = op.old(0)[axis]
    rank = np.full(n, -1)
    rank[op.kept(0, axis)] = np.arange(op.new(0)[axis])
    new = rank[index.astype(np.int64) % n]
    for k in range(index.ndim):
        new = new.take(op.kept_out(axis + k), k)
    new = new.astype(index.dtype)
    yield Need(1, (new, new))


@gather_nd.coupling
def couple_gather_nd(op: Site) -> Tensor:
    """The first axes are indexed; what lies behind them passes."""
    batch, depth = op.attr("batch_dims", 0), op.shape(1)[-1]
    t = op.tie(op[0], *range(batch + depth), why="is read at computed positions")
    if op.is_static(0) and not op.is_static(1):
        for a in t.arrays:
            op.produce(a)
    lead = len(op.out_shape()) - (len(t.shape) - batch - depth)
    arrays = tuple(a.reshape((1,) * lead + a.shape[batch + depth :]) for a in t.arrays)
    zero = frozenset(k - batch - depth + lead for k in t.zero if k >= batch + depth)
    return op.tidy(Tensor(op.out_shape(), arrays, zero))


@scatter_nd.coupling
def couple_scatter_nd(op: Site) -> Tensor:
    """Updates replace rows; the axes behind the indexed ones are tied to those of the updates."""
    depth = op.shape(1)[-1]
    data = op.tie(op[0], *range(depth), why="is written at computed positions")
    lead = len(op.shape(1)) - 1
    updates = op.tie(op[2], *range(lead), why="is written at computed positions")
    tail_data = Tensor(data.shape[depth:], tuple(a.reshape(a.shape[depth:]) for a in data.arrays), _shift(data, depth))
    tail = Tensor(updates.shape[lead:], tuple(a.reshape(a.shape[lead:]) for a in updates.arrays), _shift(updates, lead))
    both = op.unify(tail_data, tail)
    arrays = tuple(a.reshape((1,) * depth + a.shape) for a in both.arrays)
    return Tensor(data.shape, arrays, frozenset(k + depth for k in both.zero))


def _shift(t: Tensor, lead: int) -> frozenset[int]:
    return frozenset(k - lead for k in t.zero if k >= lead)
