"""Writes docs/operators.md from the registry: python tools/document_operators.py [--check]."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from onnxprune.ops import REGISTRY

PAGE = Path(__file__).resolve().parent.parent / "docs" / "operators.md"
HEAD = """# Operators

Made by `python tools/document_operators.py` from the registry. An operator that is not here is a barrier: the
channels that touch it stay, and `onnxprune inspect` names it. Rules hold for every opset that onnxruntime runs; where
the forms differ between opsets (attributes or inputs, axes of Softmax) they know both.

| domain | operators | what is coupled, what freezes | sizes follow | MACs counted | refitted |
|---|---|---|---|---|---|
"""


def page() -> str:
    """Returns the page."""
    homes = {id(home): home for home in REGISTRY.values()}
    rows = []
    for home in sorted(homes.values(), key=lambda h: (h.domain, h.names)):
        marks = ["yes" if slot.rule else "" for slot in (home.sizes, home.macs, home.linear)]
        doc = home.doc.replace("|", "\\|")
        rows.append(f"| {home.domain or 'ai.onnx'} | {', '.join(home.names)} | {doc} | {' | '.join(marks)} |")
    return HEAD + "\n".join(rows) + "\n"


def main() -> None:
    """Writes the page, or says whether it is what the registry says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 if the page is not up to date")
    if parser.parse_args().check:
        sys.exit(PAGE.read_text(encoding="utf-8") != page())
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
