"""`onnxprune inspect`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from onnxprune.cli.common import EXIT_CODES, check_written, reported, selection, working, write_reports
from onnxprune.cli.config import Configured


@click.command(cls=Configured, epilog=EXIT_CODES, short_help="Show what can be cut, and what is frozen and why.")
@click.argument("model", type=click.Path(path_type=Path))
@reported
@selection
def inspect(model: Path, reports: tuple[Path, ...], as_json: bool, **options: Any) -> None:
    """Show the pruning groups of MODEL, what hangs on them, and what is frozen and why."""
    check_written(reports, {}, {"the model": model})
    with working(as_json, False) as progress:
        from onnxprune.pipeline import inspect as run

        inspection = run(model, progress=progress, **options)
    write_reports(inspection, reports)
    if as_json:
        click.echo(inspection.to_json(), nl=False)
    else:
        from onnxprune.reports.terminal import console_on, print_inspection

        print_inspection(inspection, console_on(sys.stdout))
