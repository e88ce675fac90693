"""Timing in turns, on a clock that tests turn by hand, and the command that does it."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from hostile import floats, model_of, sound, tensor, write
from onnx import helper

import onnxprune
from onnxprune import cli
from onnxprune.errors import DataError, ProviderError, UsageError
from onnxprune.latency.benchmark import bench
from onnxprune.latency.timing import LEAST_ROUNDS, Timing, _median_interval, interleave, verdict
from onnxprune.reports.records import read


class Machine:
    """A clock that runs only while something works, and what works on it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def clock(self) -> float:
        return self.now

    def work(self, name: str, *seconds: float) -> Callable[[], None]:
        """Returns what takes these seconds in turn, and keeps a log."""
        times = itertools.cycle(seconds)

        def run() -> None:
            self.log.append(name)
            self.now += next(times)

        return run


def timed(a: tuple[float, ...], b: tuple[float, ...], c: tuple[float, ...], **options: float) -> Timing:
    m = Machine()
    rounds = int(options.pop("rounds", 60))
    runs = m.work("a", *a), m.work("b", *b), m.work("c", *c)
    return interleave(*runs, rounds=rounds, clock=m.clock, seconds=options.pop("seconds", 1e9))


# -------------------------------------------------------------------------------------------------- the figures
def test_a_model_that_takes_half_the_time_is_twice_as_fast() -> None:
    found = timed((4e-3,), (2e-3,), (4e-3,))
    assert found.speedup == pytest.approx(2)
    assert (found.original.p50, found.pruned.p10) == (pytest.approx(4), pytest.approx(2))
    assert found.low == pytest.approx(2) == found.high
    assert found.noise == pytest.approx(0, abs=1e-9)
    assert found.conclusive
    assert verdict(found).startswith("2 times faster")


def test_a_slower_model_is_called_slower() -> None:
    found = timed((1e-3,), (1.5e-3,), (1e-3,))
    assert found.conclusive
    assert verdict(found).startswith("1.5 times slower")


def test_nothing_is_claimed_where_the_original_differs_from_itself_by_more() -> None:
    found = timed((10e-3,), (10e-3,), (12e-3,))  # its second session is slower by 20 %
    assert found.speedup == pytest.approx(1.1)
    assert found.noise == pytest.approx(0.2)
    assert not found.conclusive
    assert verdict(found).startswith("not conclusive: 1.1 times as fast")


def test_nothing_is_claimed_where_the_interval_holds_one() -> None:
    found = timed((10e-3,), (9e-3, 9e-3, 11e-3, 11e-3), (10e-3,))
    assert found.low < 1 < found.high
    assert not found.conclusive


def test_drift_and_interruptions_do_not_move_the_ratio() -> None:
    rng = np.random.default_rng(3)
    slow = 1 + np.arange(2000) / 500  # everything becomes slower and slower
    m = Machine()
    steps = iter(slow)

    def run(seconds: float) -> Callable[[], None]:
        def once() -> None:
            interrupted = 20.0 if rng.random() < 0.1 else 1.0
            m.now += seconds * next(steps) * interrupted

        return once

    found = interleave(run(4e-3), run(2e-3), run(4e-3), rounds=100, seconds=1e9, clock=m.clock)
    assert found.speedup == pytest.approx(2, rel=0.02)
    assert found.low <= 2.02
    assert found.high >= 1.98


# -------------------------------------------------------------------------------------------------- the turns
def test_every_round_has_all_three_in_turn_and_the_outer_ones_change_places() -> None:
    m = Machine()
    interleave(*(m.work(n, 5e-3) for n in "abc"), rounds=6, seconds=1e9, clock=m.clock)
    turns = [name for name, _ in itertools.groupby(m.log)]
    rounds = "".join(turns)[3:]  # after the warm-up, one model after the other
    assert len(rounds) >= 10
    assert "ab" in rounds
    assert "cb" in rounds
    assert rounds.count("b") == 6


def test_what_is_timed_is_never_the_first_run_of_a_turn() -> None:
    m = Machine()
    interleave(*(m.work(n, 5e-3) for n in "abc"), rounds=6, seconds=1e9, clock=m.clock)
    assert min(len(list(turn)) for _, turn in itertools.groupby(m.log)) >= 2


def test_it_ends_after_its_time_and_has_at_least_what_an_interval_needs() -> None:
    assert timed((1.0,), (1.0,), (1.0,), seconds=0.5).rounds == LEAST_ROUNDS
    assert timed((1e-3,), (1e-3,), (1e-3,), rounds=50).rounds == 50
    assert LEAST_ROUNDS < timed((1e-2,), (1e-2,), (1e-2,), rounds=10**6, seconds=10).rounds < 500


@pytest.mark.parametrize("n", [6, 20, 51, 300, 3000])
def test_the_interval_of_a_median_covers_what_it_says(n: int) -> None:
    _, low, high = _median_interval(np.arange(n, dtype=float))
    k = int(low)
    outside = sum(math.comb(n, i) for i in range(k + 1)) / 2**n  # that the true median lies below the lower end
    tighter = sum(math.comb(n, i) for i in range(k + 2)) / 2**n
    assert outside <= 0.025 < tighter
    assert high == n - 1 - k


# -------------------------------------------------------------------------------------------------- the files
@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two perceptrons, the second without most of its units."""

    def made(units: int, name: str) -> Path:
        nodes = [
            helper.make_node("Gemm", ["x", "w1"], ["h"], "first"),
            helper.make_node("Gemm", ["h", "w2"], ["y"], "second"),
        ]
        return write(model_of(nodes, [tensor("w1", 8, units), tensor("w2", units, 4)]), tmp_path, name)

    return made(64, "a.onnx"), made(8, "b.onnx")


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(cli.cli, ["bench", *map(str, args)])


FAST = ("--rounds", "6", "--seconds", "0.2", "--threads", "1")


def test_bench_times_two_files(pair: tuple[Path, Path], tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    found = run(*pair, *FAST, "--batch", "3", "--report", report)
    assert found.exit_code == 0, found.output
    assert "original" in found.stdout
    assert "threads: 1" in found.stdout
    assert "x [3, 8]" in found.stdout
    timing = read(report, Timing)
    assert isinstance(timing, Timing)
    assert timing.rounds == LEAST_ROUNDS
    assert 0 < timing.original.p10 <= timing.original.p50
    assert timing.low <= timing.speedup <= timing.high


def test_bench_prints_json_alone(pair: tuple[Path, Path]) -> None:
    found = run(*pair, *FAST, "--json")
    assert json.loads(found.stdout)["kind"] == "bench"


def test_bench_from_python_takes_models_in_memory(pair: tuple[Path, Path]) -> None:
    found = onnxprune.bench(onnx.load(pair[0]), onnx.load(pair[1]), threads=1, rounds=6, seconds=0.2)
    assert found.inputs == ("x [1, 8]",)
    assert found.provider == ("CPUExecutionProvider",)


def test_bench_takes_its_input_from_data(pair: tuple[Path, Path], tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((5, 8), np.float32))
    found = bench(*pair, calibration=tmp_path / "d.npz", batch=2, rounds=6, seconds=0.2)
    assert found.inputs == ("x [2, 8]",)
    with pytest.raises(DataError):
        bench(*pair, calibration={"z": np.ones((5, 8), np.float32)}, rounds=6, seconds=0.2)


def test_bench_refuses_what_makes_no_sense(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = write(
        model_of([helper.make_node("Relu", ["z"], ["y"], "r")], [], inputs=[floats("z", 1, 8)]), tmp_path, "o.onnx"
    )
    for wrong in ({"batch": 0}, {"threads": -1}, {"rounds": 0}, {"seconds": 0.0}):
        with pytest.raises(UsageError):
            bench(*pair, **wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="one of the models only"):
        bench(pair[0], other)
    with pytest.raises(ProviderError):
        bench(*pair, provider=["nowhere"])


def test_bench_refuses_a_batch_that_the_model_does_not_have(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"], "r")]
    fixed = write(model_of(nodes, [], inputs=[floats("x", 4, 8)]), tmp_path)
    with pytest.raises(UsageError, match="declared"):
        bench(fixed, fixed, batch=2)
    assert bench(fixed, fixed, batch=4, rounds=6, seconds=0.2).inputs == ("x [4, 8]",)
    assert bench(fixed, fixed, rounds=6, seconds=0.2).inputs == ("x [4, 8]",)


def test_a_model_that_is_no_model_is_told_in_one_line(tmp_path: Path) -> None:
    good, bad = write(sound(), tmp_path), tmp_path / "bad.onnx"
    bad.write_bytes(b"nothing")
    found = run(good, bad)
    assert found.exit_code == 3
    assert found.stderr.count("\n") == 1
