"""Pooling and resizing: channels pass, the axes that are slid over are tied.

Spec: https://onnx.ai/onnx/operators/onnx__AveragePool.html, https://onnx.ai/onnx/operators/onnx__Resize.html
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from onnxprune.engine.tensors import Tensor
from onnxprune.ops.registry import Need, Site, Sized, Unsupported, differs, operator

pool = operator(
    *("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"),
    doc="batch and channels pass; spatial axes are tied",
)
resize = operator("Resize", "Upsample", size_slots=(1, 2, 3), doc="axes of unchanged size pass, the others are tied")
SAMPLED = "channels pass; all else is tied"
sample = [
    operator("GridSample", "RoiAlign", "MaxRoiPool", doc=SAMPLED),
    operator("GridSample", "CropAndResize", domain="com.microsoft", doc=SAMPLED),
]
crop = operator("CenterCropPad", size_slots=(1,), doc="the axes that are cropped or padded are tied, the others pass")
fold = operator("Col2Im", size_slots=(1, 2), doc="channels pass; what lies in a block, and the blocks, are tied")


@pool.coupling
def couple_pool(op: Site) -> Tensor:
    """A window of zeros gives zero."""
    if len(op.node.outputs) > 1 and op.node.outputs[1].name:
        raise Unsupported("indices into the whole tensor depend on the number of channels")
    x = op.tie(op[0], *range(2, len(op[0].shape)), why="a window slides over it")
    return resized(x, op.out_shape())


def resized(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Returns `x` with other sizes on axes that no array spans."""
    return Tensor(shape, x.arrays, x.zero)


@resize.coupling
def couple_resize(op: Site) -> Tensor:
    """An axis that keeps its size passes unless it is a dynamic one."""
    moving = [
        k for k, (n, m) in enumerate(zip(op.shape(0), op.out_shape(), strict=True)) if n != m or op.out_dynamic()[k]
    ]
    return resized(op.tie(op[0], *moving, why="is resampled"), op.out_shape())


def couple_sample(op: Site) -> Tensor:
    """Positions are computed, so only the channels of the first input pass."""
    for t in op.given()[1:]:
        op.tie_all(t)
    x = op.tie(op[0], *(k for k in range(len(op[0].shape)) if k != 1))
    return resized(x, op.out_shape())


for _home in sample:
    _home.coupling(couple_sample)


@crop.coupling
def couple_crop(op: Site) -> Tensor:
    """Slots are taken off or added at both ends."""
    rank = len(op[0].shape)
    t = op.tie(op[0], *(k % rank for k in op.attr("axes", range(rank))), why="is cropped or padded")
    return resized(t, op.out_shape())


@fold.coupling
def couple_fold(op: Site) -> Tensor:
    """A channel is made of as many rows as a block has places; where blocks overlap they are added up."""
    block = op.value(2)
    if block is None:
        raise Unsupported("its blocks are computed at run time")
    n, rows, places = op[0].shape
    each = int(np.prod(block))
    t = op.tie(op.reshape(op[0], (n, rows // each, each, places)), 2, 3, why="is folded into a picture")
    out = op.out_shape()
    arrays = tuple(a.reshape(*a.shape[:2], *(1,) * (len(out) - 2)) for a in t.arrays)
    return Tensor(out, arrays, t.zero & {0, 1})


@resize.sizes
def size_resize(op: Sized) -> Iterable[Need]:
    """Where target sizes are given, those of cut axes follow."""
    slot = 3 if op.op == "Resize" and op.version >= 11 else None
    sizes = [op.arriving(slot, run) for run in (0, 1)] if slot and op.has(slot) else []
    wanted = []
    for run, size in enumerate(sizes):
        if size is None or not size.size:
            return
        axes = op.attr("axes") or range(len(op.new_out(0, run)))
        wanted.append(np.array([op.new_out(0, run)[k] for k in axes], size.dtype))
    if wanted and slot and differs(op, slot, wanted):
        yield Need(slot, tuple(wanted))
