"""Layers that read each other alone, with pointwise nodes or a product between them, and how numbers go through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.engine.activation import activation_behind
from onnxprune.engine.coupling import Coupling
from onnxprune.engine.frontier import Frontier, inputs_of
from onnxprune.engine.layers import Layer
from onnxprune.ops.linear import LinearConv, LinearProduct, Places
from onnxprune.refit.activated import Pointwise, pointwise
from onnxprune.refit.moments import Bools, Floats
from onnxprune.refit.passage import Passage, find_passages

__all__ = ["Chain", "Link", "find_chains"]

MOST_LAYERS = 3
NUDGE = 0.05  # of a layer's outputs, by which slopes are told: more than the steps of rounding between layers


@dataclass(frozen=True, eq=False)
class Chain:
    """Layers that read each other alone.

    Attributes:
        layers: in order.
        nodes: the pointwise nodes behind each, by number.
        between: nodes that make what the last layer reads, by number.
        asks: values they read, and others that are looked at.
        passage: the product between two layers, None where there are only pointwise nodes.
    """

    layers: tuple[Layer, ...]
    nodes: tuple[tuple[int, ...], ...]
    between: tuple[int, ...]
    asks: tuple[str, ...]
    passage: Passage | None = None

    def links(self, keep: Sequence[Bools], rows: Sequence[Bools], truth: Frontier) -> list[Link]:
        """Returns the layers as links.

        Args:
            keep: (g, f) of each layer, whether a feature stays.
            rows: (g, o) of each layer, whether an output stays.
            truth: the dense network.
        """
        free = list(rows)
        if self.passage is not None:
            free[0] = rows[0] & self.passage.reaches
        return [Link.of(*of, truth) for of in zip(self.layers, self.nodes, keep, free, strict=True)]


def find_chains(still: Frontier, layers: Sequence[Layer]) -> list[Chain]:
    """Returns the longest chains of layers, in pieces of no more than `MOST_LAYERS`.

    Args:
        still: the network, of which nothing need be run.
        layers: its layers.
    """
    coupling = still.coupling
    able = {layer.index: layer for layer in layers if _is_able(coupling, layer)}
    behind = {k: activation_behind(coupling, layer) for k, layer in able.items()}
    next_ = {k: j for k, layer in able.items() if (j := _follower(coupling, layer, behind[k], able)) is not None}
    found = list[Chain]()
    for first in sorted(set(next_) - set(next_.values())):
        run = [first]
        while run[-1] in next_:
            run.append(next_[run[-1]])
        for piece in np.array_split(run, -(-len(run) // MOST_LAYERS)):
            chain = tuple(able[k] for k in piece)
            found.append(Chain(chain, tuple(behind[k] for k in piece), *_behind(still, chain, layers)))
    chained = {layer.index for chain in found for layer in chain.layers}
    alone = {k: layer for k, layer in able.items() if k not in chained}
    for one, other, passage in find_passages(still, alone, behind):
        between, asks = _behind(still, (one, other), layers)
        asks = tuple(dict.fromkeys((*asks, *(name for way in passage.ways(still) for name in way.asks))))
        found.append(Chain((one, other), (behind[one.index], behind[other.index]), between, asks, passage))
    return found


def _behind(
    still: Frontier, chain: Sequence[Layer], layers: Sequence[Layer]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Returns the nodes that make what a chain's last layer reads of what layers read, and what that is."""
    coupling, inner = still.coupling, {layer.index for layer in chain[1:]}
    stops = {layer.index for layer in layers} - inner
    nodes, asks, waiting = set[int](), set[str](), {chain[-1].input}
    while waiting:
        name = waiting.pop()
        k = coupling.makers.get(name)
        if k is None or name in coupling.trace.static:
            asks.add(name)
        elif k not in nodes:
            nodes.add(k)
            (asks if k in stops else waiting).update(inputs_of(coupling.nodes[k]))
    return tuple(sorted(nodes)), tuple(sorted(asks - set(still.tensors)))


def _is_able(coupling: Coupling, layer: Layer) -> bool:
    """Returns whether a layer's weights are its own, and what it makes is linear in them."""
    plain = type(layer.view) in (LinearConv, LinearProduct) and not (layer.direct or layer.recurs)
    return plain and layer.shared == 1 and coupling.trace.dtypes[layer.output].kind == "f"


def _follower(coupling: Coupling, layer: Layer, nodes: Sequence[int], able: Mapping[int, Layer]) -> int | None:
    """Returns the layer that alone reads what the last of these nodes makes."""
    made = str(coupling.nodes[nodes[-1]].outputs[0].name) if nodes else layer.output
    readers = coupling.readers.get(made, [])
    if len(readers) != 1 or made in coupling.read_elsewhere or layer.other is not None:
        return None
    reader = able.get(readers[0][0])
    return reader.index if reader is not None and reader.input == made else None


@dataclass(frozen=True, eq=False)
class Link:
    """One layer of a chain, of which only what stays is looked at.

    Attributes:
        layer: the layer.
        view: how it is linear.
        channels: of its input that are looked at, None for all.
        features: (k,) the same of each group's features.
        outputs: (m,) the same of each group's outputs; what others make counts as zero.
        moves: (g, m, k + 1) which weights may change, the bias last.
        respond: what the nodes behind it do, None where there are none.
    """

    layer: Layer
    view: LinearConv | LinearProduct
    channels: Places | None
    features: Places
    outputs: Places
    moves: Bools
    respond: Pointwise | None

    @staticmethod
    def of(layer: Layer, nodes: Sequence[int], keep: Bools, rows: Bools, truth: Frontier) -> Link:
        """Returns a layer as a link.

        Args:
            layer: the layer.
            nodes: the pointwise nodes behind it.
            keep: (g, f) whether a feature stays.
            rows: (g, o) whether an output may change.
            truth: the dense network.
        """
        view, channels, features = layer.view, None, np.arange(keep.shape[1])
        assert isinstance(view, LinearConv | LinearProduct)
        if len(keep) == 1:
            taps = int(np.prod(view.shape[2:])) if isinstance(view, LinearConv) else 1
            whole = keep[0].reshape(-1, taps).any(axis=1)
            channels, features = np.flatnonzero(whole), np.flatnonzero(np.repeat(whole, taps))
        outputs = np.flatnonzero(rows.any(axis=0))
        weights = np.broadcast_to(keep[:, None, features], (len(rows), len(outputs), len(features)))
        bias = np.full((len(rows), len(outputs), 1), layer.bias is not None)
        moves = np.concatenate([weights, bias], axis=2) & (rows & ~layer.fixed)[:, outputs, None]
        respond = pointwise(layer, nodes, truth) if nodes else None
        return Link(layer, view, channels, features, outputs, moves, respond)

    def taken(self, w: Floats, b: Floats) -> Floats:
        """Returns (g, m, k + 1): weights (g, o, f) and biases (g, o) that are looked at."""
        return np.concatenate([w[:, :, self.features], b[:, :, None]], axis=2)[:, self.outputs]

    def put(self, new: Floats, w: Floats, b: Floats) -> tuple[Floats, Floats]:
        """Returns such weights and biases in full size, the others as they are in `w` and `b`."""
        full, level = w.copy(), b.copy()
        full[:, self.outputs[:, None], self.features], level[:, self.outputs] = new[:, :, :-1], new[:, :, -1]
        return full, level

    def read(self, x: np.ndarray) -> np.ndarray:
        """Returns (n, g, k, places): what the layer reads of its input."""
        return self.view.columns(x if self.channels is None else x.take(self.channels, axis=self._axis))

    def rows(self, columns: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Returns what was read of an input of this shape, and a one, as (rows, k + 1), and the row of each output."""
        count, _, features, places = columns.shape
        read = columns.transpose(0, 3, 1, 2).reshape(count * places, features)
        numbers = np.arange(len(read)).reshape(count, 1, 1, places)
        row = self.view.laid(np.broadcast_to(numbers, (count, *self.layer.rows.shape, places)), shape)
        return np.concatenate([read, np.ones_like(read[:, :1])], axis=1), row

    def spread(self, columns: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Returns the sums, over where it is read, for each number of an input of this shape."""
        if self.channels is None:
            return self.view.spread(columns, shape)
        few, found = list(shape), np.zeros(shape, columns.dtype)
        few[self._axis] = len(self.channels)
        own = self.view.spread(columns, tuple(few))
        np.moveaxis(found, self._axis, 0)[self.channels] = np.moveaxis(own, self._axis, 0)
        return found

    def make(self, w: np.ndarray, columns: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Returns the output, with its bias, for what was read of an input of this shape."""
        return self.laid(w[:, :, :-1] @ columns + w[:, :, -1:], shape)

    def stacked(self, y: np.ndarray) -> np.ndarray:
        """Returns (n, g, m, places): the outputs that are looked at."""
        found = self.view.stacked(y)
        return found if len(self.outputs) == found.shape[2] else found[:, :, self.outputs]

    def laid(self, stacked: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Returns an output that is stacked so, zero elsewhere, as the node makes it of an input of this shape."""
        count, groups, few, places = stacked.shape
        if few == self.layer.rows.shape[1]:
            return self.view.laid(stacked, shape)
        full = np.zeros((count, groups, self.layer.rows.shape[1], places), stacked.dtype)
        full[:, :, self.outputs] = stacked
        return self.view.laid(full, shape)

    def answer(self, made: np.ndarray, other: np.ndarray | None = None) -> np.ndarray:
        """Returns what the nodes behind the layer make of its output, and of the branch that is added."""
        return made if self.respond is None else self.respond(made, other)

    def slope(self, made: np.ndarray, other: np.ndarray | None = None) -> np.ndarray:
        """Returns by how much that changes with the output."""
        if self.respond is None:
            return np.ones_like(made)
        by = np.float32(NUDGE * max(float(np.sqrt(np.square(made).mean())), 1e-12))
        return (self.respond(made + by, other) - self.respond(made - by, other)) / (2 * by)

    @property
    def _axis(self) -> int:
        """The axis of the input that holds channels."""
        return 1 if isinstance(self.view, LinearConv) else -1
