"""The trade-off curve: one model cut to many targets, with all that can be shared measured once.

A sweep lives in a folder: `sweep.json` holds what is measured, and is written anew after every point, so that a sweep
that was ended goes on where it stopped; `plans/` holds a plan for each point, and `models/` the models if asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from onnxprune import __version__
from onnxprune.aim import Aim
from onnxprune.allocation.budget import Limit
from onnxprune.allocation.sensitivity import Sensitivity
from onnxprune.calibration import Calibration, PictureOptions
from onnxprune.calibration.labelled import Labels
from onnxprune.clock import Clock
from onnxprune.engine import cost
from onnxprune.engine.frontier import Feed
from onnxprune.errors import DataError, RunError, TargetError, UsageError, quote
from onnxprune.graph.runtime import provider_names
from onnxprune.opening import opened_study
from onnxprune.options import Choices, Options, checked, options_of
from onnxprune.plan import Plan
from onnxprune.reports.curve import FILE, Point, Sweep
from onnxprune.reports.records import read, write
from onnxprune.reports.report import SensitivityRow
from onnxprune.result import Result, assembled, judge_of
from onnxprune.search import loss_of
from onnxprune.study import Cut, Study
from onnxprune.subject import DataLike, DataSource, ModelLike
from onnxprune.task import EvaluationSource, Task

__all__ = ["FILE", "Point", "Sweep", "sweep"]


def sweep(
    model: ModelLike,
    targets: Iterable[str | Mapping[str, float | str]],
    output: str | os.PathLike[str],
    *,
    calibration: DataLike | Calibration | None = None,
    data_script: str | os.PathLike[str] | None = None,
    pictures: PictureOptions | None = None,
    evaluate: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    labels: Labels | None = None,
    latency: bool = False,
    models: bool = False,
    provider: Sequence[str] = (),
    jobs: int | None = None,
    progress: Callable[[str], None] | None = None,
    **choices: Unpack[Choices],
) -> Sweep:
    """Returns what is left of a model, and what is lost, at each of several targets.

    Without labelled data, weights are refitted on three quarters of the calibration inputs, and losses measured on the
    others. Each point's plan, replayed with the same data, gives the very model that was measured.

    Args:
        model: path, `onnx.ModelProto`, `onnx_ir.Model` or `gs.Graph`.
        targets: texts such as `macs=0.5`, or mappings of several limits that must all hold.
        output: the sweep's folder; a sweep of the same model, options and data in there goes on.
        calibration: as for `prune`, like all that is not named here.
        data_script: a Python file that gives calibration inputs.
        pictures: how pixels become inputs.
        evaluate: labelled data.
        labels: the name of the labels in there.
        latency: measure it at every point.
        models: write the models too, validated.
        provider: execution providers, in order.
        jobs: measurements at a time; None: one for each processor.
        progress: called with the name of each stage as it starts.
        choices: how to cut.

    Raises:
        UsageError: the folder holds another sweep, or an option makes no sense.
        TargetError: no target can be met.
        OnnxPruneError: see `onnxprune.errors` for the tree.
    """
    wanted = _wanted(targets)
    options = checked(options_of(targets=wanted[0], hold_out=evaluate is None, **choices), replay=False)
    where, labelled = DataSource(calibration, data_script, pictures), EvaluationSource(evaluate, labels, pictures)
    providers = provider_names(provider)
    folder = _folder(Path(output), models)
    clock = Clock(progress)
    study, task = opened_study(
        model, options, where, labelled, providers, clock, approximate=options.approximate, jobs=jobs
    )
    return _Run(study, task, folder, latency=latency, models=models).points(wanted)


@dataclass(eq=False)
class _Run:
    """One run of a sweep."""

    study: Study
    task: Task | None
    folder: Path
    latency: bool
    models: bool

    def points(self, wanted: Sequence[tuple[Limit, ...]]) -> Sweep:
        """Returns the whole sweep; after each point it is written."""
        study = self.study
        found = self._begun()
        done = {point.target: point for point in found.points if self._is_there(point)}
        for point in done.values():
            if point.plan:
                study.freeze(Plan.load(self.folder / point.plan).frozen)
        study.settle()
        loss = loss_of(study, None)
        for number, limits in enumerate(wanted, 1):
            name = _name(limits)
            if name not in done:
                study.clock.tell(f"point {number}/{len(wanted)}: {name}")
                done[name] = self._point(limits, loss.of)
            points = tuple(done[each] for each in map(_name, wanted) if each in done)
            found = replace(
                found,
                points=points,
                latency=self._latency_of_original(),
                sensitivity=self._rows(),
                seconds=dict(study.clock.seconds),
            )
            write(self.folder / FILE, found.to_json())
        if all(point.error for point in found.points):
            raise TargetError(found.points[0].error)
        return found

    # ---------------------------------------------------------------- one point
    def _point(self, limits: tuple[Limit, ...], lost: Callable[[Any], float]) -> Point:
        study, name = self.study, _name(limits)
        options = replace(study.options, targets=limits)
        try:
            found = Aim(study, limits, options.to_dict()).met()
        except TargetError as error:
            return Point(name, error=str(error))
        plan = Path("plans") / f"{_file(name)}.json"
        write(self.folder / plan, found.plan.to_json())
        output, size = self._written(found, options, name) if self.models else ("", self.study.scales.size(found.model))
        with study.clock.stage("evaluate"):
            return Point(
                name,
                macs=cost.macs(study.coupling, found.chosen.cutting),
                params=cost.parameters(found.model),
                size=size,
                divergence=lost(found.model),
                top1=None if self.task is None else self.task.measured(found.model).top1,
                latency=self._latency(found) if self.latency else None,
                plan=str(plan),
                output=output,
            )

    def _written(self, found: Cut, options: Options, name: str) -> tuple[str, int]:
        """Writes and validates a model; returns its file and the bytes of all its files."""
        place = Path("models") / f"{_file(name)}.onnx"
        judge = judge_of(self.study, found, self.task)
        result = Result(found.model, found.plan, assembled(self.study, found, options), self.study.source, judge)
        with self.study.clock.stage("validate"):
            report = result.save(self.folder / place)
        return str(place), report.size.after

    def _latency(self, found: Cut) -> float:
        ground = self.study.ground(found.chosen.cutting.units)
        return ground.latency.measured(found.model, found.chosen.counts)

    def _latency_of_original(self) -> float | None:
        return self.study.current.latency.full if self.latency else None

    def _rows(self) -> tuple[SensitivityRow, ...]:
        known = self.study.known
        return () if known is None else known.curves

    # ---------------------------------------------------------------- going on
    def _begun(self) -> Sweep:
        """Returns the sweep that is in the folder, or one without points.

        Raises:
            UsageError: what is in there is another sweep.
        """
        study, source = self.study, self.study.source
        new = Sweep(
            tool=__version__,
            model=str(source.path or ""),
            sha256=source.sha256,
            key=self._key(),
            options={k: v for k, v in study.options.to_dict().items() if k not in ("targets", "ratio", "max_drop")},
            data=study.data.source,
            samples=study.data.samples,
            macs=cost.macs(study.coupling),
            params=cost.parameters(source.model),
            size=source.size,
            top1=None if self.task is None else self.task.before.top1,
        )
        path = self.folder / FILE
        if not path.exists():
            return new
        try:
            old = read(path, Sweep)
        except DataError as error:
            raise UsageError(
                f"{quote(str(path), 300)} is no sweep to go on with: give another folder ({error})"
            ) from error
        if old.key != new.key:
            raise UsageError(
                f"{quote(str(path), 300)} is a sweep of {_difference(old, new)}: give another folder (-o), or remove it"
            )
        if old.sensitivity:
            study.known = Sensitivity(old.sensitivity, 0)
        return replace(new, points=old.points)

    def _key(self) -> str:
        """Returns what a point depends on beside its target, hashed."""
        study = self.study
        told = study.options.to_dict() | {"targets": {}, "providers": study.providers, "tool": __version__}
        digest = hashlib.sha256(json.dumps([told, study.source.sha256], sort_keys=True).encode())
        for batch in study.batches:
            _hash(digest, batch)
        if self.task is not None:
            before = self.task.before
            _hash(digest, {"labels": before.labels, "hits": before.hits})
        digest.update(f"latency {self.latency}".encode())
        return digest.hexdigest()

    def _is_there(self, point: Point) -> bool:
        """Returns whether a point of an earlier run holds, with the files that are asked for."""
        if point.error:
            return True
        if not point.plan or (self.models and not (point.output and (self.folder / point.output).is_file())):
            return False
        try:
            return Plan.load(self.folder / point.plan).model == self.study.source.sha256
        except DataError:
            return False


def _wanted(targets: Iterable[str | Mapping[str, float | str]]) -> list[tuple[Limit, ...]]:
    wanted = [
        (Limit.parse(each),) if isinstance(each, str) else tuple(Limit.of(k, v) for k, v in each.items())
        for each in targets
    ]
    if not wanted or not all(wanted):
        raise UsageError("say what is to be left at each point of the sweep: targets like macs=0.7,0.5,0.3")
    return list(dict.fromkeys(wanted))


def _name(limits: Sequence[Limit]) -> str:
    return " ".join(map(str, limits))


def _file(name: str) -> str:
    return name.replace("=", "-").replace(" ", "_")


def _folder(folder: Path, models: bool) -> Path:
    """Returns the sweep's folder, made where it is not there.

    Raises:
        RunError: it cannot be made.
    """
    try:
        for each in ("plans", *(("models",) if models else ())):
            (folder / each).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{quote(str(folder), 300)} cannot be made ({error.strerror}): give another folder") from error
    return folder


def _hash(digest: Any, batch: Mapping[str, Any] | Feed) -> None:
    for name, array in sorted(batch.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(memoryview(array).cast("B") if array.flags.c_contiguous and array.size else array.tobytes())


def _difference(old: Sweep, new: Sweep) -> str:
    """Returns in what two sweeps differ, in words."""
    if old.sha256 != new.sha256:
        return "another model"
    if old.options != json.loads(new.to_json())["options"]:
        return "other options"
    return "other data" if old.tool == new.tool else f"version {old.tool}"
