"""What pipelines take from here: the example script, the action and the hook, run as far as they run locally."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
DATA = [ROOT / "models" / name for name in ("digits_resnet.onnx", "digits.npz", "digits_test.npz")]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Returns a PATH on which `onnxprune` is this program."""
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "onnxprune"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m onnxprune "$@"\n')
    script.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def run(command: list[Any], path: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_example_lets_good_models_through_and_blocks_others(tmp_path: Path, path: str) -> None:
    script = [ROOT / "examples" / "pipeline.sh", *DATA, tmp_path / "dist"]
    good = run([*script, "--max-drop", "3", "--min-cut", "0.45"], path)
    assert good.returncode == 0, good.stdout + good.stderr
    model = (tmp_path / "dist" / "digits_resnet.onnx").read_bytes()
    blocked = run([*script, "--max-drop", "0"], path, TARGET="macs=0.3")
    assert blocked.returncode == 1 and "max-drop" in blocked.stderr
    assert (tmp_path / "dist" / "digits_resnet.onnx").read_bytes() == model
    assert (tmp_path / "dist" / "failed" / "validate.json").exists()
    assert sorted(p.name for p in (tmp_path / "dist" / "failed").glob("*.onnx")) == []


def steps() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((ROOT / "action.yml").read_text())["runs"]["steps"]
    return found


def filled(step: dict[str, Any], inputs: dict[str, str], outputs: dict[str, str]) -> dict[str, str]:
    """Returns a step's variables as the runner fills them."""

    def value(found: re.Match[str]) -> str:
        kind, name = found[1].split(".")[0], found[1].split(".")[-1]
        return (inputs if kind == "inputs" else outputs)[name]

    return {key: re.sub(r"\$\{\{ *([\w.]+) *\}\}", value, text) for key, text in step.get("env", {}).items()}


@pytest.mark.slow
def test_the_action_prunes_and_gates(tmp_path: Path, path: str) -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    inputs = {name: each.get("default", "") for name, each in action["inputs"].items()}
    shutil.copy(DATA[0], tmp_path / "my model.onnx")
    inputs |= {
        "model": str(tmp_path / "my model.onnx"),
        "target": "macs=0.6 params=0.8",
        "calib": str(DATA[1]),
        "eval": str(DATA[2]),
        "options": "--allocation uniform",
        "limits": "--max-drop 3 --max-class-drop 15",
        "reports": str(tmp_path / "reports"),
    }
    told = tmp_path / "told"
    outputs: dict[str, str] = {}
    for step in steps()[1:]:
        files = {"GITHUB_OUTPUT": str(told), "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")}
        done = run(["bash", "-c", step["run"]], path, **files, **filled(step, inputs, outputs))
        assert done.returncode == 0, done.stdout + done.stderr
        outputs |= dict(line.split("=", 1) for line in told.read_text().splitlines())
    assert Path(outputs["model"]).name == "my model.pruned.onnx" and Path(outputs["model"]).exists()
    assert json.loads(Path(outputs["report"]).read_text())["macs"]["after"] > 0
    assert "MACs" in (tmp_path / "summary.md").read_text()


def test_inputs_of_the_action_never_stand_in_a_script() -> None:
    assert all("${{" not in step["run"] for step in steps())


def test_the_hook_is_a_command_that_is_there(path: str) -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert re.search(hook["files"], "models/a.onnxprune.json") and not re.search(hook["files"], "models/a.onnx")
    done = run([*hook["entry"].split(), "--help"], path)
    assert done.returncode == 0 and "--max-drop" in done.stdout
