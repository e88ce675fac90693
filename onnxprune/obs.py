"""Which units of a layer's input go: greedy elimination by the loss of the refitted layer.

Hassibi and Stork, Optimal Brain Surgeon, 1993; in blocks and for least squares as in Frantar and Alistarh, Optimal
Brain Compression, 2022 (https://arxiv.org/abs/2208.11580), whose names are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

DAMP = 1e-2
STEPS = 96  # at most as many updates of the inverse; larger layers lose several units in one


@dataclass(eq=False)
class Problem:
    """One linear consumer: inverse Hessian, weights, and the features of each unit.

    Attributes:
        Hinv: (f, f) inverse of the damped, centred second moments of its inputs.
        W: (o, f) least-squares weights over the features still there.
        features: (units, k) the features of each unit.
        scale: what its losses are divided by, so that several consumers weigh alike.
    """

    Hinv: Floats
    W: Floats
    features: Ints
    scale: float

    @staticmethod
    def of(H: Floats, R: Floats, features: Ints, energy: float) -> Problem:
        """Returns the problem of centred moments H (f, f) and R (o, f); `energy` is that of its targets."""
        damped = H + DAMP * max(float(np.trace(H)) / len(H), 1e-30) * np.eye(len(H))
        Hinv = np.linalg.inv(damped).astype(np.float64, copy=False)
        return Problem(Hinv, R @ Hinv, features, max(energy, 1e-30))

    def losses(self, units: Ints) -> Floats:
        """Returns for each unit what the squared error grows by if it goes: tr(W_J (Hinv_JJ)^-1 W_J')."""
        J = self.features[units]
        blocks = self.Hinv[J[:, :, None], J[:, None, :]]
        WJ = self.W[:, J].transpose(1, 0, 2)
        solved = np.linalg.solve(blocks, WJ.transpose(0, 2, 1))
        grown: Floats = np.einsum("uok,uko->u", WJ, solved)
        return grown / self.scale

    def eliminate(self, units: Ints) -> None:
        """Takes units out: updates W and the inverse, with no fresh inverse."""
        J = self.features[units].reshape(-1)
        rows = self.Hinv[J]
        solved = np.linalg.solve(rows[:, J], rows)
        self.W -= self.W[:, J] @ solved
        self.Hinv -= rows.T @ solved
        self.W[:, J] = 0
        self.Hinv[J, :] = self.Hinv[:, J] = 0
        self.Hinv[J, J] = 1  # keeps later blocks regular; nothing reads these features again


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
