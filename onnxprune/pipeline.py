"""The whole way: load, trace, couple, score, allocate, cut, compensate, validate, report."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from glob import escape
from pathlib import Path
from typing import Any

from onnxprune import __version__
from onnxprune.aim import Aim
from onnxprune.allocation.counts import at_ratio, least_important, select, steps_of
from onnxprune.allocation.mending import Chosen
from onnxprune.calibration import Calibration, PictureOptions
from onnxprune.calibration.checks import shown
from onnxprune.calibration.labelled import Labels
from onnxprune.clock import Clock
from onnxprune.criteria.ranking import rank_by_weights
from onnxprune.engine import cost
from onnxprune.engine.labels import Array
from onnxprune.engine.units import Units
from onnxprune.errors import NothingToPruneError, ValidationError
from onnxprune.graph.model import load
from onnxprune.graph.runtime import provider_names
from onnxprune.opening import opened_study
from onnxprune.options import Align, checked, limits_of, options_of, replayed
from onnxprune.plan import Plan
from onnxprune.planning import decide, replay
from onnxprune.proof.blame import blamed
from onnxprune.reports.findings import frozen_rows, group_rows, strangers
from onnxprune.reports.report import Inspection
from onnxprune.result import Result, assembled, judge_of
from onnxprune.search import smallest
from onnxprune.study import Cut, Study
from onnxprune.subject import DataLike, DataSource, ModelLike, coupled
from onnxprune.task import EvaluationSource, Task

__all__ = ["Result", "inspect", "prune"]


def prune(
    model: ModelLike,
    *,
    ratio: float | None = None,
    target: Mapping[str, float | str] | None = None,
    max_drop: float | None = None,
    criterion: str | None = None,
    compensate: str = "auto",
    allocation: str = "auto",
    streams: bool | None = None,
    calibration: DataLike | Calibration | None = None,
    data_script: str | os.PathLike[str] | None = None,
    pictures: PictureOptions | None = None,
    samples: int | None = None,
    evaluate: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    labels: Labels | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    max_ratio_per_group: float | Mapping[str, float] | None = None,
    min_units: int | Mapping[str, float] | None = None,
    align: Align | None = None,
    approximate: bool = False,
    validate: bool = True,
    provider: Sequence[str] = (),
    threads: int = 0,
    batch: int = 1,
    seed: int = 0,
    jobs: int | None = None,
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
        target: instead of a ratio, what may be left: shares like `{"macs": 0.5}` (`macs`, `params`, `size`,
            `latency`), or sizes and times like `{"size": "4MB", "latency": "8ms"}`; all must hold.
        max_drop: instead of both, the loss that the smallest model may have: percentage points of top-1 with
            `evaluate` and `labels`, else the divergence of the outputs on held-out calibration inputs.
        criterion: `obs` (default: the loss that least squares cannot mend) or another name in `criteria.CRITERIA`.
        compensate: `none`, `bias`, `lstsq` (least squares, layer by layer), `joint` (then chains of layers with
            activations, attention or gates between them together) or `auto`, which is `joint`.
        allocation: `uniform`, `global`, `sensitivity`, or `auto`: uniform with a ratio, else sensitivity.
        streams: cut residual streams too; default: not if a target is met uniformly or globally.
        calibration: inputs of the kind the model will see: a path, arrays by input name, an iterable of feeds or a
            reader with `get_next()`; None: made-up ones.
        data_script: a Python file that gives them, `FILE.py` or `FILE.py:NAME`; it is run.
        pictures: how pixels become inputs, where data are folders of pictures.
        samples: how many of them to use; None: what a pass over the model is worth, 1,024 at most. Where there are
            less than half as many, weights are refitted on mixtures of them, too.
        evaluate: labelled data that top-1 is measured on before and after: a path, or arrays by name.
        labels: the name of the labels in there, or a path or array of their own.
        include: globs over group, weight and node names; only groups that match are cut.
        exclude: globs; groups that match are not cut.
        max_ratio_per_group: share of a group that may go at most; or such shares by glob, of which the last counts.
        min_units: units of a group that stay at least; or such numbers by glob.
        align: kept counts are rounded up to multiples of it; `auto`, the default but with a ratio: where that pays.
        approximate: open axes that cannot be cut exactly (normalisations and means over them).
        validate: prove the result in onnxruntime.
        provider: execution providers, in order (`cpu`, `cuda`, ...); default: the CPU.
        threads: threads that latency is measured with; 0: the provider's choice.
        batch: batch size that latency is measured at.
        seed: of every random draw.
        jobs: measurements at a time; None: one for each processor. They do not change the result.
        output: where to write the pruned model; None keeps it in memory.
        in_place: `output` may be the input.
        dry_run: plan and report only, nothing is written.
        apply: a plan to replay instead of `ratio`.
        progress: called with the name of each stage as it starts.

    Raises:
        OnnxPruneError: see `onnxprune.errors` for the tree.
    """
    asked = dict(locals())
    wanted = options_of(
        ratio=ratio,
        targets=limits_of(target),
        max_drop=max_drop,
        criterion=criterion,
        compensate=compensate,
        allocation=allocation,
        include=include,
        exclude=exclude,
        max_ratio_per_group=max_ratio_per_group,
        min_units=min_units,
        align=align,
        streams=streams,
        approximate=approximate,
        samples=samples,
        hold_out=max_drop is not None and evaluate is None,
        threads=threads,
        batch=batch,
        seed=seed,
    )
    plan = Plan.load(apply) if apply is not None and not isinstance(apply, Plan) else apply
    options = checked(wanted if plan is None else replayed(wanted, plan.options), replay=plan is not None)
    where = DataSource(calibration, data_script, pictures)
    labelled = EvaluationSource(evaluate, labels, pictures)
    providers = provider_names(provider)
    clock = Clock(progress)
    study, task = opened_study(
        model,
        options,
        where,
        labelled,
        providers,
        clock,
        approximate=plan.approximate if plan else approximate,
        jobs=jobs,
        output=None if output is None else Path(output),
        in_place=in_place,
    )
    study.matches = not dry_run
    found = _found(study, plan, task, dry_run=dry_run)
    if not len(found.chosen.cutting.dead_units) and options.ratio is not None and ratio != 0:
        raise NothingToPruneError(study.why_nothing())
    judge = judge_of(study, found, task) if validate and not dry_run else None
    result = Result(found.model, found.plan, assembled(study, found, options), study.source, judge, task)
    if options.limits_latency:
        result._timed = study.timed
    if dry_run:
        return result
    try:
        with clock.stage("validate" if validate else "write"):
            if output is not None:
                result.save(output, in_place=in_place)
            else:
                result.measure()
    except ValidationError as refusal:
        with clock.stage("find what is wrong"):
            wrong = blamed(judge) if judge is not None and plan is None else ()
        if not wrong:
            raise
        return _without(wrong, refusal, asked, study.used_data)
    result.report = replace(result.report, seconds=dict(clock.seconds))
    return result


def _without(
    groups: Sequence[str], refusal: ValidationError, asked: dict[str, Any], data: Calibration | None
) -> Result:
    """Prunes once more and leaves some groups whole, which the proof has refused, and says so."""
    own = asked["max_ratio_per_group"] or {}
    bounds = {**(own if isinstance(own, Mapping) else {"*": own}), **dict.fromkeys(map(escape, groups), 0.0)}
    known: dict[str, Any] = {"max_ratio_per_group": bounds}
    if data is not None and not data.synthetic:  # what was read once may not be there to be read again
        known |= {"calibration": data, "data_script": None, "pictures": None}
    try:
        result = prune(**asked | known)
    except NothingToPruneError:
        raise refusal from None
    told = f"{shown(groups)} stay whole: the proof refused their cut; please report this model"
    result.report = replace(result.report, warnings=(*result.report.warnings, told))
    return result


def _found(study: Study, plan: Plan | None, task: Task | None, *, dry_run: bool) -> Cut:
    """Returns the cut that is asked for: of a plan, of a ratio, within targets, or the smallest that loses little."""
    options = study.options
    if plan is not None:
        with study.clock.stage("plan"):
            chosen = Chosen(*replay(study.coupling, plan, study.source.sha256))
        # a replay is the same pruning again
        return study.finished(chosen if dry_run else study.mended(chosen, choose=False), plan.options)
    asked = options.to_dict()
    if options.ratio is not None:
        with study.clock.stage("plan"):
            chosen = study.at_ratio(options.ratio)
        return study.finished(chosen if dry_run else study.mended(chosen), asked)
    if options.max_drop is not None:
        return smallest(study, task, options.max_drop)
    if dry_run:
        return study.finished(Aim(study, options.targets, asked).expected(), asked)
    return Aim(study, options.targets, asked).met()


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
    clock = Clock(progress)
    providers = provider_names(provider)
    with clock.stage("load"):
        source = load(model)
    coupling = coupled(source, approximate, seed, providers, clock)

    def half(units: Units) -> Array:
        may = select(units, include, exclude)
        most = tuple(len(group) - 1 if ok else 0 for group, ok in zip(units.groups, may, strict=True))
        counts = at_ratio(units, 0.5, steps=steps_of(units, 1), most=most)
        return least_important(units, rank_by_weights(units, "l1", seed), counts)

    with clock.stage("plan"):
        cutting, _, _ = decide(coupling, half)
    return Inspection(
        tool=__version__,
        model=str(source.path or ""),
        sha256=source.sha256,
        macs=cost.macs(coupling),
        params=cost.parameters(source.model),
        size=source.size,
        groups=group_rows(cutting),
        frozen=frozen_rows(cutting.units),
        macs_at_half=cost.macs(coupling, cutting),
        notes=tuple(strangers(coupling)),
    )
