"""Every group cut alone, at a ladder of levels, with its consumers refitted: the weights of each trial.

One walk over the dense network gathers what the consumers of each wanted group read and make. As soon as all of them
have been seen, the group is taken apart once, down to its deepest level, and the weights of every level are made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np

from onnxprune.allocation.suffix import Change
from onnxprune.criteria.scoring import Scores
from onnxprune.engine.coupling import Use
from onnxprune.engine.cutting import Cutting
from onnxprune.engine.frontier import Feed, Frontier, Spool, bias_name
from onnxprune.engine.labels import Array
from onnxprune.engine.layers import Layer, find_layers
from onnxprune.engine.units import Units
from onnxprune.ops.zero_points import blank
from onnxprune.refit import pairs
from onnxprune.refit.gathering import Drawing, bias_of, gather
from onnxprune.refit.moments import Floats, Moments, refit
from onnxprune.refit.obs import Problem, eliminate
from onnxprune.refit.pairs import Pair, Products
from onnxprune.refit.selection import Selection

RIDGE = 1e-3


@dataclass(frozen=True, eq=False)
class Trial:
    """One group with the weights of each of its levels."""

    group: int
    change: Change


@dataclass(frozen=True, eq=False)
class _Stop:
    """Where something is gathered: at a layer, by its place in the list, or at a pair.

    Attributes:
        at: the nodes before this one have been run then.
        layer: the layer, -1 for a pair.
        pair: the pair, None for a layer.
        groups: the wanted groups that it tells about.
    """

    at: int
    layer: int
    pair: Pair | None
    groups: frozenset[int]


class Trials:
    """The walk that makes the trials of all wanted groups."""

    def __init__(
        self,
        units: Units,
        ladders: Mapping[int, Sequence[int]],
        scores: Sequence[Scores],
        batches: Sequence[Feed],
        providers: Sequence[str],
        drawing: Drawing,
        spool: Spool,
    ) -> None:
        self.units, self.ladders, self.scores, self.spool = units, ladders, scores, spool
        self.drawing = drawing
        coupling = units.coupling
        self.uses: dict[str, list[Use]] = {}
        for use in coupling.uses:
            self.uses.setdefault(use.name, []).append(use)
        self.layers = find_layers(coupling, direct=True)
        self.selection = self._selection()
        readers = self.selection.readers(self.layers)
        self.readers = {g: [k for k in readers[g] if self._is_narrow(k)] for g in ladders}
        found = pairs.find_pairs(units)
        self.pairs = {g: [p for p in found if g in self.selection.groups_of(p.units)] for g in ladders}
        self.told = {g for g in ladders if self.selection.is_told(g, readers[g], self.pairs[g], self.layers)}
        lasting = [(n, layer.index + 1) for layer in self.layers for n in (layer.input, layer.output)]
        self.frontier = Frontier(coupling, batches, providers, spool, lasting)
        self.stops = self._stops()
        self.moments: dict[int, Moments] = {}
        self.products: dict[int, tuple[Products, Products]] = {}

    def _selection(self) -> Selection:
        return Selection(self.units, (0,) * len(self.units.groups), self.scores)

    def _is_narrow(self, k: int) -> bool:
        """Returns whether products of a layer's features are formed."""
        return self.selection.is_narrow(self.layers[k])

    def _stops(self) -> list[_Stop]:
        """Returns where the walk gathers, in order."""
        layers: dict[int, set[int]] = {}
        for g, own in self.readers.items():
            for k in own:
                layers.setdefault(k, set()).add(g)
        stops = [_Stop(self.layers[k].index + 1, k, None, frozenset(of)) for k, of in layers.items()]
        for p in {p.index: p for own in self.pairs.values() for p in own}.values():
            of = frozenset(g for g, own in self.pairs.items() if any(q.index == p.index for q in own))
            stops.append(_Stop(p.index, -1, p, of))
        return sorted(stops, key=lambda s: (s.at, s.layer))

    def run(self, progress: Callable[[int], None]) -> Iterator[Trial]:
        """Yields the trials of each group as soon as all that tells about it has been seen.

        Args:
            progress: called with the stops made.
        """
        left = dict.fromkeys(self.ladders, 0)
        for stop in self.stops:
            for g in stop.groups:
                left[g] += 1
        for g in [g for g, n in left.items() if not n]:
            yield self._trial(g)
            del left[g]
        for done, stop in enumerate(self.stops):
            progress(done)
            self.frontier.advance(stop.at)
            self._gather(stop)
            for g in sorted(stop.groups):
                left[g] -= 1
                if not left[g]:
                    yield self._trial(g)
                    del left[g]
            open_ = {k for g in left for k in self.readers[g]}
            self.moments = {k: m for k, m in self.moments.items() if k in open_}

    def _gather(self, stop: _Stop) -> None:
        if stop.pair is not None:
            self.products[stop.pair.index] = pairs.gather(stop.pair, self.frontier.values)
            return
        layer = self.layers[stop.layer]
        found, check = gather(layer, self.frontier, self.frontier, self.drawing)
        found += check
        self.moments[stop.layer] = found

    # ---------------------------------------------------------------- one group
    def _trial(self, g: int) -> Trial:
        """Returns the weights of all levels of a group."""
        order = self._order(g)
        contents, slots = list[Feed](), dict[int, int]()
        told = list(self._told(g))
        for count in self.ladders[g]:
            selection = self._selection()
            selection.cut(g, order[:count], order)
            changed = self._masked(g, selection)
            for p in self.pairs[g]:
                self._mix(p, selection, changed, slots)
            for layer, moments in told:
                self._refit(layer, moments, selection, changed, slots)
            contents += self.spool.store([changed])
        return Trial(g, Change(tuple(contents), slots))

    def _order(self, g: int) -> Array:
        """Returns the places of a group's units in the order they go: by joint loss, or by score."""
        if g not in self.told:
            return np.argsort(self.scores[g], kind="stable")
        size = len(self.units.groups[g])
        problems: list[Problem] = []
        for k in self.readers[g]:
            problems += self.selection.problems(self.layers[k], self.moments[k], g)
        for p in self.pairs[g]:
            problems += self.products[p.index][0].problems(p, self.units.groups[g].units)
        gone = eliminate(problems, size, max(self.ladders[g]))
        return np.concatenate([gone, np.setdiff1d(np.arange(size), gone)])

    def _masked(self, g: int, selection: Selection) -> Feed:
        """Returns the constants that lose something, with zeros there; not those that some reader needs whole."""
        cutting = Cutting(self.units, np.flatnonzero(selection.dead[:-1]))
        coupling = self.units.coupling
        found: Feed = {}
        for name in dict.fromkeys(coupling.uses[u].name for u, _ in self.units.groups[g].members):
            uses = self.uses[name]
            masks = [cutting.mask(use) for use in uses]
            zero = blank(coupling.nodes[uses[0].node], uses[0].slot, uses[0].shape)
            if zero is not None and all(np.array_equal(m, masks[0]) for m in masks[1:]):
                content = self.frontier.content(name)
                found[name] = np.where(masks[0], content, zero.astype(content.dtype))
        return found

    def _mix(self, pair: Pair, selection: Selection, changed: Feed, slots: dict[int, int]) -> None:
        """Lets the projection that makes the queries of a pair take over from what is cut."""
        made = pairs.projection(pair, self.frontier, self.layers)
        if made is None:
            return
        layer, of, scale = made
        mixtures = pairs.mixed(pair, *self.products[pair.index], selection.dead)
        w = layer.view.matrix(self.frontier.content(layer.use.name).astype(np.float64)).copy()
        b = bias_of(layer, self.frontier).copy()
        for mix in pairs.mixes(pair, mixtures, of, scale, selection.dead):
            mix.into(w, b)
        self._put(layer, w, b, selection, changed, slots)

    def _told(self, g: int) -> Iterator[tuple[Layer, Moments]]:
        """Yields the consumers of a group with their moments; one for all that read the same weight."""
        alike: dict[str, list[int]] = {}
        for k in self.readers[g]:
            alike.setdefault(self.layers[k].use.name, []).append(k)
        for first, *others in alike.values():
            yield self.layers[first], reduce(add, (self.moments[k] for k in others), self.moments[first])

    def _refit(self, layer: Layer, m: Moments, selection: Selection, changed: Feed, slots: dict[int, int]) -> None:
        """Refits a layer to what is left of a group."""
        keep = ~selection.dead[selection.unit_of(layer.labels)]
        w0 = layer.view.matrix(self.frontier.content(layer.use.name).astype(np.float64))
        b0 = bias_of(layer, self.frontier)
        try:
            w, b = refit(m if layer.bias is not None else m.through_origin(), w0, keep, RIDGE)
        except np.linalg.LinAlgError:
            return
        w = np.where(layer.fixed[:, :, None], np.where(keep[:, None, :], w0, 0), w)
        self._put(layer, w, np.where(layer.fixed, b0, b), selection, changed, slots)

    def _put(
        self, layer: Layer, w: Floats, b: Floats, selection: Selection, changed: Feed, slots: dict[int, int]
    ) -> None:
        """Puts a layer's weight (g, o, f) and bias (g, o) among the changed contents, zeros for cut outputs."""
        rows = ~selection.dead[selection.unit_of(layer.rows)]
        old = self.frontier.content(layer.use.name)
        changed[layer.use.name] = layer.view.restore(np.where(rows[:, :, None], w, 0)).astype(old.dtype)
        bias = layer.bias
        if bias is None:
            return
        b = np.where(rows, b, 0)
        if bias.name is None:
            slots[bias.node] = bias.slot
            changed[bias_name(bias.node)] = b.reshape(bias.shape).astype(old.dtype)
            return
        whole = (changed[bias.name] if bias.name in changed else self.frontier.content(bias.name)).copy()
        whole.reshape(-1)[slice(None) if bias.cells is None else bias.cells] = b.reshape(-1)
        changed[bias.name] = whole


__all__ = ["Trial", "Trials"]
