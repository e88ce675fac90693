"""Options from a file: what is taken, what the command line puts aside, and what bad files get."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from onnxprune.cli import cli
from onnxprune.cli.prune import prune

MODEL = Path(__file__).parent.parent / "models" / "digits_mlp.onnx"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def options(*args: object) -> dict[str, object]:
    """Returns what `prune` is called with."""
    return prune.make_context(
        "prune", ["model.onnx", *map(str, args)], parent=cli.make_context("x", ["--help"], resilient_parsing=True)
    ).params


def test_a_file_sets_what_the_command_line_leaves_open(folder: Path) -> None:
    (folder / "onnxprune.toml").write_text(
        'ratio = 0.25\ncriterion = "l1"\nexclude = ["a*", "b"]\nno-validate = true\n'
    )
    found = options("--criterion", "l2")
    assert found["ratio"] == 0.25 and found["criterion"] == "l2"
    assert found["exclude"] == ("a*", "b") and found["validate"] is False


def test_a_table_of_a_command_wins_over_the_top(folder: Path) -> None:
    (folder / "onnxprune.toml").write_text("seed = 1\n[prune]\nseed = 2\n[inspect]\nseed = 3\n")
    assert options()["seed"] == 2


def test_pyproject_is_read_where_it_names_the_program(folder: Path) -> None:
    (folder / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert options()["ratio"] is None
    (folder / "pyproject.toml").write_text("[tool.onnxprune]\nratio = 0.3\n")
    assert options()["ratio"] == 0.3
    (folder / "onnxprune.toml").write_text("ratio = 0.4\n")
    assert options()["ratio"] == 0.4


def test_another_way_on_the_command_line_puts_the_file_aside(folder: Path) -> None:
    (folder / "onnxprune.toml").write_text("target = {macs = 0.5}\n")
    assert options()["targets"] == ("macs=0.5",)
    assert options("--ratio", "0.5")["targets"] == ()


def test_paths_are_relative_to_the_file(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "mine.toml").write_text('calib = "inputs.npz"\n')
    assert options("--config", "deep/mine.toml")["calibration"] == Path("deep/inputs.npz")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ratoi = 0.5", "did you mean ratio"),
        ("ratio = [0.5]", "give one value"),
        ('ratio = "half"', "not a valid float"),
        ("dry-run = 1", "give true or false"),
        ("[prune]\nbogus = 1", "no option"),
        ("prune = 3", "should be a table"),
        ("ratio = !!python/object:os.system", "not TOML"),
        ("ratio = 0.5\nratio = 0.6", "not TOML"),
        ("\x00\xff", "not TOML"),
        ("a = " + "[" * 100_000, "not TOML"),
        ("#" * (2 << 20), "larger than"),
    ],
)
def test_bad_files_are_usage_errors(folder: Path, text: str, says: str) -> None:
    (folder / "onnxprune.toml").write_bytes(text.encode("latin-1"))
    result = run(MODEL)
    assert result.exit_code == 2 and says in result.output and "onnxprune.toml" in result.output
    assert len(result.output.splitlines()) == 1


def test_a_named_file_has_to_be_there() -> None:
    result = run(MODEL, "--config", "none.toml", "--ratio", "0.5")
    assert result.exit_code == 2 and "none.toml" in result.output


def test_printed_options_are_a_file_that_means_the_same(folder: Path) -> None:
    first = run(MODEL, "--ratio", "0.5", "--exclude", 'a"\x7f', "--no-validate", "--print-config")
    assert first.exit_code == 0 and "ratio = 0.5  # command line" in first.stdout
    read = tomllib.loads(first.stdout)
    assert read["exclude"] == ['a"\x7f'] and read["no-validate"] is True
    (folder / "onnxprune.toml").write_text(first.stdout)
    again = run(MODEL, "--print-config")
    assert tomllib.loads(again.stdout) == read and "ratio = 0.5  # file" in again.stdout
    assert not list(folder.glob("*.onnx"))


def test_a_run_obeys_the_file(folder: Path) -> None:
    (folder / "onnxprune.toml").write_text(
        'ratio = 0.5\ncriterion = "l1"\ncompensate = "none"\noutput = "small.onnx"\n'
    )
    result = run(MODEL)
    assert result.exit_code == 0, result.output
    assert (folder / "small.onnx").stat().st_size < MODEL.stat().st_size
