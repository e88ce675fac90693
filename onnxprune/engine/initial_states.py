"""Zeros that several recurrent cells start from.

PyTorch makes the initial states of all layers of an LSTM as one tensor of zeros, and a part of it goes to each layer.
What it is cut to for one layer it would be for all, so that layers of any width could only be cut alike; but it may
stay as it is, and every layer take as many zeros as it has units.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxprune.graph.trace import Trace
from onnxprune.ops import lookup

__all__ = ["are_shared_zeros", "state_slots"]

MOVING = {"Cast", "Expand", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}


def state_slots(node: ir.Node) -> frozenset[int]:
    """Returns the inputs of a node that are states to start from."""
    home = lookup(node)
    return home.state_slots if home is not None else frozenset()


def are_shared_zeros(value: ir.Value, trace: Trace) -> bool:
    """Returns whether a value is a part of zeros that a node makes, and that two cells or more start from.

    Nothing else may read them.
    """
    while (maker := value.producer()) is not None and maker.op_type in MOVING and maker.inputs[0] is not None:
        value = maker.inputs[0]
    known = trace.values.get(value.name or "")
    if maker is None or known is None or any(content.any() for content in known):
        return False
    readers = list(_readers(value))
    alone = all(node is not None and slot in state_slots(node) for node, slot in readers)
    return alone and len({id(node) for node, _ in readers}) > 1


def _readers(value: ir.Value) -> Iterator[tuple[ir.Node | None, int]]:
    """Yields what reads a value, or a part of it, and at which input; None for the graph's outputs."""
    parts = [value]
    while parts:
        part = parts.pop()
        if part.is_graph_output():
            yield None, 0
        for use in part.uses():
            if use.node.op_type in MOVING and use.idx == 0:
                parts += use.node.outputs
            else:
                yield use.node, use.idx
