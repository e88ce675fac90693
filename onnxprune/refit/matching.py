"""Which slots of a rectangle's rows go together: in each row those go first that whatever sums over them misses least.

Heads, groups of convolutions and directions of recurrent cells need not lose the same columns (engine/rows.py). One
slot of every row is taken out in a step, by the loss that a refit of the layers that read them cannot mend, or by that
of a head's scores, and the k-th of every row make the k-th unit. Rows that something else sums over, too, go by what
weights say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from onnxprune.criteria.ranking import rank_by_weights
from onnxprune.criteria.scoring import Scores
from onnxprune.engine.frontier import Feed, Frontier, Spool
from onnxprune.engine.labels import Array
from onnxprune.engine.layers import Layer, find_layers
from onnxprune.engine.twin import as_read
from onnxprune.engine.units import Group, Rows, Units
from onnxprune.refit import pairs
from onnxprune.refit.gathering import MOST_FEATURES, Drawing, gather, quiet
from onnxprune.refit.moments import Bools
from onnxprune.refit.obs import STEPS, Problem
from onnxprune.refit.pairs import Pair, features_of
from onnxprune.refit.realign import realigned

__all__ = ["Loss", "order", "orders"]

Loss = tuple[Problem, Array]
"""What a layer or a head loses, and which slots (numbers, ascending) it loses that with."""


def orders(
    units: Units,
    rows: Sequence[Rows],
    batches: Sequence[Feed],
    providers: Sequence[str],
    drawing: Drawing,
    *,
    made_up: bool,
    progress: Callable[[int, int], None] | None = None,
) -> list[Array]:
    """Returns for each group (units, rows) the places of each row's slots in the order in which they had better go.

    Args:
        units: as `find_units` finds them.
        rows: some of what `find_rows` finds in them.
        batches: calibration inputs.
        providers: onnxruntime's execution providers.
        drawing: how rows of layers are drawn.
        made_up: the inputs are not real ones.
        progress: called with the readers done and their number.
    """
    apart = _apart(units, rows)
    scores = rank_by_weights(apart, None, drawing.seed, drawing.jobs)
    spool = Spool()
    try:
        feeds = spool.store(batches)
        coupling = as_read(units.coupling)
        if made_up:
            coupling = realigned(coupling, feeds, providers, spool)
        with np.errstate(all="ignore"):  # weights that are no numbers tell nothing
            walk = _Walk(replace(apart, coupling=coupling), rows, drawing)
            found = {
                g: order(losses, scores[g].reshape(rows[g].slots.shape), walk.told[g])
                for g, losses in walk.run(Frontier(coupling, feeds, providers, spool, walk.lasting), progress)
            }
    finally:
        spool.close()
    return [found[g] for g in range(len(rows))]


def order(losses: Sequence[Loss], scores: Scores, told: Bools) -> Array:
    """Returns (n, rows) the places of each row's slots in the order they go.

    Args:
        losses: what is lost with slots; they are numbered row by row in each place.
        scores: (n, rows) importance of each slot, for rows that no losses tell of.
        told: for each row whether they do.
    """
    n, rows = scores.shape
    found: Array = np.argsort(scores, axis=0, kind="stable")
    able = np.flatnonzero(told)
    left = np.ones(scores.shape, bool)
    step = -(-n // STEPS)
    for done in range(0, n if len(able) else 0, step):
        total = np.zeros(scores.size)
        for problem, slots in losses:
            total[slots] += problem.losses(np.arange(len(slots)))
        total[~np.isfinite(total)] = np.finfo(total.dtype).max
        go = np.argsort(np.where(left, total.reshape(n, rows), np.inf)[:, able], axis=0, kind="stable")
        go = go[: min(step, n - done)]
        found[done : done + len(go), able] = go
        left[go, able] = False
        for problem, slots in losses if done + step < n else ():
            problem.eliminate(np.flatnonzero(np.isin(slots, go * rows + able)))
    return found


def _apart(units: Units, rows: Sequence[Rows]) -> Units:
    """Returns units that are single slots: of each group row by row in each place."""
    of_root = np.full(len(units.of_label), -1)
    groups: list[Group] = []
    count = 0
    for each in rows:
        own = np.arange(count, count + each.slots.size)
        of_root[each.slots] = own.reshape(each.slots.shape)
        groups.append(replace(units.groups[each.group], units=own))
        count += len(own)
    of_label = of_root[units.coupling.labels.find(np.arange(len(of_root)))]
    return replace(units, of_label=of_label, groups=tuple(groups), families=())


class _Reader:
    """What sums over slots: a linear layer or a product of queries and keys.

    Attributes:
        index: the node.
        at: the nodes before this one have been run where it is looked at.
        lasting: values that must be there then.
        slots: (own groups or heads, features) the slot that each feature is, -1 for none.
    """

    def __init__(self, of: Layer | Pair, apart: Units) -> None:
        self.of, self.index = of, of.index
        self.lasting: tuple[str, ...] = ()
        if isinstance(of, Layer):
            self.at, self.lasting = of.index + 1, (of.input, of.output)
            self.slots: Array = np.where(of.labels >= 0, apart.of_label[of.labels], -1)
        else:
            self.at, self.slots = of.index, of.units

    def seen(self, dense: Frontier, drawing: Drawing) -> Callable[[int, Array], Problem]:
        """Returns what gives the problem of one of its own groups with features (slots, k), as the data are there."""
        if not isinstance(self.of, Layer):
            products, check = pairs.gather(self.of, dense.values)
            if check is not products:  # of one batch they are the same
                products.queries += check.queries
                products.keys += check.keys
            return products.problem
        fit, check_ = gather(self.of, dense, dense, drawing)
        fit += check_
        h, r = fit.centred()
        gain = self.of.gain.reshape(r.shape[:2])

        def problem(k: int, features: Array) -> Problem:
            return Problem.of(h[k].copy(), r[k] * gain[k][:, None], features, float(gain[k] ** 2 @ fit.tt[k]))

        return problem

    def tells(self, own: Array) -> bool:
        """Returns whether each of its groups has all of these slots equally often, or none of them."""
        counts = np.stack([(part[:, None] == own).sum(axis=0) for part in self.slots])
        return bool((counts == counts[:, :1]).all() and len(np.unique(counts[counts > 0])) == 1)


class _Walk:
    """One pass of the dense network that gathers what the readers of slots lose with them."""

    def __init__(self, apart: Units, rows: Sequence[Rows], drawing: Drawing) -> None:
        self.apart, self.drawing = apart, drawing
        counts = [each.slots.shape[1] for each in rows]
        firsts = np.cumsum([0, *counts])
        numbers = (np.tile(np.arange(count), len(each.slots)) for count, each in zip(counts, rows, strict=True))
        self.row_of = np.concatenate([*map(np.add, numbers, firsts), [-1]])  # of each slot, through all groups
        self.group_of = apart.group_of
        layers = [x for x in find_layers(apart.coupling, direct=True) if x.labels.shape[1] <= MOST_FEATURES]
        found: list[Layer | Pair] = [*layers, *pairs.find_pairs(apart)]
        readers = [_Reader(of, apart) for of in found]
        known = self._told(readers, int(firsts[-1]))
        self.told = np.split(known[:-1], firsts[1:-1])
        wanted = (reader for reader in readers if known[self.row_of[reader.slots]].any())
        self.known, self.readers = known, sorted(wanted, key=lambda reader: (reader.at, reader.index))
        self.lasting = [(name, reader.at) for reader in self.readers for name in reader.lasting]

    def run(self, dense: Frontier, progress: Callable[[int, int], None] | None) -> Iterator[tuple[int, list[Loss]]]:
        """Yields each group with what is lost with its slots, as soon as all that read them have been looked at."""
        read = [np.unique(self.group_of[x.slots[self.known[self.row_of[x.slots]]]]).tolist() for x in self.readers]
        last = {g: k for k, groups in enumerate(read) for g in groups}
        losses: dict[int, list[Loss]] = {g: [] for g in range(len(self.told))}
        with quiet([reader.of for reader in self.readers if isinstance(reader.of, Layer)]):
            yield from ((g, losses.pop(g)) for g in range(len(self.told)) if g not in last)
            for done, reader in enumerate(self.readers):
                if progress is not None:
                    progress(done, len(self.readers))
                dense.advance(reader.at)
                problem = reader.seen(dense, self.drawing)
                for g in read[done]:
                    losses[g] += self._lost(reader, problem, g)
                del problem
                yield from ((g, losses.pop(g)) for g in read[done] if last[g] == done)

    def _lost(self, reader: _Reader, problem: Callable[[int, Array], Problem], g: int) -> Iterator[Loss]:
        """Yields what each of a reader's own groups loses with slots, those of equally many features at a time."""
        first = int(self.apart.groups[g].units[0])
        for k, part in enumerate(reader.slots):
            told = part[self.known[self.row_of[part]] & (self.group_of[part] == g)]
            slots, counts = np.unique(told, return_counts=True)
            for count in np.unique(counts):
                own = slots[counts == count]
                yield problem(k, features_of(part, own)), own - first

    def _told(self, readers: Sequence[_Reader], count: int) -> Bools:
        """Returns for each row whether readers alone sum over it, all its slots alike; the last is for no row."""
        summed, read = (np.zeros((count + 1, len(self.apart.coupling.nodes)), bool) for _ in range(2))
        for node, labels in self.apart.coupling.contracted:
            summed[np.unique(self.row_of[self.apart.of_label[labels]]), node] = True
        for reader in readers:
            for row in np.unique(self.row_of[reader.slots]).tolist():
                read[row, reader.index] = row >= 0 and reader.tells(np.flatnonzero(self.row_of == row))
        told = np.asarray(summed.any(axis=1) & (summed <= read).all(axis=1))
        told[-1] = False
        return told
