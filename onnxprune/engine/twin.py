"""A model's twin with weights as they are read, on which data tell of its layers, and the way back.

The twin has the same nodes, numbered alike, but real constants where nodes of the model
    turn, reshape, copy or cast a weight before it is read, as exporters write and as local functions get theirs, or
    make real numbers of integers: DequantizeLinear, perhaps behind QuantizeLinear (simulated rounding), or
    MatMulInteger and ConvInteger behind DynamicQuantizeLinear, with a product with both scales behind them: there the
    twin multiplies what was not yet quantized.
All that is known of layers with constant weights holds for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxprune.engine.coupling import Coupling, Use
from onnxprune.engine.stored import Grid, Shaped, Step, Stored, Turned, Typed
from onnxprune.graph.constants import constants
from onnxprune.graph.dependence import captured, subgraphs

__all__ = ["as_read", "written"]

BIAS = 2  # where Conv, ConvTranspose and Gemm read theirs
SHAPING = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})
LAYING = SHAPING | {"Transpose", "Cast"}
MAKING = LAYING | {"DequantizeLinear", "QuantizeLinear"}
REAL = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}
WHOLE_BYTES = frozenset({"int8", "uint8", "int16", "uint16", "int32"})  # a fit rounded to fewer bits is worth little


@dataclass(frozen=True)
class _Product:
    """A dynamically quantized product.

    Attributes:
        cast: the number of the node that makes real numbers of its sums.
        last: the number of the node that puts the scales on them.
    """

    cast: int
    last: int

    def in_reals(self, nodes: list[ir.Node], number: int, weight: ir.Value) -> None:
        """Puts a product of real numbers in the place of the one with this number, and nothing behind it."""
        old = nodes[number]
        start = _maker(old, 0)
        assert start is not None
        real = ir.Node("", REAL[old.op_type], [start.inputs[0], weight], attributes=old.attributes.values())
        _put(nodes, number, real)
        for k in (self.cast, self.last):
            _put(nodes, k, ir.node("Identity", [nodes[k].inputs[0] if k == self.cast else nodes[self.cast].outputs[0]]))


@dataclass(frozen=True, eq=False)
class _Read:
    """A stored weight where it is read.

    Attributes:
        name: of the constant in the twin.
        places: the nodes that read it, by number, and the input at each.
        dtype: the type it is read in.
        shape: the shape in which it is read.
        stored: the weight.
        around: numbers of the nodes that make of it what is read, the last one first.
        product: set where a dynamically quantized product reads it.
    """

    name: str
    places: tuple[tuple[int, int], ...]
    dtype: np.dtype
    shape: tuple[int, ...]
    stored: Stored
    around: tuple[int, ...]
    product: _Product | None = None

    @property
    def is_bias(self) -> bool:
        """Whether it is added to what nodes make of their factors."""
        return {slot for _, slot in self.places} == {BIAS}

    @property
    def readers(self) -> tuple[int, ...]:
        """The numbers of the nodes that read it."""
        return tuple(node for node, _ in self.places)

    def tensor(self) -> ir.TensorProtocol:
        """Returns the constant, computed whenever it is asked for."""
        dtype = ir.DataType.from_numpy(self.dtype)
        return ir.LazyTensor(lambda: ir.Tensor(self.stored.reals()), dtype, ir.Shape(self.shape))


def as_read(coupling: Coupling) -> Coupling:
    """Returns the coupling of a model's twin; itself where every weight is read as it is held."""
    finder = _Finder(coupling)
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

    def of(self, reads: Sequence[_Read], copies: Sequence[tuple[int, str, tuple[tuple[int, int], ...]]]) -> Coupling:
        """Returns the coupling of the twin with these weights and these copied constants."""
        for read in reads:
            self._put(read)
        given = {v.name: v for v in (*self.model.graph.initializers.values(), *(n.outputs[0] for n in self.nodes))}
        for k, name, places in copies:
            for node, slot in places:
                self.nodes[node].replace_input_with(slot, given[name])
            _put(self.nodes, k, _constant())
            self.uses[k] = self._read(name, places)
        uses = [(self.uses.get(use.node) or [use])[0] for use in self.coupling.uses]
        uses += [use for k in sorted(self.uses) for use in self.uses[k][1:]]
        static = self.coupling.trace.static | {read.name for read in reads}
        return replace(
            self.coupling,
            model=self.model,
            trace=replace(self.coupling.trace, shapes=self.shapes, dtypes=self.dtypes, static=static),
            uses=uses,
            quantized=frozenset(k for read in reads if read.stored.grid for k in read.readers),
        )

    def _put(self, read: _Read) -> None:
        """Puts a constant where a weight is read."""
        if read.product is None:
            for k in read.around[1:]:
                _put(self.nodes, k, _constant())
            _put(self.nodes, read.around[0], _constant(read.tensor()))
        else:
            weight = ir.Value(name=read.name, const_value=read.tensor(), type=ir.TensorType(ir.DataType.FLOAT))
            self.model.graph.register_initializer(weight)
            (number,) = read.readers
            read.product.in_reals(self.nodes, number, weight)
            self.dtypes[str(self.nodes[number].outputs[0].name)] = read.dtype
        self.shapes[read.name], self.dtypes[read.name] = (read.shape, read.shape), read.dtype
        first, *others = self._read(read.name, read.places)
        self.uses |= {k: [first] for k in read.around}
        self.uses[read.around[0]] = [first, *others]

    def _read(self, name: str, places: Sequence[tuple[int, int]]) -> list[Use]:
        """Returns the uses of a constant of the twin."""
        shape = self.shapes[name][0]
        seen = [self.coupling.seen[node][slot] for node, slot in places]
        labels = [() if t is None else t.arrays for t in seen]
        return [Use(node, slot, name, shape, arrays) for (node, slot), arrays in zip(places, labels, strict=True)]


def written(coupling: Coupling, contents: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns new contents of a model's own constants for new ones of its twin.

    Where new numbers don't fit into the range of the old integers their scale grows, and with it that of the bias,
    which runtimes take for the product of the factors' scales. A scale that something else reads stays.
    """
    found = {read.name: read for read in _Finder(coupling).reads()}
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
        new[stored.holder] = stored.holding(contents[read.name] if read.name in contents else stored.reals(), growth)
        if read.name in grown and stored.grid:
            scales = (stored.grid.scales * growth).astype(stored.grid.scales.dtype)
            new |= dict.fromkeys(stored.grid.names, scales)
    return new


def _constant(tensor: ir.TensorProtocol | None = None) -> ir.Node:
    """Returns a Constant node; one that stands for nothing where no tensor is given."""
    return ir.node("Constant", [], attributes={"value": ir.tensor(0.0) if tensor is None else tensor})


def _put(nodes: list[ir.Node], number: int, new: ir.Node) -> None:
    """Puts a node, which makes a value of the same name, in the place of another one."""
    old = nodes[number]
    assert old.graph is not None
    name, made = old.outputs[0].name, new.outputs[0]
    new.name = old.name
    old.outputs[0].replace_all_uses_with(made, replace_graph_outputs=True)
    old.outputs[0].name, made.name = None, name
    old.graph.insert_before(old, new)
    old.graph.remove(old, safe=True)
    nodes[number] = new


class _Finder:
    """The weights of a graph that are read otherwise than they are held."""

    def __init__(self, coupling: Coupling) -> None:
        self.nodes, self.trace = coupling.nodes, coupling.trace
        self.number = {node: k for k, node in enumerate(coupling.nodes)}
        self.tensors = constants(coupling.model.graph)
        self.readers: dict[str | None, list[tuple[int, int]]] = {
            v.name: [(-1, -1)] for v in coupling.model.graph.outputs
        }
        for k, node in enumerate(self.nodes):
            read = [(v.name, slot) for slot, v in enumerate(node.inputs) if v is not None]
            for name, slot in [*read, *((name, -1) for g in subgraphs(node) for name in captured(g))]:
                self.readers.setdefault(name, []).append((k, slot))

    def reads(self) -> Iterator[_Read]:
        """Yields them where they are read."""
        for node in self.nodes:
            read = None
            if node.op_type in REAL:
                read = self._dynamic(node)
            elif node.op_type == "DequantizeLinear" or node.op_type in LAYING:
                read = self._made(node)
            if read is not None:
                yield read

    def copies(self, taken: Container[int]) -> Iterator[tuple[int, str, tuple[tuple[int, int], ...]]]:
        """Yields copies of constants: number of the Identity, the constant's name, and where the copy is read.

        Args:
            taken: numbers of nodes that belong to what `reads` yields.
        """
        sources = {name: name for name in self.tensors}
        for k, node in enumerate(self.nodes):
            read, name = _given(node, 0), str(node.outputs[0].name)
            source = sources.get(str(read.name)) if read is not None and node.op_type == "Identity" else None
            places = self.readers.get(name, [])
            if source is None or k in taken or self.trace.dtypes[name].kind != "f" or any(s < 0 for _, s in places):
                continue
            sources[name] = source
            yield k, source, tuple((n, s) for n, s in places if self.nodes[n].op_type != "Identity")

    def _made(self, last: ir.Node) -> _Read | None:
        """Returns the weight of which this node and those before it make what nodes of other kinds read."""
        name = str(last.outputs[0].name)
        places = tuple(self.readers.get(name, ()))
        if not places or any(slot < 0 or self.nodes[node].op_type in MAKING for node, slot in places):
            return None
        way = [last]
        while (before := _maker(way[-1], 0)) is not None and before.op_type != "Constant":
            if before.op_type not in MAKING or self._only(before) is None:
                return None
            way.append(before)
        stored = None if all(node.op_type == "Identity" for node in way) else self._along(way[::-1])
        if stored is None:
            return None
        around = tuple(self.number[node] for node in way)
        return _Read(name, places, self.trace.dtypes[name], self.trace.shapes[name][0], stored, around)

    def _dynamic(self, node: ir.Node) -> _Read | None:
        """Returns the weight of a product with what is quantized by its own range, if both scales are put on it."""
        start, cast = _maker(node, 0), self._reader(node)
        last = self._reader(cast) if cast is not None and cast.op_type == "Cast" else None
        if start is None or start.op_type != "DynamicQuantizeLinear" or cast is None or last is None:
            return None
        scaling = next((v.producer() for v in last.inputs if v is not None and v.producer() is not cast), None)
        if scaling is None or {last.op_type, scaling.op_type} != {"Mul"} or self._reader(scaling) is not last:
            return None
        own = [v for v in scaling.inputs if v is not start.outputs[1]]
        if len(own) != 1 or _given(node, 2) is not start.outputs[2]:
            return None
        value, grid = self._constant(_given(node, 1)), self._grid(node, own, [_given(node, 3)], simulated=False)
        if value is None or grid is None or (grid.scales.size > 1 and node.op_type != "MatMulInteger"):
            return None
        k, name = self.number[node], str(value.name)
        stored = Stored(name, self.tensors[name].numpy(), (), grid)
        product = _Product(self.number[cast], self.number[last])
        around = (k, self.number[scaling])
        return _Read(f"{name}/real", ((k, 1),), grid.scales.dtype, stored.held.shape, stored, around, product)

    def _along(self, way: list[ir.Node]) -> Stored | None:
        """Returns the constant that these nodes work on, one after the other; None where it can't be told back."""
        value = self._constant(way[0].inputs[0])
        before: list[Step] = []
        after: list[Step] = []
        grid: Grid | None = None
        left = list(way)
        while left and value is not None:
            steps = [left.pop(0)]
            if steps[0].op_type in LAYING:
                step = self._step(steps[0])
                if step is None:
                    return None
                (after if grid else before).append(step)
                continue
            if steps[0].op_type == "QuantizeLinear" and left:
                steps.append(left.pop(0))
            if grid is not None or steps[-1].op_type != "DequantizeLinear":
                return None
            scales, points = [x.inputs[1] for x in steps], [_given(x, 2) for x in steps]
            grid = self._grid(steps[-1], scales, points, simulated=len(steps) > 1)
            if grid is None:
                return None
        if value is None:
            return None
        held = self.tensors[str(value.name)].numpy()
        if (held.dtype.kind == "f") == (grid is not None and not grid.simulated):
            return None
        return Stored(str(value.name), held, before, grid, after)

    def _step(self, node: ir.Node) -> Step | None:
        """Returns what a node does to a constant, None where that depends on anything else."""
        read, made = (str(v.name) for v in (node.inputs[0], node.outputs[0]) if v is not None)
        if read not in self.trace.shapes or made not in self.trace.static:
            return None
        (old, again), (new, anew) = self.trace.shapes[read], self.trace.shapes[made]
        if old != again or new != anew:
            return None
        if node.op_type == "Transpose":
            given = node.attributes.get("perm")
            return Turned(tuple(given.as_ints()) if given is not None else tuple(range(len(old)))[::-1])
        if node.op_type == "Cast":
            types = self.trace.dtypes[read], self.trace.dtypes[made]
            return Typed(*types) if {t.kind for t in types} == {"f"} else None
        return Shaped(old, new)

    def _grid(
        self, step: ir.Node, scales: list[ir.Value | None], points: list[ir.Value | None], *, simulated: bool
    ) -> Grid | None:
        """Returns the integers that scales and zero points tell of; None for blocks, and for fewer than 8 bits."""
        read = [v for v in (*scales, *points) if v is not None]
        if None in scales or any(v.name not in self.tensors for v in read):
            return None
        held = [self.tensors[str(v.name)].numpy() for v in read]
        given, zeros = held[: len(scales)], held[len(scales) :]
        value = step.inputs[0] if step.op_type == "DequantizeLinear" else step.inputs[1]
        dtype = self.trace.dtypes[str(value.name)] if value is not None else np.dtype(np.uint8)
        alike = all(np.array_equal(given[0], x) for x in given) and all(np.array_equal(zeros[0], x) for x in zeros)
        if not alike or given[0].ndim > 1 or not (given[0] > 0).all() or dtype.name not in WHOLE_BYTES:
            return None
        names = Counter(str(v.name) for v in scales if v is not None)
        owned = all(len(self.readers[name]) == count for name, count in names.items())
        point = zeros[0] if zeros else np.zeros(())
        return Grid(frozenset(names), given[0], point, dtype, step, owned, simulated)

    def _constant(self, value: ir.Value | None) -> ir.Value | None:
        """Returns a constant that one node reads; None for anything else."""
        mine = value is not None and value.name in self.tensors and len(self.readers[value.name]) == 1
        return value if mine else None

    def _only(self, node: ir.Node) -> tuple[int, int] | None:
        """Returns the node and the input that alone read a node's output; None where there are more, or others."""
        uses = self.readers.get(node.outputs[0].name, [])
        return uses[0] if len(uses) == 1 and uses[0][1] >= 0 else None

    def _reader(self, node: ir.Node) -> ir.Node | None:
        use = self._only(node)
        return None if use is None else self.nodes[use[0]]


def _given(node: ir.Node, slot: int) -> ir.Value | None:
    return node.inputs[slot] if slot < len(node.inputs) else None


def _maker(node: ir.Node, slot: int) -> ir.Node | None:
    value = _given(node, slot)
    return None if value is None else value.producer()
