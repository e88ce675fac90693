"""Choosing units by what least squares cannot mend, and mending the rest: layer after layer, against the dense model.

The graph is walked once, in node order, by two frontiers: the dense network's and the pruned one's. At every linear
node the moments of its inputs (as the pruned network sees them) and of its targets (what the dense network computes,
less what the other branch of a following addition already got wrong) are gathered; units whose only linear consumer
this is are chosen; and the weights are refitted on what is kept. Weights keep their full size with zeros where units
are cut: the cut itself comes afterwards and stays exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from onnxprune.constants import constants
from onnxprune.coupling import Use
from onnxprune.cutting import Cutting
from onnxprune.edit import add_constant, replace_constant
from onnxprune.frontier import Feed, Frontier, Spool
from onnxprune.labels import Array
from onnxprune.layers import Bias, Layer, find_layers
from onnxprune.moments import Moments, refit_safely
from onnxprune.obs import Problem, eliminate
from onnxprune.ops.linear import Linear
from onnxprune.ops.zero_points import blank
from onnxprune.realign import realigned
from onnxprune.scoring import Scores
from onnxprune.tensors import Tensor
from onnxprune.units import Units

RIDGES = (1e-4, 1e-2, 1.0)
SHARE = 0.25  # of the positions of a convolution or sequence
LEAST_ROWS = 24  # rows for each feature that are aimed at, if there are as many
MOST_ROWS = 1 << 17
CHECK_EVERY = 8  # one batch in so many is held out to choose the ridge
MOST_FEATURES = 8192
UNCHANGED = 1e-5


@dataclass(eq=False)
class Compensated:
    """What the walk found.

    Attributes:
        dead: units to cut.
        weights: new contents, in full size, of constants by name.
        biases: new contents of biases, by where they stand.
        notes: what fell back to something simpler, and why.
    """

    dead: Array
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    biases: dict[Bias, np.ndarray] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def compensate(
    units: Units,
    counts: Sequence[int],
    scores: Sequence[Scores],
    batches: Sequence[Feed],
    *,
    choose: bool,
    mode: str,
    providers: Sequence[str],
    seed: int,
    align: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Compensated:
    """Returns which units to cut and the weights that make up for them.

    Args:
        units: all removable units.
        counts: how many units of each group go.
        scores: importance of each group's units, used where `choose` is off or a group has no linear consumer.
        batches: calibration inputs.
        choose: pick units by least-squares loss (obs) rather than by `scores`.
        mode: `lstsq`, `bias` or `none` (choice only).
        providers: onnxruntime's execution providers.
        seed: of the sampled positions.
        align: put the statistics of these inputs into BatchNormalizations while weights are refitted (made-up inputs).
        progress: called with the layers done and their number.
    """
    spool = Spool()
    try:
        if align:
            units = replace(units, coupling=realigned(units.coupling, batches, providers, spool))
        return _Walk(units, counts, scores, batches, choose, mode, providers, seed, spool).run(progress)
    finally:
        spool.close()


class _Walk:
    def __init__(
        self,
        units: Units,
        counts: Sequence[int],
        scores: Sequence[Scores],
        batches: Sequence[Feed],
        choose: bool,
        mode: str,
        providers: Sequence[str],
        seed: int,
        spool: Spool,
    ) -> None:
        self.units, self.counts, self.scores, self.mode, self.seed = units, counts, scores, mode, seed
        self.coupling = units.coupling
        self.layers = find_layers(self.coupling)
        self.choose = choose
        lasting = [(name, layer.index + 1) for layer in self.layers for name in self._read(layer)]
        self.dense = Frontier(self.coupling, batches, providers, spool, lasting)
        self.pruned = Frontier(self.coupling, batches, providers, spool, lasting)
        self.dead = np.zeros(units.count + 1, bool)
        self.out = Compensated(np.zeros(0, np.int64))

    def _read(self, layer: Layer) -> list[str]:
        """Returns the values that a layer's refit looks at."""
        return [layer.input, layer.output, *([layer.other.name] if layer.other else [])]

    def run(self, progress: Callable[[int, int], None] | None) -> Compensated:
        chosen_late = self._choose_early()
        self._mask_chosen()
        for done, layer in enumerate(self.layers):
            if progress is not None:
                progress(done, len(self.layers))
            self.pruned.advance(layer.index)
            self.dense.advance(layer.index + 1)
            self._visit(layer, chosen_late.get(layer.index, []))
        self.out.dead = np.flatnonzero(self.dead[:-1])
        return self.out

    # ---------------------------------------------------------------- choosing
    def _choose_early(self) -> dict[int, list[int]]:
        """Chooses for groups that cannot wait for their consumer; returns the groups that each layer chooses."""
        consumers: dict[int, list[int]] = {}
        group_of = self.units.group_of
        for k, layer in enumerate(self.layers):
            for g in np.unique(group_of[self._units_of(layer.labels)]).tolist():
                if g >= 0:
                    consumers.setdefault(g, []).append(k)
        linear = {layer.index for layer in self.layers}
        elsewhere = {
            int(g)
            for index, labels in self.coupling.contracted
            if index not in linear
            for g in np.unique(group_of[self._units_of(labels)])
        }
        late: dict[int, list[int]] = {}
        early: dict[int, list[int]] = {}
        for g, group in enumerate(self.units.groups):
            if not self.counts[g]:
                continue
            layers = consumers.get(g, [])
            regular = layers and g not in elsewhere and all(self._regular(self.layers[k], group.units) for k in layers)
            if not self.choose or not regular:
                order = np.argsort(self.scores[g], kind="stable")
                self._cut(group.units[order[: self.counts[g]]], group.units[order])
            elif len(layers) == 1:
                late.setdefault(self.layers[layers[0]].index, []).append(g)
            else:
                early[g] = layers
        self._choose_jointly(early)
        return late

    def _mask_chosen(self) -> None:
        """Sets to zero, in the pruned network, what is cut before the walk, where all readers agree."""
        cutting = Cutting(self.units, np.flatnonzero(self.dead[:-1]))
        by_name: dict[str, list[Use]] = {}
        for use in self.coupling.uses:
            by_name.setdefault(use.name, []).append(use)
        for name, uses in by_name.items():
            if not any(map(cutting.touches, uses)):
                continue
            masks = [cutting.mask(use) for use in uses]
            zero = blank(self.coupling.nodes[uses[0].node], uses[0].slot, uses[0].shape)
            if zero is not None and all(np.array_equal(m, masks[0]) for m in masks[1:]):  # else some need it whole
                content = self.pruned.tensors[name].numpy()
                self.pruned.weights[name] = np.where(masks[0], content, zero.astype(content.dtype))

    def _regular(self, layer: Layer, units: Array) -> bool:
        """Returns whether every unit has equally many features here, of one group of the layer."""
        if len(layer.labels) != 1 or layer.labels.shape[1] > MOST_FEATURES:
            return False
        of = self._units_of(layer.labels[0])
        counts = np.bincount(of[of >= 0], minlength=self.units.count)[units]
        return bool(counts[0] > 0 and (counts == counts[0]).all())

    def _choose_jointly(self, early: dict[int, list[int]]) -> None:
        """Chooses for groups with several consumers, from a pass of the dense network."""
        if not early:
            return
        wanted = {k for layers in early.values() for k in layers}
        frontier = Frontier(
            self.coupling,
            self.dense.values,
            self.dense.providers,
            self.dense.spool,
            [(n, layer.index + 1) for layer in self.layers for n in self._read(layer)],
        )
        problems: dict[int, tuple[np.ndarray, np.ndarray, float]] = {}
        for k, layer in enumerate(self.layers):
            if k not in wanted:
                continue
            frontier.advance(layer.index + 1)
            fit, check = self._moments(layer, frontier, frontier)
            h, r = (fit + check).centred()
            problems[k] = (h[0], r[0] * layer.gain[:, None], float(layer.gain**2 @ (fit + check).tt[0]))
        for g, layers in early.items():
            group = self.units.groups[g]
            own = [
                Problem.of(*problems[k][:2], self._features(self.layers[k], group.units), problems[k][2])
                for k in layers
            ]
            gone = eliminate(own, len(group.units), self.counts[g])
            rest = np.setdiff1d(np.arange(len(group.units)), gone)
            self._cut(group.units[gone], group.units[np.concatenate([gone, rest])])

    def _features(self, layer: Layer, units: Array) -> Array:
        """Returns (units, k) the features of each unit."""
        of = self._units_of(layer.labels[0])
        order = np.argsort(of, kind="stable")
        start = np.searchsorted(of[order], units)
        width = int((of == units[0]).sum())
        features: Array = order[start[:, None] + np.arange(width)]
        return features

    def _cut(self, gone: Array, order: Array) -> None:
        """Marks units as cut, but for one of each family that would die out (the last to go)."""
        self.dead[gone] = True
        rank = np.full(self.units.count + 1, -1)
        rank[order] = np.arange(len(order))
        for family in self.units.families:
            if self.dead[family].all():
                self.dead[family[int(np.argmax(rank[family]))]] = False

    def _units_of(self, labels: Array) -> Array:
        return np.where(labels >= 0, self.units.of_label[labels], -1)

    # ---------------------------------------------------------------- one layer
    def _visit(self, layer: Layer, groups: list[int]) -> None:
        moments: tuple[Moments, Moments] | None = None
        if groups or self.mode != "none":
            moments = self._moments(layer, self.pruned, self.dense)
        for g in groups:
            assert moments is not None
            both = moments[0] + moments[1]
            h, r = both.centred()
            group = self.units.groups[g]
            features = self._features(layer, group.units)
            problem = Problem.of(h[0], r[0] * layer.gain[:, None], features, float(both.tt.sum()))
            gone = eliminate([problem], len(group.units), self.counts[g])
            rest = np.setdiff1d(np.arange(len(group.units)), gone)
            self._cut(group.units[gone], group.units[np.concatenate([gone, rest])])
        self._refit(layer, moments)

    def _refit(self, layer: Layer, moments: tuple[Moments, Moments] | None) -> None:
        name = layer.use.name
        w0 = layer.view.matrix(self._weight(name).astype(np.float64))
        keep = ~self.dead[self._units_of(layer.labels)]
        rows = ~self.dead[self._units_of(layer.rows)]
        if moments is None or self.mode == "none" or (keep.all() and not self._moved(layer)):
            self._store(layer, np.where(keep[:, None, :] & rows[:, :, None], w0, 0), None)
            return
        fit, check = moments
        if self.mode == "bias" or w0.shape[2] > MOST_FEATURES:
            ridges: tuple[float, ...] = ()
        else:
            ridges = RIDGES
        if layer.bias is None:  # without a place for the means, the fit must go through the origin
            fit, check = _uncentred(fit), _uncentred(check)
        w, b, ridge = refit_safely(
            fit, check, w0, self._present_bias(layer, w0.shape), keep, ridges, layer.gain.reshape(rows.shape)
        )
        if ridge is None and ridges:
            self.out.notes.append(
                f"{self.coupling.nodes[layer.index].name or name}: a refit did no better than the old weights"
            )
        self._store(layer, np.where(rows[:, :, None], w, 0), np.where(rows, b, 0) if layer.bias is not None else None)

    def _moved(self, layer: Layer) -> bool:
        """Returns whether the layer sees or must mend anything that differs from the dense network."""
        for name in [layer.input, *([layer.other.name] if layer.other else [])]:
            for a, b in zip(self.dense.values, self.pruned.values, strict=True):
                if a[name] is not b[name] and np.abs(a[name] - b[name]).max() > UNCHANGED * max(
                    np.abs(a[name]).max(), 1e-30
                ):
                    return True
        return False

    def _moments(self, layer: Layer, seen: Frontier, truth: Frontier) -> tuple[Moments, Moments]:
        """Returns moments to fit and to check: inputs as `seen`, targets of `truth` less the other branch's error."""
        w = layer.view.matrix(np.empty(layer.use.shape, bool))
        parts = (Moments.empty(w.shape[0], w.shape[2], w.shape[1]), Moments.empty(w.shape[0], w.shape[2], w.shape[1]))
        base = self._old_bias(layer, w.shape)
        count = len(seen.values)
        for k in range(count):
            rng = np.random.default_rng([self.seed, layer.index, k])
            y = truth.values[k][layer.output]
            share = self._share(y, w.shape, count, layer.view)
            places = layer.view.places(y.shape, share, rng)
            target = layer.view.outputs(y, places)
            if layer.other is not None and seen is not truth:
                wrong = (truth.values[k][layer.other.name] - seen.values[k][layer.other.name]) / layer.other.factor
                target = target + layer.view.outputs(np.broadcast_to(wrong, y.shape), places)
            if base is not None:
                target = target + base
            patches = np.ascontiguousarray(layer.view.patches(seen.values[k][layer.input], places), np.float32)
            target = np.ascontiguousarray(target, np.float32)
            if count == 1:
                half = max(1, patches.shape[1] // CHECK_EVERY)
                parts[1].add(patches[:, :half], target[:, :half])
                parts[0].add(patches[:, half:], target[:, half:])
            else:
                parts[k % CHECK_EVERY == CHECK_EVERY - 1 or (count < CHECK_EVERY and k == count - 1)].add(
                    patches, target
                )
        return parts

    @staticmethod
    def _share(y: np.ndarray, w: tuple[int, ...], batches: int, view: Linear) -> float:
        """Returns the share of places to look at: enough rows for the features, no more than needed."""
        rows = float(y.size) / (w[0] * w[1]) * batches
        aim = min(max(SHARE * rows, LEAST_ROWS * w[2]), MOST_ROWS)
        return min(1.0, aim / rows)

    def _old_bias(self, layer: Layer, shape: tuple[int, ...]) -> np.ndarray | None:
        """Returns the bias that is added behind the node and refitted with it: the target holds it too."""
        if layer.bias is None or layer.bias.name is None or layer.bias.node == layer.index:
            return None
        return self._weight(layer.bias.name).reshape(shape[0], 1, shape[1])

    def _present_bias(self, layer: Layer, shape: tuple[int, ...]) -> np.ndarray:
        """Returns the bias of the outputs as it stands, zeros where there is none."""
        if layer.bias is None or layer.bias.name is None:
            return np.zeros(shape[:2])
        return self._weight(layer.bias.name).reshape(shape[:2]).astype(np.float64)

    def _weight(self, name: str) -> np.ndarray:
        return self.pruned.weights[name] if name in self.pruned.weights else self.pruned.tensors[name].numpy()

    def _store(self, layer: Layer, w: np.ndarray, b: np.ndarray | None) -> None:
        name = layer.use.name
        old = self.pruned.tensors[name].numpy()
        new = layer.view.restore(w).astype(old.dtype)
        self.pruned.weights[name] = self.out.weights[name] = new
        if b is None or layer.bias is None:
            return
        if layer.bias.name is not None:
            old = self.pruned.tensors[layer.bias.name].numpy()
            self.pruned.weights[layer.bias.name] = self.out.weights[layer.bias.name] = b.reshape(old.shape).astype(
                old.dtype
            )
        else:
            self.out.biases[layer.bias] = b.reshape(layer.bias.shape).astype(old.dtype)
            self.pruned.biases[layer.bias.node] = (layer.bias.slot, self.out.biases[layer.bias])


def _uncentred(m: Moments) -> Moments:
    """Returns the moments as if all means were zero."""
    return Moments(m.n, np.zeros_like(m.p), np.zeros_like(m.t), m.pp, m.tp, m.tt)


def apply(units: Units, found: Compensated) -> Units:
    """Returns the units of a model with the refitted weights, in full size; it shares everything else."""
    coupling = units.coupling
    model = coupling.model.clone()
    nodes, tensors = list(model.graph), constants(model.graph)
    for name, content in found.weights.items():
        replace_constant(model, name, ir.Tensor(content, dtype=tensors[name].dtype, name=tensors[name].name))
    uses, seen = list(coupling.uses), list(coupling.seen)
    for bias, content in found.biases.items():
        node = nodes[bias.node]
        value = add_constant(model, f"{node.outputs[0].name}_bias", ir.Tensor(content), before=node)
        if bias.slot >= len(node.inputs):
            node.resize_inputs(bias.slot + 1)
        node.replace_input_with(bias.slot, value)
        y = coupling.tensors[str(node.outputs[0].name)]
        labels = y.on(1)
        arrays = () if labels is None else (labels.reshape(-1),)
        seen[bias.node] = (*seen[bias.node][: bias.slot], Tensor(content.shape, arrays))
        uses.append(Use(bias.node, bias.slot, str(value.name), content.shape, arrays))
    return replace(units, coupling=replace(coupling, model=model, uses=uses, seen=seen))
