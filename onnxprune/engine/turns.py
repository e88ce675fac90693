"""A twin of a flat view whose loops run all their turns.

A view shows one turn of a Loop or Scan, which tells nothing of the others: what a weight reads at the first step of a
sentence is not what it reads later. In the twin the loop runs as it stands in the model, twice. Where it begins it
gives what the linear layers of its body read, one turn's samples behind the other's; these layers stand behind it as
they do in the view. Where it ends it gives what it gives in the model, with the weights as they are by then. Nothing
else of the view's one turn is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
from onnx.helper import make_graph, make_node, make_tensor_value_info, np_dtype_to_tensor_dtype

from onnxprune.engine.coupling import Coupling
from onnxprune.engine.layers import find_layers
from onnxprune.graph.constants import is_constant
from onnxprune.graph.dependence import subgraphs
from onnxprune.graph.flat import Flat, Turns, numbered

__all__ = ["all_turns"]

STEM = "onnxprune/turns"
ALWAYS = f"{STEM}/always"  # the constant that is true


def all_turns(coupling: Coupling) -> Coupling:
    """Returns the coupling of a twin whose loops run all their turns; itself where its view shows none."""
    flat = coupling.flat
    return _Twin(coupling, flat).run() if flat is not None and flat.loops else coupling


class _Twin:
    """A clone of a view with whole loops in it."""

    def __init__(self, coupling: Coupling, flat: Flat) -> None:
        self.coupling, self.flat = coupling, flat
        self.model = coupling.model.clone()
        self.nodes = list(self.model.graph)
        self.shapes, self.dtypes = dict(coupling.trace.shapes), dict(coupling.trace.dtypes)
        turned = {str(v.name) for x in flat.loops for k in x.nodes for v in self.nodes[k].outputs}
        trace = replace(coupling.trace, static=coupling.trace.static - turned)  # a state may start from constants
        self.layers = {x.index: x.input for x in find_layers(replace(coupling, trace=trace))}
        self.producer = {v.name: k for k, n in enumerate(self.nodes) for v in n.outputs if v.name}
        self.original, values = numbered(flat.original)
        self.names = {id(values[k]): name for name, numbers in flat.values.items() for k in numbers}

    def run(self) -> Coupling:
        """Returns the coupling of the twin."""
        truth = ir.tensor(np.array(True), name=ALWAYS)
        kind = ir.TensorType(truth.dtype)
        self.model.graph.register_initializer(ir.Value(name=ALWAYS, const_value=truth, type=kind, shape=ir.Shape(())))
        inside = [k for loop in self.flat.loops for k in self._put(loop)]
        trace = replace(self.coupling.trace, shapes=self.shapes, dtypes=self.dtypes)
        return replace(self.coupling, model=self.model, trace=trace, inside=frozenset(inside))

    def _put(self, loop: Turns) -> list[int]:
        """Puts a whole loop in the place of its turn, and returns the layers of its body."""
        whole = _Whole(self.original[loop.place], self.names, loop)
        layers = sorted(k for k in loop.body & set(self.layers) if self._stands_alone(k, loop, whole))
        read = dict.fromkeys(self.layers[k] for k in layers)
        given = [n for n in read if self.producer.get(n, -1) in loop.nodes]
        made = [n for k, n in enumerate(loop.outputs) if n and k not in loop.handed_on]
        new: dict[int, ir.Node] = {}
        if given:
            new[loop.nodes[0]] = self._linked(whole.asked({n: (self.dtypes[n], len(self.shapes[n][0])) for n in given}))
        if made:
            new[max(self.producer[n] for n in made)] = self._linked(whole.itself())
        stay = {*layers, *(k for k in loop.nodes if is_constant(self.nodes[k]))}
        stay |= {self.producer[loop.outputs[k]] for k in loop.handed_on if loop.outputs[k]}
        old = {k: self.nodes[k] for k in loop.nodes if k not in stay}
        for k, node in old.items():
            self.nodes[k] = new[k] if k in new else _nothing(node)
            self.model.graph.insert_before(node, self.nodes[k])
        self._read(layers, given, self.nodes[loop.nodes[0]])
        for name, value in zip(made, self.nodes[max(new)].outputs if made else (), strict=True):
            was = next(v for v in old[self.producer[name]].outputs if v.name == name)
            was.replace_all_uses_with(value, replace_graph_outputs=True)
            was.name = None
        self.model.graph.remove(old.values(), safe=True)
        return layers

    def _linked(self, proto: onnx.NodeProto) -> ir.Node:
        """Returns a node that reads the values of the twin that have these names."""
        graph = self.model.graph
        given = {
            v.name: v for v in (*graph.inputs, *graph.initializers.values(), *(v for n in graph for v in n.outputs))
        }
        inputs = [make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in dict.fromkeys(_outer([proto]))]
        alone = ir.from_proto(make_graph([proto], "alone", inputs, []))
        assert isinstance(alone, ir.Graph)
        for value in alone.inputs:
            value.replace_all_uses_with(given[value.name])
        (node,) = alone
        alone.remove(node)
        return node

    def _stands_alone(self, number: int, loop: Turns, whole: _Whole) -> bool:
        """Returns whether a layer of a body reads samples, and nothing else that a turn makes."""
        x, *others = (str(v.name) for v in self.nodes[number].inputs if v is not None)
        makers = [self.producer.get(name, -1) for name in others]
        alone = all(is_constant(self.nodes[k]) for k in makers if k in loop.nodes)
        told = x in whole.inner or self.producer.get(x, -1) not in loop.nodes
        return alone and told and len(self.shapes[x][0]) > 1

    def _read(self, layers: Iterable[int], given: list[str], first: ir.Node) -> None:
        """Has layers read what a loop gives for all turns."""
        for name, value in zip(given, first.outputs, strict=False):
            self.shapes[str(value.name)], self.dtypes[str(value.name)] = self.shapes[name], self.dtypes[name]
            for k in layers:
                if self.layers[k] == name:
                    self.nodes[k].replace_input_with(0, value)


def _nothing(old: ir.Node) -> ir.Node:
    """Returns a constant that stands for nothing, in the place of a node."""
    return ir.node("Constant", [], attributes={"value": ir.tensor(0.0)}, name=old.name)


class _Whole:
    """A Loop or Scan as it stands in the model, but for names, and constants, which it takes from outside."""

    def __init__(self, node: ir.Node, names: Mapping[int, str], loop: Turns) -> None:
        """Starts with the node and, by the ids of the model's values, their names in the view."""
        self.node, self.stem = node, f"{STEM}/{loop.place}"
        self.body = node.attributes["body"].as_graph()
        self.handed_on = sorted(loop.handed_on, reverse=True)
        made = dict(self._made(self.body))
        self.inner = {names[k]: name for k, name in made.items() if k in names}
        self.names = {**names, **made}
        for k in self.handed_on:
            given = self.node.inputs[2 + k]
            self.names[id(self.body.inputs[2 + k])] = self._name(given)

    def _made(self, body: ir.Graph) -> Iterable[tuple[int, str]]:
        """Yields what every turn makes, with a name of its own."""
        for v in body.inputs:
            yield id(v), f"{self.stem}/{v.name}"
        for node in body:
            if not is_constant(node):
                yield from ((id(v), f"{self.stem}/{v.name}") for v in node.outputs if v.name)
            for inside in subgraphs(node):
                yield from self._made(inside)

    def _name(self, value: ir.Value | None) -> str:
        return "" if value is None or not value.name else self.names.get(id(value), value.name)

    def itself(self) -> onnx.NodeProto:
        """Returns the node; it gives what no turn hands on as it is."""
        proto = ir.to_proto(self.node)
        assert isinstance(proto, onnx.NodeProto)
        self._rename(proto, self.node)
        (body,) = (a.g for a in proto.attribute if a.name == "body")
        for k in self.handed_on:
            del proto.input[2 + k], proto.output[k], body.input[2 + k], body.output[1 + k]
        proto.name = self.stem
        return proto

    def _rename(self, proto: onnx.NodeProto, node: ir.Node) -> None:
        proto.input[:] = map(self._name, node.inputs)
        proto.output[:] = map(self._name, node.outputs)
        for a in proto.attribute:
            if a.HasField("g"):
                self._rename_body(a.g, node.attributes[a.name].as_graph())

    def _rename_body(self, proto: onnx.GraphProto, body: ir.Graph) -> None:
        """Names what a body makes and reads as everything here is named, and takes its constants out."""
        for node, inside in zip(proto.node, body, strict=True):
            self._rename(node, inside)
        stay = [n for n, inside in zip(proto.node, body, strict=True) if not is_constant(inside)]
        made = {name for n in stay for name in n.output} | set(map(self._name, body.inputs))
        for told, value in (*zip(proto.input, body.inputs, strict=True), *zip(proto.output, body.outputs, strict=True)):
            told.name = self._name(value)
        for k, told in enumerate(proto.output):
            if told.name not in made:  # a constant, or what stands outside
                stay.append(make_node("Identity", [told.name], [f"{self.stem}/{body.name}/{k}"]))
                told.name = stay[-1].output[0]
        kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in stay]
        del proto.node[:], proto.initializer[:], proto.sparse_initializer[:], proto.value_info[:]
        proto.node.extend(kept)

    def asked(self, values: Mapping[str, tuple[np.dtype, int]]) -> onnx.NodeProto:
        """Returns a node that gives values of all turns, the samples of one behind those of the other.

        It is an If, so that it reads from outside what the loop does, and holds more nodes than one.

        Args:
            values: dtype and rank of what a turn makes, by its name in the view.
        """
        loop = self.itself()
        (body,) = (a.g for a in loop.attribute if a.name == "body")
        loop.output[:] = [f"{self.stem}/first/{k}" for k in range(len(loop.output))]
        nodes, ends = [loop], []
        for k, (name, (dtype, rank)) in enumerate(values.items()):
            kind, stem = np_dtype_to_tensor_dtype(dtype), f"{self.stem}/asked/{k}"
            body.node.append(make_node("Identity", [self.inner[name]], [stem]))
            body.output.append(make_tensor_value_info(stem, kind, None))
            loop.output.append(f"{stem}/stacked")
            nodes += _merged(f"{stem}/stacked", stem, rank)
            ends.append(make_tensor_value_info(f"{stem}/all", kind, None))
        for a in loop.attribute:
            if a.name in ("scan_output_axes", "scan_output_directions"):
                a.ints.extend([0] * len(values))
        given = [f"{self.stem}/of/{name}" for name in values]
        always = make_graph(nodes, "always", [], ends)
        choice = make_node("If", [ALWAYS], given, f"{self.stem}/first", then_branch=always, else_branch=always)
        return choice


def _merged(stacked: str, stem: str, rank: int) -> list[onnx.NodeProto]:
    """Returns nodes that lay the first two axes of a stacked value together, as `stem`/all."""
    rest, free = np.arange(2, rank + 1), np.array([-1])
    return [
        make_node("Constant", [], [f"{stem}/axes"], value=onnx.numpy_helper.from_array(rest)),
        make_node("Constant", [], [f"{stem}/free"], value=onnx.numpy_helper.from_array(free)),
        make_node("Shape", [stacked], [f"{stem}/shape"]),
        make_node("Gather", [f"{stem}/shape", f"{stem}/axes"], [f"{stem}/rest"]),
        make_node("Concat", [f"{stem}/free", f"{stem}/rest"], [f"{stem}/to"], axis=0),
        make_node("Reshape", [stacked, f"{stem}/to"], [f"{stem}/all"]),
    ]


def _outer(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    """Yields the names that nodes, and their bodies, read and do not make."""
    made: set[str] = set()
    for node in nodes:
        yield from (name for name in node.input if name and name not in made)
        for body in (a.g for a in node.attribute if a.HasField("g")):
            own = {v.name for v in body.input}
            yield from (name for name in _outer(body.node) if name not in made | own)
        made |= set(node.output)
