"""Normalisations: per channel they pass, over the channels they freeze (or open approximately).

Spec: https://onnx.ai/onnx/operators/onnx__BatchNormalization.html, https://onnx.ai/onnx/operators/onnx__LayerNormalization.html
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import onnx_ir as ir

from onnxprune.engine.tensors import Tensor, insert_axes
from onnxprune.ops.registry import Need, Scale, Site, Sized, operator

batch_norm = operator(
    "BatchNormalization", doc="channels with scale, bias, mean and variance; in training mode the other axes are tied"
)
batch_norm.scale_slots = frozenset({1})
instance_norm = operator("InstanceNormalization", doc="channels with scale and bias; the other axes are tied")
group_norm = operator("GroupNormalization", doc="whole norm groups; channels inside a group are tied")
layer_norm = operator("LayerNormalization", doc="the normalised axes are tied (opened by --approximate)")
rms_norm = operator("RMSNormalization", doc="axes whose cut slots are zero can go: epsilon and scale restore the mean")


def in_training(node: ir.Node) -> bool:
    """Returns whether a BatchNormalization normalises by its batch rather than by stored statistics."""
    mode = node.attributes.get("training_mode")
    return mode is not None and bool(mode.as_int())


def per_channel(op: Site, x: Tensor, *params: Tensor) -> Tensor:
    """Returns `x` unified with parameters over its axis 1; a cut channel is zero since its scale and bias are."""
    after = range(1, len(x.shape) - 1)
    y = op.unify(x, *(insert_axes(p, after) for p in params), zero="none")
    return Tensor(y.shape, y.arrays, frozenset({1} if y.labelled(1) else ()))


@batch_norm.coupling
def couple_batch_norm(op: Site) -> list[Tensor]:
    """Channels go with all four parameters."""
    x = op[0]
    extra = [k for k, v in enumerate(op.node.outputs) if k and v.name]
    if op.attr("training_mode", 0) or (extra and op.version >= 14):
        x = op.tie(x, *(k for k in range(len(x.shape)) if k != 1), why="normalised over the batch")
    y = per_channel(op, x, *(op[k] for k in (1, 2, 3, 4)))
    running = op.unify(op[3])
    running = Tensor(running.shape, running.arrays, running.zero if 1 in x.zero else frozenset())
    return [y, *[running] * (len(op.node.outputs) - 1)]


@instance_norm.coupling
def couple_instance_norm(op: Site) -> Tensor:
    """Every channel is normalised by itself over the spatial axes."""
    x = op.tie(op[0], *range(2, len(op[0].shape)), why="normalised together")
    return per_channel(op, x, op[1], op[2])


@group_norm.coupling
def couple_group_norm(op: Site) -> Tensor:
    """Whole norm groups can go; scale and bias have an entry per group in opset 18, per channel from 21 on."""
    x = op.tie(op[0], *range(2, len(op[0].shape)), why="normalised together")
    groups, channels = op.attr("num_groups"), x.shape[1]
    split = (x.shape[0], groups, channels // groups, *x.shape[2:])
    rows = op.tie(op.reshape(x, split), 2, why="normalised together")
    rest = range(1, len(split) - 1)
    for p in (op[1], op[2]):
        if p.shape[0] == groups != channels:
            op.unify(rows, insert_axes(p, rest))
        else:
            both = insert_axes(op.reshape(p, (groups, channels // groups)), [0, *range(3, len(split))])
            op.unify(rows, both)
    y = op.reshape(op.tidy(rows), x.shape)
    return Tensor(y.shape, y.arrays, frozenset({1} if y.labelled(1) else ()))


@group_norm.sizes
def size_group_norm(op: Sized) -> Iterable[Need]:
    """`num_groups` is the number of norm groups that live."""
    groups = op.attr("num_groups")
    alive = groups * op.new(0)[1] // op.old(0)[1]
    if alive != groups:
        yield Need("num_groups", alive)


@layer_norm.coupling
def couple_layer_norm(op: Site) -> list[Tensor]:
    """Mean and variance run over the normalised axes: none of their indices can go exactly."""
    y, stats = mean_and_variance(op, op[0], op.get(1), op.get(2), axis=op.attr("axis", -1))
    return [y, *[stats] * (len(op.node.outputs) - 1)]


def mean_and_variance(op: Site, x: Tensor, *params: Tensor | None, axis: int = -1) -> tuple[Tensor, Tensor]:
    """Returns LayerNorm of `x` over its axes from `axis` on, and the tensor of its means or deviations."""
    axes = range(axis % len(x.shape), len(x.shape))
    y = op.unify(x, *(p for p in params if p is not None), zero="none")
    if op.approximate:
        y = Tensor(y.shape, y.arrays, frozenset(k for k in axes if y.labelled(k)))
        stats = op.reduce(y, axes, keepdims=True, exact=True)
    else:
        y = op.tie(y, *axes, why="mean and variance run over these channels (--approximate opens them)")
        stats = op.reduce(y, axes, keepdims=True, exact=False)
    return y, Tensor(stats.shape, stats.arrays)


@rms_norm.coupling
def couple_rms_norm(op: Site) -> Tensor:
    """A mean of squares: zero slots add nothing, and one factor restores what fewer slots change."""
    return root_mean_square(op, op[0], 1)


def root_mean_square(op: Site, x: Tensor, scale_slot: int) -> Tensor:
    """Returns RMSNorm of `x`; axes can be cut if their slots are zero and the scale is a constant to be rescaled."""
    rank = len(x.shape)
    axes = range(op.attr("axis", -1) % rank, rank)
    able = op.approximate or scale_slot in op.direct
    for axis in axes:
        if not (able and (op.approximate or axis in x.zero)):
            x = op.tie(x, axis, why="averages squares of channels that are not zero once they are cut")
    y = op.unify(x, op[scale_slot], zero="any")
    return Tensor(y.shape, y.arrays, frozenset(k for k in range(rank) if y.labelled(k) and (k in axes or k in x.zero)))


@rms_norm.sizes
def size_rms_norm(op: Sized) -> Iterable[Need | Scale]:
    """With C' of C slots the mean of squares is C / C' times what it was: epsilon x C / C', scale x sqrt(C / C')."""
    yield from restored_root_mean_square(op, 0, 1)


def restored_root_mean_square(op: Sized, slot: int, scale_slot: int, epsilon: float = 1e-5) -> Iterable[Need | Scale]:
    """Yields the epsilon and the factor on the scale that make up for cut slots."""
    rank = len(op.old(slot))
    axes = range(op.attr("axis", -1) % rank, rank)
    old, new = (math.prod(shape[k] for k in axes) for shape in (op.old(slot), op.new(slot)))
    if old != new and not op.approximate:
        yield Need("epsilon", op.attr("epsilon", epsilon) * old / new)
        yield Scale(math.sqrt(old / new), slot=scale_slot)
