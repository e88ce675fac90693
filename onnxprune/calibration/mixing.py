"""Mixtures of calibration inputs: inputs between two that are given, where fewer are given than a refit is worth.

Weights that are refitted on few inputs suit these and little else. The dense network tells what its layers make of any
input, so the points between two inputs serve as well as more of them would, with nothing to label; the idea is that of
Zhang, Cisse, Dauphin and Lopez-Paz, mixup: Beyond Empirical Risk Minimization, 2018 (https://arxiv.org/abs/1710.09412).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from onnxprune.calibration.batches import samples_in
from onnxprune.calibration.layout import layout
from onnxprune.graph.inputs import InputSpec

__all__ = ["mixtures"]

MOST_EACH = 7  # mixtures for every sample that is given: more of them hardly help

Batch = Mapping[str, np.ndarray]


def mixtures(batches: Sequence[Batch], specs: Sequence[InputSpec], wanted: int, seed: int) -> Iterator[Batch]:
    """Yields batches of mixtures, each of two samples of one shape, the share of either drawn evenly from 0 to 1.

    There are none where samples differ in integers, Booleans or strings: nothing lies between two token ids. Numbers
    that are whole in both samples (pixels, masks) stay whole.

    Args:
        batches: what is given.
        specs: what the model takes; where every input has a batch axis, each sample is mixed with another one of its
            own, else whole batches are.
        wanted: how many mixtures there should be; there are no more than `MOST_EACH` times what is given.
        seed: of the choice.
    """
    if wanted <= 0:  # batches may lie in files, which nobody has to read then
        return
    place, rng = layout(specs), np.random.default_rng([seed, len(batches)])
    rows = [samples_in(batch, specs) if place.joint else 1 for batch in batches]
    partners = {k: [j for j in group if j != k or rows[k] > 1] for group in _alike(batches) for k in group}
    able = [k for k in range(len(batches)) if partners[k]]
    left = min(wanted, MOST_EACH * sum(rows)) if able else 0
    while left > 0:
        k = int(rng.choice(able))
        x, y = dict(batches[k]), dict(batches[int(rng.choice(partners[k]))])
        order, shares = rng.permutation(rows[k]), rng.uniform(size=rows[k])
        if place.joint:
            y = {name: v.take(order, place.axes[name]) for name, v in y.items()}
        if any(v.dtype.kind != "f" and not np.array_equal(v, y[name]) for name, v in x.items()):
            return
        yield {name: _between(v, y[name], _along(shares, place.axes[name], v.ndim)) for name, v in x.items()}
        left -= rows[k]


def _along(shares: np.ndarray, axis: int | None, dims: int) -> np.ndarray:
    """Returns shares that stand along a batch axis; a single one fits any array."""
    return shares.reshape([-1 if k == axis else 1 for k in range(dims)])


def _between(x: np.ndarray, y: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Returns what lies between two arrays, in their type: equal numbers stay, and whole numbers stay whole."""
    if x.dtype.kind != "f":
        return x
    found = x + (y.astype(np.float64) - x) * share
    whole = np.array_equal(x, np.rint(x)) and np.array_equal(y, np.rint(y))
    between: np.ndarray = (np.rint(found) if whole else found).astype(x.dtype)
    return between


def _alike(batches: Sequence[Batch]) -> list[list[int]]:
    """Returns the numbers of the batches, those of the same shapes together."""
    found: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for k, batch in enumerate(batches):
        found.setdefault(tuple(batch[name].shape for name in sorted(batch)), []).append(k)
    return list(found.values())
