"""Refits toward what an activation makes of a layer's outputs, from where least squares ended.

What a Relu sets to zero in both networks is no error, and what least squares spent on it can be had back. Errors behind
the activation lead the way: that is the slope of the activation's matching loss, which is convex where the activation
grows, and is majorized by a least-squares problem with the same products of inputs. It is solved a few times.

Auer, Herbster and Warmuth, Exponentially many local minima for single neurons, 1995, for the loss; Zhang, Zou, He and
Sun, Accelerating Very Deep Convolutional Networks, 2016 (https://arxiv.org/abs/1505.06798), for its use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np

from onnxprune.abreast import abreast
from onnxprune.engine.activation import activation_behind
from onnxprune.engine.frontier import Frontier
from onnxprune.engine.layers import Layer
from onnxprune.graph.runtime import open_session, run
from onnxprune.refit.gathering import Drawing, Rows, bias_of, sampled
from onnxprune.refit.moments import Bools, Fit, Floats, Kept, Moments

STEPS = 3
MOST_ROWS = 1 << 15
MOST_NUMBERS = 1 << 25  # that are held at a time
RESULTS = 6  # numbers for each output of a row
MOST_FEATURES = 2048  # that are kept

Pointwise = Callable[[np.ndarray, np.ndarray | None], np.ndarray]


@dataclass(frozen=True, eq=False)
class _Part:
    """Rows of a layer.

    Attributes:
        p: (g, n, k) inputs at the features that are kept.
        t: (g, n, o) targets before the activation.
        wanted: (g, n, o) what it makes of them.
        other: see `Rows`.
        inputs: (g, k) sums of the inputs.
    """

    p: np.ndarray
    t: np.ndarray
    wanted: np.ndarray
    other: np.ndarray | None
    inputs: Floats


@dataclass(frozen=True, eq=False)
class _Errors:
    """What outputs miss behind the activation, over rows.

    Attributes:
        n: rows seen.
        inputs: (g, k) sums of their inputs.
        squared: (g, o) sums of squares.
        total: (g, o) sums.
        along: (g, o, k) sums of products with the inputs.
    """

    n: int
    inputs: Floats
    squared: Floats
    total: Floats
    along: Floats

    def __add__(self, other: _Errors) -> _Errors:
        """Returns those over both sets of rows."""
        return _Errors(
            self.n + other.n,
            self.inputs + other.inputs,
            self.squared + other.squared,
            self.total + other.total,
            self.along + other.along,
        )


@dataclass(frozen=True)
class _Equations:
    """The normal equations of a layer, solved again and again for targets that move.

    Attributes:
        fit: the equations.
        rows: seen in them.
        ridge: lambda.
        steepest: (g, o) slopes of the activation.
        has_bias: whether the layer has a place for a bias.
    """

    fit: Fit
    rows: int
    ridge: float
    steepest: np.ndarray
    has_bias: bool

    def step(self, w: Floats, b: Floats, left: _Errors) -> tuple[Floats, Floats]:
        """Returns (w, b) for targets moved by the errors that are left behind the activation, over its slope."""
        slope, mean = left.along / self.steepest[:, :, None], left.total / self.steepest / left.n
        if self.has_bias:
            slope = slope - mean[:, :, None] * left.inputs[:, None, :]
        new = self.fit.moved(w, slope * (self.rows / left.n), self.ridge)
        carried = mean - np.einsum("gof,gf->go", new - w, left.inputs / left.n)
        return new, b + carried if self.has_bias else b


def toward_activation(
    layer: Layer,
    seen: Frontier,
    truth: Frontier,
    drawing: Drawing,
    found: tuple[Floats, Floats, float | None],
    w0: Floats,
    keep: Bools,
    moments: tuple[Moments, Moments],
) -> tuple[Floats, Floats]:
    """Returns (w, b) with less error behind a layer's activation; as they were found where there is none.

    Args:
        layer: the layer.
        seen: the network whose layer is refitted.
        truth: the dense network.
        drawing: how rows are drawn.
        found: (g, o, f) and (g, o) that least squares found, and the ridge; None where no refit did better.
        w0: (g, o, f) weights to stay near to.
        keep: (g, f) whether a feature is there.
        moments: of rows to fit and to check; through the origin where the layer has no place for a bias.
    """
    ridge = found[2]
    kept = Kept.of(keep)
    able = not layer.direct and layer.shared == 1 and kept.features.shape[1] <= MOST_FEATURES
    nodes = activation_behind(truth.coupling, layer) if able else ()
    if not nodes or ridge is None:
        return found[:2]
    respond = _response(layer, nodes, truth)

    def part(rows: Rows) -> _Part:
        p = kept.blanked(rows.p)
        return _Part(p, rows.t, respond(rows.t, rows.other), rows.other, p.sum(axis=1, dtype=np.float64))

    most = min(MOST_ROWS, MOST_NUMBERS // (kept.features.size + RESULTS * found[1].size))
    parts = list(sampled(part, layer, seen, truth, drawing, most, kept.features))

    fit, check = (m.of(kept.features) for m in moments)
    w, b = new, level = kept.take(found[0]), found[1]

    def first(x: _Part) -> tuple[_Errors, np.ndarray]:
        before, behind = _missed(w, b, x, respond)
        return _errors(x, behind), _secants(before, behind)

    def later(x: _Part) -> _Errors:
        return _errors(x, _missed(new, level, x, respond)[1])

    looks, secants = zip(*abreast(first, parts, drawing.jobs), strict=True)
    left = before = reduce(add, looks)
    both = Fit(fit + check, kept.take(w0), kept.there)
    equations = _Equations(both, fit.n + check.n, ridge, _steepest(secants), layer.bias is not None)
    for _ in range(STEPS):
        new, level = equations.step(new, level, left)
        left = reduce(add, abreast(later, parts, drawing.jobs))
    better = left.squared < before.squared
    return kept.put(np.where(better[:, :, None], new, w), w0.shape), np.where(better, level, b)


def _missed(w: Floats, b: Floats, x: _Part, respond: Pointwise) -> tuple[np.ndarray, np.ndarray]:
    """Returns errors (g, n, o) of the outputs of some rows, before the activation and behind it."""
    made = x.p @ w.transpose(0, 2, 1).astype(np.float32)
    made += b[:, None, :].astype(np.float32)
    return x.t - made, x.wanted - respond(made, x.other)


def _errors(x: _Part, behind: np.ndarray) -> _Errors:
    """Returns what errors (g, n, o) behind the activation tell of some rows."""
    return _Errors(
        x.p.shape[1],
        x.inputs,
        np.square(behind).sum(axis=1, dtype=np.float64),
        behind.sum(axis=1, dtype=np.float64),
        (behind.transpose(0, 2, 1) @ x.p).astype(np.float64),
    )


def _secants(before: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """Returns (2, g, o): the least and the largest slope of a secant of the activation, from what is wanted to what is.

    Those where the error is below the usual one are left out: they tell more of rounding than of the activation.
    """
    squares = np.square(before)
    slopes = np.where(squares > squares.mean(axis=1, keepdims=True), behind / before, np.float32(0))
    return np.stack([slopes.min(axis=1), slopes.max(axis=1)])


def _steepest(secants: Sequence[np.ndarray]) -> np.ndarray:
    """Returns (g, o) the steepest slope of all rows, infinite where all are flat."""
    down, up = np.min([s[0] for s in secants], axis=0), np.max([s[1] for s in secants], axis=0)
    found = np.where(up >= -down, up, down)
    return np.where(found == 0, np.inf, found)


def pointwise(layer: Layer, nodes: Sequence[int], truth: Frontier) -> Pointwise:
    """Returns what makes of a layer's output and of the branch that is added what these nodes make.

    The output has a bias in it that is added behind the layer. Any sizes will do for axes other than the channels'.
    """
    coupling = truth.coupling
    names = [layer.output, *([] if layer.other is None else [layer.other.name])]
    last = str(coupling.nodes[nodes[-1]].outputs[0].name)
    session = open_session(truth.segment(nodes, names, [last]), truth.providers, optimise=True, threads=1)
    rank, dtype = len(coupling.trace.shapes[layer.output][0]), coupling.trace.dtypes[layer.output]
    added = layer.bias is not None and layer.bias.node != layer.index
    level = [-1 if k == layer.view.channel % rank else 1 for k in range(rank)]
    inside = bias_of(layer, truth).reshape(level) if added else None

    def respond(y: np.ndarray, other: np.ndarray | None) -> np.ndarray:
        given = [y if inside is None else y - inside, *([] if other is None else [other])]
        feeds = {name: np.ascontiguousarray(x, dtype) for name, x in zip(names, given, strict=True)}
        return np.asarray(run(session, [last], feeds)[0], np.float32)

    return respond


def _response(layer: Layer, nodes: Sequence[int], truth: Frontier) -> Pointwise:
    """Returns what makes of rows of outputs (g, n, o), and of the branch that is added, what the last node makes."""
    shape = truth.coupling.trace.shapes[layer.output][0]
    axis, behind = layer.view.channel % len(shape), pointwise(layer, nodes, truth)

    def laid(y: np.ndarray) -> np.ndarray:
        groups, rows, outs = y.shape
        return np.moveaxis(np.moveaxis(y, 0, 1).reshape(rows, groups * outs, *[1] * (len(shape) - 2)), 1, axis)

    def respond(y: np.ndarray, other: np.ndarray | None) -> np.ndarray:
        made = np.moveaxis(behind(laid(y), None if other is None else laid(other)), axis, 1)
        return np.ascontiguousarray(np.moveaxis(made.reshape(y.shape[1], y.shape[0], -1), 1, 0))

    return respond
