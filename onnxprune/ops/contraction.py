"""Contractions of data and a constant weight of any rank as matrices: Einsum, MatMul with a weight for each group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.ops.linear import Places, at_features
from onnxprune.ops.registry import Shape

__all__ = ["LinearContraction", "contraction"]


@dataclass(frozen=True)
class LinearContraction:
    """Letters of axes by what they are to the weight; rows are what only data and result have.

    Attributes:
        terms: letters of the data, the weight and the result.
        groups: in all three.
        outs: in the weight and the result.
        features: in the data and the weight.
        shape: of the weight.
    """

    terms: tuple[str, str, str]
    groups: str
    outs: str
    features: str
    shape: Shape
    weight: int = 1
    bias: int | None = None
    direct: bool = False

    @property
    def channel(self) -> int:
        """The axis of the outputs."""
        return self.terms[2].index(self.outs)

    @property
    def rows(self) -> str:
        """The letters of data and result alone, in the result's order."""
        return "".join(c for c in self.terms[2] if c not in self.terms[1])

    def matrix(self, weight: np.ndarray) -> np.ndarray:
        """Returns (groups, outputs, features)."""
        return self._turned(weight, self.terms[1], self.groups, self.outs)

    def restore(self, matrix: np.ndarray) -> np.ndarray:
        """Returns the weight with its own axes."""
        order = [self.terms[1].index(c) for c in self.groups + self.outs + self.features]
        wide = matrix.reshape([self.shape[k] for k in order])
        return np.ascontiguousarray(wide.transpose(np.argsort(order)))

    def places(self, shape: Shape, share: float, rng: np.random.Generator) -> np.ndarray:
        """Returns rows of the result."""
        sizes = [shape[self.terms[2].index(c)] for c in self.rows]
        count = int(np.prod(sizes, dtype=int))
        least = min(count, sizes[0] if len(sizes) > 1 else 1)
        return np.sort(rng.choice(count, max(least, round(share * count)), replace=False))

    def patches(self, x: np.ndarray, places: np.ndarray, features: Places | None = None) -> np.ndarray:
        """Returns the rows of data that make those of the result."""
        return at_features(self._turned(x, self.terms[0], self.groups, self.rows).take(places, axis=1), features)

    def outputs(self, y: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Returns the rows of the result."""
        return self._turned(y, self.terms[2], self.groups, self.rows).take(places, axis=1)

    def _turned(self, x: np.ndarray, term: str, first: str, second: str) -> np.ndarray:
        """Returns an array as three axes: two sets of letters, and what is left of its own."""
        last = self.outs if term == self.terms[2] else self.features
        sizes = [int(np.prod([x.shape[term.index(c)] for c in part], dtype=int)) for part in (first, second, last)]
        return x.transpose([term.index(c) for c in (*first, *second, *last)]).reshape(sizes)


def contraction(terms: tuple[str, str, str], x: Shape, weight: Shape) -> LinearContraction | None:
    """Returns a product of data and a weight as a matrix for each group; None where it is none over one axis with
    one axis of outputs.

    Args:
        terms: letters of the axes of the data, the weight and the result, each once in a term.
        x: shape of the data.
        weight: shape of the weight.
    """
    of_x, of_w, of_y = map(set, terms)
    sizes = dict(zip(terms[1], weight, strict=True))
    alike = all(sizes.get(c, n) == n for c, n in zip(terms[0], x, strict=True))
    summed_alone = (of_x | of_w) - of_y - (of_x & of_w)
    groups, outs, features = (
        "".join(c for c in terms[1] if c in part) for part in (of_x & of_y, of_y - of_x, of_x - of_y)
    )
    if not alike or summed_alone or len(features) != 1 or len(outs) != 1:
        return None
    return LinearContraction(terms, groups, outs, features, weight)
