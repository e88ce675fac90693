"""The example of docs/plans.md does what it says."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "plans.md"


def blocks() -> list[str]:
    """Returns the Python of the page."""
    return re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_example_is_python() -> None:
    assert len(blocks()) == 4
    for block in blocks():
        compile(block, str(PAGE), "exec")


@pytest.mark.slow
def test_a_plan_carries_a_cut_back_into_pytorch(tmp_path: Path) -> None:
    for package in ("torch", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'onnxprune[models]'")
    script = tmp_path / "example.py"
    script.write_text("\n".join(blocks()) + "\nprint(sum(p.numel() for p in net.parameters()))\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert "Linear(in_features=128, out_features=32" in done.stdout
    assert int(done.stdout.split()[-1]) == 8 * 9 + 8 + 128 * 32 + 32 + 32 * 10 + 10
