"""What the proof refuses is told from the rest: a wrong rule costs its own groups only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from hostile import model_of, tensor, write
from onnx import helper

import onnxprune
from onnxprune.engine.coupling import Use
from onnxprune.engine.cutting import Cutting

LAYERS = 6
BARE = {"ratio": 0.5, "criterion": "l1", "compensate": "none"}


def chain() -> onnx.ModelProto:
    """Returns a perceptron of six layers, 8 units each."""
    nodes, values = [], "x"
    for k in range(LAYERS):
        out = "y" if k == LAYERS - 1 else f"h{k}"
        nodes += [helper.make_node("MatMul", [values, f"w{k}"], [f"p{k}"]), helper.make_node("Tanh", [f"p{k}"], [out])]
        values = out
    weights = [tensor(f"w{k}", 8, 4 if k == LAYERS - 1 else 8, seed=k) for k in range(LAYERS)]
    return model_of(nodes, weights)


def cut_wrongly(monkeypatch: pytest.MonkeyPatch, names: set[str], *, shape: bool = False) -> None:
    """Lets what is cut of some constants be wrong: in its values, or in its shape."""
    right = Cutting.slices

    def wrong(self: Cutting, use: Use, values: np.ndarray) -> Iterator[np.ndarray]:
        for found in right(self, use, values):
            if use.name not in names or found.shape == values.shape:
                yield found
            else:
                yield found[:, :-1] if shape else found + 1

    monkeypatch.setattr(Cutting, "slices", wrong)


def cut_in(result: onnxprune.Result) -> dict[str, int]:
    return {group.name: group.cut for group in result.report.groups}


@pytest.mark.parametrize("shape", [False, True])
def test_only_the_groups_that_are_wrong_stay_whole(
    shape: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cut_wrongly(monkeypatch, {"w2"}, shape=shape)
    result = onnxprune.prune(chain(), output=tmp_path / "small.onnx", **BARE)
    assert cut_in(result) == {"w0": 4, "w1": 0, "w2": 0, "w3": 4, "w4": 4}
    warning = next(w for w in result.report.warnings if "refused" in w)
    assert warning.startswith("'w1', 'w2' stay whole")
    assert (tmp_path / "small.onnx").is_file()
    assert result.report.validation is not None and result.report.validation.error is not None


@pytest.mark.parametrize(("one", "other"), [("w0", "w1"), ("w1", "w4"), ("w0", "w4")])
def test_groups_that_are_wrong_only_together_leave_the_others_to_go(
    one: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Cutting.slices

    def wrong(self: Cutting, use: Use, values: np.ndarray) -> Iterator[np.ndarray]:
        gone = {group.name for group in self.units.groups if self.dead[group.units].any()}
        for found in right(self, use, values):
            yield found + 1 if use.name == one and {one, other} <= gone else found

    monkeypatch.setattr(Cutting, "slices", wrong)
    cut = cut_in(onnxprune.prune(chain(), **BARE))
    assert cut == {f"w{k}": 0 if f"w{k}" in (one, other) else 4 for k in range(LAYERS - 1)}


def test_calibration_that_can_be_read_once_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cut_wrongly(monkeypatch, {"w0"})
    feeds = iter([{"x": np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)}])
    result = onnxprune.prune(chain(), ratio=0.5, calibration=feeds)
    assert cut_in(result) == {"w0": 0, "w1": 4, "w2": 4, "w3": 4, "w4": 4}


def test_a_wrong_cut_of_everything_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cut_wrongly(monkeypatch, {f"w{k}" for k in range(LAYERS)})
    with pytest.raises(onnxprune.ValidationError, match="differs from the masked original"):
        onnxprune.prune(write(chain(), tmp_path), output=tmp_path / "small.onnx", **BARE)
    assert not (tmp_path / "small.onnx").exists()


def test_a_plan_is_replayed_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = onnxprune.prune(chain(), **BARE).plan
    cut_wrongly(monkeypatch, {"w2"})
    with pytest.raises(onnxprune.ValidationError):
        onnxprune.prune(chain(), apply=plan)
