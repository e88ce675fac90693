"""Sums over samples from which a linear layer is refitted; they merge across batches, shards and machines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

ROUNDING = 1e-6  # of float32 products


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
    def empty(groups: int, features: int, outputs: int) -> Moments:
        """Returns the moments of no samples."""
        zeros = np.zeros
        return Moments(
            0,
            zeros((groups, features)),
            zeros((groups, outputs)),
            zeros((groups, features, features)),
            zeros((groups, outputs, features)),
            zeros((groups, outputs)),
        )

    def add(self, p: np.ndarray, t: np.ndarray) -> None:
        """Adds rows of inputs (g, n, f) and of targets (g, n, o); products are formed in float32, sums in float64."""
        self.n += p.shape[1]
        self.p += p.sum(axis=1, dtype=np.float64)
        self.t += t.sum(axis=1, dtype=np.float64)
        turned = p.transpose(0, 2, 1)
        self.pp += turned @ p
        self.tp += t.transpose(0, 2, 1) @ p
        self.tt += np.einsum("gno,gno->go", t, t, dtype=np.float64)

    def __add__(self, other: Moments) -> Moments:
        """Returns the moments of both sets of samples."""
        return Moments(
            self.n + other.n,
            self.p + other.p,
            self.t + other.t,
            self.pp + other.pp,
            self.tp + other.tp,
            self.tt + other.tt,
        )

    def centred(self) -> tuple[Floats, Floats]:
        """Returns (H, R): covariances of the inputs (g, f, f), and of targets with inputs (g, o, f), times n.

        An input that is constant but for rounding has none.
        """
        n = max(self.n, 1)
        h = self.pp - self.p[:, :, None] * self.p[:, None, :] / n
        r = self.tp - self.t[:, :, None] * self.p[:, None, :] / n
        varies = np.einsum("gff->gf", h) > ROUNDING * np.einsum("gff->gf", self.pp)
        return h * varies[:, :, None] * varies[:, None, :], r * varies[:, None, :]

    def loss(self, w: Floats, b: Floats) -> Floats:
        """Returns (g, o): the sum of squared errors of T - (P w' + b)."""
        inner: Floats = np.einsum("gof,gof->go", w @ self.pp, w) - 2 * np.einsum("gof,gof->go", w, self.tp) + self.tt
        means: Floats = np.einsum("gof,gf->go", w, self.p)
        return inner + 2 * b * (means - self.t) + self.n * b * b


def refit(m: Moments, w0: Floats, keep: npt.NDArray[np.bool_], ridge: float) -> tuple[Floats, Floats]:
    """Returns (w, b) of least squares over the kept features, pulled toward `w0` by the ridge; b is not pulled.

    W = W0 + (R - W0 H)(H + lambda mean(diag H) I)^-1 on centred moments; see He, Zhang and Sun, Channel Pruning for
    Accelerating Very Deep Neural Networks, 2017 (https://arxiv.org/abs/1707.06168) for the idea.

    Args:
        m: moments of the layer.
        w0: (g, o, f) weights to stay near to.
        keep: (g, f) whether a feature is there; every group keeps as many.
        ridge: lambda.
    """
    h, r = m.centred()
    w = np.zeros_like(w0)
    for g in range(len(w0)):
        k = np.flatnonzero(keep[g])
        if not len(k):
            continue
        hk, rk, wk = h[g][np.ix_(k, k)], r[g][:, k], w0[g][:, k]
        level = ridge * max(float(np.trace(hk)) / len(k), 1e-30)
        damped = hk + level * np.eye(len(k))
        w[g][:, k] = wk + np.linalg.solve(damped, (rk - wk @ hk).T).T
    b = (m.t - np.einsum("gof,gf->go", w, m.p)) / max(m.n, 1)
    return w, b


def refit_safely(
    fit: Moments,
    check: Moments,
    w0: Floats,
    b0: Floats,
    keep: npt.NDArray[np.bool_],
    ridges: tuple[float, ...],
    gain: Floats,
) -> tuple[Floats, Floats, float | None]:
    """Returns (w, b, ridge) of the refit that does best on held-out moments.

    The ridge is None where no refit was better than to keep the old weights with the old bias, or with one that makes
    up for the means. What was found best is done again on all moments. Errors count by the gain of their output (g, o).
    """
    both = fit + check
    cut = np.where(keep[:, None, :], w0, 0)

    def mended(m: Moments) -> Floats:
        means: Floats = np.einsum("gof,gf->go", cut, m.p)
        return (m.t - means) / max(m.n, 1)

    def error(w: Floats, b: Floats) -> float:
        return float((gain**2 * check.loss(w, b)).sum())

    best = error(cut, b0)
    result: tuple[Floats, Floats, float | None] = (cut, b0, None)
    if (loss := error(cut, mended(fit))) < best:
        best, result = loss, (cut, mended(both), None)
    chosen = None
    for ridge in ridges:
        try:
            w, b = refit(fit, w0, keep, ridge)
        except np.linalg.LinAlgError:
            continue
        if (loss := error(w, b)) < best:
            best, chosen = loss, ridge
    if chosen is None:
        return result
    w, b = refit(both, w0, keep, chosen)
    return w, b, chosen
