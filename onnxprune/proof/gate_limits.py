"""What a pruned model must hold, and how users write it. Nothing of weight is imported here."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass

from onnxprune.errors import UsageError, quote

__all__ = ["Limits", "option", "parse_share", "parse_size"]

_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass(frozen=True)
class Limits:
    """What a pruned model must hold; None is not judged.

    Attributes:
        max_drop: of top-1, in percentage points; of a metric script's figures, in their own unit.
        max_class_drop: of any class, in percentage points.
        max_top5_drop: of top-5, in percentage points.
        min_speedup: how many times faster.
        max_size: of the .onnx with its data: bytes, or a share of the original up to 1.
        min_cut: share of the MACs that are gone.
        max_divergence: of any output: Kullback-Leibler divergence in nats for scores of classes, else relative error.
        min_agreement: share of samples with the same top-1 class.
        max_error: of any output: norm of the difference by the norm of the original.
        exact: the cut was compared with the original's masked weights and is exact.
    """

    max_drop: float | None = None
    max_class_drop: float | None = None
    max_top5_drop: float | None = None
    min_speedup: float | None = None
    max_size: float | None = None
    min_cut: float | None = None
    max_divergence: float | None = None
    min_agreement: float | None = None
    max_error: float | None = None
    exact: bool = False

    @property
    def given(self) -> bool:
        """Whether there is anything to judge."""
        values = [getattr(self, f.name) for f in dataclasses.fields(self)]
        return any(v is not None and v is not False for v in values)


def option(name: str) -> str:
    """Returns a limit's name as the command line has it."""
    return "--" + name.replace("_", "-")


def parse_share(name: str, text: str) -> float:
    """Returns the share that `0.4` or `40%` stands for.

    Raises:
        UsageError: it is none.
    """
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(%?)\s*", text)
    share = float(found[1]) / (100 if found[2] else 1) if found else math.nan
    if not 0 <= share <= 1:
        raise UsageError(f"{option(name)} {quote(text)}: give a share, like 0.4 or 40%")
    return share


def parse_size(name: str, text: str) -> float:
    """Returns the bytes that `4MB` or `4MiB` stands for, or the share of the original that `0.5` or `50%` does.

    Raises:
        UsageError: it is none.
    """
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([a-z]+)\s*", text, re.IGNORECASE)
    if found is None:
        try:
            return parse_share(name, text)
        except UsageError:
            raise UsageError(f"{option(name)} {quote(text)}: give a size or a share, like 4MB, 4MiB or 0.5") from None
    size = float(found[1]) * _UNITS.get(found[2].lower(), math.nan)
    if not size > 1:
        raise UsageError(f"{option(name)} {quote(text)}: give a size or a share, like 4MB, 4MiB or 0.5")
    return size
