"""Which groups a refused cut owes its refusal to, so that all others can still go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from onnxprune.engine.cut import cut
from onnxprune.engine.cutting import Cutting
from onnxprune.engine.sizes import rewrite_sizes
from onnxprune.errors import OnnxPruneError
from onnxprune.proof.validation import Judge

__all__ = ["blamed"]

MOST_TRIALS = 60


def blamed(judge: Judge) -> tuple[str, ...]:
    """Returns the names of the groups whose cut alone the proof refuses, in order; empty if there are none.

    Halves of the cut are tried, the original's weights as they are, until single groups are left. Groups that are
    wrong only together are blamed together, and so is what no trial is left for.

    Args:
        judge: what refused a cut.
    """
    cutting = judge.cutting
    groups = [k for k, group in enumerate(cutting.units.groups) if cutting.dead[group.units].any()]
    trials = iter(range(MOST_TRIALS))

    def guilty(some: Sequence[int]) -> list[int]:
        if next(trials, None) is not None and _holds(judge, some):
            return []
        if len(some) == 1:
            return list(some)
        half = len(some) // 2
        return [*guilty(some[:half]), *guilty(some[half:])] or list(some)

    return tuple(cutting.units.groups[k].name for k in guilty(groups)) if groups else ()


def _holds(judge: Judge, groups: Sequence[int]) -> bool:
    """Returns whether the proof lets the cut of some of the groups pass."""
    cutting, dead = judge.cutting, judge.cutting.dead_units
    part = Cutting(cutting.units, dead[np.isin(cutting.units.group_of[dead], groups)])
    rewrite = rewrite_sizes(part)
    if rewrite.failed:
        return False
    try:
        replace(judge, cutting=part).prove(cut(part, rewrite))
    except OnnxPruneError:
        return False
    return True
