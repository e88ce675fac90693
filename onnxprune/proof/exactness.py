"""Whether a pruned file is the cut that a plan describes, told from the two files and the plan alone.

The weights of the pruned file are put back into the original, each at the places that the plan keeps, zeros elsewhere:
the original's own graph, in full size, with whatever a refit made of the weights. Law 1 says that this computes what
the pruned file computes, at every dynamic size. Weights that no refit touched must also be the original's, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxprune.engine.coupling import Coupling, Use
from onnxprune.engine.cutting import Cutting
from onnxprune.engine.precomputed import precomputed
from onnxprune.engine.sizes import Rewrite
from onnxprune.graph.constants import constants, is_constant
from onnxprune.graph.edit import add_constant
from onnxprune.graph.flat import look_into
from onnxprune.graph.model import Source
from onnxprune.graph.running import ready, run_all
from onnxprune.graph.trace import trace
from onnxprune.ops.zero_points import blank
from onnxprune.plan import Plan
from onnxprune.planning import replay
from onnxprune.proof.validation import NOISE_FACTOR, base_tolerance, difference, noise_floor, own_noise, proof_feeds
from onnxprune.reports.report import Exactness

__all__ = ["check_cut"]

SHOWN = 5


class _Unlike(Exception):
    """The pruned model is another graph than the plan's cut of the original."""


def check_cut(
    original: Source, coupling: Coupling, pruned: Source, plan: Plan, providers: Sequence[str], seed: int
) -> Exactness:
    """Returns whether a pruned model is the plan's cut of the original.

    Args:
        original: the model that the plan was made for.
        coupling: of it, with axes opened as the plan has them; labels may be frozen in it.
        pruned: what was written.
        plan: which units went.
        providers: onnxruntime's names of execution providers.
        seed: of the inputs that both are run on.

    Raises:
        DataError: the plan was made for another model.
    """
    cutting, rewrite, _ = replay(coupling, plan, original.sha256)
    touched = sum(cutting.touches(use) for use in coupling.uses)
    try:
        grown = _Grown.of(cutting, rewrite, pruned, seed, providers)
    except _Unlike as unlike:
        return Exactness(
            False, "compared with the plan's cut of the original", weights=touched, problems=(str(unlike),)
        )
    problems = list(grown.problems)
    if grown.refitted and not plan.refits:
        problems.append(f"{grown.refitted} weights differ from the original's, and the plan compensates nothing")
    if plan.approximate:
        return Exactness(
            False if problems else None,
            "the plan opens axes that cannot be cut exactly (approximate): only shapes and kept weights were compared",
            weights=touched,
            refitted=grown.refitted,
            problems=tuple(problems[:SHOWN]),
        )
    error, allowed = _error(grown, original, pruned, providers, seed)
    if not error <= allowed:
        problems.append("the pruned model computes something else than the original with the cut weights at zero")
    told = "the kept weights are the original's" if not grown.refitted else f"with {grown.refitted} weights refitted"
    return Exactness(
        exact=not problems,
        why=f"compared with the original whose cut weights are zero, {told}",
        error=error,
        tolerance=allowed,
        weights=touched,
        refitted=grown.refitted,
        problems=tuple(problems[:SHOWN]),
    )


def _error(grown: _Grown, original: Source, pruned: Source, providers: Sequence[str], seed: int) -> tuple[float, float]:
    """Returns the largest difference between the pruned model and the grown one, and what is allowed."""
    coupling = grown.cutting.coupling
    feeds = proof_feeds(coupling, seed)
    with ready(original.served, original.external) as subject:
        dense = run_all(subject, feeds, providers)
        noise = noise_floor(subject, feeds, dense, providers)
    with ready(pruned.served, pruned.external) as subject:
        found = run_all(subject, feeds, providers)
    with ready(grown.model, original.external) as subject:
        expected = run_all(subject, feeds, providers)
        error = max(difference(e, f, d) for e, f, d in zip(expected, found, dense, strict=True))
        allowed = base_tolerance(grown.cutting)
        if error > allowed:
            own = own_noise(subject, feeds, expected, providers)
            allowed = max(allowed, NOISE_FACTOR * max(own, noise or 0.0))
    return error, allowed


# ---------------------------------------------------------------- the pruned weights in full size
@dataclass(eq=False)
class _Grown:
    """The original (or its flat view) with the pruned file's weights in full size.

    Attributes:
        cutting: the plan's.
        model: the original's graph.
        refitted: how many weights are not what the cut alone would leave.
        problems: what is not as it should be.
    """

    cutting: Cutting
    model: ir.Model
    refitted: int = 0
    problems: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, cutting: Cutting, rewrite: Rewrite, pruned: Source, seed: int, providers: Sequence[str]) -> _Grown:
        """Returns the grown model.

        Raises:
            _Unlike: the pruned model has other nodes.
        """
        view = pruned.model
        if cutting.coupling.flat is not None:
            flat, _ = look_into(pruned.model, lambda model: trace(model, seed=seed, providers=tuple(providers)))
            view = flat.model if flat is not None else view
        grown = cls(cutting, cutting.coupling.model.clone())
        grown._grow(rewrite, view)
        return grown

    def _grow(self, rewrite: Rewrite, view: ir.Model) -> None:
        coupling = self.cutting.coupling
        nodes = list(self.model.graph)
        before, after = constants(coupling.model.graph), constants(view.graph)
        written = {*rewrite.edges, *rewrite.factors}
        for index, there in _paired(self.cutting, rewrite, list(view.graph)):
            for slot, value in enumerate(there.inputs):
                if value is None or value.name not in after or (index, slot) in written:
                    continue
                full = self._full(index, slot, before, after[value.name])
                if full is not None:
                    fresh = add_constant(self.model, f"{value.name}_grown", full, nodes[index])
                    if slot >= len(nodes[index].inputs):
                        nodes[index].resize_inputs(slot + 1)
                    nodes[index].replace_input_with(slot, fresh)

    def _full(
        self, index: int, slot: int, before: dict[str, ir.TensorProtocol], small: ir.TensorProtocol
    ) -> ir.TensorProtocol | None:
        """Returns a pruned constant in full size; None where the original's own serves."""
        coupling = self.cutting.coupling
        node = coupling.nodes[index]
        old = node.inputs[slot] if slot < len(node.inputs) else None
        use = coupling.uses_of.get(index, {}).get(slot)
        values = small.numpy()
        if old is None:
            return ir.Tensor(self._bias(index, values), dtype=small.dtype)
        if old.name not in before:
            return None  # a value that the cut made a constant; the original computes it
        whole = before[old.name]
        if use is None or not self.cutting.touches(use):
            if whole.shape != small.shape or whole.dtype != small.dtype:
                self.problems.append(
                    f"{_at(node)}: input {slot} is {_shown(small)}, and the plan leaves {_shown(whole)}"
                )
                return None
            if whole.tobytes() == small.tobytes():
                return None
            self.refitted += 1
            return ir.Tensor(values, dtype=small.dtype)
        if small.shape != self.cutting.shape_of(use) or whole.dtype != small.dtype:
            wanted = f"{whole.dtype} {list(self.cutting.shape_of(use))}"
            self.problems.append(f"{_at(node)}: input {slot} is {_shown(small)}, and the plan leaves {wanted}")
            return None
        cut = self.cutting.slice(use, whole.numpy())
        self.refitted += cut.tobytes() != np.ascontiguousarray(values).tobytes()
        return ir.Tensor(self._scattered(use, whole.numpy(), values), dtype=small.dtype)

    def _scattered(self, use: Use, whole: np.ndarray, values: np.ndarray) -> np.ndarray:
        zero = blank(self.cutting.coupling.nodes[use.node], use.slot, use.shape)
        full = whole.copy() if zero is None else np.array(np.broadcast_to(zero, use.shape)).astype(whole.dtype)
        full[self.cutting.mask(use)] = values.reshape(-1)
        return full

    def _bias(self, index: int, values: np.ndarray) -> np.ndarray:
        """Returns a bias that compensation added, one number for each channel of the node's output."""
        coupling = self.cutting.coupling
        y = coupling.tensors[str(coupling.nodes[index].outputs[0].name)]
        kept = self.cutting.kept(y, 1)
        if values.shape != kept.shape:
            raise _Unlike(f"{_at(coupling.nodes[index])} has an input of {list(values.shape)} that the original lacks")
        self.refitted += 1
        full = np.zeros(y.shape[1], values.dtype)
        full[kept] = values
        return full


def _paired(cutting: Cutting, rewrite: Rewrite, nodes: Sequence[ir.Node]) -> Iterator[tuple[int, ir.Node]]:
    """Yields the numbers of the original's nodes, each with the node of the pruned model that it became.

    Raises:
        _Unlike: there is none.
    """
    coupling = cutting.coupling
    there = iter([n for n in nodes if not is_constant(n)])
    added, owned = [index for index, _ in rewrite.scales], [index for index, _ in rewrite.own]
    gone = precomputed(cutting).gone
    picked = [s.readers[0][0] for s in coupling.selected for axis in s.axes if cutting.is_cut(s.tensor, axis)]

    def skip(op: str, times: int, lack: str) -> None:
        for _ in range(times):
            if getattr(next(there, None), "op_type", None) != op:
                raise _Unlike(f"the pruned model {lack}")

    for index, node in enumerate(coupling.nodes):
        if is_constant(node) or index in gone:
            continue
        skip("Gather", picked.count(index), f"does not pick what {_at(node)} needs")
        skip("Where", owned.count(index), f"does not give {_at(node)} sizes of its own")
        other = next(there, None)
        if other is None or (other.op_type, other.domain, other.name) != (node.op_type, node.domain, node.name):
            found = "nothing" if other is None else _at(other)
            raise _Unlike(f"the pruned model has {found} where the original has {_at(node)}")
        yield index, other
        skip("Mul", added.count(index), f"lacks the factor behind {_at(node)}")
    if (other := next(there, None)) is not None:
        raise _Unlike(f"the pruned model has {_at(other)}, and the original has no such node")


def _at(node: ir.Node) -> str:
    return f"{node.op_type} {node.name!r}"


def _shown(tensor: ir.TensorProtocol) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"
