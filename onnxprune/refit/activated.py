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
from functools import cached_property, reduce

import numpy as np

from onnxprune.engine.activation import activation_behind
from onnxprune.engine.frontier import Frontier
from onnxprune.engine.layers import Layer
from onnxprune.graph.runtime import open_session, run
from onnxprune.refit.gathering import bias_of, sampled
from onnxprune.refit.moments import Bools, Fit, Floats, Kept, Moments

STEPS = 3
MOST_ROWS = 1 << 15
MOST_NUMBERS = 1 << 25  # that are held at a time
RESULTS = 6  # numbers for each output of a row
MOST_FEATURES = 2048  # that are kept

Response = Callable[[np.ndarray, np.ndarray | None], np.ndarray]


@dataclass(frozen=True, eq=False)
class _Part:
    """Rows of a layer.

    Attributes:
        p: (g, n, k) inputs at the features that are kept.
        t: (g, n, o) targets before the activation.
        wanted: (g, n, o) what it makes of them.
        other: see `Rows`.
    """

    p: np.ndarray
    t: np.ndarray
    wanted: np.ndarray
    other: np.ndarray | None

    @cached_property
    def inputs(self) -> Floats:
        """Sums (g, k) of the inputs."""
        found: Floats = self.p.sum(axis=1, dtype=np.float64)
        return found


def toward_activation(
    layer: Layer,
    seen: Frontier,
    truth: Frontier,
    seed: int,
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
        seed: of the sampled positions.
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
    held = kept.features.size + RESULTS * found[1].size
    parts = [
        _Part(kept.take(rows.p), rows.t, respond(rows.t, rows.other), rows.other)
        for rows in sampled(layer, seen, truth, seed, min(MOST_ROWS, MOST_NUMBERS // held))
    ]
    fit, check = (m.of(kept.features) for m in moments)
    solver, count = Fit(fit + check, kept.take(w0), kept.there), fit.n + check.n
    w, b = new, level = kept.take(found[0]), found[1]
    before = _errors(w, b, parts, respond)
    errors = before
    for _ in range(STEPS):
        new, level = _step(new, level, parts, errors, solver, ridge, count, free=layer.bias is not None)
        errors = _errors(new, level, parts, respond)
    better = _squared(errors) < _squared(before)
    return kept.put(np.where(better[:, :, None], new, w), w0.shape), np.where(better, level, b)


@dataclass(frozen=True, eq=False)
class _Errors:
    """Errors of a part's rows (g, n, o), before the activation and behind it."""

    before: np.ndarray
    behind: np.ndarray


def _errors(w: Floats, b: Floats, parts: list[_Part], respond: Response) -> list[_Errors]:
    """Returns what outputs still miss."""
    found = []
    for x in parts:
        made = x.p @ w.transpose(0, 2, 1).astype(np.float32) + b[:, None, :].astype(np.float32)
        found.append(_Errors(x.t - made, x.wanted - respond(made, x.other)))
    return found


def _squared(errors: list[_Errors]) -> Floats:
    """Returns (g, o) sums of squared errors behind the activation."""
    found: Floats = sum(np.square(e.behind).sum(axis=1, dtype=np.float64) for e in errors)
    return found


def _step(
    w: Floats,
    b: Floats,
    parts: list[_Part],
    errors: list[_Errors],
    solver: Fit,
    ridge: float,
    count: int,
    *,
    free: bool,
) -> tuple[Floats, Floats]:
    """Returns the least-squares solution for targets moved by the errors behind the activation, over its slope."""
    steepest = _steepest(errors)
    moves = [e.behind / steepest for e in errors]
    rows = sum(x.p.shape[1] for x in parts)
    slope = sum((m.transpose(0, 2, 1) @ x.p).astype(np.float64) for m, x in zip(moves, parts, strict=True))
    mean = sum(m.sum(axis=1, dtype=np.float64) for m in moves) / rows
    inputs = sum(x.inputs for x in parts) / rows
    if free:
        slope = slope - rows * mean[:, :, None] * inputs[:, None, :]
    new = solver.moved(w, slope * (count / rows), ridge)
    return new, b + (mean - np.einsum("gof,gf->go", new - w, inputs) if free else 0)


def _steepest(errors: list[_Errors]) -> np.ndarray:
    """Returns (g, 1, o) the steepest slope of a secant, infinite where all are flat.

    Errors below the usual one are left out: they tell more of rounding than of the activation.
    """
    rows = sum(e.before.shape[1] for e in errors)
    usual = np.sqrt(sum(np.square(e.before).sum(axis=1, keepdims=True) for e in errors) / rows)
    with np.errstate(all="ignore"):
        slopes = [np.where(np.abs(e.before) > usual, e.behind / e.before, np.float32(0)) for e in errors]
    up = reduce(np.maximum, (s.max(axis=1, keepdims=True) for s in slopes))
    down = reduce(np.minimum, (s.min(axis=1, keepdims=True) for s in slopes))
    found = np.where(up >= -down, up, down)
    return np.where(found == 0, np.inf, found)


def _response(layer: Layer, nodes: Sequence[int], truth: Frontier) -> Response:
    """Returns what makes of rows of outputs (g, n, o), and of the branch that is added, what the last node makes."""
    coupling = truth.coupling
    names = [layer.output, *([] if layer.other is None else [layer.other.name])]
    last = str(coupling.nodes[nodes[-1]].outputs[0].name)
    session = open_session(truth.segment(nodes, names, [last]), truth.providers, optimise=True)
    shape = coupling.trace.shapes[layer.output][0]
    axis, dtype = layer.view.channel % len(shape), coupling.trace.dtypes[layer.output]
    added = layer.bias is not None and layer.bias.node != layer.index
    inside = bias_of(layer, truth)[:, None, :] if added else 0.0

    def respond(y: np.ndarray, other: np.ndarray | None) -> np.ndarray:
        groups, rows, outs = y.shape
        feeds = []
        for x in (y - inside, *([] if other is None else [other])):
            flat = np.moveaxis(x, 0, 1).reshape(rows, groups * outs, *[1] * (len(shape) - 2))
            feeds.append(np.ascontiguousarray(np.moveaxis(flat, 1, axis), dtype))
        (made,) = run(session, [last], dict(zip(names, feeds, strict=True)))
        flat = np.moveaxis(made, axis, 1).reshape(rows, groups, outs)
        return np.ascontiguousarray(np.moveaxis(flat, 1, 0), np.float32)

    return respond
