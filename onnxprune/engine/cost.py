"""MACs and parameters, before the cut and after it, from the operators' own rules."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxprune.engine.coupling import Coupling
from onnxprune.engine.cutting import Cutting
from onnxprune.engine.units import Floats, Units, distinct
from onnxprune.graph.constants import constants
from onnxprune.ops import Node, Unsupported, lookup
from onnxprune.ops.registry import Shape


def batch_size(coupling: Coupling) -> int:
    """Returns the batch of the first run if the model's batch is dynamic, else 1: costs are told for one sample."""
    trace = coupling.trace
    sizes = {
        tuple(trace.shapes[n][r][0] if trace.shapes[n][r] else 0 for r in (0, 1))
        for n in trace.feeds[0]
        if n in trace.shapes
    }
    if len(sizes) == 1:
        (first, second) = sizes.pop()
        if first != second:
            return first
    return 1


def macs(coupling: Coupling, cutting: Cutting | None = None) -> int:
    """Returns the multiply-accumulates of one sample at the traced sizes; with a cutting, of what it leaves."""
    return sum(node_macs(coupling, index, cutting) for index, _ in _counted(coupling)) // batch_size(coupling)


def node_macs(coupling: Coupling, index: int, cutting: Cutting | None = None) -> int:
    """Returns the MACs of one node at the first run's sizes, of all turns of the body that it stands in."""
    node = coupling.nodes[index]
    home = lookup(node)
    if home is None or home.macs.rule is None:
        return 0
    shown = Node(node, 1, coupling.trace)
    try:
        once = home.macs.rule(shown, inputs_left(coupling, index, cutting), _outputs(coupling, index, cutting))
    except (Unsupported, IndexError):
        return 0
    return coupling.turns(index) * once


def _counted(coupling: Coupling) -> Iterator[tuple[int, ir.Node]]:
    for index, node in enumerate(coupling.nodes):
        home = lookup(node)
        if home is not None and home.macs.rule is not None:
            yield index, node


def inputs_left(coupling: Coupling, index: int, cutting: Cutting | None = None) -> list[Shape | None]:
    """Returns the shapes of a node's inputs at the first run's sizes; with a cutting, of what it leaves."""
    shapes: list[Shape | None] = []
    uses = coupling.uses_of.get(index, {})
    for slot, t in enumerate(coupling.seen[index]):
        if t is None:
            shapes.append(None)
        elif cutting is None:
            shapes.append(t.shape)
        else:
            shapes.append(cutting.shape_of(uses[slot]) if slot in uses else cutting.new_shape(t, t.shape))
    return shapes


def _outputs(coupling: Coupling, index: int, cutting: Cutting | None) -> list[Shape]:
    shapes: list[Shape] = []
    for v in coupling.nodes[index].outputs:
        t = coupling.tensors.get(v.name or "")
        if t is None:
            raise Unsupported("an output's shape is not known")
        shapes.append(t.shape if cutting is None else cutting.new_shape(t, t.shape))
    return shapes


def parameters(model: ir.Model) -> int:
    """Returns the number of weights: floats, and integer constants of two or more axes (quantized weights)."""
    return sum(
        tensor.size
        for graph in (model.graph, *model.graph.subgraphs())
        for tensor in constants(graph).values()
        if tensor.dtype.is_floating_point() or len(tensor.shape) > 1
    )


def per_unit(units: Units) -> tuple[Floats, Floats]:
    """Returns for each group the MACs and the parameters that one of its units takes along, all else uncut."""
    coupling = units.coupling
    nodes_of: list[set[int]] = [set() for _ in units.groups]
    group_of_label = units.group_of[units.of_label]
    groups_in: dict[int, set[int]] = {}  # by identity: many tensors share an array
    for index, node in _counted(coupling):
        arrays = [a for t in coupling.seen[index] if t is not None for a in t.arrays]
        arrays += [a for v in node.outputs if v.name in coupling.tensors for a in coupling.tensors[v.name].arrays]
        arrays += [a for use in coupling.uses_of.get(index, {}).values() for a in use.arrays]
        for a in arrays:
            if id(a) not in groups_in:
                groups_in[id(a)] = set(distinct(group_of_label[a], len(units.groups)).tolist())
            for g in groups_in[id(a)]:
                nodes_of[g].add(index)
    before = {index: node_macs(coupling, index) for index in set().union(*nodes_of)} if nodes_of else {}
    saved, weights = np.zeros(len(units.groups)), np.zeros(len(units.groups))
    for g, group in enumerate(units.groups):
        if len(group) < 2:
            continue
        cutting = Cutting(units, group.units[:1])
        saved[g] = sum(before[i] - node_macs(coupling, i, cutting) for i in sorted(nodes_of[g]))
        seen = {coupling.uses[u].name: coupling.uses[u] for u, _ in group.members}
        weights[g] = sum(np.prod(use.shape) - np.prod(cutting.shape_of(use)) for use in seen.values())
    return saved / batch_size(coupling), weights
