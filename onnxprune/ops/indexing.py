"""Gathering and scattering: embeddings, tables, constant and computed indices.

Spec: https://onnx.ai/onnx/operators/onnx__Gather.html, https://onnx.ai/onnx/operators/onnx__ScatterND.html,
https://onnx.ai/onnx/operators/onnx__GatherElements.html, https://onnx.ai/onnx/operators/onnx__TensorScatter.html
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from onnxprune.engine.tensors import Tensor, insert_axes, spans
from onnxprune.ops.registry import Need, Site, Sized, differs, operator, ranks

gather = operator(
    "Gather",
    size_slots=(1,),
    doc="constant indices move labels; computed ones tie the axis (an embedding's other axis passes)",
)
gather_nd = [
    operator(
        "GatherND", domain=d, size_slots=(1,), doc="the indexed axes are tied, the others pass (also those of a table)"
    )
    for d in ("", "com.microsoft")
]
scatter_nd = operator(
    "ScatterND",
    size_slots=(1,),
    doc="a block at known positions (`x[:, 2:5] = y`) unifies with the updates; else the indexed axes are tied, the "
    "others unify with those of the updates",
)
gather_elements = operator("GatherElements", doc="the axis is tied, the others unify with those of the indices")
scatter_elements = operator(
    "ScatterElements", "Scatter", doc="the axis is tied, the others unify with those of the indices and updates"
)
tensor_scatter = operator("TensorScatter", doc="the axis is tied, the others unify with those of the update")
compress = operator("Compress", doc="the axis is tied, the others pass; without an axis all are tied")
reverse = operator("ReverseSequence", doc="the axes of time and batch are tied, the others pass")
WRITTEN = "is written at computed positions"
READ = "is read at computed positions"


@gather.coupling
def couple_gather(op: Site) -> Tensor:
    """Constant indices run on the labels; a parameter read at computed places produces its other axes."""
    t, axis = op[0], op.attr("axis", 0) % len(op[0].shape)
    index = op.value(1)
    if index is not None and t.labelled(axis):
        return op.take(t, axis, index.astype(np.int64) % t.shape[axis])
    t = _table(op, op.tie(t, axis, why=READ))
    places = op[1]
    behind = len(t.shape) - axis - 1
    rows = insert_axes(op.take(t, axis, np.zeros((), np.int64)), range(axis, axis + len(places.shape)))
    wide = insert_axes(places, [*range(axis), *range(axis + len(places.shape), axis + len(places.shape) + behind)])
    return op.unify(rows, wide, zero="first")


def _table(op: Site, t: Tensor) -> Tensor:
    """Returns `t`, whose labels are produced here if it is a table that is read at computed places."""
    if op.is_static(0) and not op.is_static(1):
        for a in t.arrays:
            op.produce(a)
    return t


@gather.sizes
def size_gather(op: Sized) -> Iterable[Need]:
    """Constant indices into a cut axis become ranks among the kept; those of cut slots go."""
    axis = op.attr("axis", 0) % len(op.old(0))
    index = op.before(1)
    if axis not in op.cut_axes(0) or index is None:
        return
    new = ranks(op, axis)[index.astype(np.int64) % op.old(0)[axis]]
    for k in range(index.ndim):
        new = new.take(op.kept_out(axis + k), k)
    new = new.astype(index.dtype)
    yield Need(1, (new, new))


def couple_gather_nd(op: Site) -> Tensor:
    """The first axes are indexed; what lies behind them passes."""
    batch, depth = op.attr("batch_dims", 0), op.shape(1)[-1]
    op.tie_all(op[1], "says where channels are read")
    t = _table(op, op.tie(op[0], *range(batch + depth), why=READ))
    lead = len(op.out_shape()) - (len(t.shape) - batch - depth)
    arrays = tuple(a.reshape((1,) * lead + a.shape[batch + depth :]) for a in t.arrays)
    zero = frozenset(k - batch - depth + lead for k in t.zero if k >= batch + depth)
    return op.tidy(Tensor(op.out_shape(), arrays, zero))


for _home in gather_nd:
    _home.coupling(couple_gather_nd)


@scatter_nd.coupling
def couple_scatter_nd(op: Site) -> Tensor:
    """Updates replace a block or rows; the axes behind the indexed ones are tied to those of the updates."""
    depth = op.shape(1)[-1]
    op.tie_all(op[1], "says where channels are written")
    if (block := _into_block(op)) is not None:
        return block
    data = op.tie(op[0], *range(depth), why=WRITTEN)
    lead = len(op.shape(1)) - 1
    updates = op.tie(op[2], *range(lead), why=WRITTEN)
    tail_data = Tensor(data.shape[depth:], tuple(a.reshape(a.shape[depth:]) for a in data.arrays), _shift(data, depth))
    tail = Tensor(updates.shape[lead:], tuple(a.reshape(a.shape[lead:]) for a in updates.arrays), _shift(updates, lead))
    both = op.unify(tail_data, tail)
    arrays = tuple(a.reshape((1,) * depth + a.shape) for a in both.arrays)
    return Tensor(data.shape, arrays, frozenset(k + depth for k in both.zero))


def _into_block(op: Site) -> Tensor | None:
    """Returns what is written to where the places are known and make a block of rows of each axis, else None."""
    one, other = map(_block, op.values(1) or (np.zeros(0), np.zeros(0)))
    data, updates = op.tidy(op[0]), op.tidy(op[2])
    if one is None or other is None or not any(data.labelled(axis) for axis in range(len(one))):
        return None
    part = data
    for axis, (rows, again) in enumerate(zip(one, other, strict=True)):
        if data.labelled(axis) and not np.array_equal(rows, again):
            return None
        part = op.take(part, axis, rows % data.shape[axis])
    pairs = ((spans(a), spans(b)) for a in part.arrays for b in updates.arrays)
    if any(a != b and {*a} & {*b} for a, b in pairs):
        return None
    return op.tidy(Tensor(data.shape, data.arrays, op.unify(part, updates).zero))


def _block(index: np.ndarray) -> list[np.ndarray] | None:
    """Returns the rows of each axis where an index holds each combination of them once, in their order, else None."""
    depth = index.ndim - 1
    if not index.size or index.shape[-1] != depth:
        return None
    rows = [np.moveaxis(index[..., k], k, 0).reshape(index.shape[k], -1)[:, 0] for k in range(depth)]
    whole = np.array_equal(np.stack(np.meshgrid(*rows, indexing="ij"), -1), index)
    return rows if whole and all(len(np.unique(r)) == len(r) for r in rows) else None


@scatter_nd.sizes
def size_scatter_nd(op: Sized) -> Iterable[Need]:
    """Positions of a block on a cut axis become ranks among those that stay; those of cut slots go."""
    wanted = []
    for run in (0, 1):
        index = op.before(1, run)
        rows = None if index is None else _block(index)
        if rows is None:
            return
        for axis in set(op.cut_axes(0)).intersection(range(len(rows))):
            rank = ranks(op, axis)[rows[axis] % op.old(0)[axis]]
            rows[axis] = rank[rank >= 0]
        wanted.append(np.stack(np.meshgrid(*rows, indexing="ij"), -1))
    if differs(op, 1, wanted):
        yield Need(1, tuple(wanted))


def _shift(t: Tensor, lead: int) -> frozenset[int]:
    return frozenset(k - lead for k in t.zero if k >= lead)


# ---------------------------------------------------------------- element by element along an axis
@gather_elements.coupling
def couple_gather_elements(op: Site) -> Tensor:
    """Every index reads its own row: the axes that are not read along have the size of the indices."""
    axis = op.attr("axis", 0) % len(op[0].shape)
    data, index = _rows(op, axis, READ, op[0], op[1])
    return op.unify(_table(op, data), index, zero="first")


def _rows(op: Site, axis: int, why: str, *tensors: Tensor) -> list[Tensor]:
    """Returns tensors that meet element by element, but along `axis`, where the first has size 1."""
    shapes = [t.shape for t in tensors]
    uneven = {k for k in range(len(shapes[0])) if len({shape[k] for shape in shapes}) > 1 or op.out_dynamic()[k]}
    found = [op.tie(t, axis, *uneven, why=why) for t in tensors]
    single = {axis, *uneven}
    first = tuple(1 if k in single else n for k, n in enumerate(shapes[0]))
    return [Tensor(first, found[0].arrays, found[0].zero), *found[1:]]


@scatter_elements.coupling
def couple_scatter_elements(op: Site) -> Tensor:
    """Every index writes into its own row; sums, products and extremes of zeros are zero."""
    axis = op.attr("axis", 0) % len(op[0].shape)
    data, index, updates = _rows(op, axis, WRITTEN, op[0], op[1], op[2])
    return _written(op, data, index, updates)


@tensor_scatter.coupling
def couple_tensor_scatter(op: Site) -> Tensor:
    """A cache is written from a position on."""
    axis = op.attr("axis", -2) % len(op[0].shape)
    cache, update = _rows(op, axis, WRITTEN, op[0], op[1])
    return _written(op, cache, update)


def _written(op: Site, data: Tensor, *others: Tensor) -> Tensor:
    """Returns `data` unified with what is written, the last of the others; zero where both are."""
    both = op.unify(data, *(Tensor(_ones(t, data), t.arrays, t.zero) for t in others), zero="none")
    zero = frozenset(k for k in data.zero & others[-1].zero if both.labelled(k))
    return Tensor(op.shape(0), both.arrays, zero)


def _ones(t: Tensor, data: Tensor) -> tuple[int, ...]:
    """Returns the shape of `t` with size 1 where `data` has it."""
    return tuple(1 if m == 1 else n for n, m in zip(t.shape, data.shape, strict=True))


# ---------------------------------------------------------------- whole rows
@compress.coupling
def couple_compress(op: Site) -> Tensor:
    """A condition picks along the axis."""
    op.tie_all(op[1], "says which channels are taken")
    if op.attr("axis") is None:
        return Tensor(op.out_shape(), (op.tie_all(op[0], "is flattened and picked from")).arrays)
    t = op.tie(op[0], op.attr("axis") % len(op[0].shape), why="is picked from at run time")
    return Tensor(op.out_shape(), t.arrays, t.zero)


@reverse.coupling
def couple_reverse(op: Site) -> Tensor:
    """The first steps of each sample are turned round."""
    return op.tie(op[0], op.attr("time_axis", 0), op.attr("batch_axis", 1), why="is turned round in time")
