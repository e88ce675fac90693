"""What a pruning is asked to do, checked once."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from typing import Any

from onnxprune.criteria import CRITERIA, OnRefit, OnWeights
from onnxprune.errors import DataError, UsageError, quote

COMPENSATE = ("auto", "none", "bias", "lstsq")
ALLOCATION = ("auto", "uniform")
TARGETS = ("macs", "params")


@dataclass(frozen=True)
class Options:
    """How much to cut, where, and how the rest makes up for it.

    Attributes:
        ratio: share of the prunable units to cut, or None with a target or a plan.
        targets: what may be left, by kind (`macs`, `params`), as a share of the original.
        criterion: what tells the units that matter; None: the best for the data at hand.
        compensate: `auto`, `none`, `bias` or `lstsq`.
        allocation: `auto` or `uniform`.
        include: globs over group, weight and node names; only groups that match are cut.
        exclude: globs; groups that match are not cut.
        align: kept counts are rounded up to multiples of it.
        streams: whether residual streams are cut too; None: with a ratio, not with a target.
        approximate: open axes that cannot be cut exactly.
        samples: how many calibration samples to use; None: the program's choice.
        seed: of every random draw.
    """

    ratio: float | None = None
    targets: tuple[tuple[str, float], ...] = ()
    criterion: str | None = None
    compensate: str = "auto"
    allocation: str = "auto"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    align: int = 1
    streams: bool | None = None
    approximate: bool = False
    samples: int | None = None
    seed: int = 0

    @property
    def mode(self) -> str:
        """The compensation that `auto` means."""
        return "lstsq" if self.compensate == "auto" else self.compensate

    @property
    def chooses_by_loss(self) -> bool:
        """Whether units are chosen by least-squares loss."""
        return isinstance(CRITERIA[self.criterion or "obs"], OnRefit)

    @property
    def ranks_by_data(self) -> bool:
        """Whether units are ranked by what a criterion sees of data."""
        return not isinstance(CRITERIA[self.criterion or "obs"], OnRefit | OnWeights)

    @property
    def needs_data(self) -> bool:
        """Whether anything looks at activations."""
        return self.chooses_by_loss or self.ranks_by_data or self.mode != "none"

    @property
    def cuts_streams(self) -> bool:
        """Whether residual streams are cut."""
        return not self.targets if self.streams is None else self.streams

    def to_dict(self) -> dict[str, Any]:
        """Returns the options as plain data, for reports and plans."""
        return {**asdict(self), "targets": dict(self.targets)}


def replayed(options: Options, plan: dict[str, Any]) -> Options:
    """Returns options with what a plan was made with wherever that decides about the written bytes.

    Raises:
        DataError: the plan's own options make no sense.
    """
    try:
        return replace(
            options,
            compensate=str(plan.get("compensate", "auto")),
            criterion=None if plan.get("criterion") is None else str(plan["criterion"]),
            samples=None if plan.get("samples") is None else int(plan["samples"]),
            seed=int(plan.get("seed", 0)),
        )
    except (TypeError, ValueError) as error:
        raise DataError(f"the plan's options can't be read ({error}); make the plan anew with --plan") from error


def checked(options: Options, *, replay: bool) -> Options:
    """Returns the options if they make sense.

    Args:
        options: what was asked for.
        replay: a plan is applied, so nothing else says how much to cut.

    Raises:
        UsageError: they don't.
    """
    ways = (options.ratio is not None) + bool(options.targets) + replay
    if ways != 1:
        raise UsageError(
            "say how much to cut in one way: a ratio (0 <= ratio < 1), a target (macs=0.5), or a plan to apply"
        )
    ratio = options.ratio
    if ratio is not None and not 0 <= ratio < 1:
        raise UsageError(f"ratio {ratio} is not at least 0 and below 1: give the share of units to cut, like 0.5")
    one_of("criterion", options.criterion or "obs", list(CRITERIA))
    one_of("compensate", options.compensate, COMPENSATE)
    one_of("allocation", options.allocation, ALLOCATION)
    if options.align < 1:
        raise UsageError(f"align {options.align} is below 1: give the multiple that kept counts are rounded to")
    if options.samples is not None and options.samples < 1:
        raise UsageError(f"samples {options.samples} is below 1: give how many calibration samples to use")
    return options


def one_of(option: str, value: str, known: Sequence[str]) -> None:
    """Passes if `value` is one of `known`.

    Raises:
        UsageError: it is not; the nearest one is named.
    """
    if value not in known:
        near = get_close_matches(value, known, 1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"{option} {quote(value)} is not known: {hint}one of {', '.join(known)}")


def parse_target(text: str) -> tuple[str, float]:
    """Returns the kind and the share of a target such as `macs=0.5`.

    Raises:
        UsageError: it is no target.
    """
    kind, equals, number = text.partition("=")
    kind = kind.strip().lower()
    if not equals:
        raise UsageError(f"target {quote(text)} says no number: give it like macs=0.5")
    one_of("target", kind, TARGETS)
    if not re.fullmatch(r"\s*\d*\.?\d+(e-?\d+)?\s*", number) or not 0 < float(number) <= 1 or math.isnan(float(number)):
        raise UsageError(f"target {quote(text)}: give the share that may be left, above 0 and up to 1, like {kind}=0.5")
    return kind, float(number)
