"""A weight that a model holds in another form than the one in which it is read: the way there, and the way back.

Nodes may turn it, give it another shape or type, or make real numbers of integers before a layer reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir as ir

from onnxprune.ops.zero_points import along

__all__ = ["WIDE", "Grid", "Shaped", "Step", "Stored", "Turned", "Typed"]

WIDE = np.dtype(np.int32)


class Step(Protocol):
    """What a node does to a constant, and the way back."""

    def there(self, x: np.ndarray) -> np.ndarray:
        """Returns what the node makes of a constant."""
        ...

    def back(self, x: np.ndarray) -> np.ndarray:
        """Returns what it makes `x` of."""
        ...


@dataclass(frozen=True)
class Turned:
    """Axes in another order."""

    axes: tuple[int, ...]

    def there(self, x: np.ndarray) -> np.ndarray:
        """Returns the constant turned."""
        return x.transpose(self.axes)

    def back(self, x: np.ndarray) -> np.ndarray:
        """Returns it as it was."""
        return x.transpose(np.argsort(self.axes))


@dataclass(frozen=True)
class Shaped:
    """The same numbers in another shape."""

    old: tuple[int, ...]
    new: tuple[int, ...]

    def there(self, x: np.ndarray) -> np.ndarray:
        """Returns the constant in its new shape."""
        return x.reshape(self.new)

    def back(self, x: np.ndarray) -> np.ndarray:
        """Returns it in its own."""
        return x.reshape(self.old)


@dataclass(frozen=True)
class Typed:
    """Floats of another width."""

    old: np.dtype
    new: np.dtype

    def there(self, x: np.ndarray) -> np.ndarray:
        """Returns the constant in its new type."""
        return x.astype(self.new)

    def back(self, x: np.ndarray) -> np.ndarray:
        """Returns it in its own."""
        return x.astype(self.old)


@dataclass(frozen=True, eq=False)
class Grid:
    """The integers that stand for real numbers.

    Attributes:
        names: of the constants that hold the scale; all have the same content.
        scales: the scale as it is.
        points: the zero point as it is.
        dtype: the type of the integers.
        step: the node that tells along which axis scales lie.
        owned: nothing else reads the scale.
        simulated: real numbers are held, which are rounded to integers and back.
    """

    names: frozenset[str]
    scales: np.ndarray
    points: np.ndarray
    dtype: np.dtype
    step: ir.Node
    owned: bool
    simulated: bool

    def reals(self, integers: np.ndarray) -> np.ndarray:
        """Returns real numbers for integers, in the scale's type."""
        shape = integers.shape
        return np.asarray((integers - self._zero(shape)) * self._spread(self.scales, shape), self.scales.dtype)

    def nearest(self, reals: np.ndarray, growth: np.ndarray, most: float) -> np.ndarray:
        """Returns the nearest integers, as float64, not farther from the zero point than `most`."""
        zero, bounds = self._zero(reals.shape), np.iinfo(self.dtype)
        numbers = np.rint(reals.astype(np.float64) / self._spread(self.scales * growth, reals.shape))
        return np.asarray(np.clip(np.clip(numbers, -most, most) + zero, bounds.min, bounds.max))

    def most(self, integers: np.ndarray) -> float:
        """Returns how far from the zero point new integers may be: as far as old ones are.

        Weights of 7 bits keep to them: beyond, sums of products in 16 bits overflow on some processors. Not so biases.
        """
        used = float(np.abs(integers - self._zero(integers.shape)).max(initial=0))
        return float(np.iinfo(self.dtype).max) if self.dtype == WIDE or not used else used

    def growth(self, reals: np.ndarray, most: float) -> np.ndarray:
        """Returns the factor, at least 1, by which the scale must grow for new numbers to fit."""
        zero, bounds = self._zero(reals.shape), np.iinfo(self.dtype)
        scales = self._spread(self.scales, reals.shape)
        ends = np.where(reals < 0, np.maximum(-most, bounds.min - zero), np.minimum(most, bounds.max - zero)) * scales
        over = np.divide(reals, ends, out=np.ones(reals.shape), where=ends != 0)
        axes = tuple(k for k, n in enumerate(scales.shape) if n == 1)
        return np.asarray(over.max(axis=axes, initial=1.0)).reshape(self.scales.shape)

    def _zero(self, shape: tuple[int, ...]) -> np.ndarray:
        return self._spread(self.points, shape)

    def _spread(self, numbers: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Returns scales or zero points as they broadcast against a weight of this shape, in float64."""
        wide = along(self.step, numbers, shape) if numbers.size > 1 else numbers.reshape((1,) * len(shape))
        return wide.astype(np.float64)


@dataclass(frozen=True, eq=False)
class Stored:
    """A constant with all that is done to it before it is read.

    Attributes:
        holder: its name.
        held: what it holds.
        before: what is done to it before integers become real numbers, or at all.
        grid: the integers, None where it has none.
        after: what is done to the real numbers.
    """

    holder: str
    held: np.ndarray
    before: Sequence[Step]
    grid: Grid | None = None
    after: Sequence[Step] = ()

    def reals(self) -> np.ndarray:
        """Returns the numbers as they are read."""
        x = self._integers() if self.grid else self._prepared()
        x = self.grid.reals(x) if self.grid else x
        for step in self.after:
            x = step.there(x)
        return x

    def growth(self, reals: np.ndarray) -> np.ndarray:
        """Returns the factor, at least 1, by which the scale must grow for new numbers; 1 where there is none."""
        if self.grid is None:
            return np.ones(())
        return self.grid.growth(self._at_grid(reals), self.grid.most(self._integers()))

    def holding(self, reals: np.ndarray, growth: np.ndarray) -> dict[str, np.ndarray]:
        """Returns what the constant is to hold for new numbers, by its name."""
        x = self._at_grid(reals)
        if self.grid is not None and not self.grid.simulated:
            x = self.grid.nearest(x, growth, self.grid.most(self._integers()))
        for step in reversed(self.before):
            x = step.back(x)
        return {self.holder: x.astype(self.held.dtype)}

    def _prepared(self) -> np.ndarray:
        x = self.held
        for step in self.before:
            x = step.there(x)
        return x

    def _integers(self) -> np.ndarray:
        """Returns the integers, as float64."""
        assert self.grid is not None
        x = self._prepared()
        return self.grid.nearest(x, np.ones(()), np.inf) if self.grid.simulated else x.astype(np.float64)

    def _at_grid(self, reals: np.ndarray) -> np.ndarray:
        for step in reversed(self.after):
            reals = step.back(reals)
        return reals
