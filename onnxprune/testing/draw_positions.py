"""Random cases for operators that read, write or rearrange at positions, and for twins of standard ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from onnxprune.testing.cases import Case, Data, Feed, Input, Weight
from onnxprune.testing.draw import GENERATORS, floats, generates, ints, pick, size

MS = "com.microsoft"
STEPS = 6


def steps(rng: np.random.Generator, axes: tuple[tuple[int, ...], ...] = ((2,), (2,), (1,), (1, 2))) -> Data:
    """Returns an activation of (batch, steps, channels)."""
    return Data((0, STEPS, size(rng)), pick(rng, *axes), pick(rng, (), (), ("Sigmoid",)))


# ---------------------------------------------------------------- element by element
@generates("GatherElements")
def gather_elements(op: str, rng: np.random.Generator) -> Case:
    """Positions that are an input, as many for every channel or fewer; or labelled as the channels are."""
    x = steps(rng)
    channels = x.shape[2]
    if rng.random() < 0.4:
        index = Data((0, STEPS, channels), pick(rng, x.axes, (2,)), ("Sigmoid", "Cast:7"))
        return Case(op, (x, index), {"axis": 1}, pick(rng, 11, 13))
    few = pick(rng, channels, channels, channels - 1)
    return Case(op, (x, Feed((0, 3, few), STEPS)), {"axis": pick(rng, 1, -2)}, pick(rng, 11, 13))


@generates("ScatterElements", "Scatter")
def scatter_elements(op: str, rng: np.random.Generator) -> Case:
    """Positions that are labelled as the channels are; updates replace or are combined."""
    x = steps(rng)
    index = Data((0, 3, x.shape[2]), pick(rng, (2,), ()), ("Sigmoid", "Cast:7"))
    updates = Data((0, 3, x.shape[2]), pick(rng, (2,), (1,), ()), pick(rng, (), ("Sigmoid",)))
    if op == "Scatter":
        return Case(op, (x, index, updates), {"axis": 1}, 9)
    attributes = {"axis": pick(rng, 1, -2), "reduction": pick(rng, "none", "add", "max")}
    return Case(op, (x, index, updates), attributes, 18)


@generates("TensorScatter")
def tensor_scatter(op: str, rng: np.random.Generator) -> Case:
    """A cache of tokens, written from a position on."""
    width = size(rng)
    axes = pick(rng, (3,), (1,), (1, 3))
    cache, update = Data((0, 2, STEPS, width), axes), Data((0, 2, 2, width), pick(rng, axes, axes, (3,)))
    return Case(op, (cache, update, Feed((0,), 4)), {"mode": pick(rng, "linear", "circular")}, 24)


@generates("GatherND", domain=MS)
def gather_nd(op: str, rng: np.random.Generator) -> Case:
    """Computed positions in a table."""
    return Case(op, (Weight((5, 4, size(rng))), Feed((0, pick(rng, 1, 2)), 4)), opset=17, domain=MS)


# ---------------------------------------------------------------- whole axes
@generates("Compress")
def compress(op: str, rng: np.random.Generator) -> Case:
    """A constant condition."""
    x = steps(rng)
    return Case(op, (x, np.array([1, 0, 1, 1, 0, 1], bool)), {"axis": 1}, pick(rng, 9, 11))


@generates("ReverseSequence")
def reverse_sequence(op: str, rng: np.random.Generator) -> Case:
    """Lengths that are an input."""
    return Case(op, (steps(rng), Feed((0,), STEPS + 1, 1)), {"time_axis": 1, "batch_axis": 0}, 11)


@generates("CumProd")
def cumprod(op: str, rng: np.random.Generator) -> Case:
    """In either direction, with or without the place itself."""
    attributes = {"reverse": pick(rng, 0, 1), "exclusive": pick(rng, 0, 1)}
    return Case(op, (steps(rng), np.array(pick(rng, 1, 2))), attributes, 26)


@generates("DFT")
def fourier(op: str, rng: np.random.Generator) -> Case:
    """Along any axis, of real numbers, all frequencies or half of them."""
    x = Data((0, STEPS, size(rng), 1), pick(rng, (2,), (1,), (1, 2)), pick(rng, (), ("Sigmoid",)))
    axis, attributes = pick(rng, 1, 2), {"onesided": pick(rng, 0, 1)}
    if rng.random() < 0.5:
        return Case(op, (x,), {"axis": axis, **attributes}, 17)
    return Case(op, (x, None, np.array(pick(rng, axis, axis - 4))), attributes, 20)


@generates("Trilu", "GridSample", domain=MS)
def twin(op: str, rng: np.random.Generator) -> Case:
    """As the operator of ai.onnx."""
    return replace(GENERATORS["", op](op, rng), domain=MS, opset=17)


@generates("Range", domain=MS)
def range_(op: str, rng: np.random.Generator) -> Case:
    """Constant numbers."""
    numbers = (np.array(n, np.float32) for n in (1, size(rng, 3) + 1, 1))
    return Case(op, tuple(numbers), opset=17, domain=MS)


@generates("Pad", domain=MS)
def pad(op: str, rng: np.random.Generator) -> Case:
    """Constants and reflections."""
    x = steps(rng)
    amounts = [0, *(int(n) for n in rng.integers(0, 2, 2)), 0, *(int(n) for n in rng.integers(0, 2, 2))]
    return Case(op, (x, ints(*amounts)), {"mode": pick(rng, "constant", "reflect")}, 17, MS)


# ---------------------------------------------------------------- pictures
@generates("CenterCropPad")
def center_crop(op: str, rng: np.random.Generator) -> Case:
    """Some axes become longer or shorter."""
    x = Data((0, size(rng), 5, 6), pick(rng, (1,), (2,), (1, 3)), pick(rng, (), ("Sigmoid",)))
    axes = pick(rng, [2, 3], [3], [-1, 2])
    return Case(op, (x, ints(*(pick(rng, 4, 7) for _ in axes))), {"axes": axes}, 18)


@generates("Col2Im")
def col2im(op: str, rng: np.random.Generator) -> Case:
    """Blocks that overlap, of one to three spatial axes."""
    block = [pick(rng, 1, 2) for _ in range(pick(rng, 2, 2, 1))]
    picture = [b + size(rng, 1, 3) for b in block]
    places = int(np.prod([n - b + 1 for n, b in zip(picture, block, strict=True)]))
    x = Data((0, size(rng) * int(np.prod(block)), places), pick(rng, (1,), (1,), (2,)), pick(rng, (), ("Sigmoid",)))
    return Case(op, (x, ints(*picture), ints(*block)), opset=18)


@generates("DeformConv")
def deform_conv(op: str, rng: np.random.Generator) -> Case:
    """Plain and grouped, with one offset for all channels or several, with or without bias and mask."""
    group, c, o = pick(rng, (1, 4, 6), (2, 2, 3), (1, 6, 2))
    offsets = pick(rng, 1, 1, 2)
    x = Data((0, group * c, 5, 5), (1,), pick(rng, (), ("Sigmoid",)))
    inputs: list[Input] = [x, Weight((group * o, c, 2, 2)), Data((0, offsets * 8, 4, 4), pick(rng, (1,), ()))]
    inputs.append(pick(rng, None, Weight((group * o,))))
    inputs.append(pick(rng, None, Data((0, offsets * 4, 4, 4), pick(rng, (1,), ()), ("Sigmoid",))))
    while inputs[-1] is None:
        inputs.pop()
    attributes: dict[str, Any] = {"group": group, "offset_group": offsets, "kernel_shape": [2, 2]}
    return Case(op, tuple(inputs), attributes, 19)


@generates("CropAndResize", domain=MS)
def crop_and_resize(op: str, rng: np.random.Generator) -> Case:
    """Three constant regions."""
    x = Data((0, size(rng), 6, 6), pick(rng, (1,), (2,)))
    boxes = floats(0, 0, 0.5, 0.5, 0.1, 0, 0.4, 0.8, 0.2, 0.2, 1, 1).reshape(3, 4)
    return Case(op, (x, boxes, np.array([0, 1, 0], np.int32), np.array([2, 3], np.int32)), opset=17, domain=MS)
