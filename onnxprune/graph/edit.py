"""Changing and adding constants of a graph."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxprune.graph.constants import is_constant


def replace_constant(model: ir.Model, name: str, tensor: ir.TensorProtocol) -> None:
    """Gives an initializer or a Constant node other contents; a declared shape follows."""
    value = model.graph.initializers.get(name)
    if value is not None:
        value.const_value = tensor
    else:
        holder = _holder(model, name)
        value = holder.outputs[0]
        holder.attributes.clear()
        holder.attributes["value"] = ir.AttrTensor("value", tensor)
    if value.shape is not None:
        value.shape = ir.Shape(tensor.shape.numpy())


def _holder(model: ir.Model, name: str) -> ir.Node:
    """Returns the Constant node that gives a value; where they stand is remembered for the next call."""
    known: dict[str, ir.Node] = model.meta.get("onnxprune.holders", {})
    found = known.get(name)
    if found is None or found.graph is not model.graph or found.outputs[0].name != name:
        known = {str(n.outputs[0].name): n for n in model.graph if is_constant(n)}
        model.meta["onnxprune.holders"] = known
        found = known[name]
    return found


def add_constant(model: ir.Model, name: str, tensor: ir.TensorProtocol, before: ir.Node) -> ir.Value:
    """Returns a new constant under a free name made from `name`.

    It is an initializer, or a Constant node before the node that needs it where the file's version wants initializers
    among the inputs.
    """
    tensor.name = fresh = free_name(model, name)
    shape, dtype = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
    value = ir.Value(name=fresh, shape=shape, type=dtype, const_value=tensor)
    if model.ir_version >= 4:
        model.graph.register_initializer(value)
        return value
    node = ir.node("Constant", [], attributes={"value": tensor}, name=fresh)
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = fresh, value.type, value.shape
    model.graph.insert_before(before, node)
    return node.outputs[0]


def free_name(model: ir.Model, name: str) -> str:
    """Returns a name made from `name` that no value and no node of the graph has."""
    graph = model.graph
    taken = model.meta.get("onnxprune.names")
    if taken is None:
        taken = {v.name for v in graph.inputs} | set(graph.initializers)
        taken |= {x for n in graph for x in (n.name, *(v.name for v in n.outputs))}
        model.meta["onnxprune.names"] = taken
    k = 1
    while (fresh := f"{name}_pruned_{k}") in taken:
        k += 1
    taken.add(fresh)
    return fresh


def sweep(model: ir.Model, values: Sequence[ir.Value]) -> None:
    """Removes the makers of values that nothing reads any more, last ones first, and the constants they alone read."""
    for value in reversed(values):
        node = value.producer()
        if node is None or node.graph is None or any(v.uses() or v.is_graph_output() for v in node.outputs):
            continue
        read = [v for v in node.inputs if v is not None]
        node.graph.remove(node, safe=True)
        for v in read:
            if v.uses() or v.is_graph_output() or v.is_graph_input():
                continue
            if v.is_initializer():
                model.graph.initializers.pop(str(v.name))
            elif (holder := v.producer()) is not None and is_constant(holder):
                model.graph.remove(holder, safe=True)
