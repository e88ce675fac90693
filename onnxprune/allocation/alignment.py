"""`--align auto`: kept counts at multiples of the provider's block, where that moves them little.

onnxruntime's CPU kernels for convolutions work on blocks of 16 channels (AVX-512) or 8, and leave that form altogether
where channels are no multiple of 4; its matrix products have no such stairs. Tensor cores want multiples of 8. The
table is fixed, so that a plan does not depend on the machine that made it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.allocation.counts import steps_of
from onnxprune.allocation.knapsack import Counts
from onnxprune.engine.cost import batch_size, node_macs
from onnxprune.engine.units import Units

__all__ = ["MOST_MOVED", "MOST_TO_BEST", "Blocks", "aligned", "blocks_of", "levels_of"]

MOST_MOVED = 0.1  # share of a kept count that rounding may move it by
MOST_TO_BEST = 0.2  # the same for the best block of layers whose time is all arithmetic
LARGE = 10**7  # MACs of such a layer
SLACK, MOST_SLACK = 0.005, 0.009  # of the budget that is left unused: where steps can help it, and at most

_CONVOLUTIONS = frozenset({"Conv", "FusedConv", "ConvTranspose", "NhwcFusedConv"})
_PRODUCTS = frozenset({"Gemm", "MatMul", "FusedGemm", "FusedMatMul"})
_BLOCKS: dict[str, tuple[tuple[frozenset[str], tuple[int, ...]], ...]] = {
    "CPUExecutionProvider": ((_CONVOLUTIONS, (16, 8, 4)),),
    "CUDAExecutionProvider": ((_CONVOLUTIONS | _PRODUCTS, (8,)),),
    "TensorrtExecutionProvider": ((_CONVOLUTIONS | _PRODUCTS, (8,)),),
    "NvTensorRTRTXExecutionProvider": ((_CONVOLUTIONS | _PRODUCTS, (8,)),),
}

Excess = Callable[[Counts], float]


@dataclass(frozen=True)
class Blocks:
    """The blocks of a group's layers.

    Attributes:
        steps: of kept units worth rounding to, the best first.
        far: share of a kept count that rounding to the best one may move it by.
    """

    steps: tuple[int, ...] = ()
    far: float = MOST_MOVED

    def rounded(self, kept: int, size: int) -> int:
        """Returns the nearest multiple of the first step that does not move a kept count too far."""
        for k, step in enumerate(self.steps):
            near = min(max(round(kept / step), 1) * step, size)
            if abs(near - kept) <= (MOST_MOVED if k else self.far) * kept:
                return near
        return kept


def blocks_of(units: Units, providers: Sequence[str]) -> tuple[Blocks, ...]:
    """Returns the blocks of each group.

    Args:
        units: the removable units.
        providers: onnxruntime's names of execution providers, in order; the first one counts.
    """
    coupling = units.coupling
    table = _BLOCKS.get(providers[0] if providers else "", ())
    steps = {b: steps_of(units, b) for _, blocks in table for b in blocks}
    found = []
    for g, group in enumerate(units.groups):
        nodes = {coupling.uses[u].node for u, _ in group.members}
        ops = {coupling.nodes[k].op_type for k in nodes}
        blocks = next((blocks for wanted, blocks in table if wanted & ops), ())
        large = max((node_macs(coupling, k) for k in nodes), default=0) >= LARGE * batch_size(coupling)
        own = tuple(dict.fromkeys(steps[b][g] for b in blocks))
        found.append(Blocks(own, MOST_TO_BEST if large else MOST_MOVED))
    return tuple(found)


def levels_of(units: Units, blocks: Sequence[Blocks]) -> tuple[tuple[int, ...], ...]:
    """Returns for each group the kept counts that rounding leaves as they are.

    Args:
        units: the removable units.
        blocks: those of each group, from `blocks_of`.
    """
    sizes = [len(group) for group in units.groups]
    return tuple(
        tuple(k for k in range(1, n + 1) if own.rounded(k, n) == k) for n, own in zip(sizes, blocks, strict=True)
    )


def aligned(units: Units, counts: Counts, excess: Excess, blocks: Sequence[Blocks], most: Counts) -> Counts:
    """Returns counts within the same budget whose kept units are multiples of blocks wherever that moves them little.

    What rounding has overshot or left unused is taken from other groups and given back step by step, the moves first
    that lead least away from the counts that were wished for; what no step fits in goes to one group unit by unit.

    Args:
        units: the removable units.
        counts: how many units of each group go, as an allocation wishes.
        excess: how far counts are over the budget; zero or less within it.
        blocks: those of each group, from `blocks_of`.
        most: for each group, how many units may go at most.
    """
    sizes = [len(group) for group in units.groups]
    wished = [n - c for n, c in zip(sizes, counts, strict=True)]
    rounded = [own.rounded(k, n) for k, n, own in zip(wished, sizes, blocks, strict=True)]
    rounding = _Rounding(sizes, wished, blocks, most, excess)
    kept = rounding.within([max(k, n - cap) for k, n, cap in zip(rounded, sizes, most, strict=True)])
    if kept is None:
        return counts
    return tuple(n - k for n, k in zip(sizes, rounding.filled(kept), strict=True))


class _Rounding:
    """Kept counts on their way to a budget."""

    def __init__(
        self, sizes: list[int], wished: list[int], blocks: Sequence[Blocks], most: Counts, excess: Excess
    ) -> None:
        self.sizes, self.wished, self.blocks = sizes, wished, blocks
        self.least = [n - cap for n, cap in zip(sizes, most, strict=True)]
        self.asked = excess

    def excess(self, kept: Sequence[int]) -> float:
        return self.asked(tuple(n - k for n, k in zip(self.sizes, kept, strict=True)))

    def within(self, kept: list[int]) -> list[int] | None:
        """Returns kept counts whose excess is gone, a step at a time; None where steps don't reach that far."""
        over = self.excess(kept)
        while over > 0:
            moves = []
            for g in self._open():
                to = self._step_from(kept[g], g, -1)
                if to is not None:
                    left = self.excess([*kept[:g], to, *kept[g + 1 :]])
                    if left < over:
                        # a move that does more than is needed is not better for it
                        moves.append((self._strain(g, kept[g], to) / (over - max(left, 0.0)), g, to, left))
            if not moves:
                return None
            _, g, to, over = min(moves)
            kept = [*kept[:g], to, *kept[g + 1 :]]
        return kept

    def filled(self, kept: list[int]) -> list[int]:
        """Returns kept counts that leave little of the budget unused: by steps, then by the units of one group."""
        over = self.excess(kept)
        while over < -SLACK:
            moves = []
            for g in self._open():
                to = self._step_from(kept[g], g, +1)
                if to is not None:
                    left = self.excess([*kept[:g], to, *kept[g + 1 :]])
                    if over < left <= 0:
                        moves.append((self._strain(g, kept[g], to) / (left - over), g, to, left))
            if not moves:
                break
            _, g, to, over = min(moves)
            kept = [*kept[:g], to, *kept[g + 1 :]]
        return kept if over >= -MOST_SLACK else self._by_units(kept, over)

    def _by_units(self, kept: list[int], over: float) -> list[int]:
        """Returns kept counts with units given to the one group, of those that use up the budget, that costs least."""
        best = (2, 0.0, kept)
        for g in self._open():
            low, high = kept[g], self.sizes[g]
            while low < high:
                middle = (low + high + 1) // 2
                fits = self.excess([*kept[:g], middle, *kept[g + 1 :]]) <= 0
                low, high = (middle, high) if fits else (low, middle - 1)
            if low > kept[g]:
                more = [*kept[:g], low, *kept[g + 1 :]]
                left = self.excess(more)
                cost = (left - over) / (low - kept[g]) * low
                best = min(best, (0, cost, more) if left >= -MOST_SLACK else (1, -left, more))
        return best[2]

    def _open(self) -> list[int]:
        return [g for g, (n, least) in enumerate(zip(self.sizes, self.least, strict=True)) if least < n]

    def _step_from(self, kept: int, g: int, way: int) -> int | None:
        """Returns the next kept count that is no worse aligned, None where there is none."""
        step = next((s for s in self.blocks[g].steps if kept % s == 0 or kept == self.sizes[g]), 1)
        to = kept + way * step if kept % step == 0 else kept - kept % step if way < 0 else kept + step
        to = min(to, self.sizes[g])
        return to if max(self.least[g], 1) <= to <= self.sizes[g] and to != kept else None

    def _strain(self, g: int, kept: int, to: int) -> float:
        """Returns how much further from the wish a move leads, below zero where it leads back."""
        before, after = (np.log(k / self.wished[g]) ** 2 for k in (kept, to))
        return float((after - before) * self.wished[g])
