"""Prunes every model of a folder at one ratio and proves each: exact, valid, smaller, and right at a size never seen.

    python tools/export_zoo.py FOLDER                          makes one (see there)
    python benchmarks/zoo.py FOLDER [--jobs 2] [--table docs/zoo.md]

Each model runs in a process of its own, as `onnxprune MODEL --ratio 0.5 --criterion l1 --compensate none` would. The
program itself proves that the written file computes what the original computes with the cut weights set to zero, at
two sizes (column `error`, relative). Looked at here besides, without the program: onnx's checker, the interface (names,
types and dims of inputs and outputs), and a run at a third batch size where the batch is dynamic. MACs are the
program's count. Exit code 1 if any model is wrong.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

OPTIONS = ["--criterion", "l1", "--compensate", "none"]
THIRD_BATCH = 3
START, END = "<!-- table -->", "<!-- end of table -->"
NUMPY = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


@dataclass(frozen=True)
class Row:
    """What became of one model."""

    name: str
    nodes: int
    seconds: float
    cut: float = 0.0
    error: float = 0.0
    wrong: str = ""


def main() -> int:
    """Prints the table; returns 1 if any model is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--table", type=Path, help="a Markdown file whose table is replaced")
    arguments = parser.parse_args()
    models = sorted(arguments.folder.glob("*.onnx"))
    with ThreadPoolExecutor(arguments.jobs) as pool:
        rows = list(pool.map(partial(tried, ratio=arguments.ratio), models))
    text = table(rows)
    print(text)
    if arguments.table is not None:
        page = arguments.table.read_text(encoding="utf-8")
        head, tail = page.split(START)[0], page.split(END)[1]
        arguments.table.write_text(f"{head}{START}\n{text}\n{END}{tail}", encoding="utf-8")
    return 1 if any(row.wrong for row in rows) else 0


def tried(model: Path, ratio: float) -> Row:
    """Returns what becomes of one model."""
    nodes = len(onnx.load(model, load_external_data=False).graph.node)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        output, report = Path(folder) / "pruned.onnx", Path(folder) / "report.json"
        command = [sys.executable, "-m", "onnxprune", model, "--ratio", ratio, *OPTIONS, "-o", output, "-q"]
        done = subprocess.run(
            [*map(str, command), "--report", str(report)], capture_output=True, text=True, check=False
        )
        row = Row(model.stem, nodes, time.perf_counter() - start)
        if done.returncode:
            return Row(row.name, nodes, row.seconds, wrong=f"exit {done.returncode}: {done.stderr.strip()[-200:]}")
        told = json.loads(report.read_text())
        cut = 1 - told["macs"]["after"] / max(told["macs"]["before"], 1)
        wrong = interface(model, output) or third(model, output)
    print(f"{row.name}: {cut:.3f} {row.seconds:.1f} s {wrong}", file=sys.stderr, flush=True)
    return Row(row.name, nodes, row.seconds, cut, told["validation"]["error"], wrong)


def interface(original: Path, pruned: Path) -> str:
    """Returns what is invalid or otherwise called than before."""
    onnx.checker.check_model(str(pruned))
    a, b = (onnx.load(path).graph for path in (original, pruned))
    same = list(a.input) == list(b.input) and list(a.output) == list(b.output)
    return "" if same else "the interface changed"


def third(original: Path, pruned: Path) -> str:
    """Returns what goes wrong at another batch size, if the model takes any."""
    one, other = (ort.InferenceSession(path, providers=["CPUExecutionProvider"]) for path in (original, pruned))
    if any(isinstance(given.shape[0], int) for given in one.get_inputs()):
        return ""
    rng = np.random.default_rng(0)
    feed = {}
    for given in one.get_inputs():
        shape = [THIRD_BATCH, *(n if isinstance(n, int) else 9 for n in given.shape[1:])]
        integer = given.type == "tensor(int64)"
        values = rng.integers(0, 2, shape) if integer else rng.standard_normal(shape)
        feed[given.name] = values.astype(NUMPY[given.type])
    want, found = (session.run(None, feed) for session in (one, other))
    if [v.shape for v in want] != [v.shape for v in found]:
        return f"other shapes at batch {THIRD_BATCH}"
    finite = all(np.isfinite(b).all() for a, b in zip(want, found, strict=True) if np.isfinite(a).all())
    return "" if finite else f"not finite at batch {THIRD_BATCH}"


def table(rows: list[Row]) -> str:
    """Returns the table in Markdown, one line for each model, and a line over all."""
    lines = ["| model | nodes | MACs cut | error | seconds |", "|---|--:|--:|--:|--:|"]
    for row in rows:
        told = row.wrong or f"{row.error:.0e}"
        lines.append(f"| {row.name} | {row.nodes:,} | {row.cut:.1%} | {told} | {row.seconds:.1f} |")
    right = [row for row in rows if not row.wrong]
    median = statistics.median(row.cut for row in right) if right else 0.0
    total = sum(row.seconds for row in rows)
    return "\n".join(
        [*lines, "", f"{len(right)} of {len(rows)} right; median of the MACs cut {median:.1%}; {total:.0f} s."]
    )


if __name__ == "__main__":
    sys.exit(main())
