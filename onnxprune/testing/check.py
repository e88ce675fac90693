"""Proof of a coupling: cut what the rules say, and compare with the masked original in onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from onnxprune.engine.coupling import couple
from onnxprune.engine.cut import cut, masked
from onnxprune.engine.cutting import Cutting
from onnxprune.engine.labels import Array
from onnxprune.engine.rows import find_rows, rearranged
from onnxprune.engine.sizes import rewrite_sizes
from onnxprune.engine.units import Rows, Units, find_units
from onnxprune.graph.flat import look_into
from onnxprune.graph.trace import trace
from onnxprune.testing.cases import Case, Consumer, build, feeds, run

__all__ = ["TOLERANCE", "Outcome", "check", "check_model", "difference"]

TOLERANCE = 1e-4
SIZES = (2, 5)  # batch sizes; the trace sees 2 and 3
SINGLE_UNITS = 6  # how many units of a model are cut alone


@dataclass(frozen=True)
class Outcome:
    """What a check found.

    Attributes:
        units: sizes of the pruning groups, sorted.
        cuts: how many cuts were compared.
        wrong: cuts that gave another result than the masked original, or no valid model.
        stuck: operators whose sizes could not follow a cut, which was therefore not made.
        frozen: reasons why labels stay.
    """

    units: tuple[int, ...]
    cuts: int
    wrong: tuple[str, ...]
    stuck: tuple[str, ...]
    frozen: tuple[str, ...]


def check(case: Case, consumer: Consumer = "matmul", seed: int = 0, halves: int = 2) -> Outcome:
    """Returns what a case's groups are and which of its cuts are wrong."""
    return check_model(build(case, consumer, seed), seed, halves, case)


def check_model(model: onnx.ModelProto, seed: int = 0, halves: int = 2, case: Case | None = None) -> Outcome:
    """Returns what a model's groups are and which of its cuts are wrong.

    Args:
        model: a small one, with a dynamic size.
        seed: of the data and of the choice of units.
        halves: how many times about half of every group is cut, chosen anew, and once more with units put together of
            any slots where their rows are free; single units are cut one by one.
        case: where the ranges of integer inputs stand.
    """
    graph = ir.from_proto(model)
    flat, sizes = look_into(graph, lambda m: trace(m, seed))
    coupling = couple(flat.model if flat else graph, sizes, flat=flat)
    units = find_units(coupling)
    reasons = sorted({str(r) for r in coupling.labels.reasons})
    rng = np.random.default_rng(seed)
    inputs = [feeds(model, n, seed, case) for n in SIZES]
    checked = _passes_checker(model)
    wrong: list[str] = []
    stuck: set[str] = set()
    trials = [("half", units, _half(units, rng)) for _ in range(halves)]
    able = [int(u) for g in units.groups if len(g) > 1 for u in g.units]
    trials += [(f"unit {u}", units, np.array([u])) for u in rng.permutation(able)[:SINGLE_UNITS]]
    if rows := find_rows(units):
        mixed = (_mixed(units, rows, rng) for _ in range(halves))
        trials += [("half, rows apart,", each, _half(each, rng)) for each in mixed]
    count = 0
    for what, chosen, dead in trials:
        dead = _leave_families(chosen, dead)
        if not dead.size:
            continue
        cutting = Cutting(chosen, dead)
        rewrite = rewrite_sizes(cutting)
        if rewrite.failed:
            stuck |= {f"{coupling.nodes[k].op_type}: {why}" for k, why in rewrite.failed.items()}
            continue
        count += 1
        problem = _compare(cutting, ir.to_proto(cut(cutting, rewrite)), inputs, checked)
        if problem:
            wrong.append(f"{what} {_describe(cutting)}: {problem}")
    return Outcome(
        tuple(sorted(len(g) for g in units.groups)), count, tuple(wrong), tuple(sorted(stuck)), tuple(reasons)
    )


def _mixed(units: Units, rows: Sequence[Rows], rng: np.random.Generator) -> Units:
    """Returns the units put together of other slots of their rows, at random."""
    return rearranged(units, rows, [rng.permuted(np.indices(each.slots.shape)[0], axis=0) for each in rows])


def _half(units: Units, rng: np.random.Generator) -> Array:
    """Returns about half of every group's units, at random; one stays."""
    dead = [np.zeros(0, np.int64)]
    for g in units.groups:
        n = len(g) // 2 if len(g) % 2 == 0 or rng.random() < 0.5 else len(g) // 2 + 1
        dead.append(rng.permutation(g.units)[: min(n, len(g) - 1)])
    return np.sort(np.concatenate(dead))


def _leave_families(units: Units, dead: Array) -> Array:
    """Returns `dead` without one unit of every set that would go as a whole."""
    for family in units.families:
        if np.isin(family, dead).all():
            dead = dead[dead != family[0]]
    return dead


def _describe(cutting: Cutting) -> str:
    """Returns which indices of which constants a cut takes."""
    parts = []
    for use in cutting.coupling.uses:
        for axis, count in enumerate(use.shape):
            gone = sorted(set(range(count)).difference(*(keep.tolist() for keep in cutting.kept_of(use, axis)[1])))
            if gone:
                parts.append(f"{use.name}[{axis}]-{gone if len(gone) <= 8 else f'{len(gone)} of {use.shape[axis]}'}")
    return " ".join(parts)


def _passes_checker(model: onnx.ModelProto) -> bool:
    """Returns whether the original passes onnx's checker: its shape inference fails on a few correct models."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception:  # the checker's and shape inference's own classes
        return False
    return True


def _compare(cutting: Cutting, small: onnx.ModelProto, inputs: list[dict[str, Array]], checked: bool) -> str:
    """Returns how the cut model differs from the masked one, "" where it does not."""
    reference = ir.to_proto(masked(cutting))
    try:
        if checked:
            onnx.checker.check_model(small, full_check=True)
        got = run(small, *inputs)
    except Exception as error:  # the checker's and onnxruntime's own classes
        return f"not valid: {str(error).strip().splitlines()[0][:300]}"
    for n, wanted, results in zip(SIZES, run(reference, *inputs), got, strict=True):
        worst = difference(wanted, results)
        if not worst < TOLERANCE:
            return f"differs by {worst:.1e} at batch size {n}"
    return ""


def difference(wanted: list[Array], got: list[Array]) -> float:
    """Returns the largest relative error of a list of outputs; infinite where a shape or a NaN differs from it."""
    worst = 0.0
    for a, b in zip(wanted, got, strict=True):
        if a.shape != b.shape or not np.isfinite(a).all() or not np.isfinite(b).all():
            return np.inf
        worst = max(worst, float(np.max(np.abs(a - b), initial=0) / max(np.max(np.abs(a), initial=0), 1e-6)))
    return worst
