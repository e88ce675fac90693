"""What a layer is refitted from: moments of its inputs and targets over all batches, a part of them held out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.engine.frontier import Frontier
from onnxprune.engine.layers import Layer
from onnxprune.ops.linear import Linear
from onnxprune.refit.moments import Moments

SHARE = 0.25  # of the positions of a convolution or sequence
LEAST_ROWS = 24  # rows for each feature that are aimed at, if there are as many
ENOUGH_ROWS = 96  # the same where their products cost next to nothing
CHEAP = 1 << 35  # multiplications
MOST_ROWS = 1 << 17
CHECK_EVERY = 8  # one batch in so many is held out to choose the ridge
MOST_FEATURES = 8192  # of which products are formed


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a layer.

    Attributes:
        p: (g, n, f) inputs.
        t: (g, n, o) targets.
        other: (g, n, o) of the branch that is added, in the network that is refitted; None where there is none.
        held: they are held out.
    """

    p: np.ndarray
    t: np.ndarray
    other: np.ndarray | None
    held: bool = False

    def part(self, which: slice, *, held: bool) -> Rows:
        """Returns some of the rows."""
        other = None if self.other is None else self.other[:, which]
        return Rows(self.p[:, which], self.t[:, which], other, held)


def gather(layer: Layer, seen: Frontier, truth: Frontier, seed: int) -> tuple[Moments, Moments]:
    """Returns moments to fit and to check, of as many rows as are worth it; for what is given see `sampled`."""
    g, o, f = layer.view.matrix(np.empty(layer.use.shape, bool)).shape
    fit, check = (Moments.empty(g, f, o, products=f <= MOST_FEATURES) for _ in range(2))
    for rows in sampled(layer, seen, truth, seed, MOST_ROWS):
        (check if rows.held else fit).add(rows.p, rows.t)
    return fit, check


def sampled(layer: Layer, seen: Frontier, truth: Frontier, seed: int, most: int) -> Iterator[Rows]:
    """Yields rows batch by batch: inputs as `seen`, targets of `truth` less the other branch's error.

    Args:
        layer: both networks have been run up to it, the one for targets behind it too.
        seen: the network whose layer is refitted.
        truth: the dense network.
        seed: of the sampled positions.
        most: how many rows there may be altogether.
    """
    features = layer.view.matrix(np.empty(layer.use.shape, bool)).shape[2]
    seen = truth if layer.recurs else seen
    count = len(seen.values)
    for k in range(count):
        rng = np.random.default_rng([seed, layer.index, k])
        rows = _rows(layer, seen, truth, k, _share(layer, truth, k, features, most), rng)
        if count == 1:
            half = max(1, rows.p.shape[1] // CHECK_EVERY)
            yield rows.part(slice(half), held=True)
            yield rows.part(slice(half, None), held=False)
        else:
            held = k % CHECK_EVERY == CHECK_EVERY - 1 or (count < CHECK_EVERY and k == count - 1)
            yield replace(rows, held=held)


def bias_of(layer: Layer, frontier: Frontier) -> np.ndarray:
    """Returns (g, o): the bias of a layer's outputs as it stands in a network, zeros where there is none."""
    groups, outputs, _ = layer.view.matrix(np.empty(layer.use.shape, bool)).shape
    if layer.bias is None or layer.bias.name is None:
        return np.zeros((groups, outputs))
    whole = frontier.content(layer.bias.name)
    part: np.ndarray = whole if layer.bias.cells is None else whole.reshape(-1)[layer.bias.cells]
    return part.reshape(groups, outputs).astype(np.float64)


def _rows(layer: Layer, seen: Frontier, truth: Frontier, k: int, share: float, rng: np.random.Generator) -> Rows:
    """Returns rows of batch k at sampled places."""
    view, y = layer.view, truth.values[k][layer.output]
    places = view.places(y.shape, share, rng)
    patches = np.ascontiguousarray(view.patches(seen.values[k][layer.input], places), np.float32)
    if layer.direct:  # what stands behind the node is not linear: the old weights tell
        right = patches if seen is truth else view.patches(truth.values[k][layer.input], places).astype(np.float32)
        weight = view.matrix(truth.content(layer.use.name)).astype(np.float32)
        target = right @ weight.transpose(0, 2, 1)
    else:
        target = view.outputs(y, places)
    other = None
    if layer.other is not None and seen is not truth:
        right, other = (
            view.outputs(np.broadcast_to(of.values[k][layer.other.name], y.shape), places) for of in (truth, seen)
        )
        factor = layer.other.factor
        passed = view.outputs(np.broadcast_to(factor, y.shape), places) if factor.size > 1 else factor.reshape(())
        target = target + (right - other) / passed
    if layer.direct or (layer.bias is not None and layer.bias.node != layer.index):  # added behind the node
        target = target + bias_of(layer, truth)[:, None, :]
    return Rows(patches, np.ascontiguousarray(target, np.float32), other)


def _share(layer: Layer, truth: Frontier, k: int, features: int, most: int) -> float:
    """Returns the share of places to look at: enough rows for the features, no more than needed."""
    rows = float(_count(layer.view, truth.values[k][layer.output].shape)) * len(truth.values)
    enough = min(ENOUGH_ROWS * features, CHEAP // max(features, 1) ** 2)
    aim = min(max(SHARE * rows, LEAST_ROWS * features, enough), most)
    return min(1.0, aim / rows)


def _count(view: Linear, shape: tuple[int, ...]) -> int:
    """Returns how many rows an output of this shape holds."""
    return max(int(np.prod(shape)) // max(shape[view.channel], 1), 1)
