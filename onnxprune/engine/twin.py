"""A model's twin with weights as they are read, on which data tell of its layers, and the way back.

The twin has the same nodes, numbered alike, but constants stand where the model's nodes make of a constant what is read
(reads.py); behind DynamicQuantizeLinear it multiplies what was not yet quantized. A node that quantizes by itself
becomes a call of a function that takes real weights and rounds what it makes. All that is known of layers with constant
weights holds for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise

import numpy as np
import onnx
import onnx_ir as ir

from onnxprune.engine.coupling import Coupling, Place, Use
from onnxprune.engine.reads import CELL, ROUNDING, Copy, Finder, Product, Read
from onnxprune.engine.turns import all_turns
from onnxprune.ops import Node, Unsupported, lookup
from onnxprune.ops.linear import Linear

__all__ = ["as_read", "written"]

REAL = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}
QUANTIZED_ONLY = ("channels_last", "alpha")  # attributes that only the quantized operators have
DOMAIN = "onnxprune.twin"
PARAMETERS = 8  # of LSTM
FUNCTIONS = 10  # the opset that has what their bodies need


def as_read(coupling: Coupling) -> Coupling:
    """Returns the coupling of a model's twin; itself where weights are read as they are held, and no loop is run."""
    coupling = all_turns(coupling)
    finder = Finder(coupling)
    reads = list(finder.reads())
    copies = list(finder.copies({k for read in reads for k in read.around}))
    return _Twin(coupling).of(reads, copies) if reads or copies else coupling


class _Twin:
    """A clone of a model in which constants stand where weights are read."""

    def __init__(self, coupling: Coupling) -> None:
        self.coupling = coupling
        self.model = coupling.model.clone()
        self.nodes = list(self.model.graph)
        self.uses: dict[int, list[Use]] = {}  # by the node whose uses they stand for
        self.shapes, self.dtypes = dict(coupling.trace.shapes), dict(coupling.trace.dtypes)
        self.inside: dict[Place, Use] = {}
        self.views: dict[int, Linear] = {}

    def of(self, reads: Sequence[Read], copies: Sequence[Copy]) -> Coupling:
        """Returns the coupling of the twin with these weights and these copied constants."""
        reads = [read for read in reads if not read.inside or self._is_seen(read.readers[0])]
        for read in reads:
            self._put(read)
        for k in {k for read in reads if read.inside for k in read.readers}:
            (self._call if k in self.views else self._run)(k)
        given = {v.name: v for v in (*self.model.graph.initializers.values(), *(n.outputs[0] for n in self.nodes))}
        for copy in copies:
            for node, slot in copy.places:
                self.nodes[node].replace_input_with(slot, given[copy.source])
            _put(self.nodes, copy.node, _constant())
            self.uses[copy.node] = self._uses_at(copy.source, copy.places)
        uses = [self.inside.get((use.node, use.slot), use) for use in self.coupling.uses]
        uses = [(self.uses.get(use.node) or [use])[0] for use in uses]
        uses += [use for k in sorted(self.uses) for use in self.uses[k][1:]]
        static = self.coupling.trace.static | {read.name for read in reads}
        return replace(
            self.coupling,
            model=self.model,
            trace=replace(self.coupling.trace, shapes=self.shapes, dtypes=self.dtypes, static=static),
            uses=uses,
            quantized=frozenset(k for read in reads if read.stored.grid for k in read.readers),
            views=self.views,
        )

    def _put(self, read: Read) -> None:
        """Puts a constant where a weight is read."""
        dtype, shape = ir.DataType.from_numpy(read.dtype), ir.Shape(read.shape)
        tensor = ir.LazyTensor(lambda: ir.Tensor(read.stored.reals()), dtype, shape)
        if read.inside:
            ((k, slot),) = read.places
            self.nodes[k].replace_input_with(slot, self._held(read.name, tensor))
        elif read.product is None:
            for k in read.around[1:]:
                _put(self.nodes, k, _constant())
            _put(self.nodes, read.around[0], _constant(tensor))
        else:
            self._multiply(read.readers[0], read.product, self._held(read.name, tensor))
            self.dtypes[str(self.nodes[read.readers[0]].outputs[0].name)] = read.dtype
        self.shapes[read.name], self.dtypes[read.name] = (read.shape, read.shape), read.dtype
        first, *others = self._uses_at(read.name, read.places)
        if read.inside:
            self.inside[read.places[0]] = self._turned(first) if self._is_cell(first.node) else first
        else:
            self.uses |= {k: [first] for k in read.around}
            self.uses[read.around[0]] = [first, *others]

    def _held(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        """Returns a new initializer."""
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype))
        self.model.graph.register_initializer(value)
        return value

    def _is_seen(self, number: int) -> bool:
        """Returns whether a node that quantizes by itself is known as a matrix, and remembers it."""
        node = self.coupling.nodes[number]
        if self._is_cell(number):
            return True
        home = lookup(node)
        rule = home.linear.rule if home is not None else None
        with suppress(Unsupported):
            view = rule(Node(node, self.coupling.opset, self.coupling.trace)) if rule is not None else None
            if view is not None and self.coupling.opset >= FUNCTIONS:
                self.views[number] = view
        return number in self.views

    def _is_cell(self, number: int) -> bool:
        return self.coupling.nodes[number].op_type == CELL

    def _turned(self, use: Use) -> Use:
        """Returns the use of a cell's weight as LSTM reads it."""
        old = self.coupling.uses_of.get(use.node, {}).get(use.slot)
        return replace(use, arrays=() if old is None else tuple(a.swapaxes(1, 2) for a in old.arrays))

    def _run(self, number: int) -> None:
        """Puts an LSTM in the place of one that quantizes what it reads."""
        old = self.nodes[number]
        new = ir.Node("", "LSTM", old.inputs[:PARAMETERS], old.attributes.values(), num_outputs=len(old.outputs))
        _put(self.nodes, number, new)

    def _call(self, number: int) -> None:
        """Puts the call of a function in the place of a node that quantizes by itself; inputs stay where they are."""
        old, graph = self.nodes[number], self.model.graph
        function = ir.from_proto(_in_reals(old, f"call_{number}", self.coupling.opset))
        assert isinstance(function, ir.Function)
        self.model.functions[function.identifier()] = function
        graph.opset_imports[DOMAIN] = 1
        _put(self.nodes, number, ir.Node(DOMAIN, function.name, list(old.inputs)))

    def _multiply(self, number: int, product: Product, weight: ir.Value) -> None:
        """Puts a product of real numbers in the place of a dynamically quantized one, and nothing behind it."""
        old = self.nodes[number]
        start = next(v.producer() for v in old.inputs if v is not None)
        source = None if start is None else start.inputs[0]
        _put(self.nodes, number, ir.Node("", REAL[old.op_type], [source, weight], attributes=old.attributes.values()))
        for before, k in pairwise((number, product.cast, product.last)):
            _put(self.nodes, k, ir.node("Identity", [self.nodes[before].outputs[0]]))

    def _uses_at(self, name: str, places: Sequence[Place]) -> list[Use]:
        """Returns the uses of a constant of the twin."""
        shape = self.shapes[name][0]
        seen = [self.coupling.seen[node][slot] for node, slot in places]
        labels = [() if t is None else t.arrays for t in seen]
        return [Use(node, slot, name, shape, arrays) for (node, slot), arrays in zip(places, labels, strict=True)]


def _in_reals(node: ir.Node, name: str, version: int) -> onnx.FunctionProto:
    """Returns a node that quantizes by itself as a function of its inputs, with weight and bias in real numbers."""
    real, bias, scale = ROUNDING[node.op_type]
    given = [f"x{k}" for k in range(len(node.inputs))]
    there = ["" if v is None else name for v, name in zip(node.inputs, given, strict=True)]
    added = [there[bias]] if bias is not None and bias < len(there) and there[bias] else []
    make = onnx.helper.make_node
    middle = make(real, ["real", there[3], *added], ["made"])
    middle.attribute.extend(ir.to_proto(a) for a in node.attributes.values() if a.name not in QUANTIZED_ONLY)
    numbers = [x for x in there[scale : scale + 2] if x]
    last = make("QuantizeLinear", ["made", *numbers], ["y"]) if numbers else make("Identity", ["made"], ["y"])
    body = [make("DequantizeLinear", [x for x in there[:3] if x], ["real"]), middle, last]
    return onnx.helper.make_function(DOMAIN, name, given, ["y"], body, [onnx.helper.make_opsetid("", version)])


def written(coupling: Coupling, contents: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns new contents of a model's own constants for new ones of its twin.

    Where new numbers don't fit into the range of the old integers their scale grows, and with it that of the bias,
    which runtimes take for the product of the factors' scales. A scale that something else reads stays.
    """
    found = {read.name: read for read in Finder(coupling).reads()}
    biases = {read.readers: read for read in found.values() if read.is_bias}
    new = {name: content for name, content in contents.items() if name not in found}
    grown: dict[str, np.ndarray] = {}
    for read in (found[name] for name in contents if name in found and not found[name].is_bias):
        growth = read.stored.growth(contents[read.name])
        grids = {x.name: x.stored.grid for x in (read, biases.get(read.readers)) if x is not None}
        if (growth > 1).any() and all(g and g.owned and g.scales.size == growth.size for g in grids.values()):
            grown |= {name: growth.reshape(g.scales.shape) for name, g in grids.items() if g}
    for read in (found[name] for name in {**contents, **grown} if name in found):
        stored, growth = read.stored, grown.get(read.name, np.ones(()))
        new |= stored.holding(contents[read.name] if read.name in contents else stored.reals(), growth)
        if read.name in grown and stored.grid:
            scales = (stored.grid.scales * growth).astype(stored.grid.scales.dtype)
            new |= dict.fromkeys(stored.grid.names, scales)
    return new


def _constant(tensor: ir.TensorProtocol | None = None) -> ir.Node:
    """Returns a Constant node; one that stands for nothing where no tensor is given."""
    return ir.node("Constant", [], attributes={"value": ir.tensor(0.0) if tensor is None else tensor})


def _put(nodes: list[ir.Node], number: int, new: ir.Node) -> None:
    """Puts a node, which makes values of the same names, in the place of another one."""
    old = nodes[number]
    assert old.graph is not None
    new.name = old.name
    for value, made in zip(old.outputs, new.outputs, strict=False):
        name = value.name
        value.replace_all_uses_with(made, replace_graph_outputs=True)
        value.name, made.name = None, name
    old.graph.insert_before(old, new)
    old.graph.remove(old, safe=True)
    nodes[number] = new
