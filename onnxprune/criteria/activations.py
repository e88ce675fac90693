"""What linear layers read in the dense network: sums over calibration samples, from one pass; units ranked by them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.criteria import Inputs, OnInputs
from onnxprune.criteria.kinds import Scores
from onnxprune.engine.frontier import Frontier, Spool
from onnxprune.engine.labels import Array
from onnxprune.engine.layers import Layer, find_layers
from onnxprune.engine.units import Group, Units
from onnxprune.graph.constants import constants

MOST_CELLS = 4096  # beyond that no covariance is formed
MOST_ROWS = 1 << 17  # positions that a covariance is formed from
Progress = Callable[[int, int], None]


@dataclass(eq=False)
class Sums:
    """Sums over the positions of what one layer reads; they merge.

    Attributes:
        n: positions seen.
        total, magnitude, square, zeros: (cells,) sums of x, |x|, x^2 and of x == 0.
        shift: (cells,) what is taken off before products are formed: near to the mean, so that they stay exact.
        rows: positions in the products.
        near: (cells,) sum of x - shift.
        gram: (cells, cells) sum of products of x - shift; None where it is not wanted.
    """

    n: int
    total: Scores
    magnitude: Scores
    square: Scores
    zeros: Scores
    shift: Scores
    rows: int
    near: Scores
    gram: Scores | None

    @staticmethod
    def over(x: np.ndarray, products: bool) -> Sums:
        """Returns empty sums for cells like those of x (rows, cells)."""
        cells = x.shape[1]
        gram = np.zeros((cells, cells)) if products and cells <= MOST_CELLS else None
        zeros = np.zeros((5, cells))
        shift = x.mean(axis=0, dtype=np.float64) if len(x) else zeros[0]
        return Sums(0, zeros[0], zeros[1], zeros[2], zeros[3], shift, 0, zeros[4], gram)

    def add(self, x: np.ndarray, most: int, rng: np.random.Generator) -> None:
        """Adds rows (n, cells), `most` of them, drawn at random, to the products."""
        self.n += len(x)
        self.total += x.sum(axis=0, dtype=np.float64)
        self.magnitude += np.abs(x).sum(axis=0, dtype=np.float64)
        self.square += np.square(x, dtype=np.float64).sum(axis=0)
        self.zeros += (x == 0).sum(axis=0)
        if self.gram is not None:
            few = x if len(x) <= most else x[np.sort(rng.integers(len(x), size=most))]
            near = few - self.shift
            self.rows += len(near)
            self.near += near.sum(axis=0)
            self.gram += near.T @ near

    def seen(self, cells: Array, unit: Array, weights: Scores) -> Inputs:
        """Returns the statistics of some cells."""
        n, rows = max(self.n, 1), max(self.rows, 1)
        covariance = None
        if self.gram is not None:
            near = self.near[cells] / rows
            covariance = self.gram[np.ix_(cells, cells)] / rows - np.outer(near, near)
        mean, magnitude, square, zeros = (s[cells] / n for s in (self.total, self.magnitude, self.square, self.zeros))
        return Inputs(unit, mean, magnitude, square, zeros, weights[cells], covariance)


def rank_by_inputs(
    units: Units,
    criterion: OnInputs,
    batches: Iterable[Mapping[str, np.ndarray]],
    providers: Sequence[str],
    seed: int,
    progress: Progress | None = None,
) -> tuple[Scores | None, ...]:
    """Returns for each group the importance of its units, about 1 on average; None where no consumer tells them apart.

    Scores of a unit's cells are averaged, divided by their mean over the group, and averaged over the consumers.
    """
    found: list[list[Scores]] = [[] for _ in units.groups]
    for layer, sums in gather(units, batches, providers, criterion.covariance, seed, progress):
        weights = _weights(units, layer, len(sums.total))
        if weights is None or (criterion.covariance and sums.gram is None):
            continue
        for g, group in enumerate(units.groups):
            cells, unit = _cells(units, layer, group, len(sums.total))
            held = np.bincount(unit, minlength=len(group))
            if not (held.all() and np.isfinite(sums.square[cells]).all()):
                continue
            with np.errstate(over="ignore", invalid="ignore"):
                scores = criterion.rule(sums.seen(cells, unit, weights))
                per_unit = np.bincount(unit, scores, len(group)) / held
            if np.isfinite(per_unit).all() and np.ptp(per_unit) > 0:
                found[g].append(per_unit / np.abs(per_unit).mean())
    return tuple(np.mean(f, axis=0) if f else None for f in found)


def gather(
    units: Units,
    batches: Iterable[Mapping[str, np.ndarray]],
    providers: Sequence[str],
    products: bool,
    seed: int,
    progress: Progress | None = None,
) -> Iterator[tuple[Layer, Sums]]:
    """Yields every linear layer that reads units, with the sums over what it reads in the dense network.

    Args:
        units: of which something is to be learnt.
        batches: calibration inputs.
        providers: onnxruntime's execution providers.
        products: form covariances too.
        seed: of the positions that go into them.
        progress: called with the layers done and their number.
    """
    layers = [x for x in find_layers(units.coupling) if (units.of_label[x.labels[x.labels >= 0]] >= 0).any()]
    spool = Spool()
    try:
        frontier = Frontier(units.coupling, batches, providers, spool, [])
        last: tuple[str, int, Sums] | None = None
        for done, layer in enumerate(layers):
            if progress is not None:
                progress(done, len(layers))
            frontier.advance(layer.index)
            if last is None or last[:2] != (layer.input, layer.view.channel):
                last = (layer.input, layer.view.channel, _sums(layer, frontier, products, seed))
            yield layer, last[2]
    finally:
        spool.close()


def _sums(layer: Layer, frontier: Frontier, products: bool, seed: int) -> Sums:
    sums: Sums | None = None
    for k, values in enumerate(frontier.values):
        x = np.moveaxis(values[layer.input], layer.view.channel, -1)
        rows = x.reshape(-1, x.shape[-1]).astype(np.float32, copy=False)
        most = max(1, MOST_ROWS // len(frontier.values))
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is told from the sums
            sums = sums or Sums.over(rows, products)
            sums.add(rows, most, np.random.default_rng([seed, layer.index, k]))
    assert sums is not None
    return sums


def _cells(units: Units, layer: Layer, group: Group, channels: int) -> tuple[Array, Array]:
    """Returns the channels of a layer's input that belong to a group, and the unit of each."""
    if layer.labels.size % channels:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    labels = layer.labels.reshape(channels, -1)[:, 0]  # all taps of a channel have one label
    number = np.full(units.count + 1, -1)
    number[group.units] = np.arange(len(group))
    of = number[np.where(labels >= 0, units.of_label[labels], -1)]
    cells = np.flatnonzero(of >= 0)
    return cells, of[cells]


def _weights(units: Units, layer: Layer, channels: int) -> Scores | None:
    """Returns (channels, n) the weights that read each channel; None where they don't go by channels."""
    tensor = constants(units.coupling.model.graph)[layer.use.name]
    matrix = np.moveaxis(layer.view.matrix(tensor.numpy().astype(np.float64)), 1, 2)  # (groups, features, outputs)
    return matrix.reshape(channels, -1) if layer.labels.size % channels == 0 else None
