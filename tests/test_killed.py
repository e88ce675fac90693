"""What a run leaves behind that is killed at any moment, and what two runs to one place make of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import hostile
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from onnxprune.errors import RunError
from onnxprune.graph import unfinished, writing
from onnxprune.graph.model import load

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes as POSIX has them")

# For each number that it reads saves a model in a process that is killed, as from outside, before the call of that
# number that touches a file; prints how the process ended.
SAVE = """
import os, signal, sys
from pathlib import Path
from onnxprune.graph import model
source = model.load(sys.argv[1])
left = 0
calls = {"open", "os.rename", "os.remove", "os.chmod"}
def hook(event, arguments):
    global left
    if event in calls and ("out" in str(arguments[0]) or ".onnxprune-" in str(arguments[0])):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
for line in sys.stdin:
    if not (child := os.fork()):
        left = int(line)
        sys.addaudithook(hook)
        model.save(source.model, Path("out.onnx"), external=sys.argv[2] == "external")
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def perceptron(seed: int) -> onnx.ModelProto:
    """Returns a model whose weights tell which one it is."""
    model = hostile.sound()
    model.graph.initializer[0].CopyFrom(hostile.tensor("w1", 8, 16, seed=seed))
    model.graph.initializer[2].CopyFrom(hostile.tensor("w2", 16, 4, seed=seed))
    return model


def weight(path: Path) -> bytes:
    """Returns the first weight of a model that can be used, whatever file it lies in."""
    ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    model = onnx.load(path)
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "w1")).tobytes()


def saved(seed: int, path: Path, *, external: bool) -> bytes:
    """Writes a model and returns its first weight."""
    save(perceptron(seed), path, external=external)
    return weight(path)


def save(model: onnx.ModelProto, path: Path, *, external: bool) -> None:
    writing.save(load(model).model, path, external=external)


@pytest.mark.parametrize("external", [False, True], ids=["inside", "external"])
def test_row_39_a_run_that_is_killed_leaves_the_old_model_or_the_new_one(external: bool, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "home").mkdir()
    out = tmp_path / "home" / "out.onnx"
    old = saved(1, out, external=external)
    source = hostile.write(perceptron(2), tmp_path / "new")
    new = weight(source)
    seen, ended = [], -signal.SIGKILL
    command = [sys.executable, "-c", SAVE, str(source), "external" if external else "inside"]
    with subprocess.Popen(command, cwd=out.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        while ended != 0:
            print(len(seen), file=process.stdin, flush=True)
            ended = int(process.stdout.readline())
            assert ended in (0, -signal.SIGKILL)
            now = weight(out)
            assert now in (old, new)
            seen.append(now == new)
            if now == new and ended:  # it was killed while tidying up: begin again from the old one
                saved(1, out, external=external)
        process.stdin.close()
    assert len(seen) > 5 and not seen[0] and seen[-1]


def test_a_run_that_is_killed_leaves_nothing_if_somebody_waits_for_it(tmp_path: Path) -> None:
    old = saved(1, tmp_path / "out.onnx", external=True)
    before = sorted(tmp_path.iterdir())
    journal = tmp_path.parent / f"{tmp_path.name}.journal"
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from onnxprune.graph import model, unfinished\n"
        "source = model.load(sys.argv[1])\n"
        "with unfinished.journal_to(Path(sys.argv[2])):\n"
        "    model.save(source.model, Path('out.onnx'), external=True, check=lambda path: os.kill(os.getpid(), 9))\n"
    )
    (tmp_path.parent / "source").mkdir(exist_ok=True)
    source = hostile.write(perceptron(2), tmp_path.parent / "source")
    subprocess.run([sys.executable, "-c", code, str(source), str(journal)], cwd=tmp_path, check=False, timeout=120)
    assert sorted(tmp_path.iterdir()) != before
    unfinished.remove_left(journal)
    assert sorted(tmp_path.iterdir()) == before
    assert weight(tmp_path / "out.onnx") == old


RUNS = """
import sys, time
from pathlib import Path
from onnxprune.graph import model
source = model.load(sys.argv[1])
Path(sys.argv[2]).touch()
while not Path("go").exists(): time.sleep(0.001)
for _ in range(40):
    model.save(source.model, Path("out.onnx"), external=True)
"""


def test_row_40_of_two_runs_to_one_output_one_wins_whole(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    weights, processes = set(), []
    for k in (1, 2):
        (folder := tmp_path / str(k)).mkdir()
        source = hostile.write(perceptron(k), folder)
        weights.add(weight(source))
        command = [sys.executable, "-c", RUNS, str(source), str(folder / "ready")]
        processes.append(subprocess.Popen(command, cwd=home, stderr=subprocess.PIPE, text=True))
    while not all((tmp_path / str(k) / "ready").exists() for k in (1, 2)):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    (home / "go").touch()
    for process in processes:
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
    assert weight(home / "out.onnx") in weights
    assert not list(home.glob(f"{unfinished.PREFIX}*"))


def test_a_run_that_fails_leaves_the_data_that_another_one_has_come_to_name(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    source = load(perceptron(1)).model

    def overtaken(path: Path) -> None:
        writing.save(source, out, external=True)  # the same content, in a file of the same name
        raise RunError("no good")

    with pytest.raises(RunError, match="no good"):
        writing.save(source, out, external=True, check=overtaken)
    assert weight(out) == numpy_helper.to_array(perceptron(1).graph.initializer[0]).tobytes()


def test_data_stay_while_somebody_else_is_saving(tmp_path: Path) -> None:
    data = tmp_path / "out.0123456789ab.data"
    data.write_bytes(b"weights")
    with unfinished.taking_part(tmp_path):
        unfinished.remove_data(tmp_path / "out.onnx", [data])
        assert data.exists()
    unfinished.remove_data(tmp_path / "out.onnx", [data])
    assert not data.exists()


@pytest.mark.parametrize("in_place", [False, True])
def test_row_6_a_snapshot_of_the_hub_is_pruned_and_its_blobs_stay(in_place: bool, tmp_path: Path) -> None:
    from onnxprune.pipeline import prune

    path = hostile.snapshot(tmp_path)
    blobs = {blob: blob.read_bytes() for blob in (tmp_path / "blobs").iterdir()}
    output = path if in_place else path.parent / "small.onnx"
    prune(path, ratio=0.5, criterion="l1", compensate="none", output=output, in_place=in_place)
    assert {blob: blob.read_bytes() for blob in blobs} == blobs
    small = ir.load(output).graph.initializers["w1"].const_value
    assert small is not None and list(small.shape) == [8, 8]
    assert not output.is_symlink()
