"""The weights of a graph that are read otherwise than they are held: where, and by which way.

Nodes turn, reshape, copy or cast them first, as exporters write and as local functions get theirs, or make real numbers
of integers: DequantizeLinear, perhaps behind QuantizeLinear (simulated rounding), or MatMulInteger and ConvInteger
behind DynamicQuantizeLinear, with a product with both scales behind them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from onnxprune.engine.assembled import Assembled, assemble
from onnxprune.engine.coupling import Coupling, Place
from onnxprune.engine.stored import WIDE, Grid, Shaped, Step, Stored, Turned, Typed
from onnxprune.graph.constants import constants

__all__ = ["CELL", "ROUNDING", "Copy", "Finder", "Product", "Read"]

BIASES = frozenset({2, 6, 8})  # where Conv, ConvTranspose and Gemm, QGemm and QLinearConv read theirs
LAYING = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Cast"})
JOINING = frozenset({"Concat", "Slice", "Split", "Gather"})
MAKING = LAYING | {"DequantizeLinear", "QuantizeLinear"}
INTEGER = frozenset({"MatMulInteger", "ConvInteger"})
WHOLE_BYTES = frozenset({"int8", "uint8", "int16", "uint16", "int32"})  # a fit rounded to fewer bits is worth little


class Rounding(NamedTuple):
    """An operator that takes integers and rounds what it makes to integers.

    Attributes:
        real: what it does to the real numbers between.
        bias: the input that is its bias.
        scale: the input that is the scale of what it makes; its zero point is the next one.
    """

    real: str
    bias: int | None
    scale: int


CELL = "DynamicQuantizeLSTM"  # it quantizes what it reads; rows of LSTM's weights are columns of its own
ROUNDING = {
    "QLinearConv": Rounding("Conv", 8, 6),
    "QLinearMatMul": Rounding("MatMul", None, 6),
    "QGemm": Rounding("Gemm", 6, 7),
}


@dataclass(frozen=True)
class Product:
    """A dynamically quantized product.

    Attributes:
        cast: the number of the node that makes real numbers of its sums.
        last: the number of the node that puts the scales on them.
    """

    cast: int
    last: int


@dataclass(frozen=True, eq=False)
class Read:
    """A stored weight where it is read.

    Attributes:
        name: of the constant in the twin.
        places: the nodes that read it, by number, and the input at each.
        dtype: the type it is read in.
        shape: the shape in which it is read.
        stored: the weight.
        around: numbers of the nodes that make of it what is read, the last one first.
        product: set where a dynamically quantized product reads it.
        inside: a node reads it that quantizes by itself, what it reads or what it makes.
    """

    name: str
    places: tuple[Place, ...]
    dtype: np.dtype
    shape: tuple[int, ...]
    stored: Stored | Assembled
    around: tuple[int, ...]
    product: Product | None = None
    inside: bool = False

    @property
    def is_bias(self) -> bool:
        """Whether it is added to what nodes make of their factors."""
        return {slot for _, slot in self.places} <= BIASES and sum(n > 1 for n in self.shape) <= 1

    @property
    def readers(self) -> tuple[int, ...]:
        """The numbers of the nodes that read it."""
        return tuple(node for node, _ in self.places)


@dataclass(frozen=True)
class Copy:
    """An Identity of a constant.

    Attributes:
        node: its number.
        source: the constant's name.
        places: where the copy is read, but for further copies.
    """

    node: int
    source: str
    places: tuple[Place, ...]


class Finder:
    """The weights of a graph that are read otherwise than they are held."""

    def __init__(self, coupling: Coupling) -> None:
        self.model, self.nodes, self.trace = coupling.model, coupling.nodes, coupling.trace
        self.number = {node: k for k, node in enumerate(coupling.nodes)}
        self.tensors = constants(coupling.model.graph)
        self.readers = {name: list(places) for name, places in coupling.readers.items()}
        for name in coupling.read_elsewhere:
            self.readers.setdefault(name, []).append((-1, -1))

    def reads(self) -> Iterator[Read]:
        """Yields them where they are read."""
        for node in self.nodes:
            read = None
            if node.op_type in ROUNDING:
                yield from self._inside(node)
            elif node.op_type == CELL:
                yield from self._cell(node)
            elif node.op_type in INTEGER:
                read = self._dynamic(node)
            elif node.op_type == "DequantizeLinear" or node.op_type in LAYING | JOINING:
                read = self._made(node)
            if read is not None:
                yield read

    def copies(self, taken: Container[int]) -> Iterator[Copy]:
        """Yields the copies of constants, in node order.

        Args:
            taken: numbers of nodes that belong to what `reads` yields.
        """
        sources = {name: name for name in self.tensors}
        for k, node in enumerate(self.nodes):
            read, name = _given(node, 0), str(node.outputs[0].name)
            source = sources.get(str(read.name)) if read is not None and node.op_type == "Identity" else None
            places = self.readers.get(name, [])
            if source is None or k in taken or not _is_real(self.trace.dtypes[name]) or any(s < 0 for _, s in places):
                continue
            sources[name] = source
            if places:
                yield Copy(k, source, tuple((n, s) for n, s in places if self.nodes[n].op_type != "Identity"))

    def _made(self, last: ir.Node) -> Read | None:
        """Returns the weight of which this node and those before it make what nodes of other kinds read."""
        name = str(last.outputs[0].name)
        places = tuple(self.readers.get(name, ()))
        kinds = {self.nodes[node].op_type for node, _ in places}
        if not places or any(slot < 0 for _, slot in places) or kinds & (MAKING | JOINING) or len(last.outputs) > 1:
            return None
        stored: Stored | Assembled | None = None
        if (way := self._way(last)) is not None:
            stored = self._along(way[::-1]) if way else None
        elif _is_real(self.trace.dtypes[name]) and (way := self._tree(last)) is not None:
            stored = self._together(way)
        if way is None or stored is None:
            return None
        around = tuple(self.number[node] for node in way)
        return Read(name, places, self.trace.dtypes[name], self.trace.shapes[name][0], stored, around)

    def _way(self, last: ir.Node) -> list[ir.Node] | None:
        """Returns the nodes that work on one constant in turn, the last one first; an empty list for mere copies."""
        way = list[ir.Node]()
        before: ir.Node | None = last
        while before is not None and before.op_type != "Constant":
            if before.op_type not in MAKING or (way and self._only(before) is None):
                return None
            way.append(before)
            before = _maker(before, 0)
        return [] if all(node.op_type == "Identity" for node in way) else way

    def _tree(self, last: ir.Node) -> list[ir.Node] | None:
        """Returns the nodes that move elements of constants, read by no other node, the last one first."""
        found, open_ = {last}, [last]
        while open_:
            node = open_.pop()
            if node.op_type not in LAYING | JOINING or node.op_type == "Cast":
                return None
            for v in node.inputs if node.op_type == "Concat" else node.inputs[:1]:
                before = None if v is None else v.producer()
                if before is not None and before.op_type != "Constant" and before not in found:
                    found.add(before)
                    open_.append(before)
        inner = {str(v.name) for node in found if node is not last for v in node.outputs}
        if any(self._is_read_beside(name, found) for name in inner):
            return None
        return sorted(found, key=self.number.__getitem__, reverse=True)

    def _together(self, way: list[ir.Node]) -> Assembled | None:
        """Returns the constants that such nodes put together; None where something else reads one of them."""
        inner = {v.name for node in way for v in node.outputs}
        read = dict.fromkeys(str(v.name) for node in way for v in node.inputs if v is not None and v.name not in inner)
        if not all(name in self.tensors for name in read):
            return None
        given = {name: self.tensors[name] for name in read}
        parts = [name for name in given if _is_real(self.trace.dtypes[name])]
        if not parts or any(self._is_read_beside(name, way) for name in parts):
            return None
        return assemble(self.model, way[::-1], str(way[0].outputs[0].name), given, parts)

    def _dynamic(self, node: ir.Node) -> Read | None:
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
        value = self._constant(_given(node, 1))
        grid = self._grid(node, _given(node, 1), own, [_given(node, 3)], simulated=False)
        if value is None or grid is None or (grid.scales.size > 1 and node.op_type != "MatMulInteger"):
            return None
        k, name = self.number[node], str(value.name)
        stored = Stored(name, self.tensors[name].numpy(), (), grid)
        product = Product(self.number[cast], self.number[last])
        around = (k, self.number[scaling])
        return Read(f"{name}/real", ((k, 1),), grid.scales.dtype, stored.held.shape, stored, around, product)

    def _inside(self, node: ir.Node) -> Iterator[Read]:
        """Yields the weight of a node that quantizes by itself, and its bias, whose scale both factors give."""
        k, slot = self.number[node], ROUNDING[node.op_type].bias
        weight, factor = self._constant(_given(node, 3)), _given(node, 1)
        scale = None if factor is None else self.tensors.get(str(factor.name))
        grid = self._grid(node, weight, [_given(node, 4)], [_given(node, 5)], simulated=False)
        if weight is None or scale is None or scale.size != 1 or grid is None:
            return
        added = None if slot is None else _given(node, slot)
        bias = self._constant(added)
        if added is not None and bias is None:
            return
        scales = np.asarray(scale.numpy().reshape(()) * grid.scales, grid.scales.dtype)
        summed = Grid(frozenset(), scales, np.zeros(()), WIDE, node, owned=True, simulated=False)
        for value, at, numbers in ((weight, 3, grid), (bias, slot, summed)):
            if value is not None and at is not None:
                stored = Stored(str(value.name), self.tensors[str(value.name)].numpy(), (), numbers)
                name, dtype = f"{value.name}/real", grid.scales.dtype
                yield Read(name, ((k, at),), dtype, stored.held.shape, stored, (k,), inside=True)

    def _cell(self, node: ir.Node) -> Iterator[Read]:
        """Yields the two weights of a dynamically quantized cell, as LSTM reads them, if both can be written."""
        k, found = self.number[node], list[Read]()
        for slot, numbers in ((1, 8), (2, 10)):
            value, (scale, point) = self._constant(_given(node, slot)), (_given(node, numbers + j) for j in (0, 1))
            given = [None if v is None else self.tensors.get(str(v.name)) for v in (value, scale, point)]
            if value is None or scale is None or any(t is None for t in given):
                return
            held, scales, points = (t.numpy() for t in given if t is not None)
            owned = len(self.readers[str(scale.name)]) == 1
            grid = Grid(frozenset({str(scale.name)}), scales, points, held.dtype, node, owned, simulated=False)
            stored = Stored(str(value.name), held, (), grid, [Turned((0, 2, 1))])
            shape = (held.shape[0], held.shape[2], held.shape[1])
            found.append(Read(f"{value.name}/real", ((k, slot),), scales.dtype, shape, stored, (k,), inside=True))
        yield from found

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
            grid = self._grid(steps[-1], steps[-1].inputs[0], scales, points, simulated=len(steps) > 1)
            if grid is None:
                return None
        if value is None:
            return None
        held = self.tensors[str(value.name)].numpy()
        if _is_real(held.dtype) == (grid is not None and not grid.simulated):
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
            return Typed(*types) if all(map(_is_real, types)) else None
        return Shaped(old, new)

    def _grid(
        self,
        step: ir.Node,
        value: ir.Value | None,
        scales: list[ir.Value | None],
        points: list[ir.Value | None],
        *,
        simulated: bool,
    ) -> Grid | None:
        """Returns the integers that scales and zero points tell of; None for blocks, and for fewer than 8 bits."""
        read = [v for v in (*scales, *points) if v is not None]
        if None in scales or any(v.name not in self.tensors for v in read):
            return None
        held = [self.tensors[str(v.name)].numpy() for v in read]
        given, zeros = held[: len(scales)], held[len(scales) :]
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
        mine = value is not None and value.name in self.tensors and len(self.readers[str(value.name)]) == 1
        return value if mine else None

    def _is_read_beside(self, name: str, nodes: Container[ir.Node]) -> bool:
        """Returns whether anything but these nodes reads a value: other nodes, subgraphs, or whoever runs the model."""
        return any(slot < 0 or self.nodes[k] not in nodes for k, slot in self.readers.get(name, []))

    def _only(self, node: ir.Node) -> Place | None:
        """Returns the node and the input that alone read a node's output; None where there are more, or others."""
        uses = self.readers.get(str(node.outputs[0].name), [])
        return uses[0] if len(uses) == 1 and uses[0][1] >= 0 else None

    def _reader(self, node: ir.Node) -> ir.Node | None:
        use = self._only(node)
        return None if use is None else self.nodes[use[0]]


def _is_real(dtype: np.dtype) -> bool:
    return dtype.kind == "f" or dtype.name == "bfloat16"


def _given(node: ir.Node, slot: int) -> ir.Value | None:
    return node.inputs[slot] if slot < len(node.inputs) else None


def _maker(node: ir.Node, slot: int) -> ir.Node | None:
    value = _given(node, slot)
    return None if value is None else value.producer()
