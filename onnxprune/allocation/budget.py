"""What may be left of a model: limits as users write them, and how far a cut is from holding them all."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Self, cast

from onnxprune.allocation.knapsack import Counts
from onnxprune.errors import UsageError, one_of, quote

__all__ = ["KINDS", "TOLERANCE", "Budget", "Limit"]

Kind = Literal["macs", "params", "size", "latency"]

KINDS: tuple[Kind, ...] = ("macs", "params", "size", "latency")

TOLERANCE = 0.01
"""How far above a limit a written file may lie."""

_UNITS: dict[str, dict[str, float]] = {
    "size": {"b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30},
    "latency": {"us": 1e-3, "ms": 1, "s": 1e3},
}
_SHOWN = {"size": "B", "latency": "ms"}
_EXAMPLES = {
    "macs": "macs=0.5",
    "params": "params=0.5",
    "size": "size=0.5 or size=4MB",
    "latency": "latency=0.6 or latency=8ms",
}
_NUMBER = re.compile(r"\s*(\d+\.?\d*(?:e[+-]?\d+)?|\.\d+(?:e[+-]?\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Limit:
    """What may be left of one cost.

    Attributes:
        kind: `macs`, `params`, `size` (bytes of the .onnx with its data) or `latency`.
        at_most: a share of the original; bytes or milliseconds where it is not relative.
        relative: whether it is a share.
    """

    kind: Kind
    at_most: float
    relative: bool = True

    @classmethod
    def parse(cls, text: str) -> Self:
        """Returns the limit of a text such as `macs=0.5`, `size=4MB` or `latency=8ms`.

        Raises:
            UsageError: it is none.
        """
        kind, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"target {quote(text)} says no number: give it like macs=0.5")
        return cls.of(kind.strip().lower(), value)

    @classmethod
    def of(cls, kind: str, value: float | str) -> Self:
        """Returns the limit of a kind and a value: a share, or a text with a unit (`"4MB"`, `"8ms"`).

        Raises:
            UsageError: it is none.
        """
        one_of("target", kind, KINDS)
        found = _NUMBER.fullmatch(str(value))
        if found is None:
            raise _refused(kind, value)
        number, unit = float(found[1]), found[2].lower()
        known = _UNITS.get(kind, {})
        if not math.isfinite(number) or number <= 0 or (unit and unit not in known) or (not unit and number > 1):
            raise _refused(kind, value)
        return cls(cast(Kind, kind), number * known[unit] if unit else number, not unit)

    def __str__(self) -> str:
        return f"{self.kind}={self.value}"

    @property
    def value(self) -> str:
        """The number with its unit, as `of` takes it."""
        return f"{self.at_most:.10g}{'' if self.relative else _SHOWN[self.kind]}"

    def allowed(self, full: float) -> float:
        """Returns what may be left where the original has `full`."""
        return self.at_most * full if self.relative else self.at_most

    def told(self, left: float, full: float) -> str:
        """Returns what is left, as a limit that would just hold."""
        if self.relative and not full:
            return f"{self.kind}=1 (of a model that has none)"
        number = math.ceil(1e4 * left / full) / 1e4 if self.relative else math.ceil(left * 100) / 100
        return str(replace(self, at_most=number))


def _refused(kind: str, value: object) -> UsageError:
    what = "the share that may be left, above 0 and up to 1"
    units = f", or a number with a unit ({', '.join(_UNITS[kind])})" if kind in _UNITS else ""
    return UsageError(f"target {quote(f'{kind}={value}')}: give {what}{units}, like {_EXAMPLES[kind]}")


@dataclass(frozen=True, eq=False)
class Budget:
    """Limits that must all hold, and what counts of units are expected to leave.

    Attributes:
        limits: what may be left.
        full: by kind, what the original has.
        left: by kind, what counts leave.
        rest: by kind, what the written file was found to have beyond that.
    """

    limits: tuple[Limit, ...]
    full: Mapping[str, float]
    left: Mapping[str, Callable[[Counts], float]]
    rest: Mapping[str, float] = field(default_factory=dict)

    def excess(self, counts: Counts) -> float:
        """Returns the largest relative overshoot, zero or less where all limits hold.

        Args:
            counts: how many units of each group go.
        """
        return max(self._overshoot(limit, self.expected(limit.kind, counts)) for limit in self.limits)

    def expected(self, kind: str, counts: Counts) -> float:
        """Returns what the written file is expected to have."""
        return self.left[kind](counts) + self.rest.get(kind, 0.0)

    def excess_of(self, measured: Mapping[str, float]) -> float:
        """Returns the largest relative overshoot of what was measured."""
        return max(self._overshoot(limit, measured[limit.kind]) for limit in self.limits)

    def missed(self, measured: Mapping[str, float]) -> list[Limit]:
        """Returns the limits that what was measured does not hold."""
        return [limit for limit in self.limits if self._overshoot(limit, measured[limit.kind]) > 0]

    def corrected(self, counts: Counts, measured: Mapping[str, float]) -> Budget:
        """Returns the budget that expects of these counts what was measured with them."""
        return replace(self, rest={k: measured[k] - self.left[k](counts) for k in measured if k in self.left})

    def _overshoot(self, limit: Limit, left: float) -> float:
        full = self.full[limit.kind]
        if limit.relative and not full:
            return 1 / limit.at_most - 1  # nothing can become less
        return left / limit.allowed(full) - 1
