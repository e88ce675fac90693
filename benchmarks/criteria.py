"""Every criterion at one ratio on the models of models/, with what is cut made up for and not.

    python benchmarks/criteria.py                       # writes docs/criteria.md
    python benchmarks/criteria.py --models vit --ratio 0.3 --out /tmp

The same data and measures as in benchmarks/accuracy.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from accuracy import MODELS, ROOT, Point, find, measure

from onnxprune.criteria import CRITERIA

COMPENSATE = ("none", "joint")


def main() -> None:
    """Measures all and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    args = parser.parse_args()
    ways = [(criterion, compensate) for compensate in COMPENSATE for criterion in sorted(CRITERIA)]
    dense, points = {}, []
    for name in args.models:
        dense[name], found = measure(name, [args.ratio], ways)
        points += found
    (args.out / "criteria.md").write_text(page(points, dense, args.ratio), encoding="utf-8")


def page(points: Sequence[Point], dense: dict[str, int], ratio: float) -> str:
    """Returns the page: a table for each compensation, the criteria by their mean divergence."""
    lines = [
        "# Criteria",
        "",
        f"Made by `python benchmarks/criteria.py`. A share of {ratio:g} of the units goes in every group, residual",
        "streams included; 512 unlabelled calibration pictures, 600 test pictures: top-1 in %, and in brackets the KL",
        "divergence from the dense model's probabilities. One picture is 0.17 points. Each table is in the order of",
        "the mean divergence. `obs` is the default; where something other than linear layers reads a group it is",
        "ranked by its weights, but for heads, whose scores tell, too.",
        "",
    ]
    titles = {"none": "Cut only (`--compensate none`)", "joint": "With the rest refitted (the default)"}
    for compensate in reversed(COMPENSATE):
        rows = {c: [find(points, name, ratio, c, compensate) for name in dense] for c in CRITERIA}
        order = sorted(rows, key=lambda c: sum(p.divergence for p in rows[c]))
        lines += [f"## {titles[compensate]}", ""]
        lines.append("| criterion | " + " | ".join(f"{name} ({hits / 6:.1f})" for name, hits in dense.items()) + " |")
        lines.append("|---" * (len(dense) + 1) + "|")
        for c in order:
            cells = (f"{p.hits / 6:.1f} ({p.divergence:.3f})" for p in rows[c])
            lines.append(f"| {c} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
