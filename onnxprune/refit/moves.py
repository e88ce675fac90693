"""Values followed back through nodes that only move numbers, to what layers have made."""

from __future__ import annotations

from collections.abc import Callable, Container

import onnx_ir as ir

from onnxprune.engine.coupling import Coupling
from onnxprune.engine.layers import Layer

__all__ = ["MOVES", "followed_back", "made_by", "moving"]

MOVES = {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Flatten", "Identity", "Dropout"}


def made_by(coupling: Coupling, layer: Layer) -> str:
    """Returns what a layer makes, with its bias."""
    behind = layer.index if layer.bias is None else layer.bias.node
    return str(coupling.nodes[behind].outputs[0].name)


def moving(coupling: Coupling, node: ir.Node) -> list[int]:
    """Returns which inputs of a node hang on the data."""
    static = coupling.trace.static
    return [k for k, v in enumerate(node.inputs) if v is not None and v.name not in static]


def followed_back(
    coupling: Coupling, name: str, starts: Container[str], through: Callable[[ir.Node], int | None]
) -> tuple[str, tuple[int, ...]]:
    """Returns where a value came from, as far back as to a start or as nodes let through, and these nodes in order.

    Args:
        coupling: the coupled model.
        name: the value.
        starts: values to stop at.
        through: tells the input that a node lets through, None where it does not.
    """
    path = list[int]()
    while name not in starts and (k := coupling.makers.get(name, -1)) >= 0:
        if (slot := through(coupling.nodes[k])) is None:
            break
        path.insert(0, k)
        data = coupling.nodes[k].inputs[slot]
        name = "" if data is None else str(data.name)
    return name, tuple(path)
