"""What each group costs the outputs: cut and refitted alone, at a ladder of levels, measured on held-out inputs.

Two walks over the dense network. The first gathers moments on the inputs to fit, and takes each group apart once, down
to its deepest level; the refitted weights of every level are kept. The second walks over held-out inputs and, where a
group first changes anything, runs the rest of the network with each level's weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.abreast import abreast
from onnxprune.allocation.divergence import relative_error
from onnxprune.allocation.suffix import Change, Suffix
from onnxprune.allocation.trials import Trial, Trials
from onnxprune.criteria.scoring import Scores
from onnxprune.engine.cost import batch_size, node_macs
from onnxprune.engine.frontier import Feed, Frontier, Live, Spool
from onnxprune.engine.twin import as_read
from onnxprune.engine.units import Units
from onnxprune.refit.gathering import Drawing, quiet
from onnxprune.refit.realign import realigned
from onnxprune.reports.report import SensitivityRow

Progress = Callable[[int, int], None]

LADDER = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)  # shares of a group that are tried; all but one unit, too
SHORT_LADDER = (0.25, 0.5, 0.75)  # where trials are dear
WORK, MOST_WORK = 2 * 10**12, 10**13  # MACs that all trials together should cost, and may for the sake of samples
LEAST_SAMPLES = 32  # held-out samples that are worth `MOST_WORK`
HELD_EVERY = 4  # one batch in so many is held out


@dataclass(frozen=True)
class Sensitivity:
    """What every group costs the outputs; groups that were not tried have the level 0 only.

    Attributes:
        curves: one for each group; what diverges is `divergence.relative_error`.
        samples: held-out inputs that were measured on.
    """

    curves: tuple[SensitivityRow, ...]
    samples: int


def divided(batches: Sequence[Feed]) -> tuple[list[Feed], list[Feed]]:
    """Returns the batches to fit on and those held out, one in four; a single batch serves for both."""
    if len(batches) == 1:
        return list(batches), list(batches)
    held = {k for k in range(len(batches)) if k % HELD_EVERY == HELD_EVERY - 1} or {len(batches) - 1}
    return [b for k, b in enumerate(batches) if k not in held], [batches[k] for k in sorted(held)]


def measure(
    units: Units,
    chosen: Sequence[bool],
    scores: Sequence[Scores],
    fit_batches: Sequence[Feed],
    held_batches: Sequence[Feed],
    *,
    providers: Sequence[str],
    seed: int,
    jobs: int = 1,
    align_statistics: bool = False,
    progress: Progress | None = None,
) -> Sensitivity:
    """Returns how far the outputs move for each group and level.

    Args:
        units: all removable units.
        chosen: for each group whether it may be cut; the others are not tried.
        scores: importance of each group's units, for groups whose units cannot be chosen by least-squares loss.
        fit_batches: calibration inputs that weights are refitted on.
        held_batches: others, that the divergence is measured on.
        providers: onnxruntime's execution providers.
        seed: of the sampled positions.
        jobs: batches, then trials, at a time; the result does not depend on it.
        align_statistics: put the statistics of these inputs into BatchNormalizations first (made-up inputs).
        progress: called with the steps done and their number.
    """
    units = replace(units, coupling=as_read(units.coupling))
    spool = Spool()
    try:
        if align_statistics:
            everything = [*fit_batches, *held_batches]
            units = replace(units, coupling=realigned(units.coupling, everything, providers, spool))
        wanted = [g for g, group in enumerate(units.groups) if chosen[g] and len(group) > 1]
        held, shares = _affordable(units, wanted, held_batches)
        ladders = {g: ladder(len(units.groups[g]), shares) for g in wanted}
        walk = Trials(units, ladders, scores, fit_batches, providers, Drawing(seed, jobs), spool)
        stops, steps = len(walk.stops), len(walk.stops) + len(wanted)

        def tell(done: int) -> None:
            if progress is not None:
                progress(done, steps)

        with quiet(walk.layers):
            trials = list(walk.run(tell))
        measured = _measured(units, trials, held, providers, spool, jobs, lambda done: tell(stops + done))
    finally:
        spool.close()
    curves = (
        SensitivityRow(group.name, len(group), (0, *ladders.get(g, ())), (0.0, *measured.get(g, ())))
        for g, group in enumerate(units.groups)
    )
    return Sensitivity(tuple(curves), sum(_samples(b) for b in held))


def ladder(units: int, shares: Sequence[float]) -> tuple[int, ...]:
    """Returns the levels to try for a group of so many units: shares of it, and all but one."""
    return tuple(sorted({round(share * units) for share in shares} - {0, units} | {units - 1}))


def _affordable(units: Units, wanted: Sequence[int], held: Sequence[Feed]) -> tuple[list[Feed], Sequence[float]]:
    """Returns the held-out inputs and the shares to try, fewer of both where the network is large."""
    coupling = units.coupling
    macs = [node_macs(coupling, k) / batch_size(coupling) for k in range(len(coupling.nodes))]
    behind = np.cumsum(macs[::-1])[::-1]
    first = (min(coupling.uses[u].node for u, _ in units.groups[g].members) for g in wanted)
    once = sum(float(behind[k]) for k in first)
    shares: Sequence[float] = LADDER
    if once * (len(LADDER) + 1) * LEAST_SAMPLES > WORK:
        shares = SHORT_LADDER
    each = max(once * (len(shares) + 1), 1)
    samples = max(int(WORK / each), min(LEAST_SAMPLES, int(MOST_WORK / each)), 1)
    return first_samples(units, held, samples), shares


def first_samples(units: Units, batches: Sequence[Feed], samples: int) -> list[Feed]:
    """Returns the first batches that hold so many samples; the last one is cut short if its size is free."""
    dynamic = _any_batch(units)
    taken: list[Feed] = []
    for batch in batches:
        size = _samples(batch)
        if samples <= 0:
            break
        taken.append(_first(batch, samples) if dynamic and size > samples else batch)
        samples -= size
    return taken


def _any_batch(units: Units) -> bool:
    """Returns whether the first axis of every input is a batch of any size."""
    trace = units.coupling.trace
    pairs = [trace.shapes[n] for n in trace.feeds[0] if n in trace.shapes]
    return bool(pairs) and all(len(a) > 0 and a[0] != b[0] for a, b in pairs)


def _first(batch: Feed, samples: int) -> Feed:
    return batch.first(samples) if isinstance(batch, Live) else {n: v[:samples] for n, v in batch.items()}


def _samples(batch: Feed) -> int:
    return max((len(v) for v in batch.values() if v.ndim), default=1)


def _measured(
    units: Units,
    trials: Sequence[Trial],
    held: Sequence[Feed],
    providers: Sequence[str],
    spool: Spool,
    jobs: int,
    progress: Callable[[int], None],
) -> dict[int, tuple[float, ...]]:
    """Returns for each group tried the divergence at each level; every trial runs what lies behind its first change."""
    coupling = units.coupling
    ends = [(str(v.name), len(coupling.nodes)) for v in coupling.model.graph.outputs]
    frontier = Frontier(coupling, held, providers, spool, ends)
    dense = Suffix(coupling, Change(), providers).run(frontier.values, {})
    starts = [t.change.first_node(coupling) for t in trials]
    found: dict[int, tuple[float, ...]] = {}
    for done, k in enumerate(sorted(range(len(trials)), key=lambda k: (starts[k], k))):
        progress(done)
        frontier.advance(starts[k])
        suffix = Suffix(coupling, trials[k].change, providers)
        found[trials[k].group] = _curve(suffix, trials[k], frontier.values, dense, jobs)
    return found


def _curve(suffix: Suffix, trial: Trial, values: Sequence[Feed], dense: Sequence[Feed], jobs: int) -> tuple[float, ...]:
    """Returns the divergence at each level of a group."""

    def at(content: Feed) -> float:
        return relative_error(dense, suffix.run(values, content))

    return tuple(abreast(at, trial.change.contents, jobs))
