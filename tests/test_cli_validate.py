"""`onnxprune validate` and `onnxprune gate` as commands: what they print, write, and end with."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from classifiers import RUINED, one_class_ruined
from click.testing import CliRunner, Result

from onnxprune.cli import cli
from onnxprune.reports import records
from onnxprune.reports.report import Comparison

MODELS = Path(__file__).parent.parent / "models"
BLOCKED = Path(__file__).parent / "fixtures" / "gate_must_block.json"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return one_class_ruined(tmp_path_factory.mktemp("ruined"))


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pruned") / "small.onnx"
    result = run(
        MODELS / "digits_mlp.onnx", "--ratio", 0.5, "--criterion", "l1", "--compensate", "none", "-o", path, "-q"
    )
    assert result.exit_code == 0, result.stderr
    return path


def test_three_checks_are_printed(pruned: Path) -> None:
    data = MODELS / "digits_test.npz"
    result = run("validate", MODELS / "digits_mlp.onnx", pruned, "--eval", data, "--labels", "labels")
    assert result.exit_code == 0, result.stderr
    for line in (
        "cut: exact: ",
        "outputs, on 'digits_test.npz':",
        "  top-1: ",
        "classes that lost most:",
        "nodes on CPU",
    ):
        assert line in result.stdout
    assert len([line for line in result.stdout.splitlines() if line.startswith("    class ")]) == 5


def test_every_class_is_printed_if_asked(pruned: Path) -> None:
    data = MODELS / "digits_test.npz"
    result = run("validate", MODELS / "digits_mlp.onnx", pruned, "--eval", data, "--labels", "labels", "-v")
    assert len([line for line in result.stdout.splitlines() if line.startswith("    class ")]) == 10
    assert "seconds: " in result.stdout


def test_without_data_or_plan_it_says_what_it_could_not_check(files: tuple[Path, Path, Path]) -> None:
    original, ruined, _ = files
    result = run("validate", original, ruined)
    assert result.exit_code == 0
    assert "cut: unknown: not checked: the pruned model remembers no plan" in result.stdout
    assert "made-up inputs (made up: real ones say more)" in result.stdout


def test_json_and_report_hold_the_same(pruned: Path, tmp_path: Path) -> None:
    path = tmp_path / "v.json"
    result = run("validate", MODELS / "digits_mlp.onnx", pruned, "--json", "--report", path)
    assert result.exit_code == 0
    found = records.read(path, Comparison)
    assert found.exactness.exact is True
    assert found.exactness.refitted == 0
    printed = json.loads(result.stdout)
    assert printed["exactness"] == json.loads(path.read_text())["exactness"]


def test_a_class_that_is_ruined_ends_with_1(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    original, ruined, data = files
    report = tmp_path / "v.json"
    common = ("validate", original, ruined, "--eval", data, "--labels", "labels", "--report", report, "-q")
    assert run(*common, "--max-drop", 5).exit_code == 0
    result = run(*common, "--max-drop", 5, "--max-class-drop", 20)
    assert result.exit_code == 1
    assert f"class {RUINED}" in result.stderr
    again = run("gate", report, "--max-drop", 5, "--max-class-drop", 20)
    assert again.exit_code == 1
    assert [line.split()[0] for line in again.stdout.splitlines()] == ["FAILED", "passed"]


def test_a_cut_that_is_not_its_plans_ends_with_1(pruned: Path, tmp_path: Path) -> None:
    model = onnx.load(pruned)
    weight = next(t for t in model.graph.initializer if len(t.dims) == 2)
    values = onnx.numpy_helper.to_array(weight)
    weight.CopyFrom(onnx.numpy_helper.from_array(values[:, ::-1].copy(), weight.name))
    onnx.save(model, tmp_path / "other.onnx")
    result = run("validate", MODELS / "digits_mlp.onnx", tmp_path / "other.onnx")
    assert result.exit_code == 1
    assert "cut: WRONG" in result.stdout
    assert "error: 1 of 1 limits failed" in result.stderr


def test_models_that_take_different_inputs(pruned: Path, files: tuple[Path, Path, Path]) -> None:
    result = run("validate", files[0], pruned)
    assert result.exit_code == 2
    assert "give a model and its pruned version" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (("--eval", "DATA"), 2, "--labels KEY"),
        (("--metric-script", "m.py:f"), 2, "needs labelled data"),
        (("--eval", "DATA", "--labels", "nothing"), 4, "no array 'nothing'"),
        (("--max-drop", "nan"), 2, "nan is no limit"),
        (("--min-cut", "40"), 2, "like 0.4 or 40%"),
        (("--report", "ORIGINAL"), 2, "--report"),
        (("--plan", "DATA"), 4, "no plan"),
    ],
)
def test_what_is_refused(files: tuple[Path, Path, Path], arguments: tuple[str, ...], code: int, complaint: str) -> None:
    named = {"DATA": str(files[2]), "ORIGINAL": str(files[0])}
    result = run("validate", *files[:2], *(named.get(a, a) for a in arguments))
    assert (result.exit_code, result.stderr.count("\n")) == (code, 1), result.stderr
    assert complaint in result.stderr


def test_a_limit_on_what_was_not_measured_ends_with_1(files: tuple[Path, Path, Path]) -> None:
    result = run("validate", *files[:2], "--max-drop", 5)
    assert result.exit_code == 1
    assert "no report tells of it" in result.stderr


def test_a_metric_of_ones_own_and_its_traceback(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    script = tmp_path / "m.py"
    script.write_text(
        "def hits(o, t):\n    return (o['y'].argmax(1) == t).mean()\n\ndef fails(o, t):\n    return 1 / 0\n"
    )
    common = ("validate", *files[:2], "--eval", files[2], "--labels", "labels", "--metric-script")
    result = run(*common, f"{script}:hits")
    assert result.exit_code == 0, result.stderr
    assert "hits: 0.9 before, 0.9 after, a drop of 0" in result.stdout
    failed = run(*common, f"{script}:fails")
    assert failed.exit_code == 4
    assert "return 1 / 0" in failed.stderr
    assert "error: script 'm.py', line 5: calling fails failed: ZeroDivisionError" in failed.stderr


# ---------------------------------------------------------------- gate
def test_the_fixture_that_must_block() -> None:
    result = run("gate", BLOCKED, "--max-drop", 10, "--max-error", 1, "--min-cut", "5%")
    assert result.exit_code == 1
    told = [line.split() for line in result.stdout.splitlines()]
    assert [words[0] for words in told] == ["FAILED"] * 4
    assert {words[1].rstrip(":") for words in told} == {"--max-drop", "--max-error", "--min-cut", "--exact"}
    assert result.stderr.startswith("error: 4 of 4 limits failed, the first: ")


def test_a_verdict_as_json() -> None:
    result = run("gate", BLOCKED, "--max-drop", 10, "--json")
    verdict = json.loads(result.stdout)
    assert (result.exit_code, verdict["kind"], verdict["passed"]) == (1, "gate", False)


def test_a_gate_without_limits_or_reports() -> None:
    assert run("gate", BLOCKED).exit_code == 2
    assert run("gate", "--max-drop", 1).exit_code == 2
    assert run("gate", "absent.json", "--max-drop", 1).exit_code == 4


def test_a_pruning_is_judged_by_its_report(tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    result = run(MODELS / "digits_mlp.onnx", "--ratio", 0.5, "--criterion", "l1", "--compensate", "none",
                 "-o", tmp_path / "p.onnx", "--report", report, "-q")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert run("gate", report, "--min-cut", "30%", "--max-size", "0.9", "--exact").exit_code == 0
    assert run("gate", report, "--min-cut", "99%").exit_code == 1
    assert run("gate", report, "--max-drop", 100).exit_code == 1
