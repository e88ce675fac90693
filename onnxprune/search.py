"""The smallest model that loses little: a search over targets, in which all but the refit is measured once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import onnx_ir as ir

from onnxprune.aim import Aim
from onnxprune.allocation.budget import Limit
from onnxprune.allocation.divergence import divergence
from onnxprune.errors import NothingToPruneError, TargetError
from onnxprune.graph.running import ready, run_all
from onnxprune.study import Cut, Study
from onnxprune.task import Task

__all__ = ["Loss", "loss_of", "smallest"]

RESOLUTION = 0.01  # of the share that is left, down to which a smaller model is looked for


@dataclass(frozen=True)
class Loss:
    """What a pruned model loses.

    Attributes:
        of: returns it.
        unit: what it is measured in.
    """

    of: Callable[[ir.Model], float]
    unit: str


def loss_of(study: Study, task: Task | None) -> Loss:
    """Returns the loss on labelled data, else that of the outputs on held-out calibration inputs."""
    if task is not None:
        before = task.before.top1
        return Loss(lambda model: before - task.measured(model).top1, "points of top-1")
    source, feeds = study.source, study.held_out
    with ready(source.served, source.external) as subject:
        dense = run_all(subject, feeds, study.providers)

    def diverged(model: ir.Model) -> float:
        with ready(model, source.external) as subject:
            return divergence(dense, run_all(subject, feeds, study.providers))

    return Loss(diverged, "divergence")


def smallest(study: Study, task: Task | None, most: float) -> Cut:
    """Returns the smallest model whose loss is no larger than `most`.

    The share of MACs that is left (of parameters, where there are no MACs) is halved between what is known to lose
    too much and what is known not to.

    Raises:
        NothingToPruneError: no unit can be cut at all.
        TargetError: the smallest cut there is loses more.
    """
    study.settle()
    kind, floor = study.floor()
    if floor >= 1:
        raise NothingToPruneError(study.why_nothing())
    loss = loss_of(study, task)
    low, high = floor, 1.0
    best: Cut | None = None
    tried: list[tuple[float, float]] = []
    while high - low > RESOLUTION or best is None:
        share = (low + high) / 2
        if high - share < RESOLUTION / 4:
            break
        found = Aim(study, (Limit(kind, share),), study.options.to_dict()).met()
        with study.clock.stage("evaluate"):
            tried.append((share, loss.of(found.model)))
        study.clock.tell(f"evaluate {kind}={share:.3f}: {tried[-1][1]:.4g} {loss.unit}")
        if tried[-1][1] <= most:
            best, high = found, share
        else:
            low = share
    if best is None:
        share, lost = min(tried, key=lambda each: each[1])
        raise TargetError(
            f"no cut loses so little as {most:g} {loss.unit}: the least that was found is {lost:.4g}, "
            f"at {kind}={share:.3f}; allow more (--max-drop), or give more calibration data"
        )
    steps = ", ".join(f"{share:.3f}: {lost:.4g}" for share, lost in sorted(tried))
    note = f"max-drop {most:g}: {len(tried)} cuts were measured ({kind} left: {loss.unit}): {steps}"
    return replace(best, chosen=replace(best.chosen, notes=(*best.chosen.notes, note)))
