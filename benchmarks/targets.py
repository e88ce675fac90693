"""Are targets met? MACs, parameters and bytes of what is written, for models/, ten networks of the zoo, or any folder.

    python benchmarks/targets.py --zoo zoo/               # writes docs/targets.md; tools/export_zoo.py makes zoo/
    python benchmarks/targets.py --folder MODELS --out .  # other models; writes ./targets.md

The models of models/ are calibrated on their pictures, all others on made-up inputs; networks of the zoo, whose weights
are random, are cut uniformly by these.

A target is met if the written file lies at most 1 % above it, and below it by no more than 1 % and the largest unit
that was cut from. Parameters and bytes are counted here, from the file; MACs are the report's. Where a target is out of
reach the program must say so (exit code 6) and what can be had.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import onnxprune
from onnxprune import NothingToPruneError, Report, TargetError

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("macs", "params", "size")
SHARES = (0.7, 0.5, 0.3)
SLACK = 0.01
BARE: dict[str, Any] = {"allocation": "uniform", "criterion": "l1", "compensate": "none"}
ZOO = (
    "keras_mobilenetv2",
    "timm_inception_next_atto",
    "timm_mobilevit_xxs",
    "timm_regnety_002",
    "torchvision_shufflenet_v2_x1_0",
    "torchvision_squeezenet1_0",
    "transformers_bigbird",
    "transformers_electra",
    "transformers_llama",
    "transformers_segformer",
)
ABOUT_ZOO = (
    "The digits are calibrated on their pictures; networks of the zoo (`python tools/export_zoo.py zoo/` makes them)",
    "have random weights, by which they are cut uniformly.",
)


@dataclass(frozen=True)
class Row:
    """What became of one target.

    Attributes:
        model: file name.
        kind: what was limited.
        share: what was to be left.
        left: what is left in the written file; None where the target is out of reach.
        unit: the largest share of the model that one unit is, of those that were cut from.
        best: what can be had instead.
    """

    model: str
    kind: str
    share: float
    left: float | None
    unit: float = 0.0
    best: str = ""

    @property
    def met(self) -> bool:
        """Whether the target is met, or said to be out of reach."""
        if self.left is None:
            return bool(self.best)
        return self.share * (1 - SLACK) - self.unit <= self.left <= self.share * (1 + SLACK)


def main() -> int:
    """Measures all, writes the table, and returns 1 if a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "models", help="all .onnx in it are pruned")
    parser.add_argument("--zoo", type=Path, help="a folder with the zoo: ten of its networks are pruned, too")
    parser.add_argument("--allocation", default="sensitivity")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    args = parser.parse_args()
    paths = sorted(args.folder.resolve().glob("*.onnx"))
    paths += [args.zoo / f"{name}.onnx" for name in ZOO] if args.zoo else []
    rows = []
    for path in paths:
        for kind in KINDS:
            for share in SHARES:
                of_zoo = args.zoo is not None and path.parent == args.zoo
                how = BARE if of_zoo else {"allocation": args.allocation, "samples": args.samples}
                rows.append(measure(path, kind, share, **how))
                print(rows[-1], "" if rows[-1].met else "MISSED", flush=True)
    (args.out / "targets.md").write_text(
        table(rows, args.allocation, args.samples, zoo=args.zoo is not None), encoding="utf-8"
    )
    return int(not all(row.met for row in rows))


def measure(path: Path, kind: str, share: float, **how: Any) -> Row:
    """Returns what becomes of a target on a model."""
    calibration = ROOT / "models" / "digits.npz" if path.parent == ROOT / "models" else None
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        try:
            report = onnxprune.prune(
                path,
                target={kind: share},
                calibration=calibration,
                output=out,
                validate=False,
                **how,
            ).report
        except (TargetError, NothingToPruneError) as error:
            found = re.search(r"best that can be had is (\S+?);", str(error))
            return Row(path.name, kind, share, None, best=found[1] if found else str(error).partition(";")[0])
        return Row(path.name, kind, share, left(path, out, kind, report), largest(report))


def left(path: Path, out: Path, kind: str, report: Report) -> float:
    """Returns the share that the written file has of the original."""
    if kind == "macs":
        return report.macs.ratio
    if kind == "size":
        return sum(f.stat().st_size for f in out.parent.iterdir()) / report.size.before
    return parameters(out) / parameters(path)


def parameters(path: Path) -> int:
    """Returns the floats, and the other numbers in two or more axes, that stand in a file."""
    model = onnx.load(path, load_external_data=False)
    tensors = list(model.graph.initializer)
    tensors += [
        a.t for node in model.graph.node if node.op_type == "Constant" for a in node.attribute if a.HasField("t")
    ]
    floating = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16}
    return sum(int(np.prod(t.dims)) for t in tensors if t.data_type in floating or len(t.dims) > 1)


def largest(report: Report) -> float:
    """Returns the largest share of the model that one unit of a group that was cut is."""
    macs, params = max(report.macs.before, 1), max(report.params.before, 1)
    return max((max(g.macs_per_unit / macs, g.params_per_unit / params) for g in report.groups if g.cut), default=0.0)


def table(rows: Sequence[Row], allocation: str, samples: int, *, zoo: bool) -> str:
    """Returns the table as Markdown."""
    command = "python benchmarks/targets.py" + " --zoo zoo/" * zoo
    lines = [
        "# Targets",
        "",
        f"Made by `{command}`: allocation {allocation}, {samples} calibration inputs,",
        "all else by default. Cells are what the written file has of the original, in %; parameters and bytes are",
        "counted from the file. Where a target is out of reach, the cell says what can be had (exit code 6).",
        *(ABOUT_ZOO if zoo else ()),
        "",
        "| model | target | " + " | ".join(f"{share:g}" for share in SHARES) + " |",
        "|---|---|" + "---|" * len(SHARES),
    ]
    for model in dict.fromkeys(row.model for row in rows):
        for kind in KINDS:
            own = {row.share: row for row in rows if (row.model, row.kind) == (model, kind)}
            lines.append(f"| {model} | {kind} | " + " | ".join(_cell(own[share]) for share in SHARES) + " |")
    met = sum(row.met for row in rows)
    lines += ["", f"{met} of {len(rows)} are met within {100 * SLACK:g} %, or said to be out of reach."]
    return "\n".join(lines) + "\n"


def _cell(row: Row) -> str:
    shown = f"out of reach ({row.best})" if row.left is None else f"{100 * row.left:.2f}"
    return shown if row.met else f"**{shown}**"


if __name__ == "__main__":
    sys.exit(main())
