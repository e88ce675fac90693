"""Every kind of trouble that the tests know of, by its number, with the test that shows what comes of it.

The corpus in `hostile.py` covers most kinds; here are those that need more than a file and a command, and the table.
"""

from __future__ import annotations

import ast
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from hostile import corpus
from onnx import numpy_helper

from onnxprune.cli import cli
from onnxprune.errors import ProviderError
from onnxprune.graph import runtime

HERE = Path(__file__).parent
CALIBRATION, SCRIPT, COMMAND = "test_calibration.py", "test_calibration_script.py", "test_cli.py"

ELSEWHERE: dict[int, tuple[str, ...]] = {
    29: ("ops/test_quantized.py::test_a_cut_is_exact", "test_writing.py::test_types_beyond_numpy_survive"),
    34: (f"{COMMAND}::test_a_ratio_that_is_none",),
    35: (f"{COMMAND}::test_options_that_make_no_sense",),
    37: ("test_writing.py::test_harmful_output_is_refused",),
    38: (
        f"{COMMAND}::test_a_full_disk_leaves_the_old_file",
        f"{COMMAND}::test_a_folder_that_may_not_be_written",
        "test_writing.py::test_failure_leaves_everything_as_it_was",
    ),
    39: ("test_killed.py::test_row_39_a_run_that_is_killed_leaves_the_old_model_or_the_new_one",),
    40: ("test_killed.py::test_row_40_of_two_runs_to_one_output_one_wins_whole",),
    41: (f"{COMMAND}::test_a_provider_that_is_not_there",),
    42: (f"{COMMAND}::test_any_path_works", f"{COMMAND}::test_very_long_paths_work"),
    43: (f"{CALIBRATION}::test_pickles_are_never_opened",),
    44: (
        f"{CALIBRATION}::test_a_bomb_is_known_by_its_header",
        f"{CALIBRATION}::test_an_archive_that_unpacks_a_thousandfold_is_refused",
        f"{CALIBRATION}::test_memory_holds_a_batch_not_the_file",
    ),
    45: (f"{CALIBRATION}::test_damaged_and_forged_files_are_refused_at_once",),
    46: (f"{CALIBRATION}::test_missing_and_extra_names_are_both_listed",),
    47: (
        f"{CALIBRATION}::test_wrong_types_and_shapes_are_refused",
        f"{CALIBRATION}::test_a_cast_that_keeps_every_value_is_made",
    ),
    48: (f"{CALIBRATION}::test_numbers_that_are_none_are_refused_with_their_sample",),
    49: (
        f"{CALIBRATION}::test_no_samples_are_refused",
        f"{CALIBRATION}::test_a_reader_that_was_read_before_holds_nothing",
        f"{CALIBRATION}::test_one_pass_data_can_be_read_again",
    ),
    50: (f"{CALIBRATION}::test_names_that_change_midway_are_told_with_the_item",),
    51: (f"{CALIBRATION}::test_ids_out_of_the_vocabulary_are_refused",),
    52: (f"{SCRIPT}::test_its_exceptions_come_with_its_own_traceback",),
    53: ("test_config.py::test_bad_files_are_usage_errors",),
    54: (f"{COMMAND}::test_a_plan_that_is_no_good", "test_history.py::test_damaged_plans_are_refused"),
    57: (f"{CALIBRATION}::test_one_sample_works_and_warns",),
}
"""Tests in other files, by row: `FILE::TEST`."""
ROWS = range(1, 58)
BY_HAND = {55: "tools/large_model.py"}
"""What takes too long for every commit: a program whose figures stand in docs/robustness.md."""


# -------------------------------------------------------------------------------------------------- the table
def _tests_of(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize("row", ROWS)
def test_every_row_has_a_test(row: int) -> None:
    for place in ELSEWHERE.get(row, ()):
        file, _, name = place.partition("::")
        assert name in _tests_of(HERE / file), place
    in_corpus = any(case.row == row for case in corpus())
    here = any(name.startswith(f"test_row_{row}_") for name in _tests_of(HERE / "test_hostile_rows.py"))
    if row in BY_HAND:
        figures = (HERE.parent / "docs" / "robustness.md").read_text(encoding="utf-8")
        assert (HERE.parent / BY_HAND[row]).exists() and BY_HAND[row] in figures
        return
    assert in_corpus or here or row in ELSEWHERE


def test_no_row_is_made_up() -> None:
    assert {case.row for case in corpus()} | ELSEWHERE.keys() | BY_HAND.keys() <= set(ROWS)


# -------------------------------------------------------------------------------------------------- what needs more
QUICK = ["--ratio", "0.5", "--criterion", "l1", "--compensate", "none"]


def pruned(model: onnx.ModelProto, folder: Path, *options: str) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Returns what the command makes of a model, and its report."""
    path = hostile.write(model, folder)
    result = CliRunner().invoke(cli, ["prune", str(path), *(options or QUICK), "--json"])
    assert result.exit_code == 0, result.stderr
    return onnx.load(folder / "model.pruned.onnx"), json.loads(result.stdout)


def refused(folder: Path, *options: str, code: int) -> str:
    """Returns the one line in which the command refuses a sound model with some options."""
    path = hostile.write(hostile.sound(), folder)
    result = CliRunner().invoke(cli, ["prune", str(path), *options])
    assert result.exit_code == code, result.stderr
    assert len(result.stderr.splitlines()) == 1 and not result.stdout
    return result.stderr


def shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    return {each.name: list(each.dims) for each in model.graph.initializer}


@pytest.mark.parametrize("data", [False, True], ids=["model", "data file"])
def test_row_11_a_model_that_changes_during_the_run_is_refused(data: bool, tmp_path: Path) -> None:
    path = hostile.external()(tmp_path)
    changed = tmp_path / "model.data" if data else path
    script = tmp_path / "data.py"
    script.write_text(
        "import numpy as np\n"
        "def data():\n"
        f"    with open({str(changed)!r}, 'r+b') as file: file.seek(3); file.write(b'!')\n"
        "    for _ in range(8): yield {'x': np.ones((1, 8), np.float32)}\n"
    )
    result = CliRunner().invoke(cli, ["prune", str(path), "--ratio", "0.5", "--data-script", f"{script}:data"])
    assert result.exit_code == 3, result.stderr
    assert "changed while it was in use" in result.stderr
    assert not (tmp_path / "model.pruned.onnx").exists()


def test_row_19_weights_that_are_no_numbers_go_first_or_are_told(tmp_path: Path) -> None:
    model = hostile.not_finite(float("nan"))
    path = hostile.write(model, tmp_path)
    result = CliRunner().invoke(cli, ["prune", str(path), *QUICK])
    told = result.stderr.lower()
    assert result.exit_code == 3 or "nan" in told or "finite" in told, result.stderr


def test_row_20_no_group_loses_all_its_channels(tmp_path: Path) -> None:
    for k, build in enumerate((hostile.all_zero, hostile.constant_activations)):
        (folder := tmp_path / str(k)).mkdir()
        model, _ = pruned(build(), folder, "--ratio", "0.99", "--criterion", "l1", "--compensate", "none")
        assert shapes(model)["w1"] == [8, 1]


def test_row_25_listed_initializers_get_their_new_dims_and_the_report_says_so(tmp_path: Path) -> None:
    model, report = pruned(hostile.listed_initializers(), tmp_path)
    declared = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    assert declared["w1"] == shapes(model)["w1"] == [8, 8]
    assert any("input" in note for note in report["notes"]), report["notes"]


def test_row_26_a_weight_on_two_axes_stays_one_weight(tmp_path: Path) -> None:
    model, _ = pruned(hostile.shared_on_two_axes(), tmp_path)
    assert shapes(model) == {"w": [8, 8]}


def test_row_27_a_weight_that_is_given_out_stays_whole(tmp_path: Path) -> None:
    path = hostile.write(hostile.weight_as_output(), tmp_path)
    result = CliRunner().invoke(cli, ["prune", str(path), *QUICK])
    assert result.exit_code == 6, result.stderr


def test_row_29_sparse_weights_are_left_alone_or_made_dense(tmp_path: Path) -> None:
    model = hostile.sound()
    dense = numpy_helper.to_array(model.graph.initializer[2]).copy()
    dense[np.abs(dense) < 0.5] = 0
    at = np.flatnonzero(dense)
    sparse = onnx.helper.make_sparse_tensor(
        numpy_helper.from_array(dense.reshape(-1)[at], "w2"),
        numpy_helper.from_array(at.astype(np.int64), "at"),
        [16, 4],
    )
    del model.graph.initializer[2]
    model.graph.sparse_initializer.append(sparse)
    path = hostile.write(model, tmp_path)
    result = CliRunner().invoke(cli, ["prune", str(path), *QUICK])
    assert result.exit_code in (0, 6), result.stderr
    if result.exit_code == 0:
        ort.InferenceSession(str(tmp_path / "model.pruned.onnx"), providers=["CPUExecutionProvider"])


def test_row_30_nothing_to_prune_comes_with_reasons(tmp_path: Path) -> None:
    path = hostile.write(hostile.weight_as_output(), tmp_path)
    result = CliRunner().invoke(cli, ["prune", str(path), *QUICK])
    assert result.exit_code == 6
    assert "output" in result.stderr


def test_row_33_a_report_shows_no_more_of_a_name_than_it_has_to(tmp_path: Path) -> None:
    model = hostile.long_name()
    model.metadata_props.add(key="k", value="v" * 10_000_000)
    path = hostile.write(model, tmp_path)
    outputs = [tmp_path / name for name in ("r.json", "r.md")]
    reports = [option for output in outputs for option in ("--report", str(output))]
    result = CliRunner().invoke(cli, ["prune", str(path), *QUICK, *reports])
    assert result.exit_code == 0, result.stderr
    assert len(result.stdout) < 200_000
    assert max(output.stat().st_size for output in outputs) < 1_000_000


def test_row_36_a_target_out_of_reach_says_what_can_be_had(tmp_path: Path) -> None:
    line = refused(
        tmp_path, "--target", "macs=0.0001", "--allocation", "uniform", "--criterion", "l1", "--compensate", "none",
        code=6,
    )  # fmt: skip
    assert "out of reach" in line
    assert any(c.isdigit() for c in line.partition("out of reach")[2])


def test_row_41_a_provider_that_is_dropped_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dropped:
        def __init__(self, *args: Any, **options: Any) -> None:
            pass

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    asked = ("FastExecutionProvider", "CPUExecutionProvider")
    monkeypatch.setattr(ort, "get_available_providers", lambda: list(asked))
    monkeypatch.setattr(ort, "InferenceSession", Dropped)
    with pytest.raises(ProviderError, match="FastExecutionProvider"):
        runtime.open_session(hostile.sound(), asked)


def test_row_54_a_plan_of_another_model_is_refused(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    path = hostile.write(hostile.sound(), tmp_path)
    made = CliRunner().invoke(cli, ["prune", str(path), *QUICK, "--plan", str(plan)])
    assert made.exit_code == 0, made.stderr
    other = hostile.sound()
    other.graph.initializer[0].CopyFrom(hostile.tensor("w1", 8, 16, seed=9))
    path = hostile.write(other, tmp_path, "other.onnx")
    result = CliRunner().invoke(cli, ["prune", str(path), "--apply", str(plan)])
    assert result.exit_code == 4, result.stderr
    assert not (tmp_path / "other.pruned.onnx").exists()


def chain(layers: int, width: int) -> onnx.ModelProto:
    """Returns a perceptron of many layers."""
    nodes, weights, value = [], [], "x"
    sizes = [8, *[width] * layers, 4]
    for k, (before, after) in enumerate(itertools.pairwise(sizes)):
        weight = np.random.default_rng(k).standard_normal((before, after)) / before**0.5
        weights.append(numpy_helper.from_array(weight.astype(np.float32), f"w{k}"))
        out = "y" if k == layers else f"r{k}"
        nodes.append(onnx.helper.make_node("MatMul", [value, f"w{k}"], [f"h{k}" if k < layers else out], f"matmul{k}"))
        if k < layers:
            nodes.append(onnx.helper.make_node("Tanh", [f"h{k}"], [out], f"tanh{k}"))
            for extra in range(3):
                nodes.append(onnx.helper.make_node("Identity", [out], [f"{out}_{extra}"], f"same{k}_{extra}"))
                out = f"{out}_{extra}"
        value = out
    return hostile.model_of(nodes, weights)


@pytest.mark.slow
def test_row_56_thousands_of_nodes_take_seconds(tmp_path: Path) -> None:
    model = chain(1000, 8)
    assert len(model.graph.node) >= 5000
    begun = time.process_time()
    small, report = pruned(model, tmp_path)
    assert time.process_time() - begun < 60
    assert len(report["groups"]) == 1000
    assert shapes(small)["w1"] == [4, 4]


@pytest.mark.slow
def test_row_57_a_deep_net_and_one_sample_work_with_a_warning(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", x=np.ones((1, 8), np.float32))
    path = hostile.write(chain(100, 8), tmp_path)
    result = CliRunner().invoke(cli, ["prune", str(path), "--ratio", "0.5", "--calib", str(tmp_path / "one.npz")])
    assert result.exit_code == 0, result.stderr
    assert "warning: " in result.stderr and "sample" in result.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux limits what is allocated")
def test_row_17_and_18_refusals_take_no_memory_to_speak_of(tmp_path: Path) -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for k, case in enumerate(case for case in corpus() if case.row in (17, 18)):
        (folder := tmp_path / str(k)).mkdir()
        result = CliRunner().invoke(cli, ["prune", *case.make(folder)])
        assert result.exit_code in case.codes, result.stderr
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kilobytes
