"""Constants in the body of an If, Loop or Scan that are named like a value outside get names of their own.

ONNX wants every name once, checkers and runtimes let the inner one win, and optimisers that turn Constant nodes into
initializers write such models. What follows here knows values by their names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import onnx

from onnxprune.graph.faithful import graphs

__all__ = ["unshadow"]


def unshadow(proto: onnx.ModelProto) -> None:
    """Renames shadowing initializers in place; other shadowing values stay, and are refused later on."""
    _, *inner = graphs(proto)
    if not inner:
        return
    around = [(proto.graph.node, _defined(proto.graph))]
    around += [(f.node, _of_nodes(f.node, f.input)) for f in proto.functions]
    taken = {name for _, scope in around for name in scope}.union(*map(_defined, inner))
    for nodes, scope in around:
        for body in _bodies(nodes):
            _rename(body, scope, {}, taken)


def _rename(graph: onnx.GraphProto, scope: set[str], renamed: Mapping[str, str], taken: set[str]) -> None:
    """Renames what shadows `scope` in a body and the bodies in it; `renamed` are names of constants around it."""
    own = _defined(graph)
    fixed = _of_nodes(graph.node, (v.name for v in graph.input))
    new = {old: name for old, name in renamed.items() if old not in own}
    for tensor in graph.initializer:
        if tensor.name in scope - fixed:
            new[tensor.name] = _fresh(tensor.name, taken)
            tensor.name = new[tensor.name]
    for value in (*graph.output, *graph.value_info):
        value.name = new.get(value.name, value.name)
    for note in graph.quantization_annotation:
        note.tensor_name = new.get(note.tensor_name, note.tensor_name)
    for node in graph.node:
        for k, name in enumerate(node.input):
            if name in new:
                node.input[k] = new[name]
    for body in _bodies(graph.node):
        _rename(body, scope | own, new, taken)


def _fresh(name: str, taken: set[str]) -> str:
    """Returns a name that nothing has yet."""
    again = 2
    while (found := f"{name}:{again}") in taken:
        again += 1
    taken.add(found)
    return found


def _bodies(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    """Yields the graphs that nodes hold."""
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
            yield from attribute.graphs


def _defined(graph: onnx.GraphProto) -> set[str]:
    """Returns the names that a graph defines itself."""
    return _of_nodes(graph.node, (v.name for v in (*graph.input, *graph.initializer)))


def _of_nodes(nodes: Iterable[onnx.NodeProto], given: Iterable[str]) -> set[str]:
    """Returns the names of what is given, and of what nodes make."""
    return {*given, *(name for node in nodes for name in node.output if name)}
