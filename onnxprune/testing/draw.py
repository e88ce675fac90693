"""What makers of random cases share: where they are hung, and how shapes and activations are drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from onnxprune.testing.cases import Array, Case, Data, Input, Weight

__all__ = ["GENERATORS", "activation", "floats", "generates", "image", "ints", "partner", "pick", "size", "some_axes"]

Maker = Callable[[str, np.random.Generator], Case]
GENERATORS: dict[tuple[str, str], Maker] = {}


def generates(*names: str, domain: str = "") -> Callable[[Maker], Maker]:
    """Returns a decorator that hangs a maker of random cases on operators."""

    def hang(maker: Maker) -> Maker:
        for name in names:
            if (domain, name) in GENERATORS:
                raise ValueError(f"{domain}::{name} has two generators")
            GENERATORS[domain, name] = maker
        return maker

    return hang


# ---------------------------------------------------------------- drawing
def pick(rng: np.random.Generator, *options: Any) -> Any:
    """Returns one of the options."""
    return options[int(rng.integers(len(options)))]


def size(rng: np.random.Generator, low: int = 2, high: int = 7) -> int:
    """Returns a size; no trace runs at a batch of it by chance."""
    return int(rng.integers(low, high))


def ints(*values: int) -> Array:
    """Returns a constant vector of sizes."""
    return np.array(values, np.int64)


def floats(*values: float) -> Array:
    """Returns a constant vector of floats."""
    return np.array(values, np.float32)


def some_axes(rng: np.random.Generator, rank: int) -> tuple[int, ...]:
    """Returns one labelled axis, or two together; never the batch."""
    free = list(range(1, rank))
    n = 2 if len(free) > 1 and rng.random() < 0.25 else 1
    return tuple(sorted(int(k) for k in rng.permutation(free)[:n]))


def activation(rng: np.random.Generator, rank: int = 0, through: tuple[str, ...] = ()) -> Data:
    """Returns an activation of any shape; through a Sigmoid where nothing else is asked for, now and then."""
    rank = rank or size(rng, 2, 5)
    through = through or pick(rng, (), (), ("Sigmoid",))
    return Data((0, *(size(rng) for _ in range(rank - 1))), some_axes(rng, rank), through)


def partner(rng: np.random.Generator, x: Data, through: tuple[str, ...] = ()) -> Input:
    """Returns what broadcasts against `x`: another activation, a table, a vector, a number."""
    kind = pick(rng, "same", "other", "weight", "row", "number", "input")
    if kind == "number":
        return floats(0.7)
    if kind == "weight":
        return Weight(tuple(n if rng.random() < 0.7 else 1 for n in x.shape[1:]))
    if kind == "row":
        return Weight((x.shape[-1],))
    if kind == "input":
        return Data(tuple(n if k == 0 or rng.random() < 0.5 else 1 for k, n in enumerate(x.shape)), (), through)
    axes = x.axes if kind == "same" else some_axes(rng, len(x.shape))
    return Data(x.shape, axes, through or pick(rng, (), ("Sigmoid",)))


def image(rng: np.random.Generator, channels: int = 0, low: int = 3) -> Data:
    """Returns an activation of channels and one to three spatial axes."""
    spatial = [size(rng, low + 2, low + 5) for _ in range(pick(rng, 1, 2, 2, 3))]
    axes = pick(rng, (1,), (1,), (1,), (1,), (2,), (1, 2), ())
    return Data((0, channels or size(rng, 2, 9), *spatial), axes, pick(rng, (), (), ("Sigmoid",)))
