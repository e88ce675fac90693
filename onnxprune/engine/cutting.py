"""What a cut leaves of every tensor: living labels, kept positions and new shapes, nothing changed yet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from onnxprune.engine.coupling import Coupling, Use
from onnxprune.engine.labels import Array
from onnxprune.engine.tensors import Tensor, spans
from onnxprune.engine.units import Units

Bools = npt.NDArray[np.bool_]

_STRIPE = 1 << 20  # bytes of a constant that are sliced at a time


@dataclass(frozen=True, eq=False)
class Cutting:
    """A choice of units to cut, seen from tensors."""

    units: Units
    dead_units: Array

    @property
    def coupling(self) -> Coupling:
        """The coupled model."""
        return self.units.coupling

    @cached_property
    def dead(self) -> Bools:
        """Whether each unit is cut; the last entry, False, is for labels without a unit (-1)."""
        dead = np.zeros(self.units.count + 1, bool)
        dead[self.dead_units] = True
        return dead

    @cached_property
    def living(self) -> Bools:
        """Whether each label lives."""
        return ~self.dead[self.units.of_label]

    def alive(self, labels: Array) -> Bools:
        """Returns whether each of `labels` lives."""
        return self.living[labels]

    def kept(self, t: Tensor, axis: int) -> Array:
        """Returns the positions of `axis` that stay; of rows that lose other ones each, those of the first."""
        a = t.on(axis)
        if a is None:
            return np.arange(t.shape[axis])
        alive = np.moveaxis(self.alive(a), axis, -1).reshape(-1, t.shape[axis])
        if spans(a)[-1:] == (axis,):
            alive = alive[alive.any(axis=1).argmax()][None]
        return np.flatnonzero(alive.any(axis=0))

    def is_cut(self, t: Tensor, axis: int) -> bool:
        """Returns whether `axis` loses positions."""
        return len(self.kept(t, axis)) < t.shape[axis]

    def cut_axes(self, t: Tensor) -> tuple[int, ...]:
        """Returns the axes that lose positions."""
        return tuple(axis for axis in range(len(t.shape)) if self.is_cut(t, axis))

    def new_shape(self, t: Tensor, old: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape after the cut where the shape before was `old` (of this run or another)."""
        return tuple(
            n * len(self.kept(t, k)) // m if m else n for k, (n, m) in enumerate(zip(old, t.shape, strict=True))
        )

    def mask(self, use: Use) -> Bools:
        """Returns which elements of a constant live where one node reads it."""
        return np.broadcast_to(self._mask(use), use.shape)

    def _mask(self, use: Use) -> Bools:
        """Returns the same, as long as 1 along axes that no label stands on."""
        mask = np.ones((1,) * len(use.shape), bool)
        for a in use.arrays:
            mask = mask & self.alive(a)
        return mask

    def touches(self, use: Use) -> bool:
        """Returns whether a use loses anything."""
        return not all(self.alive(a).all() for a in use.arrays)

    def kept_of(self, use: Use, axis: int) -> tuple[tuple[int, ...], list[Array]]:
        """Returns the positions that stay along an axis of a use, and the axes before it that tell which.

        There is one list, if no axis tells, else one for each combination of positions that stay along these.
        """
        straight = self._straight(use)
        if straight is not None:
            return (), [np.flatnonzero(straight[axis])]
        mask = self._mask(use).any(axis=tuple(range(axis + 1, len(use.shape))))
        lines = np.broadcast_to(mask, (*mask.shape[:axis], use.shape[axis]))
        living = np.asarray(lines.any(axis=-1))
        first = lines[np.unravel_index(living.argmax(), living.shape)] if axis else lines
        if not np.any((lines != first).any(axis=-1) & living):
            return (), [np.flatnonzero(first)]
        along = tuple(k for k in range(axis) if lines.shape[k] > 1 and _varies(lines, living, k))
        others = tuple(k for k in range(axis) if k not in along)
        rows = lines.any(axis=others).reshape(-1, use.shape[axis])
        return along, [np.flatnonzero(row) for row in rows if row.any()]

    def shape_of(self, use: Use) -> tuple[int, ...]:
        """Returns the shape of what stays of a constant where one node reads it: rows of equal length."""
        straight = self._straight(use)
        if straight is not None:
            return tuple(int(keep.sum()) for keep in straight)
        mask = self.mask(use)
        shape = []
        for _ in range(mask.ndim):  # all living rows are alike, so the first one tells the sizes of the other axes
            living = mask.reshape(len(mask), -1).any(axis=1)
            shape.append(int(living.sum()))
            mask = mask[int(living.argmax())]
        return tuple(shape)

    def _straight(self, use: Use) -> list[Bools] | None:
        """Returns for each axis which positions stay, None where labels span several axes at once."""
        if any(len(spans(a)) != 1 for a in use.arrays):
            return None
        keep = [np.ones(n, bool) for n in use.shape]
        for a in use.arrays:
            keep[spans(a)[0]] &= self.alive(a).reshape(-1)
        return keep

    def slice(self, use: Use, values: np.ndarray) -> np.ndarray:
        """Returns what stays of a constant's values, dense."""
        return np.concatenate([*self.slices(use, values)])

    def slices(self, use: Use, values: np.ndarray) -> Iterator[np.ndarray]:
        """Yields what stays of a constant's values, dense, in parts along the first axis that fit in caches."""
        straight = self._straight(use)
        if straight is None:
            yield values[self.mask(use)].reshape(self.shape_of(use))
            return
        cut = [(axis, keep) for axis, keep in enumerate(straight) if not keep.all()]
        step = max(1, _STRIPE * len(values) // max(values.nbytes, 1))
        for first in range(0, max(len(values), 1), step):
            rows = slice(first, first + step)
            part = values[rows]
            for axis, keep in cut:
                part = part.compress(keep if axis else keep[rows], axis)
            yield part


def _varies(lines: Bools, living: Bools, axis: int) -> bool:
    """Returns whether living lines are not all alike along an axis."""
    one = np.moveaxis(lines, axis, 0)
    alive = np.moveaxis(living, axis, 0)
    first = np.take_along_axis(one, alive.argmax(axis=0)[None, ..., None], 0)
    return bool(((one != first).any(axis=-1) & alive).any())
