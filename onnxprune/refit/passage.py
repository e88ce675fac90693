"""Products with numbers that every sample has of its own, on the way from layer to layer: attention's values, gates.

What a layer makes goes through such a product as through a linear map: moved to where it is multiplied, and moved from
there to where the next layer reads it. Which numbers go where is told by sending their places along.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from onnxprune.engine.coupling import Coupling
from onnxprune.engine.frontier import Frontier, inputs_of
from onnxprune.engine.labels import Array
from onnxprune.engine.layers import Layer
from onnxprune.graph.runtime import open_session, run
from onnxprune.ops.linear import LinearConv, LinearProduct
from onnxprune.refit.moments import Bools
from onnxprune.refit.moves import MOVES, followed_back, made_by, moving

__all__ = ["Passage", "Passed", "find_passages"]

MOVING = MOVES - {"Dropout"} | {"Expand", "Tile"}  # numbers of any type

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Passage:
    """A product between two layers.

    Attributes:
        index: the node.
        kind: its operator, MatMul or Mul.
        slot: which of its inputs is what the first layer has made.
        before: nodes on the way to the product, by number.
        behind: nodes on the way from it to the second layer.
        start: what the first layer makes, with its bias, and what pointwise nodes behind it make of that.
        end: what the second layer reads.
        reaches: (g, o) which outputs of the first layer get to the second, and nowhere else.
    """

    index: int
    kind: str
    slot: int
    before: tuple[int, ...]
    behind: tuple[int, ...]
    start: str
    end: str
    reaches: Bools

    def beside(self, coupling: Coupling) -> str:
        """Returns the value that is multiplied with what the first layer has made."""
        return _read(coupling, self.index, 1 - self.slot)

    def ways(self, seen: Frontier) -> tuple[Way, Way]:
        """Returns the way to the product and the one from there."""
        made = str(seen.nodes[self.index].outputs[0].name)
        into = _read(seen.coupling, self.index, self.slot)
        return Way(seen, self.before, self.start, into), Way(seen, self.behind, made, self.end)

    def of(self, ways: tuple[Way, Way], values: Mapping[str, np.ndarray], by: np.ndarray, shape: Shape) -> Passed:
        """Returns what it does to a batch.

        Args:
            ways: there and back.
            values: of the batch.
            by: what is multiplied with what the first layer has made.
            shape: of what that makes.
        """
        into = ways[0].places(shape, values)
        product = _shape(self.kind, by, into, self.slot)
        return Passed(self.kind, by, into, ways[1].places(product, values), product, self.slot)


@dataclass(frozen=True, eq=False)
class Passed:
    """What a product does to the numbers of one batch.

    Attributes:
        kind: of the node.
        by: what they are multiplied with.
        into: which number at the start each is that is multiplied.
        out: which number of the product each is that the second layer reads.
        product: its shape.
        slot: which input of the product they are.
    """

    kind: str
    by: np.ndarray
    into: Array
    out: Array
    product: Shape
    slot: int

    def __call__(self, y: np.ndarray) -> np.ndarray:
        """Returns what the second layer reads where the start is this."""
        return self._times(self.by, y.reshape(-1)[self.into]).reshape(-1)[self.out]

    def back(self, slope: np.ndarray, shape: Shape) -> np.ndarray:
        """Returns the slope along the start, of this shape, for one along what the second layer reads."""
        turned = self.by.swapaxes(-1, -2) if self.kind == "MatMul" else self.by
        along = self._times(turned, _sums(self.out, slope, self.product))
        along = along.sum(axis=tuple(range(along.ndim - self.into.ndim)))
        repeated = tuple(k for k, n in enumerate(self.into.shape) if n != along.shape[k])
        return _sums(self.into, along.sum(axis=repeated, keepdims=True), shape)

    def mixtures(self, x: np.ndarray, row: Array, most: int, rng: np.random.Generator) -> np.ndarray:
        """Returns (n, k): about so many of the mixtures that the first layer might read instead, as A (x w) = (A x) w.

        Args:
            x: (rows, k) that it reads.
            row: at each place of the start the row that it is made of.
            most: mixtures.
            rng: draws them.
        """
        into, by = (self.into, self.by) if self.slot else (self.into.swapaxes(-1, -2), self.by.swapaxes(-1, -2))
        apart = np.broadcast_shapes(into.shape[:-2], by.shape[:-2])
        rows = np.broadcast_to(row.reshape(-1)[into[..., 0]], (*apart, into.shape[-2])).reshape(-1, into.shape[-2])
        by = np.broadcast_to(by, (*apart, *by.shape[-2:])).reshape(-1, *by.shape[-2:])
        drawn = rng.choice(len(by), min(len(by), -(-most // by.shape[1])), replace=False)
        found: np.ndarray = (by[drawn] @ x[rows[drawn]]).reshape(-1, x.shape[1])
        return found

    def counted(self) -> Passed:
        """Returns what passes back how much a change counts: as much as at a mixture, or by the square of a factor."""
        if self.kind == "Mul":
            return replace(self, by=np.square(self.by))
        return replace(self, by=np.broadcast_to(np.float32(1 / self.product[-2 if self.slot else -1]), self.by.shape))

    def _times(self, by: np.ndarray, x: np.ndarray) -> np.ndarray:
        left, right = (by, x) if self.slot else (x, by)
        found: np.ndarray = left @ right if self.kind == "MatMul" else left * right
        return found


def _shape(kind: str, by: np.ndarray, into: Array, slot: int) -> Shape:
    """Returns the shape of a product."""
    if kind == "Mul":
        return np.broadcast_shapes(by.shape, into.shape)
    left, right = (by.shape, into.shape) if slot else (into.shape, by.shape)
    return *np.broadcast_shapes(left[:-2], right[:-2]), left[-2], right[-1]


def _sums(places: Array, x: np.ndarray, shape: Shape) -> np.ndarray:
    """Returns an array of this shape with the sum of all numbers that belong at each of these flat places."""
    found = np.bincount(places.reshape(-1), x.reshape(-1), int(np.prod(shape)))
    return found.astype(np.float32).reshape(shape)


class Way:
    """Nodes that only move numbers, or repeat them."""

    def __init__(self, frontier: Frontier, nodes: Sequence[int], start: str, end: str) -> None:
        made = {str(v.name) for k in nodes for v in frontier.nodes[k].outputs}
        read = dict.fromkeys(name for k in nodes for name in inputs_of(frontier.nodes[k]))
        self.asks = [n for n in read if n not in made and n not in frontier.tensors and n != start]
        self._frontier, self._nodes, self._start, self._end = frontier, nodes, start, end
        self._known: dict[tuple[Shape, tuple[bytes, ...]], Array] = {}

    def places(self, shape: Shape, values: Mapping[str, np.ndarray]) -> Array:
        """Returns for each number at the end which it was at the start, where they have this shape.

        Args:
            shape: of the value at the start.
            values: what else is asked for on the way.
        """
        key = tuple(shape), tuple(values[name].tobytes() for name in self.asks)
        if key not in self._known:
            numbers = np.arange(np.prod(shape)).reshape(shape)
            if self._nodes:
                feeds = {self._start: numbers, **{name: values[name] for name in self.asks}}
                (numbers,) = run(self._session, [self._end], feeds)
            self._known[key] = numbers
        return self._known[key]

    @cached_property
    def _session(self) -> ort.InferenceSession:
        """Runs the nodes on whole numbers."""
        segment = self._frontier.segment(self._nodes, [self._start, *self.asks], [self._end])
        for value in (segment.graph.input[0], segment.graph.output[0]):
            value.type.tensor_type.elem_type = onnx.TensorProto.INT64
        return open_session(segment, self._frontier.providers)


# ---------------------------------------------------------------- where there are such products
def find_passages(
    still: Frontier, layers: Mapping[int, Layer], behind: Mapping[int, Sequence[int]]
) -> list[tuple[Layer, Layer, Passage]]:
    """Returns the products of what one layer makes that another one reads, each with both layers.

    Args:
        still: the network, of which nothing need be run.
        layers: that may stand before a product or behind it, by number.
        behind: the pointwise nodes behind each.
    """
    coupling = still.coupling
    firsts = {_start(coupling, layer, behind[k]): layer for k, layer in layers.items() if layer.other is None}

    def through(node: ir.Node) -> int | None:
        return 0 if _moves(coupling, node) else None

    found = []
    for last in layers.values():
        product, path = followed_back(coupling, last.input, (), through)
        index = coupling.makers.get(product, -1)
        if index < 0 or not _multiplies(coupling, index) or not _is_alone(coupling, product, path, last):
            continue
        for slot in (0, 1):
            start, before = followed_back(coupling, _read(coupling, index, slot), firsts, through)
            first = firsts.get(start)
            if first is None or first is last:
                continue
            reaches = _Spreading(still, first, start, (index, slot)).reached(before)
            if reaches is not None:
                kind = coupling.nodes[index].op_type
                found.append((first, last, Passage(index, kind, slot, before, path, start, last.input, reaches)))
    return found


def _multiplies(coupling: Coupling, index: int) -> bool:
    """Returns whether a node multiplies two values that hang on the data, neither of them a vector in a MatMul."""
    node, trace = coupling.nodes[index], coupling.trace
    names = [_read(coupling, index, slot) for slot in range(len(node.inputs))]
    if node.op_type not in ("MatMul", "Mul") or any(name in trace.static for name in names):
        return False
    return node.op_type == "Mul" or all(len(trace.shapes[name][0]) > 1 for name in names)


def _read(coupling: Coupling, index: int, slot: int) -> str:
    v = coupling.nodes[index].inputs[slot]
    return "" if v is None else str(v.name)


def _start(coupling: Coupling, layer: Layer, nodes: Sequence[int]) -> str:
    """Returns what the pointwise nodes behind a layer make, or what it makes itself, with its bias."""
    return str(coupling.nodes[nodes[-1]].outputs[0].name) if nodes else made_by(coupling, layer)


def _moves(coupling: Coupling, node: ir.Node) -> bool:
    """Returns whether a node only moves or repeats numbers of its first input."""
    return node.op_type in MOVING and node.domain in ("", "ai.onnx") and moving(coupling, node) == [0]


def _readers(coupling: Coupling, name: str) -> list[tuple[int, int]]:
    """Returns where nodes read a value's numbers, and not just its shape."""
    static = coupling.trace.static
    places = coupling.readers.get(name, [])
    return [at for at in places if any(v.name not in static for v in coupling.nodes[at[0]].outputs)]


def _is_alone(coupling: Coupling, product: str, behind: Sequence[int], last: Layer) -> bool:
    """Returns whether nothing but the next node on the way to a layer reads a product, or what it is moved to."""
    names = [product, *(_read(coupling, k, 0) for k in behind[1:]), *([last.input] if behind else [])]
    nexts = [(k, 0) for k in (*behind, last.index)]
    return not coupling.read_elsewhere & set(names) and all(
        _readers(coupling, name) == [at] for name, at in zip(names, nexts, strict=True)
    )


class _Spreading:
    """Where a layer's outputs get to, in the first run that was traced."""

    def __init__(self, still: Frontier, layer: Layer, start: str, goal: tuple[int, int]) -> None:
        self.still, self.coupling, self.layer, self.start, self.goal = still, still.coupling, layer, start, goal
        self.shape = self.coupling.trace.shapes[start][0]

    def reached(self, path: tuple[int, ...]) -> Bools | None:
        """Returns (g, o): the outputs that get to the goal on a path; None where one of them gets elsewhere, too."""
        got = self._outputs(path, _read(self.coupling, *self.goal))
        return got if got is not None and self._stay(got, (), self.start) else None

    def _outputs(self, path: tuple[int, ...], name: str) -> Bools | None:
        """Returns (g, o): the outputs that are in a value at the end of a path; None where that can't be told."""
        way = Way(self.still, path, self.start, name)
        known = self.coupling.trace.values
        if not known.keys() >= set(way.asks):
            return None
        values = {asked: known[asked][0] for asked in way.asks}
        there = np.zeros(self.shape, bool)
        there.reshape(-1)[way.places(self.shape, values)] = True
        view = self.layer.view
        assert isinstance(view, LinearConv | LinearProduct)
        found: Bools = np.any(view.stacked(there), axis=(0, 3))
        return found

    def _stay(self, got: Bools, path: tuple[int, ...], name: str) -> bool:
        """Returns whether none of some outputs gets from a value at the end of a path to anything but the goal."""
        here = self._outputs(path, name)
        if here is not None and not (here & got).any():
            return True
        if here is None or name in self.coupling.read_elsewhere:
            return False
        for place in _readers(self.coupling, name):
            node = self.coupling.nodes[place[0]]
            if place == self.goal:
                continue
            if not _moves(self.coupling, node):
                return False
            if not all(self._stay(got, (*path, place[0]), str(v.name)) for v in node.outputs if v.name):
                return False
        return True
