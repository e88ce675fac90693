"""Which units go, where data tell: by the loss that is left when their consumers are refitted.

A group with one linear consumer is chosen when the walk comes to it, on the activations of the already pruned network.
Others cannot wait: they are chosen before, from one pass of the dense network, by the sum over their consumers. Groups
that something else reads are ranked by their scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxprune.criteria.scoring import Scores
from onnxprune.engine.frontier import Frontier
from onnxprune.engine.labels import Array
from onnxprune.engine.layers import Layer
from onnxprune.engine.units import Units
from onnxprune.refit import pairs
from onnxprune.refit.gathering import MOST_FEATURES, Drawing, gather
from onnxprune.refit.moments import Bools, Moments
from onnxprune.refit.obs import Problem, eliminate
from onnxprune.refit.pairs import Mix, Pair


@dataclass(eq=False)
class Selection:
    """The units that go, as far as they are known.

    Attributes:
        units: all removable units.
        counts: how many of each group go.
        scores: importance of each group's units where no loss tells.
        known: how the units of groups with several consumers go, in order, as an earlier walk over the same dense
            network found it; what is missing is added. None: no other walk follows.
        planned: for each unit whether it is to go, where that is settled; they go when they would if losses told.
        dead: for each unit whether it is cut; the last entry is for labels without a unit.
        late: the groups that each layer chooses when the walk comes to it, by the layer's place in the list.
        mixes: what projections take over, by the number of their node.
        mended: the products of two activations for which they do.
        pooled: by name, the moments of weights that several nodes read, of all of them, on the dense network's values:
            what is refitted for one counts for those behind it, too.
    """

    units: Units
    counts: Sequence[int]
    scores: Sequence[Scores]
    known: dict[int, Array] | None = None
    planned: Bools | None = None
    dead: np.ndarray = field(init=False)
    late: dict[int, list[int]] = field(default_factory=dict)
    mixes: dict[int, list[Mix]] = field(default_factory=dict)
    mended: set[int] = field(default_factory=set)
    pooled: dict[str, tuple[Moments, Moments]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Starts with nothing cut."""
        self.dead = np.zeros(self.units.count + 1, bool)

    def unit_of(self, labels: Array) -> Array:
        """Returns the unit of each label, -1 where it has none."""
        return np.where(labels >= 0, self.units.of_label[labels], -1)

    # ---------------------------------------------------------------- before the walk
    def begin(self, layers: Sequence[Layer], dense: Frontier, drawing: Drawing, *, choose: bool, mend: bool) -> None:
        """Chooses for all groups that cannot wait for their consumer, and finds out which can.

        Args:
            layers: the linear layers, in node order.
            dense: the dense network at its start; what layers read must last until they have been run.
            drawing: how rows are drawn.
            choose: by loss; else by scores.
            mend: find out what queries can take over from cut dims.
        """
        found = pairs.find_pairs(self.units)
        readers = self.readers(layers)
        waiting: dict[int, list[int]] = {}
        stops: set[int] = set()
        paired: dict[int, Pair] = {}
        for g, count in enumerate(self.counts):
            if not count:
                continue
            own = [p for p in found if g in self.groups_of(p.units)]
            told = choose and self.is_told(g, readers[g], own, layers)
            alone = not own and len(readers[g]) == 1 and not layers[readers[g][0]].recurs
            if told and not own and not alone:
                stops.update(readers[g])
            if told and alone:
                self.late.setdefault(readers[g][0], []).append(g)
            elif self.planned is not None:
                self.follow(g)
            elif told and own:
                paired[g] = own[0]
            elif told and self.known is not None and g in self.known:
                self.cut(g, self.known[g][:count], self.known[g])
            elif told:
                waiting[g] = readers[g]
            else:
                order = np.argsort(self.scores[g], kind="stable")
                self.cut(g, order[:count], order)
        known = _Pass(self, layers, dense, drawing, stops)
        known.choose(waiting, paired)
        if mend:
            cut = {g for g, count in enumerate(self.counts) if count}
            known.mend([p for p in found if cut & set(self.groups_of(p.units))])
            known.pool({k for g in cut for k in readers[g] if layers[k].shared > 1})
        known.run()

    def readers(self, layers: Sequence[Layer]) -> list[list[int]]:
        """Returns for each group the layers that read it."""
        found: list[list[int]] = [[] for _ in self.units.groups]
        for k, layer in enumerate(layers):
            for g in self.groups_of(self.unit_of(layer.labels)):
                found[g].append(k)
        return found

    def groups_of(self, units: Array) -> list[int]:
        """Returns the groups that these units are of."""
        groups: list[int] = np.unique(self.units.group_of[units]).tolist()
        return [g for g in groups if g >= 0]

    def is_told(self, g: int, readers: Sequence[int], own: Sequence[Pair], layers: Sequence[Layer]) -> bool:
        """Returns whether the consumers of a group tell all that its units are worth."""
        read = {layers[k].index for k in readers} | {p.index for p in own}
        summed = {k for k, labels in self.units.coupling.contracted if g in self.groups_of(self.unit_of(labels))}
        units = self.units.groups[g].units
        if not summed <= read or len(own) + bool(readers) != 1:
            return False
        return all(self._is_regular(layers[k], units) for k in readers) and all(
            pairs.is_regular(p.units, units) for p in own
        )

    # ---------------------------------------------------------------- one group
    def choose(self, g: int, layer: Layer, m: Moments) -> None:
        """Cuts the units of a group whose one consumer the walk has come to."""
        if self.planned is not None:
            self.follow(g)
        else:
            self.eliminate(g, self.problems(layer, m, g))

    def follow(self, g: int) -> None:
        """Cuts the units of a group that are planned to go."""
        assert self.planned is not None
        units = self.units.groups[g].units
        self.dead[units] = self.planned[units]

    def problems(self, layer: Layer, m: Moments, g: int) -> list[Problem]:
        """Returns what a layer loses with the units of a group, for each of the layer's own groups."""
        units = self.units.groups[g].units
        found = []
        h, r = m.centred()
        gain = layer.gain.reshape(r.shape[:2])
        for k, labels in enumerate(layer.labels):
            features = pairs.features_of(self.unit_of(labels), units)
            energy = float(gain[k] ** 2 @ m.tt[k])
            found.append(Problem.of(h[k], r[k] * gain[k][:, None], features, energy))
        return found

    def settle(self, g: int, problems: list[Problem]) -> None:
        """Cuts the units of a group with several consumers; where more walks follow, finds out about all of them."""
        if self.known is None:
            self.eliminate(g, problems)
            return
        size = len(self.units.groups[g])
        gone = eliminate(problems, size, size - 1)
        self.known[g] = np.concatenate([gone, np.setdiff1d(np.arange(size), gone)])
        self.cut(g, self.known[g][: self.counts[g]], self.known[g])

    def eliminate(self, g: int, problems: list[Problem]) -> None:
        """Cuts the units of a group that its consumers miss least."""
        size = len(self.units.groups[g])
        gone = eliminate(problems, size, self.counts[g])
        self.cut(g, gone, np.concatenate([gone, np.setdiff1d(np.arange(size), gone)]))

    def cut(self, g: int, gone: Array, order: Array) -> None:
        """Marks units of a group as cut, but for one of each family that would die out (the last to go).

        Args:
            g: the group.
            gone: places of the units in it.
            order: places of all its units as they would go.
        """
        units = self.units.groups[g].units
        self.dead[units[gone]] = True
        rank = np.full(self.units.count + 1, -1)
        rank[units[order]] = np.arange(len(order))
        for family in self.units.families:
            if self.dead[family].all():
                self.dead[family[int(np.argmax(rank[family]))]] = False

    def _is_regular(self, layer: Layer, own: Array) -> bool:
        """Returns whether every unit has equally many features in each of the layer's own groups."""
        return self.is_narrow(layer) and pairs.is_regular(self.unit_of(layer.labels), own)

    @staticmethod
    def is_narrow(layer: Layer) -> bool:
        """Returns whether a layer has so few features that products of them are formed."""
        return bool(layer.labels.shape[1] <= MOST_FEATURES)


class _Pass:
    """One pass of the dense network that gathers what groups with several consumers, and pairs, are worth."""

    def __init__(
        self, selection: Selection, layers: Sequence[Layer], dense: Frontier, drawing: Drawing, stops: set[int]
    ) -> None:
        """Starts with nothing asked for.

        Args:
            selection: the units that go, as far as they are known.
            layers: the linear layers.
            dense: the dense network at its start.
            drawing: how rows are drawn.
            stops: layers that the network is run up to if it gets there, asked for or not: what runtimes fuse, and so
                how they round, must not hang on what is already known.
        """
        self.selection, self.layers, self.dense, self.stops = selection, layers, dense, stops
        self.drawing = drawing
        self.waiting: dict[int, list[int]] = {}
        self.chosen: dict[int, list[int]] = {}
        self.wanted: set[int] = set()
        self.pooled: set[int] = set()
        self.pairs: dict[int, Pair] = {}

    def choose(self, waiting: dict[int, list[int]], paired: dict[int, Pair]) -> None:
        """Asks for groups with the layers that read them, and for groups of pairs."""
        self.waiting = waiting
        for g, p in paired.items():
            self.pairs[p.index] = p
            self.chosen.setdefault(p.index, []).append(g)

    def mend(self, wanted: Sequence[Pair]) -> None:
        """Asks what the queries of these pairs can take over."""
        self.pairs |= {p.index: p for p in wanted}
        self.wanted |= {p.index for p in wanted}

    def pool(self, layers: set[int]) -> None:
        """Asks for the moments of layers whose weights others read too."""
        self.pooled = layers

    def run(self) -> None:
        """Visits layers (when they have been run) and pairs (before they are) in node order."""
        wanted = {k for readers in self.waiting.values() for k in readers} | self.pooled
        last = max([*(self.layers[k].index + 1 for k in wanted), *(p.index for p in self.pairs.values())], default=-1)
        places = [(self.layers[k].index + 1, k, None) for k in wanted | self.stops]
        problems: dict[int, list[Problem]] = {g: [] for g in self.waiting}
        for at, k, p in sorted([*places, *((p.index, -1, p) for p in self.pairs.values())], key=lambda v: v[:2]):
            if at > last:
                break
            self.dense.advance(at)
            if p is None and k not in wanted:
                continue
            if p is not None:
                self._visit(p)
                continue
            fit, check = gather(self.layers[k], self.dense, self.dense, self.drawing)
            if k in self.pooled:
                self._add(self.layers[k].use.name, fit, check)
                fit = fit + check
            else:
                fit += check
            del check
            for g in [g for g, readers in self.waiting.items() if k in readers]:
                problems[g] += self.selection.problems(self.layers[k], fit, g)
                if k == self.waiting[g][-1]:
                    self.selection.settle(g, problems.pop(g))

    def _add(self, name: str, fit: Moments, check: Moments) -> None:
        """Adds the moments of one reader of a weight to those of the others."""
        known = self.selection.pooled.get(name)
        self.selection.pooled[name] = (fit, check) if known is None else (known[0] + fit, known[1] + check)

    def _visit(self, pair: Pair) -> None:
        """Chooses the groups of a pair, and finds out what its queries can take over."""
        selection = self.selection
        fit, check = pairs.gather(pair, self.dense.values)
        for g in self.chosen.get(pair.index, []):
            selection.eliminate(g, fit.problems(pair, selection.units.groups[g].units))
        if pair.index not in self.wanted or not selection.dead[pair.units].any():
            return
        made = pairs.projection(pair, self.dense, self.layers)
        if made is not None:
            layer, of, scale = made
            mixtures = pairs.mixed(pair, fit, check, selection.dead)
            found = pairs.mixes(pair, mixtures, of, scale, selection.dead)
            selection.mixes.setdefault(layer.index, []).extend(found)
            selection.mended.add(pair.index)


__all__ = ["Selection"]
