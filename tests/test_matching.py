"""Slots of rows matched by what their readers lose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import onnxprune
from onnxprune import study
from onnxprune.allocation.divergence import relative_error
from onnxprune.graph.running import run_all
from onnxprune.refit.matching import order
from onnxprune.refit.obs import Problem

MODELS = Path(__file__).parents[1] / "models"
CPU = ("CPUExecutionProvider",)


def problem(weights: np.ndarray) -> Problem:
    """Returns a layer whose inputs are independent: a slot is worth its weights."""
    n = len(weights)
    return Problem.of(np.eye(n), weights[None], np.arange(n)[:, None], 1.0)


def test_every_row_loses_its_least_first() -> None:
    worth = np.array([[5.0, 1.0], [2.0, 4.0], [3.0, 2.0]])  # (slots, rows)
    found = order([(problem(worth.reshape(-1)), np.arange(6))], np.zeros((3, 2)), np.array([True, True]))
    np.testing.assert_array_equal(found, [[1, 0], [2, 2], [0, 1]])


def test_rows_that_nothing_tells_of_go_by_their_scores() -> None:
    worth = np.array([5.0, 2.0, 3.0])  # of the first row alone
    scores = np.array([[0.0, 3.0], [1.0, 1.0], [2.0, 2.0]])
    found = order([(problem(worth), np.array([0, 2, 4]))], scores, np.array([True, False]))
    np.testing.assert_array_equal(found, [[1, 1], [2, 2], [0, 0]])


def test_what_another_slot_can_stand_in_for_goes_first() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 4))
    x[:, 3] = x[:, 1] + 0.01 * rng.normal(size=500)  # (slot 1, row 1) is nearly (slot 0, row 1)
    weights = np.array([1.0, 3.0, 2.0, 3.0])
    h = x.T @ x
    found = order(
        [(Problem.of(h, weights[None] @ h, np.arange(4)[:, None], 1.0), np.arange(4))],
        np.zeros((2, 2)),
        np.array([True, True]),
    )
    assert found[0].tolist() in ([0, 0], [0, 1])
    alone = order([(problem(weights), np.arange(4))], np.zeros((2, 2)), np.array([True, True]))
    assert alone[0, 0] == found[0, 0] == 0


@pytest.mark.parametrize("name", ["lstm", "vit"])
def test_networks_keep_more_of_their_outputs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = MODELS / f"digits_{name}.onnx"
    feeds = [{"input": np.load(MODELS / "digits_test.npz")["input"]}]
    dense = run_all(source, feeds, CPU)

    def error() -> float:
        onnxprune.prune(source, ratio=0.5, calibration=MODELS / "digits.npz", output=tmp_path / "out.onnx")
        return relative_error(dense, run_all(tmp_path / "out.onnx", feeds, CPU))

    apart = error()
    monkeypatch.setattr(study, "find_rows", lambda units: ())
    assert apart < 0.85 * error()
