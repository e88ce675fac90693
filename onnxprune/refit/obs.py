"""Which units of a layer's input go: greedy elimination by the loss of the refitted layer.

Hassibi and Stork, Optimal Brain Surgeon, 1993; in blocks and for least squares as in Frantar and Alistarh, Optimal
Brain Compression, 2022 (https://arxiv.org/abs/2208.11580), whose names are kept.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]

DAMP = 1e-2
STEPS = 96  # at most as many updates of the inverse; larger layers lose several units in one
ROUNDING = 1e-6  # of what an inverse holds
SMALL = 512  # rows of a matrix that is inverted in one go


class Problem:
    """One linear consumer, taken apart unit by unit.

    The inverse Hessian is kept as it was plus what was taken away since (`Hinv - gone' gone`), so that a step costs the
    rows of the units that go and no pass over the whole matrix.

    Attributes:
        Hinv: (f, f) inverse of the damped, centred second moments of its inputs, all features still there.
        W: (f, o) least-squares weights over the features still there.
        features: (units, k) the features of each unit.
        scale: what its losses are divided by, so that several consumers weigh alike.
    """

    def __init__(self, Hinv: Floats, W: Floats, features: Ints, scale: float) -> None:
        self.Hinv, self.W, self.features, self.scale = Hinv, W, features, scale
        self._blocks = Hinv[features[:, :, None], features[:, None, :]].astype(np.float64)
        self._gone = np.zeros((0, len(Hinv)), Hinv.dtype)
        self._count = 0

    @staticmethod
    def of(H: Floats, R: Floats, features: Ints, energy: float) -> Problem:
        """Returns the problem of centred moments H (f, f) and R (o, f); `energy` is that of its targets.

        H is used up: its inverse is made in place.
        """
        level = DAMP * max(float(np.trace(H)) / len(H), 1e-30)
        H[np.diag_indices(len(H))] += level
        if H.dtype == np.float32:
            _invert_rounded(H, level)
        else:
            invert(H)
        return Problem(H, H @ R.T.astype(H.dtype), features, max(energy, 1e-30))

    def losses(self, units: Ints) -> Floats:
        """Returns for each unit what the squared error grows by if it goes: tr(W_J (Hinv_JJ)^-1 W_J')."""
        WJ = self.W[self.features[units]]
        grams, blocks = (WJ @ WJ.transpose(0, 2, 1)).astype(np.float64), self._blocks[units]
        try:
            solved = np.linalg.solve(blocks, grams)
        except np.linalg.LinAlgError:  # of some unit nothing is left but rounding
            level = np.abs(blocks).max(axis=(1, 2), keepdims=True)
            solved = np.linalg.solve(blocks + (ROUNDING * level + 1e-30) * np.eye(blocks.shape[1]), grams)
        grown: Floats = np.einsum("ukk->u", solved)
        return grown / self.scale

    def eliminate(self, units: Ints) -> None:
        """Takes units out: updates W and the inverse, with no fresh inverse."""
        J = self.features[units].reshape(-1)
        gone = self._gone[: self._count]
        rows = self.Hinv[J] - gone[:, J].T @ gone
        try:
            root = np.linalg.cholesky(rows[:, J].astype(np.float64))
        except np.linalg.LinAlgError:  # nothing is left of these units but rounding
            pass
        else:
            new = np.linalg.solve(root, rows).astype(rows.dtype)
            self.W -= new.T @ np.linalg.solve(root, self.W[J]).astype(self.W.dtype)
            taken = new.T[self.features]  # (units, k, rows)
            self._blocks -= taken @ taken.transpose(0, 2, 1)
            self._append(new)
        self.W[J] = 0
        self._blocks[units] = np.eye(self.features.shape[1])  # keeps later steps regular; nothing reads them again

    def _append(self, new: Floats) -> None:
        """Adds rows to what was taken away."""
        end = self._count + len(new)
        if end > len(self._gone):
            room = np.zeros((min(max(end, 2 * len(self._gone)), len(self.Hinv)), len(self.Hinv)), self.Hinv.dtype)
            room[: self._count] = self._gone[: self._count]
            self._gone = room
        self._gone[self._count : end] = new
        self._count = end


def invert(a: Floats) -> None:
    """Puts the inverse of a symmetric positive definite matrix in its place, by halves."""
    half = len(a) // 2
    if len(a) <= SMALL:
        a[...] = np.linalg.inv(a)
        return
    first, side, last = a[:half, :half], a[:half, half:], a[half:, half:]
    invert(first)
    through = first @ side
    last -= side.T @ through
    invert(last)
    side[...] = through @ last
    first += side @ through.T
    np.negative(side, out=side)
    a[half:, :half] = side.T


def _invert_rounded(a: Floats, level: float) -> None:
    """Puts the inverse of a symmetric matrix in float32 in its place; adds to its diagonal where rounding asks for it.

    By its Cholesky factor: by halves of the matrix itself, errors would grow with the square of its condition.
    """
    while True:
        root = a.copy()
        try:
            _factor(root)
            break
        except np.linalg.LinAlgError:
            if not np.isfinite(a).all():
                raise
            level *= 10
            a[np.diag_indices(len(a))] += a.dtype.type(level)
    _multiply_lower(root)
    a[...] = root


def _factor(a: Floats) -> None:
    """Puts the inverse of its lower Cholesky factor in the place of a matrix, by halves."""
    half = len(a) // 2
    if len(a) <= SMALL:
        a[...] = np.tril(np.linalg.inv(np.linalg.cholesky(a)))
        return
    first, side, last = a[:half, :half], a[half:, :half], a[half:, half:]
    _factor(first)
    factor = side @ first.T
    last -= factor @ factor.T
    _factor(last)
    side[...] = -(last @ factor) @ first
    a[:half, half:] = 0


def _multiply_lower(a: Floats) -> None:
    """Puts A'A in the place of a lower triangular matrix A, by halves."""
    half = len(a) // 2
    if len(a) <= SMALL:
        a[...] = a.T @ a
        return
    first, side, last = a[:half, :half], a[half:, :half], a[half:, half:]
    _multiply_lower(first)
    first += side.T @ side
    side[...] = last.T @ side
    _multiply_lower(last)
    a[:half, half:] = side.T


def eliminate(problems: list[Problem], units: int, count: int) -> Ints:
    """Returns `count` of `units` units in the order they go, those of least loss over all consumers first."""
    left = np.arange(units)
    gone: list[int] = []
    step = max(1, -(-count // STEPS))
    while len(gone) < count:
        losses = np.zeros(len(left))
        for p in problems:
            losses += p.losses(left)
        losses[~np.isfinite(losses)] = np.inf
        now = min(step, count - len(gone))
        go = left[np.argsort(losses, kind="stable")[:now]]
        for p in problems:
            p.eliminate(go)
        gone += go.tolist()
        left = left[~np.isin(left, go)]
    return np.array(gone, np.int64)
