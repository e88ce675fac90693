"""Milliseconds as a function of counts: each costly node timed at a ladder of lengths, so that its stairs are there.

A node's time is taken as its time at full size, times one factor for each of its axes that can lose units. Factors are
measured with all else at full size, so that a stair at 64 channels is there where the provider has it. What no such
node explains of the whole model's time is spread by the size of the activations. Equal nodes are measured once, all
times go through a `Timetable`.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import gcd
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from onnxprune.allocation.knapsack import Counts
from onnxprune.engine.coupling import Coupling
from onnxprune.engine.units import Units
from onnxprune.errors import OnnxPruneError, UsageError
from onnxprune.graph import inputs
from onnxprune.graph.model import Source
from onnxprune.graph.running import ready
from onnxprune.graph.runtime import open_for_timing
from onnxprune.latency.ladders import Axis, Site, coarse_first, sites
from onnxprune.latency.probes import Probe, kernel_time, measure
from onnxprune.latency.timetable import Timetable
from onnxprune.latency.timing import TWICE_UP_TO, Progress, Timing, compare, runner

__all__ = ["CostTable", "Serving", "cost_table", "feed_at", "in_turns"]

SECONDS = 60.0  # that measuring nodes may take
PASSES = 2
WHOLE = 1.0  # seconds for the whole model
ROUNDS, ROUND_SECONDS = 40, 8.0  # of a cut model against the original
GAIN = 0.01  # what a stair has to save of a group's time to count

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Serving:
    """How a model is served.

    Attributes:
        providers: onnxruntime's names of execution providers, in order.
        threads: how many work on one operator; 0 is the provider's own choice.
        batch: samples of one run, where the model leaves it open.
    """

    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    threads: int = 0
    batch: int = 1


@dataclass(frozen=True, eq=False)
class _Stairs:
    """What one axis of a node does to its time."""

    slope: tuple[tuple[int, int], ...]  # (group, indices of each unit)
    full: int
    lengths: Floats
    factors: Floats
    known: dict[int, float] = field(default_factory=dict)  # factors asked for before

    def at(self, counts: Sequence[int]) -> float:
        """Returns the factor where so many units of each group go."""
        length = self.full - sum(per_unit * counts[g] for g, per_unit in self.slope)
        if length not in self.known:
            self.known[length] = float(np.interp(length, self.lengths, self.factors))
        return self.known[length]


@dataclass(frozen=True, eq=False)
class _Timed:
    """A node's milliseconds at full size, and its axes."""

    ms: float
    axes: tuple[_Stairs, ...]

    def at(self, counts: Sequence[int]) -> float:
        """Returns the milliseconds where so many units of each group go."""
        ms = self.ms
        for axis in self.axes:
            ms *= axis.at(counts)
        return ms


@dataclass(eq=False)
class CostTable:
    """What a model takes on this machine, whatever is cut.

    Attributes:
        source: the model.
        units: its units.
        serving: how it is served.
        table: all times.
        full: milliseconds of one run of the original.
        nodes: the nodes that were timed.
        rest: milliseconds of the kernels of all others.
        traffic: for each group the share of all activations that one of its units is.
        progress: called with how far a measurement is.
    """

    source: Source
    units: Units
    serving: Serving
    table: Timetable
    full: float
    nodes: tuple[_Timed, ...]
    rest: float
    traffic: Floats
    progress: Progress | None = None

    def estimate(self, counts: Sequence[int]) -> float:
        """Returns the expected milliseconds of one run where so many units of each group go."""
        left = max(1.0 - float(self.traffic @ np.asarray(counts, np.float64)), 0.0)
        kernels = sum(node.at(counts) for node in self.nodes) + self.rest * left
        return self.full * kernels / self._kernels

    @cached_property
    def _kernels(self) -> float:
        return max(sum(node.ms for node in self.nodes) + self.rest, 1e-9)

    def snap(self, counts: Sequence[int]) -> Counts:
        """Returns counts at the edges of stairs: units that can stay for nothing stay."""
        found = []
        for count, group, edges in zip(counts, self.units.groups, self.edges, strict=True):
            kept = len(group) - count
            found.append(len(group) - edges[int(np.searchsorted(edges, kept))])
        return tuple(found)

    @cached_property
    def edges(self) -> tuple[tuple[int, ...], ...]:
        """For each group the kept counts worth having, rising: no larger one takes the same time or less."""
        touching: dict[int, list[_Timed]] = {}
        widths: dict[int, int] = {}
        for node in self.nodes:
            for g, per_unit in {pair for axis in node.axes for pair in axis.slope}:
                touching.setdefault(g, []).append(node)
                widths[g] = min(widths.get(g, per_unit), per_unit)
        counts = [0] * len(self.units.groups)
        found = []
        for g, group in enumerate(self.units.groups):
            if g not in touching:
                found.append(tuple(range(1, len(group) + 1)))
                continue
            best, edges = np.inf, []
            for kept in reversed(_candidates(len(group), widths.get(g, 1))):
                counts[g] = len(group) - kept
                ms = float(sum(node.at(counts) for node in touching[g]))
                if ms < best * (1 - GAIN):
                    edges.append(kept)
                    best = min(ms, best)
            counts[g] = 0
            found.append(tuple(reversed(edges)))
        return tuple(found)

    def measured(self, model: ir.Model, counts: Sequence[int]) -> float:
        """Returns the milliseconds of a cut model: those of the original, over the speed-up measured in turns.

        Args:
            model: the cut model.
            counts: how many units of each group went.
        """
        cut = hashlib.sha256(repr(tuple(map(int, counts))).encode()).hexdigest()[:16]
        share = self.table.get(f"share {self._name} {cut}", lambda: self._share(model))
        self.table.save()
        assert share is not None
        return self.full * share

    @property
    def digest(self) -> str:
        """What stands in a plan for the times it was made with."""
        return self.table.digest

    @property
    def _name(self) -> str:
        return f"{self.source.sha256} batch {self.serving.batch}"

    def _share(self, model: ir.Model) -> float:
        """Returns the cut model's time as a share of the original's."""
        serving = self.serving
        alone = serving.threads == 1 and serving.providers == ("CPUExecutionProvider",)
        clock = time.thread_time if alone else time.perf_counter  # other processes don't run on this thread's time
        feed = feed_at(self.units.coupling, serving.batch)
        timing = in_turns(
            self.source, model, feed, serving, rounds=ROUNDS, seconds=ROUND_SECONDS, clock=clock, progress=self.progress
        )
        return 1 / timing.speedup


def in_turns(
    source: Source,
    pruned: ir.Model | Path,
    feed: Mapping[str, np.ndarray],
    serving: Serving,
    *,
    rounds: int,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress | None = None,
) -> Timing:
    """Returns how long a model and its pruned version take, see `timing.compare`."""
    with ready(source.served, source.external) as first, ready(pruned, source.external) as second:
        return compare(
            first,
            second,
            feed,
            providers=serving.providers,
            threads=serving.threads,
            rounds=rounds,
            seconds=seconds,
            twice=source.size <= TWICE_UP_TO,
            clock=clock,
            progress=progress,
        )


def cost_table(
    source: Source,
    units: Units,
    serving: Serving,
    table: Timetable,
    *,
    seconds: float = SECONDS,
    progress: Progress | None = None,
) -> CostTable:
    """Returns the cost table of a model; what its timetable does not know yet is measured.

    Args:
        source: the model.
        units: its units.
        serving: how it is served.
        table: the times that are known; it is filled and saved.
        seconds: how long nodes may be measured; what is left then is interpolated.
        progress: called with how far it is.

    Raises:
        UsageError: the model declares another batch.
        ModelError, ProviderError, RunError: the model does not run as it is served.
    """
    _check_batch(units.coupling, serving.batch)
    name = f"{source.sha256} batch {serving.batch}"
    feed = feed_at(units.coupling, serving.batch)
    with ready(source.served, source.external) as subject:
        whole = table.get(f"kernels {name}", lambda: _kernels(subject, feed, serving))
        full = table.get(f"run {name}", lambda: _run(subject, feed, serving))
    assert whole is not None
    assert full is not None
    found = list(sites(units, batch_scale(units.coupling, serving.batch)))
    _measure(found, table, serving, seconds, progress)
    nodes = tuple(
        timed for site in found if (timed := _timed(site, table, units.coupling.turns(site.index))) is not None
    )
    rest = max(whole - sum(node.ms for node in nodes), 0.0)
    table.save()
    return CostTable(source, units, serving, table, full, nodes, rest, _traffic(units), progress)


def _check_batch(coupling: Coupling, batch: int) -> None:
    specs = inputs.specs(coupling.model)
    declared = {d for s in specs for d in s.shape[:1] if isinstance(d, int)}
    if batch > 1 and "batch" not in inputs.dims(specs).values() and batch not in declared:
        raise UsageError(f"the batch of the model is declared and can't be {batch}: leave --batch out")


def batch_scale(coupling: Coupling, batch: int) -> Callable[[int, int], int]:
    """Returns what a length is at a batch, from what it is in the trace's two runs."""
    feeds = coupling.trace.feeds
    kinds = inputs.dims(inputs.specs(coupling.model))
    if "batch" not in kinds.values():
        return lambda first, _: first
    sizes = {(feeds[0][n].shape[0], feeds[1][n].shape[0]) for n in feeds[0] if feeds[0][n].ndim}
    pairs = sorted((a, b) for a, b in sizes if a != b)
    if not pairs:
        return lambda first, _: first
    a, b = pairs[0]
    return lambda first, second: first // a * batch if first != second and first * b == second * a else first


def feed_at(coupling: Coupling, batch: int) -> dict[str, np.ndarray]:
    """Returns what the trace fed, at a batch."""
    first, second = coupling.trace.feeds
    scale = batch_scale(coupling, batch)
    found = {}
    for name, array in first.items():
        for axis, (n, m) in enumerate(zip(array.shape, second[name].shape, strict=True)):
            array = array.take(np.arange(scale(n, m)) % max(n, 1), axis)
        found[name] = array
    return found


def _kernels(subject: Path | onnx.ModelProto, feed: dict[str, np.ndarray], serving: Serving) -> float:
    return kernel_time(subject, feed, serving.providers, serving.threads, seconds=WHOLE)


def _run(subject: Path | onnx.ModelProto, feed: dict[str, np.ndarray], serving: Serving) -> float:
    """Returns the median milliseconds of one run, as `bench` shows them."""
    run = runner(open_for_timing(subject, serving.providers, serving.threads), feed)
    run()
    found: list[float] = []
    end = time.perf_counter() + WHOLE
    while len(found) < 5 or (time.perf_counter() < end and len(found) < 1000):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return 1e3 * float(np.median(found))


def _measure(
    found: Sequence[Site], table: Timetable, serving: Serving, seconds: float, progress: Progress | None
) -> None:
    """Fills a table: all nodes at full size, then the levels of all axes, coarse ones first, as far as time allows."""
    probes = {site.full.key: site.full for site in found}
    essential = set(probes)
    ladders = [coarse_first(axis.levels) for site in found for axis in site.axes]
    for k in range(max(map(len, ladders), default=0)):
        axes = (axis for site in found for axis in site.axes)
        for axis, ladder in zip(axes, ladders, strict=True):
            if k < len(ladder):
                probe = axis.probe(ladder[k])
                probes.setdefault(probe.key, probe)
    wanted = {key: probe for key, probe in probes.items() if key not in table.times}
    found_ms: dict[str, float | None] = {}
    start = time.monotonic()
    for turn in range(PASSES):  # whatever else the machine does now, it will hardly do it again in the next pass
        for k, (key, probe) in enumerate(wanted.items()):
            if time.monotonic() - start > seconds * (turn + 1) / PASSES and probe.key not in essential:
                break
            if progress is not None and k % 32 == 0:
                progress(f"time operators {k}/{len(wanted)}, pass {turn + 1} of {PASSES}")
            if found_ms.get(key, 0.0) is not None:
                found_ms[key] = _less(found_ms.get(key), _tried(probe, serving))
    for key, ms in found_ms.items():
        table.put(key, ms)


def _tried(probe: Probe, serving: Serving) -> float | None:
    """Returns the milliseconds of a node, None where it does not run alone."""
    with contextlib.suppress(OnnxPruneError):
        return measure(probe, serving.providers, serving.threads)
    return None


def _less(one: float | None, other: float | None) -> float | None:
    return other if one is None else one if other is None else min(one, other)


def _timed(site: Site, table: Timetable, turns: int) -> _Timed | None:
    """Returns the times of a node that is run so many times, None where it could not be run alone."""
    full = table.known(site.full.key)
    return None if full is None else _Timed(turns * full, tuple(_stairs(axis, table, full) for axis in site.axes))


def _stairs(axis: Axis, table: Timetable, full: float) -> _Stairs:
    known = {axis.full: 1.0}
    for length in axis.levels:
        ms = table.known(axis.probe(length).key)
        if ms is not None:
            known[length] = ms / full
    if len(known) == 1:
        known[0] = 0.0
    lengths = np.array(sorted(known), np.float64)
    factors = np.array([known[n] for n in sorted(known)])
    # what takes longer than a larger size is never wanted, and as a rule was interrupted
    return _Stairs(axis.slope, axis.full, lengths, np.minimum.accumulate(factors[::-1])[::-1])


def _candidates(units: int, width: int) -> tuple[int, ...]:
    """Returns the kept counts that may be edges: multiples of eight channels, all of few, and few in any case."""
    if units * width <= 8:
        return tuple(range(1, units + 1))
    step = 8 // gcd(8, width)
    return tuple(sorted({1, 2, min(4, units), units, *range(step, units, step)} & set(range(1, units + 1))))


def _traffic(units: Units) -> Floats:
    """Returns for each group the share of all activations that goes with one of its units."""
    coupling = units.coupling
    made = [coupling.tensors[v.name] for n in coupling.nodes for v in n.outputs if v.name in coupling.tensors]
    total = float(sum(np.prod(t.shape) for t in made)) or 1.0
    found = np.zeros(len(units.groups))
    for t in made:
        size = float(np.prod(t.shape))
        for a in t.arrays:
            groups, times = np.unique(units.group_of[units.of_label[a]], return_counts=True)
            for g, n in zip(groups.tolist(), times.tolist(), strict=True):
                if g >= 0:
                    found[g] += size * n / a.size / len(units.groups[g])
    return found / total
