"""How far the outputs of a pruned model are from the original's, with intervals over the samples.

Sums are kept per sample, so that data of any size cost little memory and the intervals are those of samples, not of
numbers: percentiles of a bootstrap with a fixed seed (Efron & Tibshirani, An Introduction to the Bootstrap, 1993,
chapter 13); of top-1 agreement, which is a proportion, Wilson's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from onnxprune.graph.running import Outputs
from onnxprune.proof.intervals import wilson
from onnxprune.reports.report import Interval, OutputFidelity

__all__ = ["LEAST_SAMPLES", "Tally", "fidelity"]

LEAST_SAMPLES = 8
"""Fewer have no interval."""

RESAMPLES, SEED = 1000, 7
MOST_WEIGHTS = 1 << 22  # numbers of a resampling that are held at a time
MOST_DRAWN = 2048  # samples that are drawn from one by one; more are drawn from in blocks of equal size
LOUDEST = 200.0  # dB: float64 itself ends near 300, and a JSON file has no infinity
LEAST = 1e-12  # probability

Floats = npt.NDArray[np.float64]
DIFFERENCE, BEFORE, AFTER, PRODUCT, DIVERGENCE, AGREEMENT = range(6)  # what is summed, per sample


def fidelity(pairs: Iterable[tuple[int, Outputs, Outputs]]) -> tuple[tuple[OutputFidelity, ...], tuple[str, ...]]:
    """Returns how far each float output moved, and the names of those that cannot be compared.

    Args:
        pairs: for each feed, how many samples it holds, what the original and what the pruned model give.
    """
    tallies: dict[str, Tally] = {}
    unlike: dict[str, None] = {}
    for rows, before, after in pairs:
        for name, a in before.items():
            if a.dtype.kind not in "fV" or not a.size:
                continue
            b = after.get(name)
            if b is None or b.shape != a.shape:
                unlike[name] = None
            else:
                tallies.setdefault(name, Tally(name)).add(a, b, rows)
    found = tuple(t.result() for name, t in tallies.items() if name not in unlike)
    return found, tuple(unlike)


@dataclass
class Tally:
    """What is known of one output: sums per sample.

    Attributes:
        name: of the output.
    """

    name: str
    _parts: list[Floats] = field(default_factory=list)
    _scores: bool | None = None  # whether rows of its last axis are scores of classes
    _given: bool = False  # whether these are probabilities already
    _single: bool = False  # whether a sample has one such row

    def add(self, before: np.ndarray, after: np.ndarray, rows: int) -> None:
        """Adds what a feed gave.

        Args:
            before: the original's output.
            after: the pruned model's, in the same shape.
            rows: how many samples the feed holds; where axis 0 has another length, the feed counts as one sample.
        """
        a, b = (np.asarray(x, np.float64) for x in (before, after))
        if self._scores is None:
            self._look(a)
        n = rows if a.ndim and a.shape[0] == rows else 1
        asked = np.isfinite(a)  # where the original is no number, nothing is asked of the pruned model
        finite = asked & np.isfinite(b)
        lost = (asked & ~finite).reshape(n, -1).any(axis=1)
        x, y = (np.where(finite, v, 0.0).reshape(n, -1) for v in (a, b))
        sums = np.stack([((x - y) ** 2).sum(1), (x * x).sum(1), (y * y).sum(1), (x * y).sum(1)], axis=1)
        classes = np.zeros((n, 2))
        if self._scores:
            p, q = (np.where(finite, v, 0.0).reshape(-1, a.shape[-1]) for v in (a, b))
            classes[:, 0] = self._divergences(p, q).reshape(n, -1).mean(axis=1)
            classes[:, 1] = (p.argmax(axis=1) == q.argmax(axis=1)).reshape(n, -1).mean(axis=1)
        part = np.concatenate([sums, classes], axis=1)
        part[lost, DIFFERENCE], part[lost, PRODUCT] = np.inf, np.nan
        part[lost, DIVERGENCE], part[lost, AGREEMENT] = np.inf, 0.0
        self._parts.append(part)

    def _look(self, a: Floats) -> None:
        """Learns from the first feed whether the output is scores of classes, and of which kind."""
        rows = a.reshape(-1, a.shape[-1]) if a.ndim else a.reshape(1, 1)
        wide = a.ndim >= 2 and a.shape[-1] > 1
        self._given = wide and bool((rows >= 0).all() and np.allclose(rows.sum(axis=1), 1, atol=1e-3))
        self._scores = wide and (a.ndim == 2 or self._given or "logit" in self.name.lower())
        self._single = a.ndim == 2

    def _divergences(self, p: Floats, q: Floats) -> Floats:
        """Returns the Kullback-Leibler divergence of every row, in nats."""
        if not self._given:
            p, q = _softmax(p), _softmax(q)
        p, q = np.maximum(p, LEAST), np.maximum(q, LEAST)
        found: Floats = np.maximum((p * np.log(p / q)).sum(axis=1), 0.0)
        return found

    def result(self) -> OutputFidelity:
        """Returns the figures, with intervals where there are samples enough."""
        rows = np.concatenate(self._parts)
        n = len(rows)
        figures = {name: float(v[0]) for name, v in _figures(rows.sum(axis=0)[None], n).items()}
        spread = _intervals(rows) if n >= LEAST_SAMPLES and np.isfinite(rows).all() else {}
        if not self._scores:
            for name in ("kl", "top1_agreement"):
                figures.pop(name)
                spread.pop(name, None)
        elif self._single and n >= LEAST_SAMPLES:
            low, high = wilson(int(rows[:, AGREEMENT].sum()), n)
            spread["top1_agreement"] = Interval(low, high)
        return OutputFidelity(
            name=self.name,
            relative_error=figures["relative_error"],
            cosine=figures["cosine"],
            top1_agreement=figures.get("top1_agreement"),
            snr=figures["snr"],
            kl=figures.get("kl"),
            samples=n,
            intervals=spread,
        )


def _figures(sums: Floats, n: int) -> dict[str, Floats]:
    """Returns the figures that belong to sums over samples: one row for each set of samples."""
    difference, before, after, product, divergence, agreement = sums.T
    with np.errstate(all="ignore"):
        same = difference == 0
        snr = 10 * np.log10(np.maximum(before, 1e-300) / np.maximum(difference, 1e-300))
        return {
            "relative_error": np.sqrt(difference) / np.maximum(np.sqrt(before), 1e-30),
            "cosine": np.where(same, 1.0, product / np.maximum(np.sqrt(before * after), 1e-30)),
            "snr": np.where(same, LOUDEST, np.clip(snr, -LOUDEST, LOUDEST)),
            "kl": divergence / n,
            "top1_agreement": agreement / n,
        }


def _intervals(rows: Floats) -> dict[str, Interval]:
    """Returns the 95 % interval of every figure: percentiles over samples, or blocks of them, drawn again and again."""
    n = len(rows)
    if n > MOST_DRAWN:  # blocks of samples in any order vary as the samples do, and take a fraction of the time
        order, starts = np.random.default_rng(SEED).permutation(n), np.linspace(0, n, MOST_DRAWN + 1).astype(np.int64)
        rows = np.add.reduceat(rows[order], starts[:-1])
    found: dict[str, list[Floats]] = {}
    for draw in _draws(len(rows)):
        for name, values in _figures(draw @ rows, n).items():
            found.setdefault(name, []).append(values)
    ends = {name: np.percentile(np.concatenate(values), (2.5, 97.5)) for name, values in found.items()}
    return {name: Interval(float(low), float(high)) for name, (low, high) in ends.items()}


def _draws(n: int) -> Iterator[Floats]:
    """Yields how often each sample is drawn, for some resamplings at a time."""
    rng = np.random.default_rng(SEED)
    step = max(1, min(RESAMPLES, MOST_WEIGHTS // n))
    for start in range(0, RESAMPLES, step):
        size = min(step, RESAMPLES - start)
        yield rng.multinomial(n, np.full(n, 1 / n), size=size).astype(np.float64)


def _softmax(x: Floats) -> Floats:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    found: Floats = e / e.sum(axis=1, keepdims=True)
    return found
