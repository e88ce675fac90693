"""Operators that compute sizes, and those that make tensors of computed sizes.

Spec: https://onnx.ai/onnx/operators/onnx__Shape.html, https://onnx.ai/onnx/operators/onnx__Expand.html
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from onnxprune.engine.tensors import Tensor, lift
from onnxprune.ops.registry import Need, Site, Sized, arriving_sizes, differs, operator

shape = operator(
    "Shape", "Size", doc="no labels, nothing freezes: sizes are rewritten where they are wrong after the cut"
)
range_ = [operator("Range", domain=d, size_slots=(0, 1, 2), doc="no labels") for d in ("", "com.microsoft")]
constant_of_shape = operator("ConstantOfShape", size_slots=(0,), doc="axes of constant size follow what they meet")
expand = operator(
    "Expand", size_slots=(1,), doc="labels pass; an axis of constant size that is made follows what it meets"
)


def couple_sizes(op: Site) -> Tensor:
    """Sizes carry no labels."""
    return Tensor(op.out_shape())


for _home in (shape, *range_):
    _home.coupling(couple_sizes)


@constant_of_shape.coupling
def couple_constant_of_shape(op: Site) -> Tensor:
    """A float tensor gets labels on the axes whose size is constant, so that it can follow what it meets."""
    filler = op.attr("value")
    fill = np.zeros(1, np.float32) if filler is None else filler.numpy()
    if fill.dtype.kind not in "fV":
        return Tensor(op.out_shape())
    return made(op, Tensor((1,) * len(op.out_shape())), zero=not fill.any())


def made(op: Site, t: Tensor, *, zero: bool) -> Tensor:
    """Returns `t` expanded to the output's shape, with fresh labels on the axes that are made and of constant size."""
    shape, dynamic = op.out_shape(), op.out_dynamic()
    arrays, fresh = list(t.arrays), set()
    for axis, n in enumerate(shape):
        if t.shape[axis] == 1 < n and not dynamic[axis]:
            arrays.append(op.labels.fresh(*(n if k == axis else 1 for k in range(len(shape)))))
            fresh.add(axis)
    return Tensor(shape, tuple(arrays), t.zero | (fresh if zero else set()))


@expand.coupling
def couple_expand(op: Site) -> Tensor:
    """Labels pass to the axes they had; copies along the others have labels of their own."""
    t = lift(op.tidy(op[0]), len(op.out_shape()))
    content = op.value(0)
    return made(op, t, zero=content is not None and not content.any())


@constant_of_shape.sizes
def size_constant_of_shape(op: Sized) -> Iterable[Need]:
    """The sizes of cut axes follow."""
    if any(arriving_sizes(op, 0, run) is None for run in (0, 1)):
        return
    wanted = tuple(np.array(op.new_out(0, run), np.int64) for run in (0, 1))
    if differs(op, 0, wanted):
        yield Need(0, wanted)


@expand.sizes
def size_expand(op: Sized) -> Iterable[Need]:
    """Only the entries that no longer broadcast to the result are asked for anew."""
    wanted, static = [], []
    for run in (0, 1):
        target = arriving_sizes(op, 1, run)
        if target is None:
            return
        new, source = op.new_out(0, run), op.new(0, run)
        lead = len(new) - target.size
        padded = (1,) * (len(new) - len(source)) + tuple(source)
        good = [
            t == new[k + lead] or (t == 1 and padded[k + lead] == new[k + lead]) for k, t in enumerate(target.tolist())
        ]
        wanted.append(
            np.array(
                [t if g else new[k + lead] for k, (t, g) in enumerate(zip(target, good, strict=True))], target.dtype
            )
        )
        static.append([1 if n == m else n for n, m in zip(new, padded, strict=True)])
    if differs(op, 1, wanted):
        yield Need(1, tuple(wanted), np.array(static[0], np.int64) if static[0] == static[1] else None)
