"""ONNX test data: `test_data_set_0/input_0.pb` and so on, as the model zoo keeps them beside a model."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune.calibration import checks
from onnxprune.calibration.arrays import beginning, shown_path
from onnxprune.errors import DataError
from onnxprune.graph.inputs import InputSpec

__all__ = ["data_sets", "find_test_data", "items_of"]


def find_test_data(model: Path) -> Path | None:
    """Return the folder of a model if there are test data beside it, else None."""
    return model.parent if data_sets(model.parent) else None


def data_sets(folder: Path) -> list[Path]:
    """Return the folders of test data sets: this folder itself, or those in it, in the order of their numbers."""
    if any(folder.glob("input_*.pb")):
        return [folder]
    found = [p for p in folder.glob("test_data_set_*") if p.is_dir() and any(p.glob("input_*.pb"))]
    return sorted(found, key=_number)


def _number(path: Path) -> tuple[int, str]:
    digits = re.search(r"_(\d{1,18})(\.pb)?$", path.name)
    return (int(digits[1]) if digits else 1 << 62, path.name)


def items_of(folders: Sequence[Path], specs: Sequence[InputSpec]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the inputs of each data set, with the set's name.

    Tensors go by their names where these are the inputs', else by the files' numbers.

    Raises:
        DataError: a file is no tensor, or there are more or fewer than the model has inputs.
    """
    for folder in folders:
        files = sorted(folder.glob("input_*.pb"), key=_number)
        if len(files) != len(specs):
            raise DataError(
                f"{shown_path(folder)} has {len(files)} inputs, and the model takes {len(specs)} "
                f"({checks.shown(s.name for s in specs)}): give one input_N.pb for each"
            )
        tensors = [_tensor(f) for f in files]
        names = [t.name for t in tensors]
        if set(names) != {s.name for s in specs}:
            names = [s.name for s in specs]
        arrays = {name: _array(t, f) for name, t, f in zip(names, tensors, files, strict=True)}
        yield shown_path(folder), arrays


def _tensor(path: Path) -> onnx.TensorProto:
    beginning(path)
    try:
        tensor = onnx.TensorProto()
        tensor.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf has its own
        raise DataError(f"{_place(path)} is no tensor ({type(error).__name__}): write a TensorProto") from None
    return tensor


def _array(tensor: onnx.TensorProto, path: Path) -> np.ndarray:
    where = _place(path)
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        raise DataError(f"{where} keeps its data in another file: write them into it")
    if any(d < 0 for d in tensor.dims) or math.prod(tensor.dims) > 8 * tensor.ByteSize():
        raise DataError(f"{where} says that its shape is {list(tensor.dims)[:8]}, and has no data for it")
    try:
        array = onnx.numpy_helper.to_array(tensor)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise DataError(f"{where} is no valid tensor ({reason}): write it again") from None
    return checks.as_array(array, where)


def _place(path: Path) -> str:
    return f"{shown_path(path.parent)}: {shown_path(path)}"
