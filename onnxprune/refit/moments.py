"""Sums over samples from which a linear layer is refitted; they merge across batches, shards and machines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from onnxprune.ops.linear import at_features

Floats = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]

ROUNDING = 1e-6  # of float32 products
WIDE = 2048  # features from which sums of products are kept in float32, like the products
STRIPE = 256  # rows of a matrix that are worked on at a time where a copy of it all would be large


@dataclass(eq=False)
class Moments:
    """Second moments of inputs P and targets T of a layer with g groups, f features and o outputs a group.

    Attributes:
        n: samples seen.
        p: (g, f) sum of inputs.
        t: (g, o) sum of targets.
        pp: (g, f, f) sum of P'P.
        tp: (g, o, f) sum of T'P.
        tt: (g, o) sum of squared targets.
    """

    n: int
    p: Floats
    t: Floats
    pp: Floats
    tp: Floats
    tt: Floats

    @staticmethod
    def empty(groups: int, features: int, outputs: int, *, products: bool = True) -> Moments:
        """Returns the moments of no samples; without `products` only the means of inputs and targets are kept."""
        zeros, wide = np.zeros, np.float32 if features > WIDE else np.float64
        inner = features if products else 0
        return Moments(
            0,
            zeros((groups, features)),
            zeros((groups, outputs)),
            zeros((groups, inner, inner), wide),
            zeros((groups, outputs, inner), wide),
            zeros((groups, outputs)),
        )

    @staticmethod
    def seen(p: np.ndarray, t: np.ndarray, *, products: bool = True) -> Moments:
        """Returns the moments of rows of inputs (g, n, f) and of targets (g, n, o), to be added to those of no samples.

        Products are formed in float32; sums over what was seen are in float64, beyond `WIDE` features float32 too.
        """
        few = p if products else p[:, :, :0]
        return Moments(
            p.shape[1],
            p.sum(axis=1, dtype=np.float64),
            t.sum(axis=1, dtype=np.float64),
            few.transpose(0, 2, 1) @ few,
            t.transpose(0, 2, 1) @ few,
            np.einsum("gno,gno->go", t, t, dtype=np.float64),
        )

    @property
    def products(self) -> bool:
        """Whether products of inputs are there."""
        return len(self.pp[0]) == len(self.p[0])

    def __iadd__(self, other: Moments) -> Self:
        """Adds the moments of other samples."""
        return self._merge(other, 1)

    def __isub__(self, other: Moments) -> Self:
        """Takes away the moments of samples that were added."""
        return self._merge(other, -1)

    def _merge(self, other: Moments, sign: int) -> Self:
        self.n += sign * other.n
        for mine, others in zip(self._sums(), other._sums(), strict=True):
            (np.add if sign > 0 else np.subtract)(mine, others, out=mine)
        return self

    def _sums(self) -> tuple[Floats, ...]:
        return self.p, self.t, self.pp, self.tp, self.tt

    def __add__(self, other: Moments) -> Moments:
        """Returns the moments of both sets of samples."""
        sums = (a + b for a, b in zip(self._sums(), other._sums(), strict=True))
        return Moments(self.n + other.n, *sums)

    def of(self, features: npt.NDArray[np.intp]) -> Moments:
        """Returns the moments of some features: (g, k) places in each group, ascending.

        It is itself where it has no more than these: of all features, or of the same ones.
        """
        if features.shape[1] == self.p.shape[1]:
            return self
        p = np.take_along_axis(self.p, features, 1)
        if not self.products:
            return Moments(self.n, p, self.t, self.pp, self.tp, self.tt)
        pp = np.stack([a[np.ix_(k, k)] for a, k in zip(self.pp, features, strict=True)])
        return Moments(self.n, p, self.t, pp, np.take_along_axis(self.tp, features[:, None, :], 2), self.tt)

    def through_origin(self) -> Moments:
        """Returns the same products with means of zero: for a layer without a place for a bias."""
        return Moments(self.n, np.zeros_like(self.p), np.zeros_like(self.t), self.pp, self.tp, self.tt)

    def centred(self) -> tuple[Floats, Floats]:
        """Returns (H, R): covariances of the inputs (g, f, f), and of targets with inputs (g, o, f), times n.

        An input that is constant but for rounding has none.
        """
        n = max(self.n, 1)
        h = self.pp.copy()
        for at in range(0, h.shape[1], STRIPE):
            part = slice(at, at + STRIPE)
            h[:, part] -= self.p[:, part, None] * self.p[:, None, :] / n
        r = self.tp - self.t[:, :, None] * self.p[:, None, :] / n
        constant = np.einsum("gff->gf", h) <= ROUNDING * np.einsum("gff->gf", self.pp)
        for g in np.flatnonzero(constant.any(axis=1)).tolist():
            h[g][constant[g]] = 0
            h[g][:, constant[g]] = 0
            r[g][:, constant[g]] = 0
        return h, r

    def loss(self, w: Floats, b: Floats) -> Floats:
        """Returns (g, o): the sum of squared errors of T - (P w' + b)."""
        exact = w.astype(self.pp.dtype, copy=False)
        inner: Floats = np.einsum("gof,gof->go", exact @ self.pp, w) - 2 * np.einsum("gof,gof->go", w, self.tp)
        means: Floats = np.einsum("gof,gf->go", w, self.p)
        found: Floats = inner + self.tt + 2 * b * (means - self.t) + self.n * b * b
        return found


@dataclass(frozen=True, eq=False)
class Kept:
    """Which features stay: (g, k) places, and whether each counts (groups may keep different numbers)."""

    features: npt.NDArray[np.intp]
    there: Bools

    @staticmethod
    def of(keep: Bools) -> Kept:
        """Returns the places where `keep` (g, f) is set."""
        most = int(keep.sum(axis=1).max(initial=0))
        features = np.sort(np.argsort(~keep, axis=1, kind="stable")[:, :most], axis=1)
        return Kept(features, np.take_along_axis(keep, features, 1))

    def take(self, w: Floats) -> Floats:
        """Returns weights (g, o, f) at these features, zeros where one doesn't count."""
        if self.there.all() and self.there.shape[1] == w.shape[2]:
            return w
        return self.blanked(at_features(w, self.features))

    def blanked(self, w: Floats) -> Floats:
        """Returns weights (g, o, k), or inputs (g, n, k), with zeros where one doesn't count."""
        return w if self.there.all() else w * self.there[:, None, :]

    def put(self, w: Floats, shape: tuple[int, ...]) -> Floats:
        """Returns weights in full size, zeros elsewhere."""
        full = np.zeros(shape)
        np.put_along_axis(full, self.features[:, None, :], w, 2)
        return full


class Fit:
    """The normal equations of a layer around its old weights."""

    def __init__(self, m: Moments, w0: Floats, there: Bools) -> None:
        h, r = m.centred()
        self.w0, self.h = w0, h.astype(np.float64, copy=False)
        del h
        self.left = r - w0 @ self.h
        for g in np.flatnonzero(~there.all(axis=1)).tolist():
            gone = ~there[g]
            self.h[g][gone] = 0
            self.h[g][:, gone] = 0
            self.left[g][:, gone] = 0
        self.level = np.maximum(np.einsum("gff->g", self.h) / np.maximum(there.sum(axis=1), 1), 1e-30)

    def at(self, ridge: float) -> Floats:
        """Returns the weights (g, o, f) for a ridge; raises LinAlgError where there are none."""
        return self.w0 + self._solved(self.left, ridge)

    def moved(self, w: Floats, slope: Floats, ridge: float) -> Floats:
        """Returns weights from which the products of inputs lead on along a slope (g, o, f), less the ridge's pull."""
        pull = ridge * self.level[:, None, None] * (w - self.w0)
        return w + self._solved(slope - pull, ridge)

    def _solved(self, left: Floats, ridge: float) -> Floats:
        diagonal = np.einsum("gff->gf", self.h)
        old = diagonal.copy()
        diagonal += ridge * self.level[:, None]
        try:
            found: Floats = np.linalg.solve(self.h, left.transpose(0, 2, 1)).transpose(0, 2, 1)
        finally:
            diagonal[...] = old
        return found


def _mean_left(m: Moments, w: Floats) -> Floats:
    """Returns (g, o): the bias that makes up for the means."""
    left: Floats = (m.t - np.einsum("gof,gf->go", w, m.p)) / max(m.n, 1)
    return left


def refit(m: Moments, w0: Floats, keep: Bools, ridge: float) -> tuple[Floats, Floats]:
    """Returns (w, b) of least squares over the kept features, pulled toward `w0` by the ridge; b is not pulled.

    W = W0 + (R - W0 H)(H + lambda mean(diag H) I)^-1 on centred moments; see He, Zhang and Sun, Channel Pruning for
    Accelerating Very Deep Neural Networks, 2017 (https://arxiv.org/abs/1707.06168) for the idea.

    Args:
        m: moments of the layer.
        w0: (g, o, f) weights to stay near to.
        keep: (g, f) whether a feature is there.
        ridge: lambda.
    """
    kept = Kept.of(keep)
    few = m.of(kept.features)
    w = Fit(few, kept.take(w0), kept.there).at(ridge)
    return kept.put(w, w0.shape), _mean_left(few, w)


def refit_safely(
    fit: Moments, check: Moments, w0: Floats, b0: Floats, keep: Bools, ridges: tuple[float, ...], gain: Floats
) -> tuple[Floats, Floats, float | None]:
    """Returns (w, b, ridge) of the refit that does best on held-out moments.

    The ridge is None where no refit was better than to keep the old weights with the old bias, or with one that makes
    up for the means. What was found best is done again on all moments. Errors count by the gain of their output (g, o).
    Without products of inputs the bias makes up for the means.
    """
    kept = Kept.of(keep)
    old = kept.take(w0)
    fit, check = fit.of(kept.features), check.of(kept.features)
    if not fit.products:
        return kept.put(old, w0.shape), _mean_left(fit + check, old), None

    def error(w: Floats, b: Floats) -> float:
        return float((gain**2 * check.loss(w, b)).sum())

    best, chosen, mended = error(old, b0), None, False
    if (loss := error(old, _mean_left(fit, old))) < best:
        best, mended = loss, True
    solver = Fit(fit, old, kept.there)
    for ridge in ridges:
        try:
            w = solver.at(ridge)
        except np.linalg.LinAlgError:
            continue
        if (loss := error(w, _mean_left(fit, w))) < best:
            best, chosen = loss, ridge
    del solver
    both = fit + check
    w = old if chosen is None else Fit(both, old, kept.there).at(chosen)
    b = b0 if chosen is None and not mended else _mean_left(both, w)
    return kept.put(w, w0.shape), b, chosen
