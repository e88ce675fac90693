"""The linear layers of a coupled model: where they stand, what labels they read, and which branch is added to them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from onnxprune.engine.coupling import Coupling, Use
from onnxprune.engine.labels import Array
from onnxprune.graph.constants import constants
from onnxprune.ops import Node, Unsupported, lookup
from onnxprune.ops.linear import Linear, LinearCell, LinearState
from onnxprune.ops.normalization import in_training

PASSING = {"Identity", "Dropout", "QuantizeLinear", "DequantizeLinear"}  # but for rounding


@dataclass(frozen=True, eq=False)
class Layer:
    """A linear node with a constant weight.

    Attributes:
        index: the node's number.
        input: the name of the value it reads.
        output: the name of the value it makes.
        view: its weight, inputs and outputs as matrices.
        use: the weight.
        labels: (g, f) label of each input feature, -1 where it has none.
        rows: (g, o) label of each output, -1 where it has none.
        bias: where a bias of its own can be written: (node, slot, name or None, shape); None where there is no place.
        gain: factor that each output gets behind the node (a BatchNormalization's scale), 1 where there is none.
        other: the branch that is added behind it, and the factors its output gets on the way there.
        fixed: (g, o) outputs whose weights can't be refitted.
        shared: how many nodes read the weight, each of which is a layer of its own.
        inside: it stands in the body of a loop, whose turns read what the turns before have made.
    """

    index: int
    input: str
    output: str
    view: Linear
    use: Use
    labels: Array
    rows: Array
    bias: Bias | None
    gain: npt.NDArray[np.float64]
    other: Branch | None
    fixed: npt.NDArray[np.bool_]
    shared: int = 1
    inside: bool = False

    @property
    def direct(self) -> bool:
        """Whether the old weights tell what is wanted, since the node's output does not."""
        return self.view.direct

    @property
    def is_cell(self) -> bool:
        """Whether the node is a recurrent cell."""
        return isinstance(self.view, LinearCell)

    @property
    def recurs(self) -> bool:
        """Whether the node reads what its own output made of the step before: taken from the dense network."""
        return self.inside or isinstance(self.view, LinearState)


@dataclass(frozen=True)
class Bias:
    """A constant over the outputs that is added behind a linear node, or the empty slot for one.

    Attributes:
        node: where it is read.
        slot: the input.
        name: the constant, None for an empty slot.
        shape: its shape.
        cells: the flat places in it that belong to the layer, None for all.
    """

    node: int
    slot: int
    name: str | None
    shape: tuple[int, ...]
    cells: Array | None = None


@dataclass(frozen=True, eq=False)
class Branch:
    """The value added to a layer's output, which passed `factor` (broadcast against the output) on the way."""

    name: str
    factor: np.ndarray


def find_layers(coupling: Coupling, *, direct: bool = False) -> list[Layer]:
    """Returns the linear nodes whose weight is a float constant, in node order.

    Where several nodes read one, all of them are there or none.

    Args:
        coupling: the coupled model.
        direct: also those whose output is not linear in the weight (fused activations, recurrent cells, which are two).
    """
    found = _Finder(coupling).layers()
    return found if direct else [layer for layer in found if not layer.direct]


class _Finder:
    def __init__(self, coupling: Coupling) -> None:
        self.coupling = coupling
        self.tensors = constants(coupling.model.graph)
        self.outputs = {v.name for v in coupling.model.graph.outputs}
        used = {*coupling.readers, *coupling.read_elsewhere}
        passing = [(k, n.outputs[0].name) for k, n in enumerate(coupling.nodes) if n.op_type == "Identity"]
        idle = {k for k, name in passing if name not in used}
        self.readers = {n: [at for at in places if at[0] not in idle] for n, places in coupling.readers.items()}

    def layers(self) -> list[Layer]:
        found = [layer for index in range(len(self.coupling.nodes)) for layer in self._layers(index)]
        alike: dict[str, list[Layer]] = {}
        for layer in found:
            alike.setdefault(layer.use.name, []).append(layer)
        told = {name: self._together(layers) for name, layers in alike.items()}
        return [told[layer.use.name].pop(0) for layer in found if told[layer.use.name]]

    def _together(self, layers: list[Layer]) -> list[Layer]:
        """Returns the layers that read one weight; none where anything else reads it, or they see it otherwise."""
        first, count = layers[0], len(layers)
        if len(self.readers[first.use.name]) != count or (count > 1 and any(x.is_cell for x in layers)):
            return []
        if any(self._differ(x.labels, first.labels) or self._differ(x.rows, first.rows) for x in layers[1:]):
            return []
        names = {None if x.bias is None else x.bias.name for x in layers}
        bias = next(iter(names))
        whole = bias is not None and len(names) == 1 and len(self.readers[bias]) == count
        if count == 1 and (whole or bias is None):
            return layers
        return [replace(x, shared=count, bias=x.bias if whole else None) for x in layers]

    def _differ(self, a: Array, b: Array) -> bool:
        """Returns whether one of two arrays of labels may lose what the other doesn't, or is another view of it."""
        if a.shape != b.shape:
            return True
        labels = self.coupling.labels
        roots = [np.where(x < 0, -1, labels.find(np.maximum(x, 0))) for x in (a, b)]
        return bool(((roots[0] != roots[1]) & ~(self._stays(a) & self._stays(b))).any())

    def _stays(self, a: Array) -> npt.NDArray[np.bool_]:
        return (a < 0) | (self._frozen[self.coupling.labels.find(np.maximum(a, 0))] >= 0)

    @cached_property
    def _frozen(self) -> Array:
        return self.coupling.labels.frozen_reasons()

    def _layers(self, index: int) -> list[Layer]:
        node = self.coupling.nodes[index]
        home = lookup(node)
        rule = home.linear.rule if home is not None else None
        known = self.coupling.views.get(index)
        try:
            found = rule(Node(node, self.coupling.opset, self.coupling.trace)) if known is None and rule else known
        except Unsupported:
            return []
        views = found if isinstance(found, tuple) else (found,)
        layers = (self._layer(index, view) for view in views if view is not None)
        return [layer for layer in layers if layer is not None]

    def _layer(self, index: int, view: Linear) -> Layer | None:
        node = self.coupling.nodes[index]
        if not self._is_given(index, view.weight) or self._is_static(node.inputs[0]):
            return None
        x, y, weight = node.inputs[0], node.outputs[0], node.inputs[view.weight]
        if x is None or weight is None or not x.name or not y.name or not weight.name:
            return None
        tensor = self.tensors[weight.name]
        if not tensor.dtype.is_floating_point():
            return None
        use = self.coupling.uses_of.get(index, {}).get(view.weight)
        use = use or Use(index, view.weight, weight.name, tuple(tensor.numpy().shape), ())
        matrix = view.matrix(np.empty(use.shape, bool))
        features, rows = self._labels(use, view, matrix.shape)
        if isinstance(view, LinearCell):
            return self._cell(index, view, use, features, rows)
        inside = index in self.coupling.inside
        factor, other = self._behind(index, view)
        outs = matrix.shape[0] * matrix.shape[1]
        gain = np.ones(outs) if factor.size == 1 else np.abs(factor).reshape(-1)
        bias = self._bias(index, view, matrix.shape)
        gain = gain if gain.size == outs else np.ones(outs)
        fixed = np.zeros(matrix.shape[:2], bool)
        return Layer(index, x.name, y.name, view, use, features, rows, bias, gain, other, fixed, inside=inside)

    def _cell(self, index: int, view: LinearCell, use: Use, features: Array, rows: Array) -> Layer:
        """Returns one of the two products of a recurrent cell; each has its half of the bias."""
        node = self.coupling.nodes[index]
        state = isinstance(view, LinearState)
        read = str(getattr(node.outputs[0] if state else node.inputs[0], "name", None))
        directions, outs, _ = use.shape
        fixed = np.zeros((directions, outs), bool)
        if isinstance(view, LinearState) and view.apart:
            fixed[:, outs - outs // view.gates :] = True
        bias = None
        given = node.inputs[3] if len(node.inputs) > 3 else None
        if given is not None and self._is_given(index, 3):
            shape = (directions, 2 * outs)
            cells = np.arange(directions * 2 * outs).reshape(directions, 2, outs)[:, int(state)].reshape(-1)
            bias = Bias(index, 3, str(given.name), shape, cells)
        return Layer(index, read, read, view, use, features, rows, bias, np.ones(directions * outs), None, fixed)

    def _is_given(self, index: int, slot: int) -> bool:
        """Returns whether an input is a constant."""
        inputs = self.coupling.nodes[index].inputs
        v = inputs[slot] if slot < len(inputs) else None
        return v is not None and v.name in self.tensors and v.name not in self.outputs

    def _is_static(self, value: object) -> bool:
        return getattr(value, "name", None) in self.coupling.trace.static

    def _labels(self, use: Use, view: Linear, shape: tuple[int, ...]) -> tuple[Array, Array]:
        """Returns the labels of input features (g, f) and of outputs (g, o)."""
        features, rows = np.full((shape[0], shape[2]), -1), np.full((shape[0], shape[1]), -1)
        for a in use.arrays:
            full = view.matrix(np.broadcast_to(a, use.shape))
            if (full == full[:, :1]).all() and not (full == full[:, :, :1]).all():
                features = np.where(features < 0, full[:, 0], features)
            elif (full == full[:, :, :1]).all() and not (full == full[:, :1]).all():
                rows = full[:, :, 0]
        return features, rows

    def _bias(self, index: int, view: Linear, shape: tuple[int, ...]) -> Bias | None:
        """Returns where a bias over the outputs stands or may stand."""
        outs = shape[0] * shape[1]
        node = self.coupling.nodes[index]
        if view.bias is not None:
            if view.bias < len(node.inputs) and node.inputs[view.bias] is not None:
                return self._constant_bias(index, view.bias, outs, 1)
            if index not in self.coupling.quantized and self._is_in_the_model(index):
                return Bias(index, view.bias, None, (outs,))
        name = node.outputs[0].name
        rank = len(self.coupling.trace.shapes[name or ""][0])
        while name not in self.outputs and len(readers := self.readers.get(name or "", [])) == 1:
            at, slot = readers[0]
            step = self.coupling.nodes[at]
            if step.op_type == "Add":
                return self._constant_bias(at, 1 - slot, outs, rank - view.channel % rank)
            if step.op_type not in PASSING or slot:
                break
            name = step.outputs[0].name
        return None

    def _is_in_the_model(self, index: int) -> bool:
        """Returns whether a node stands in the model just once, and not in a function that is called, or a loop."""
        flat = self.coupling.flat
        return flat is None or (index in flat.places and index not in self.coupling.inside)

    def _constant_bias(self, index: int, slot: int, outs: int, back: int) -> Bias | None:
        """Returns a constant with a number for each output, if these lie along the axis that is so far from the end."""
        v = self.coupling.nodes[index].inputs[slot]
        if v is None or not self._is_given(index, slot):
            return None
        shape = tuple(self.tensors[str(v.name)].numpy().shape)
        fits = int(np.prod(shape)) == outs and len(shape) >= back and shape[-back] == outs
        return Bias(index, slot, v.name, shape) if fits else None

    def _behind(self, index: int, view: Linear) -> tuple[np.ndarray, Branch | None]:
        """Returns the per-channel factors behind an output, and the branch that is added after them."""
        node = self.coupling.nodes[index]
        rank = len(self.coupling.trace.shapes[node.outputs[0].name or ""][0])
        if not view.direct:
            return self._added(index, rank)
        ones = np.ones((1,) * rank)
        added = node.inputs[3] if node.op_type == "FusedConv" and len(node.inputs) > 3 else None
        return ones, None if added is None else self._found(index, added.name or "", ones)

    def _added(self, index: int, rank: int) -> tuple[np.ndarray, Branch | None]:
        """Returns the factors and the branch as nodes behind the output tell.

        There is a branch only if it is computed before the node and nothing else reads what lies between.
        """
        name = self.coupling.nodes[index].outputs[0].name
        factor = np.ones((1,) * rank)
        while name is not None and name not in self.outputs and len(self.readers.get(name, [])) == 1:
            at, slot = self.readers[name][0]
            step = self.coupling.nodes[at]
            other = step.inputs[1 - slot] if len(step.inputs) == 2 and slot < 2 else None
            if step.op_type == "BatchNormalization" and slot == 0 and not in_training(step):
                scale, var = (self._constant(step.inputs[k]) for k in (1, 4))
                if scale is None or var is None:
                    break
                epsilon = step.attributes["epsilon"].as_float() if "epsilon" in step.attributes else 1e-5
                factor = factor * (scale / np.sqrt(var + epsilon)).reshape([-1 if k == 1 else 1 for k in range(rank)])
            elif step.op_type == "Mul" and other is not None and (c := self._constant(other)) is not None:
                if c.ndim > rank:
                    break
                factor = factor * c
            elif step.op_type == "Add" and other is not None and other.name not in self.tensors:
                return factor, self._found(index, other.name or "", factor)
            elif step.op_type != "Add" and step.op_type not in PASSING:
                break
            name = step.outputs[0].name
        return factor, None

    def _found(self, index: int, name: str, factor: np.ndarray) -> Branch | None:
        """Returns the branch if it is there before the node, in the same shape, and the factors can be divided by."""
        shapes = self.coupling.trace.shapes
        y = self.coupling.nodes[index].outputs[0].name
        if (
            self.coupling.makers.get(name, -1) >= index
            or shapes.get(name) != shapes.get(y or "")
            or self._is_static(name)
        ):
            return None
        level = np.abs(factor)
        return Branch(name, np.where(level < 1e-3 * level.max(), np.inf, factor)) if level.max() > 0 else None

    def _constant(self, value: object) -> np.ndarray | None:
        tensor = self.tensors.get(getattr(value, "name", None) or "")
        return None if tensor is None else tensor.numpy().astype(np.float64)
