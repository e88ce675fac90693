"""The scripts in examples/ do what docs/ says of them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_prune_then_quantize_multiplies() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "examples/prune_then_quantize.py", "models/digits_resnet.onnx"),
            *("--calib", "models/digits.npz", "--test", "models/digits_test.npz"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    rows = re.findall(r"^(\w+) +([\d,]+) bytes +([\d.]+) %", done.stdout, re.MULTILINE)
    size = {name: int(count.replace(",", "")) for name, count, _ in rows}
    right = {name: float(share) for name, _, share in rows}
    assert size["both"] < min(size["pruned"], size["quantized"]) < size["original"]
    assert right["pruned"] > right["original"] - 1 and right["both"] > right["quantized"] - 2
    assert size["reversed"] < size["quantized"] and right["reversed"] > right["quantized"] - 2
