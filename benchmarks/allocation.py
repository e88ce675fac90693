"""Where the budget goes on the models of models/: uniform, global and measured allocation at the same MACs.

    python benchmarks/allocation.py                       # writes docs/allocation.md
    python benchmarks/allocation.py --models vit lstm --targets 0.5

Every model is pruned with the 512 unlabelled calibration pictures of models/digits.npz and measured on the 600 test
pictures of models/digits_test.npz, which the program never sees. Divergence is the KL divergence (nats) of the pruned
model's probabilities from the dense model's, averaged over the test pictures; error is the squared error of the logits,
less their mean over the classes, relative to their variance. The former hangs on few uncertain pictures, the latter
hears of every one.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accuracy import MODELS, ROOT, compared, probabilities

import onnxprune
from onnxprune.allocation.divergence import relative_error

TARGETS = (0.7, 0.5)
ALLOCATIONS = ("uniform", "global", "sensitivity")


@dataclass(frozen=True)
class Point:
    """One pruned model, measured."""

    model: str
    target: float
    allocation: str
    macs: float
    hits: int
    divergence: float
    error: float


def main() -> None:
    """Measures all and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--targets", nargs="+", type=float, default=TARGETS)
    parser.add_argument("--allocations", nargs="+", default=ALLOCATIONS, choices=ALLOCATIONS)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "allocation.md")
    args = parser.parse_args()
    points: list[Point] = []
    dense: dict[str, int] = {}
    for name in args.models:
        dense[name], found = measure(name, args.targets, args.allocations)
        points += found
    args.out.write_text(table(points, dense, args.allocations), encoding="utf-8")


def measure(name: str, targets: Sequence[float], allocations: Sequence[str]) -> tuple[int, list[Point]]:
    """Returns how many test pictures the dense model gets right, and a point for each target and allocation."""
    path = ROOT / "models" / f"digits_{name}.onnx"
    test = np.load(ROOT / "models" / "digits_test.npz")
    reference = probabilities(path, test["input"])
    points = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "pruned.onnx"
        for target in targets:
            for allocation in allocations:
                calibration = ROOT / "models" / "digits.npz"
                result = onnxprune.prune(
                    path, target={"macs": target}, allocation=allocation, calibration=calibration, output=out
                )
                hits, kl = compared(reference, out, test)
                error = relative_error([{"p": reference}], [{"p": probabilities(out, test["input"])}])
                left = result.report.macs.after / result.report.macs.before
                points.append(Point(name, target, allocation, left, hits, kl, error))
                print(
                    f"{name} macs={target} {allocation}: {left:.3f} left, {hits} right, KL {kl:.5f}, error {error:.5f}",
                    flush=True,
                )
    return int((reference.argmax(1) == test["labels"]).sum()), points


def table(points: Sequence[Point], dense: dict[str, int], allocations: Sequence[str]) -> str:
    """Returns the page with all figures."""
    lines = [
        "# Where the budget goes",
        "",
        "Made by `python benchmarks/allocation.py`. Six small networks (models/README.md), pruned to a share of the",
        "MACs with 512 unlabelled calibration pictures, measured on 600 test pictures: how many are right, and in",
        "brackets the KL divergence from the dense model's probabilities and the relative squared error of the",
        "logits. Uniform cuts one share of every group and leaves residual streams alone, global compares all units",
        "by normalised importance for the MACs they take along, and sensitivity measures what each group costs the",
        "outputs, and tries the few counts that come into question. All are aligned to the provider's blocks.",
        "digits_lstm has a single group, so there is nothing to allocate. A KL divergence below 0.001 hangs on two or",
        "three of the pictures.",
        "",
        "| model | dense | MACs left | " + " | ".join(allocations) + " |",
        "|---" * (len(allocations) + 3) + "|",
    ]
    for name, target in dict.fromkeys((p.model, p.target) for p in points):
        row = [p for p in points if (p.model, p.target) == (name, target)]
        left = f"{min(p.macs for p in row):.3f} to {max(p.macs for p in row):.3f}"
        cells = [f"{p.hits} ({p.divergence:.2g}, {p.error:.2g})" for p in row]
        lines.append(f"| digits_{name} | {dense[name]} | {left} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
