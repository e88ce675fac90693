"""Labelled data in every form, and what is measured on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from classifiers import RUINED, one_class_ruined, scores_as_inputs
from onnx import TensorProto, helper

from onnxprune.errors import DataError, UsageError
from onnxprune.graph import inputs
from onnxprune.graph.model import load
from onnxprune.graph.running import CPU
from onnxprune.proof.metrics import compare, open_labelled, place_of

rng = np.random.default_rng(5)
X = rng.standard_normal((50, 8)).astype(np.float32)
LABELS = rng.integers(0, 8, 50)
TOP1 = 100 * float((X.argmax(1) == LABELS).mean())
TOP5 = 100 * float(np.mean([label in np.argsort(-row)[:5] for row, label in zip(X, LABELS, strict=True)]))


def specs(model: onnx.ModelProto) -> tuple[inputs.InputSpec, ...]:
    return inputs.specs(load(model).model)


def measured(
    data: Any, labels: Any, model: onnx.ModelProto | None = None, **options: Any
) -> tuple[float, float | None]:
    model = scores_as_inputs(8) if model is None else model
    found = open_labelled(data, labels, specs(model), batch=7, **options).measure(model, (CPU,))
    return found.top1, found.top5


# ---------------------------------------------------------------- forms
def test_labels_in_the_archive(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=X, truth=LABELS)
    assert measured(tmp_path / "data.npz", "truth") == pytest.approx((TOP1, TOP5))


def test_labels_in_a_compressed_archive(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "data.npz", x=X, truth=LABELS.astype(np.uint8))
    assert measured(tmp_path / "data.npz", "truth") == pytest.approx((TOP1, TOP5))


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_labels_in_a_file_of_their_own(tmp_path: Path, suffix: str) -> None:
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "l.npy", LABELS.astype(np.float64))
    np.savez(tmp_path / "l.npz", whatever=LABELS)
    assert measured(tmp_path / "x.npy", str(tmp_path / f"l{suffix}")) == pytest.approx((TOP1, TOP5))


def test_a_folder_of_archives(tmp_path: Path) -> None:
    for k, part in enumerate(np.array_split(np.arange(50), 3)):
        np.savez(tmp_path / f"{k}.npz", x=X[part], truth=LABELS[part])
    assert measured(tmp_path, "truth") == pytest.approx((TOP1, TOP5))


def test_a_folder_with_one_file_per_array(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "truth.npy", LABELS)
    assert measured(tmp_path, "truth") == pytest.approx((TOP1, TOP5))


def test_a_folder_with_labels_apart_keeps_the_order_of_files(tmp_path: Path) -> None:
    for k, part in enumerate(np.array_split(np.arange(50), 4)):
        np.savez(tmp_path / f"{k}.npz", x=X[part])
    assert measured(tmp_path, LABELS) == pytest.approx((TOP1, TOP5))


def test_pictures_with_labels_apart(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "pictures"
    folder.mkdir()
    for k in range(4):
        image.fromarray(np.full((8, 8), 255 if k in (1, 3) else 0, np.uint8)).save(folder / f"{k}.png")
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["x"], ["p"]),
            helper.make_node("Flatten", ["p"], ["bright"]),
            helper.make_node("Neg", ["bright"], ["dark"]),
            helper.make_node("Add", ["dark", "one"], ["shade"]),
            helper.make_node("Concat", ["shade", "bright"], ["y"], axis=1),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [onnx.numpy_helper.from_array(np.ones(1, np.float32), "one")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert measured(folder, np.array([0, 1, 0, 0]), model) == (75.0, None)
    with pytest.raises(DataError, match=r"no labels 'truth'.*\.npy"):
        open_labelled(folder, "truth", specs(model))


def test_arrays_in_memory() -> None:
    assert measured({"x": X, "truth": LABELS}, "truth") == pytest.approx((TOP1, TOP5))
    assert measured({"x": X}, LABELS) == pytest.approx((TOP1, TOP5))


def test_a_model_with_a_batch_of_its_own(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=X, truth=LABELS)
    model = scores_as_inputs(8, batch=10)
    assert measured(tmp_path / "data.npz", "truth", model) == pytest.approx((TOP1, TOP5))


def test_a_random_choice_of_samples_is_the_same_for_both_models(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=X, truth=LABELS)
    model = scores_as_inputs(8)
    data = open_labelled(tmp_path / "data.npz", "truth", specs(model), samples=20, seed=4)
    one, other = (data.measure(model, (CPU,)) for _ in range(2))
    assert one.samples == data.samples == 20
    assert np.array_equal(one.labels, other.labels)
    rows = [np.flatnonzero((feed["x"][0] == X).all(1))[0] for feed in data.inputs().batches()]
    assert LABELS[rows[0]] == one.labels[0]


def test_class_numbers_instead_of_scores() -> None:
    graph = helper.make_graph(
        [helper.make_node("ArgMax", ["x"], ["y"], axis=1, keepdims=0)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, ["n"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert measured({"x": X}, LABELS, model) == (pytest.approx(TOP1), None)


# ---------------------------------------------------------------- refusals
def test_labels_that_are_not_there(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=X, truth=LABELS)
    with pytest.raises(DataError, match=r"no array 'labels': it has 'truth', 'x'"):
        measured(tmp_path / "data.npz", "labels")
    with pytest.raises(DataError, match="hold no 'labels'"):
        measured({"x": X}, "labels")


def test_an_array_beside_the_labels_that_is_no_input(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=X, truth=LABELS, more=X)
    with pytest.raises(DataError, match="extra 'more'"):
        measured(tmp_path / "data.npz", "truth")


def test_labels_that_are_an_input(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=X)
    with pytest.raises(UsageError, match="are an input of the model"):
        measured(tmp_path / "data.npz", "x")


def test_fewer_labels_than_samples() -> None:
    with pytest.raises(DataError, match="50 samples and 49 labels"):
        measured({"x": X}, LABELS[:-1])
    with pytest.raises(DataError, match="different numbers of samples"):
        measured({"x": X, "truth": LABELS[:-1]}, "truth")


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        (LABELS + 0.5, "cannot hold every value"),
        (np.where(np.arange(50) == 31, 8, LABELS), r"label 8 of sample 31 .* 0 to 7"),
        (np.where(np.arange(50) == 31, -1, LABELS), r"label -1 of sample 31"),
        (np.eye(8)[LABELS], "one class number for each sample"),
        (np.array(["cat"] * 50), "dtype <U3"),
        (np.array([None] * 50), "Python objects"),
    ],
)
def test_labels_that_are_no_classes(labels: np.ndarray, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        measured({"x": X}, labels)


def test_an_output_that_is_named() -> None:
    assert measured({"x": X}, LABELS, output="y")[0] == pytest.approx(TOP1)
    with pytest.raises(DataError, match="no output 'z'"):
        measured({"x": X}, LABELS, output="z")


def test_a_model_that_gives_no_scores() -> None:
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["x"], ["y"], axes=[1])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(DataError, match=r"no output is a row of class scores .*metric script"):
        measured({"x": X}, LABELS, model)


# ---------------------------------------------------------------- places
def test_places_against_sorting() -> None:
    draw = np.random.default_rng(1)
    scores = draw.integers(0, 4, (200, 9)).astype(np.float32)  # with many ties
    labels = draw.integers(0, 9, 200)
    order = np.argsort(-scores, axis=1, kind="stable")
    assert np.array_equal(place_of(scores, labels), np.argmax(order == labels[:, None], axis=1))


def test_a_score_that_is_no_number_is_no_hit() -> None:
    scores = np.array([[np.nan, 1, 0], [0, np.nan, 0], [np.inf, 0, 0], [0, 1, -np.inf]], np.float32)
    assert place_of(scores, np.array([0, 0, 0, 1])).tolist() == [5, 5, 0, 0]


# ---------------------------------------------------------------- changes
def test_one_class_ruined_and_the_mean_unchanged(tmp_path: Path) -> None:
    original, ruined, path = one_class_ruined(tmp_path)
    data = open_labelled(path, "labels", inputs.specs(load(original).model))
    change = compare(data.measure(original, (CPU,)), data.measure(ruined, (CPU,)), data.source)
    assert (change.top1.before, change.top1.after, change.top1.drop) == (90.0, 90.0, 0.0)
    assert change.worst == (RUINED,)
    row = change.per_class[RUINED]
    assert (row.label, row.samples, row.before, row.after, row.drop) == (RUINED, 100, 100.0, 0.0, 100.0)
    assert row.interval.low > 90
    assert all(c.drop <= 0 for c in change.per_class if c.label != RUINED)
    assert change.top1.interval.low < 0 < change.top1.interval.high


def test_models_measured_on_other_samples_are_not_compared() -> None:
    model = scores_as_inputs(8)
    one, other = (open_labelled({"x": X[:n]}, LABELS[:n], specs(model)).measure(model, (CPU,)) for n in (20, 30))
    with pytest.raises(ValueError, match="same samples"):
        compare(one, other)
