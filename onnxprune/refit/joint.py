"""Layers of a chain refitted together, toward what the dense network makes behind the last of them.

Least squares asks of a layer what the dense one made. But units that stay can take over from units that go, also where
an activation, a gate or the weights of attention stand between: other numbers in their place can tell the next layer
more. So from where least squares ended the weights of all layers move together, along the slope of the squared error
behind the last. Each layer's slope is taken apart from the correlations of what it reads, and from how much its outputs
count further on.

Li et al., BRECQ, 2021 (https://arxiv.org/abs/2102.05426), for blocks as what is mended; Martens and Grosse, Optimizing
Neural Networks with Kronecker-factored Approximate Curvature, 2015 (https://arxiv.org/abs/1503.05671), for the scales.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from onnxprune.abreast import abreast
from onnxprune.engine.frontier import Frontier
from onnxprune.refit.chains import Chain, Link
from onnxprune.refit.descent import Weights, descend
from onnxprune.refit.gathering import Drawing
from onnxprune.refit.moments import Bools, Floats
from onnxprune.refit.portions import Portion, portions

__all__ = ["refit_jointly"]

STEPS = 6
STEPS_THROUGH = 12  # a product
CORRELATED = 128  # rows for each feature that tell how features correlate
DAMPING = 1e-3
FLAT = 0.03  # of the mean curvature, that outputs have at least


def refit_jointly(
    chain: Chain,
    seen: Frontier,
    truth: Frontier,
    drawing: Drawing,
    found: Sequence[tuple[Floats, Floats]],
    keep: Sequence[Bools],
    rows: Sequence[Bools],
) -> list[tuple[Floats, Floats]] | None:
    """Returns weights and biases of all layers with less error behind the last; None where there are none.

    Args:
        chain: the layers.
        seen: the network that is refitted, run up to the last layer, with what the first one reads.
        truth: the dense network, run up to behind the last layer.
        drawing: how samples are drawn.
        found: (g, o, f) and (g, o) of each layer, as least squares found them.
        keep: (g, f) of each layer, whether a feature stays.
        rows: (g, o) of each layer, whether an output stays.
    """
    links = chain.links(keep, rows, truth)
    error = _Error(links, list(portions(chain, links, seen, truth, drawing)), rows[-1], drawing.jobs)
    if not (error.count and error.checked):
        return None
    start = [link.taken(w, b) for link, (w, b) in zip(links, found, strict=True)]
    try:
        new = descend(
            start, error.look, error.held, error.scaled(start), STEPS if chain.passage is None else STEPS_THROUGH
        )
    except np.linalg.LinAlgError:  # of inputs that are no numbers
        return None
    return None if new is None else [link.put(of, *old) for link, of, old in zip(links, new, found, strict=True)]


class _Error:
    """Half the squared error behind the last layer, for each of its rows."""

    def __init__(self, links: Sequence[Link], given: Sequence[Portion], rows: Bools, jobs: int) -> None:
        self.links, self.last, self.jobs = links, links[-1], jobs
        self.fit, self.check = ([item for item in given if item.held == held] for held in (False, True))
        self.count, self.checked = (sum(x.rows(self.last) for x in part) for part in (self.fit, self.check))
        gain = np.ones(rows.shape) if self.last.respond else self.last.layer.gain.reshape(rows.shape)
        self.weight = np.asarray(gain**2 * rows, np.float32)[None, :, self.last.outputs, None]

    def held(self, w: Weights) -> float:
        """Returns the error on what is held out."""
        few = [a.astype(np.float32) for a in w]

        def error(item: Portion) -> float:
            return self._missed(self._through(few, item)[-1][1], item)[0]

        return sum(abreast(error, self.check, self.jobs)) / (2 * self.checked)

    def look(self, w: Weights) -> tuple[float, Weights]:
        """Returns the error on what is fitted, and its slope."""
        few = [a.astype(np.float32) for a in w]
        error, slopes = 0.0, [np.zeros(a.shape) for a in w]
        for one, parts in abreast(lambda item: self._slopes(few, item), self.fit, self.jobs):
            error += one
            for slope, part in zip(slopes, parts, strict=True):
                slope += part
        return error / (2 * self.count), [
            np.where(link.moves, slope / self.count, 0) for link, slope in zip(self.links, slopes, strict=True)
        ]

    def _through(self, w: Sequence[np.ndarray], item: Portion) -> list[tuple[np.ndarray, np.ndarray, tuple[int, ...]]]:
        """Returns for each layer what it reads, what it makes, and the shape of its input."""
        x, found = item.x, list[tuple[np.ndarray, np.ndarray, tuple[int, ...]]]()
        for link, weights in zip(self.links, w, strict=True):
            columns = link.read(x)
            found.append((columns, link.make(weights, columns, x.shape), x.shape))
            if link is not self.last:
                x = link.answer(found[-1][1])
                x = x if item.passed is None else item.passed(x)
        return found

    def _missed(self, made: np.ndarray, item: Portion) -> tuple[float, np.ndarray]:
        """Returns the sum of squared errors over some samples, and (n, g, o, places) what is missed, by its weight."""
        left = self.last.stacked(self.last.answer(made, item.other) - item.wanted)
        weight = self.weight if item.counts is None else self.weight * item.counts
        return float((weight * np.square(left)).sum(dtype=np.float64)), weight * left

    def _slopes(self, w: Sequence[np.ndarray], item: Portion) -> tuple[float, list[np.ndarray]]:
        """Returns the sum of squared errors over some samples, and the slope of half of it for each layer."""
        made, found = self._through(w, item), list[np.ndarray]()
        error, missed = self._missed(made[-1][1], item)
        back = self.last.laid(missed, made[-1][2])
        for link, weights, (columns, y, shape) in zip(self.links[::-1], w[::-1], made[::-1], strict=True):
            if item.passed is not None and link is not self.last:
                back = item.passed.back(back, y.shape)
            behind = link.stacked(back * link.slope(y, item.other if link is self.last else None))
            along = (behind @ columns.transpose(0, 1, 3, 2)).sum(axis=0)
            found.append(np.concatenate([along, behind.sum(axis=(0, 3))[:, :, None]], axis=2))
            if link is not self.links[0]:
                back = link.spread(weights[:, :, :-1].transpose(0, 2, 1) @ behind, shape)
        return error, found[::-1]

    # ---------------------------------------------------------------- what is known of the curvature
    def scaled(self, start: Weights) -> Callable[[Weights], Weights]:
        """Returns what makes the steps of slopes that each layer would take alone."""
        few = [a.astype(np.float32) for a in start]
        together = [np.zeros((len(a), a.shape[2], a.shape[2])) for a in start]
        squares = [np.zeros(a.shape[:2]) for a in start]
        for parts in abreast(lambda item: self._told(few, item), self.fit, self.jobs):
            for k, (products, slopes) in enumerate(parts):
                together[k] += products
                squares[k] += slopes
        counts = self._counts(few, squares)
        inverses = [_inverse(x / self.count, link.moves) for x, link in zip(together, self.links, strict=True)]

        def step(slope: Weights) -> Weights:
            return [
                np.where(link.moves, a @ inverse / count[:, :, None], 0)
                for link, a, inverse, count in zip(self.links, slope, inverses, counts, strict=True)
            ]

        return step

    def _told(self, w: Sequence[np.ndarray], item: Portion) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns for each layer products of what it reads over some samples, and squared slopes behind it.

        The former are of a part of the places, times as many as there are, the latter are means over the places, times
        the samples.
        """
        found, made = list[tuple[np.ndarray, np.ndarray]](), self._through(w, item)
        mixes = item.passed is not None and item.passed.kind == "MatMul" and len(self.links[0].moves) == 1
        for link, (columns, y, shape) in zip(self.links, made, strict=True):
            of = made[-1][0] if mixes else columns
            rows, share = of.shape[0] * of.shape[3], min(1.0, CORRELATED * columns.shape[2] / self.count)
            rng = np.random.default_rng(len(columns))  # the same places in items of one size
            if item.passed is not None and mixes and link is not self.last:
                some = item.passed.mixtures(*link.rows(columns, shape), round(share * rows), rng).T[None, None]
            else:
                places = columns.shape[3]
                drawn = np.sort(rng.choice(places, max(1, round(share * places)), replace=False))
                some = columns[:, :, :, drawn]
                some = np.concatenate([some, np.ones_like(some[:, :, :1])], axis=2)
            products = (some @ some.transpose(0, 1, 3, 2)).sum(axis=0) * (rows / (len(some) * some.shape[3]))
            slope = link.stacked(link.slope(y, item.other if link is self.last else None))
            found.append((products, np.square(slope).mean(axis=(0, 3)) * len(item.x)))
        return found

    def _counts(self, w: Sequence[np.ndarray], squares: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns (g, o) for each layer: how much the square of a change of an output counts behind the last layer."""
        samples = sum(len(item.x) for item in self.fit)
        one = self.fit[0].first
        made = [(y.shape, shape) for _, y, shape in self._through(w, one)]
        count, found = self.weight[0, :, :, 0] * squares[-1] / samples, list[np.ndarray]()
        for k in reversed(range(len(w))):
            link = self.links[k]
            alive = link.moves.any(axis=2)
            found.append(np.maximum(count + FLAT * (count * alive).sum() / max(alive.sum(), 1), 1e-30))
            if k:
                columns = link.read(np.zeros(made[k][1], np.float32))
                each = np.square(w[k][:, :, :-1]).transpose(0, 2, 1) @ count[:, :, None]
                spread = link.spread(np.broadcast_to(each, columns.shape).astype(np.float32), made[k][1])
                if one.passed is not None:
                    spread = one.passed.counted().back(spread, made[k - 1][0])
                count = self.links[k - 1].stacked(spread).mean(axis=(0, 3)) * squares[k - 1] / samples
        return found[::-1]


def _inverse(together: Floats, moves: Bools) -> Floats:
    """Returns (g, k + 1, k + 1): the inverse of mean products, damped; without the bias where there is no place."""
    fixed = ~moves[:, :, -1].any(axis=1)
    together[fixed, -1, :-1] = together[fixed, :-1, -1] = 0
    level = np.maximum(np.einsum("gff->g", together) / together.shape[1], 1e-30)
    found: Floats = np.linalg.inv(together + (DAMPING * level)[:, None, None] * np.eye(together.shape[1]))
    return found
