"""Where the budget goes on the models of models/: uniform, global and measured allocation at the same MACs.

    python benchmarks/allocation.py                       # writes docs/allocation.md
    python benchmarks/allocation.py --models vit lstm --targets 0.5 --draws 1

Every model is pruned several times, each with 512 other pictures of those it was trained on, without labels (first
those of models/digits.npz), and measured on the 600 test pictures of models/digits_test.npz, which the program never
sees. Divergence is the KL divergence (nats) of the pruned model's probabilities from the dense model's, averaged over
the test pictures; error is the squared error of the logits, less their mean over the classes, relative to their
variance. The former hangs on few uncertain pictures, the latter hears of every one. What the last column tells of
sensitivity and uniform, with its standard error, is how far other test pictures would bear a difference out. More than
one draw needs the `models` extra, which has all pictures.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean

import numpy as np
from accuracy import MODELS, ROOT, divergence, probabilities

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
    draw: int
    macs: float
    right: np.ndarray
    divergence: float
    error: float

    @property
    def hits(self) -> int:
        """How many test pictures it gets right."""
        return int(self.right.sum())


def main() -> None:
    """Measures all and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--targets", nargs="+", type=float, default=TARGETS)
    parser.add_argument("--allocations", nargs="+", default=ALLOCATIONS, choices=ALLOCATIONS)
    parser.add_argument("--draws", type=int, default=12, help="of the calibration pictures")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "allocation.md")
    args = parser.parse_args()
    points: list[Point] = []
    dense: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        calibrations = [ROOT / "models" / "digits.npz", *drawn(args.draws - 1, Path(folder))]
        for name in args.models:
            dense[name], found = measure(name, args.targets, args.allocations, calibrations)
            points += found
    args.out.write_text(table(points, dense, args.allocations), encoding="utf-8")


def drawn(count: int, folder: Path) -> list[Path]:
    """Returns files of 512 pictures each, drawn from those that the models were trained on."""
    if not count:
        return []
    sys.path.insert(0, str(ROOT / "tools"))
    import digits

    pictures = digits.load().train
    files = [folder / f"draw_{seed}.npz" for seed in range(1, count + 1)]
    for seed, file in enumerate(files, 1):
        chosen = np.random.default_rng(seed).permutation(len(pictures))[: digits.CALIBRATION_SAMPLES]
        np.savez(file, input=pictures[chosen])
    return files


def measure(
    name: str, targets: Sequence[float], allocations: Sequence[str], calibrations: Sequence[Path]
) -> tuple[int, list[Point]]:
    """Returns how many test pictures the dense model gets right, and a point for each target, allocation and draw."""
    path = ROOT / "models" / f"digits_{name}.onnx"
    test = np.load(ROOT / "models" / "digits_test.npz")
    reference = probabilities(path, test["input"])
    points = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "pruned.onnx"
        for target, allocation, draw in product(targets, allocations, range(len(calibrations))):
            result = onnxprune.prune(
                path, target={"macs": target}, allocation=allocation, calibration=calibrations[draw], output=out
            )
            found = probabilities(out, test["input"])
            kl, error = divergence(reference, found), relative_error([{"p": reference}], [{"p": found}])
            left = result.report.macs.after / result.report.macs.before
            points.append(Point(name, target, allocation, draw, left, found.argmax(1) == test["labels"], kl, error))
            print(
                f"{name} macs={target} {allocation} draw {draw}: {left:.3f} left, {points[-1].hits} right, "
                f"KL {kl:.5f}, error {error:.5f}",
                flush=True,
            )
    return int((reference.argmax(1) == test["labels"]).sum()), points


def table(points: Sequence[Point], dense: dict[str, int], allocations: Sequence[str]) -> str:
    """Returns the page with all figures."""
    draws = max(p.draw for p in points) + 1
    lines = [
        "# Where the budget goes",
        "",
        "Made by `python benchmarks/allocation.py`. Six small networks (models/README.md), pruned to a share of the",
        f"MACs with 512 unlabelled calibration pictures ({draws} draws), measured on 600 test pictures: how many",
        "are right, and in brackets the KL divergence from the dense model's probabilities and the relative squared",
        "error of the logits, each the mean over the draws. Uniform cuts one share of every group and leaves residual",
        "streams alone, global compares all units by normalised importance for the MACs they take along, and",
        "sensitivity measures what each group costs the outputs, and tries the few counts that come into question. All",
        "are aligned to the provider's blocks. A KL divergence below 0.001 hangs on two or three of the pictures. The",
        "last column is how many more pictures are right with sensitivity than with uniform, and the standard error",
        "of that over the test pictures.",
        "",
        "| model | dense | MACs left | " + " | ".join(allocations) + " | more right |",
        "|---" * (len(allocations) + 4) + "|",
    ]
    for name, target in dict.fromkeys((p.model, p.target) for p in points):
        row = [p for p in points if (p.model, p.target) == (name, target)]
        left = f"{min(p.macs for p in row):.3f} to {max(p.macs for p in row):.3f}"
        cells = [cell([p for p in row if p.allocation == allocation]) for allocation in allocations]
        lines.append(f"| digits_{name} | {dense[name]} | {left} | " + " | ".join([*cells, more(row)]) + " |")
    return "\n".join([*lines, ""])


def cell(points: Sequence[Point]) -> str:
    """Returns the means over the draws of one allocation."""
    hits, kl, error = (fmean(getattr(p, what) for p in points) for what in ("hits", "divergence", "error"))
    return f"{hits:.1f} ({kl:.2g}, {error:.2g})"


def more(points: Sequence[Point]) -> str:
    """Returns how many more pictures sensitivity gets right than uniform, with the standard error over pictures."""
    shares = {
        name: np.mean([p.right for p in points if p.allocation == name] or [np.nan], axis=0)
        for name in ("sensitivity", "uniform")
    }
    gain = shares["sensitivity"] - shares["uniform"]
    return f"{gain.sum():+.1f} ± {gain.std() * np.sqrt(gain.size):.1f}" if np.isfinite(gain).all() else ""


if __name__ == "__main__":
    main()
