from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from hostile import externalized, floats, infinite_loop, model_of, sound, tensor, write
from onnx import helper

import onnxprune
from onnxprune import cli, pipeline
from onnxprune.criteria import CRITERIA
from onnxprune.plan import Plan
from onnxprune.reports.report import Inspection, Report, read

BARE = ("--criterion", "l1", "--compensate", "none")  # what needs no data
HALF = ("--ratio", "0.5", *BARE)


def run(*args: str | Path) -> Result:
    """Returns what the command did, in this process."""
    return CliRunner().invoke(cli.cli, [str(arg) for arg in args])


def outside(*args: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    """Returns what the command did, in a process of its own."""
    command = [sys.executable, "-m", "onnxprune", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **options)  # type: ignore[call-overload,no-any-return]


def refused(result: Result | subprocess.CompletedProcess[str], code: int, *says: str) -> None:
    """Passes if there is that exit code, and one line that says why."""
    found = result.exit_code if isinstance(result, Result) else result.returncode
    assert (found, result.stdout) == (code, ""), result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for text in says:
        assert text in result.stderr


def large() -> onnx.ModelProto:
    """Returns a perceptron that is cut to a part of itself without a collapse: only a few of its units do anything."""
    w1 = tensor("w1", 8, 64)
    scaled = onnx.numpy_helper.to_array(w1) * np.where(np.arange(64) % 2, 1, 1e-3).astype(np.float32)
    nodes = [
        helper.make_node("Gemm", ["x", "w1"], ["h"], "first"),
        helper.make_node("Relu", ["h"], ["r"], "act"),
        helper.make_node("Gemm", ["r", "w2"], ["y"], "second"),
    ]
    return model_of(nodes, [onnx.numpy_helper.from_array(scaled, "w1"), tensor("w2", 64, 4, seed=2)])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(large(), tmp_path)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def interpreted(code: str) -> str:
    """Returns what a new interpreter prints that runs some code to its end."""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert found.returncode == 0, found.stderr
    return found.stdout


# -------------------------------------------------------------------------------------------------- help
@pytest.mark.parametrize(
    "args", [["--help"], ["prune", "--help"], ["inspect", "-h"], ["--version"], ["x.onnx", "--help"]]
)
def test_help_imports_nothing_of_weight(args: list[str]) -> None:
    code = (
        "import sys\nfrom onnxprune.cli import main\n"
        f"sys.argv = ['onnxprune', *{args!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    code = end.code\n"
        "found = {'onnx', 'onnxruntime', 'onnx_ir', 'numpy', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'{code} {found}' if code or found else 0)\n"
    )
    assert interpreted(code)


def test_what_is_seldom_used_is_loaded_where_it_is_used() -> None:
    model = Path(__file__).parent.parent / "models/digits_lstm.onnx"
    code = (
        "import sys, onnxprune\nfrom onnxprune.cli import prepare\nprepare()\nprepare()\n"
        f"onnxprune.prune({os.fspath(model)!r}, ratio=0.5, samples=8)\n"
        "assert 'sympy.core' not in sys.modules, 'sympy was loaded'\n"
        "import onnx_ir as ir\nassert str((ir.SymbolicDim('n') + 1).evaluate({'n': 2})) == '3'\n"
        "assert 'sympy.core' in sys.modules\n"
    )
    interpreted(code)


def test_help_shows_the_options_of_prune_and_the_commands() -> None:
    shown = run("--help").stdout
    for text in ("MODEL [OPTIONS]", "--ratio", "--in-place", "inspect", "Exit codes", "--version"):
        assert text in shown
    assert shown.count("--ratio R") == 1
    assert run("x.onnx", "--help").stdout == run("prune", "--help").stdout


def test_help_offers_what_is_built_and_nothing_else() -> None:
    shown = run("prune", "--help").stdout
    built = set(re.findall(r"--([a-z-]+)", shown)) - {"help", "json", "quiet", "verbose"}
    known = {name.replace("_", "-") for name in inspect.signature(pipeline.prune).parameters}
    own = {"no-validate", "report", "plan", "timeout", "calib", "no-streams", "mean", "std", "image-size", "layout"}
    own |= {"eval", "max-memory", "config", "print-config"}
    assert built - known == own
    (line,) = (line for line in re.sub(r"\n {10,}", " ", shown).splitlines() if "--criterion" in line)
    assert set(CRITERIA) <= set(re.findall(r"\w+", line))


def test_the_options_are_those_of_the_function() -> None:
    own = {"output", "in_place", "reports", "plan_path", "timeout", "as_json", "quiet", "verbose", "help"}
    own |= {"targets", "mean", "std", "image_size", "layout", "max_memory"}
    given = cli.prune.prune.make_context("prune", ["model.onnx"]).params
    passed_on = {name: value for name, value in given.items() if name not in own}
    parameters = inspect.signature(pipeline.prune).parameters
    assert set(passed_on) <= set(parameters)
    assert (passed_on.pop("max_ratio_per_group"), passed_on.pop("min_units")) == ((), ())  # texts, that become numbers
    for name in set(passed_on) - {"model"}:
        assert passed_on[name] == parameters[name].default, name


def test_version() -> None:
    assert run("--version").stdout == f"onnxprune {onnxprune.__version__}\n"


# -------------------------------------------------------------------------------------------------- prune
def test_prune_writes_beside_the_input(model: Path) -> None:
    before = model.read_bytes()
    result = run(model, *HALF)
    assert (result.exit_code, result.stderr) == (0, "")
    assert files(model.parent) == ["model.onnx", "model.pruned.onnx"]
    assert model.read_bytes() == before
    assert "cut: 32 of 64 units, in 1 of 1 groups" in result.stdout
    assert "MACs expected to remain at ratio 0.5: 50.0 %" in result.stdout
    assert "cut is exact" in result.stdout
    written = onnx.load(model.parent / "model.pruned.onnx")
    assert {tuple(t.dims) for t in written.graph.initializer} == {(8, 32), (32, 4)}


def test_the_command_may_be_left_out(model: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / f"{k}.onnx" for k in range(3)]
    assert run(model, *HALF, "-o", outputs[0]).exit_code == 0
    assert run("prune", model, *HALF, "-o", outputs[1]).exit_code == 0
    assert run(*HALF, "-o", outputs[2], model).exit_code == 0
    assert len({path.read_bytes() for path in outputs}) == 1


def test_ratio_zero_copies(model: Path) -> None:
    assert run(model, "--ratio", "0").exit_code == 0
    assert (model.parent / "model.pruned.onnx").read_bytes() == model.read_bytes()


def test_in_place(model: Path) -> None:
    assert run(model, *HALF, "--in-place").exit_code == 0
    assert files(model.parent) == ["model.onnx"]
    assert len(onnx.load(model).graph.initializer[0].raw_data) == 8 * 32 * 4


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("x.onnx", "x.pruned.onnx"), ("a b.ONNX", "a b.pruned.onnx"), ("model", "model.pruned.onnx"),
        ("v1.2", "v1.2.pruned.onnx"), ("größe.卷积.onnx", "größe.卷积.pruned.onnx"), (".onnx", ".onnx.pruned.onnx"),
    ],
)  # fmt: skip
def test_default_output(name: str, output: str) -> None:
    assert cli.prune.default_output(Path("a") / name) == Path("a") / output


@pytest.mark.parametrize("folder", ["with a space", "größe-卷积-🙂", "a'\"$(x)`", "-dash", "[bold]", "d" * 200])
def test_any_path_works(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    path = write(large(), tmp_path / folder, f"{folder} .onnx")
    result = run(path, *HALF)
    assert (result.exit_code, result.stderr) == (0, "")
    assert (tmp_path / folder / f"{folder} .pruned.onnx").exists()
    assert "written: " in result.stdout


def test_very_long_paths_work(tmp_path: Path) -> None:
    folder = tmp_path
    while len(str(folder)) < 3000:
        folder = folder / ("d" * 200)
    folder.mkdir(parents=True)
    assert run(write(large(), folder), *HALF).exit_code == 0
    refused(run(tmp_path / ("x" * 300), *HALF), 2)
    refused(run(Path("/" + "x/" * 3000), *HALF), 2)


def test_json_is_pure(model: Path) -> None:
    result = run(model, *HALF, "--json", "--criterion", "l2", "--seed", "3", "--exclude", "nothing*")
    assert (result.exit_code, result.stderr) == (0, "")
    report = Report.from_dict(json.loads(result.stdout))
    assert (report.macs.before, report.macs.after) == (8 * 64 + 64 * 4, 8 * 32 + 32 * 4)
    assert report.output is not None
    assert report.size.after == Path(report.output).stat().st_size
    assert report.options["criterion"] == "l2"
    assert report.options["exclude"] == ["nothing*"]


def test_reports(model: Path, tmp_path: Path) -> None:
    paths = [tmp_path / "r.json", tmp_path / "r.md", tmp_path / "again.json"]
    result = run(model, *HALF, *(arg for path in paths for arg in ("--report", str(path))))
    assert result.exit_code == 0
    assert read(paths[0]).macs.after == 8 * 32 + 32 * 4
    assert paths[0].read_text() == paths[2].read_text()
    assert paths[1].read_text().startswith("# onnxprune: pruning report of")


def test_a_plan_is_replayed_to_the_same_bytes(model: Path, tmp_path: Path) -> None:
    plan, one, two = (tmp_path / name for name in ("plan.json", "one.onnx", "two.onnx"))
    options = ("--compensate", "none", "--criterion", "random", "--seed", "7")
    assert run(model, "--ratio", "0.3", *options, "--plan", plan, "-o", one).exit_code == 0
    assert run(model, "--apply", plan, "-o", two, *BARE).exit_code == 0
    assert one.read_bytes() == two.read_bytes()
    assert Plan.load(plan).groups[0].units == 64


def test_a_dry_run_writes_no_model(model: Path, tmp_path: Path) -> None:
    result = run(model, *HALF, "--dry-run", "--plan", tmp_path / "p.json", "--report", tmp_path / "r.json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert files(tmp_path) == ["model.onnx", "p.json", "r.json"]
    assert "MACs expected to remain at ratio 0.5: 50.0 %" in result.stdout
    assert "dry run" in result.stdout
    assert run(model, "--apply", tmp_path / "p.json", *BARE).exit_code == 0
    assert read(tmp_path / "r.json").macs.after == 8 * 32 + 32 * 4


def test_quiet_and_verbose(model: Path) -> None:
    quiet = run(model, *HALF, "-q")
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (0, "", "")
    verbose = run(model, *HALF, "-v")
    assert verbose.stderr.splitlines()[0] == "load"
    assert "MACs/unit" in verbose.stdout


def test_no_validate_says_so(model: Path) -> None:
    assert "not validated" in run(model, *HALF, "--no-validate").stdout


def test_a_collapse_is_said_but_is_no_failure(tmp_path: Path) -> None:
    result = run(write(sound(), tmp_path), "--ratio", "0.9", *BARE, "-q")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.startswith("warning: output y has collapsed")
    assert result.stderr.count("\n") == 1
    assert json.loads(run(tmp_path / "model.onnx", "--ratio", "0.9", *BARE, "--json").stdout)["warnings"]


def test_include_and_exclude(model: Path) -> None:
    refused(run(model, *HALF, "--exclude", "w*"), 6, "--exclude")
    refused(run(model, *HALF, "--include", "nothing"), 6, "--include")
    assert run(model, *HALF, "--include", "fir*", "--include", "x").exit_code == 0


def test_align(model: Path) -> None:
    report = json.loads(run(model, "--ratio", "0.3", *BARE, "--align", "16", "--json").stdout)
    assert report["groups"][0]["cut"] == 16


# -------------------------------------------------------------------------------------------------- inspect
def test_inspect(model: Path) -> None:
    result = run("inspect", model)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "64 units in 1 groups; --ratio 0.5 is expected to leave 50.0 % of the MACs" in result.stdout
    assert ["w1", "64", "12", "12", "w1,", "w2"] in [line.split() for line in result.stdout.splitlines()]
    assert "an output of the graph" in result.stdout
    assert files(model.parent) == ["model.onnx"]


def test_inspect_as_json(model: Path) -> None:
    found = Inspection.from_dict(json.loads(run("inspect", model, "--json").stdout))
    assert found.macs == 8 * 64 + 64 * 4
    assert found.groups[0].members == ("w1", "w2")
    assert found.frozen[0].why == "an output of the graph"


def test_inspect_refuses_what_prune_refuses(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").write_bytes(b"")
    refused(run("inspect", tmp_path / "empty.onnx"), 3)
    refused(run("inspect", tmp_path / "none.onnx"), 2)
    refused(run("inspect"), 2, "MODEL")


# -------------------------------------------------------------------------------------------------- options
@pytest.mark.parametrize("ratio", ["-1", "1", "nan", "1.0001", "inf", "-0.1", "half", ""])
def test_a_ratio_that_is_none(model: Path, ratio: str) -> None:
    refused(run(model, f"--ratio={ratio}"), 2, "ratio")
    assert files(model.parent) == ["model.onnx"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "--ratio"),
        (["--ratio", "0.5", "--criterion", "l22"], "did you mean l2"),
        (["--ratio", "0.5", "--criterion", "randm"], "did you mean random"),
        (["--ratio", "0.5", "--criterion", "\x1b[31m"], "criterion"),
        (["--ratio", "0.5", "--compensate", "lstsqr"], "did you mean lstsq"),
        (["--ratio", "0.5", "--allocation", "unifrom"], "did you mean uniform"),
        (["--ratio", "0.5", "--align", "0"], "--align"),
        (["--ratio", "0.5", "--align", "x"], "--align"),
        (["--ratio", "0.5", "--seed", "-1"], "--seed"),
        (["--ratio", "0.5", "--timeout", "0"], "--timeout"),
        (["--ratio", "0.5", "--timeout", "nan"], "--timeout"),
        (["--ratio", "0.5", "--timeout", "inf"], "--timeout"),
        (["--ratio", "0.5", "--apply", "p.json"], "contradict"),
        (["--ratio", "0.5", "-q", "-v"], "contradict"),
        (["--ratio", "0.5", "--rato", "0.5"], "--ratio"),
        (["--ratio", "0.5", "extra"], "extra"),
        (["--ratio"], "--ratio"),
        (["--ratio", "0.5", "--report", "r.pdf"], ".html or .json or .md or .xml"),
        (["--ratio", "0.5", "--report", "report"], ".json or .md"),
    ],
)
def test_options_that_make_no_sense(model: Path, args: list[str], says: str) -> None:
    result = run(model, *args)
    refused(result, 2, says)
    assert result.stderr[:-1].isprintable()
    assert files(model.parent) == ["model.onnx"]


def test_commands_that_are_none(model: Path) -> None:
    refused(run(), 2, "no model is given")
    refused(run("inspct", model), 2, "did you mean inspect")
    refused(run("--nonsense"), 2, "--nonsense")
    refused(run("pruned", "--ratio", "0.5"), 2, "pruned")


def test_a_provider_that_is_not_there(model: Path) -> None:
    refused(run(model, "--ratio", "0.5", "--provider", "qnn"), 5, "QNNExecutionProvider", "CPUExecutionProvider")
    refused(run("inspect", model, "--provider", "cpu", "--provider", "nonsense"), 5, "nonsense")
    assert run(model, *HALF, "--provider", "CPU").exit_code == 0


def test_too_small_a_ratio_cuts_nothing(model: Path) -> None:
    refused(run(model, "--ratio", "0.01"), 6, "0.01", "64")
    assert files(model.parent) == ["model.onnx"]


# -------------------------------------------------------------------------------------------------- files
def test_reports_and_plans_hit_nothing_else(tmp_path: Path) -> None:
    proto = large()
    (tmp_path / "data.json").write_bytes(externalized(proto, "data.json"))
    path = write(proto, tmp_path, "model.json")
    plan = tmp_path / "plan.json"
    assert run(path, "--ratio", "0.5", "--dry-run", "--plan", plan).exit_code == 0
    (tmp_path / "link.json").symlink_to("model.json")
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    output = ("--ratio", "0.5", "-o", tmp_path / "out.json")
    cases: Sequence[tuple[Sequence[str | Path], str]] = [
        ((*output, "--report", path), "is the input"),
        ((*output, "--report", tmp_path / "link.json"), "is the input"),
        ((*output, "--plan", path), "is the input"),
        ((*output, "--plan", tmp_path / "out.json"), "is the output"),
        ((*output, "--report", tmp_path / "a.json", "--plan", tmp_path / "a.json"), "is another --report"),
        ((*output, "--report", tmp_path / "a.json", "--report", tmp_path / "a.json"), "is another --report"),
        (("--apply", plan, "--plan", plan, "-o", tmp_path / "out.json"), "is the plan to apply"),
        ((*output, "--report", tmp_path / "data.json", "--dry-run"), "is a data file"),
    ]
    for args, says in cases:
        refused(run(path, *args), 2, says)
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


def test_a_report_that_cannot_be_written_is_known_before_the_work(model: Path, tmp_path: Path) -> None:
    for option in ("--report", "--plan"):
        refused(run(model, "--ratio", "0.5", option, tmp_path / "none" / "r.json"), 7, "folder does not exist")
        (tmp_path / "taken.json").mkdir(exist_ok=True)
        refused(run(model, "--ratio", "0.5", option, tmp_path / "taken.json"), 2, "is a folder")
    assert files(tmp_path) == ["model.onnx", "taken.json"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(model: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    refused(run(model, "--ratio", "0.5", "-o", tmp_path / "locked" / "x.onnx"), 7, "read-only")
    refused(run(model, "--ratio", "0.5", "--report", tmp_path / "locked" / "x.json"), 7, "read-only")


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of POSIX")
def test_a_full_disk_leaves_the_old_file(model: Path) -> None:
    import resource

    old = model.parent / "model.pruned.onnx"
    old.write_bytes(b"old")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))

    refused(outside(model, *HALF, preexec_fn=limit), 7, "cannot be written")
    assert old.read_bytes() == b"old"
    assert files(model.parent) == ["model.onnx", "model.pruned.onnx"]


def _edited(change: Callable[[dict[str, object]], object]) -> Callable[[str], bytes]:
    def edit(text: str) -> bytes:
        values = json.loads(text)
        change(values)
        return json.dumps(values).encode()

    return edit


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: b"",
        lambda text: b"\x00\xff" * 100,
        lambda text: text[: len(text) // 2].encode(),
        lambda text: b"[]",
        lambda text: b"{}",
        lambda text: b"[" * 100_000,
        lambda text: b'{"onnxprune_plan": 1}',
        _edited(lambda v: v.update(onnxprune_plan=2)),
        _edited(lambda v: v.update(model="0" * 64)),
        _edited(lambda v: v.update(groups=[])),
        _edited(lambda v: v.update(groups=3)),
        _edited(lambda v: v.update(frozen=[10**6])),
        _edited(lambda v: v.update(tensors=[])),
        _edited(lambda v: v["groups"][0].update(cut=[10**30])),  # type: ignore[index]
        _edited(lambda v: v["groups"][0].update(cut=[-1])),  # type: ignore[index]
        _edited(lambda v: v["groups"][0].update(cut=[64])),  # type: ignore[index]
        _edited(lambda v: v["groups"][0].update(cut=list(range(64)))),  # type: ignore[index]
        _edited(lambda v: v["groups"][0].update(cut=[0] * 10)),  # type: ignore[index]
        _edited(lambda v: v["groups"][0].update(name="\x1b[31m")),  # type: ignore[index]
        _edited(lambda v: v["tensors"][0].update(kept={"0": [0]})),  # type: ignore[index]
        _edited(lambda v: v.update(model="\x1b[31m\n::error::x")),
    ],
)
def test_a_plan_that_is_no_good(model: Path, damage: Callable[[str], bytes]) -> None:
    plan = model.parent / "plan.json"
    assert run(model, "--ratio", "0.5", "--dry-run", "--plan", plan).exit_code == 0
    plan.write_bytes(damage(plan.read_text()))
    result = run(model, "--apply", plan, *BARE)
    refused(result, 4, "plan")
    assert result.stderr[:-1].isprintable()
    assert files(model.parent) == ["model.onnx", "plan.json"]


def test_a_plan_that_is_missing(model: Path) -> None:
    result = run(model, "--apply", model.parent / "none.json")
    refused(result, result.exit_code, "none.json")
    assert result.exit_code in (2, 4)


# -------------------------------------------------------------------------------------------------- time, bugs, pipes
def test_a_model_that_never_ends(tmp_path: Path) -> None:
    path = write(infinite_loop(), tmp_path)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    found = outside("prune", path, "--ratio", "0.5", "--timeout", "2", env={**os.environ, "TMPDIR": str(temporary)})
    refused(found, 7, "gave up after 2 seconds", "--timeout")
    assert files(tmp_path) == ["model.onnx", "tmp"]
    assert files(temporary) == []


def test_enough_time_changes_nothing(model: Path) -> None:
    result = run(model, *HALF, "--timeout", "100")
    assert (result.exit_code, result.stderr) == (0, "")


def test_our_own_bugs_show_where_they_are(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise ZeroDivisionError("\x1b[31m\n::error::pwned ##[x]")

    monkeypatch.setattr(pipeline, "prune", fail)
    result = run(model, "--ratio", "0.5")
    assert result.exit_code == 7
    assert "Traceback" in result.stderr
    assert "ZeroDivisionError" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: this is a bug in onnxprune")
    assert "\x1b" not in result.stderr
    assert "##[" not in result.stderr
    assert not any(line.strip().startswith("::") for line in result.stderr.splitlines())


@pytest.mark.parametrize(("raised", "says"), [(MemoryError(), "memory"), (KeyboardInterrupt(), "interrupted")])
def test_other_ends(model: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException, says: str) -> None:
    def fail(*args: object, **options: object) -> None:
        raise raised

    monkeypatch.setattr(pipeline, "prune", fail)
    result = run(model, "--ratio", "0.5")
    assert result.exit_code == 7
    assert f"error: {says}" in result.stderr or says in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
def test_a_reader_that_goes_away_gets_no_traceback(model: Path) -> None:
    command = f"{sys.executable} -m onnxprune inspect '{model}' --json | true"
    found = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert (found.returncode, found.stderr) == (0, "")


def test_a_terminal_of_ascii_is_enough(tmp_path: Path) -> None:
    path = write(large(), tmp_path, "größe.onnx")
    found = outside(path, *HALF, "-v", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert found.returncode == 0, found.stderr
    assert "gr\\xf6\\xdfe.pruned.onnx" in found.stdout


def test_nasty_names_steer_nothing(tmp_path: Path) -> None:
    names = ["[bold]b[/bold]", "::error::x", "\x1b[31mred", "a\n::warning::b", "\u202ertl", "##[error]x"]
    first, node, act, second, hidden, out = names
    nodes = [
        helper.make_node("Gemm", ["x", first], [hidden], node),
        helper.make_node("Relu", [hidden], ["r"], act),
        helper.make_node("Gemm", ["r", second], [out], "last\r\n::error::y"),
        helper.make_node("Softmax", [out], ["\x9b31m"], "::error::soft"),
    ]
    weights = [tensor(first, 8, 16), tensor(second, 16, 4, seed=1)]
    path = write(model_of(nodes, weights, outputs=[floats("\x9b31m", "N", 4)]), tmp_path)
    prune = ["prune", *HALF]
    for args in (["inspect"], [*prune, "-v"], [*prune, "--json"], ["inspect", "--json"]):
        result = run(*args, path)
        assert result.exit_code == 0, result.stderr
        for text in (result.stdout, result.stderr):
            assert all(c == "\n" or c.isprintable() for c in text)
            assert args[-1] == "--json" or "##[" not in text
            assert not any(line.strip().startswith("::") for line in text.splitlines())
    assert "[bold]b[/bold]" in run("inspect", path).stdout


# -------------------------------------------------------------------------------------------------- targets and bounds
def test_targets_and_bounds_of_the_command(model: Path, tmp_path: Path) -> None:
    found = run(
        model, *BARE, "--allocation", "uniform", "--target", "macs=0.6", "--target", "params=0.55", "--min-units", "20",
        "--max-ratio-per-group", "w1=0.5", "--align", "4", "--json",
    )  # fmt: skip
    assert found.exit_code == 0, found.stderr
    report = Report.from_dict(json.loads(found.stdout))
    assert report.macs.ratio <= 0.6
    assert report.params.ratio <= 0.55
    assert all((group.units - group.cut) % 4 == 0 for group in report.groups if group.cut)
    assert report.options["targets"] == {"macs": 0.6, "params": 0.55}
    assert report.options["max_ratio_per_group"] == {"w1": 0.5}


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--target", "macs=0.5", "--target", "macs=0.4"], "given twice"),
        (["--target", "width=0.5"], "one of macs, params, size, latency"),
        (["--ratio", "0.5", "--max-drop", "1"], "contradict"),
        (["--max-drop", "nan"], "max-drop"),
        (["--ratio", "0.5", "--align", "x"], "--align"),
        (["--ratio", "0.5", "--min-units", "x"], "--min-units"),
        (["--ratio", "0.5", "--max-ratio-per-group", "2"], "max-ratio-per-group"),
        (["--ratio", "0.5", "--max-ratio-per-group", "nothing=0.5"], "matches no group"),
        (["--ratio", "0.5", "--eval", "x.npz"], "--labels"),
        (["--ratio", "0.5", "--calib", "x.npz", "--data-script", "x.py"], "both given"),
        (["--ratio", "0.5", "--allocation", "sensitive"], "did you mean sensitivity"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(args: list[str], says: str, model: Path) -> None:
    refused(run(model, *args), 2, says)


def test_a_target_out_of_reach_ends_with_its_own_code(model: Path) -> None:
    refused(
        run(model, *BARE, "--allocation", "uniform", "--target", "macs=0.001"), 6, "best that can be had is macs=0."
    )
    assert not list(model.parent.glob("*.pruned.onnx"))


def test_a_dry_run_at_a_ratio_reads_no_data(model: Path) -> None:
    assert run(model, "--ratio", "0.5", "--calib", "missing.npz", "--dry-run").exit_code == 0


def test_labelled_data_are_measured_before_and_after(model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "test.npz", x=rng.normal(size=(32, 8)).astype(np.float32), truth=rng.integers(0, 4, 32))
    found = run(model, *HALF, "--eval", tmp_path / "test.npz", "--labels", "truth", "--json")
    assert found.exit_code == 0, found.stderr
    task = Report.from_dict(json.loads(found.stdout)).task
    assert task is not None
    assert task.samples == 32
    assert 0 <= task.top1.after <= 100
