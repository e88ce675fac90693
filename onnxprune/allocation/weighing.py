"""What a cut leaves of a model: foretold for any counts, and measured on a cut that was made."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxprune.allocation.budget import Budget, Limit
from onnxprune.allocation.choosing import Ground
from onnxprune.allocation.mending import Chosen
from onnxprune.engine import cost
from onnxprune.engine.coupling import Coupling
from onnxprune.engine.cutting import Cutting
from onnxprune.engine.layers import Bias, find_layers
from onnxprune.engine.twin import as_read
from onnxprune.graph.model import Source, save
from onnxprune.refit.compensation import Compensated, apply

__all__ = ["Scales", "written_size"]


@dataclass(eq=False)
class Scales:
    """One model, to be weighed.

    Attributes:
        source: the model as loaded.
        coupling: its coupling.
        refits: whether biases may be added to a cut.
        name: what the written file is called.
    """

    source: Source
    coupling: Coupling
    refits: bool
    name: str

    def budget(self, ground: Ground, limits: Sequence[Limit], rest: Mapping[str, float]) -> Budget:
        """Returns limits with what counts are expected to leave.

        Args:
            ground: the units.
            limits: what may be left.
            rest: by kind, what a written file was found to have beyond what was expected of it.
        """
        tally = ground.tally
        beside = self.source.size - tally.nbytes((0,) * len(ground.units.groups))  # nodes, names, metadata
        left = {"macs": tally.macs, "params": tally.weights, "size": lambda counts: tally.nbytes(counts) + beside}
        full = {
            "macs": float(cost.macs(self.coupling)),
            "params": float(cost.parameters(self.source.model)),
            "size": float(self.source.size),
        }
        if any(limit.kind == "latency" for limit in limits):
            left["latency"], full["latency"] = ground.latency.estimate, ground.latency.full
        return Budget(tuple(limits), full, left, rest)

    def measured(
        self, chosen: Chosen, limits: Sequence[Limit], ground: Ground, model: Callable[[], ir.Model]
    ) -> dict[str, float]:
        """Returns what a cut model has of each kind that is limited.

        Args:
            chosen: the cut.
            limits: what may be left.
            ground: the units.
            model: makes the cut model, if that has to be looked at.
        """
        ways: dict[str, Callable[[], float]] = {
            "macs": lambda: cost.macs(self.coupling, chosen.cutting),
            "params": lambda: cost.parameters(model()),
            "size": lambda: self.size(model()),
            "latency": lambda: ground.latency.measured(model(), chosen.counts),
        }
        return {limit.kind: float(ways[limit.kind]()) for limit in limits}

    def size(self, model: ir.Model) -> int:
        """Returns the bytes that a cut model's files have."""
        return written_size(model, external=self.source.external, name=self.name)

    def as_refitted(self, chosen: Chosen) -> Chosen:
        """Returns a cut with biases, all zero, wherever a refit may add one."""
        if not self.refits:
            return chosen
        zeros = {bias: np.zeros(bias.shape, np.float32) for bias in self._empty}
        found = Compensated(chosen.cutting.dead_units, biases=zeros)
        return replace(chosen, cutting=Cutting(apply(chosen.cutting.units, found), found.dead))

    @cached_property
    def _empty(self) -> list[Bias]:
        """The places of biases that are not there, but for layers that read the inputs of the model: these stay."""
        inputs = {v.name for v in self.coupling.model.graph.inputs}
        layers = (layer for layer in find_layers(as_read(self.coupling)) if layer.input not in inputs)
        return [layer.bias for layer in layers if layer.bias is not None and layer.bias.name is None]


def written_size(model: ir.Model, *, external: bool, name: str) -> int:
    """Returns the bytes of a model's files: it is written, and thrown away."""
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        return sum(file.stat().st_size for file in save(model, Path(folder) / name, external=external, lasting=False))
