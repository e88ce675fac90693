"""What a chain is refitted on: a share of the samples, no more than it takes, a part of them held out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.engine.frontier import Frontier
from onnxprune.refit.chains import Chain, Link
from onnxprune.refit.gathering import CHECK_EVERY, LEAST_ROWS, Drawing, bias_of, is_held
from onnxprune.refit.moments import Bools
from onnxprune.refit.passage import Passed

__all__ = ["Portion", "portions"]

MOST_FEATURES = 2048  # that a layer keeps
ENOUGH_ROWS = 256  # of the last layer's outputs for each feature of a layer
MOST_ROWS = 1 << 17
MOST_HELD = 1 << 26  # numbers of inputs and outputs that are looked at again and again
MOST_WORK = 1 << 35  # multiplications of one look
MOST_AT_ONCE = 1 << 22  # numbers that a layer reads at a time


@dataclass(frozen=True, eq=False)
class Portion:
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

    def rows(self, last: Link) -> int:
        """Returns how many rows of the last layer's outputs count."""
        return _places(last, self.wanted.shape) if self.counts is None else int(self.counts.sum())

    @property
    def first(self) -> Portion:
        """The first sample; all of them where they can't be told apart."""
        return replace(self, x=self.x[:1], wanted=self.wanted[:1]) if self.passed is None else self


def portions(
    chain: Chain, links: Sequence[Link], seen: Frontier, truth: Frontier, drawing: Drawing
) -> Iterator[Portion]:
    """Returns samples of all batches; none where those that are needed would take too long.

    Args:
        chain: the layers.
        links: the same.
        seen: the network that is refitted, run up to the last layer, with what the first one reads.
        truth: the dense network, run up to behind the last layer.
        drawing: how samples are drawn.
    """
    share = _share(chain, links, truth)
    if not share:
        return iter(())
    if chain.passage is None:
        return _parts(links, seen, truth, drawing, share)
    return _whole(chain, links, seen, truth, drawing, share)


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


def _parts(links: Sequence[Link], seen: Frontier, truth: Frontier, drawing: Drawing, share: float) -> Iterator[Portion]:
    """Yields a share of the samples of all batches, in parts that are looked at in one piece."""
    first, last = links[0].layer, links[-1]
    given = sum(not values.mixed for values in truth.values)
    widest = max(link.moves.shape[2] for link in links)
    counts = _counts([len(values[first.input]) for values in seen.values], given, share, drawing.seed)
    for k, (values, count) in enumerate(zip(seen.values, counts, strict=True)):
        if not count:
            continue
        x = values[first.input]
        rng = np.random.default_rng([drawing.seed, last.layer.index, k])
        drawn = np.sort(rng.choice(len(x), count, replace=False))
        x, (wanted, other) = x[drawn].astype(np.float32), _wanted(last, seen, truth, k, drawn)
        held = is_held(k, given)
        begin = max(1, count // CHECK_EVERY) if held and given == 1 else 0  # one batch is taken apart
        step = max(1, MOST_AT_ONCE * count // (widest * max(_places(last, wanted.shape), 1)))
        for start, stop, out in ((0, begin, True), (begin, count, held and not begin)):
            for at in range(start, stop, step):
                part = slice(at, min(at + step, stop))
                yield Portion(x[part], wanted[part], None if other is None else other[part], out)


def _counts(sizes: Sequence[int], given: int, share: float, seed: int) -> list[int]:
    """Returns how many samples of each batch are drawn: one of each at least where that is not far above the share."""
    counts = [max(1, round(n * share)) for n in sizes]
    if max(sizes) * share >= 1 / 2:
        return counts
    rng = np.random.default_rng(seed)
    for held in (False, True):
        batches = [k for k in range(len(sizes)) if is_held(k, given) == held]
        enough = max(1, round(share * sum(sizes[k] for k in batches)))
        for k in rng.permutation(batches)[enough:]:
            counts[k] = 0
    return counts


def _whole(
    chain: Chain, links: Sequence[Link], seen: Frontier, truth: Frontier, drawing: Drawing, share: float
) -> Iterator[Portion]:
    """Yields a share of the batches, whole: in what is multiplied samples may stand anywhere."""
    first, last, passage = links[0], links[-1], chain.passage
    assert passage is not None
    given = sum(not values.mixed for values in truth.values)
    out = np.array([is_held(k, given) for k in range(len(seen.values))])
    rng, ways = np.random.default_rng([drawing.seed, last.layer.index]), passage.ways(seen)
    beside = seen.maker(chain.between, passage.beside(seen.coupling))
    drawn = list[tuple[int, bool]]()
    for held in (False, True):
        numbers = rng.permutation(np.flatnonzero(out == held))
        drawn += [(k, held) for k in np.sort(numbers[: max(1, round(share * len(numbers)))]).tolist()]
    for k, held in [(0, False), *drawn] if given == 1 else drawn:  # one batch is taken apart
        x, count = seen.values[k][first.layer.input].astype(np.float32), len(truth.values[k][last.layer.output])
        wanted, other = _wanted(last, seen, truth, k, np.arange(count))
        counts = None
        if given == 1 and k == 0:
            rows = (np.arange(count) < max(1, count // CHECK_EVERY)) == held
            counts = last.stacked(np.broadcast_to(rows.reshape(-1, *[1] * (wanted.ndim - 1)), wanted.shape))[:, :1, :1]
        shape = first.make(np.zeros(first.moves.shape, np.float32), first.read(x), x.shape).shape
        by = beside(seen.values[k]).astype(np.float32)
        yield Portion(x, wanted, other, held, passage.of(ways, seen.values[k], by, shape), counts)


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
