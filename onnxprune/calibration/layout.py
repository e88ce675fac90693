"""Where a model's inputs have their batch axis, and what that means for putting samples together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnxprune.graph import inputs

__all__ = ["Layout", "fits", "layout"]


@dataclass(frozen=True)
class Layout:
    """How samples make a batch.

    Attributes:
        axes: the batch axis of every input, None for one without.
        fixed: the batch that the graph declares, None where it leaves it open or has none.
    """

    axes: Mapping[str, int | None]
    fixed: int | None

    @property
    def joint(self) -> bool:
        """True if every input has a batch axis, so that a feed can be taken apart and put together at will."""
        return all(axis is not None for axis in self.axes.values())


def layout(specs: Sequence[inputs.InputSpec]) -> Layout:
    """Return the batch axes of these inputs.

    An open dimension that is named like a batch, or that stands first, is one. Where there is none, a size that all
    inputs declare first is the batch that the model was exported with; else a feed is a sample.
    """
    kinds = inputs.dims(specs)
    axes = {s.name: _open_batch(s, kinds) for s in specs}
    if any(axis is not None for axis in axes.values()):
        return Layout(axes, None)
    first = {s.shape[0] if s.shape else None for s in specs}
    size = first.pop() if len(first) == 1 else None
    if isinstance(size, int) and size > 0:
        return Layout(dict.fromkeys(axes, 0), size)
    return Layout(axes, None)


def _open_batch(spec: inputs.InputSpec, kinds: Mapping[inputs.Dim, inputs.Kind]) -> int | None:
    for axis, d in enumerate(spec.shape):
        if not isinstance(d, int):
            key = d if d is not None else ((axis, len(spec.shape)) if axis else (0, 0))
            if kinds.get(key) == "batch":
                return axis
    return None


def fits(shape: Sequence[int], declared: Sequence[int | str | None]) -> bool:
    """Return whether an array of this shape may be fed where `declared` stands."""
    return len(shape) == len(declared) and all(
        not isinstance(d, int) or d == n for n, d in zip(shape, declared, strict=True)
    )
