"""Which indices of which tensors must go together: labels run through the graph, once, in node order."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx_ir as ir

from onnxprune.engine.initial_states import are_shared_zeros, state_slots
from onnxprune.engine.labels import Array, Labels, Reason, settle
from onnxprune.engine.tensors import Tensor, Verbs, leaf
from onnxprune.graph.constants import constants, is_constant, reads_only
from onnxprune.graph.dependence import captured, subgraphs
from onnxprune.graph.flat import Flat
from onnxprune.graph.trace import Trace
from onnxprune.ops import Site, Unsupported, lookup
from onnxprune.ops.linear import Linear
from onnxprune.ops.zero_points import agrees, is_narrow

Place = tuple[int, int]
"""A node by its number, and one of its inputs."""

QUANTIZED_TYPES = {
    *(ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16),
    *(ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT2, ir.DataType.UINT2),
}
RULE_FAILURES = (Unsupported, ValueError, IndexError, KeyError, TypeError, AssertionError, AttributeError)


@dataclass(frozen=True, eq=False)
class Use:
    """One constant where one node reads it; an element lives if its labels in all `arrays` do."""

    node: int
    slot: int
    name: str
    shape: tuple[int, ...]
    arrays: tuple[Array, ...]


@dataclass(frozen=True, eq=False)
class Folded:
    """An input-independent value made by an operator without a rule; replaced by a constant only if it is cut."""

    name: str
    tensor: Tensor


@dataclass(frozen=True, eq=False)
class Selected:
    """A value computed from constants alone; readers take the living part of axes that it is computed whole on.

    A standardised weight is such a one: its statistics run over its inputs, so these can't go before it is computed.
    A divisor is another: it must not be zero in the masked original, so it stays whole up to its reader.
    """

    name: str
    tensor: Tensor
    axes: tuple[int, ...]
    readers: list[tuple[int, int]] = field(default_factory=list)  # (node, slot)


@dataclass(eq=False)
class Coupling:
    """The labels of a model: its tensors, the constants' uses, what parameters produce, and what became a barrier.

    Of a twin in real numbers, `quantized` tells the nodes whose weights the model itself holds as integers, and `views`
    those that quantize by themselves, as matrices (ops/linear.py). Of a twin whose loops run all their turns, `inside`
    tells the linear nodes of their bodies. `added` are Constant nodes, by what they make, that a refit has added: they
    have no number.
    """

    model: ir.Model
    trace: Trace
    labels: Labels
    approximate: bool = False
    flat: Flat | None = None
    quantized: frozenset[int] = frozenset()
    views: Mapping[int, Linear] = field(default_factory=dict)
    inside: frozenset[int] = frozenset()
    added: frozenset[str] = frozenset()
    tensors: dict[str, Tensor] = field(default_factory=dict)
    seen: list[tuple[Tensor | None, ...]] = field(default_factory=list)  # per node, its inputs as labelled
    uses: list[Use] = field(default_factory=list)
    folded: list[Folded] = field(default_factory=list)
    selected: list[Selected] = field(default_factory=list)
    produced: list[Array] = field(default_factory=list)
    contracted: list[tuple[int, Array]] = field(default_factory=list)  # (node, labels that it sums over with weights)
    barriers: list[Reason] = field(default_factory=list)

    @cached_property
    def nodes(self) -> list[ir.Node]:
        """The nodes of the graph, in order."""
        return self.numbered(self.model)

    def numbered(self, model: ir.Model) -> list[ir.Node]:
        """Returns the nodes of a clone of the model by their numbers."""
        return [node for node in model.graph if node.outputs[0].name not in self.added]

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators."""
        imports = self.model.graph.opset_imports
        return imports.get("", imports.get("ai.onnx", 1))

    def where(self, index: int) -> str:
        """Returns what a node is called in reasons and notes: its name, or its number where it has none."""
        return self.nodes[index].name or f"#{index}"

    def turns(self, index: int) -> int:
        """Returns how often a node is run in the first run, as far as that is seen."""
        lengths = () if self.flat is None else self.flat.turns.get(index, ())
        return math.prod(self.trace.shapes[name][0][axis] for name, axis in lengths)

    @cached_property
    def read_elsewhere(self) -> frozenset[str]:
        """The values that anything but nodes of the graph reads: whoever runs the model, and bodies of nodes."""
        inside = (name for node in self.nodes for g in subgraphs(node) for name in captured(g))
        return frozenset((*inside, *(str(v.name) for v in self.model.graph.outputs)))

    @cached_property
    def makers(self) -> dict[str, int]:
        """The number of the node that makes each value."""
        return {v.name: k for k, node in enumerate(self.nodes) for v in node.outputs if v.name}

    @cached_property
    def readers(self) -> dict[str, list[Place]]:
        """Where each value is read by nodes of the graph."""
        found: dict[str, list[Place]] = {}
        for index, node in enumerate(self.nodes):
            for slot, v in enumerate(node.inputs):
                if v is not None and v.name:
                    found.setdefault(v.name, []).append((index, slot))
        return found

    @cached_property
    def uses_of(self) -> dict[int, dict[int, Use]]:
        """The constants' uses by node and slot."""
        found: dict[int, dict[int, Use]] = {}
        for use in self.uses:
            found.setdefault(use.node, {})[use.slot] = use
        return found

    def settled(self) -> Array:
        """Returns, for each root label, the number of the reason that freezes it, or -1 where it is free."""
        verbs = Verbs(self.labels, Reason("", "", "all channels of this axis could only go together"))
        frozen = -1
        while True:  # ties found while settling can make a whole axis one label, which freezes it in turn
            for t in self.tensors.values():
                if t.arrays:
                    verbs.tidy(t)
            reasons = settle(self.labels, self.labels.classes)
            if (count := int((reasons >= 0).sum())) == frozen:
                return reasons
            frozen = count


def couple(model: ir.Model, trace: Trace, *, approximate: bool = False, flat: Flat | None = None) -> Coupling:
    """Returns the coupling of all indices of a model.

    Args:
        model: the model; it is only read.
        trace: its shapes and contents at two sizes.
        approximate: open axes that law 1 freezes (normalisations and means over them).
        flat: the view that `model` is, where it has subgraphs or local functions.
    """
    filled: frozenset[str] = frozenset()
    while True:  # a state is zero at a cut slot if it starts so and every turn leaves it so
        found = _Walk(model, trace, approximate, flat, filled).run()
        states = [j.names for j in flat.joins if j.state] if flat else []
        more = {here for here, back in states if not found.tensors[here].zero <= found.tensors[back].zero}
        if more <= filled:
            return found
        filled |= more


class _Walk:
    """One pass over the nodes that fills a `Coupling`."""

    def __init__(
        self, model: ir.Model, trace: Trace, approximate: bool, flat: Flat | None, filled: frozenset[str]
    ) -> None:
        self.graph, self.trace, self.approximate = model.graph, trace, approximate
        self.out = Coupling(model, trace, Labels(), approximate, flat)
        self.fixed = flat.fixed if flat else frozenset()
        self.filled = filled
        self.constants = constants(model.graph)
        self.readers = Counter(v.name for n in self.graph for v in n.inputs if v is not None)
        self.leaves: dict[str, Tensor] = {}
        self.uniform: dict[str, bool] = {}
        self.computed: set[str] = set()  # from constants alone
        self.whole: set[str] = set()  # of these, what nodes read that must not read a zero, and nothing else does
        self.selected: dict[str, Selected] = {}
        self.quantized = {v.name for n in self.graph for v in _quantized_inputs(n)}
        self.pinned = {v.name for v in self.graph.outputs if v.name} | {
            name for n in self.graph for g in subgraphs(n) for name in captured(g)
        }

    def run(self) -> Coupling:
        for v in self.graph.inputs:
            if v.name and v.name not in self.constants and v.name in self.trace.shapes:
                self.out.tensors[v.name] = Tensor(self.trace.shapes[v.name][0])
        if self.out.flat is None:
            self.whole = self._whole()
        for index, node in enumerate(self.graph):
            self._visit(index, node)
        for name in self.pinned:
            reason = Reason(name, "", "an output of the graph" if self._is_output(name) else "used inside a subgraph")
            verbs = Verbs(self.out.labels, reason)
            if name in self.constants:
                verbs.freeze_all(self._leaf(name))
            verbs.freeze_all(self.out.tensors.get(name), why=reason.why)
        return self.out

    def _is_output(self, name: str) -> bool:
        return any(v.name == name for v in self.graph.outputs)

    def _visit(self, index: int, node: ir.Node) -> None:
        if is_constant(node):
            self.out.seen.append(())
            return
        where = self.out.where(index)
        inputs = [self._input(node, slot) for slot in range(len(node.inputs))]
        if node.outputs[0].name in self.whole:
            self.out.seen.append(tuple(None if t is None else Tensor(t.shape) for t in inputs))
            self.out.tensors |= {str(v.name): Tensor(self.trace.shapes[str(v.name)][0]) for v in node.outputs}
            return
        if self._is_made_of(node, self.computed):
            self.computed |= {v.name for v in node.outputs if v.name in self.trace.static}
        else:
            inputs = [self._select(index, node, slot, t) for slot, t in enumerate(inputs)]
        version = self.graph.opset_imports.get(node.domain, 1) if node.domain not in ("", "ai.onnx") else self.out.opset
        site = Site(node, version, self.trace, self.out.labels, inputs, where, self.approximate)
        site.direct = frozenset(
            k
            for k, v in enumerate(node.inputs)
            if v is not None
            and v.name in self.constants
            and v.name not in self.pinned
            and (self.readers[v.name] == 1 or self._is_uniform(v.name))
        )
        site.pickable = self._pickable(node)
        outputs = self._apply(site, where)
        for slot, own in site.picked.items():
            inputs[slot] = own
            axes = tuple(k for k in range(len(own.shape)) if own.labelled(k))
            self.out.selected.append(Selected(str(site.name(slot)), own, axes, [(index, slot)]))
        self.out.seen.append(tuple(inputs))
        for v, t in zip(node.outputs, outputs, strict=True):
            if v.name and t is not None:
                self.out.tensors[v.name] = t if v.name not in self.filled else Tensor(t.shape, t.arrays)
        self.out.produced += site.produced
        self.out.contracted += [(index, a) for a in site.contracted]
        for slot, (value, t) in enumerate(zip(node.inputs, inputs, strict=True)):
            if value is not None and t is not None and value.name in self.constants and slot not in site.picked:
                arrays = site.claims.get(slot, t.arrays)
                if arrays:
                    self.out.uses.append(Use(index, slot, str(value.name), t.shape, arrays))

    def _is_made_of(self, node: ir.Node, known: Container[str]) -> bool:
        """Returns whether a node reads nothing but constants and what is known to be computed from them alone."""
        if node.op_type == "DequantizeLinear":  # runtimes fuse it with its reader, which a node between would prevent
            return False
        return reads_only(node, self.constants, known)

    def _whole(self) -> set[str]:
        """Returns the values, computed from constants alone, that are read only where they must not become zero.

        What they are computed from stays whole for them, so that they are the same in the masked original.
        """
        made: dict[str, ir.Node] = {}
        for node in self.graph:
            if self._is_made_of(node, made):
                made |= {str(v.name): node for v in node.outputs}

        def stays(node: ir.Node) -> bool:
            uses = [use for v in node.outputs for use in v.uses()]
            read = all(use.idx in _nonzero(use.node) or use.node.outputs[0].name in whole for use in uses)
            return read and self._is_made_of(node, whole) and all(map(self._is_plain, node.outputs))

        whole = set(made)
        while left := {name for name in whole if not stays(made[name])}:
            whole -= left
        return whole

    def _is_plain(self, value: ir.Value) -> bool:
        """Returns whether a value's contents are known, the same in both runs, and read by nodes of the graph alone."""
        values = self.trace.values.get(value.name or "")
        return values is not None and np.array_equal(*values) and value.name not in self.pinned

    def _pickable(self, node: ir.Node) -> frozenset[int]:
        """Returns the inputs that stay whole up to a node that picks what is left of them."""
        if self.out.flat is not None:
            return frozenset()
        nonzero, states = _nonzero(node), state_slots(node)
        given = {k: v for k, v in enumerate(node.inputs) if v is not None}
        return frozenset(
            k
            for k, v in given.items()
            if (k in nonzero and (v.name in self.whole or self._is_real_constant(v)))
            or (k in states and are_shared_zeros(v, self.trace))
        )

    def _is_real_constant(self, value: ir.Value) -> bool:
        return value.name in self.constants and self.constants[value.name].dtype.is_floating_point()

    def _select(self, index: int, node: ir.Node, slot: int, t: Tensor | None) -> Tensor | None:
        """Returns a computed weight with labels of its own on axes that can't be cut before it is computed."""
        value = node.inputs[slot]
        name = None if value is None else value.name
        if t is None or name is None or name not in self.computed or name in self.pinned or self.out.flat is not None:
            return t
        if name not in self.selected:
            if not t.arrays or self.trace.dtypes[name].kind not in "fV":
                return t
            t = Verbs(self.out.labels, Reason("", "", "all channels of this axis could only go together")).tidy(t)
            frozen = self.out.labels.frozen_reasons() >= 0
            alive = tuple(a for a in t.arrays if not frozen[self.out.labels.find(a)].all())
            axes = tuple(k for k, n in enumerate(t.shape) if n > 1 and not any(a.shape[k] > 1 for a in alive))
            if not axes or not alive:
                return t
            fresh = leaf(self.out.labels, [n if k in axes else 1 for k, n in enumerate(t.shape)], zero=False).arrays
            zero = frozenset(k for k in t.zero if k not in axes)
            self.selected[name] = Selected(name, Tensor(t.shape, (*alive, *fresh), zero), axes)
            self.out.selected.append(self.selected[name])
        self.selected[name].readers.append((index, slot))
        return self.selected[name].tensor

    def _apply(self, site: Site, where: str) -> list[Tensor | None]:
        """Returns the labelled outputs: by the rule, or as a barrier where there is none or it does not fit."""
        home = lookup(site.node)
        if home is None or home.coupling.rule is None:
            return self._barrier(site, where, "no rule for this operator")
        before = len(self.out.labels.derivations)
        try:
            result = home.coupling.rule(site)
        except RULE_FAILURES as error:
            del self.out.labels.derivations[before:]
            why = str(error) if isinstance(error, Unsupported) else f"its rule failed: {type(error).__name__}: {error}"
            return self._barrier(site, where, why)
        outputs: list[Tensor | None] = [result] if isinstance(result, Tensor) else list(result)
        known = [self.trace.shapes.get(v.name or "") for v in site.node.outputs]
        if len(outputs) != len(known) or any(
            k is not None and v.name and (t is None or t.shape != k[0])
            for k, t, v in zip(known, outputs, site.node.outputs, strict=True)
        ):
            return self._barrier(site, where, "its rule gives another shape than the runtime")
        return [self._leaf_if_static(v.name, t) for v, t in zip(site.node.outputs, outputs, strict=True)]

    def _barrier(self, site: Site, where: str, why: str) -> list[Tensor | None]:
        """Freezes what enters; what leaves carries no labels, or labels of its own where it is input-independent."""
        site.claims.clear()
        site.produced.clear()
        site.picked.clear()
        entering = [t for t in site.given() if t.arrays]
        if entering:
            self.out.barriers.append(Reason(where, site.op, why))
        for t in entering:
            site.tie_all(t, why)
        shapes = [self.trace.shapes.get(v.name or "") for v in site.node.outputs]
        found = [None if pair is None else Tensor(pair[0]) for pair in shapes]
        return [self._leaf_if_static(v.name, t) for v, t in zip(site.node.outputs, found, strict=True)]

    def _leaf_if_static(self, name: str | None, t: Tensor | None) -> Tensor | None:
        """Returns labels of its own for an input-independent float value that has none: cut, it becomes a constant."""
        values = self.trace.values.get(name or "")
        if name is None or t is None or t.arrays or max(t.shape, default=1) == 1 or values is None:
            return t
        if values[0].dtype.kind not in "fV" or values[0].shape != t.shape or not np.array_equal(*values):
            return t
        own = leaf(self.out.labels, t.shape, zero=False)
        self.out.folded.append(Folded(name, own))
        return own

    def _input(self, node: ir.Node, slot: int) -> Tensor | None:
        value = node.inputs[slot]
        if value is None or value.name is None:
            return None
        known = self._leaf(value.name) if value.name in self.constants else self.out.tensors.get(value.name)
        if known is None and value.name in self.trace.shapes:
            return Tensor(self.trace.shapes[value.name][0])
        if known is not None and known.zero and is_narrow(self.trace.dtypes.get(value.name)) and not agrees(node, slot):
            return Tensor(known.shape, known.arrays)
        return known

    def _leaf(self, name: str) -> Tensor:
        """Returns a constant's labels: one set for all its uses, or one for each use where all elements are equal."""
        if name in self.leaves:
            return self.leaves[name]
        tensor = self.constants[name]
        shape = tuple(int(n) for n in tensor.shape if isinstance(n, int))
        if name in self.fixed or not (
            _carries_labels(tensor) or (name in self.quantized and tensor.dtype == ir.DataType.INT32)
        ):
            own = Tensor(shape)
        else:
            own = leaf(self.out.labels, shape, zero=True)
            if self.readers[name] > 1 and name not in self.pinned and self._is_uniform(name):
                return own
        self.leaves[name] = own
        return own

    def _is_uniform(self, name: str | None) -> bool:
        assert name is not None
        if name not in self.uniform:
            self.uniform[name] = is_uniform(self.constants[name])
        return self.uniform[name]


def is_uniform(tensor: ir.TensorProtocol) -> bool:
    """Returns whether all elements are equal; most tensors are told by their first few."""
    if tensor.size <= 1:
        return True
    data = tensor.numpy().reshape(-1)
    return bool((data[:64] == data[0]).all() and (data == data[0]).all())


def _nonzero(node: ir.Node) -> frozenset[int]:
    """Returns the inputs of a node that must not become zero."""
    home = lookup(node)
    return home.nonzero_slots if home is not None else frozenset()


def _quantized_inputs(node: ir.Node) -> list[ir.Value]:
    """Returns the inputs of a node that hold quantized numbers or the zero points of such."""
    home = lookup(node)
    places = home.quantized if home is not None else {}
    slots = places.keys() | {q.zero for q in places.values()}
    return [v for k, v in enumerate(node.inputs) if k in slots and v is not None]


def _carries_labels(tensor: ir.TensorProtocol) -> bool:
    """Floats and narrow integers (quantized weights) carry labels; others are sizes, indices and masks, unless a node
    reads them as quantized numbers."""
    return tensor.dtype.is_floating_point() or tensor.dtype in QUANTIZED_TYPES
