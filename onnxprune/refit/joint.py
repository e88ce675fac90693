"""Layers of a chain refitted together, toward what the dense network makes behind the last of them.

Least squares asks of a layer what the dense one made. But units that stay can take over from units that go also where
an activation stands between: other numbers in their place can tell the next layer more. So from where least squares
ended the weights of all layers move together, along the slope of the squared error behind the last. Each layer's slope
is taken apart from the correlations of what it reads, and from how much its outputs count further on.

Li et al., BRECQ, 2021 (https://arxiv.org/abs/2102.05426), for blocks as what is mended; Martens and Grosse, Optimizing
Neural Networks with Kronecker-factored Approximate Curvature, 2015 (https://arxiv.org/abs/1503.05671), for the scales.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.abreast import abreast
from onnxprune.engine.frontier import Frontier
from onnxprune.refit.chains import Chain, Link
from onnxprune.refit.descent import Weights, descend
from onnxprune.refit.gathering import CHECK_EVERY, LEAST_ROWS, Drawing, bias_of, is_held
from onnxprune.refit.moments import Bools, Floats
from onnxprune.refit.passage import Passage, Passed

__all__ = ["refit_jointly"]

MOST_FEATURES = 2048  # that a layer keeps
ENOUGH_ROWS = 256  # of the last layer's outputs for each feature of a layer
MOST_ROWS = 1 << 17
MOST_HELD = 1 << 26  # numbers of inputs and outputs that are looked at again and again
MOST_WORK = 1 << 35  # multiplications of one look
MOST_AT_ONCE = 1 << 22  # numbers that a layer reads at a time
CORRELATED = 128  # rows for each feature that tell how features correlate
DAMPING = 1e-3
FLAT = 0.03  # of the mean curvature, that outputs have at least


@dataclass(frozen=True, eq=False)
class _Item:
    """Some samples of a batch.

    Attributes:
        x: what the first layer reads.
        wanted: what the nodes behind the last layer should make.
        other: the branch that is added behind it, None where there is none.
        held: they are held out.
        passed: the product between two layers, None where there are only pointwise nodes.
        counts: (n, 1, 1, places) which rows of the outputs count, None for all.
    """

    x: np.ndarray
    wanted: np.ndarray
    other: np.ndarray | None
    held: bool
    passed: Passed | None = None
    counts: Bools | None = None

    @property
    def first(self) -> _Item:
        """The first sample; all of them where they can't be told apart."""
        return replace(self, x=self.x[:1], wanted=self.wanted[:1]) if self.passed is None else self


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
    share = _share(chain, links, truth)
    items = list(_items(chain, links, seen, truth, drawing, share)) if share else []
    error = _Error(links, items, rows[-1], drawing.jobs)
    if not (error.count and error.checked):
        return None
    start = [link.taken(w, b) for link, (w, b) in zip(links, found, strict=True)]
    try:
        new = descend(start, error.look, error.held, error.scaled(start))
    except np.linalg.LinAlgError:  # of inputs that are no numbers
        return None
    return None if new is None else [link.put(of, *old) for link, of, old in zip(links, new, found, strict=True)]


def _share(chain: Chain, links: Sequence[Link], truth: Frontier) -> float:
    """Returns the share of samples to look at; 0 where those that are needed would take too long."""
    shapes, last = truth.coupling.trace.shapes, links[-1]
    x, places = shapes[links[0].layer.input][0], [_places(link, shapes[link.layer.output][0]) for link in links]
    size = np.prod(x) + 2 * np.prod(shapes[last.layer.output][0])
    if chain.passage is not None:
        size += np.prod(shapes[chain.passage.beside(truth.coupling)][0])
    held = int(size) // max(places[-1], 1)  # numbers for each row
    work = 3 * sum(n * link.moves.size for n, link in zip(places, links, strict=True)) // max(places[-1], 1)
    widest = max(link.moves.shape[2] for link in links)
    total = sum(_places(last, values[last.layer.output].shape) for values in truth.values)
    most = min(ENOUGH_ROWS * widest, MOST_ROWS, MOST_HELD // max(held, 1), MOST_WORK // max(work, 1))
    enough = widest <= MOST_FEATURES and most >= min(LEAST_ROWS * widest, total)
    return min(1.0, most / max(total, 1)) if enough else 0.0


def _places(link: Link, shape: tuple[int, ...]) -> int:
    """Returns how many rows an output of this shape holds."""
    return int(np.prod(shape)) // max(shape[link.view.channel], 1)


def _items(
    chain: Chain, links: Sequence[Link], seen: Frontier, truth: Frontier, drawing: Drawing, share: float
) -> Iterator[_Item]:
    """Returns a share of the samples, some of them held out."""
    if chain.passage is None:
        return _parts(links, seen, truth, drawing, share)
    return _whole(chain.passage, links, seen, truth, drawing, share)


def _parts(links: Sequence[Link], seen: Frontier, truth: Frontier, drawing: Drawing, share: float) -> Iterator[_Item]:
    """Yields a share of the samples of all batches, one of each at least, in parts that are looked at in one piece."""
    first, last = links[0].layer, links[-1]
    given = sum(not values.mixed for values in truth.values)
    widest = max(link.moves.shape[2] for link in links)
    for k, values in enumerate(seen.values):
        x = values[first.input]
        count = max(1, round(len(x) * share))
        rng = np.random.default_rng([drawing.seed, last.layer.index, k])
        drawn = np.sort(rng.choice(len(x), count, replace=False))
        x, (wanted, other) = x[drawn].astype(np.float32), _wanted(last, seen, truth, k, drawn)
        held = is_held(k, given)
        begin = max(1, count // CHECK_EVERY) if held and given == 1 else 0  # one batch is taken apart
        step = max(1, MOST_AT_ONCE * count // (widest * max(_places(last, wanted.shape), 1)))
        for start, stop, out in ((0, begin, True), (begin, count, held and not begin)):
            for at in range(start, stop, step):
                part = slice(at, min(at + step, stop))
                yield _Item(x[part], wanted[part], None if other is None else other[part], out)


def _whole(
    passage: Passage, links: Sequence[Link], seen: Frontier, truth: Frontier, drawing: Drawing, share: float
) -> Iterator[_Item]:
    """Yields a share of the batches, whole: in what is multiplied samples may stand anywhere."""
    first, last = links[0], links[-1]
    given = sum(not values.mixed for values in truth.values)
    out = np.array([is_held(k, given) for k in range(len(seen.values))])
    rng, ways = np.random.default_rng([drawing.seed, last.layer.index]), passage.ways(seen)
    drawn = list[tuple[int, bool]]()
    for held in (False, True):
        numbers = rng.permutation(np.flatnonzero(out == held))
        drawn += [(k, held) for k in np.sort(numbers[: max(1, round(share * len(numbers)))]).tolist()]
    for k, held in [(0, False), *drawn] if given == 1 else drawn:  # one batch is taken apart
        x, count = seen.values[k][first.layer.input], len(truth.values[k][last.layer.output])
        wanted, other = _wanted(last, seen, truth, k, np.arange(count))
        counts = None
        if given == 1 and k == 0:
            rows = (np.arange(count) < max(1, count // CHECK_EVERY)) == held
            counts = last.stacked(np.broadcast_to(rows.reshape(-1, *[1] * (wanted.ndim - 1)), wanted.shape))[:, :1, :1]
        shape = first.make(np.zeros(first.moves.shape, np.float32), first.read(x), x.shape).shape
        yield _Item(x, wanted, other, held, passage.of(seen, ways, seen.values[k], shape), counts)


def _wanted(
    last: Link, seen: Frontier, truth: Frontier, k: int, drawn: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns what is wanted behind the last layer for samples of batch k, and the branch that is added."""
    layer, y, other = last.layer, truth.values[k][last.layer.output], None
    shape, y = y.shape, y[drawn]
    if layer.other is not None:
        right, other = (np.broadcast_to(of.values[k][layer.other.name], shape)[drawn] for of in (truth, seen))
        y = y + (right - other) / layer.other.factor
    if layer.bias is not None and layer.bias.node != layer.index:  # added behind the node
        axis = layer.view.channel % len(shape)
        y = y + bias_of(layer, truth).reshape([-1 if d == axis else 1 for d in range(len(shape))])
    return last.answer(y.astype(np.float32), other), other


class _Error:
    """Half the squared error behind the last layer, for each of its rows."""

    def __init__(self, links: Sequence[Link], items: Sequence[_Item], rows: Bools, jobs: int) -> None:
        self.links, self.last, self.jobs = links, links[-1], jobs
        self.fit, self.check = ([item for item in items if item.held == held] for held in (False, True))
        self.count, self.checked = (sum(map(self._rows, part)) for part in (self.fit, self.check))
        gain = np.ones(rows.shape) if self.last.respond else self.last.layer.gain.reshape(rows.shape)
        self.weight = np.asarray(gain**2 * rows, np.float32)[None, :, self.last.outputs, None]

    def _rows(self, item: _Item) -> int:
        """Returns how many rows of outputs count."""
        return _places(self.last, item.wanted.shape) if item.counts is None else int(item.counts.sum())

    def held(self, w: Weights) -> float:
        """Returns the error on what is held out."""
        few = [a.astype(np.float32) for a in w]

        def error(item: _Item) -> float:
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

    def _through(self, w: Sequence[np.ndarray], item: _Item) -> list[tuple[np.ndarray, np.ndarray, tuple[int, ...]]]:
        """Returns for each layer what it reads, what it makes, and the shape of its input."""
        x, found = item.x, list[tuple[np.ndarray, np.ndarray, tuple[int, ...]]]()
        for link, weights in zip(self.links, w, strict=True):
            columns = link.read(x)
            found.append((columns, link.make(weights, columns, x.shape), x.shape))
            if link is not self.last:
                x = link.answer(found[-1][1])
                x = x if item.passed is None else item.passed(x)
        return found

    def _missed(self, made: np.ndarray, item: _Item) -> tuple[float, np.ndarray]:
        """Returns the sum of squared errors over some samples, and (n, g, o, places) what is missed, by its weight."""
        left = self.last.stacked(self.last.answer(made, item.other) - item.wanted)
        weight = self.weight if item.counts is None else self.weight * item.counts
        return float((weight * np.square(left)).sum(dtype=np.float64)), weight * left

    def _slopes(self, w: Sequence[np.ndarray], item: _Item) -> tuple[float, list[np.ndarray]]:
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

    def _told(self, w: Sequence[np.ndarray], item: _Item) -> list[tuple[np.ndarray, np.ndarray]]:
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
