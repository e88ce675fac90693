"""What a pruning says of its own result: on which inputs, with which noise, and when it refuses."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from classifiers import scores_as_inputs

import onnxprune
from onnxprune.clock import Clock
from onnxprune.engine.cut import cut
from onnxprune.engine.cutting import Cutting
from onnxprune.engine.sizes import rewrite_sizes
from onnxprune.engine.units import find_units
from onnxprune.errors import ModelError, RunError, ValidationError
from onnxprune.graph.model import load
from onnxprune.graph.running import CPU
from onnxprune.proof import validation
from onnxprune.proof.validation import Judge, difference
from onnxprune.reports.report import Validation
from onnxprune.subject import coupled

MODELS = Path(__file__).parent.parent / "models"
MLP, INPUTS, TEST = MODELS / "digits_mlp.onnx", MODELS / "digits.npz", MODELS / "digits_test.npz"


def validated(**options: Any) -> Validation:
    found = onnxprune.prune(MLP, ratio=0.3, criterion="l1", samples=64, **options).report.validation
    assert found is not None
    return found


def test_it_says_which_inputs_fidelity_was_measured_on() -> None:
    found = validated()
    assert (found.inputs, found.made_up, found.held_out) == ("made-up inputs", True, True)
    assert found.fidelity[0].samples == 64
    found = validated(calibration=INPUTS)
    assert "digits.npz" in found.inputs
    assert (found.made_up, found.held_out) == (False, False)
    found = validated(calibration=INPUTS, evaluate=TEST, labels="labels")
    assert "digits_test.npz" in found.inputs
    assert (found.made_up, found.held_out) == (False, True)
    assert found.fidelity[0].samples == 256
    assert found.fidelity[0].intervals


def judge_of(**options: Any) -> tuple[Judge, ir.Model]:
    source = load(MLP)
    coupling = coupled(source, False, 0, (CPU,), Clock(None))
    units = find_units(coupling)
    cutting = Cutting(units, units.groups[0].units[:5])
    return Judge(source, cutting, (CPU,), 0, **options), cut(cutting, rewrite_sizes(cutting))


def test_a_true_cut_passes() -> None:
    judge, pruned = judge_of()
    found = judge.judge(pruned)
    assert found.error is not None
    assert found.error <= found.tolerance
    assert (found.noise, found.placement) == (None, ())


def test_the_original_is_run_as_its_file_stands() -> None:
    judge, pruned = judge_of()
    in_memory = replace(judge, original=replace(judge.original, path=None))
    as_loaded = [judge.judge(pruned).fidelity[0], in_memory.judge(pruned).fidelity[0]]
    spoil(judge.original.model, 3)  # in memory only
    by_file, by_memory = judge.judge(pruned).fidelity[0], in_memory.judge(pruned).fidelity[0]
    assert as_loaded == [by_file, by_file]
    assert by_memory != by_file


@pytest.mark.parametrize("written", [True, False])
@pytest.mark.parametrize("replaced", [True, False])
def test_an_original_that_changes_on_the_way_is_refused(tmp_path: Path, written: bool, replaced: bool) -> None:
    path, output = tmp_path / "m.onnx", tmp_path / "out.onnx"
    shutil.copy(MLP, path)

    def meddle(stage: str) -> None:
        if stage.startswith("plan"):
            path.unlink(missing_ok=True)
            if replaced:
                shutil.copy(MLP, path)

    with pytest.raises(ModelError, match="was changed while it was in use"):
        onnxprune.prune(path, ratio=0.5, compensate="none", output=output if written else None, progress=meddle)
    assert not output.exists()


def spoil(model: ir.Model, factor: float) -> None:
    name, value = next((n, v) for n, v in model.graph.initializers.items() if v.shape is not None and len(v.shape) == 2)
    assert value.const_value is not None
    value.const_value = ir.Tensor(value.const_value.numpy() * np.float32(factor), name=name)


def test_a_wrong_one_is_refused() -> None:
    judge, pruned = judge_of()
    spoil(pruned, 1.5)
    with pytest.raises(ValidationError, match="differs from the masked original"):
        judge.judge(pruned)


def test_the_noise_of_the_provider_is_within_the_tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "noise_floor", lambda *_: 0.05)
    judge, pruned = judge_of()
    spoil(pruned, 1.05)
    found = judge.judge(pruned)
    assert found.noise == 0.05
    assert found.error is not None
    assert 1e-3 < found.error <= found.tolerance == 0.25


def test_noise_is_measured_before_the_pruned_model_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    real = validation.Runner

    def opened(*arguments: Any, **options: Any) -> Any:
        order.append("session")
        return real(*arguments, **options)

    monkeypatch.setattr(validation, "noise_floor", lambda *_: order.append("noise"))
    monkeypatch.setattr(validation, "Runner", opened)
    judge, pruned = judge_of()
    judge.judge(pruned)
    assert order == ["session", "noise", "session"]  # of the original, then of the pruned model


def test_an_approximate_cut_is_compared_with_nothing() -> None:
    judge, pruned = judge_of(exact=False)
    assert judge.judge(pruned).error is None


def test_an_original_that_does_not_run_is_not_blamed_on_the_pruned_model(monkeypatch: pytest.MonkeyPatch) -> None:
    judge, pruned = judge_of()
    judge.feeds[0]["input"] = np.zeros((1, 3), np.float32)
    with pytest.raises(ModelError, match="on inputs of its declared types the model does not run"):
        judge.judge(pruned)


def test_a_masked_original_that_does_not_run_is_not_blamed_on_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise RunError("no")

    judge, pruned = judge_of()
    monkeypatch.setattr(validation, "run_all", fails)
    with pytest.raises(ValidationError, match="the pruned model does not run"):
        judge.judge(pruned)


# ---------------------------------------------------------------- the largest difference
@pytest.mark.parametrize(
    ("expected", "found", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.0], [1.0, 2.1], 0.05),
        ([0.0, 0.0], [0.0, 1e-6], 1e-3),  # nothing is divided by less than a thousandth
        ([1.0, 2.0], [1.0, np.nan], np.inf),
        ([1.0, np.inf], [1.0, np.inf], np.inf),
    ],
)
def test_differences(expected: list[float], found: list[float], error: float) -> None:
    original = {"y": np.array([1.0, 2.0])}
    one, other = {"y": np.array(expected)}, {"y": np.array(found)}
    assert difference(one, other, original) == pytest.approx(error)


def test_nothing_is_asked_where_the_original_is_not_finite() -> None:
    original = {"y": np.array([1.0, np.nan])}
    assert difference({"y": np.array([1.0, 5.0])}, {"y": np.array([1.0, np.inf])}, original) == 0


def test_another_shape_is_as_wrong_as_can_be() -> None:
    one = {"y": np.zeros((2, 3))}
    assert difference(one, {"y": np.zeros((3, 2))}, one) == np.inf


def test_models_as_small_as_they_come() -> None:
    found = onnxprune.validate(scores_as_inputs(4), scores_as_inputs(4))
    assert found.validation.fidelity[0].relative_error == 0
    assert found.exactness.exact is None
