"""`onnxprune history`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxprune.cli.common import EXIT_CODES, as_json, name_of, same_file
from onnxprune.cli.limits import Limited
from onnxprune.errors import UsageError

if TYPE_CHECKING:
    from onnxprune.reports.history import History, Step
    from onnxprune.reports.report import Count


@click.command(cls=Limited, epilog=EXIT_CODES, short_help="Show how a model was pruned, and take its plans out again.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--plan",
    "plan_path",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Write the plan of a step: which units went, and the indices that were kept (--apply replays it).",
)
@click.option("--step", type=click.IntRange(1), metavar="K", help="Which step's plan; default: the last one.")
@as_json
def history(model: Path, plan_path: Path | None, step: int | None, as_json: bool) -> None:
    """Show the prunings that MODEL remembers in its metadata: figures, options, and what each was made from."""
    if step is not None and plan_path is None:
        raise UsageError("--step says which plan to write: give --plan PATH, too")
    if plan_path is not None and same_file(plan_path, model):
        raise UsageError(f"--plan {name_of(plan_path)} is the model: give it a path of its own")
    from onnxprune.reports.history import plan_of, read
    from onnxprune.reports.records import write
    from onnxprune.reports.terminal import console_on, print_lines

    found, metadata = read(model)
    if plan_path is not None:
        write(plan_path, plan_of(metadata, len(found.steps) if step is None else step).to_json())
    if as_json:
        click.echo(found.to_json(), nl=False)
    else:
        print_lines(console_on(sys.stdout), _lines(found))


def _lines(found: History) -> Iterator[str]:
    from onnxprune.reports.terminal import safe

    yield f"model: {safe(found.model)} (SHA-256 {found.sha256})"
    if not found.steps:
        yield "it remembers no pruning"
    for step in found.steps:
        yield from _step_lines(step)


def _step_lines(step: Step) -> Iterator[str]:
    from onnxprune.reports.command_line import as_arguments
    from onnxprune.reports.terminal import safe

    cut = step.units.before - step.units.after
    yield f"step {step.number}: onnxprune {safe(step.tool, 40)} {safe(as_arguments(step.options))}"
    yield f"  from: {step.bytes:,} bytes, SHA-256 {safe(step.sha256, 64)}"
    yield f"  MACs {_change(step.macs)}, parameters {_change(step.params)}"
    yield f"  {cut:,} of {step.units.before:,} units cut, " + (
        f"weights refitted on {safe(step.data)}" if step.data else "weights as they were"
    )
    if not step.has_plan:
        yield "  the plan was too large to be kept"


def _change(count: Count) -> str:
    return f"{count.before:,} -> {count.after:,} ({100 * count.ratio:.1f} %)"
