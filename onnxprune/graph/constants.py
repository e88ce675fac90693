"""The constants of a graph: initializers and Constant nodes."""

from __future__ import annotations

from collections.abc import Container

import onnx_ir as ir

Constants = dict[str, ir.TensorProtocol]


def is_constant(node: ir.Node) -> bool:
    """Returns whether a node is ONNX's Constant."""
    return node.op_type == "Constant" and node.domain in ("", "ai.onnx")


def reads_only(node: ir.Node, given: Container[str], known: Container[str]) -> bool:
    """Returns whether a node reads something, and nothing but what is in one of two sets of names."""
    read = [v.name for v in node.inputs if v is not None and v.name]
    return bool(read) and all(name in given or name in known for name in read)


def constants(graph: ir.Graph) -> Constants:
    """Returns the tensors of initializers and of Constant nodes of one graph, by name of the value."""
    tensors = {name: v.const_value for name, v in graph.initializers.items() if v.const_value is not None}
    for node in graph:
        if not is_constant(node) or not node.outputs[0].name:
            continue
        attribute = node.attributes.get("value")
        tensor = ir.convenience.get_const_tensor(node.outputs[0]) if attribute is None else attribute.value
        if tensor is not None:
            tensors[node.outputs[0].name] = tensor
    return tensors
