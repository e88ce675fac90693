"""Units ranked by a criterion of any kind that ranks, with the l1 norm where it can tell nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from onnxprune.criteria import CRITERIA, OnInputs, OnOutputs, OnWeights
from onnxprune.criteria.ablation import rank_by_outputs
from onnxprune.criteria.activations import rank_by_inputs
from onnxprune.criteria.magnitude import l1
from onnxprune.criteria.scoring import Scores, has_scales, score
from onnxprune.engine.cutting import Cutting
from onnxprune.engine.frontier import Feed
from onnxprune.engine.twin import as_read
from onnxprune.engine.units import Units

MOST_NAMES = 5


def rank_by_weights(units: Units, name: str | None, seed: int, jobs: int = 1) -> tuple[Scores, ...]:
    """Returns the importance of each group's units; by l1 for criteria that have to see data first.

    Units that were put together anew stand in the order in which they had better go: they keep it.
    """
    criterion = CRITERIA.get(name or "")
    found = list(score(units, criterion if isinstance(criterion, OnWeights) else OnWeights(l1), seed, jobs))
    for rows in units.rows:
        found[rows.group] = np.sort(found[rows.group])
    return tuple(found)


def rank_by_data(
    units: Units,
    name: str,
    counts: Sequence[int],
    batches: Sequence[Feed],
    providers: Sequence[str],
    seed: int,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[tuple[Scores, ...], list[str]]:
    """Returns the importance of each group's units as data tells it, and notes on groups of which it tells nothing.

    Args:
        units: all removable units.
        name: the criterion.
        counts: how many units of each group go; groups that lose none need no measuring.
        batches: calibration inputs.
        providers: onnxruntime's execution providers.
        seed: of every random draw.
        jobs: weights that are looked at at a time.
        progress: called with what is done and how much there is to do.
    """
    criterion = CRITERIA[name]
    wanted = [c > 0 for c in counts]
    found: tuple[Scores | None, ...]
    if isinstance(criterion, OnInputs):
        units = replace(units, coupling=as_read(units.coupling))
        found = rank_by_inputs(units, criterion, batches, providers, seed, progress)
    elif isinstance(criterion, OnOutputs):
        found = rank_by_outputs(units, criterion, wanted, batches, providers, progress)
    else:
        found = (None,) * len(units.groups)
    silent = [g.name for g, f, ok in zip(units.groups, found, wanted, strict=True) if f is None and ok]
    by_weights = score(units, OnWeights(l1), seed, jobs)
    scores = tuple(w if f is None else f for f, w in zip(found, by_weights, strict=True))
    return scores, [_note(name, silent, "no linear consumer tells their units apart")] if silent else []


def weight_notes(cutting: Cutting, name: str | None) -> list[str]:
    """Returns notes on the groups that lost units and that a criterion on weights could not rank."""
    criterion = CRITERIA.get(name or "")
    if not isinstance(criterion, OnWeights) or not criterion.scales:
        return []
    units = cutting.units
    without = [g.name for g in units.groups if cutting.dead[g.units].any() and not has_scales(units, g)]
    return [_note(str(name), without, "no BatchNormalization scales them")] if without else []


def _note(name: str, groups: Sequence[str], why: str) -> str:
    more = f" and {len(groups) - MOST_NAMES} more" if len(groups) > MOST_NAMES else ""
    return f"{name}: {len(groups)} groups were ranked by l1, {why}: {', '.join(groups[:MOST_NAMES])}{more}"
