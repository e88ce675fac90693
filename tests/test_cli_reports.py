"""Reports from the command: every format, the command in them, and the summary of a step."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hostile import sound, write

from onnxprune import cli
from onnxprune.reports.formats import SUMMARY
from onnxprune.reports.report import read

HALF = ("--ratio", "0.5", "--criterion", "l1", "--compensate", "none")


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(cli.cli, [str(arg) for arg in args])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(sound(), tmp_path)


def test_every_format_is_written_and_names_the_command(model: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"my report{ending}" for ending in (".json", ".html", ".md", ".xml")]
    done = run(model, *HALF, *(word for path in paths for word in ("--report", path)))
    assert done.exit_code == 0, done.stderr
    command = read(paths[0]).command
    assert command.startswith(f"onnxprune {model} --ratio 0.5 --criterion l1")
    assert f"'{paths[0]}'" in command
    for path, start in zip(paths[1:], ("<!doctype html>", "# onnxprune", "<?xml"), strict=True):
        text = path.read_text(encoding="utf-8")
        assert text.startswith(start)
        assert "--criterion l1" in text or path.suffix == ".xml"
    assert ET.parse(paths[3]).getroot().attrib["failures"] in ("0", "1")


def test_another_ending_is_refused(model: Path, tmp_path: Path) -> None:
    done = run(model, *HALF, "--report", tmp_path / "r.pdf")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "end it in .html or .json or .md or .xml" in done.stderr


def test_the_summary_of_a_step_is_written(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SUMMARY, str(tmp_path / "summary.md"))
    assert run(model, *HALF).exit_code == 0
    assert (tmp_path / "summary.md").read_text(encoding="utf-8").startswith("# onnxprune: pruning report of")


def test_validations_and_timings_are_written_too(model: Path, tmp_path: Path) -> None:
    assert run(model, *HALF, "-o", tmp_path / "small.onnx").exit_code == 0
    np.savez(tmp_path / "x.npz", x=np.zeros((8, 8), np.float32))
    assert run("inspect", model, "--report", tmp_path / "i.md").exit_code == 0
    assert (tmp_path / "i.md").read_text(encoding="utf-8").startswith("# onnxprune: inspection of model.onnx")
    for command, *more in (("validate", "--calib", tmp_path / "x.npz"), ("bench", "--rounds", "6")):
        page = tmp_path / f"{command}.html"
        done = run(command, model, tmp_path / "small.onnx", *more, "--report", page)
        assert done.exit_code == 0, done.stderr
        assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_verdict_is_a_test_of_the_pipeline(model: Path, tmp_path: Path) -> None:
    report, verdict = tmp_path / "r.json", tmp_path / "verdict.xml"
    assert run(model, *HALF, "--report", report).exit_code == 0
    for least, code, failures in (("0.1", 0, "0"), ("0.99", 1, "1")):
        assert run("gate", report, "--min-cut", least, "--report", verdict).exit_code == code
        assert ET.parse(verdict).getroot().attrib["failures"] == failures
    assert run("gate", report, "--min-cut", "0.1", "--report", report).exit_code == 2
    assert read(report).macs.after
