"""`onnxprune prune`, or `onnxprune MODEL` for short."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from onnxprune.cli.asking import asked, choices, data
from onnxprune.cli.common import (
    EXIT_CODES,
    check_written,
    command_line,
    reported,
    selection,
    working,
    write_text,
)
from onnxprune.cli.config import Configured
from onnxprune.cli.errors import to_stderr
from onnxprune.errors import UsageError
from onnxprune.reports.formats import add_to_summary, to_text


@click.command(cls=Configured, epilog=EXIT_CODES, short_help="Write a smaller model.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Where the pruned model goes; default: MODEL.pruned.onnx beside the input.",
)
@click.option("--in-place", is_flag=True, help="Let the pruned model take the place of the input.")
@click.option("--ratio", type=float, metavar="R", help="Share of the prunable units of each group to cut, 0 <= R < 1.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="KEY=VALUE",
    help="Instead of a ratio, what may be left: macs=0.5, params=0.5, size=4MB or size=0.5, latency=8ms or "
    "latency=0.6; may be repeated, all must hold.",
)
@click.option(
    "--max-drop",
    type=float,
    metavar="X",
    help="Instead of both, the loss of the smallest model: points of top-1 with --eval, else output divergence.",
)
@choices
@data
@click.option("--no-validate", "validate", flag_value=False, default=True, help="Skip the proof in onnxruntime.")
@reported
@click.option(
    "--plan", "plan_path", type=click.Path(path_type=Path), metavar="PATH", help="Write the plan: which units go."
)
@click.option("--apply", type=click.Path(path_type=Path), metavar="PATH", help="Replay a plan instead of --ratio.")
@click.option("--dry-run", is_flag=True, help="Plan and report, but write no model.")
@selection
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but warnings and errors.")
@click.option("-v", "--verbose", is_flag=True, help="Print every group, every reason and the stages.")
def prune(
    *,
    model: Path,
    output: Path | None,
    in_place: bool,
    reports: tuple[Path, ...],
    plan_path: Path | None,
    targets: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Cut the units that matter least out of MODEL and write a smaller model."""
    _check_together(
        {
            "ratio": options["ratio"],
            "target": targets or None,
            "max-drop": options["max_drop"],
            "apply": options["apply"],
        },
        quiet,
        verbose,
    )
    dry_run = options["dry_run"]
    target = output or (model if in_place else default_output(model))
    _check_files(model, None if dry_run else target, options["apply"], reports, plan_path)
    with working(quiet or as_json, verbose) as progress:
        from onnxprune.pipeline import prune as run

        options = asked(options) | {"target": _limits(targets)}
        result = run(model, output=None if dry_run else target, in_place=in_place, progress=progress, **options)
        result.report = replace(result.report, command=command_line())
        for path in reports:
            write_text(path, to_text(result.report, path.suffix), result)
        add_to_summary(result.report)
        if plan_path is not None:
            write_text(plan_path, result.plan.to_json(), result)
    for warning in result.report.warnings:
        from onnxprune.reports.terminal import safe

        to_stderr(f"warning: {safe(warning)}", "yellow")
    if as_json:
        click.echo(result.report.to_json(), nl=False)
    elif not quiet:
        from onnxprune.reports.terminal import console_on, print_report

        print_report(result.report, console_on(sys.stdout), dry_run=dry_run, verbose=verbose)


def _limits(targets: Sequence[str]) -> dict[str, str]:
    """Returns values by kind of texts such as `macs=0.5`."""
    from onnxprune.allocation.budget import Limit

    found: dict[str, str] = {}
    for limit in map(Limit.parse, targets):
        if limit.kind in found:
            raise UsageError(f"--target {limit.kind} is given twice: give the smaller one")
        found[limit.kind] = limit.value
    return found


def default_output(model: Path) -> Path:
    """Returns the place beside a model that the pruned one goes to: `x.onnx` gives `x.pruned.onnx`."""
    stem = model.stem if model.suffix.lower() == ".onnx" else model.name
    return model.parent / f"{stem}.pruned.onnx"


def _check_together(ways: Mapping[str, object], quiet: bool, verbose: bool) -> None:
    """Passes if one way says how much to cut, and nothing else contradicts itself."""
    given = [f"--{name}" for name, value in ways.items() if value is not None]
    if not given:
        raise UsageError(
            "how much to cut is missing: give --ratio R (0 <= R < 1, like --ratio 0.5), --target macs=0.5, "
            "--max-drop X, or --apply PLAN"
        )
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} contradict each other: give one of them")
    if quiet and verbose:
        raise UsageError("--quiet and --verbose contradict each other: give one of them")


def _check_files(
    model: Path, target: Path | None, apply: Path | None, reports: Sequence[Path], plan_path: Path | None
) -> None:
    """Passes if what is written besides the model hits no other file of this run, and can be written at all."""
    taken = {"the input": model, "the output": target, "the plan to apply": apply}
    check_written(reports, {"--plan": plan_path}, taken)
