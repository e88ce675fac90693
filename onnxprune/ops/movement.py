"""Operators that only move elements: the same numpy operation runs on the labels.

Spec: https://onnx.ai/onnx/operators/onnx__Reshape.html and its neighbours
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from onnxprune.engine.tensors import Tensor, drop_axes, insert_axes
from onnxprune.ops.registry import Need, Pair, Site, Sized, Unsupported, arriving_sizes, differs, operator, ranks
from onnxprune.ops.sizes_in_graph import made

reshape = operator(
    "Reshape", size_slots=(1,), doc="labels are reshaped; arrays that fall into one block of axes are joined"
)
flatten = operator("Flatten", doc="as Reshape")
transpose = operator("Transpose", doc="labels are transposed")
squeeze = operator("Squeeze", size_slots=(1,), doc="labels keep their axes")
unsqueeze = operator("Unsqueeze", size_slots=(1,), doc="labels keep their axes")
concat = operator("Concat", doc="labels are concatenated; the other axes are tied")
split = operator("Split", size_slots=(1,), doc="labels are split")
slice_ = operator(
    "Slice",
    size_slots=(1, 2, 3, 4),
    doc="labels are sliced; computed bounds that vary tie the axis, but where they are its own sizes",
)
tile = operator("Tile", size_slots=(1,), doc="labels are repeated; copies of an axis of size 1 follow what they meet")
pad = [
    operator(
        "Pad",
        domain=d,
        size_slots=(1, 3),
        doc="padding gets labels of its own; modes other than constant, and amounts that vary, tie the axis",
    )
    for d in ("", "com.microsoft")
]
depth_to_space = operator("DepthToSpace", doc="the b x b copies of a channel are tied")
space_to_depth = operator("SpaceToDepth", doc="every channel becomes b x b of one label")


# ---------------------------------------------------------------- Reshape, Flatten
@reshape.coupling
@flatten.coupling
def couple_reshape(op: Site) -> Tensor:
    """Elements keep their order."""
    return op.reshape(op[0], op.out_shape())


def reshaped(shape: Sequence[int], target: Sequence[int], allowzero: int) -> tuple[int, ...] | None:
    """Returns the shape that Reshape makes of `shape` with `target`, None where it would fail."""
    if any(n == 0 and not allowzero and k >= len(shape) for k, n in enumerate(target)):
        return None
    out = [int(shape[k]) if n == 0 and not allowzero else int(n) for k, n in enumerate(target)]
    total, known = int(np.prod(shape)), int(np.prod([n for n in out if n != -1]))
    if -1 in out:
        if known == 0 or total % known:
            return None
        out[out.index(-1)] = total // known
    return tuple(out) if int(np.prod(out)) == total else None


@reshape.sizes
def size_reshape(op: Sized) -> Iterable[Need]:
    """Only the entries that are wrong after the cut are asked for anew."""
    wanted: list[np.ndarray] = []
    for run in (0, 1):
        target = arriving_sizes(op, 1, run) if op.has(1) else np.array(op.attr("shape"), np.int64)
        if target is None:
            return
        new, allowzero = op.new_out(0, run), op.attr("allowzero", 0)
        if reshaped(op.new(0, run), target.tolist(), allowzero) == new:
            wanted.append(target)
            continue
        keep = [
            n == -1 or (n == 0 and not allowzero and k < len(op.new(0, run)) and op.new(0, run)[k] == new[k])
            for k, n in enumerate(target.tolist())
        ]
        wanted.append(np.array([n if k else m for n, k, m in zip(target, keep, new, strict=True)], target.dtype))
        if reshaped(op.new(0, run), wanted[-1].tolist(), allowzero) != new:
            wanted[-1] = np.array(new, target.dtype)
    if not op.has(1):
        if wanted[0].tolist() != list(op.attr("shape")):
            yield Need("shape", wanted[0].tolist())
    elif differs(op, 1, wanted):
        yield Need(1, tuple(wanted), _static_target(op), {"allowzero": None} if op.attr("allowzero", 0) else {})


def _static_target(op: Sized) -> np.ndarray | None:
    """Returns a target for every size: numbers, 0 for a copied entry, at most one -1; None where that can't say it.

    Zeros are copies here: `allowzero` goes with the target that it was made for.
    """
    outs, ins = [op.new_out(0, run) for run in (0, 1)], [op.new(0, run) for run in (0, 1)]
    if 0 in (*outs[0], *outs[1]):
        return None
    target = []
    for k, (a, b) in enumerate(zip(*outs, strict=True)):
        copied = k < len(ins[0]) and (a, b) == (ins[0][k], ins[1][k])
        target.append(a if a == b else 0 if copied else -1)
    return np.array(target, np.int64) if target.count(-1) <= 1 else None


# ---------------------------------------------------------------- Transpose, Squeeze, Unsqueeze
@transpose.coupling
def couple_transpose(op: Site) -> Tensor:
    """Axes change places."""
    return op.transpose(op[0], op.attr("perm") or range(len(op[0].shape))[::-1])


@squeeze.coupling
def couple_squeeze(op: Site) -> Tensor:
    """Drops axes of size 1."""
    rank = len(op[0].shape)
    axes = _axes(op)
    if axes is None:
        axes = [k for k, n in enumerate(op[0].shape) if n == 1]
    return drop_axes(op[0], [k % rank for k in axes])


@squeeze.sizes
def size_squeeze(op: Sized) -> Iterable[Need]:
    """Where no axes are given, a cut axis of which one index is left must not be squeezed with the others."""
    if (
        op.has(1)
        or op.attr("axes") is not None
        or all(m != 1 or n == 1 for n, m in zip(op.old(0), op.new(0), strict=True))
    ):
        return
    axes = np.array([k for k, n in enumerate(op.old(0)) if n == 1], np.int64)
    if not axes.size:
        raise Unsupported("would squeeze an axis of which one index is left")
    if op.version >= 13:
        yield Need(1, (axes, axes))
    else:
        yield Need("axes", axes.tolist())


@unsqueeze.coupling
def couple_unsqueeze(op: Site) -> Tensor:
    """Inserts axes of size 1."""
    axes = _axes(op) or []
    rank = len(op[0].shape) + len(axes)
    return insert_axes(op[0], [k % rank for k in axes])


def _axes(op: Site) -> list[int] | None:
    """Returns the axes of Squeeze or Unsqueeze: an input from opset 13 on, an attribute before."""
    if op.has(1):
        axes = op.value(1)
        if axes is None:
            raise Unsupported("its axes are computed at run time")
        return [int(k) for k in axes.reshape(-1)]
    given = op.attr("axes")
    return None if given is None else list(given)


# ---------------------------------------------------------------- Concat, Split
@concat.coupling
def couple_concat(op: Site) -> Tensor:
    """Joins along the axis."""
    return op.concat(op.given(), op.attr("axis", 1))


@split.coupling
def couple_split(op: Site) -> list[Tensor]:
    """Each output takes its share of the axis."""
    axis = op.attr("axis", 0) % len(op[0].shape)
    sizes = [op.out_shape(k)[axis] for k in range(len(op.node.outputs))]
    t = op.tie(op[0], axis, why="is split at run time") if _varies(op, axis) else op[0]
    edges = np.cumsum([0, *sizes])
    if not t.labelled(axis):
        return [Tensor((*t.shape[:axis], n, *t.shape[axis + 1 :]), t.arrays, t.zero) for n in sizes]
    return [op.take(t, axis, np.arange(a, b)) for a, b in pairwise(edges)]


def _varies(op: Site, axis: int) -> bool:
    return any(op.out_dynamic(k)[axis] for k in range(len(op.node.outputs)))


@split.sizes
def size_split(op: Sized) -> Iterable[Need]:
    """Sizes follow the labels; where none are written down and the parts are no longer equal, they are."""
    outs = range(len(op.node.outputs))
    axis = op.attr("axis", 0) % len(op.old(0))
    wanted = [np.array([op.new_out(k, run)[axis] for k in outs], np.int64) for run in (0, 1)]
    if op.has(1):
        from_data = op.arriving(1) is None and axis not in op.cut_axes(0)  # as many tokens as an expert is given
        if not from_data and differs(op, 1, wanted):
            yield Need(1, tuple(wanted))
    elif op.attr("split") is not None:
        if list(op.attr("split")) != wanted[0].tolist():
            yield Need("split", wanted[0].tolist())
    elif any(not np.array_equal(w, _even(int(w.sum()), len(w), op.attr("num_outputs"))) for w in wanted):
        if op.version < 13:
            yield Need("split", wanted[0].tolist())
        else:
            yield Need(1, tuple(wanted))
            if op.attr("num_outputs") is not None:
                yield Need("num_outputs", None)


def _even(total: int, parts: int, uneven: int | None) -> np.ndarray:
    """Returns the sizes that Split makes by itself."""
    size = -(-total // parts)
    sizes = [size] * (parts - 1)
    return np.array([*sizes, total - sum(sizes)] if uneven is not None or total % parts == 0 else [], np.int64)


# ---------------------------------------------------------------- Slice
def slice_bounds(op: Site | Sized, rank: int, run: int) -> dict[int, tuple[int, int, int]] | None:
    """Returns {axis: (start, end, step)} of a Slice in one run, None where a bound depends on data."""
    if op.has(1):
        starts, ends, axes, steps = (_ints(op, slot, run) for slot in (1, 2, 3, 4))
        if starts is None or ends is None or (op.has(3) and axes is None) or (op.has(4) and steps is None):
            return None
    else:
        starts, ends, axes, steps = op.attr("starts"), op.attr("ends"), op.attr("axes"), None
    axes = list(range(len(starts))) if axes is None else [k % rank for k in axes]
    steps = [1] * len(starts) if steps is None else steps
    return {k: (a, b, s) for k, a, b, s in zip(axes, starts, ends, steps, strict=True)}


def _ints(op: Site | Sized, slot: int, run: int) -> list[int] | None:
    if not op.has(slot):
        return None
    if isinstance(op, Site):
        pair = op.values(slot)
        found = None if pair is None else pair[run]
    else:
        found = op.before(slot, run)
    return None if found is None else [int(n) for n in found.reshape(-1)]


def sliced(n: int, start: int, end: int, step: int) -> np.ndarray:
    """Returns the indices that a Slice with these bounds takes of an axis of size n."""
    return np.arange(n)[slice(start, None if step < 0 and end < -n else end, step)]


@slice_.coupling
def couple_slice(op: Site) -> Tensor:
    """The same slice of the labels."""
    t, shape = op[0], op.out_shape()
    bounds = [slice_bounds(op, len(t.shape), run) for run in (0, 1)]
    if bounds[0] is None or bounds[1] is None:
        slot3 = op.value(3) if op.has(3) else None
        axes = range(len(shape)) if slot3 is None else [int(k) % len(shape) for k in slot3.reshape(-1)]
        cut = [axis for axis in axes if slot3 is not None or not _is_taken_whole(op)]
        t = op.tie(t, *cut, why="is sliced at positions known only at run time")
        return Tensor(shape, t.arrays, t.zero)
    for axis, bound in bounds[0].items():
        if bound != bounds[1][axis] and not np.array_equal(sliced(t.shape[axis], *bound), np.arange(t.shape[axis])):
            t = op.tie(t, axis, why="is sliced at computed positions")
        if bound != bounds[1][axis] and op.out_dynamic()[axis]:
            t = op.tie(t, axis, why="is sliced at computed positions")
        if t.labelled(axis):
            taken = sliced(t.shape[axis], *bound)
            t = op.take(_in_strides(op, t, axis, taken), axis, taken)
    return Tensor(shape, t.arrays, t.zero)


def _is_taken_whole(op: Site) -> bool:
    """Returns whether a Slice takes all from 0 to the sizes of its input, or of what is expanded to these at least.

    So torch.onnx writes a scatter over as many rows as data make.
    """
    starts, data, ends = op.value(1), op.node.inputs[0], op.node.inputs[2]
    if starts is None or starts.any() or op.has(4) or ends is None:
        return False
    told = _shape_of(ends)
    made = None if told is None else told.producer()
    if made is not None and made.op_type == "Expand" and made.inputs[1] is not None:
        told = _shape_of(made.inputs[1])
    return told is data and op.shape(0) == op.out_shape()


def _shape_of(sizes: ir.Value) -> ir.Value | None:
    """Returns the value whose whole shape these sizes are, None where they are not made by a Shape."""
    made = sizes.producer()
    plain = made is not None and made.op_type == "Shape" and made.domain == "" and not made.attributes
    return made.inputs[0] if plain and made is not None else None


def _in_strides(op: Site, t: Tensor, axis: int, taken: np.ndarray) -> Tensor:
    """Returns `t` where slots go in blocks as long as the stride, so that those that are taken stay as far apart."""
    stride = abs(int(taken[1] - taken[0])) if len(taken) > 1 else 1
    if stride == 1:
        return t
    slots = np.arange(t.shape[axis])
    group = np.where(np.isin(slots // stride, taken // stride), slots // stride * stride, slots)
    labels = t.on(axis)
    assert labels is not None
    op.labels.union(labels, labels.take(group, axis))
    return op.tidy(t)


@slice_.sizes
def size_slice(op: Sized) -> Iterable[Need]:
    """Bounds on a cut axis become the ranks of the kept positions."""
    rank = len(op.old(0))
    old, now = [slice_bounds(op, rank, run) for run in (0, 1)], _arriving_bounds(op, rank)
    if old[0] is None or old[1] is None or now is None:
        return
    starts, ends = {}, {}
    for axis, bound in old[0].items():
        kept_as_they_are = all(now[run][axis] == (bound, old[1][axis])[run] for run in (0, 1))
        if axis not in op.cut_axes(0) and kept_as_they_are:
            continue
        if op.old(0)[axis] != op.old(0, 1)[axis]:
            continue  # a dynamic axis: its bounds are computed from sizes that the cut does not reach
        found = _new_bounds(op, axis, bound, [now[run][axis] for run in (0, 1)])
        if found is not None:
            if bound != old[1][axis]:
                raise Unsupported("bounds on a cut axis vary at run time")
            starts[axis], ends[axis] = found
    if starts:
        yield from _write_bounds(op, rank, starts, ends)


def _new_bounds(
    op: Sized, axis: int, bound: tuple[int, int, int], now: Sequence[tuple[int, int, int]]
) -> tuple[int, int] | None:
    """Returns the start and end that take the same living positions, None where those that arrive do."""
    (n, m), step = (op.old(0)[axis], op.new(0)[axis]), bound[2]
    taken = ranks(op, axis)[sliced(n, *bound)]
    taken = taken[taken >= 0]
    if all(np.array_equal(sliced(m, *b), taken) for b in now):
        return None
    if not len(taken) or (np.diff(taken) != step).any():
        raise Unsupported("a strided slice would take other indices after the cut")
    end = int(taken[-1]) + step if step > 0 else int(taken[-1]) - 1 if taken[-1] > 0 else -m - 1
    return int(taken[0]), end


def _arriving_bounds(op: Sized, rank: int) -> list[dict[int, tuple[int, int, int]]] | None:
    """Returns the bounds that arrive after the cut in both runs."""
    if not op.has(1):
        bounds = slice_bounds(op, rank, 0)
        return None if bounds is None else [bounds, bounds]
    found = []
    for run in (0, 1):
        starts, ends = op.arriving(1, run), op.arriving(2, run)
        axes, steps = op.arriving(3, run), op.arriving(4, run)
        if starts is None or ends is None:
            return None
        keys = range(starts.size) if axes is None else [int(k) % rank for k in axes.reshape(-1)]
        strides = [1] * starts.size if steps is None else steps.reshape(-1).tolist()
        each = zip(keys, starts.reshape(-1), ends.reshape(-1), strides, strict=True)
        found.append({k: (int(a), int(b), int(s)) for k, a, b, s in each})
    return found


def _write_bounds(op: Sized, rank: int, starts: dict[int, int], ends: dict[int, int]) -> Iterable[Need]:
    """Yields new starts and ends, in the order of the node's axes."""
    order = list(slice_bounds(op, rank, 0) or ())
    for what, slot, fresh in (("starts", 1, starts), ("ends", 2, ends)):
        if op.has(1):
            values = []
            for run in (0, 1):
                now = op.arriving(slot, run)
                assert now is not None
                entries = [fresh.get(k, n) for k, n in zip(order, now.reshape(-1), strict=True)]
                values.append(np.array(entries, now.dtype).reshape(now.shape))
            if differs(op, slot, values):
                yield Need(slot, tuple(values))
        else:
            yield Need(what, [fresh.get(k, n) for k, n in zip(order, op.attr(what), strict=True)])


# ---------------------------------------------------------------- Tile, Pad
@tile.coupling
def couple_tile(op: Site) -> Tensor:
    """A labelled axis is repeated as it is, and its copies share labels; those of a single slot have their own."""
    t = op[0]
    for axis, (n, m) in enumerate(zip(t.shape, op.out_shape(), strict=True)):
        if t.labelled(axis) and n != m:
            t = op.take(t, axis, np.tile(np.arange(n), m // n))
    content = op.value(0)
    return made(op, t, zero=content is not None and not content.any())


@tile.sizes
def size_tile(op: Sized) -> Iterable[Need]:
    """Copies of an axis of size 1 that are cut are not made."""
    wanted = []
    for run in (0, 1):
        arriving = op.arriving(1, run)
        if arriving is None:
            return
        each = zip(op.new(0, run), op.new_out(0, run), arriving.tolist(), strict=True)
        wanted.append(np.array([m if n == 1 else times for n, m, times in each], arriving.dtype))
    if differs(op, 1, wanted):
        yield Need(1, tuple(wanted))


def pad_amounts(op: Site | Sized, rank: int) -> Pair | None:
    """Returns (2, rank) slots added before and after each axis, of both runs; None where they depend on data."""

    def spread(pads: list[int], axes: list[int] | None) -> np.ndarray:
        full = np.zeros((2, rank), np.int64)
        full[:, range(rank) if axes is None else axes] = np.reshape(pads, (2, -1))
        return full

    if not op.has(1):
        return (spread(op.attr("pads", op.attr("paddings")), None),) * 2
    amounts, axes = ([_ints(op, slot, run) for run in (0, 1)] for slot in (1, 3))
    if amounts[0] is None or amounts[1] is None or (op.has(3) and axes[0] is None):
        return None
    return spread(amounts[0], axes[0]), spread(amounts[1], axes[0])


def couple_pad(op: Site) -> Tensor:
    """Constant padding gets fresh labels, so that a padded shortcut can follow what it is added to."""
    t, shape = op[0], op.out_shape()
    both = pad_amounts(op, len(shape))
    if both is None:
        t = op.tie_all(t, "is padded by amounts that are computed from data")
        return Tensor(shape, t.arrays, t.zero)
    fill = op.value(2) if op.has(2) else np.array(op.attr("value", 0.0))
    zero = fill is not None and not fill.any()
    for axis in range(len(shape)):
        (before, after), varies = both[0][:, axis].tolist(), (both[0] != both[1])[:, axis].any()
        if varies:
            t = op.tie(t, axis, why="is padded by amounts known only at run time")
        elif _mode(op) != "constant" and (before or after):
            t = op.tie(t, axis, why="is padded with its own values")
        if t.labelled(axis) and (before or after):
            inside = np.arange(t.shape[axis])[max(-before, 0) : t.shape[axis] - max(-after, 0)]
            index = np.concatenate([np.full(max(before, 0), -1), inside, np.full(max(after, 0), -1)])
            t = op.take(t, axis, index, fill_zero=zero)
    grows = any((pads > 0).any() for pads in both)
    return Tensor(shape, t.arrays, t.zero if zero or not grows else frozenset())


def _mode(op: Site) -> str:
    mode = op.attr("mode", "constant")
    return mode if isinstance(mode, str) else mode.decode()


def size_pad(op: Sized) -> Iterable[Need]:
    """On a cut axis only the padding that is kept is still added, and only what is left is taken off."""
    rank = len(op.old(0))
    both = pad_amounts(op, rank)
    if both is None:
        return
    new = [pads.copy() for pads in both]
    for axis in range(rank):
        before, after = both[0][:, axis]
        if (before or after) and (axis in op.cut_axes(0) or op.new_out()[axis] != op.old_out()[axis]):
            kept, kept_in = op.kept_out(axis), op.kept(0, axis)
            front = (kept < before).sum() - (kept_in < -before).sum()
            back = (kept >= op.old_out()[axis] - after).sum() - (kept_in >= op.old(0)[axis] + after).sum()
            for pads in new:
                pads[:, axis] = front, back
    if all(np.array_equal(*each) for each in zip(new, both, strict=True)):
        return
    if not op.has(1):
        yield Need("pads" if op.attr("pads") is not None else "paddings", new[0].reshape(-1).tolist())
        return
    axes = _ints(op, 3, 0)
    first, second = (pads[:, range(rank) if axes is None else axes].reshape(-1) for pads in new)
    yield Need(1, (first, second))


for _home in pad:
    _home.coupling(couple_pad)
    _home.sizes(size_pad)


# ---------------------------------------------------------------- DepthToSpace, SpaceToDepth
@depth_to_space.coupling
def couple_depth_to_space(op: Site) -> Tensor:
    """All b x b channels that make one output channel go together."""
    t = op.tie(op[0], 2, 3)
    n, channels, high, wide = t.shape
    b = op.attr("blocksize")
    mode = op.attr("mode", "DCR")
    if mode in ("DCR", b"DCR"):
        t = op.transpose(op.reshape(t, (n, b, b, channels // b**2, high, wide)), (0, 3, 4, 1, 5, 2))
    else:
        t = op.transpose(op.reshape(t, (n, channels // b**2, b, b, high, wide)), (0, 1, 4, 2, 5, 3))
    return op.reshape(op.tie(t, 3, 5), op.out_shape())


@space_to_depth.coupling
def couple_space_to_depth(op: Site) -> Tensor:
    """Output channel k holds input channel k modulo C."""
    t = op.tie(op[0], 2, 3)
    copies = op.attr("blocksize") ** 2
    if t.labelled(1):
        t = op.take(t, 1, np.tile(np.arange(t.shape[1]), copies))
    return Tensor(op.out_shape(), t.arrays, t.zero)
