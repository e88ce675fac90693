"""docs/operators.md is what the registry says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_page_is_up_to_date() -> None:
    found = subprocess.run([sys.executable, ROOT / "tools" / "document_operators.py", "--check"], check=False)
    assert found.returncode == 0, "run python tools/document_operators.py"
