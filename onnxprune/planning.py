"""From a coupled model to a decided cut: score, allocate, and freeze what turns out to be impossible."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from onnxprune.engine.coupling import Coupling
from onnxprune.engine.cutting import Cutting
from onnxprune.engine.labels import Array, Reason
from onnxprune.engine.rows import find_rows, lost, rearranged
from onnxprune.engine.sizes import Rewrite, rewrite_sizes
from onnxprune.engine.units import Units, find_units
from onnxprune.errors import DataError
from onnxprune.plan import KeptLists, Plan, PlannedGroup, PlannedTensor

ROUNDS = 20


def decide(
    coupling: Coupling,
    choose: Callable[[Units], Array],
    units: Units | None = None,
    find: Callable[[Coupling], Units] = find_units,
) -> tuple[Cutting, Rewrite, tuple[int, ...]]:
    """Returns a cut whose sizes can be written, its edits, and the nodes whose labels had to be frozen for that.

    Args:
        coupling: the coupled model; labels are frozen in it where sizes cannot follow.
        choose: returns the units to cut.
        units: the units of the coupling, where they are known.
        find: returns the units of a coupling.
    """
    stuck: list[int] = []
    failures: Counter[int] = Counter()
    for _ in range(ROUNDS):
        units = units or find(coupling)
        cutting = Cutting(units, choose(units))
        rewrite = rewrite_sizes(cutting)
        if not rewrite.failed:
            return cutting, rewrite, tuple(stuck)
        for index, why in rewrite.failed.items():
            failures[index] += 1
            for node in sorted(_at_fault(cutting, index, failures[index])):
                freeze_node(coupling, node, why)
                stuck.append(node)
        units = None
    nothing = Cutting(find(coupling), np.zeros(0, np.int64))
    return nothing, rewrite_sizes(nothing), tuple(stuck)


def _at_fault(cutting: Cutting, index: int, failures: int) -> set[int]:
    """Returns what to freeze as sizes can't follow: the node, then where its sizes come from, then who shares them.

    At last, who reads the weights of groups that they can't follow where each is cut alone.
    """
    coupling = cutting.coupling
    if failures == 1:
        return {index}
    if failures > 3:
        return _culprits(cutting, index)
    sources = _sources(coupling, index)
    if failures == 2:
        return sources
    inputs = {v.name for i in sources for v in coupling.nodes[i].inputs if v is not None}
    shared = {name for name in inputs if name in coupling.trace.static}
    reached = set(sources)
    for i, node in enumerate(coupling.nodes):
        if any(v is not None and v.name in shared for v in node.inputs):
            reached.add(i)
            shared |= {v.name for v in node.outputs if v.name in coupling.trace.static}
    return reached


def _culprits(cutting: Cutting, index: int) -> set[int]:
    """Returns the nodes that read weights of groups that a node's sizes can't follow, each cut alone."""
    found = set[int]()
    for group in cutting.units.groups:
        alone = Cutting(cutting.units, group.units[cutting.dead[group.units]])
        if index in rewrite_sizes(alone).failed:
            found |= {use.node for use in cutting.coupling.uses if alone.touches(use)}
    return found


def _sources(coupling: Coupling, index: int) -> set[int]:
    """Returns a node and those that compute its inputs from sizes alone: where a cut comes in that it can't follow."""
    found, open_ = {index}, [index]
    while open_:
        for v in coupling.nodes[open_.pop()].inputs:
            source = None if v is None else coupling.makers.get(str(v.name))
            if source is None or source in found or v is None:
                continue
            if v.name in coupling.trace.static or coupling.nodes[source].op_type in ("Shape", "Size"):
                found.add(source)
                open_.append(source)
    return found


def freeze_node(coupling: Coupling, index: int, why: str) -> None:
    """Freezes every label that meets a node."""
    node = coupling.nodes[index]
    reason = Reason(coupling.where(index), node.op_type, why)
    around = [*coupling.seen[index], *(coupling.tensors.get(v.name or "") for v in node.outputs)]
    for t in around:
        for a in t.arrays if t is not None else ():
            coupling.labels.freeze(a, reason)


def make_plan(cutting: Cutting, stuck: Sequence[int], sha256: str, approximate: bool, options: dict[str, Any]) -> Plan:
    """Returns the plan of a cut."""
    groups = [
        PlannedGroup(g.name, len(g), tuple(np.flatnonzero(cutting.dead[g.units]).tolist()))
        for g in cutting.units.groups
    ]
    for rows in cutting.units.rows:
        own = [tuple(row) for row in lost(rows, cutting.living).tolist()]
        apart = tuple(own) if any(row != own[0] for row in own) else ()
        groups[rows.group] = replace(groups[rows.group], cut=own[0], rows=apart)
    return Plan(sha256, approximate, tuple(stuck), tuple(groups), _tensors(cutting), options)


def _tensors(cutting: Cutting) -> tuple[PlannedTensor, ...]:
    found = []
    for use in cutting.coupling.uses:
        if cutting.touches(use):
            kept: dict[str, tuple[int, ...] | KeptLists] = {}
            for axis, count in enumerate(use.shape):
                along, lists = cutting.kept_of(use, axis)
                told = tuple(tuple(positions.tolist()) for positions in lists)
                if len(told[0]) < count:
                    kept[str(axis)] = KeptLists(along, told) if along else told[0]
            found.append(PlannedTensor(use.name, use.node, use.slot, use.shape, kept))
    return tuple(found)


def replay(coupling: Coupling, plan: Plan, sha256: str) -> tuple[Cutting, Rewrite, tuple[int, ...]]:
    """Returns the cut that a plan describes.

    Raises:
        DataError: the plan was made for another model, or by a program that sees this one otherwise.
    """
    if plan.model != sha256:
        raise DataError(
            f"the plan was made for another model (sha256 {plan.model[:12]}..., this one is {sha256[:12]}...); "
            "apply it to the file it was made from"
        )
    for index in plan.frozen:
        if not 0 <= index < len(coupling.nodes):
            raise DataError(f"the plan names node {index}, the model has {len(coupling.nodes)}; make the plan anew")
        freeze_node(coupling, index, "its sizes can't follow the cut")
    units = find_units(coupling)
    if [(g.name, len(g)) for g in units.groups] != [(g.name, g.units) for g in plan.groups]:
        raise DataError("the plan's groups are not those of the model; make the plan anew with this version")
    if any(len(g.cut) >= max(g.units, 1) or not all(0 <= k < g.units for k in g.cut) for g in plan.groups if g.cut):
        raise DataError("the plan cuts units that are not there, or all of a group; make the plan anew")
    units = _as_planned(units, plan)
    places = [np.array(g.cut, np.int64) for g in plan.groups]
    dead = np.concatenate([np.zeros(0, np.int64), *(g.units[p] for g, p in zip(units.groups, places, strict=True))])
    cutting = Cutting(units, np.unique(dead))
    rewrite = rewrite_sizes(cutting)
    if rewrite.failed or _tensors(cutting) != plan.tensors:
        raise DataError("the plan's kept indices don't fit its groups; make the plan anew with this version")
    return cutting, rewrite, plan.frozen


def _as_planned(units: Units, plan: Plan) -> Units:
    """Returns the units put together as a plan has them: what goes of each row in the order it is told in.

    Raises:
        DataError: the rows of the plan are not those of the model.
    """
    planned = {g: group for g, group in enumerate(plan.groups) if group.rows}
    found = [rows for rows in find_rows(units) if rows.group in planned] if planned else []
    orders = []
    for rows in found:
        group, (n, count) = planned[rows.group], rows.slots.shape
        order = np.empty((n, count), np.int64)
        kept = np.setdiff1d(np.arange(n), group.cut)
        if len(group.rows) != count or any(len(set(row) & set(range(n))) != len(group.cut) for row in group.rows):
            break
        for k, row in enumerate(group.rows):
            order[list(group.cut), k] = row
            order[kept, k] = np.setdiff1d(np.arange(n), row)
        orders.append(order)
    if len(orders) < len(planned):
        raise DataError("the plan's rows are not those of the model; make the plan anew with this version")
    return rearranged(units, found, orders)
