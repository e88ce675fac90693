"""What a coupled and cut model is told of: groups, frozen channels, notes and warnings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxprune.abreast import looked_at
from onnxprune.engine import cost
from onnxprune.engine.coupling import Coupling
from onnxprune.engine.cutting import Cutting
from onnxprune.engine.labels import Reason
from onnxprune.engine.units import Units
from onnxprune.errors import quote
from onnxprune.graph.constants import constants
from onnxprune.graph.dependence import subgraphs
from onnxprune.ops.registry import lookup
from onnxprune.reports.causes import Causes
from onnxprune.reports.report import FrozenRow, GroupRow, Validation

BLOCKED = "com.microsoft.nchwc"  # domain of convolutions over blocks of channels as wide as a processor's registers
GOES_ALONG = Reason("", "", "goes only together with others, which stay")


def group_rows(cutting: Cutting) -> tuple[GroupRow, ...]:
    """Returns a row for each group: its units, how many go, and what hangs on one."""
    units = cutting.units
    macs, params = cost.per_unit(units)
    rows = []
    for k, group in enumerate(units.groups):
        members = dict.fromkeys(units.coupling.uses[u].name for u, _ in group.members)
        rows.append(
            GroupRow(
                group.name,
                len(group),
                int(cutting.dead[group.units].sum()),
                tuple(members),
                float(macs[k]),
                float(params[k]),
            )
        )
    return tuple(rows)


def frozen_rows(units: Units) -> tuple[FrozenRow, ...]:
    """Returns, for each reason, how many produced channels it freezes and in which weights.

    A stream that is added to what stays has the reason of what stays, however many nodes lie between.
    """
    coupling = units.coupling
    find = coupling.labels.find
    produced = np.unique(np.concatenate([np.zeros(0, np.int64), *(find(a).ravel() for a in coupling.produced)]))
    stays = produced[units.of_label[produced] < 0]
    number = units.reasons[stays]
    weights: dict[int, dict[str, None]] = {}
    is_frozen = np.full(len(units.of_label), -2)
    is_frozen[stays] = number
    for use in coupling.uses:
        if len(use.shape) > 1:
            for a in use.arrays:
                for n in np.unique(is_frozen[find(a)]).tolist():
                    weights.setdefault(n, {})[use.name] = None
    causes, found = Causes(coupling), dict[Reason, tuple[int, dict[str, None]]]()
    for n, count in sorted(Counter(number.tolist()).items(), key=lambda item: -item[1]):
        reason = GOES_ALONG if n < 0 else causes.of(coupling.labels.reasons[n])
        known, names = found.get(reason, (0, {}))
        found[reason] = known + count, names | weights.get(n, {})
    rows = sorted(found.items(), key=lambda item: -item[1][0])
    return tuple(FrozenRow(why.node, why.op, why.why, count, tuple(names)) for why, (count, names) in rows)


def notes(cutting: Cutting) -> Iterator[str]:
    """Yields what a user should know of a cut, one line each."""
    coupling = cutting.coupling
    if coupling.approximate:
        yield (
            "axes were opened that cannot be cut exactly (approximate): "
            "the outputs also move by what a normalisation or mean sees"
        )
    listed = {v.name for v in coupling.model.graph.inputs}
    both = sorted({use.name for use in coupling.uses if use.name in listed and cutting.touches(use)})
    if both:
        names = ", ".join(both[:5])
        yield f"{len(both)} pruned initializers are graph inputs too and have their new dimensions there: {names}"
    yield from strangers(coupling)
    for reason in coupling.barriers:
        if "rule failed" in reason.why or "another shape" in reason.why:
            yield f"treated as unknown: {reason}"


def strangers(coupling: Coupling) -> Iterator[str]:
    """Yields a line for each operator that holds weights and has no rule, so that nothing around it can be cut.

    Weights of bodies that could not be laid flat are held by their node.
    """
    weights = _weights(coupling.model.graph)
    found = Counter[tuple[str, str]]()
    for node in coupling.nodes:
        if any(_weights(body) for body in subgraphs(node)):
            yield f"{node.op_type} {quote(node.name or '')}: the weights inside stay, its body could not be followed"
        home = lookup(node)
        known = home is not None and home.coupling.rule is not None
        if not known and any(v is not None and v.name in weights for v in node.inputs):
            found[node.domain, node.op_type] += 1
    for (domain, op), count in found.most_common():
        nodes = f"{count} {op} nodes" if count > 1 else f"1 {op} node"
        told = f"no rule for {nodes} of {quote(domain or 'ai.onnx')} holding weights"
        advice = " (onnxruntime wrote them for one processor: prune the model they were made from)"
        yield told + advice if domain == BLOCKED else told


def _weights(graph: ir.Graph) -> set[str]:
    """Returns the float constants of a graph with two axes or more."""
    return {n for n, t in constants(graph).items() if len(t.shape) > 1 and t.dtype.is_floating_point()}


def number_warnings(units: Units, jobs: int) -> Iterator[str]:
    """Yields a warning for each weight of a group with values that are no numbers: it tells nothing of importance."""
    tensors = constants(units.coupling.model.graph)
    members = dict.fromkeys(units.coupling.uses[u].name for group in units.groups for u, _ in group.members)
    names = [name for name in members if name in tensors and tensors[name].dtype.is_floating_point()]
    size = sum(tensors[name].nbytes for name in names)
    counts = looked_at(lambda name: _strange(tensors[name].numpy()), names, jobs, size)
    for name, count in zip(names, counts, strict=True):
        if count:
            yield (
                f"weight {quote(name)} holds {count:,} values that are not finite (NaN or infinite): "
                "it was left out of scoring, check how the model was trained or converted"
            )


def _strange(values: np.ndarray) -> int:
    """Returns how many values are not finite; one look is enough for most, whose sum is."""
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(values.sum(dtype=np.float32)):
            return 0
    return values.size - int(np.isfinite(values.astype(np.float32, copy=False)).sum())


def collapse_warnings(validation: Validation | None) -> Iterator[str]:
    """Yields a warning for each output that has collapsed."""
    if validation is None:
        return
    advice = "; a lower ratio keeps more" + (", weights alone cannot tell what matters" if validation.made_up else "")
    for f in validation.fidelity:
        if f.collapsed:
            top = "" if f.top1_agreement is None else f", top-1 agreement {f.top1_agreement:.0%}"
            yield (
                f"output {f.name} has collapsed: relative error {f.relative_error:.2f}{top} against the original "
                f"(on {validation.inputs or 'made-up inputs'}){advice}"
            )


def all_frozen(units: Units) -> str:
    """Returns why a model has no unit that could go, and what to do."""
    told = [*strangers(units.coupling), *(f"{r.op or 'graph'} {r.node}: {r.why}" for r in frozen_rows(units)[:3])]
    reasons = "; ".join(told) or "no weight makes channels that could go"
    return f"nothing to prune: every channel is frozen ({reasons}); `onnxprune inspect` lists all reasons"
