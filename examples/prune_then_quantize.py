"""Prunes a model, then quantizes what is left to 8 bits: the two multiply; and the other way round, to compare.

    cd models && python ../examples/prune_then_quantize.py digits_resnet.onnx --calib digits.npz --test digits_test.npz

Prune first where you can: calibration of the quantization then sees the activations that the small model has. Where
there is only a quantized file, prune that: its integer weights are refitted too.
Writes OUT/pruned.onnx, OUT/pruned.int8.onnx and OUT/int8.pruned.onnx and prints bytes and top-1 of each.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

import onnxprune

BATCH = 64


class Batches(CalibrationDataReader):
    """Calibration inputs as onnxruntime.quantization reads them."""

    def __init__(self, name: str, values: np.ndarray) -> None:
        self.left: Iterator[dict[str, np.ndarray]] = (
            {name: values[k : k + BATCH]} for k in range(0, len(values), BATCH)
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Returns the next batch, None after the last."""
        return next(self.left, None)


def quantize(model: Path, output: Path, name: str, values: np.ndarray) -> None:
    """Writes the model with 8-bit weights (one scale for each channel) and activations, in QDQ form."""
    quantize_static(
        model,
        output,
        Batches(name, values),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
    )


def top1(model: Path, name: str, values: np.ndarray, labels: np.ndarray) -> float:
    """Returns the share of right answers in percent."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return 100 * float((session.run(None, {name: values})[0].argmax(1) == labels).mean())


def main() -> None:
    """Prints a row for each step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True, help=".npz with the input and `labels`")
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--out", type=Path, help="folder to keep the models in")
    given = parser.parse_args()
    test = dict(np.load(given.test))
    labels = test.pop("labels")
    ((name, values),) = test.items()
    calibration = np.load(given.calib)[name]
    with tempfile.TemporaryDirectory() as scratch:
        out = given.out or Path(scratch)
        out.mkdir(parents=True, exist_ok=True)
        pruned, both, last = out / "pruned.onnx", out / "pruned.int8.onnx", out / "int8.pruned.onnx"
        plain = Path(scratch) / "plain.int8.onnx"
        onnxprune.prune(given.model, ratio=given.ratio, calibration=given.calib, output=pruned)
        quantize(pruned, both, name, calibration)
        quantize(given.model, plain, name, calibration)
        onnxprune.prune(plain, ratio=given.ratio, calibration=given.calib, output=last)
        rows = {"original": given.model, "quantized": plain, "pruned": pruned, "both": both, "reversed": last}
        for what, path in rows.items():
            print(f"{what:<10}{path.stat().st_size:>10,} bytes{top1(path, name, values, labels):>8.1f} % top-1")


if __name__ == "__main__":
    main()
