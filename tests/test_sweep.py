"""Trade-off curves and the smallest model that loses little: what is shared is measured once, what was done stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from hostile import model_of, tensor, write
from onnx import helper

import onnxprune
from onnxprune import cli, study
from onnxprune.allocation import weighing
from onnxprune.errors import NothingToPruneError, TargetError, UsageError
from onnxprune.plan import Plan
from onnxprune.reports.curve import FILE, Sweep
from onnxprune.reports.records import read
from onnxprune.reports.tradeoff_view import chart, columns, rows
from onnxprune.tradeoff import sweep

TARGETS = ["macs=0.8", "macs=0.5", "macs=0.3"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    nodes = [
        helper.make_node("Gemm", ["x", "w1"], ["h"], "first"),
        helper.make_node("Relu", ["h"], ["r"], "act"),
        helper.make_node("Gemm", ["r", "w2"], ["s"], "second"),
        helper.make_node("Relu", ["s"], ["t"], "act2"),
        helper.make_node("Gemm", ["t", "w3"], ["y"], "third"),
    ]
    weights = [tensor("w1", 8, 32), tensor("w2", 32, 24, seed=2), tensor("w3", 24, 4, seed=3)]
    return write(model_of(nodes, weights), tmp_path)


@pytest.fixture
def inputs(model: Path) -> dict[str, np.ndarray]:
    (width,) = (i.type.tensor_type.shape.dim[1].dim_value for i in onnx.load(model).graph.input)
    return {"x": np.random.default_rng(5).normal(size=(64, width)).astype(np.float32)}


@pytest.fixture
def labelled(model: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns inputs labelled with what the model says of most of them."""
    import onnxruntime as ort

    (scores,) = ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, inputs)
    labels = scores.argmax(axis=1)
    labels[::8] = (labels[::8] + 1) % scores.shape[1]
    return {**inputs, "labels": labels}


def calls(monkeypatch: pytest.MonkeyPatch, where: Any, name: str) -> list[str]:
    """Returns a list that grows with each call of a function."""
    found: list[str] = []
    original = getattr(where, name)

    def counted(*args: Any, **extra: Any) -> Any:
        found.append(name)
        return original(*args, **extra)

    monkeypatch.setattr(where, name, counted)
    return found


# -------------------------------------------------------------------------------------------------- sweeps
def test_a_sweep_measures_once_and_cuts_to_every_target(
    model: Path, inputs: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, refitted = calls(monkeypatch, study, "measure"), calls(monkeypatch, study, "mend")
    found = sweep(model, TARGETS, tmp_path / "out", calibration=inputs)
    assert len(measured) == 1
    assert len(refitted) <= 2 * len(TARGETS)  # of the two ways that are compared the better one serves as it is
    assert [point.target for point in found.points] == TARGETS
    for point, share in zip(found.points, (0.8, 0.5, 0.3), strict=True):
        assert 0.9 * share <= point.macs / found.macs <= share
        assert 0 < point.params < found.params
        assert point.top1 is None
        assert point.divergence > 0
    assert [p.size for p in found.points] == sorted((p.size for p in found.points), reverse=True)
    assert found.points[0].divergence < found.points[-1].divergence
    assert read(tmp_path / "out" / FILE, Sweep).points == found.points


def test_the_plan_of_a_point_makes_the_model_that_was_measured(
    model: Path, inputs: dict[str, np.ndarray], tmp_path: Path
) -> None:
    found = sweep(model, TARGETS[:2], tmp_path / "out", calibration=inputs, models=True)
    for point in found.points:
        again = tmp_path / "again.onnx"
        result = onnxprune.prune(model, apply=tmp_path / "out" / point.plan, calibration=inputs, output=again)
        written = tmp_path / "out" / point.output
        assert again.read_bytes() == written.read_bytes()
        assert (result.report.macs.after, again.stat().st_size) == (point.macs, point.size)


def test_the_order_of_targets_changes_nothing(model: Path, inputs: dict[str, np.ndarray], tmp_path: Path) -> None:
    one = sweep(model, TARGETS, tmp_path / "one", calibration=inputs)
    other = sweep(model, TARGETS[::-1], tmp_path / "other", calibration=inputs, jobs=3)
    assert {p.target: p for p in one.points} == {p.target: p for p in other.points}
    for point in one.points:
        assert (tmp_path / "one" / point.plan).read_bytes() == (tmp_path / "other" / point.plan).read_bytes()


def test_a_sweep_that_was_ended_goes_on(
    model: Path, inputs: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sweep(model, TARGETS, tmp_path / "whole", calibration=inputs)
    finished = weighing.written_size

    def interrupted(*args: Any, **extra: Any) -> int:
        if (tmp_path / "out" / FILE).exists():
            raise KeyboardInterrupt
        return finished(*args, **extra)

    monkeypatch.setattr(weighing, "written_size", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep(model, TARGETS, tmp_path / "out", calibration=inputs)
    monkeypatch.setattr(weighing, "written_size", finished)
    assert [p.target for p in read(tmp_path / "out" / FILE, Sweep).points] == TARGETS[:1]
    measured, refitted = calls(monkeypatch, study, "measure"), calls(monkeypatch, study, "mend")
    found = sweep(model, TARGETS, tmp_path / "out", calibration=inputs)
    assert len(measured) == 0
    assert 0 < len(refitted) <= 2 * (len(TARGETS) - 1)
    assert found.points == whole.points


def test_a_lost_plan_is_made_again(model: Path, inputs: dict[str, np.ndarray], tmp_path: Path) -> None:
    first = sweep(model, TARGETS[:2], tmp_path / "out", calibration=inputs)
    plan = tmp_path / "out" / first.points[0].plan
    kept = plan.read_bytes()
    plan.write_text("damaged")
    sweep(model, TARGETS[:2], tmp_path / "out", calibration=inputs)
    assert plan.read_bytes() == kept
    assert Plan.load(plan).model == first.sha256


@pytest.mark.parametrize("what", ["options", "data", "model"])
def test_the_folder_of_another_sweep_is_refused(
    what: str, model: Path, inputs: dict[str, np.ndarray], tmp_path: Path
) -> None:
    sweep(model, TARGETS[:1], tmp_path / "out", calibration=inputs)
    before = (tmp_path / "out" / FILE).read_bytes()
    more: dict[str, Any] = {"calibration": inputs}
    if what == "options":
        more["seed"] = 1
    elif what == "data":
        more["calibration"] = {"x": inputs["x"] + 1}
    else:
        proto = onnx.load(model)
        proto.doc_string = "another"
        onnx.save(proto, model)
    with pytest.raises(UsageError, match=f"a sweep of (an)?other {what}"):
        sweep(model, TARGETS[:1], tmp_path / "out", **more)
    assert (tmp_path / "out" / FILE).read_bytes() == before


def test_a_folder_with_another_file_of_that_name_is_refused(
    model: Path, inputs: dict[str, np.ndarray], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / FILE).write_text("{}")
    with pytest.raises(UsageError, match="no sweep to go on with"):
        sweep(model, TARGETS, tmp_path / "out", calibration=inputs)
    assert (tmp_path / "out" / FILE).read_text() == "{}"


def test_targets_out_of_reach_are_told_and_do_not_end_the_sweep(
    model: Path, inputs: dict[str, np.ndarray], tmp_path: Path
) -> None:
    found = sweep(model, ["macs=0.0001", "macs=0.5"], tmp_path / "out", calibration=inputs)
    assert "out of reach" in found.points[0].error
    assert not found.points[1].error
    with pytest.raises(TargetError, match="out of reach"):
        sweep(model, ["macs=0.0001"], tmp_path / "none", calibration=inputs)


def test_a_sweep_on_labelled_data_has_top1(
    model: Path, inputs: dict[str, np.ndarray], labelled: dict[str, np.ndarray], tmp_path: Path
) -> None:
    found = sweep(model, TARGETS[:1], tmp_path / "out", calibration=inputs, evaluate=labelled, labels="labels")
    assert found.top1 == pytest.approx(87.5)
    assert found.points[0].top1 is not None
    assert 0 <= found.points[0].top1 <= 100
    assert "top-1 %" in columns(found)
    assert all(len(row) == len(columns(found)) for row in rows(found))
    assert "top-1" in chart(found)


def test_no_targets_are_a_usage_error(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="targets"):
        sweep(model, [], tmp_path / "out")


# -------------------------------------------------------------------------------------------------- the command
def run(*args: str | Path) -> Any:
    return CliRunner().invoke(cli.cli, [str(arg) for arg in args])


def test_the_command_writes_a_table_and_a_chart(model: Path, inputs: dict[str, np.ndarray], tmp_path: Path) -> None:
    np.savez(tmp_path / "calib.npz", **inputs)
    found = run("sweep", model, "--calib", tmp_path / "calib.npz", "--targets", "macs=0.8,0.5")
    assert found.exit_code == 0, found.stderr
    assert "macs=0.8" in found.stdout
    assert "plans/macs-0.5.json" in found.stdout
    folder = tmp_path / "model.sweep"
    assert {"plans", FILE, "sweep.svg"} <= {path.name for path in folder.iterdir()}
    assert (folder / "sweep.svg").read_text().startswith("<svg")
    again = run("sweep", model, "--calib", tmp_path / "calib.npz", "--targets", "macs=0.8,0.5", "--json")
    assert json.loads(again.stdout)["points"][0]["target"] == "macs=0.8"


@pytest.mark.parametrize("text", ["macs", "macs=", "width=0.5", "macs=2"])
def test_the_command_refuses_what_are_no_targets(text: str, model: Path) -> None:
    found = run("sweep", model, "--targets", text)
    assert (found.exit_code, found.stdout) == (2, "")
    assert "target" in found.stderr


# -------------------------------------------------------------------------------------------------- the smallest model
def test_the_smallest_model_loses_no_more_than_was_allowed(model: Path, inputs: dict[str, np.ndarray]) -> None:
    """The loss that counts is that on inputs which no weight was refitted on."""
    small = onnxprune.prune(model, max_drop=0.05, calibration=inputs, validate=False)
    large = onnxprune.prune(model, max_drop=0.001, calibration=inputs, validate=False)
    assert small.report.macs.after < large.report.macs.after < small.report.macs.before
    (note,) = (note for note in small.report.notes if note.startswith("max-drop"))
    tried = dict(map(float, pair.split(": ")) for pair in note.rpartition("): ")[2].split(", "))  # type: ignore[misc]
    share = min(share for share, loss in tried.items() if loss <= 0.05)
    assert small.report.macs.ratio == pytest.approx(share, abs=0.01)
    assert any(loss > 0.05 and other < share for other, loss in tried.items())


def test_the_smallest_model_on_labelled_data(
    model: Path, inputs: dict[str, np.ndarray], labelled: dict[str, np.ndarray]
) -> None:
    found = onnxprune.prune(
        model, max_drop=5, calibration=inputs, evaluate=labelled, labels="labels", validate=False
    ).report
    assert found.task is not None
    assert found.task.top1.drop <= 5
    assert found.macs.after < found.macs.before


def test_a_replay_of_the_smallest_model_is_the_same(model: Path, inputs: dict[str, np.ndarray], tmp_path: Path) -> None:
    one, two = tmp_path / "one.onnx", tmp_path / "two.onnx"
    found = onnxprune.prune(model, max_drop=0.05, calibration=inputs, output=one)
    onnxprune.prune(model, apply=found.plan, calibration=inputs, output=two)
    assert one.read_bytes() == two.read_bytes()


def test_a_loss_that_no_cut_keeps_is_out_of_reach(model: Path, inputs: dict[str, np.ndarray]) -> None:
    with pytest.raises(TargetError, match="no cut loses so little"):
        onnxprune.prune(model, max_drop=0.0, calibration=inputs)


def test_nothing_to_prune_is_told(model: Path, inputs: dict[str, np.ndarray]) -> None:
    with pytest.raises(NothingToPruneError, match="--include"):
        onnxprune.prune(model, max_drop=1.0, include=["nothing"], calibration=inputs)


@pytest.mark.parametrize("drop", [-1.0, float("nan"), float("inf")])
def test_a_loss_that_is_none_is_refused(drop: float, model: Path) -> None:
    with pytest.raises(UsageError, match="max-drop"):
        onnxprune.prune(model, max_drop=drop)


def test_labelled_data_need_both_halves(model: Path) -> None:
    with pytest.raises(UsageError, match="--labels"):
        onnxprune.prune(model, ratio=0.5, evaluate={"x": np.zeros((1, 8))})
