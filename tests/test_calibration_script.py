"""Calibration data from the user's own Python file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onnxprune.calibration import Calibration, open_script
from onnxprune.errors import DataError, UsageError
from onnxprune.graph.inputs import InputSpec

X = (InputSpec("x", np.dtype(np.float32), ("n", 3)),)
Write = Callable[..., Path]
HEAD = "import numpy as np\nfeeds = [{'x': np.full((2, 3), k, np.float32)} for k in range(5)]\n"
READER = """
class Reader:
    def __init__(self):
        self._feeds = iter(feeds)
    def get_next(self):
        return next(self._feeds, None)
"""


@pytest.fixture
def script(tmp_path: Path) -> Write:
    def write(body: str, head: str = HEAD) -> Path:
        path = tmp_path / "my data.py"
        path.write_text(head + body)
        return path

    return write


def firsts(calibration: Calibration) -> list[float]:
    return [float(v) for b in calibration.batches() for v in b["x"][:, 0]]


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (READER, ""),
        (READER, ":Reader"),
        (READER + "other = Reader()\n", ":other"),
        ("", ":feeds"),
        ("def load_data():\n    yield from feeds\ndef helper(): pass\n", ""),
        ("def mine():\n    return iter(feeds)\n", ":mine"),
        (READER + "def make():\n    return Reader()\n", ":make"),
        (READER + "def make():\n    return Reader\n", ":make"),
        ("import dataclasses\nrows = {'x': np.repeat(np.arange(5), 2)[:, None] * np.ones(3, 'f')}\n", ":rows"),
        ("def table():\n    return {'x': np.repeat(np.arange(5), 2)[:, None] * np.ones(3, 'f')}\n", ":table"),
        ("def mine(n=5):\n    return _feeds[:n]\n_feeds = feeds\ndel feeds\n", ""),
    ],
)
def test_forms(script: Write, body: str, name: str) -> None:
    calibration = open_script(f"{script(body)}{name}", X, batch=4)
    assert firsts(calibration) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert firsts(calibration) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert "my data.py" in calibration.source and not calibration.synthetic


def test_only_as_much_is_read_as_is_asked_for(script: Write) -> None:
    path = script("def load_data():\n    while True:\n        yield feeds[0]\n")
    assert open_script(path, X, samples=7).samples == 7


def test_a_script_may_import_its_neighbours_and_print(
    script: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_neighbour_module.py").write_text("value = 3\n")
    before = list(sys.path)
    try:
        path = script(
            "from my_neighbour_module import value\nprint('hello')\ndef load_data():\n    return feeds[:value]\n"
        )
        assert len(firsts(open_script(path, X))) == 6
    finally:
        sys.modules.pop("my_neighbour_module", None)
    assert sys.path == before
    captured = capsys.readouterr()
    assert captured.out == "" and "hello" in captured.err
    assert not any(name.startswith("onnxprune_script") for name in sys.modules)


@pytest.mark.parametrize(
    ("body", "line", "error"),
    [
        ("raise ValueError('bad\\nworse')\n", 3, "ValueError: bad"),
        ("def load_data():\n    yield feeds[0]\n    return 1 / 0\n", 5, "ZeroDivisionError"),
        ("class R:\n    def get_next(self):\n        import json; json.loads('{')\n", 5, "JSONDecodeError"),
        ("class R:\n    def __init__(self):\n        missing\n    def get_next(self): pass\n", 5, "NameError"),
        ("import sys\nsys.exit(3)\n", 4, "SystemExit: 3"),
    ],
)
def test_its_exceptions_come_with_its_own_traceback(script: Write, body: str, line: int, error: str) -> None:
    with pytest.raises(DataError) as caught:
        open_script(script(body), X)
    message, (note,) = str(caught.value), caught.value.__notes__
    assert f"'my data.py', line {line}" in message and error in message and "\n" not in message
    assert f'my data.py", line {line}' in note and error in note
    assert "onnxprune/" not in note and caught.value.__cause__ is not None


def test_a_syntax_error_is_shown_with_its_line(script: Write) -> None:
    with pytest.raises(DataError, match="SyntaxError") as caught:
        open_script(script("def (:\n"), X)
    assert "def (:" in caught.value.__notes__[0]


def test_a_wrong_name_is_answered_with_the_nearest(script: Write) -> None:
    path = script(READER)
    with pytest.raises(UsageError, match="did you mean Reader"):
        open_script(f"{path}:Raeder", X)
    with pytest.raises(UsageError, match=r"say which with my data\.py:NAME"):
        open_script(script("def a(): pass\ndef b(): pass\n"), X)
    with pytest.raises(UsageError, match="nothing that could give data"):
        open_script(script("", head="import os\n"), X)


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        open_script(tmp_path / "none.py", X)
    with pytest.raises(UsageError, match="does not exist"):
        open_script(f"{tmp_path}/none.py:Reader", X)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("def load_data(): return 3\n", "gives a int"),
        ("def load_data(): return None\n", "gives a NoneType"),
        ("def load_data(): return 'calib.npz'\n", "gives a str"),
        ("def load_data(): return []\n", "no samples"),
        ("def load_data(): yield (feeds[0], 1)\n", "item 0 of the data is a tuple"),
        ("def load_data():\n    yield feeds[0]\n    yield {'y': 1}\n", "item 1 of the data.*missing 'x'; extra 'y'"),
        ("def load_data(): yield {'x': np.full((1, 3), np.nan, 'f')}\n", "item 0.*NaN"),
        ("def load_data(): yield {'x': np.array([[{}, 1, 2]])}\n", "Python objects"),
    ],
)
def test_what_it_gives_is_checked(script: Write, body: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        open_script(script(body), X)


def test_no_byte_code_is_left_beside_it(script: Write, tmp_path: Path) -> None:
    open_script(script(READER), X)
    assert [p.name for p in tmp_path.iterdir()] == ["my data.py"]
