"""The user's own metric."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from onnxprune.errors import DataError, UsageError
from onnxprune.proof.metric_script import Batch, changes, open_metric_script

SCRIPT = """
import numpy as np
import helper_of_metric

def accuracy(outputs, labels):
    print("to stderr")
    return (outputs["y"].argmax(1) == labels).mean()

def both(outputs, labels):
    error = float(np.abs(outputs["y"].max(1) - labels).mean())
    return {"accuracy": (outputs["y"].argmax(1) == labels).mean(), "error": error}
both.higher_is_better = {"error": False}

class Streamed:
    higher_is_better = False
    def __init__(self):
        self.wrong, self.seen = 0, 0
    def update(self, outputs, labels):
        self.wrong += (outputs["y"].argmax(1) != labels).sum()
        self.seen += len(labels)
    def compute(self):
        return self.wrong / self.seen

def needs_all(outputs, labels):
    if len(labels) < 200:
        raise ValueError("too few")
    return len(labels)

def fails(outputs, labels):
    return outputs["nothing"]

def words(outputs, labels):
    return "very good"

def nothing(outputs, labels):
    return {}

class Half:
    pass

number = 3
"""

rng = np.random.default_rng(2)
LABELS = rng.integers(0, 4, 200)
GOOD = rng.uniform(size=(200, 4)) + np.eye(4)[LABELS]
BAD = rng.uniform(size=(200, 4)) + 0.5 * np.eye(4)[LABELS]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "helper_of_metric.py").write_text("")
    (tmp_path / "metric.py").write_text(SCRIPT)
    return tmp_path / "metric.py"


def passes(scores: np.ndarray) -> Callable[[], Iterator[Batch]]:
    return lambda: (({"y": scores[k : k + 30]}, LABELS[k : k + 30]) for k in range(0, 200, 30))


def test_a_function_of_all_samples(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = changes(open_metric_script(f"{script}:accuracy"), passes(GOOD), passes(BAD))
    before, after = ((s.argmax(1) == LABELS).mean() for s in (GOOD, BAD))
    assert (found.name, found.before, found.after) == ("accuracy", before, after)
    assert found.drop == before - after
    assert found.interval is not None
    assert found.interval.low < found.drop < found.interval.high
    assert capsys.readouterr().out == ""


def test_the_interval_is_about_that_of_theory(script: Path) -> None:
    (found,) = changes(open_metric_script(f"{script}:accuracy"), passes(GOOD), passes(BAD))
    lost = (GOOD.argmax(1) == LABELS) * 1.0 - (BAD.argmax(1) == LABELS)
    half = 1.96 * lost.std(ddof=1) / np.sqrt(200)
    assert found.interval is not None
    assert (found.interval.high - found.interval.low) / 2 == pytest.approx(half, rel=0.5)


def test_several_figures_each_in_its_direction(script: Path) -> None:
    accuracy, error = changes(open_metric_script(f"{script}:both"), passes(GOOD), passes(BAD))
    assert accuracy.higher_is_better
    assert not error.higher_is_better
    assert error.drop == error.after - error.before
    assert error.interval is not None
    assert error.interval.low < error.drop < error.interval.high


def test_a_class_that_sees_batches(script: Path) -> None:
    (found,) = changes(open_metric_script(f"{script}:Streamed"), passes(GOOD), passes(BAD))
    before, after = ((s.argmax(1) != LABELS).mean() for s in (GOOD, BAD))
    assert (found.before, found.after, found.drop) == pytest.approx((before, after, after - before))
    assert found.interval is None


def test_a_metric_that_needs_all_samples_has_no_interval(script: Path) -> None:
    (found,) = changes(open_metric_script(f"{script}:needs_all"), passes(GOOD), passes(BAD))
    assert (found.drop, found.interval) == (0, None)


def test_outputs_of_changing_shape_stay_a_list(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("def count(outputs, labels):\n    return sum(len(o[0]) for o in outputs['boxes'])\n")

    def start() -> Iterator[Batch]:
        for k in range(3):
            yield {"boxes": np.zeros((1, k + 1, 4))}, np.zeros(1, np.int64)

    assert changes(open_metric_script(f"{tmp_path / 'm.py'}:count"), start, start)[0].before == 6


def test_its_exception_has_its_own_traceback(script: Path) -> None:
    with pytest.raises(DataError, match=r"'metric\.py', line 30: calling fails failed: KeyError: 'nothing'") as caught:
        changes(open_metric_script(f"{script}:fails"), passes(GOOD), passes(BAD))
    assert 'return outputs["nothing"]' in caught.value.__notes__[0]
    assert "onnxprune" not in caught.value.__notes__[0]


@pytest.mark.parametrize(("name", "complaint"), [("words", "gives a str"), ("nothing", "gives no figures")])
def test_what_is_no_number(script: Path, name: str, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        changes(open_metric_script(f"{script}:{name}"), passes(GOOD), passes(BAD))


@pytest.mark.parametrize(
    ("name", "complaint"),
    [(":absent", "no 'absent'"), (":number", "no 'number'"), (":Half", "needs update"), ("", "say which")],
)
def test_what_is_no_metric(script: Path, name: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        open_metric_script(f"{script}{name}")


def test_a_script_that_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("1 / 0\n")
    with pytest.raises(DataError, match="line 1: running it failed: ZeroDivisionError"):
        open_metric_script(f"{tmp_path / 'm.py'}:f")
    with pytest.raises(UsageError, match="does not exist"):
        open_metric_script(f"{tmp_path / 'none.py'}:f")


def test_no_module_is_left_behind(script: Path) -> None:
    changes(open_metric_script(f"{script}:accuracy"), passes(GOOD), passes(BAD))
    assert not any(name.startswith("onnxprune_script") for name in sys.modules)
    assert str(script.parent) not in sys.path
