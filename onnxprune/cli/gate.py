"""`onnxprune gate`."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.common import EXIT_CODES, as_json, check_written, write_reports
from onnxprune.cli.config import Configured
from onnxprune.reports.formats import add_to_summary

if TYPE_CHECKING:
    from onnxprune.proof.gate import Verdict
    from onnxprune.proof.gate_limits import Limits

_HELP = {
    "max-drop": ("X", "Most that top-1 may lose, in points; of a metric script's figures, in their own unit."),
    "max-class-drop": ("X", "Most that any class may lose, in points."),
    "max-top5-drop": ("X", "Most that top-5 may lose, in points."),
    "max-divergence": ("X", "Most that any output may diverge: KL in nats for scores of classes, else relative error."),
    "max-error": ("X", "Largest relative error of any output."),
    "min-agreement": ("SHARE", "Least share of samples with the same top-1 class, like 0.98 or 98%."),
    "min-cut": ("SHARE", "Least share of the MACs that must be gone, like 0.4 or 40%."),
    "max-size": ("SIZE", "Largest .onnx with its data: 4MB, 4MiB, or a share of the original like 0.5."),
}
_SPEEDUP = ("X", "Least speedup that a report must show, like 1.3.")


def limits(*, speedup: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds the options that a gate is made of.

    Args:
        speedup: whether latency is told of, too.
    """
    told = {**_HELP, "min-speedup": _SPEEDUP} if speedup else _HELP

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        options = [
            click.option(f"--{name}", type=str if metavar != "X" else float, metavar=metavar, help=text)
            for name, (metavar, text) in told.items()
        ]
        options += [
            click.option("--exact", is_flag=True, help="The cut must have been checked, and be exact."),
            click.option(
                "--measured", is_flag=True, help="Judge figures as measured, not the worse ends of their intervals."
            ),
        ]
        for option in reversed(options):
            command = option(command)
        return command

    return add


def limits_of(given: dict[str, Any]) -> Limits:
    """Returns the limits among a command's options, and takes them out.

    Raises:
        UsageError: one is none.
    """
    from onnxprune.errors import UsageError
    from onnxprune.proof.gate_limits import Limits, option, parse_share, parse_size

    found: dict[str, Any] = {}
    for name in (*_HELP, "min-speedup", "exact"):
        name = name.replace("-", "_")
        value = given.pop(name, None)
        if name in ("min_agreement", "min_cut") and value is not None:
            value = parse_share(name, value)
        elif name == "max_size" and value is not None:
            value = parse_size(name, value)
        elif isinstance(value, float) and math.isnan(value):
            raise UsageError(f"{option(name)} nan is no limit: give a number")
        if value is not None:
            found[name] = value
    return Limits(**found)


@click.command(cls=Configured, epilog=EXIT_CODES, short_help="Judge reports again, without running anything.")
@click.argument("reports", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="REPORT.json...")
@limits(speedup=True)
@click.option(
    "--report",
    "written",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="PATH",
    help="Write the verdict: .html, .json, .md or .xml (JUnit); may be repeated.",
)
@as_json
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def gate(
    reports: tuple[Path, ...], written: tuple[Path, ...], measured: bool, as_json: bool, quiet: bool, **options: Any
) -> None:
    """Judge the reports of prune, validate and bench on one model by limits; exit code 1 if one does not hold.

    What is missing or no number fails, and of a figure with an interval the worse end is judged.
    """
    from onnxprune.proof.gate import gate as run

    check_written(written, {}, {f"report {k}": path for k, path in enumerate(reports, 1)})
    verdict = run(reports, limits_of(options), measured=measured)
    write_reports(verdict, written)
    add_to_summary(verdict)
    if as_json:
        click.echo(verdict.to_json(), nl=False)
    conclude(verdict, silent=as_json or quiet)


def conclude(verdict: Verdict, *, silent: bool) -> None:
    """Prints a verdict, one line for each limit.

    Raises:
        GateError: a limit does not hold.
    """
    from onnxprune.errors import GateError
    from onnxprune.proof.gate import lines
    from onnxprune.reports.terminal import console_on, print_lines, safe

    if not silent:
        print_lines(console_on(sys.stdout), (safe(line) for line in lines(verdict)))
    if not verdict.passed:
        count, first = len(verdict.failed), verdict.failed[0]
        raise GateError(f"{count} of {len(verdict.findings)} limits failed, the first: {first.told}")
