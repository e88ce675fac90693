"""What a pruning is asked to do, checked once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypedDict, Unpack

from onnxprune.allocation.bounds import Bounds, bounds_of
from onnxprune.allocation.budget import Limit
from onnxprune.criteria import CRITERIA, OnRefit, OnWeights
from onnxprune.errors import DataError, UsageError, one_of, quote

COMPENSATE = ("auto", "none", "bias", "lstsq", "joint")
ALLOCATION = ("auto", "uniform", "global", "sensitivity")

Align = int | Literal["auto"]


@dataclass(frozen=True)
class Options:
    """How much to cut, where, and how the rest makes up for it.

    Attributes:
        ratio: share of the prunable units to cut, or None.
        targets: what may be left; all must hold.
        max_drop: the loss that the smallest model may have, or None.
        criterion: what tells the units that matter; None: the best for the data at hand.
        compensate: `auto`, `none`, `bias`, `lstsq` or `joint`.
        allocation: `auto`, `uniform`, `global` or `sensitivity`.
        include: globs over group, weight and node names; only groups that match are cut.
        exclude: globs; groups that match are not cut.
        max_ratio_per_group: shares of a group that may go at most.
        min_units: units of a group that stay at least.
        align: kept counts are rounded up to multiples of it; None: `auto` with a target, else 1.
        streams: whether residual streams are cut too; None: not if a target is met uniformly.
        approximate: open axes that cannot be cut exactly.
        samples: how many calibration samples to use, mixtures of them included; None: the program's choice.
        hold_out: weights are refitted on some of the samples only, as losses are measured on the others.
        threads: threads that latency is measured with; 0: the provider's choice.
        batch: batch size that latency is measured at.
        seed: of every random draw.
    """

    ratio: float | None = None
    targets: tuple[Limit, ...] = ()
    max_drop: float | None = None
    criterion: str | None = None
    compensate: str = "auto"
    allocation: str = "auto"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    max_ratio_per_group: Bounds = ()
    min_units: Bounds = ()
    align: Align | None = None
    streams: bool | None = None
    approximate: bool = False
    samples: int | None = None
    hold_out: bool = False
    threads: int = 0
    batch: int = 1
    seed: int = 0

    @property
    def mode(self) -> str:
        """The compensation that `auto` means."""
        return "joint" if self.compensate == "auto" else self.compensate

    @property
    def refits(self) -> bool:
        """Whether weights are refitted by least squares."""
        return self.mode in ("lstsq", "joint")

    @property
    def spread(self) -> str:
        """The allocation that `auto` means."""
        if self.allocation != "auto":
            return self.allocation
        return "uniform" if self.ratio is not None else "sensitivity"

    @property
    def measures(self) -> bool:
        """Whether groups are cut one by one to see what each costs."""
        return self.spread == "sensitivity" and self.ratio != 0

    @property
    def chooses_by_loss(self) -> bool:
        """Whether units are chosen by least-squares loss."""
        return isinstance(CRITERIA[self.criterion or "obs"], OnRefit)

    @property
    def ranks_by_data(self) -> bool:
        """Whether units are ranked by what a criterion sees of data."""
        return not isinstance(CRITERIA[self.criterion or "obs"], OnRefit | OnWeights)

    @property
    def calibrates(self) -> bool:
        """Whether data decide about units or weights once the counts are known."""
        return self.chooses_by_loss or self.ranks_by_data or self.mode != "none"

    @property
    def cuts_streams(self) -> bool:
        """Whether residual streams are cut."""
        if self.streams is not None:
            return self.streams
        return self.ratio is not None or self.spread == "sensitivity"

    @property
    def steps(self) -> Align:
        """The multiple of kept counts that is meant."""
        return self.align or (1 if self.ratio is not None else "auto")

    @property
    def limits_latency(self) -> bool:
        """Whether measured times decide."""
        return any(limit.kind == "latency" for limit in self.targets)

    def to_dict(self) -> dict[str, Any]:
        """Returns the options as plain data, for reports and plans."""
        told = asdict(self)
        told["targets"] = {t.kind: t.at_most if t.relative else t.value for t in self.targets}
        for bounds in ("max_ratio_per_group", "min_units"):
            told[bounds] = dict(told[bounds])
        if not any(target.kind == "latency" for target in self.targets):  # no plan depends on them otherwise
            del told["threads"], told["batch"]
        return told


class Choices(TypedDict, total=False):
    """What the functions of this package take about how to cut, whatever says how much; see `onnxprune.prune`."""

    criterion: str | None
    compensate: str
    allocation: str
    streams: bool | None
    samples: int | None
    include: Sequence[str]
    exclude: Sequence[str]
    max_ratio_per_group: float | Mapping[str, float] | None
    min_units: int | Mapping[str, float] | None
    align: Align | None
    approximate: bool
    threads: int
    batch: int
    seed: int


def options_of(
    *,
    ratio: float | None = None,
    targets: Sequence[Limit] = (),
    max_drop: float | None = None,
    hold_out: bool = False,
    **choices: Unpack[Choices],
) -> Options:
    """Returns options from what a caller gave, not checked but for bounds.

    Raises:
        UsageError: a bound makes no sense.
    """
    own: dict[str, Any] = dict(choices)
    own["include"], own["exclude"] = tuple(choices.get("include", ())), tuple(choices.get("exclude", ()))
    own["max_ratio_per_group"] = bounds_of("max-ratio-per-group", choices.get("max_ratio_per_group"), whole=False)
    own["min_units"] = bounds_of("min-units", choices.get("min_units"), whole=True)
    return Options(ratio=ratio, targets=tuple(targets), max_drop=max_drop, hold_out=hold_out, **own)


def limits_of(target: Mapping[str, float | str] | None) -> tuple[Limit, ...]:
    """Returns the limits of a mapping such as `{"macs": 0.5, "size": "4MB"}`.

    Raises:
        UsageError: one of them is none.
    """
    return tuple(Limit.of(kind, value) for kind, value in (target or {}).items())


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
            hold_out=bool(plan.get("hold_out", False)),
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
    ways = (options.ratio is not None) + bool(options.targets) + (options.max_drop is not None) + replay
    if ways != 1:
        raise UsageError(
            "say how much to cut in one way: a ratio (0 <= ratio < 1), targets (macs=0.5), "
            "the loss that is allowed (max_drop), or a plan to apply"
        )
    ratio = options.ratio
    if ratio is not None and not 0 <= ratio < 1:
        raise UsageError(f"ratio {ratio} is not at least 0 and below 1: give the share of units to cut, like 0.5")
    drop = options.max_drop
    if drop is not None and not 0 <= drop < math.inf:
        raise UsageError(
            f"max-drop {drop} is no loss: give percentage points of top-1 with labels, else a divergence, 0 or more"
        )
    one_of("criterion", options.criterion or "obs", list(CRITERIA))
    one_of("compensate", options.compensate, COMPENSATE)
    one_of("allocation", options.allocation, ALLOCATION)
    _check_numbers(options)
    return options


def _check_numbers(options: Options) -> None:
    align = options.align
    if align is not None and align != "auto" and (isinstance(align, str) or align < 1):
        raise UsageError(
            f"align {quote(str(align))}: give 'auto', or the multiple that kept counts are rounded to, 1 or more"
        )
    if options.samples is not None and options.samples < 1:
        raise UsageError(f"samples {options.samples} is below 1: give how many calibration samples to use")
    if options.threads < 0:
        raise UsageError(f"threads {options.threads} is below 0: give how many threads latency is measured with")
    if options.batch < 1:
        raise UsageError(f"batch {options.batch} is below 1: give the batch size that latency is measured at")
