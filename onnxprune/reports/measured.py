"""What was measured on an original and a pruned model, as data for reports."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

__all__ = [
    "ClassChange",
    "Exactness",
    "Interval",
    "LatencyChange",
    "MetricChange",
    "OutputFidelity",
    "Placement",
    "ScoreChange",
    "SensitivityRow",
    "TaskChange",
    "Validation",
]

_COLLAPSED_ERROR = 0.5
_COLLAPSED_AGREEMENT = 0.5


@dataclass(frozen=True)
class Interval:
    """Limits of a figure, 95 %: below the lower and above the upper one lie 2.5 % each."""

    low: float
    high: float


@dataclass(frozen=True)
class OutputFidelity:
    """How far one output moved from the original's.

    Attributes:
        name: of the output.
        relative_error: norm of the difference by the norm of the original.
        cosine: of the angle between the two.
        top1_agreement: share of samples with the same largest entry; None where the output holds no scores of classes.
        snr: power of the original by power of the difference, in dB, at most 200.
        kl: Kullback-Leibler divergence from the original in nats, mean over the samples; None as above.
        samples: how many it was measured on.
        intervals: of these figures by name, over the samples; none where there are fewer than eight.
    """

    name: str
    relative_error: float
    cosine: float
    top1_agreement: float | None = None
    snr: float | None = None
    kl: float | None = None
    samples: int = 0
    intervals: dict[str, Interval] = dataclasses.field(default_factory=dict)

    @property
    def collapsed(self) -> bool:
        """Whether it has little to do with the original's any more."""
        low = self.top1_agreement is not None and self.top1_agreement < _COLLAPSED_AGREEMENT
        return low or not self.relative_error <= _COLLAPSED_ERROR


@dataclass(frozen=True)
class Placement:
    """What one execution provider ran of a model.

    Attributes:
        provider: onnxruntime's name of it.
        nodes: how many nodes of the optimised graph.
        ops: how many of each operator.
    """

    provider: str
    nodes: int
    ops: dict[str, int]


@dataclass(frozen=True)
class MetricChange:
    """A figure of the task before and after, and what was lost, in percentage points.

    Attributes:
        before: of the original, in percent.
        after: of the pruned model, in percent.
        drop: before less after.
        interval: of the drop, from the samples on which the two models differ.
    """

    before: float
    after: float
    drop: float
    interval: Interval


@dataclass(frozen=True)
class ClassChange:
    """Accuracy on the samples of one class before and after.

    Attributes:
        label: the class.
        samples: how many samples have it.
        before: share of them that the original tells right, in percent.
        after: the same of the pruned model.
        drop: before less after, in percentage points.
        interval: of the drop.
    """

    label: int
    samples: int
    before: float
    after: float
    drop: float
    interval: Interval


@dataclass(frozen=True)
class TaskChange:
    """What labelled data say.

    Attributes:
        source: what the data are, in words.
        samples: how many there were.
        output: the output that holds the scores.
        top1: share of samples whose highest score is the label's.
        top5: share of samples whose label is among the five highest; None with five classes or fewer.
        per_class: a row for each class that occurs, by label.
        worst: the classes that lost most, the worst first, at most five; none that lost nothing.
    """

    source: str
    samples: int
    output: str
    top1: MetricChange
    top5: MetricChange | None
    per_class: tuple[ClassChange, ...]
    worst: tuple[int, ...]


@dataclass(frozen=True)
class ScoreChange:
    """A figure of the user's own metric script before and after.

    Attributes:
        name: of the figure.
        before: of the original.
        after: of the pruned model.
        drop: how much worse it became, in its own unit; below 0 where it became better.
        higher_is_better: whether more is better.
        interval: of the drop; None where the script cannot be called on a part of the samples.
    """

    name: str
    before: float
    after: float
    drop: float
    higher_is_better: bool = True
    interval: Interval | None = None


@dataclass(frozen=True)
class Exactness:
    """Whether a pruned model is the cut that a plan describes.

    Attributes:
        exact: whether it computes what the original computes with its own weights in full size, the cut ones at zero;
            None if that was not checked.
        why: what was checked, or why it was not, in words.
        error: the largest difference, relative; None if nothing was compared.
        tolerance: what was allowed.
        weights: how many weights lost something.
        refitted: how many weights differ from what the cut alone would leave of the original's.
        problems: what else is not as the plan has it.
    """

    exact: bool | None
    why: str
    error: float | None = None
    tolerance: float | None = None
    weights: int = 0
    refitted: int = 0
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Validation:
    """What was measured on the pruned model in onnxruntime.

    Attributes:
        provider: the execution providers, in order.
        error: largest difference from the original with the cut weights set to zero, relative; None if the cut is
            approximate, so that this says nothing, or if it was not compared.
        tolerance: what was allowed.
        sizes: the shapes of the inputs that it was measured at.
        fidelity: how far each output moved.
        inputs: what the fidelity was measured on, in words.
        made_up: whether these inputs were made up.
        held_out: whether nothing was chosen or refitted on them; None if that is not known.
        noise: how far the original alone moves from the CPU to these providers, relative; None on the CPU. Some times
            this is part of the tolerance.
        placement: which provider ran how much of the pruned model; empty on the CPU.
        unlike: outputs whose shapes differ from the original's, so that they were not compared.
    """

    provider: tuple[str, ...]
    error: float | None
    tolerance: float
    sizes: tuple[str, ...]
    fidelity: tuple[OutputFidelity, ...]
    inputs: str = ""
    made_up: bool = True
    held_out: bool | None = True
    noise: float | None = None
    placement: tuple[Placement, ...] = ()
    unlike: tuple[str, ...] = ()


@dataclass(frozen=True)
class LatencyChange:
    """Milliseconds of one run before and after, measured in turns.

    Attributes:
        before: median of the original.
        after: median of the pruned model.
        speedup: how many times faster the pruned model is.
        interval: of the speedup.
        noise: how far the original differs from itself, as a share.
        conclusive: whether the effect is larger than the noise.
        provider: the execution providers, in order.
        threads: how many worked on one operator; 0 is the provider's own choice.
    """

    before: float
    after: float
    speedup: float
    interval: Interval
    noise: float
    conclusive: bool
    provider: tuple[str, ...] = ()
    threads: int = 0


@dataclass(frozen=True)
class SensitivityRow:
    """What one group costs the outputs when it is cut alone and its consumers are refitted.

    Attributes:
        name: the group's.
        units: how many it has.
        counts: how many are cut at each level, rising from 0.
        divergence: of the outputs at each level.
    """

    name: str
    units: int
    counts: tuple[int, ...]
    divergence: tuple[float, ...]
