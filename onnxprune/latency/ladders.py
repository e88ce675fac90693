"""The nodes worth timing, and at which lengths of their axes.

An axis of a node is all places in its shapes that lose indices together, with the groups that lose them. How its places
and the node's attributes follow its length is read off one cut, half of the units of its groups: they are linear in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

from onnxprune.engine.cost import inputs_left, node_macs
from onnxprune.engine.cutting import Cutting
from onnxprune.engine.sizes import rewrite_sizes
from onnxprune.engine.units import Units
from onnxprune.latency.probes import Operand, Probe
from onnxprune.ops import Unsupported, lookup

__all__ = ["Axis", "Site", "coarse_first", "sites"]

LEVELS = 12  # of one axis
BLOCK = 8  # lengths that are tried are multiples of it
SMALL = 64  # elements of integers whose contents matter

Place = tuple[int, int]  # (input, axis)
Scale = Callable[[int, int], int]


@dataclass(frozen=True, eq=False)
class _Form:
    """A node's inputs at full size, as a pattern for probes."""

    proto: onnx.NodeProto
    opsets: tuple[tuple[str, int], ...]
    inputs: tuple[Operand | None, ...]
    outputs: tuple[int | None, ...]

    def probe(self, dims: Mapping[Place, int], attributes: Mapping[str, Any]) -> Probe:
        """Returns the node with some lengths and attributes in the place of its own."""
        proto = onnx.NodeProto()
        proto.CopyFrom(self.proto)
        if attributes:
            kept = [a for a in proto.attribute if a.name not in attributes]
            del proto.attribute[:]
            proto.attribute.extend(kept)
            proto.attribute.extend(helper.make_attribute(k, v) for k, v in sorted(attributes.items()))
        operands = []
        for slot, operand in enumerate(self.inputs):
            if operand is not None:
                shape = tuple(dims.get((slot, axis), n) for axis, n in enumerate(operand.shape))
                data = operand.data if shape == operand.shape else None
                operand = Operand(operand.dtype, shape, operand.constant, data)
            operands.append(operand)
        return Probe(proto.SerializeToString(deterministic=True), self.opsets, tuple(operands), self.outputs)


@dataclass(frozen=True, eq=False)
class Axis:
    """Places of a node's shapes that lose indices together.

    Attributes:
        slope: pairs of a group and the indices that each of its units is.
        full: the length before any cut.
        levels: shorter lengths to time, rising.
    """

    slope: tuple[tuple[int, int], ...]
    full: int
    levels: tuple[int, ...]
    _form: _Form
    _places: Mapping[Place, tuple[int, int]]  # full and reference length of each place
    _attributes: Mapping[str, tuple[Any, Any]]
    _reference: int

    def probe(self, length: int) -> Probe:
        """Returns the node with this axis at a length."""
        dims = {place: self._linear(*pair, length) for place, pair in self._places.items()}
        return self._form.probe(dims, {k: self._linear(*pair, length) for k, pair in self._attributes.items()})

    def _linear(self, full: Any, reference: Any, length: int) -> Any:
        """Returns what a number is at a length, told from what it is at full length and at the reference."""
        if isinstance(full, list | tuple):
            return [self._linear(a, b, length) for a, b in zip(full, reference, strict=True)]
        found = full - (full - reference) * (self.full - length) / (self.full - self._reference)
        return max(round(found), 1) if isinstance(full, int) else found


@dataclass(frozen=True, eq=False)
class Site:
    """One node to be timed: at full size, and along its axes."""

    index: int
    full: Probe
    axes: tuple[Axis, ...]


def sites(units: Units, scale: Scale) -> Iterator[Site]:
    """Yields every node with multiply-accumulates that can be run alone.

    Args:
        units: the units of its model.
        scale: what a length is where the model is served, from what it is in the trace's two runs.
    """
    halves = _Halves(units)
    for index in range(len(units.coupling.nodes)):
        if node_macs(units.coupling, index):
            form = _form(units, index, scale)
            if form is not None:
                yield Site(index, form.probe({}, {}), tuple(_axes(units, index, form, halves)))


def coarse_first(levels: Sequence[int]) -> tuple[int, ...]:
    """Returns levels in an order whose beginning is spread evenly: the middle, the middles of the halves, ..."""
    order: list[int] = []
    spans = [(0, len(levels))]
    while spans:
        low, high = spans.pop(0)
        if low < high:
            middle = (low + high) // 2
            order.append(levels[middle])
            spans += [(low, middle), (middle + 1, high)]
    return tuple(order)


class _Halves:
    """Cuts of half of some groups, each made once."""

    def __init__(self, units: Units) -> None:
        self.units = units
        self._cuttings: dict[tuple[int, ...], Cutting] = {}
        self._attributes: dict[tuple[int, ...], dict[tuple[int, str], Any]] = {}

    def count(self, g: int) -> int:
        """Returns how many units of a group go."""
        return len(self.units.groups[g]) // 2

    def cutting(self, groups: tuple[int, ...]) -> Cutting:
        """Returns the cut of half of some groups."""
        if groups not in self._cuttings:
            dead = [self.units.groups[g].units[: self.count(g)] for g in groups]
            self._cuttings[groups] = Cutting(self.units, np.concatenate([np.zeros(0, np.int64), *dead]))
        return self._cuttings[groups]

    def attributes(self, groups: tuple[int, ...], index: int) -> dict[str, Any]:
        """Returns the attributes of a node that this cut changes."""
        if groups not in self._attributes:
            self._attributes[groups] = rewrite_sizes(self.cutting(groups)).attributes
        return {name: value for (k, name), value in self._attributes[groups].items() if k == index}

    @cached_property
    def of_node(self) -> dict[int, tuple[int, ...]]:
        """For each node the groups that it meets, those that can be cut."""
        coupling, units = self.units.coupling, self.units
        found: dict[int, tuple[int, ...]] = {}
        for index, node in enumerate(coupling.nodes):
            arrays = [a for t in coupling.seen[index] if t is not None for a in t.arrays]
            arrays += [a for v in node.outputs if v.name in coupling.tensors for a in coupling.tensors[v.name].arrays]
            arrays += [a for use in coupling.uses_of.get(index, {}).values() for a in use.arrays]
            met = {int(g) for a in arrays for g in np.unique(units.group_of[units.of_label[a]])}
            found[index] = tuple(sorted(g for g in met if g >= 0 and len(units.groups[g]) > 1))
        return found


def _axes(units: Units, index: int, form: _Form, halves: _Halves) -> Iterator[Axis]:
    """Yields the axes of a node."""
    together: dict[tuple[Place, ...], list[int]] = {}
    full = _lengths(units, index, None)
    for g in halves.of_node[index]:
        cut = _lengths(units, index, halves.cutting((g,)))
        places = tuple(p for p in full if cut.get(p) != full[p])
        if places:
            together.setdefault(places, []).append(g)
    for places, groups in together.items():
        key = tuple(groups)
        reference = _lengths(units, index, halves.cutting(key))
        first = max(places, key=lambda p: full[p])
        slope = []
        for g in groups:
            lost = full[first] - _lengths(units, index, halves.cutting((g,)))[first]
            slope.append((g, max(round(lost / halves.count(g)), 1)))
        home = lookup(units.coupling.nodes[index])
        changed = halves.attributes(key, index) if home is not None and home.sizes.rule is not None else {}
        old = units.coupling.nodes[index].attributes
        pairs = {k: (old[k].value, v) for k, v in changed.items() if k in old and _countable(old[k].value, v)}
        least = full[first] - sum(m * (len(units.groups[g]) - 1) for g, m in slope)
        lengths = {p: (full[p], reference[p]) for p in places}
        yield Axis(
            tuple(slope), full[first], _levels(full[first], max(least, 1), gcd(*(m for _, m in slope))),
            form, lengths, pairs, reference[first],
        )  # fmt: skip


def _countable(old: Any, new: Any) -> bool:
    """Returns whether two attribute values are numbers, or lists of as many."""
    if isinstance(old, int | float):
        return isinstance(new, int | float | np.integer)
    return isinstance(old, list | tuple) and not isinstance(new, str) and len(old) == len(new)


def _levels(full: int, least: int, width: int) -> tuple[int, ...]:
    """Returns lengths to time: at most `LEVELS` multiples of the block, and the smallest ones."""
    step = np.lcm(BLOCK, width) if width < 8 * BLOCK else width
    count = max((full - least) // int(step), 1)
    step = int(step) * -(-count // LEVELS)
    low = {least, 2 * width, 4 * width, int(np.lcm(BLOCK, width))}
    found = {n for n in (*low, *range(step, full, step)) if least <= n < full and (full - n) % width == 0}
    return tuple(sorted(found))


def _lengths(units: Units, index: int, cutting: Cutting | None) -> dict[Place, int]:
    """Returns the lengths of a node's inputs, in the trace's first run."""
    before = inputs_left(units.coupling, index, cutting)
    return {(slot, k): n for slot, shape in enumerate(before) if shape is not None for k, n in enumerate(shape)}


def _form(units: Units, index: int, scale: Scale) -> _Form | None:
    """Returns the pattern of a node, None where it cannot be run alone."""
    coupling = units.coupling
    node, trace = coupling.nodes[index], coupling.trace
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
        return None
    try:
        before = inputs_left(coupling, index)
        operands = [
            None if v is None or shape is None else _operand(units, v, shape, scale)
            for v, shape in zip(node.inputs, before, strict=True)
        ]
        outputs = tuple(_type(trace.dtypes[v.name]) if v.name else None for v in node.outputs)
    except (Unsupported, KeyError, TypeError, ValueError):
        return None
    if any((o is None) != (v is None) for o, v in zip(operands, node.inputs, strict=True)):
        return None
    proto = ir.to_proto(node)
    assert isinstance(proto, onnx.NodeProto)
    for part in ("input", "output", "name", "doc_string", "metadata_props"):
        proto.ClearField(part)
    imports = {("" if d == "ai.onnx" else d): v for d, v in coupling.model.graph.opset_imports.items()}
    opsets = tuple(sorted({"": imports.get("", 13), node.domain: imports.get(node.domain, 1)}.items()))
    return _Form(proto, opsets, tuple(operands), outputs)


def _operand(units: Units, value: ir.Value, shape: tuple[int, ...], scale: Scale) -> Operand:
    """Returns an input of a node at full size, where the model is served."""
    trace, name = units.coupling.trace, value.name or ""
    one, other = trace.shapes[name]
    constant = name in trace.static and one == other
    dims = shape if len(one) != len(shape) else tuple(map(scale, one, other))
    dtype = np.dtype(trace.dtypes[name])
    content = trace.values.get(name)
    data = None
    if content is not None and content[0].shape == dims and (content[0].size == 1 or dtype.kind in "iu"):
        data = content[0].tobytes() if content[0].size <= SMALL else None
    return Operand(_type(dtype), dims, constant, data)


def _type(dtype: np.dtype[Any]) -> int:
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
