"""What a layer is refitted from: moments of its inputs and targets over all batches, a part of them held out."""

from __future__ import annotations

import numpy as np

from onnxprune.engine.frontier import Frontier
from onnxprune.engine.layers import Layer
from onnxprune.ops.linear import Linear
from onnxprune.refit.moments import Moments

SHARE = 0.25  # of the positions of a convolution or sequence
LEAST_ROWS = 24  # rows for each feature that are aimed at, if there are as many
MOST_ROWS = 1 << 17
CHECK_EVERY = 8  # one batch in so many is held out to choose the ridge
MOST_FEATURES = 8192  # of which products are formed


def gather(layer: Layer, seen: Frontier, truth: Frontier, seed: int) -> tuple[Moments, Moments]:
    """Returns moments to fit and to check: inputs as `seen`, targets of `truth` less the other branch's error.

    Args:
        layer: both networks have been run up to it, the one for targets behind it too.
        seen: the network whose layer is refitted.
        truth: the dense network.
        seed: of the sampled positions.
    """
    g, o, f = layer.view.matrix(np.empty(layer.use.shape, bool)).shape
    fit, check = (Moments.empty(g, f, o, products=f <= MOST_FEATURES) for _ in range(2))
    seen = truth if layer.recurs else seen
    count = len(seen.values)
    for k in range(count):
        rng = np.random.default_rng([seed, layer.index, k])
        p, t = _rows(layer, seen, truth, k, _share(layer, truth, k, f), rng)
        if count == 1:
            half = max(1, p.shape[1] // CHECK_EVERY)
            check.add(p[:, :half], t[:, :half])
            fit.add(p[:, half:], t[:, half:])
        else:
            held = k % CHECK_EVERY == CHECK_EVERY - 1 or (count < CHECK_EVERY and k == count - 1)
            (check if held else fit).add(p, t)
    return fit, check


def bias_of(layer: Layer, frontier: Frontier) -> np.ndarray:
    """Returns (g, o): the bias of a layer's outputs as it stands in a network, zeros where there is none."""
    groups, outputs, _ = layer.view.matrix(np.empty(layer.use.shape, bool)).shape
    if layer.bias is None or layer.bias.name is None:
        return np.zeros((groups, outputs))
    whole = frontier.content(layer.bias.name)
    part: np.ndarray = whole if layer.bias.cells is None else whole.reshape(-1)[layer.bias.cells]
    return part.reshape(groups, outputs).astype(np.float64)


def _rows(
    layer: Layer, seen: Frontier, truth: Frontier, k: int, share: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (g, n, f) inputs and (g, n, o) targets of batch k at sampled places."""
    view, y = layer.view, truth.values[k][layer.output]
    places = view.places(y.shape, share, rng)
    patches = np.ascontiguousarray(view.patches(seen.values[k][layer.input], places), np.float32)
    if layer.direct:  # what stands behind the node is not linear: the old weights tell
        right = patches if seen is truth else view.patches(truth.values[k][layer.input], places).astype(np.float32)
        weight = view.matrix(truth.content(layer.use.name)).astype(np.float32)
        target = right @ weight.transpose(0, 2, 1)
    else:
        target = view.outputs(y, places)
    if layer.other is not None and seen is not truth:
        wrong = (truth.values[k][layer.other.name] - seen.values[k][layer.other.name]) / layer.other.factor
        target = target + view.outputs(np.broadcast_to(wrong, y.shape), places)
    if layer.direct or (layer.bias is not None and layer.bias.node != layer.index):  # added behind the node
        target = target + bias_of(layer, truth)[:, None, :]
    return patches, np.ascontiguousarray(target, np.float32)


def _share(layer: Layer, truth: Frontier, k: int, features: int) -> float:
    """Returns the share of places to look at: enough rows for the features, no more than needed."""
    rows = float(_count(layer.view, truth.values[k][layer.output].shape)) * len(truth.values)
    aim = min(max(SHARE * rows, LEAST_ROWS * features), MOST_ROWS)
    return min(1.0, aim / rows)


def _count(view: Linear, shape: tuple[int, ...]) -> int:
    """Returns how many rows an output of this shape holds."""
    return max(int(np.prod(shape)) // max(shape[view.channel], 1), 1)
