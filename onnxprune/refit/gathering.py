"""What a layer is refitted from: moments of its inputs and targets over all batches, a part of them held out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from onnxprune.abreast import abreast
from onnxprune.engine.frontier import Frontier
from onnxprune.engine.layers import Layer
from onnxprune.ops.linear import Linear, Places
from onnxprune.refit.moments import WIDE, Bools, Moments

Made = TypeVar("Made")

SHARE = 0.25  # of the positions of a convolution or sequence
LEAST_ROWS = 24  # rows for each feature that are aimed at, if there are as many
ENOUGH_ROWS = 96  # the same where their products cost next to nothing
CHEAP = 1 << 35  # multiplications
MOST_ROWS = 1 << 17
CHECK_EVERY = 8  # one batch in so many is held out to choose the ridge
MOST_FEATURES = 8192  # of which products are formed


@dataclass(frozen=True)
class Drawing:
    """How rows are drawn.

    Attributes:
        seed: of the sampled positions.
        jobs: batches at a time; no result depends on it.
    """

    seed: int
    jobs: int


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a layer.

    Attributes:
        p: (g, n, k) inputs at the features that are asked for.
        t: (g, n, o) targets.
        other: (g, n, o) of the branch that is added, in the network that is refitted; None where there is none.
        held: they are held out.
    """

    p: np.ndarray
    t: np.ndarray
    other: np.ndarray | None
    held: bool = False

    def part(self, which: slice | Bools, *, held: bool) -> Rows:
        """Returns some of the rows."""
        other = None if self.other is None else self.other[:, which]
        return Rows(self.p[:, which], self.t[:, which], other, held)


def gather(
    layer: Layer, seen: Frontier, truth: Frontier, drawing: Drawing, features: Places | None = None
) -> tuple[Moments, Moments]:
    """Returns moments to fit and to check, of as many rows as are worth it; for what is given see `sampled`."""
    g, o, f = layer.view.matrix(np.empty(layer.use.shape, bool)).shape
    k = f if features is None else features.shape[1]
    products = k <= MOST_FEATURES
    fit, check = (Moments.empty(g, k, o, products=products) for _ in range(2))

    def moments(rows: Rows) -> tuple[bool, Moments]:
        return rows.held, Moments.seen(rows.p, rows.t, products=products)

    for held, part in sampled(moments, layer, seen, truth, drawing, MOST_ROWS, features, mixed=products):
        if held:
            check += part
        else:
            fit += part
    return fit, check


def sampled(
    work: Callable[[Rows], Made],
    layer: Layer,
    seen: Frontier,
    truth: Frontier,
    drawing: Drawing,
    most: int,
    features: Places | None = None,
    *,
    mixed: bool = True,
) -> Iterator[Made]:
    """Yields batch by batch what is made of rows: inputs as `seen`, targets of `truth` less the other branch's error.

    Args:
        work: makes it; called for several batches at a time.
        layer: both networks have been run up to it, the one for targets behind it too.
        seen: the network whose layer is refitted.
        truth: the dense network.
        drawing: how rows are drawn.
        most: how many rows there may be altogether.
        features: (g, k) which of each group's features are looked at, ascending, None for all; no row hangs on it.
        mixed: mixtures of inputs count, too. They are never held out, and they have other means than inputs have.
    """
    if features is not None and features.shape == layer.labels.shape:
        features = None  # these are all
    seen = truth if layer.recurs else seen
    given = sum(not values.mixed for values in truth.values)

    def drawn(k: int) -> list[Made]:
        rng = np.random.default_rng([drawing.seed, layer.index, k])
        share = _share(layer, truth, k, layer.labels.shape[1], most)
        places = layer.view.places(truth.values[k][layer.output].shape, share, rng)
        rows = _rows(layer, seen, truth, k, places, features)
        if given > 1 or k >= given:  # what is given stands first
            return [work(replace(rows, held=is_held(k, given)))]
        half = max(1, rows.p.shape[1] // CHECK_EVERY)
        return [work(rows.part(slice(half), held=True)), work(rows.part(slice(half, None), held=False))]

    numbers = range(len(truth.values) if mixed else given)
    made = map(drawn, numbers) if _is_wide(layer) else abreast(drawn, numbers, drawing.jobs)
    return chain.from_iterable(made)


def is_held(k: int, given: int) -> bool:
    """Returns whether batch k is held out, of so many that are given; mixtures stand behind these."""
    return k < given and (k % CHECK_EVERY == CHECK_EVERY - 1 or (given < CHECK_EVERY and k == given - 1))


def quiet(layers: Sequence[Layer]) -> threadpool_limits:
    """Returns a context in which matrix products have one thread each, as in `abreast`; not where a layer is wide.

    Threads of products wait busily for the next one, and take the processors that workers need.
    """
    return threadpool_limits(None if any(map(_is_wide, layers)) else 1, "blas")


def _is_wide(layer: Layer) -> bool:
    """Returns whether products are most of a layer's work, and sums of them so large that one batch has to do."""
    return bool(layer.labels.shape[1] > WIDE)


def bias_of(layer: Layer, frontier: Frontier) -> np.ndarray:
    """Returns (g, o): the bias of a layer's outputs as it stands in a network, zeros where there is none."""
    groups, outputs, _ = layer.view.matrix(np.empty(layer.use.shape, bool)).shape
    if layer.bias is None or layer.bias.name is None:
        return np.zeros((groups, outputs))
    whole = frontier.content(layer.bias.name)
    part: np.ndarray = whole if layer.bias.cells is None else whole.reshape(-1)[layer.bias.cells]
    return part.reshape(groups, outputs).astype(np.float64)


def _rows(layer: Layer, seen: Frontier, truth: Frontier, k: int, places: Places, features: Places | None) -> Rows:
    """Returns rows of batch k at these places."""
    view, y = layer.view, truth.values[k][layer.output]
    patches = np.ascontiguousarray(view.patches(seen.values[k][layer.input], places, features), np.float32)
    if layer.direct:  # what stands behind the node is not linear: the old weights tell
        known = seen is truth and features is None
        right = patches if known else view.patches(truth.values[k][layer.input], places).astype(np.float32)
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
    return _numbers(Rows(patches, np.ascontiguousarray(target, np.float32), other))


def _numbers(rows: Rows) -> Rows:
    """Returns the rows that hold numbers alone: padded places that see nothing may hold none, and nobody reads them."""
    given = [rows.p, rows.t, *([] if rows.other is None else [rows.other])]
    if np.isfinite(sum(x.sum() for x in given)):
        return rows
    there = np.logical_and.reduce([np.isfinite(x).all(axis=(0, 2)) for x in given])
    return rows.part(there, held=rows.held)


def _share(layer: Layer, truth: Frontier, k: int, features: int, most: int) -> float:
    """Returns the share of places to look at: enough rows for the features, no more than needed."""
    rows = float(_count(layer.view, truth.values[k][layer.output].shape)) * len(truth.values)
    enough = min(ENOUGH_ROWS * features, CHEAP // max(features, 1) ** 2)
    aim = min(max(SHARE * rows, LEAST_ROWS * features, enough), most)
    return min(1.0, aim / rows)


def _count(view: Linear, shape: tuple[int, ...]) -> int:
    """Returns how many rows an output of this shape holds."""
    return max(int(np.prod(shape)) // max(shape[view.channel], 1), 1)
