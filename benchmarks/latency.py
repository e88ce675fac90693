"""Speed-ups on the CPU: half of the MACs with and without `--align auto`, and a latency target, as `bench` finds them.

    python benchmarks/latency.py                        # writes the table of docs/latency.md
    python benchmarks/latency.py --out - model.onnx     # prints it for other models

One thread, batch 1. Only shapes count for time: units are ranked by L1 and nothing is refitted, so that it is quick.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxprune

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "latency.md"
BEGIN, END = "<!-- measured -->\n", "<!-- /measured -->\n"
QUICK: dict[str, Any] = {"criterion": "l1", "compensate": "none", "allocation": "uniform", "validate": False}


def main() -> None:
    """Measures all models and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, default=sorted((ROOT / "models").glob("*.onnx")))
    parser.add_argument("--seconds", type=float, default=10.0, help="of timing one pair")
    parser.add_argument("--out", default=str(PAGE))
    args = parser.parse_args()
    text = "".join(f"{line}\n" for line in table(args.models, args.seconds))
    if args.out == "-":
        print(text, end="")
        return
    page = Path(args.out)
    head, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    page.write_text(head + BEGIN + text + END + rest.partition(END)[2], encoding="utf-8")


def table(models: list[Path], seconds: float) -> Iterator[str]:
    """Yields the lines of the table."""
    columns = (
        "model",
        "ms",
        "`macs=0.5`: faster",
        "of the ideal",
        "with `--align 1`",
        "`latency=0.7`: time left",
        "MACs left",
    )
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for model in models:
        auto, ms, left = timed(model, seconds, target={"macs": 0.5})
        loose, _, loose_left = timed(model, seconds, target={"macs": 0.5}, align=1)
        try:
            fast, _, fast_left = timed(model, seconds, target={"latency": 0.7}, threads=1)
            reached = f"{1 / fast.speedup:.2f} ({1 / fast.high:.2f}-{1 / fast.low:.2f}) | {fast_left:.2f}"
        except onnxprune.TargetError as error:
            reached = f"out of reach: {str(error).partition('best that can be had is ')[2].partition(';')[0]} | "
        yield (
            f"| {model.stem} | {ms:.3g} | {shown(auto)} | {auto.speedup * left:.2f} "
            f"| {shown(loose)}, {loose.speedup * loose_left:.2f} of the ideal | {reached} |"
        )


def timed(model: Path, seconds: float, **options: Any) -> tuple[onnxprune.Timing, float, float]:
    """Returns the timing of a cut model, the original's milliseconds, and the share of the MACs that is left."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pruned.onnx"
        report = onnxprune.prune(model, output=path, **QUICK, **options).report
        found = onnxprune.bench(model, path, threads=1, seconds=seconds)
    return found, found.original.p50, report.macs.ratio


def shown(timing: onnxprune.Timing) -> str:
    """Returns a speed-up as the table shows it."""
    if not timing.conclusive:
        return f"{timing.speedup:.2f}x, not conclusive"
    return f"{timing.speedup:.2f}x ({timing.low:.2f}-{timing.high:.2f})"


if __name__ == "__main__":
    main()
