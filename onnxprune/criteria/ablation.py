"""Units ranked by how far the outputs move without them: the masked model is run once for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import numpy as np

from onnxprune.criteria import OnOutputs
from onnxprune.criteria.kinds import Scores
from onnxprune.engine.cut import masked
from onnxprune.engine.cutting import Cutting
from onnxprune.engine.frontier import Feed
from onnxprune.engine.units import Units
from onnxprune.graph.running import Outputs, ready, run_all

BATCHES = 4


def rank_by_outputs(
    units: Units,
    criterion: OnOutputs,
    wanted: Sequence[bool],
    batches: Iterable[Feed],
    providers: Sequence[str],
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Scores | None, ...]:
    """Returns for each wanted group the mean change of the outputs when a unit of it is masked, None for the others.

    Args:
        units: all removable units.
        criterion: what tells how far an output moved.
        wanted: for each group whether its units are tried.
        batches: calibration inputs; the first few are used.
        providers: onnxruntime's execution providers.
        progress: called with the units done and their number.
    """
    feeds = list(islice(batches, BATCHES))
    dense = _outputs(units, [], feeds, providers)
    total, done = sum(len(g) for g, ok in zip(units.groups, wanted, strict=True) if ok), 0
    found: list[Scores | None] = []
    for group, ok in zip(units.groups, wanted, strict=True):
        scores = np.zeros(len(group))
        for k, unit in enumerate(group.units.tolist() if ok else []):
            if progress is not None:
                progress(done, total)
            scores[k] = _change(criterion, dense, _outputs(units, [unit], feeds, providers))
            done += 1
        found.append(scores if ok else None)
    return tuple(found)


def _outputs(units: Units, dead: list[int], feeds: Sequence[Feed], providers: Sequence[str]) -> list[Outputs]:
    with ready(masked(Cutting(units, np.array(dead, np.int64))), external=False) as subject:
        return run_all(subject, feeds, providers)


def _change(criterion: OnOutputs, dense: Sequence[Outputs], other: Sequence[Outputs]) -> float:
    """Returns the mean change over batches and float outputs, infinite where it is not a number: such a unit stays."""
    changes = [
        criterion.rule(a[name], b[name])
        for a, b in zip(dense, other, strict=True)
        for name in a
        if a[name].dtype.kind in "fV" and a[name].shape == b[name].shape
    ]
    mean = float(np.mean(changes)) if changes else 0.0
    return mean if np.isfinite(mean) else np.inf
