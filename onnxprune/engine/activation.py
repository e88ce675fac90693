"""What stands behind a linear layer and works on each number by itself: normalisation, an addition, an activation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxprune.engine.coupling import Coupling
from onnxprune.engine.layers import Layer
from onnxprune.graph.constants import constants
from onnxprune.graph.dependence import draws
from onnxprune.ops import lookup
from onnxprune.ops.normalization import in_training

__all__ = ["activation_behind"]

MOST_NODES = 16
STRAIGHT = frozenset({"Add", "Sub", "Mul", "Div", "Neg", "BatchNormalization", "Identity", "Cast", "Dropout"})


def activation_behind(coupling: Coupling, layer: Layer) -> tuple[int, ...]:
    """Returns the pointwise nodes behind a layer, by number, one of them bent; none where there is no such thing.

    Besides the layer's output they read constants and the branch that is added to it. What lies between is read by
    them alone, and all the rest of the network reads what the last one makes.
    """
    if coupling.trace.dtypes[layer.output].kind != "f":  # rows are fed to it alone: in a type that numpy knows
        return ()
    tensors, outside = constants(coupling.model.graph), coupling.read_elsewhere
    other = None if layer.other is None else layer.other.name
    inner, nodes, found = [layer.output], list[int](), 0
    while len(nodes) < MOST_NODES:
        readers = {name: {k for k, _ in coupling.readers.get(name, [])} - set(nodes) for name in inner}
        seen = [name for name in inner if readers[name] or name in outside]
        if seen == inner[-1:] and any(coupling.nodes[k].op_type not in STRAIGHT for k in nodes):
            found = len(nodes)
        waiting = set[int]().union(*readers.values())
        if not waiting or outside & set(inner):
            break
        node = coupling.nodes[min(waiting)]
        given = {v.name for v in node.inputs if v is not None and v.name} - {*inner, other}
        if not _is_pointwise(coupling, node) or not all(_is_level(coupling, layer, node, x, tensors) for x in given):
            break
        nodes.append(min(waiting))
        inner.append(str(node.outputs[0].name))
    return tuple(nodes[:found])


def _is_pointwise(coupling: Coupling, node: ir.Node) -> bool:
    """Returns whether a node makes of each number, or of each channel's, another one."""
    home = lookup(node)
    normal = node.op_type == "BatchNormalization" and not in_training(node)
    return home is not None and (home.pointwise or normal) and not draws(node, coupling.model.functions)


def _is_level(
    coupling: Coupling, layer: Layer, node: ir.Node, name: str, tensors: Mapping[str, ir.TensorProtocol]
) -> bool:
    """Returns whether a constant holds one number, or one for each of a layer's outputs along their axis."""
    if name not in tensors:
        return False
    held, whole = tensors[name].shape.numpy(), coupling.trace.shapes[layer.output][0]
    axis = layer.view.channel % len(whole)
    back, count = len(whole) - axis, int(np.prod(held))
    if count != whole[axis] or count == 1:
        return count == 1 and len(held) <= len(whole)
    return axis == 1 if node.op_type == "BatchNormalization" else back <= len(held) and held[-back] == count
