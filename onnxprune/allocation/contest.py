"""Several ways to spend one budget, compared by what they do to the outputs.

What groups cost that are cut alone adds up only roughly, and rounding to blocks undoes a part of it. So the few counts
that come into question are cut, refitted on a part of the calibration inputs, and run on others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from onnxprune.abreast import abreast
from onnxprune.allocation.budget import Budget
from onnxprune.allocation.choosing import Way
from onnxprune.allocation.counts import foretold
from onnxprune.allocation.divergence import relative_error
from onnxprune.allocation.knapsack import Counts
from onnxprune.allocation.mending import Chosen
from onnxprune.allocation.sensitivity import Progress, Sensitivity
from onnxprune.engine.cut import cut
from onnxprune.engine.frontier import Feed
from onnxprune.graph.model import Source
from onnxprune.graph.running import ready, run_all

__all__ = ["SAMPLES", "WORK", "Contender", "promising", "winner"]

WORTH = 1.25  # times the least loss foretold, up to which counts are worth a trial
ALIKE = 1 / 32  # of the kept units: counts that differ by less do the same within what a trial can tell
SAMPLES = 768  # that a trial is refitted on, at most
WORK = 3 * 10**11  # MACs of passes over the inputs; where one pass takes more, trials take minutes


class Mend(Protocol):
    """Refits a cut, so many batches at a time, and calls `tell` with the steps done and their number."""

    def __call__(self, chosen: Chosen, *, jobs: int, tell: Progress) -> Chosen:
        """Returns the cut with what makes up for it."""
        ...


@dataclass(frozen=True, eq=False)
class Contender:
    """One way to spend a budget.

    Attributes:
        way: how the counts were found.
        chosen: the cut, as weights alone choose its units.
        budget: what foretold that it holds.
        mended: the cut as its trial refitted it.
    """

    way: Way
    chosen: Chosen
    budget: Budget
    mended: Chosen | None = None


def promising(contenders: Sequence[Contender], sensitivity: Sensitivity) -> list[Contender]:
    """Returns contenders whose foretold loss is near the least, from the least on, of those alike the first."""
    losses = [foretold(sensitivity, c.chosen.counts) for c in contenders]
    units = sum(curve.units for curve in sensitivity.curves)
    found: list[Contender] = []
    for loss, c in sorted(zip(losses, contenders, strict=True), key=lambda pair: pair[0]):
        if loss <= WORTH * min(losses) and not any(_alike(c.chosen.counts, f.chosen.counts, units) for f in found):
            found.append(c)
    return found


def _alike(some: Counts, others: Counts, units: int) -> bool:
    """Returns whether counts of units that go, of so many in all, differ by next to nothing."""
    return sum(abs(a - b) for a, b in zip(some, others, strict=True)) < ALIKE * (units - sum(others))


def winner(
    contenders: Sequence[Contender],
    mend: Mend,
    source: Source,
    held: Sequence[Feed],
    providers: Sequence[str],
    *,
    jobs: int,
    tell: Progress,
) -> Contender:
    """Returns the contender whose outputs, once it is refitted, are nearest to the dense model's.

    Args:
        contenders: in order of preference where losses are equal.
        mend: refits a cut.
        source: the model as loaded.
        held: inputs that no weight is refitted on.
        providers: onnxruntime's execution providers.
        jobs: trials at a time, and batches of each where there are fewer trials; the result does not depend on it.
        tell: called with the steps of all trials done and their number.
    """
    with ready(source.served, source.external) as subject:
        dense = run_all(subject, held, providers)
    steps = [0] * len(contenders)

    def trial(k: int) -> tuple[float, Chosen]:
        def told(done: int, of: int) -> None:
            steps[k] = done
            tell(sum(steps), of * len(contenders))

        mended = mend(contenders[k].chosen, jobs=max(jobs // len(contenders), 1), tell=told)
        steps[k] += 1
        with ready(cut(mended.cutting, mended.rewrite), source.external) as subject:
            return relative_error(dense, run_all(subject, held, providers)), mended

    trials = list(abreast(trial, range(len(contenders)), jobs))
    best = min(range(len(trials)), key=lambda k: trials[k][0])
    return replace(contenders[best], mended=trials[best][1])
