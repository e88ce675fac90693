"""The whole way: load, trace, couple, score, allocate, cut, validate, report."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxprune import __version__, cost
from onnxprune.allocation import select, uniform
from onnxprune.coupling import Coupling, couple
from onnxprune.criteria import CRITERIA
from onnxprune.cut import cut
from onnxprune.cutting import Cutting
from onnxprune.errors import NothingToPruneError, UsageError
from onnxprune.labels import Array
from onnxprune.model import Source, check_output, check_unchanged, load, save
from onnxprune.plan import Plan
from onnxprune.planning import decide, make_plan, replay
from onnxprune.report import Count, FrozenRow, GroupRow, Inspection, Report, Validation
from onnxprune.runtime import provider_names
from onnxprune.scoring import score
from onnxprune.trace import trace
from onnxprune.units import Units
from onnxprune.validation import Judge

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

ModelLike = str | os.PathLike[str] | onnx.ModelProto | ir.Model | Any

COLLAPSED_ERROR = 0.5
COLLAPSED_AGREEMENT = 0.5


@dataclass(eq=False)
class Result:
    """A pruned model with its plan and report.

    Attributes:
        model: the pruned graph in memory.
        plan: which units were cut.
        report: figures, reasons and warnings.
    """

    model: ir.Model
    plan: Plan
    report: Report
    _source: Source = field(repr=False)
    _judge: Judge | None = field(repr=False)

    def save(self, path: str | os.PathLike[str], *, in_place: bool = False) -> Report:
        """Writes the model atomically, validated as a file, and returns the report with the figures of that file.

        Raises:
            UsageError: `path` is the input or its data and `in_place` is not set.
            ValidationError: the written file is not what it should be; the destination is as it was.
            RunError: it cannot be written.
        """
        target = Path(path)
        check_output(target, self._source, in_place)
        found: list[Validation] = []

        def check(written: Path) -> None:
            check_unchanged(self._source)
            if self._judge is not None:
                found.append(self._judge.judge(written))

        files = save(self.model, target, external=bool(self._source.data_files), check=check)
        size = Count(self.report.size.before, sum(f.stat().st_size for f in files))
        validation = found[0] if found else None
        warnings = (
            self.report.warnings if self.report.validation else (*self.report.warnings, *collapse_warnings(validation))
        )
        self.report = replace(self.report, output=str(target), size=size, validation=validation, warnings=warnings)
        return self.report

    def to_gs(self) -> gs.Graph:
        """Returns the pruned model as an onnx-graphsurgeon graph."""
        import onnx_graphsurgeon as gs

        return gs.import_onnx(ir.to_proto(self.model))


@dataclass
class _Clock:
    """Seconds by stage, and a word to the user at the start of each."""

    progress: Callable[[str], None] | None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        if self.progress is not None:
            self.progress(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)


def prune(
    model: ModelLike,
    *,
    ratio: float | None = None,
    criterion: str | None = None,
    compensate: str = "none",
    allocation: str = "uniform",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    align: int = 1,
    approximate: bool = False,
    validate: bool = True,
    provider: Sequence[str] = (),
    seed: int = 0,
    output: str | os.PathLike[str] | None = None,
    in_place: bool = False,
    dry_run: bool = False,
    apply: str | os.PathLike[str] | Plan | None = None,
    progress: Callable[[str], None] | None = None,
) -> Result:
    """Returns a smaller model whose channels, neurons and heads of least importance are gone.

    Args:
        model: path, `onnx.ModelProto`, `onnx_ir.Model` or `gs.Graph`; it is not changed.
        ratio: share of the prunable units to cut in each group, at least 0 and below 1.
        criterion: `l1` (default), `l2` or `random`.
        compensate: `none`.
        allocation: `uniform`.
        include: globs over group, weight and node names; only groups that match are cut.
        exclude: globs; groups that match are not cut.
        align: kept counts are rounded up to multiples of it.
        approximate: open axes that cannot be cut exactly (normalisations and means over them).
        validate: prove the result in onnxruntime.
        provider: execution providers, in order (`cpu`, `cuda`, ...); default: the CPU.
        seed: of every random draw.
        output: where to write the pruned model; None keeps it in memory.
        in_place: `output` may be the input.
        dry_run: plan and report only, nothing is cut.
        apply: a plan to replay instead of `ratio`.
        progress: called with the name of each stage as it starts.

    Raises:
        OnnxPruneError: see `onnxprune.errors` for the tree.
    """
    _check_options(ratio, criterion, compensate, allocation, align, apply)
    providers = provider_names(provider)
    clock = _Clock(progress)
    plan = Plan.load(apply) if apply is not None and not isinstance(apply, Plan) else apply
    with clock.stage("load"):
        source = load(model)
        if output is not None:
            check_output(Path(output), source, in_place)
    coupling = _coupled(source, plan.approximate if plan else approximate, seed, providers, clock)
    options = {
        "ratio": ratio,
        "criterion": criterion or "l1",
        "compensate": compensate,
        "allocation": allocation,
        "include": list(include),
        "exclude": list(exclude),
        "align": align,
        "approximate": approximate,
        "seed": seed,
    }
    with clock.stage("plan"):
        if plan is not None:
            cutting, rewrite, stuck = replay(coupling, plan, source.sha256)
            options = plan.options
        else:
            assert ratio is not None
            share = ratio
            chooser = _chooser(criterion or "l1", share, seed, align, include, exclude)
            cutting, rewrite, stuck = decide(coupling, chooser)
        if not len(cutting.dead_units) and (plan is None and ratio):
            raise NothingToPruneError(_why_nothing(cutting.units, ratio, include, exclude))
    with clock.stage("cut"):
        pruned = source.model.clone() if dry_run else cut(cutting, rewrite)
    judge = Judge(
        source.model, cutting, providers, seed, exact=not coupling.approximate, external=bool(source.data_files)
    )
    made = make_plan(cutting, stuck, source.sha256, coupling.approximate, options)
    report = _report(source, cutting, pruned, options, clock)
    result = Result(pruned, made, report, source, judge if validate and not dry_run else None)
    if dry_run:
        return result
    with clock.stage("validate" if validate else "write"):
        if output is not None:
            result.save(output, in_place=in_place)
        elif result._judge is not None:
            validation = result._judge.judge(pruned)
            result.report = replace(
                report, validation=validation, warnings=(*report.warnings, *collapse_warnings(validation))
            )
    result.report = replace(result.report, seconds=dict(clock.seconds))
    return result


def inspect(
    model: ModelLike,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    approximate: bool = False,
    provider: Sequence[str] = (),
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Inspection:
    """Returns what can be cut out of a model, what hangs on it, and what is frozen and why."""
    clock = _Clock(progress)
    providers = provider_names(provider)
    with clock.stage("load"):
        source = load(model)
    coupling = _coupled(source, approximate, seed, providers, clock)
    with clock.stage("plan"):
        cutting, _, _ = decide(coupling, _chooser("l1", 0.5, seed, 1, include, exclude))
    return Inspection(
        tool=__version__,
        model=str(source.path or ""),
        sha256=source.sha256,
        macs=cost.macs(coupling),
        params=cost.parameters(source.model),
        size=source.size,
        groups=_group_rows(cutting),
        frozen=_frozen_rows(cutting.units),
        macs_at_half=cost.macs(coupling, cutting),
    )


def _check_options(
    ratio: float | None, criterion: str | None, compensate: str, allocation: str, align: int, apply: object
) -> None:
    if (ratio is None) == (apply is None):
        raise UsageError("say how much to cut: give ratio (0 <= ratio < 1), or a plan to apply, not both")
    if ratio is not None and not 0 <= ratio < 1:
        raise UsageError(f"ratio {ratio} is not at least 0 and below 1: give the share of units to cut, like 0.5")
    _one_of("criterion", criterion or "l1", list(CRITERIA))
    _one_of("compensate", compensate, ["none"])
    _one_of("allocation", allocation, ["uniform"])
    if align < 1:
        raise UsageError(f"align {align} is below 1: give the multiple that kept counts are rounded to")


def _one_of(option: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        near = get_close_matches(value, known, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"{option} {value!r} is not known: {hint}one of {', '.join(known)}")


def _coupled(source: Source, approximate: bool, seed: int, providers: tuple[str, ...], clock: _Clock) -> Coupling:
    with clock.stage("trace"):
        traced = trace(source.model, seed=seed, providers=providers)
    with clock.stage("couple"):
        return couple(source.model, traced, approximate=approximate)


def _chooser(
    criterion: str, ratio: float, seed: int, align: int, include: Sequence[str], exclude: Sequence[str]
) -> Callable[[Units], Array]:
    def choose(units: Units) -> Array:
        if not ratio:
            return np.zeros(0, np.int64)
        scores = score(units, CRITERIA[criterion], seed)
        return uniform(units, scores, ratio, align=align, chosen=select(units, include, exclude))

    return choose


def _report(source: Source, cutting: Cutting, pruned: ir.Model, options: dict[str, Any], clock: _Clock) -> Report:
    coupling = cutting.coupling
    return Report(
        tool=__version__,
        model=str(source.path or ""),
        sha256=source.sha256,
        output=None,
        options=options,
        macs=Count(cost.macs(coupling), cost.macs(coupling, cutting)),
        params=Count(cost.parameters(source.model), cost.parameters(pruned)),
        size=Count(source.size, _bytes(pruned)),
        groups=_group_rows(cutting),
        frozen=_frozen_rows(cutting.units),
        notes=tuple(_notes(cutting)),
        warnings=(),
        validation=None,
        seconds=dict(clock.seconds),
    )


def _bytes(model: ir.Model) -> int:
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


def _group_rows(cutting: Cutting) -> tuple[GroupRow, ...]:
    units = cutting.units
    macs, params = cost.per_unit(units)
    dead = np.zeros(units.count + 1, bool)
    dead[cutting.dead_units] = True
    rows = []
    for k, group in enumerate(units.groups):
        members = dict.fromkeys(units.coupling.uses[u].name for u, _ in group.members)
        rows.append(
            GroupRow(
                group.name, len(group), int(dead[group.units].sum()), tuple(members), float(macs[k]), float(params[k])
            )
        )
    return tuple(rows)


def _frozen_rows(units: Units) -> tuple[FrozenRow, ...]:
    """Returns, for each reason, how many produced channels it freezes and in which weights."""
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
    rows = []
    for n, count in sorted(Counter(number.tolist()).items(), key=lambda item: -item[1]):
        names = tuple(weights.get(n, {}))
        if n < 0:
            rows.append(FrozenRow("", "", "goes only together with others, which stay", count, names))
        else:
            reason = coupling.labels.reasons[n]
            rows.append(FrozenRow(reason.node, reason.op, reason.why, count, names))
    return tuple(rows)


def _notes(cutting: Cutting) -> Iterator[str]:
    coupling = cutting.coupling
    if coupling.approximate:
        yield "axes were opened that cannot be cut exactly (approximate): the outputs also move by what a normalisation or mean sees"
    listed = {v.name for v in coupling.model.graph.inputs}
    both = sorted({use.name for use in coupling.uses if use.name in listed and cutting.touches(use)})
    if both:
        yield f"{len(both)} pruned initializers are graph inputs too and have their new dimensions there: {', '.join(both[:5])}"
    for reason in coupling.barriers:
        if "rule failed" in reason.why or "another shape" in reason.why:
            yield f"treated as unknown: {reason}"


def collapse_warnings(validation: Validation | None) -> Iterator[str]:
    """Yields a warning for each output that has collapsed."""
    for f in validation.fidelity if validation else ():
        low = f.top1_agreement is not None and f.top1_agreement < COLLAPSED_AGREEMENT
        if low or f.relative_error > COLLAPSED_ERROR:
            top = "" if f.top1_agreement is None else f", top-1 agreement {f.top1_agreement:.0%}"
            yield (
                f"output {f.name} has collapsed: relative error {f.relative_error:.2f}{top} against the original "
                "(on made-up inputs); a lower ratio keeps more, weights alone cannot tell what matters"
            )


def _why_nothing(units: Units, ratio: float, include: Sequence[str], exclude: Sequence[str]) -> str:
    if units.groups and (include or exclude) and not any(select(units, include, exclude)):
        return "nothing to prune: no group matches --include/--exclude; `onnxprune inspect` lists the names"
    if units.groups:
        most = max(len(g) for g in units.groups)
        return f"nothing to prune: ratio {ratio} cuts no whole unit (the largest group has {most}); give a higher ratio"
    rows = _frozen_rows(units)
    reasons = (
        "; ".join(f"{r.op or 'graph'} {r.node}: {r.why}" for r in rows[:3]) or "no weight makes channels that could go"
    )
    return f"nothing to prune: every channel is frozen ({reasons}); `onnxprune inspect` lists all reasons"


__all__ = ["Result", "inspect", "prune"]
