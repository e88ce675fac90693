"""How far the outputs of a pruned network are from the dense one's: what users bound, and what allocation spends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

Outputs = Mapping[str, npt.NDArray[np.generic]]
Floats = npt.NDArray[np.float64]

LEAST = 1e-12  # probability in a Kullback-Leibler divergence
SMALL = 1e-6  # probability below which its logarithm tells nothing
WORST = 1e6  # what counts for outputs that are no numbers


def divergence(dense: Sequence[Outputs], other: Sequence[Outputs]) -> float:
    """Returns the mean divergence over the float outputs of all batches: at least 0, and 0 only where they are equal.

    An output of two axes, or one whose last axis holds probabilities, is compared by the Kullback-Leibler divergence
    in nats, averaged over its rows; any other by the squared error relative to the dense output's variance.

    Args:
        dense: outputs of the dense network for each batch.
        other: those of the other network, in the same shapes.
    """
    return _mean(dense, other, _divergence)


def relative_error(dense: Sequence[Outputs], other: Sequence[Outputs]) -> float:
    """Returns the mean over the float outputs of the squared error relative to the dense output's variance.

    Scores of classes (as above) are compared as logits less their mean over the classes. Networks are all but certain
    on the data they were trained on, and calibration data is often some of it: there the Kullback-Leibler divergence
    hangs on a few samples, while this hears of all of them.

    Args:
        dense: outputs of the dense network for each batch.
        other: those of the other network, in the same shapes.
    """
    return _mean(dense, other, _relative_error)


def _mean(
    dense: Sequence[Outputs], other: Sequence[Outputs], compare: Callable[[Floats, Floats, bool], float]
) -> float:
    """Returns the mean over the float outputs of what `compare` says of their rows."""
    found = []
    for name, first in dense[0].items():
        if first.dtype.kind not in "fV" or not first.size:
            continue
        if any(d[name].shape != o[name].shape for d, o in zip(dense, other, strict=True)):
            return WORST
        p, q = _rows([d[name] for d in dense]), _rows([o[name] for o in other])
        ok = np.isfinite(p).all(axis=1)
        p, q = p[ok], q[ok]
        if not np.isfinite(q).all():
            return WORST
        found.append(compare(p, q, first.ndim == 2) if len(p) else 0.0)
    return float(np.mean(found)) if found else 0.0


def _rows(parts: Sequence[npt.NDArray[np.generic]]) -> Floats:
    """Returns an output of all batches as (rows, length of the last axis)."""
    return np.concatenate([np.asarray(x, np.float64).reshape(-1, x.shape[-1] if x.ndim else 1) for x in parts])


def _divergence(p: Floats, q: Floats, matrix: bool) -> float:
    if _are_probabilities(p):
        return kullback_leibler(p, q)
    if matrix and p.shape[1] > 1:
        return kullback_leibler(_softmax(p), _softmax(q))
    return _relative(p, q)


def _relative_error(p: Floats, q: Floats, matrix: bool) -> float:
    if _are_probabilities(p):
        p, q = (np.log(np.maximum(x, SMALL)) for x in (p, q))
    elif not matrix or p.shape[1] < 2:
        return _relative(p, q)
    return _relative(p - p.mean(axis=1, keepdims=True), q - q.mean(axis=1, keepdims=True))


def _are_probabilities(p: Floats) -> bool:
    return p.shape[1] > 1 and bool((p >= 0).all() and np.allclose(p.sum(axis=1), 1, atol=1e-3))


def _relative(p: Floats, q: Floats) -> float:
    return float(((p - q) ** 2).sum() / max(float(((p - p.mean()) ** 2).sum()), 1e-30))


def kullback_leibler(p: Floats, q: Floats) -> float:
    """Returns the mean over rows of sum p log(p / q), for probabilities (rows, classes)."""
    p, q = np.maximum(p, LEAST), np.maximum(q, LEAST)
    return max(float((p * np.log(p / q)).sum(axis=1).mean()), 0.0)


def _softmax(x: Floats) -> Floats:
    e: Floats = np.exp(x - x.max(axis=1, keepdims=True))
    total: Floats = e.sum(axis=1, keepdims=True)
    found: Floats = e / total
    return found
