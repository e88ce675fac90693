"""The models under models/ are what models/README.md says they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

FOLDER = Path(__file__).resolve().parent.parent / "models"
MAX_BYTES = 1_000_000
# Other processors round differently, which may flip pictures that lie on an edge.
FLIPPED = 2


@dataclass(frozen=True)
class Row:
    """What the table of models/README.md states about one model."""

    file: str
    opset: int
    parameters: int
    size: int
    accuracy: float


def table() -> dict[str, Row]:
    """Returns the rows of the table in models/README.md by file name."""
    lines = (line for line in (FOLDER / "README.md").read_text().splitlines() if line.startswith("| `digits_"))
    rows = {}
    for line in lines:
        cells = [cell.strip(" `") for cell in line.strip("|").split("|")]
        if not cells[0].endswith(".onnx"):
            continue
        opset, parameters, size = (int(cell.replace(",", "")) for cell in cells[3:6])
        rows[cells[0]] = Row(cells[0], opset, parameters, size, float(cells[6].rstrip("%")) / 100)
    return rows


ROWS = table()


def session(file: str) -> ort.InferenceSession:
    """Returns a session on the model, on CPU."""
    return ort.InferenceSession(FOLDER / file, providers=["CPUExecutionProvider"])


def test_the_table_lists_every_model() -> None:
    assert set(ROWS) == {path.name for path in FOLDER.glob("*.onnx")}
    assert len(ROWS) == 6


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_the_file_is_valid_small_and_as_stated(row: Row) -> None:
    path = FOLDER / row.file
    model = onnx.load(path, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    weights = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in model.graph.initializer)
    assert sum(int(np.prod(tensor.dims)) for tensor in weights) == row.parameters
    assert next(item.version for item in model.opset_import if item.domain == "") == row.opset
    assert path.stat().st_size == row.size < MAX_BYTES


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_the_file_names_no_path_of_the_machine_that_made_it(row: Row) -> None:
    data = (FOLDER / row.file).read_bytes()
    assert b"site-packages" not in data
    assert b".py" not in data


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_it_runs_at_any_batch_size_and_sample_by_sample_alike(row: Row, batch: int) -> None:
    pictures = np.load(FOLDER / "digits.npz")["input"][:batch]
    runner = session(row.file)
    (scores,) = runner.run(None, {"input": pictures})
    alone = [runner.run(None, {"input": picture[None]})[0] for picture in pictures]
    assert scores.shape == (batch, 10)
    np.testing.assert_allclose(scores, np.concatenate(alone), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_it_is_as_accurate_as_stated(row: Row) -> None:
    test = np.load(FOLDER / "digits_test.npz")
    (scores,) = session(row.file).run(None, {"input": test["input"]})
    right = int(np.sum(np.argmax(scores, axis=1) == test["labels"]))
    assert abs(right - row.accuracy * len(test["labels"])) <= FLIPPED
    assert row.accuracy >= 0.95


def test_batch_normalization_stands_in_the_cnn_in_inference_mode() -> None:
    nodes = onnx.load(FOLDER / "digits_cnn.onnx").graph.node
    norms = [node for node in nodes if node.op_type == "BatchNormalization"]
    assert len(norms) == 4
    for node in norms:
        assert len(node.output) == 1
        assert not any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute)


def test_calibration_and_test_pictures_are_of_one_kind_and_disjoint() -> None:
    calibration, test = np.load(FOLDER / "digits.npz"), np.load(FOLDER / "digits_test.npz")
    assert calibration.files == ["input"]
    assert sorted(test.files) == ["input", "labels"]
    assert calibration["input"].shape == (512, 1, 8, 8)
    assert test["input"].shape == (600, 1, 8, 8)
    assert test["labels"].shape == (600,)
    for pictures in (calibration["input"], test["input"]):
        assert pictures.dtype == np.float32
        assert pictures.min() == 0
        assert pictures.max() == 1
    seen = {picture.tobytes() for picture in calibration["input"]}
    assert not seen & {picture.tobytes() for picture in test["input"]}
