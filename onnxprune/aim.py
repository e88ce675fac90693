"""Targets: counts are chosen, cut, weighed and chosen again until the written file holds all limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any

import onnx_ir as ir

from onnxprune.allocation.budget import TOLERANCE, Budget, Limit
from onnxprune.allocation.choosing import Ground, Way, out_of_reach
from onnxprune.allocation.contest import SAMPLES, WORK, Contender, promising, winner
from onnxprune.allocation.knapsack import Counts
from onnxprune.allocation.mending import Chosen
from onnxprune.allocation.sensitivity import first_samples
from onnxprune.engine import cost
from onnxprune.errors import TargetError
from onnxprune.study import Cut, Study

__all__ = ["Aim"]

MANY = 8  # cuts that share what comparisons may cost, where there are several
ROUNDS = 5  # of choosing again after a cut was measured
SLACK_OF_TIMES = 0.04  # below a limit of latency that is good enough: stairs are coarse, clocks not exact


@dataclass(frozen=True, eq=False)
class Aim:
    """Limits on what is left of a model under study.

    Attributes:
        study: the model.
        limits: what may be left; all must hold.
        asked: the options for the plan's record.
    """

    study: Study
    limits: Sequence[Limit]
    asked: Mapping[str, Any]

    def expected(self) -> Chosen:
        """Returns the cut that is expected to hold the limits, as weights alone choose it.

        Raises:
            TargetError: there is none.
        """
        study, best = self.study, self._best()
        trial = study.scales.as_refitted(best.chosen)
        measured = self._measured(trial, lambda: study.finished(trial, self.asked).model)
        self._check(trial, best.budget, measured)
        return best.chosen

    def met(self) -> Cut:
        """Returns the cut and mended model that holds the limits.

        Raises:
            TargetError: there is none.
        """
        study, best = self.study, self._best()
        chosen, budget = best.chosen, best.budget
        found = study.finished(best.mended or study.mended(chosen), self.asked)
        measured = self._measured(found.chosen, lambda: found.model)
        over = budget.excess_of(measured)
        # what the refit has added, or families have kept; clocks are not as exact as counts
        if over > TOLERANCE or (not self._timed and not -TOLERANCE <= over <= 0):
            again, _ = self._foretold(budget.corrected(chosen.counts, measured).rest, best.way)
            if again.counts != chosen.counts:
                found = study.finished(study.mended(again), self.asked)
                measured = self._measured(found.chosen, lambda: found.model)
        self._check(found.chosen, budget, measured)
        return found

    def _check(self, chosen: Chosen, budget: Budget, measured: dict[str, float]) -> None:
        """Passes if a cut as measured holds its budget; raises TargetError if not."""
        if budget.excess_of(measured) > TOLERANCE:
            raise out_of_reach(self.study.ground(chosen.cutting.units), budget, measured)

    @property
    def _timed(self) -> bool:
        """Whether a limit is one of time."""
        return any(limit.kind == "latency" for limit in self.limits)

    @property
    def _passes(self) -> int:
        """How many passes over the inputs WORK affords a cut; none over made-up ones, which can't tell ways apart."""
        study = self.study
        if study.data.synthetic:
            return 0
        samples = study.data.samples * len(study.everything) // len(study.batches)
        cuts = MANY if study.repeats else 1
        return WORK // max(cost.macs(study.coupling) * samples * cuts, 1)

    # ---------------------------------------------------------------- ways
    def _best(self) -> Contender:
        """Returns a cut that is expected to hold the limits, the best of several ways where losses are measured."""
        study = self.study
        ground, found = self._contenders()
        if len(found) > 1:
            found = promising(found, ground.sensitivity)
        if len(found) == 1 or not self._passes:
            return found[0]
        fit = study.fit
        trial = first_samples(ground.units, fit, SAMPLES)
        with study.clock.stage("compare"):
            best = winner(
                found,
                partial(study.refitted, batches=trial, known=ground.orders_of_trials),
                study.source,
                study.held_out,
                study.providers,
                jobs=study.jobs,
                tell=study.clock.counter("compare"),
            )
        final = study.options.hold_out and len(trial) == len(fit) and trial[-1] is fit[-1]
        return best if final else replace(best, mended=None)

    def _ways(self, ground: Ground) -> tuple[Way, ...]:
        """Returns the ways to look at, those that leave streams alone only if a pass for each way is afforded."""
        ways = ground.ways(self.limits)
        few = tuple(way for way in ways if way.streams)
        if few == ways:  # data are not opened to tell
            return ways
        return ways if self._passes >= len(ways) else few

    def _contenders(self) -> tuple[Ground, list[Contender]]:
        """Returns a cut for each way that finds one, all of the same units."""
        while True:
            ground = self.study.current
            first, *others = self._ways(ground)
            found = [self._planned(first)]
            for way in others:
                with suppress(TargetError):
                    found.append(self._planned(way))
            if len(found) == 1 or self.study.current is ground:  # else sizes that cannot follow were frozen on the way
                return self.study.current, found

    # ---------------------------------------------------------------- one way
    def _planned(self, way: Way) -> Contender:
        """Returns a cut that holds the limits once it is measured, with the budget that foretold it."""
        study = self.study
        with study.clock.stage("plan"):
            chosen, budget = self._foretold({}, way)
            slack = SLACK_OF_TIMES if self._timed else TOLERANCE / 2
            holding: list[tuple[float, Chosen, Budget]] = []
            rests: list[Mapping[str, float]] = []
            for _ in range(ROUNDS):
                trial = study.scales.as_refitted(chosen)
                measured = self._measured(trial, lambda: study.finished(trial, self.asked).model)  # noqa: B023
                over = budget.excess_of(measured)
                if over <= 0:
                    holding.append((over, chosen, budget))
                if -slack <= over <= 0:
                    break
                rests.append(budget.corrected(chosen.counts, measured).rest)
                again, better = self._foretold(_settled(rests), way)
                if again.counts == chosen.counts:
                    break
                chosen, budget = again, better
            if holding:
                _, chosen, budget = max(holding, key=lambda held: held[0])
            return Contender(way, chosen, budget)

    def _measured(self, chosen: Chosen, model: Callable[[], ir.Model]) -> dict[str, float]:
        study = self.study
        return study.scales.measured(chosen, self.limits, study.ground(chosen.cutting.units), model)

    def _foretold(self, rest: Mapping[str, float], way: Way) -> tuple[Chosen, Budget]:
        """Returns a cut that is expected to hold the limits, and the budget that says so."""
        budgets: list[Budget] = []

        def counts(ground: Ground) -> Counts:
            budgets.append(self.study.scales.budget(ground, self.limits, rest))
            return ground.within(budgets[-1], way)

        return self.study.decided(counts), budgets[-1]


def _settled(rests: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Returns what to add to what is expected: what the last cut had more, and of times the mean of all cuts."""
    settled = dict(rests[-1])
    if "latency" in settled:
        settled["latency"] = fmean(rest["latency"] for rest in rests)
    return settled
