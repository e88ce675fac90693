"""Choosing units by what least squares cannot mend, and mending the rest: layer after layer, against the dense model.

The graph is walked once, in node order, by two frontiers: the dense network's and the pruned one's. At every linear
node the moments of its inputs (as the pruned network sees them) and of its targets (what the dense network computes,
less what the other branch of a following addition already got wrong) are gathered; units whose only linear consumer
this is are chosen; and the weights are refitted on what is kept. Weights keep their full size with zeros where units
are cut: the cut itself comes afterwards and stays exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from onnxprune.criteria.scoring import Scores
from onnxprune.engine.coupling import Use
from onnxprune.engine.cutting import Cutting
from onnxprune.engine.frontier import Feed, Frontier, Spool
from onnxprune.engine.labels import Array
from onnxprune.engine.layers import Bias, Layer, find_layers
from onnxprune.engine.tensors import Tensor
from onnxprune.engine.twin import as_read, written
from onnxprune.engine.units import Units
from onnxprune.graph.constants import constants, is_constant
from onnxprune.graph.edit import add_constant, replace_constant
from onnxprune.ops.zero_points import blank
from onnxprune.refit.activated import toward_activation
from onnxprune.refit.chains import Chain, find_chains
from onnxprune.refit.gathering import Drawing, bias_of, gather, quiet
from onnxprune.refit.joint import refit_jointly
from onnxprune.refit.moments import Bools, Floats, Kept, Moments, refit_safely
from onnxprune.refit.realign import realigned
from onnxprune.refit.selection import Selection

RIDGES = (1e-4, 1e-2, 1.0)
UNCHANGED = 1e-5
MOST_NAMES = 5  # of nodes in a note


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
    batches: Iterable[Mapping[str, np.ndarray]],
    *,
    choose: bool,
    mode: str,
    providers: Sequence[str],
    seed: int,
    jobs: int,
    align: bool = False,
    known: dict[int, Array] | None = None,
    planned: Bools | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Compensated:
    """Returns which units to cut and the weights that make up for them.

    Args:
        units: all removable units.
        counts: how many units of each group go.
        scores: importance of each group's units, used where `choose` is off or a group has no linear consumer.
        batches: calibration inputs.
        choose: pick units by least-squares loss (obs) rather than by `scores`.
        mode: `joint`, `lstsq`, `bias` or `none` (choice only).
        providers: onnxruntime's execution providers.
        seed: of the sampled positions.
        jobs: batches at a time; the result does not depend on it.
        align: put the statistics of these inputs into BatchNormalizations while weights are refitted (made-up inputs).
        known: see `Selection`; for more walks over the same dense network.
        planned: for each unit whether it goes, where that is settled: the walk is the one that would choose them.
        progress: called with the layers done and their number.
    """
    units = replace(units, coupling=as_read(units.coupling))
    spool = Spool()
    try:
        feeds = spool.store(batches)
        if align:
            units = replace(units, coupling=realigned(units.coupling, feeds, providers, spool))
        with np.errstate(all="ignore"):  # weights that are no numbers give moments that are none, and no refit
            selection = Selection(units, counts, scores, known, planned)
            return _Walk(selection, feeds, choose, mode, providers, Drawing(seed, jobs), spool).run(progress)
    finally:
        spool.close()


class _Walk:
    """The dense and the pruned network side by side, layer after layer."""

    def __init__(
        self,
        selection: Selection,
        batches: Sequence[Feed],
        choose: bool,
        mode: str,
        providers: Sequence[str],
        drawing: Drawing,
        spool: Spool,
    ) -> None:
        self.mode, self.choose, self.drawing = mode, choose, drawing
        self.mends = mode in ("lstsq", "joint")
        self.selection, self.coupling = selection, selection.units.coupling
        self.layers = find_layers(self.coupling, direct=True)
        still = Frontier(self.coupling, (), providers, spool, ())
        chains = find_chains(still, self.layers) if mode == "joint" else []
        self.chains: dict[int, list[Chain]] = {}
        self.until: dict[int, int] = {}  # the last layer that a layer is refitted with
        for chain in chains:
            last = chain.layers[-1].index
            self.chains.setdefault(last, []).append(chain)
            self.until |= {layer.index: max(last, self.until.get(layer.index, last)) for layer in chain.layers}
        lasting = [(name, layer.index + 1) for layer in self.layers for name in _read(layer)]
        asked = [(name, chain.layers[-1].index + 1) for chain in chains for name in chain.asks]
        self.ahead, self.dense = (Frontier(self.coupling, batches, providers, spool, lasting) for _ in range(2))
        self.pruned = Frontier(self.coupling, batches, providers, spool, lasting + asked)
        self.out = Compensated(np.zeros(0, np.int64))
        self.fitted: dict[int, tuple[Floats, Floats]] = {}  # weights and biases of layers in chains
        self.changed: set[int] = set()  # layers that lost something or see something else
        self.visited: set[str] = set()  # weights that several nodes read

    def run(self, progress: Callable[[int, int], None] | None) -> Compensated:
        with quiet(self.layers):
            self._choose_and_refit(progress)
        self.out.dead = np.flatnonzero(self.selection.dead[:-1])
        if self.mends:
            self._tell_who_is_left()
        return self.out

    def _choose_and_refit(self, progress: Callable[[int, int], None] | None) -> None:
        self.selection.begin(self.layers, self.ahead, self.drawing, choose=self.choose, mend=self.mends)
        self.ahead.values.clear()
        self._mask_chosen()
        for k, layer in enumerate(self.layers):
            if progress is not None:
                progress(k, len(self.layers))
            self.pruned.advance(layer.index)
            self.dense.advance(layer.index + 1)
            self._visit(layer, self.selection.late.get(k, []))
            for chain in self.chains.get(layer.index, ()):
                self._join(chain)
            self.fitted = {k: found for k, found in self.fitted.items() if self.until[k] > layer.index}

    def _tell_who_is_left(self) -> None:
        """Notes the nodes that sum over cut units with weights, or products, that nothing here can refit."""
        mended = {layer.index for layer in self.layers} | self.selection.mended
        left = {
            index: self.coupling.nodes[index]
            for index, labels in self.coupling.contracted
            if index not in mended and self.selection.dead[self.selection.unit_of(labels)].any()
        }
        if left:  # a twin has constants where the turns of a loop are no layers
            kinds = {k: "" if is_constant(node) else f"{node.op_type} " for k, node in left.items()}
            names = [f"{kinds[index]}{self.coupling.where(index)}" for index in sorted(left)]
            more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
            listed = ", ".join(names[:MOST_NAMES])
            self.out.notes.append(f"not refitted, their weights are not constants of their own: {listed}{more}")

    def _mask_chosen(self) -> None:
        """Sets to zero, in the pruned network, what is cut before the walk, where all readers agree."""
        cutting = Cutting(self.selection.units, np.flatnonzero(self.selection.dead[:-1]))
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

    # ---------------------------------------------------------------- one layer
    def _visit(self, layer: Layer, groups: list[int]) -> None:
        moments: tuple[Moments, Moments] | None = None
        if layer.shared > 1:
            if layer.use.name in self.visited:
                return
            self.visited.add(layer.use.name)
            moments = self.selection.pooled.pop(layer.use.name, None)
        elif groups or self.mode != "none":
            features = None if groups else Kept.of(self._kept(layer)).features
            moments = gather(layer, self.pruned, self.dense, self.drawing, features)
        if groups and moments is not None:
            fit, check = moments
            fit += check
            for g in groups:
                self.selection.choose(g, layer, fit)
            fit -= check
        self._refit(layer, moments)

    def _refit(self, layer: Layer, moments: tuple[Moments, Moments] | None) -> None:
        selection = self.selection
        w0 = layer.view.matrix(self.dense.content(layer.use.name).astype(np.float64))
        b0 = bias_of(layer, self.dense)
        keep = self._kept(layer)
        rows = ~selection.dead[selection.unit_of(layer.rows)]
        mixes = [] if layer.direct else selection.mixes.get(layer.index, [])
        w, b = np.where(keep[:, None, :], w0, 0), b0
        able = self.mends or (self.mode == "bias" and not layer.is_cell)  # means mislead a loop
        if moments is not None and able and (not keep.all() or self._moved(layer)):
            self.changed.add(layer.index)
            gain = layer.gain.reshape(b0.shape) * (rows | bool(mixes))  # what is cut may still go into the rest
            w, b = self._refitted(layer, moments, (w0, b0), keep, gain)
        for mix in mixes:
            mix.into(w, b)
        if layer.index in self.until:
            self.fitted[layer.index] = w, b
        self._store(layer, np.where(rows[:, :, None], w, 0), np.where(rows, b, 0))

    def _kept(self, layer: Layer) -> Bools:
        """Returns (g, f): whether a feature of a layer stays, as far as is known."""
        found: Bools = ~self.selection.dead[self.selection.unit_of(layer.labels)]
        return found

    def _refitted(
        self, layer: Layer, moments: tuple[Moments, Moments], old: tuple[Floats, Floats], keep: Bools, gain: Floats
    ) -> tuple[Floats, Floats]:
        """Returns weights and biases that make up for what is cut and for what came before."""
        (fit, check), (w0, b0) = moments, old
        ridges = RIDGES if self.mends and fit.products else ()
        if layer.bias is None:  # without a place for the means, the fit must go through the origin
            fit, check = fit.through_origin(), check.through_origin()
        w, b, ridge = refit_safely(fit, check, w0, b0, keep, ridges, gain)
        if ridge is None and ridges:
            name = self.coupling.nodes[layer.index].name or layer.use.name
            self.out.notes.append(f"{name}: a refit did no better than the old weights")
        found = w, b, ridge
        further = toward_activation(layer, self.pruned, self.dense, self.drawing, found, w0, keep, (fit, check))
        left = np.where(keep[:, None, :], w0, 0)
        w, b = self._within(layer, further, self._within(layer, found[:2], (left, b0)))
        w = np.where(layer.fixed[:, :, None], left, w)
        return w, np.where(layer.fixed | (layer.bias is None), b0, b)

    def _join(self, chain: Chain) -> None:
        """Refits the layers of a chain together, where one of them has lost something or sees something else."""
        if not all(layer.index in self.fitted for layer in chain.layers):
            return
        if not any(layer.index in self.changed for layer in chain.layers):
            return
        keep = [self._kept(layer) for layer in chain.layers]
        rows = [~self.selection.dead[self.selection.unit_of(layer.rows)] for layer in chain.layers]
        found = [self.fitted[layer.index] for layer in chain.layers]
        found = [(np.where(r[:, :, None], w, 0), np.where(r, b, 0)) for r, (w, b) in zip(rows, found, strict=True)]
        new = refit_jointly(chain, self.pruned, self.dense, self.drawing, found, keep, rows)
        if new is None:
            return
        for layer, one, old in zip(chain.layers, new, found, strict=True):
            self.fitted[layer.index] = self._within(layer, one, old)
            self._store(layer, *self.fitted[layer.index])
        self.pruned.again(chain.between, chain.layers[-1].input)

    def _within(self, layer: Layer, new: tuple[Floats, Floats], old: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
        """Returns weights (g, o, f) and biases (g, o), old ones for outputs that the weight's type can't hold."""
        dtype = self.dense.content(layer.use.name).dtype
        limit = float(np.finfo(dtype).max) if dtype == np.float16 else np.inf
        holds = (np.abs(new[0]).max(axis=2, initial=0) <= limit) & (np.abs(new[1]) <= limit)
        return np.where(holds[:, :, None], new[0], old[0]), np.where(holds, new[1], old[1])

    def _moved(self, layer: Layer) -> bool:
        """Returns whether the layer sees or must mend anything that differs from the dense network."""
        names = [] if layer.recurs else [layer.input, *([layer.other.name] if layer.other else [])]
        return any(
            not a.shares(b, name) and _differ(a[name], b[name])
            for name in names
            for a, b in zip(self.dense.values, self.pruned.values, strict=True)
        )

    def _store(self, layer: Layer, w: np.ndarray, b: np.ndarray) -> None:
        """Writes down what a layer has become, where it is not as it was."""
        name, bias = layer.use.name, layer.bias
        old = self.dense.content(name)
        new = layer.view.restore(w).astype(old.dtype)
        if not np.array_equal(new, old):
            self.pruned.weights[name] = self.out.weights[name] = new
        if bias is None:
            return
        if bias.name is not None:
            whole = self.pruned.content(bias.name)
            new = whole.copy()
            new.reshape(-1)[slice(None) if bias.cells is None else bias.cells] = b.reshape(-1)
            if not np.array_equal(new, whole):
                self.pruned.weights[bias.name] = self.out.weights[bias.name] = new
        elif b.any():
            self.out.biases[bias] = b.reshape(bias.shape).astype(old.dtype)
            self.pruned.biases[bias.node] = (bias.slot, self.out.biases[bias])


def _read(layer: Layer) -> list[str]:
    """Returns the values that a layer's refit looks at."""
    return [layer.input, layer.output, *([layer.other.name] if layer.other else [])]


def _differ(a: np.ndarray, b: np.ndarray) -> bool:
    """Returns whether two arrays differ by more than rounding."""
    return bool(np.abs(a - b).max(initial=0) > UNCHANGED * max(np.abs(a).max(initial=0), 1e-30))


def apply(units: Units, found: Compensated) -> Units:
    """Returns the units of a model with the refitted weights, in full size; it shares everything else.

    Args:
        units: all removable units, of the model as it is.
        found: new weights, those of quantized layers in real numbers.
    """
    coupling = units.coupling
    model = coupling.model.clone()
    nodes, tensors = coupling.numbered(model), constants(model.graph)
    for name, content in written(coupling, found.weights).items():
        replace_constant(model, name, ir.Tensor(content, dtype=tensors[name].dtype, name=tensors[name].name))
    uses, seen, added = list(coupling.uses), list(coupling.seen), set(coupling.added)
    for bias, content in found.biases.items():
        node = nodes[bias.node]
        value = add_constant(model, f"{node.outputs[0].name}_bias", ir.Tensor(content), before=node)
        if bias.slot >= len(node.inputs):
            node.resize_inputs(bias.slot + 1)
        node.replace_input_with(bias.slot, value)
        if value.producer() is not None:
            added.add(str(value.name))
        arrays = _over_channels(units, coupling.tensors[str(node.outputs[0].name)])
        seen[bias.node] = (*seen[bias.node][: bias.slot], Tensor(content.shape, arrays))
        uses.append(Use(bias.node, bias.slot, str(value.name), content.shape, arrays))
    return replace(units, coupling=replace(coupling, model=model, uses=uses, seen=seen, added=frozenset(added)))


def _over_channels(units: Units, y: Tensor) -> tuple[Array, ...]:
    """Returns the labels of a bias over the channels of what a node makes; none where samples are what may go."""
    labels = y.on(1)
    if labels is None:
        return ()
    rows = np.moveaxis(labels, 1, -1).reshape(-1, labels.shape[1])
    of = units.of_label[rows]
    return (rows[0],) if (of == of[0]).all() else ()
