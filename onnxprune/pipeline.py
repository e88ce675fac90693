"""The whole way: load, trace, couple, plan, calibrate, cut, validate, report."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxprune import __version__, cost
from onnxprune.allocation import Counts, at_ratio, least_important, select, streams, to_target
from onnxprune.calibration import Calibration, PictureOptions, find_test_data, open_calibration, open_script
from onnxprune.compensation import Compensated
from onnxprune.compensation import apply as apply_weights
from onnxprune.compensation import compensate as compensated
from onnxprune.coupling import Coupling, couple
from onnxprune.cut import cut
from onnxprune.cutting import Cutting
from onnxprune.errors import NothingToPruneError, TargetError, UsageError
from onnxprune.findings import collapse_warnings, frozen_rows, group_rows, notes, why_nothing
from onnxprune.flat import look_into
from onnxprune.inputs import specs
from onnxprune.labels import Array
from onnxprune.model import Source, check_output, check_unchanged, load, save
from onnxprune.options import Options, checked, replayed
from onnxprune.plan import Plan
from onnxprune.planning import decide, make_plan, replay
from onnxprune.ranking import rank_by_data, rank_by_weights, weight_notes
from onnxprune.report import Count, Inspection, Report, Validation
from onnxprune.runtime import provider_names
from onnxprune.scoring import Scores
from onnxprune.sizes import Rewrite, rewrite_sizes
from onnxprune.trace import trace
from onnxprune.units import Units
from onnxprune.validation import Judge

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

ModelLike = str | os.PathLike[str] | onnx.ModelProto | ir.Model | Any
DataLike = str | os.PathLike[str] | Mapping[str, np.ndarray] | Iterable[Mapping[str, np.ndarray]] | Any

MOST_SAMPLES, LEAST_SAMPLES = 1024, 64
WORK, MADE_UP_WORK = 2 * 10**12, 5 * 10**11  # MACs of one pass over the calibration data that are worth it
BATCH = 64


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
        self.report = replace(self.report, output=str(target), size=size)
        if found:
            self.report = _judged(self.report, found[0])
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


@dataclass(frozen=True, eq=False)
class _Chosen:
    """A decided cut with all that follows from it."""

    cutting: Cutting
    rewrite: Rewrite
    stuck: tuple[int, ...]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def prune(
    model: ModelLike,
    *,
    ratio: float | None = None,
    target: Mapping[str, float] | None = None,
    criterion: str | None = None,
    compensate: str = "auto",
    allocation: str = "auto",
    streams: bool | None = None,
    calibration: DataLike | Calibration | None = None,
    data_script: str | os.PathLike[str] | None = None,
    pictures: PictureOptions | None = None,
    samples: int | None = None,
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
        target: instead of a ratio, the shares that may be left, like `{"macs": 0.5}` (`macs`, `params`).
        criterion: `obs` (default: the loss that least squares cannot mend) or another name in `criteria.CRITERIA`.
        compensate: `auto` (least squares), `none`, `bias` or `lstsq`.
        allocation: `auto` or `uniform`.
        streams: cut residual streams too; default: with a ratio, not with a target.
        calibration: inputs of the kind the model will see: a path, arrays by input name, an iterable of feeds or a
            reader with `get_next()`; None: made-up ones.
        data_script: a Python file that gives them, `FILE.py` or `FILE.py:NAME`; it is run.
        pictures: how pixels become inputs, where `calibration` is a folder of pictures.
        samples: how many of them to use.
        include: globs over group, weight and node names; only groups that match are cut.
        exclude: globs; groups that match are not cut.
        align: kept counts are rounded up to multiples of it.
        approximate: open axes that cannot be cut exactly (normalisations and means over them).
        validate: prove the result in onnxruntime.
        provider: execution providers, in order (`cpu`, `cuda`, ...); default: the CPU.
        seed: of every random draw.
        output: where to write the pruned model; None keeps it in memory.
        in_place: `output` may be the input.
        dry_run: plan and report only, nothing is written.
        apply: a plan to replay instead of `ratio`.
        progress: called with the name of each stage as it starts.

    Raises:
        OnnxPruneError: see `onnxprune.errors` for the tree.
    """
    wanted = Options(
        ratio=ratio,
        targets=tuple((target or {}).items()),
        criterion=criterion,
        compensate=compensate,
        allocation=allocation,
        include=tuple(include),
        exclude=tuple(exclude),
        align=align,
        streams=streams,
        approximate=approximate,
        samples=samples,
        seed=seed,
    )
    plan = Plan.load(apply) if apply is not None and not isinstance(apply, Plan) else apply
    options = checked(wanted if plan is None else replayed(wanted, plan.options), replay=plan is not None)
    providers = provider_names(provider)
    clock = _Clock(progress)
    with clock.stage("load"):
        source = load(model)
        if output is not None:
            check_output(Path(output), source, in_place)
    opened = plan.approximate if plan else approximate
    coupling = _coupled(source, opened, options.seed, providers, clock)
    data: Calibration | None = None
    if calibration is not None and data_script is not None:
        raise UsageError("calibration data and a data script are both given: give one of them")
    if options.needs_data and options.ratio != 0:
        with clock.stage("read the data"):
            data = _calibration(source, coupling, options, calibration, data_script, pictures)
    with clock.stage("plan"):
        if plan is not None:
            chosen = _Chosen(*replay(coupling, plan, source.sha256))
        else:
            chosen = _Chosen(*decide(coupling, _chooser(options)))
        if not len(chosen.cutting.dead_units) and plan is None and options.ratio != 0:
            raise NothingToPruneError(why_nothing(chosen.cutting.units, options.ratio, include, exclude))
    if data is not None and not dry_run:
        with clock.stage("calibrate"):
            chosen = _mended(chosen, options, data, providers, choose=plan is None, progress=progress)
    with clock.stage("cut"):
        pruned = cut(chosen.cutting, chosen.rewrite)
    real = data is not None and not data.synthetic
    judge = Judge(
        source.model,
        chosen.cutting,
        providers,
        seed,
        exact=not opened,
        external=bool(source.data_files),
        data=data if real else None,
    )
    made = make_plan(chosen.cutting, chosen.stuck, source.sha256, opened, options.to_dict())
    report = _report(source, chosen, pruned, options, data, clock)
    result = Result(pruned, made, report, source, judge if validate and not dry_run else None)
    if dry_run:
        return result
    with clock.stage("validate" if validate else "write"):
        if output is not None:
            result.save(output, in_place=in_place)
        elif result._judge is not None:
            result.report = _judged(report, result._judge.judge(pruned))
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
    half = Options(ratio=0.5, criterion="l1", include=tuple(include), exclude=tuple(exclude), seed=seed)
    with clock.stage("plan"):
        cutting, _, _ = decide(coupling, _chooser(half))
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
    )


def _coupled(source: Source, approximate: bool, seed: int, providers: tuple[str, ...], clock: _Clock) -> Coupling:
    with clock.stage("trace"):
        flat, traced = look_into(source.model, lambda model: trace(model, seed=seed, providers=providers))
    with clock.stage("couple"):
        return couple(flat.model if flat else source.model, traced, approximate=approximate, flat=flat)


def _calibration(
    source: Source,
    coupling: Coupling,
    options: Options,
    data: DataLike | Calibration | None,
    script: str | os.PathLike[str] | None,
    pictures: PictureOptions | None,
) -> Calibration:
    """Returns the calibration data; how much of it, unless that was said, by what a pass over the model costs."""
    if isinstance(data, Calibration):
        return data
    wanted = specs(coupling.model)
    if data is None and script is None and source.path is not None:
        data = find_test_data(source.path)
    work = MADE_UP_WORK if data is None and script is None else WORK
    affordable = int(min(max(work // max(cost.macs(coupling), 1), LEAST_SAMPLES), MOST_SAMPLES))
    samples = options.samples or affordable
    if script is not None:
        return open_script(os.fspath(script), wanted, samples=samples, batch=BATCH, seed=options.seed)
    shapes = {name: v.shape for name, v in coupling.trace.feeds[0].items()}
    return open_calibration(
        data, wanted, samples=samples, batch=BATCH, seed=options.seed, pictures=pictures, shapes=shapes
    )


# ---------------------------------------------------------------- choosing
def _chooser(options: Options) -> Callable[[Units], Array]:
    """Returns how units are chosen from weights alone: the final choice, or the counts for one that looks at data."""

    def choose(units: Units) -> Array:
        if options.ratio == 0:
            return np.zeros(0, np.int64)
        scores = _scores(units, options)
        return least_important(units, scores, _counts(units, scores, options))

    return choose


def _scores(units: Units, options: Options) -> tuple[Scores, ...]:
    return rank_by_weights(units, options.criterion, options.seed)


def _counts(units: Units, scores: Sequence[Scores], options: Options) -> Counts:
    chosen = select(units, options.include, options.exclude)
    if not options.cuts_streams:
        chosen = [ok and not stream for ok, stream in zip(chosen, streams(units), strict=True)]

    def at(ratio: float) -> Counts:
        return at_ratio(units, ratio, align=options.align, chosen=chosen)

    if options.ratio is not None:
        return at(options.ratio)
    full = {"macs": cost.macs(units.coupling), "params": cost.weights_left(units.coupling)}

    def excess(counts: Counts) -> float:
        cutting = Cutting(units, least_important(units, scores, counts))
        left = {
            "macs": lambda: cost.macs(units.coupling, cutting),
            "params": lambda: cost.weights_left(units.coupling, cutting),
        }
        return max(left[kind]() / max(full[kind], 1) - share for kind, share in options.targets)

    found = to_target(excess, at, 0.0)
    if found is None:
        most = excess(at(1.0 - 1e-9))
        hint = "" if options.cuts_streams else " (residual streams are left alone: --streams cuts them too)"
        raise TargetError(f"the target is out of reach: the best that can be had misses it by {most:.1%}{hint}")
    return found


def _mended(
    chosen: _Chosen,
    options: Options,
    data: Calibration,
    providers: Sequence[str],
    *,
    choose: bool,
    progress: Callable[[str], None] | None,
) -> _Chosen:
    """Returns the cut with units chosen by loss, where asked for, and with weights that make up for it."""
    units = chosen.cutting.units
    dead = chosen.cutting.dead
    counts = tuple(int(dead[g.units].sum()) for g in units.groups)
    keep_choice = tuple(np.where(dead[g.units], 0.0, 1.0) for g in units.groups)
    by_loss = choose and options.chooses_by_loss

    def tell(done: int, of: int) -> None:
        if progress is not None:
            progress(f"calibrate {done + 1}/{of}")

    by_rank = choose and options.ranks_by_data
    ranked, told = keep_choice, list[str]()
    if by_loss:
        ranked = _scores(units, options)
    elif by_rank:
        batches = list(data.batches())
        ranked, told = rank_by_data(units, options.criterion or "", counts, batches, providers, options.seed, tell)
    for first in (True, False) if by_loss or by_rank else (False,):
        scores = ranked if first else keep_choice
        if options.mode == "none" and not (by_loss and first):
            found = Compensated(least_important(units, scores, counts))
        else:
            found = compensated(
                units,
                counts,
                scores,
                list(data.batches()),
                choose=by_loss and first,
                mode=options.mode,
                providers=providers,
                seed=options.seed,
                align=data.synthetic,
                progress=tell,
            )
        mended = Cutting(apply_weights(units, found), found.dead)
        rewrite = rewrite_sizes(mended)
        if not rewrite.failed:
            break
    return replace(chosen, cutting=mended, rewrite=rewrite, notes=(*told, *found.notes))


# ---------------------------------------------------------------- reporting
def _report(
    source: Source, chosen: _Chosen, pruned: ir.Model, options: Options, data: Calibration | None, clock: _Clock
) -> Report:
    cutting = chosen.cutting
    coupling = cutting.coupling
    warnings = [*chosen.warnings, *(data.warnings if data else ())]
    if data is not None and data.synthetic:
        warnings.append(
            "no calibration data was given: weights were refitted on made-up inputs; "
            "a few hundred real ones (--calib) keep far more accuracy"
        )
    return Report(
        tool=__version__,
        model=str(source.path or ""),
        sha256=source.sha256,
        output=None,
        options=options.to_dict() | ({"data": data.source, "data_samples": data.samples} if data else {}),
        macs=Count(cost.macs(coupling), cost.macs(coupling, cutting)),
        params=Count(cost.parameters(source.model), cost.parameters(pruned)),
        size=Count(source.size, _bytes(pruned)),
        groups=group_rows(cutting),
        frozen=frozen_rows(cutting.units),
        notes=(*notes(cutting), *weight_notes(cutting, options.criterion), *chosen.notes),
        warnings=tuple(warnings),
        validation=None,
        seconds=dict(clock.seconds),
    )


def _judged(report: Report, validation: Validation) -> Report:
    fresh = tuple(w for w in collapse_warnings(validation) if w not in report.warnings)
    return replace(report, validation=validation, warnings=(*report.warnings, *fresh))


def _bytes(model: ir.Model) -> int:
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


__all__ = ["Result", "inspect", "prune"]
