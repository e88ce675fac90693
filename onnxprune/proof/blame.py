"""Which groups a refused cut owes its refusal to, so that all others can still go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

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

    Halves of the cut are tried, the original's weights as they are, until single groups are left. Of groups that are
    wrong only together a few are found that still are, none of which can be spared. What no trial is left for is
    blamed, too.

    Args:
        judge: what refused a cut.
    """
    cutting = judge.cutting
    groups = tuple(k for k, group in enumerate(cutting.units.groups) if cutting.dead[group.units].any())
    trials = iter(range(MOST_TRIALS))

    @cache
    def holds(some: frozenset[int]) -> bool:
        return not some or (next(trials, None) is not None and _holds(judge, sorted(some)))

    def guilty(some: tuple[int, ...]) -> tuple[int, ...]:
        if holds(frozenset(some)):
            return ()
        if len(some) == 1:
            return some
        first, last = _halves(some)
        return guilty(first) + guilty(last) or together((), some) or some

    def together(beside: tuple[int, ...], some: tuple[int, ...]) -> tuple[int, ...]:
        """Returns few of `some` that are wrong beside others: Junker's QuickXplain (AAAI 2004)."""
        if not holds(frozenset(beside)):
            return ()
        if len(some) == 1:
            return some
        first, last = _halves(some)
        behind = together(beside + first, last)
        return together(beside + behind, first) + behind

    return tuple(cutting.units.groups[k].name for k in guilty(groups)) if groups else ()


def _halves(some: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return some[: len(some) // 2], some[len(some) // 2 :]


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
