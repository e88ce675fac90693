"""How many units of each group go: by a ratio or within a budget, spread uniformly, by importance or by measurement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from onnxprune.allocation.alignment import aligned, blocks_of, levels_of
from onnxprune.allocation.bounds import most_that_may_go
from onnxprune.allocation.budget import Budget, Limit
from onnxprune.allocation.counts import (
    at_ratio,
    by_importance,
    by_sensitivity,
    filled,
    select,
    steps_of,
    streams,
    to_target,
)
from onnxprune.allocation.knapsack import Counts
from onnxprune.allocation.sensitivity import Sensitivity
from onnxprune.allocation.tally import Tally
from onnxprune.criteria.ranking import rank_by_weights
from onnxprune.criteria.scoring import Scores
from onnxprune.engine.cost import per_unit
from onnxprune.engine.labels import Array
from onnxprune.engine.units import Units
from onnxprune.errors import TargetError
from onnxprune.latency.staircase import CostTable
from onnxprune.options import Options
from onnxprune.reports.findings import all_frozen, frozen_rows
from onnxprune.reports.report import by_reason

__all__ = ["Ground", "Way", "out_of_reach", "why_nothing"]


@dataclass(frozen=True)
class Way:
    """How measured losses become counts.

    Attributes:
        spread: chosen freely and then rounded to blocks, chosen among the counts that rounding leaves as they are, or
            not at all (uniform).
        streams: residual streams may be cut, where the options let them.
    """

    spread: Literal["free", "blocks", "even"] = "free"
    streams: bool = True


@dataclass(eq=False)
class Ground:
    """The units of a model with all that is asked about them again and again.

    Attributes:
        units: the removable units.
        options: how much goes, and where.
        measured: returns what each group costs the outputs; called once, where the allocation asks for it.
        timed: returns what any counts take on the provider; called once, where latency is limited.
        providers: onnxruntime's names of execution providers.
        jobs: weights that are looked at at a time.
        orders: how units of groups with several consumers go, as far as walks have found it.
        orders_of_trials: the same on the inputs that ways are compared on.
    """

    units: Units
    options: Options
    measured: Callable[[Ground], Sensitivity]
    timed: Callable[[Ground], CostTable]
    providers: tuple[str, ...]
    jobs: int = 1
    orders: dict[int, Array] = field(default_factory=dict)
    orders_of_trials: dict[int, Array] = field(default_factory=dict)

    @cached_property
    def tally(self) -> Tally:
        """What any counts would leave."""
        return Tally(self.units)

    @cached_property
    def scores(self) -> tuple[Scores, ...]:
        """Importance of each group's units as weights alone tell it."""
        return rank_by_weights(self.units, self.options.criterion, self.options.seed, self.jobs)

    @cached_property
    def open(self) -> tuple[bool, ...]:
        """For each group whether it may be cut."""
        may = select(self.units, self.options.include, self.options.exclude)
        if self.options.cuts_streams:
            return tuple(may)
        return tuple(ok and not stream for ok, stream in zip(may, streams(self.units), strict=True))

    @cached_property
    def most(self) -> Counts:
        """For each group how many units may go at most."""
        return most_that_may_go(self.units, self.open, self.options.max_ratio_per_group, self.options.min_units)

    @cached_property
    def steps(self) -> Counts:
        """For each group the multiple that kept units are."""
        align = self.options.steps
        return steps_of(self.units, 1 if align == "auto" else align)

    @cached_property
    def latency(self) -> CostTable:
        """What any counts take on the provider."""
        return self.timed(self)

    @cached_property
    def sensitivity(self) -> Sensitivity:
        """What each group costs the outputs."""
        return self.measured(self)

    def at_ratio(self, ratio: float) -> Counts:
        """Returns the counts of a ratio: of each group's units if uniform, else of all of them."""
        if self.options.spread == "uniform":
            return self._uniform(ratio)
        if self.options.spread == "global":
            found = by_importance(self.units, self.scores, ratio=ratio, steps=self.steps, most=self.most)
            return found or (0,) * len(self.most)
        total = sum(len(group) for group, most in zip(self.units.groups, self.most, strict=True) if most)
        goal = min(int(ratio * total + 1e-9), sum(self._uniform(1.0 - 1e-9)))
        found = self._spread(lambda counts: float(goal - sum(counts)))
        return found or self.most

    def ways(self, limits: Sequence[Limit]) -> tuple[Way, ...]:
        """Returns the ways to spend a budget that are worth comparing."""
        if self.options.spread != "sensitivity" or _are_timed(limits):
            return (Way(),)
        measured = [Way(), Way("blocks")] if self.options.steps == "auto" else [Way()]
        beside = measured if any(m and s for m, s in zip(self.most, streams(self.units), strict=True)) else []
        return (*measured, *(replace(way, streams=False) for way in beside), Way("even"))

    def within(self, budget: Budget, way: Way = Way()) -> Counts:
        """Returns the counts that hold a budget.

        Args:
            budget: what may be left.
            way: how measured losses become counts.

        Raises:
            TargetError: there are none.
        """
        if way.spread == "even":
            return self._even.within(budget)
        if not way.streams:
            return self._beside_streams.within(budget, replace(way, streams=True))
        auto = self.options.steps == "auto"
        if auto and _are_timed(budget.limits):
            snap = self.latency.snap
            found = self._spread(lambda counts: budget.excess(snap(counts)), self.latency.edges)
            return self._reached(found, budget, snap)
        if not auto:
            return self._reached(self._spread(budget.excess), budget, tuple)
        blocks = blocks_of(self.units, self.providers)
        levels = None if way.spread == "free" else levels_of(self.units, blocks)
        found = self._reached(self._spread(budget.excess, levels), budget, tuple)
        return aligned(self.units, found, budget.excess, blocks, self.most)

    @cached_property
    def _even(self) -> Ground:
        """The same units, cut uniformly."""
        return self._under(replace(self.options, allocation="uniform"))

    @cached_property
    def _beside_streams(self) -> Ground:
        """The same units, but for those of residual streams."""
        return self._under(replace(self.options, streams=False))

    def _under(self, options: Options) -> Ground:
        """Returns the same units under other options."""
        found = Ground(self.units, options, self.measured, self.timed, self.providers, self.jobs)
        found.tally = self.tally
        return found

    def _reached(self, found: Counts | None, budget: Budget, rounded: Callable[[Counts], Counts]) -> Counts:
        """Returns counts as they are rounded; raises TargetError where there are none."""
        if found is not None:
            return rounded(found)
        least = rounded(self._uniform(1.0 - 1e-9))
        raise out_of_reach(self, budget, {k: budget.expected(k, least) for k in budget.left})

    def _uniform(self, ratio: float) -> Counts:
        return at_ratio(self.units, ratio, steps=self.steps, most=self.most)

    def _spread(
        self, excess: Callable[[Counts], float], levels: Sequence[Sequence[int]] | None = None
    ) -> Counts | None:
        """Returns the counts without excess that the allocation finds, None where there are none.

        Args:
            excess: how far counts overshoot; zero or less where they hold.
            levels: for each group the kept counts that are worth having, where an allocation can make use of them.
        """
        if self.options.spread == "sensitivity":
            return by_sensitivity(self.sensitivity, excess, steps=self.steps, most=self.most, levels=levels)
        if self.options.spread == "global":
            found = by_importance(
                self.units,
                self.scores,
                steps=self.steps,
                most=self.most,
                excess=excess,
                costs=self._costs,
            )
        else:
            found = to_target(excess, self._uniform, 0.0)
        return None if found is None else filled(excess, found, self.units, self.steps)

    @cached_property
    def _costs(self) -> Sequence[float]:
        """What one unit of each group takes along, of MACs where there are any."""
        macs, params = per_unit(self.units)
        return tuple((macs if macs.any() else params).tolist())


def _are_timed(limits: Sequence[Limit]) -> bool:
    """Returns whether times are limited."""
    return any(limit.kind == "latency" for limit in limits)


def out_of_reach(ground: Ground, budget: Budget, best: dict[str, float]) -> TargetError:
    """Returns the error that says how far a target can be met, and what stands in the way.

    Args:
        ground: the units.
        budget: the target.
        best: by kind, what is left where as much is cut as may be.
    """
    if not ground.units.groups:
        return TargetError(all_frozen(ground.units))
    missed = budget.missed(best)
    can = ", ".join(x.told(best[x.kind], budget.full[x.kind]) for x in missed)
    return TargetError(
        f"the target {' '.join(map(str, missed))} is out of reach: the best that can be had is {can}; "
        f"{_in_the_way(ground)}"
    )


def why_nothing(ground: Ground, stuck: Sequence[int]) -> str:
    """Returns why nothing is cut, and what to do.

    Args:
        ground: the units.
        stuck: nodes whose labels were frozen since their sizes could not follow a cut.
    """
    units, options = ground.units, ground.options
    if not units.groups:
        return all_frozen(units)
    if not any(select(units, options.include, options.exclude)):
        return "nothing to prune: no group matches --include/--exclude; `onnxprune inspect` lists the names"
    if not any(ground.most):
        return f"nothing to prune: {_in_the_way(ground)}"
    if options.ratio is not None and not any(ground.at_ratio(options.ratio)):
        most = max(len(group) for group, most in zip(units.groups, ground.most, strict=True) if most)
        told, advice = f"ratio {options.ratio} cuts no whole unit (the largest group has {most})", "give a higher ratio"
        if options.align not in (None, "auto", 1):
            told, advice = f"{told} where multiples of {options.align} stay", f"{advice}, or a lower --align"
        return f"nothing to prune: {told}; {advice}"
    if stuck:
        first, *others = dict.fromkeys(f"{units.coupling.nodes[k].op_type} {units.coupling.where(k)}" for k in stuck)
        more = f" and {len(others)} more nodes" if others else ""
        return f"nothing to prune: the sizes of {first}{more} can't follow any cut; please report this model"
    return "nothing to prune: what can go takes none of the MACs (or parameters) along"


def _in_the_way(ground: Ground) -> str:
    """Returns what keeps units from being cut, and what opens them."""
    options, units = ground.options, ground.units
    found = []
    if not options.cuts_streams and (count := sum(streams(units))):
        found.append(f"{count} residual streams are left alone (--streams cuts them too)")
    closed = len(units.groups) - sum(select(units, options.include, options.exclude))
    if closed:
        found.append(f"--include/--exclude keep {closed} of {len(units.groups)} groups")
    if options.max_ratio_per_group or options.min_units:
        found.append("--max-ratio-per-group/--min-units bound what may go of each group")
    if options.align not in (None, "auto", 1):
        found.append(f"--align {options.align} keeps multiples")
    frozen = by_reason(frozen_rows(units))
    if frozen:
        why, channels, rows = frozen[0]
        total, where = sum(n for _, n, _ in frozen), f"{rows[0].op} {rows[0].node}".strip() or "several places"
        found.append(f"{total:,} channels are frozen ({channels:,} of them at {where}: {why})")
    return "; ".join(found) or "one unit of every group stays"
