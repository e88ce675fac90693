from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner, Result
from hostile import model_of, sound, tensor
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

import onnxprune
from onnxprune import cli
from onnxprune.errors import DataError, ModelError
from onnxprune.plan import Plan, PlannedGroup, PlannedTensor
from onnxprune.reports import history
from onnxprune.reports.report import Count

MODELS = Path(__file__).resolve().parent.parent / "models"
ON_WEIGHTS: dict[str, Any] = {"criterion": "l1", "compensate": "none"}


def perceptron() -> onnx.ModelProto:
    """Returns a model with two groups of 64 units and metadata of its own."""
    nodes = [
        helper.make_node("Gemm", ["x", "w1"], ["h"], "first"),
        helper.make_node("Relu", ["h"], ["r"], "act"),
        helper.make_node("Gemm", ["r", "w2"], ["i"], "second"),
        helper.make_node("Relu", ["i"], ["s"], "act2"),
        helper.make_node("Gemm", ["s", "w3"], ["y"], "third"),
    ]
    model = model_of(nodes, [tensor("w1", 8, 64), tensor("w2", 64, 64, seed=2), tensor("w3", 64, 4, seed=3)])
    for key, value in (("zebra", "z"), ("author", "me"), ("zebra", "again"), ("onnxprune", "not ours")):
        model.metadata_props.add(key=key, value=value)
    return model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "a model.onnx"
    onnx.save(perceptron(), path)
    return path


def entries(path: Path) -> list[tuple[str, str]]:
    return [(entry.key, entry.value) for entry in onnx.load(path).metadata_props]


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(cli.cli, [str(arg) for arg in args])


def plan(**changes: Any) -> Plan:
    groups = (PlannedGroup("g", 20, (1, 2, 19)), PlannedGroup("none", 3, ()))
    kept = tuple(k for k in range(20) if k not in (1, 2, 19))
    tensors = (PlannedTensor("w", 3, 1, (20, 7), {"0": kept}), PlannedTensor("v", 4, 1, (5, 20), {"1": kept}))
    values: dict[str, Any] = {
        "model": "ab" * 32, "approximate": False, "frozen": (4,), "groups": groups, "tensors": tensors,
        "options": {"ratio": 0.5, "include": ["a*"]},
    }  # fmt: skip
    return Plan(**{**values, **changes})


def remembered(*plans: Plan) -> dict[str, str]:
    metadata: dict[str, str] = {}
    for each in plans:
        history.append(metadata, each, tool="0.1.0", macs=Count(10, 5), params=Count(8, 4), size=100)
    return metadata


# -------------------------------------------------------------------------------------------------- entries
def test_a_plan_comes_back_as_it_was() -> None:
    metadata = remembered(plan(), plan(frozen=()))
    assert list(metadata) == ["onnxprune.history.1", "onnxprune.history.2"]
    assert history.plan_of(metadata, 1).to_json() == plan().to_json()
    assert history.plan_of(metadata, 2).to_json() == plan(frozen=()).to_json()


@given(st.data())
def test_any_plan_comes_back(data: st.DataObject) -> None:
    groups, tensors = [], []
    for k in range(data.draw(st.integers(0, 4))):
        count = data.draw(st.integers(1, 70))
        cut = data.draw(st.sets(st.integers(0, count - 1)))
        name = data.draw(st.text(max_size=5))
        groups.append(PlannedGroup(name, count, tuple(sorted(cut))))
        kept = tuple(sorted(set(range(count)) - cut))
        tensors.append(PlannedTensor(name, k, 1, (count, 1, count), {"0": kept, "2": tuple(sorted(cut))}))
    given = plan(groups=tuple(groups), tensors=tuple(tensors))
    assert history.plan_of(remembered(given), 1).to_json() == given.to_json()


def test_a_step_tells_what_was_done() -> None:
    (step,) = history.steps(remembered(plan()))
    assert (step.number, step.tool, step.sha256, step.bytes) == (1, "0.1.0", "ab" * 32, 100)
    assert (step.macs, step.params, step.units) == (Count(10, 5), Count(8, 4), Count(23, 20))
    assert step.options == {"ratio": 0.5, "include": ["a*"]}
    assert step.has_plan


def test_equal_masks_are_written_once() -> None:
    (entry,) = remembered(plan()).values()
    assert len(json.loads(entry)["plan"]["masks"]) == 3  # cut, nothing cut, kept


def test_a_large_plan_is_left_out_and_the_rest_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "_MOST", 1000)
    metadata = remembered(plan(), plan(), plan(options={"include": ["x" * 10_000]}))
    found = history.steps(metadata)
    assert [step.has_plan for step in found] == [True, False, False]
    assert [step.options for step in found] == [plan().options, plan().options, {}]
    assert sum(map(len, metadata.values())) < 1500
    with pytest.raises(DataError, match="kept no plan"):
        history.plan_of(metadata, 2)


def test_a_million_units_stay_below_the_limit() -> None:
    metadata = remembered(plan(groups=(PlannedGroup("g", 1 << 20, tuple(range(0, 1 << 20, 2))),), tensors=()))
    assert history.steps(metadata)[0].has_plan
    assert sum(map(len, metadata.values())) < 200_000


@pytest.mark.parametrize(
    "change",
    [
        lambda e: [],
        lambda e: 3,
        lambda e: {**e, "version": 2},
        lambda e: {**e, "macs": [1]},
        lambda e: {**e, "macs": ["many", 3]},
        lambda e: {**e, "bytes": float("inf")},
        lambda e: {**e, "options": 3},
        lambda e: {k: v for k, v in e.items() if k != "plan"},
    ],
)
def test_damaged_entries_are_refused(change: Callable[[dict[str, Any]], Any]) -> None:
    entry = json.loads(remembered(plan())["onnxprune.history.1"])
    for text in (json.dumps(change(entry)), "[" * 100_000, "", "nul", "9" * 5000):
        with pytest.raises(ModelError, match="step 1 of the model's history cannot be read"):
            history.steps({"onnxprune.history.1": text})


BOMB = base64.b64encode(bytes([255]) * (1 << 18)).decode()


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.update(masks=["A", "A", "A"]),
        lambda p: p.update(masks=p["masks"][:1]),
        lambda p: p["groups"][0].update(units=-1),
        lambda p: p["groups"][0].update(units=1 << 60),
        lambda p: p["groups"][0].update(cut="a"),
        lambda p: p["tensors"][0].update(shape=[]),
        lambda p: p["tensors"][0].update(kept=[0]),
        lambda p: p.update(onnxprune_plan=9),
        lambda p: p.update(masks=[BOMB], tensors=[], groups=[{"name": "", "units": 1 << 21, "cut": 0}] * 10_000),
    ],
)
def test_damaged_plans_are_refused(change: Callable[[dict[str, Any]], None]) -> None:
    entry = json.loads(remembered(plan())["onnxprune.history.1"])
    change(entry["plan"])
    with pytest.raises(ModelError, match="step 1 of the model's history cannot be read"):
        history.plan_of({"onnxprune.history.1": json.dumps(entry)}, 1)


def test_an_entry_of_many_megabytes_is_not_read() -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        history.steps({"onnxprune.history.1": '"' + "x" * (1 << 23) + '"'})


def test_entries_after_a_gap_are_not_ours() -> None:
    metadata = {"onnxprune.history.3": "nonsense", **remembered(plan())}
    assert len(history.steps(metadata)) == 1


# -------------------------------------------------------------------------------------------------- models
def test_pruning_adds_one_entry_and_touches_no_other(model: Path, tmp_path: Path) -> None:
    before = entries(model)
    onnxprune.prune(model, ratio=0.5, output=tmp_path / "1.onnx", **ON_WEIGHTS)
    once = entries(tmp_path / "1.onnx")
    assert once[:-1] == before
    assert once[-1][0] == "onnxprune.history.1"
    onnxprune.prune(tmp_path / "1.onnx", ratio=0.25, output=tmp_path / "2.onnx", **ON_WEIGHTS)
    twice = entries(tmp_path / "2.onnx")
    assert twice[:-1] == once
    assert twice[-1][0] == "onnxprune.history.2"
    assert str(tmp_path) not in onnx.load(tmp_path / "2.onnx").SerializeToString().decode("latin-1")


def test_each_step_replays_bit_for_bit(model: Path, tmp_path: Path) -> None:
    first = onnxprune.prune(model, ratio=0.5, output=tmp_path / "1.onnx", **ON_WEIGHTS)
    second = onnxprune.prune(tmp_path / "1.onnx", target={"macs": 0.5}, output=tmp_path / "2.onnx", **ON_WEIGHTS)
    found, metadata = history.read(tmp_path / "2.onnx")
    assert [step.macs for step in found.steps] == [first.report.macs, second.report.macs]
    assert [step.params for step in found.steps] == [first.report.params, second.report.params]
    assert [step.sha256 for step in found.steps] == [first.report.sha256, second.report.sha256]
    assert found.sha256 != second.report.sha256
    for number, result, source in ((1, first, model), (2, second, tmp_path / "1.onnx")):
        kept = history.plan_of(metadata, number)
        assert kept.to_json() == result.plan.to_json()
        again = onnxprune.prune(source, apply=kept, output=tmp_path / "again.onnx")
        assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / f"{number}.onnx").read_bytes()
        assert again.plan.to_json() == kept.to_json()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "mobilenet", "lstm"])
def test_a_choice_that_data_made_replays_bit_for_bit(name: str, tmp_path: Path) -> None:
    source, data = MODELS / f"digits_{name}.onnx", MODELS / "digits.npz"
    result = onnxprune.prune(source, ratio=0.4, calibration=data, samples=128, output=tmp_path / "once.onnx")
    onnxprune.prune(source, apply=result.plan, calibration=data, samples=128, output=tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "once.onnx").read_bytes()


def test_a_copy_in_another_place_gives_the_same_bytes(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "folder" / "other.onnx"
    other.parent.mkdir()
    other.write_bytes(model.read_bytes())
    for k, path in enumerate((model, other)):
        onnxprune.prune(path, ratio=0.5, output=tmp_path / f"{k}.onnx", **ON_WEIGHTS)
    assert (tmp_path / "0.onnx").read_bytes() == (tmp_path / "1.onnx").read_bytes()


def test_the_data_are_named_without_their_folder(model: Path, tmp_path: Path) -> None:
    import numpy as np

    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32))
    onnxprune.prune(model, ratio=0.5, calibration=tmp_path / "data.npz", output=tmp_path / "1.onnx")
    (step,) = history.read(tmp_path / "1.onnx")[0].steps
    assert "data.npz" in step.data
    assert step.samples == 64
    assert str(tmp_path) not in entries(tmp_path / "1.onnx")[-1][1]


def test_what_cuts_nothing_adds_nothing(model: Path, tmp_path: Path) -> None:
    onnxprune.prune(model, ratio=0, output=tmp_path / "0.onnx", **ON_WEIGHTS)
    assert entries(tmp_path / "0.onnx") == entries(model)


def test_models_in_memory_remember_too() -> None:
    result = onnxprune.prune(perceptron(), ratio=0.5, **ON_WEIGHTS)
    assert len(history.steps(result.model.metadata_props)) == 1


# -------------------------------------------------------------------------------------------------- command
def test_the_command_shows_the_steps(model: Path, tmp_path: Path) -> None:
    files = ("-o", tmp_path / "1.onnx", "--plan", tmp_path / "plan.json")
    assert run(model, "--ratio", "0.5", "--criterion", "l1", "--compensate", "none", *files).exit_code == 0
    shown = run("history", tmp_path / "1.onnx")
    assert shown.exit_code == 0
    assert "step 1: onnxprune" in shown.stdout
    assert "--ratio 0.5" in shown.stdout
    assert "64 of 128 units cut" in shown.stdout
    values = json.loads(run("history", tmp_path / "1.onnx", "--json").stdout)
    assert (values["version"], values["kind"], len(values["steps"])) == (1, "history", 1)
    assert run("history", tmp_path / "1.onnx", "--plan", tmp_path / "again.json").exit_code == 0
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "plan.json").read_bytes()
    assert "remembers no pruning" in run("history", model).stdout


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("--plan", "p.json"), 4, "there is no step 0: the model remembers 0"),
        (("--plan", "p.json", "--step", "7"), 4, "there is no step 7"),
        (("--step", "1"), 2, "--plan"),
        (("--plan", "m.onnx"), 2, "is the model"),
        (("--plan", "none/p.json"), 4, "no step"),
    ],
)
def test_what_cannot_be_shown_is_said(
    args: tuple[str, ...], code: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(sound(), "m.onnx")
    before = Path("m.onnx").read_bytes()
    found = run("history", "m.onnx", *args)
    assert (found.exit_code, found.stdout) == (code, "")
    assert says in found.stderr
    assert Path("m.onnx").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_no_model_is_said() -> None:
    assert run("history", "none.onnx").exit_code == 2


def test_no_name_in_a_history_steers_a_terminal(tmp_path: Path) -> None:
    evil = "\x1b[31m\n::error::x\u202e"
    metadata: dict[str, str] = {}
    figures = {"macs": Count(1, 1), "params": Count(1, 1), "size": 1}
    history.append(metadata, plan(options={"include": [evil], evil: evil}), tool=evil, data=evil, **figures)
    model = sound()
    helper.set_model_props(model, metadata)
    onnx.save(model, tmp_path / "m.onnx")
    shown = run("history", tmp_path / "m.onnx").stdout
    assert all(c == "\n" or c.isprintable() for c in shown)
    assert not any(line.startswith("::") for line in shown.splitlines())
