"""Three checks of a pruned model against its original, kept apart: the cut, the outputs, and the task."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from onnxprune import __version__
from onnxprune.calibration import Calibration, PictureOptions, open_calibration, open_script
from onnxprune.calibration.labelled import LabelledData, open_labelled_data
from onnxprune.clock import Clock
from onnxprune.engine import cost
from onnxprune.engine.coupling import Coupling
from onnxprune.errors import UsageError
from onnxprune.graph.inputs import as_run, specs
from onnxprune.graph.model import Source, load
from onnxprune.graph.running import Outputs, Runner, Subject, placement, ready, run_all
from onnxprune.graph.runtime import provider_names
from onnxprune.latency.benchmark import check_alike
from onnxprune.plan import Plan
from onnxprune.proof.exactness import check_cut
from onnxprune.proof.fidelity import fidelity
from onnxprune.proof.metric_script import changes, open_metric_script
from onnxprune.proof.metrics import Labelled, compare
from onnxprune.proof.validation import TOLERANCE, fidelity_feeds, noise_floor, pairs, proof_feeds, shown_shapes
from onnxprune.reports import history
from onnxprune.reports.findings import collapse_warnings
from onnxprune.reports.report import Comparison, Count, Exactness, ScoreChange, TaskChange, Validation
from onnxprune.subject import coupled

__all__ = ["validate"]

MOST_SAMPLES, WORK = 4096, 10**12
BATCH = 64


def validate(
    original: Any,
    pruned: Any,
    *,
    plan: str | os.PathLike[str] | Plan | None = None,
    calibration: Any = None,
    data_script: str | os.PathLike[str] | None = None,
    evaluate: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    labels: str | os.PathLike[str] | np.ndarray | None = None,
    metric_script: str | os.PathLike[str] | None = None,
    output: str | None = None,
    samples: int | None = None,
    pictures: PictureOptions | None = None,
    provider: Sequence[str] = (),
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Returns what can be said of a pruned model: whether its cut is exact, how far its outputs moved, what it lost.

    Args:
        original: path, `onnx.ModelProto`, `onnx_ir.Model` or `gs.Graph`.
        pruned: what was made of it.
        plan: which units went, for the check of the cut; None: the plan that the pruned model remembers.
        calibration: inputs to measure fidelity on, as for `prune`; None: those of `evaluate`, else made-up ones.
        data_script: a Python file that gives such inputs, `FILE.py` or `FILE.py:NAME`; it is run.
        evaluate: labelled data, in any form that calibration data have.
        labels: the array in there that holds them, the path of another .npy or .npz file, or an array.
        metric_script: a metric of the user's own instead of top-1 and top-5, `FILE.py:NAME`; it is run.
        output: name of the output that holds the scores of classes; None: the first that can.
        samples: how many samples to use at most; None: all labelled ones.
        pictures: how pixels become inputs.
        provider: execution providers, in order (`cpu`, `cuda`, ...); default: the CPU.
        seed: of every random draw.
        progress: called with the name of each stage as it starts.

    Raises:
        OnnxPruneError: see `onnxprune.errors` for the tree.
    """
    _check_together(calibration, data_script, evaluate, labels, metric_script)
    providers, clock = provider_names(provider), Clock(progress)
    with clock.stage("load"):
        one, other = load(original), load(pruned)
        wanted = specs(one.model)
        check_alike(wanted, specs(other.model))
        chosen, why = _plan(plan, one, other)
        script = None if metric_script is None else open_metric_script(os.fspath(metric_script))
    approximate, refits = bool(chosen and chosen.approximate), bool(chosen and chosen.refits)
    coupling = coupled(one, approximate, seed, providers, clock, refits=refits)
    wanted = as_run(wanted, coupling.trace.feeds)
    with clock.stage("read the data"):
        labelled = None
        if evaluate is not None and labels is not None:
            labelled = open_labelled_data(
                evaluate,
                labels,
                wanted,
                samples=samples,
                batch=BATCH,
                seed=seed,
                pictures=pictures,
                classes=script is None,
            )
        data = _inputs(calibration, data_script, wanted, samples, seed, pictures)
        if data is None and labelled is not None:
            data = labelled.inputs()
    macs = Count(cost.macs(coupling), cost.macs(coupled(other, False, seed, providers, clock)))
    exactness = Exactness(None, why)
    if chosen is not None:
        with clock.stage("exactness"):
            exactness = check_cut(one, coupling, other, chosen, providers, seed)
    with ExitStack() as stack:
        first, second = (stack.enter_context(ready(s.served, s.external)) for s in (one, other))
        with clock.stage("fidelity"):
            held_out = None if data is not None and labelled is None else True
            found = _fidelity(first, second, coupling, data, held_out, exactness, providers, seed)
        task: TaskChange | None = None
        scores: tuple[ScoreChange, ...] = ()
        if labelled is not None:
            with clock.stage("task"):
                if script is None:
                    held = Labelled(labelled, output)
                    task = compare(held.measure(first, providers), held.measure(second, providers), held.source)
                else:
                    passes = (_pass(labelled, subject, providers) for subject in (first, second))
                    scores = changes(script, *passes)
    warnings = [*(data.warnings if data else ()), *_unlike(found), *collapse_warnings(found)]
    return Comparison(
        tool=__version__,
        model=str(one.path or ""),
        sha256=one.sha256,
        pruned=str(other.path or ""),
        pruned_sha256=other.sha256,
        macs=macs,
        params=Count(cost.parameters(one.model), cost.parameters(other.model)),
        size=Count(one.size, other.size),
        exactness=exactness,
        validation=found,
        task=task,
        scores=scores,
        warnings=tuple(dict.fromkeys(warnings)),
        seconds=dict(clock.seconds),
    )


def _check_together(calibration: Any, data_script: Any, evaluate: Any, labels: Any, metric_script: Any) -> None:
    if calibration is not None and data_script is not None:
        raise UsageError("calibration data and a data script are both given: give one of them")
    if (evaluate is None) != (labels is None):
        raise UsageError("labelled data need both the data and the labels: give --eval PATH --labels KEY")
    if metric_script is not None and evaluate is None:
        raise UsageError("a metric script needs labelled data: give --eval PATH --labels KEY")


def _inputs(
    calibration: Any,
    script: str | os.PathLike[str] | None,
    wanted: Sequence[Any],
    samples: int | None,
    seed: int,
    pictures: PictureOptions | None,
) -> Calibration | None:
    if isinstance(calibration, Calibration):
        return calibration
    if script is not None:
        return open_script(os.fspath(script), wanted, samples=samples, batch=BATCH, seed=seed)
    if calibration is None:
        return None
    return open_calibration(calibration, wanted, samples=samples, batch=BATCH, seed=seed, pictures=pictures)


def _plan(plan: str | os.PathLike[str] | Plan | None, one: Source, other: Source) -> tuple[Plan | None, str]:
    """Returns the plan by which the pruned model was cut, and why there is none."""
    if plan is not None:
        return plan if isinstance(plan, Plan) else Plan.load(plan), ""
    metadata = other.model.metadata_props
    steps = history.steps(metadata)
    own = [step for step in steps if step.sha256 == one.sha256]
    if not steps:
        return None, "not checked: the pruned model remembers no plan, give the one that it was cut by with --plan"
    if not own:
        return None, "not checked: the pruned model was not made from this original, going by what it remembers"
    if own[-1].number != len(steps):
        later = len(steps) - own[-1].number
        return (
            None,
            f"not checked: the model was pruned {later} more times since, check each step against the one before",
        )
    if not own[-1].has_plan:
        return None, "not checked: the plan was too large to be kept in the model, give it with --plan"
    return history.plan_of(metadata, own[-1].number), ""


def _fidelity(
    original: Subject,
    pruned: Subject,
    coupling: Coupling,
    data: Calibration | None,
    held_out: bool | None,
    exactness: Exactness,
    providers: Sequence[str],
    seed: int,
) -> Validation:
    """Returns how far the outputs moved; the noise of the providers is measured first, on the original alone."""
    feeds = proof_feeds(coupling, seed)
    noise = noise_floor(original, feeds, run_all(original, feeds, providers), providers)
    samples = fidelity_feeds(coupling, data, seed, most=MOST_SAMPLES, work=WORK)
    found, unlike = fidelity(pairs(samples, Runner(original, providers), Runner(pruned, providers)))
    return Validation(
        provider=tuple(providers),
        error=exactness.error,
        tolerance=TOLERANCE if exactness.tolerance is None else exactness.tolerance,
        sizes=tuple(shown_shapes(f) for f in feeds),
        fidelity=found,
        inputs="made-up inputs" if data is None else data.source,
        made_up=data is None or data.synthetic,
        held_out=held_out,
        noise=noise,
        placement=placement(pruned, feeds[0], providers),
        unlike=unlike,
    )


def _unlike(found: Validation) -> Iterator[str]:
    for name in found.unlike:
        yield f"output {name} has other shapes than the original's on the same inputs: it was not compared"


def _pass(
    labelled: LabelledData, subject: Subject, providers: Sequence[str]
) -> Callable[[], Iterable[tuple[Outputs, np.ndarray]]]:
    """Returns what starts a pass over outputs and labels."""

    def start() -> Iterator[tuple[Outputs, np.ndarray]]:
        runner = Runner(subject, providers)
        for feed, truth in labelled.batches():
            yield runner(feed), truth

    return start
