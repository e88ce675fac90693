"""A model under study: what is measured on it once serves any number of cuts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxprune import __version__
from onnxprune.allocation.budget import TOLERANCE, Kind
from onnxprune.allocation.choosing import Ground, why_nothing
from onnxprune.allocation.counts import least_important
from onnxprune.allocation.knapsack import Counts
from onnxprune.allocation.mending import Chosen, mend
from onnxprune.allocation.sensitivity import Sensitivity, divided, first_samples, measure
from onnxprune.allocation.weighing import Scales
from onnxprune.calibration import Calibration, mixtures
from onnxprune.clock import Clock
from onnxprune.engine import cost
from onnxprune.engine.coupling import Coupling
from onnxprune.engine.cut import cut
from onnxprune.engine.frontier import Feed, Spool
from onnxprune.engine.labels import Array
from onnxprune.engine.rows import find_rows, rearranged
from onnxprune.engine.units import Units, find_units
from onnxprune.graph.inputs import specs
from onnxprune.graph.model import Source
from onnxprune.latency.staircase import CostTable, Serving, cost_table, feed_at, in_turns
from onnxprune.latency.timetable import open_timetable
from onnxprune.options import Options
from onnxprune.plan import Plan
from onnxprune.planning import decide, freeze_node, make_plan
from onnxprune.refit.gathering import Drawing
from onnxprune.refit.matching import orders
from onnxprune.reports import history
from onnxprune.reports.report import Count, Interval, LatencyChange

__all__ = ["Cut", "Study"]

TURNS, SECONDS = 300, 10.0  # of timing the result in turns with the original
SAMPLES = 512  # that tell which slots of rows go together, at most


@dataclass(frozen=True, eq=False)
class Cut:
    """A cut model in memory.

    Attributes:
        chosen: the cut.
        model: what is to be written.
        plan: which units went.
    """

    chosen: Chosen
    model: ir.Model
    plan: Plan


@dataclass(eq=False)
class Study:
    """A model with its data and options.

    Attributes:
        source: the model as loaded.
        coupling: its coupling; labels are frozen in it where sizes cannot follow a cut.
        options: how to cut it.
        providers: onnxruntime's names of execution providers.
        clock: of the run.
        open_data: opens the calibration data.
        jobs: batches or trials at a time.
        name: what the written file is called.
        known: what each group costs the outputs, where an earlier run has measured it.
        stuck: nodes whose labels were frozen since their sizes cannot follow.
        used_data: the calibration data, if anything has asked for them.
        repeats: several cuts are to be mended, so that what does not depend on the cut is kept.
        matches: data may tell which rows of a rectangle lose which slots; not needed where only counts are asked for.
        mixed: weights were refitted on mixtures of the calibration data, too.
    """

    source: Source
    coupling: Coupling
    options: Options
    providers: tuple[str, ...]
    clock: Clock
    open_data: Callable[[], Calibration]
    jobs: int = 1
    name: str = "model.onnx"
    known: Sensitivity | None = None
    stuck: tuple[int, ...] = ()
    used_data: Calibration | None = None
    repeats: bool = False
    matches: bool = True
    mixed: bool = False
    _grounds: dict[tuple[tuple[str, int], ...], Ground] = field(default_factory=dict)
    _units: Units | None = None
    _orders: dict[bytes, Array] = field(default_factory=dict)

    # ---------------------------------------------------------------- data
    @property
    def data(self) -> Calibration:
        """The calibration data, opened when something first asks for it."""
        if self.used_data is None:
            with self.clock.stage("read the data"):
                self.used_data = self.open_data()
        return self.used_data

    @cached_property
    def batches(self) -> list[Feed]:
        """All calibration inputs, in files where they are large."""
        return Spool().store(self.data.batches())

    @cached_property
    def fit(self) -> list[Feed]:
        """What weights are refitted on while losses are measured on held-out inputs."""
        return self._filled(divided(self.batches)[0])

    @cached_property
    def everything(self) -> list[Feed]:
        """What weights are refitted on where nothing has to be held out."""
        return self._filled(self.batches)

    def _filled(self, batches: list[Feed]) -> list[Feed]:
        """Returns inputs with mixtures of them, where less than half of what was wanted is given and none is made up.

        The more is given, the fewer they are: with 512 they did as much harm as good. Where means alone are mended
        there are none: those of mixtures are other ones.
        """
        data = self.data
        fills = self.options.refits and not data.synthetic
        short = (data.wanted - 2 * data.samples) * len(batches) // len(self.batches) if fills else 0
        more = Spool().store(mixtures(batches, specs(self.coupling.model), short, self.options.seed), mixed=True)
        self.mixed |= bool(more)
        return [*batches, *more]

    @cached_property
    def scales(self) -> Scales:
        """What weighs cuts of this model."""
        refits = self.options.calibrates and self.options.mode != "none"
        return Scales(self.source, self.coupling, refits, self.name)

    @property
    def held_out(self) -> list[Feed]:
        """The calibration inputs that losses are measured on."""
        return divided(self.batches)[1]

    # ---------------------------------------------------------------- from what is wanted to a cut model
    def at_ratio(self, ratio: float) -> Chosen:
        """Returns the cut of a ratio as weights alone choose it."""
        return self.decided(lambda ground: ground.at_ratio(ratio) if ratio else (0,) * len(ground.units.groups))

    def mended(self, chosen: Chosen, *, choose: bool = True) -> Chosen:
        """Returns the cut with what makes up for it; with `choose`, data may exchange units."""
        if not self.options.calibrates or not len(chosen.cutting.dead_units):
            return chosen
        batches = self.fit if self.options.hold_out else self.everything
        known = self.ground(chosen.cutting.units).orders if self.repeats else None
        with self.clock.stage("calibrate"):
            tell = self.clock.counter("calibrate")
            return self.refitted(chosen, batches, known, choose=choose, jobs=self.jobs, tell=tell)

    def refitted(
        self,
        chosen: Chosen,
        batches: Sequence[Feed],
        known: dict[int, Array] | None,
        *,
        choose: bool = True,
        jobs: int,
        tell: Callable[[int, int], None],
    ) -> Chosen:
        """Returns the cut with what makes up for it.

        Args:
            chosen: the cut.
            batches: inputs to refit on.
            known: what is kept of one call for the next on the same inputs.
            choose: data may exchange units.
            jobs: batches at a time; the result does not depend on it.
            tell: called with the steps done and their number.
        """
        return mend(
            chosen,
            self.options,
            batches,
            self.providers,
            choose=choose,
            made_up=self.data.synthetic,
            known=known,
            jobs=jobs,
            tell=tell,
        )

    def finished(self, chosen: Chosen, asked: Mapping[str, Any]) -> Cut:
        """Returns the cut model, with the pruning in its history."""
        with self.clock.stage("cut"):
            model = cut(chosen.cutting, chosen.rewrite)
            # of the original's constants alone: biases that the refit added are none of them
            own = replace(chosen.cutting, units=replace(chosen.cutting.units, coupling=self.coupling))
            record = {**asked, **self._times(chosen, asked)}
            plan = make_plan(own, chosen.stuck, self.source.sha256, self.coupling.approximate, record)
            found = Cut(chosen, model, plan)
            if len(chosen.cutting.dead_units):
                self._remember(found)
        return found

    # ---------------------------------------------------------------- choosing
    def ground(self, units: Units) -> Ground:
        """Returns what is known of units; for the same ones it is the same."""
        key = tuple((group.name, len(group)) for group in units.groups)
        if key not in self._grounds:
            self._grounds[key] = Ground(
                units, self.options, self._sensitivity, self._cost_table, self.providers, self.jobs
            )
        return self._grounds[key]

    @property
    def current(self) -> Ground:
        """What is known of the units as they stand."""
        if self._units is None:
            self._units = self._found(self.coupling)
        return self.ground(self._units)

    def _found(self, coupling: Coupling) -> Units:
        """Returns the units of the model, put together by what data tell where they may be."""
        units = find_units(coupling)
        rows = find_rows(units) if self.matches and self.options.chooses_by_loss else ()
        if new := [each for each in rows if each.key not in self._orders]:
            batches = self.fit if self.options.ratio is None else self.everything
            with self.clock.stage("match"):
                found = orders(
                    units,
                    new,
                    first_samples(units, batches, SAMPLES),
                    self.providers,
                    Drawing(self.options.seed, self.jobs),
                    made_up=self.data.synthetic,
                    progress=self.clock.counter("match"),
                )
            self._orders |= {each.key: order for each, order in zip(new, found, strict=True)}
        return rearranged(units, rows, [self._orders[each.key] for each in rows]) if rows else units

    def freeze(self, nodes: Sequence[int]) -> None:
        """Freezes the labels of nodes that an earlier run found unable to follow a cut."""
        for index in dict.fromkeys(nodes):
            if index not in self.stuck:
                freeze_node(self.coupling, index, "its sizes can't follow the cut")
                self.stuck += (index,)
                self._units = None

    def settle(self) -> None:
        """Prepares for several cuts: freezes what cannot follow deep and shallow ones, in any order."""
        self.repeats = True
        for share in (1.0, 0.5):
            self.decided(lambda ground: tuple(int(share * most) for most in ground.most))  # noqa: B023

    def floor(self) -> tuple[Kind, float]:
        """Returns the kind of cost that cuts are compared by, and the least share that can be left of it."""
        ground = self.current
        macs = cost.macs(self.coupling)
        if macs:
            return "macs", ground.tally.macs(ground.most) / macs
        weights = cost.parameters(self.coupling.model)
        return "params", ground.tally.weights(ground.most) / max(weights, 1)

    def why_nothing(self) -> str:
        """Returns why nothing is cut, and what to do."""
        return why_nothing(self.current, self.stuck)

    def decided(self, counts: Callable[[Ground], Counts]) -> Chosen:
        """Returns the cut of so many units of each group as weights alone choose them; sizes that can't follow freeze.

        Args:
            counts: says how many go, of the units there are.
        """

        def choose(units: Units) -> Array:
            ground = self.ground(units)
            return least_important(units, ground.scores, counts(ground))

        cutting, rewrite, stuck = decide(self.coupling, choose, self._units, self._found)
        self.stuck += stuck
        self._units = cutting.units
        return Chosen(cutting, rewrite, self.stuck)

    def _sensitivity(self, ground: Ground) -> Sensitivity:
        names = tuple((group.name, len(group)) for group in ground.units.groups)
        if self.known is not None and tuple((c.name, c.units) for c in self.known.curves) == names:
            return self.known
        with self.clock.stage("measure"):
            self.known = measure(
                ground.units,
                [most > 0 for most in ground.most],
                ground.scores,
                self.fit,
                self.held_out,
                providers=self.providers,
                seed=self.options.seed,
                jobs=self.jobs,
                align_statistics=self.data.synthetic,
                progress=self.clock.counter("measure"),
            )
        return self.known

    def _times(self, chosen: Chosen, asked: Mapping[str, Any]) -> dict[str, str]:
        """Returns what tells the measured times that a plan was made with: equal ones give equal plans."""
        if "latency" not in asked.get("targets", {}):
            return {}
        return {"cost_table": self.ground(chosen.cutting.units).latency.digest}

    def _cost_table(self, ground: Ground) -> CostTable:
        with self.clock.stage("time operators"):
            table = open_timetable(self.providers, self.options.threads)
            return cost_table(self.source, ground.units, self.serving, table, progress=self.clock.tell)

    @property
    def serving(self) -> Serving:
        """How the model is served."""
        return Serving(self.providers, self.options.threads, self.options.batch)

    def timed(self, pruned: ir.Model | Path) -> tuple[LatencyChange, tuple[str, ...]]:
        """Returns the times of the original and the pruned model, measured in turns as `bench` does, and any doubts."""
        with self.clock.stage("time"):
            feed = feed_at(self.coupling, self.options.batch)
            tell = self.clock.tell
            found = in_turns(self.source, pruned, feed, self.serving, rounds=TURNS, seconds=SECONDS, progress=tell)
        change = LatencyChange(
            found.original.p50,
            found.pruned.p50,
            found.speedup,
            Interval(found.low, found.high),
            found.noise,
            found.conclusive,
            found.provider,
            found.threads,
        )
        allowed = [limit.allowed(change.before) for limit in self.options.targets if limit.kind == "latency"]
        best = change.before / found.high
        if all(best <= ms * (1 + TOLERANCE) for ms in allowed):
            return change, ()
        return change, (
            f"the result takes {best / change.before:.1%} of the original's time at least, {min(allowed):.3g} ms of "
            f"{change.before:.3g} were allowed: the machine is busier than it was; run again, on an idle one",
        )

    def _remember(self, found: Cut) -> None:
        """Adds the pruning to the model's own history."""
        data = self.used_data if self.options.mode != "none" else None
        history.append(
            found.model.metadata_props,
            found.plan,
            tool=__version__,
            macs=Count(cost.macs(self.coupling), cost.macs(self.coupling, found.chosen.cutting)),
            params=Count(cost.parameters(self.source.model), cost.parameters(found.model)),
            size=self.source.size,
            data=data.source if data else "",
            samples=data.samples if data else 0,
        )
