"""The figures that are seen first."""

from __future__ import annotations

import math

from onnxprune.reports.pages.layout import Tile, Tone, bytes_in_short, in_short, percent, points, signed, spanned
from onnxprune.reports.report import Count, LatencyChange, TaskChange, Validation

__all__ = ["count_tile", "fidelity_tile", "latency_tile", "plain_tile", "task_tile"]

_LOST = 0.5  # percentage points that are no loss to speak of


def plain_tile(label: str, figure: str, exact: str) -> Tile:
    """Returns the tile of a figure without a change."""
    number, _, unit = figure.partition(" ")
    return Tile(label, number, unit, under=exact, exact=exact, after=exact)


def count_tile(label: str, count: Count, *, in_bytes: bool = False) -> Tile:
    """Returns the tile of a figure before and after."""
    shown = bytes_in_short if in_bytes else in_short
    number, _, unit = shown(count.after).partition(" ")
    return Tile(
        label,
        number,
        unit,
        under=f"{percent(count.ratio)} of {shown(count.before)}",
        share=_filled(count.ratio),
        chip=signed(count.ratio - 1),
        tone="good" if count.ratio < 1 else "",
        exact=f"{count.before:,} before, {count.after:,} after",
        before=f"{count.before:,}{' B' * in_bytes}",
        after=f"{count.after:,}{' B' * in_bytes}",
    )


def latency_tile(latency: LatencyChange) -> Tile:
    """Returns the tile of the time of one run."""
    low, high = latency.interval.low, latency.interval.high
    return Tile(
        "Latency",
        f"{latency.after:.3g}",
        "ms",
        under=f"was {latency.before:.3g} ms; {low:.2f} to {high:.2f} times as fast",
        share=_filled(latency.after / latency.before if latency.before else math.nan),
        chip=f"{latency.speedup:.2f}×" if latency.conclusive else "not conclusive",
        tone="" if not latency.conclusive else "good" if latency.speedup > 1 else "bad",
        exact=f"noise of the machine {latency.noise:.1%}",
        before=f"{latency.before:.4g} ms",
        after=f"{latency.after:.4g} ms",
    )


def _filled(share: float) -> float | None:
    """Returns how much of a bar is filled; None if that cannot be told."""
    return min(max(share, 0.0), 1.0) if math.isfinite(share) else None


def task_tile(task: TaskChange) -> Tile:
    """Returns the tile of the accuracy on labelled data."""
    change = task.top1
    return Tile(
        "Top-1 accuracy",
        f"{change.after:.1f}",
        "%",
        under=f"was {change.before:.1f} %; change {spanned(change)} points",
        share=_filled(change.after / 100),
        chip=points(change.drop),
        tone=_tone_of_drop(change.drop),
        exact=f"on {task.samples:,} samples",
        before=f"{change.before:.2f} %",
        after=f"{change.after:.2f} %",
    )


def _tone_of_drop(drop: float) -> Tone:
    return "good" if drop <= _LOST else "amber" if drop <= 10 * _LOST else "bad"


def fidelity_tile(found: Validation) -> Tile:
    """Returns the tile of the output that moved most."""
    worst = max(
        found.fidelity, key=lambda each: each.relative_error if math.isfinite(each.relative_error) else math.inf
    )
    given = {True: "held-out inputs", False: "calibration inputs", None: "given inputs"}
    inputs = "made-up inputs" if found.made_up else given[found.held_out]
    agreement, error = worst.top1_agreement, worst.relative_error
    if agreement is None:
        label, share, under = "Outputs moved by", error, f"relative error on {inputs}"
        good = error <= 0.1
    else:
        label, share, under = "Top-1 agreement", agreement, f"on {inputs}; relative error {error:.3g}"
        good = agreement >= 0.95
    tone: Tone = "bad" if worst.collapsed else "good" if good else "amber"
    figure = f"{100 * share:.1f}"
    return Tile(
        label,
        figure,
        "%",
        under=under,
        share=_filled(share),
        chip=f"cosine {worst.cosine:.3f}",
        tone=tone,
        exact=f"output {worst.name}",
        after=f"{figure} %",
    )
