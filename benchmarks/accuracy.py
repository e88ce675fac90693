"""Accuracy and output divergence on the models of models/: every criterion, compensation and ratio.

    python benchmarks/accuracy.py                       # writes docs/accuracy.md and docs/accuracy.svg
    python benchmarks/accuracy.py --models vit lstm --ratios 0.3 0.5

Every model is pruned with the 512 unlabelled calibration pictures of models/digits.npz and measured on the 600 test
pictures of models/digits_test.npz, which the program never sees. Divergence is the KL divergence (nats) of the pruned
model's probabilities from the dense model's, averaged over the test pictures.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

import onnxprune

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("mlp", "cnn", "resnet", "mobilenet", "vit", "lstm")
RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
WAYS = (
    *(("l1", compensate) for compensate in ("none", "bias", "joint")),
    *(("obs", compensate) for compensate in ("none", "bias", "lstsq", "joint")),
)
COLOURS = ("#9aa0a6", "#e8710a", "#1a73e8", "#bdc1c6", "#f9ab00", "#81c995", "#188038")


@dataclass(frozen=True)
class Point:
    """One pruned model, measured."""

    model: str
    ratio: float
    criterion: str
    compensate: str
    macs: float
    hits: int
    divergence: float


def main() -> None:
    """Measures all and writes the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--ratios", nargs="+", type=float, default=RATIOS)
    parser.add_argument("--criteria", nargs="+", help="only these criteria, with none, bias and joint")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    args = parser.parse_args()
    ways = [(c, m) for c in args.criteria for m in ("none", "bias", "joint")] if args.criteria else list(WAYS)
    points, dense = [], {}
    for name in args.models:
        dense[name], found = measure(name, args.ratios, ways)
        points += found
    (args.out / "accuracy.md").write_text(table(points, dense, args.ratios, ways), encoding="utf-8")
    (args.out / "accuracy.svg").write_text(picture(points, dense, args.ratios, ways), encoding="utf-8")


def measure(name: str, ratios: Sequence[float], ways: Sequence[tuple[str, str]]) -> tuple[int, list[Point]]:
    """Returns how many test pictures the dense model gets right, and a point for each way and ratio."""
    path = ROOT / "models" / f"digits_{name}.onnx"
    test = np.load(ROOT / "models" / "digits_test.npz")
    reference = probabilities(path, test["input"])
    points = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "pruned.onnx"
        for ratio in ratios:
            for criterion, compensate in ways:
                result = onnxprune.prune(
                    path,
                    ratio=ratio,
                    criterion=criterion,
                    compensate=compensate,
                    calibration=ROOT / "models" / "digits.npz",
                    output=out,
                    validate=False,
                )
                hits, kl = compared(reference, out, test)
                left = result.report.macs.after / result.report.macs.before
                points.append(Point(name, ratio, criterion, compensate, left, hits, kl))
                print(f"{name} {ratio} {criterion}+{compensate}: {hits / 6:.1f} %, KL {kl:.4f}", flush=True)
    return int((reference.argmax(1) == test["labels"]).sum()), points


def compared(reference: np.ndarray, path: Path, test: Mapping[str, np.ndarray]) -> tuple[int, float]:
    """Returns how many test pictures a model gets right, and its divergence from the dense model's probabilities."""
    found = probabilities(path, test["input"])
    return int((found.argmax(1) == test["labels"]).sum()), divergence(reference, found)


def divergence(reference: np.ndarray, found: np.ndarray) -> float:
    """Returns the KL divergence (nats) of probabilities from the dense model's, the mean over the pictures."""
    return float((reference * (np.log(reference + 1e-12) - np.log(found + 1e-12))).sum(1).mean())


def probabilities(path: Path, x: np.ndarray) -> np.ndarray:
    """Returns (n, classes) what a model thinks; logits are put through Softmax."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    output = session.get_outputs()[0]
    y = np.asarray(session.run([output.name], {session.get_inputs()[0].name: x})[0], np.float64)
    if output.name == "probabilities":
        return y
    e = np.exp(y - y.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


def table(
    points: Sequence[Point], dense: dict[str, int], ratios: Sequence[float], ways: Sequence[tuple[str, str]]
) -> str:
    """Returns the page with all figures."""
    lines = [
        "# Accuracy without training",
        "",
        "Made by `python benchmarks/accuracy.py`. Six small networks (models/README.md), pruned with 512 unlabelled",
        "calibration pictures, measured on 600 test pictures: top-1 in %, and in brackets the KL divergence from the",
        "dense model's probabilities. The columns are criterion + compensation; the same share of units goes in every",
        "group, residual streams included. One picture is 0.17 points.",
        "",
        "![accuracy over the share of units cut](accuracy.svg)",
        "",
    ]
    for name, hits in dense.items():
        lines += [f"## digits_{name}: dense {hits / 6:.1f} %", ""]
        lines.append("| ratio | MACs left | " + " | ".join(f"{c} + {m}" for c, m in ways) + " |")
        lines.append("|---" * (len(ways) + 2) + "|")
        for ratio in ratios:
            row = [find(points, name, ratio, *way) for way in ways]
            cells = [f"{p.hits / 6:.1f} ({p.divergence:.3f})" for p in row]
            lines.append(f"| {ratio} | {row[-1].macs:.2f} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def find(points: Sequence[Point], name: str, ratio: float, criterion: str, compensate: str) -> Point:
    """Returns one of the points."""
    return next(
        p for p in points if (p.model, p.ratio, p.criterion, p.compensate) == (name, ratio, criterion, compensate)
    )


def picture(
    points: Sequence[Point], dense: dict[str, int], ratios: Sequence[float], ways: Sequence[tuple[str, str]]
) -> str:
    """Returns an SVG with a small plot for each model: top-1 over the ratio, a line for each way."""
    wide, high, pad = 260, 170, 34
    columns = 3
    rows = -(-len(dense) // columns)
    shapes = []
    low, top = min(ratios), max(ratios)
    for k, (name, hits) in enumerate(dense.items()):
        x0, y0 = (k % columns) * wide + pad, (k // columns) * high + 24
        w, h = wide - pad - 14, high - 48

        def at(ratio: float, share: float, x0: int = x0, y0: int = y0, w: int = w, h: int = h) -> str:
            return f"{x0 + w * (ratio - low) / max(top - low, 1e-9):.1f},{y0 + h * (1 - share):.1f}"

        shapes.append(f'<text x="{x0}" y="{y0 - 8}" class="name">digits_{name} (dense {hits / 6:.1f} %)</text>')
        for share in (0, 0.5, 1):
            y = y0 + h * (1 - share)
            shapes.append(f'<line x1="{x0}" x2="{x0 + w}" y1="{y}" y2="{y}" class="grid"/>')
            shapes.append(f'<text x="{x0 - 6}" y="{y + 3}" class="tick" text-anchor="end">{100 * share:.0f}</text>')
        for ratio in ratios:
            x = at(ratio, 0).split(",")[0]
            shapes.append(f'<text x="{x}" y="{y0 + h + 13}" class="tick" text-anchor="middle">{ratio}</text>')
        for way, colour in zip(ways, COLOURS, strict=False):
            line = " ".join(at(r, find(points, name, r, *way).hits / 600) for r in ratios)
            shapes.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
    for k, ((criterion, compensate), colour) in enumerate(zip(ways, COLOURS, strict=False)):
        x, y = 20 + k * ((columns * wide - 40) // len(ways)), rows * high + 14
        shapes.append(f'<rect x="{x}" y="{y - 8}" width="14" height="4" fill="{colour}"/>')
        shapes.append(f'<text x="{x + 19}" y="{y}" class="tick">{criterion} + {compensate}</text>')
    style = (
        "text{font-family:system-ui,sans-serif;fill:#3c4043}.name{font-size:11px;font-weight:600}"
        ".tick{font-size:9px}.grid{stroke:#dadce0;stroke-width:1}"
    )
    size = f'width="{columns * wide}" height="{rows * high + 26}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{style}</style>'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(shapes)}</svg>\n'
    )


if __name__ == "__main__":
    main()
