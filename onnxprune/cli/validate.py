"""`onnxprune validate`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.asking import data, pictured
from onnxprune.cli.common import EXIT_CODES, as_json, check_written, provided, reported, working, write_reports
from onnxprune.cli.config import Configured
from onnxprune.cli.errors import to_stderr
from onnxprune.cli.gate import conclude, limits, limits_of
from onnxprune.reports.formats import add_to_summary

if TYPE_CHECKING:
    from onnxprune.proof.gate_limits import Limits
    from onnxprune.reports.report import ClassChange, Comparison, Interval, OutputFidelity, Placement, Validation

_TOP = 5
_PATH = click.Path(path_type=Path)


@click.command(cls=Configured, epilog=EXIT_CODES, short_help="Compare a pruned model with its original.")
@click.argument("original", type=_PATH)
@click.argument("pruned", type=_PATH)
@click.option("--plan", type=_PATH, metavar="PATH", help="The plan of the cut; default: the one the model remembers.")
@data
@click.option("--metric-script", metavar="F.py:NAME", help="Python that measures instead of top-1. It is run.")
@click.option(
    "--output-name", "output", metavar="NAME", help="The output with the scores; default: the first that can."
)
@provided
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, metavar="N", help="Seed of every random draw."
)
@limits(speedup=False)
@reported
@as_json
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but warnings and errors.")
@click.option("-v", "--verbose", is_flag=True, help="Print every class, every output and the stages.")
def validate(
    original: Path,
    pruned: Path,
    *,
    measured: bool,
    reports: tuple[Path, ...],
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Compare PRUNED with ORIGINAL in three checks: is the cut exact, how far did the outputs move, what was lost.

    With limits (--max-drop ...) the exit code is 1 if one does not hold, and without any if the cut is not its plan's.
    """
    wanted = limits_of(options)
    taken = {"the original": original, "the pruned model": pruned, "the plan": options["plan"]}
    check_written(reports, {}, taken)
    with working(quiet or as_json, verbose) as progress:
        from onnxprune.proof.comparison import validate as run

        found = run(original, pruned, progress=progress, **pictured(options))
        write_reports(found, reports)
        add_to_summary(found)
    from onnxprune.reports.terminal import safe

    for warning in found.warnings:
        to_stderr(f"warning: {safe(warning)}", "yellow")
    if as_json:
        click.echo(found.to_json(), nl=False)
    elif not quiet:
        from onnxprune.reports.terminal import console_on, print_lines

        print_lines(console_on(sys.stdout), map(safe, lines(found, verbose=verbose)))
    _judge(found, wanted, measured=measured, silent=as_json or quiet)


def _judge(found: Comparison, wanted: Limits, *, measured: bool, silent: bool) -> None:
    """Passes if all limits hold, and if the cut is not known to be wrong."""
    from onnxprune.proof.gate import judge
    from onnxprune.proof.gate_limits import Limits

    if wanted.given or found.exactness.exact is False:
        conclude(judge([found], wanted if wanted.given else Limits(exact=True), measured=measured), silent=silent)


def lines(found: Comparison, *, verbose: bool) -> Iterator[str]:
    """Yields what is printed of a comparison, to be made safe for a terminal."""
    yield f"original: {found.model or '(in memory)'}"
    yield f"pruned: {found.pruned or '(in memory)'}"
    left = (("MACs", found.macs), ("parameters", found.params), ("bytes", found.size))
    yield "left: " + ", ".join(f"{100 * count.ratio:.1f} % of the {name}" for name, count in left)
    yield from _exactness_lines(found)
    yield from _fidelity_lines(found.validation, verbose)
    yield from _task_lines(found, verbose)
    if verbose:
        yield "seconds: " + ", ".join(f"{stage} {s:.2f}" for stage, s in found.seconds.items())


def _exactness_lines(found: Comparison) -> Iterator[str]:
    cut = found.exactness
    word = {True: "exact", False: "WRONG", None: "unknown"}[cut.exact]
    yield f"cut: {word}: {cut.why}"
    if cut.error is not None and cut.tolerance is not None:
        plural = "s" if len(found.validation.sizes) > 1 else ""
        at = f"at {len(found.validation.sizes)} size{plural}"
        yield f"  differs by {cut.error:.0e} (up to {cut.tolerance:.0e} allowed), {at}"
    for problem in cut.problems:
        yield f"  {problem}"


def _fidelity_lines(found: Validation, verbose: bool) -> Iterator[str]:
    if found.noise is not None:
        yield f"noise: the original itself differs by {found.noise:.0e} between the CPU and {', '.join(found.provider)}"
    worth = " (made up: real ones say more)" if found.made_up else ""
    yield f"outputs, on {found.inputs}{worth}:"
    shown = found.fidelity if verbose else found.fidelity[:_TOP]
    for each in shown:
        yield f"  {each.name}: {_output(each)}"
    if len(found.fidelity) > len(shown):
        yield f"  and {len(found.fidelity) - len(shown):,} more: see -v, --json or --report"
    if not found.fidelity:
        yield "  none that could be compared"
    places = [f"{p.nodes:,} nodes on {p.provider}{_elsewhere(p, found.provider)}" for p in found.placement]
    yield f"ran: {', '.join(places)}"


def _elsewhere(place: Placement, asked: Sequence[str]) -> str:
    """Returns the operators that another provider than the first one asked for had to run."""
    return "" if place.provider == asked[0] else f" ({', '.join(place.ops)})"


def _output(each: OutputFidelity) -> str:
    parts = [f"relative error {each.relative_error:.3g}{_between(each.intervals.get('relative_error'))}"]
    parts.append(f"cosine {each.cosine:.4f}")
    if each.snr is not None:
        parts.append(f"SNR {each.snr:.1f} dB")
    if each.kl is not None:
        parts.append(f"KL {each.kl:.3g}{_between(each.intervals.get('kl'))}")
    if each.top1_agreement is not None:
        parts.append(f"top-1 agreement {each.top1_agreement:.2%}")
    return ", ".join(parts) + f", {each.samples:,} samples"


def _between(interval: Interval | None) -> str:
    return "" if interval is None else f" ({interval.low:.3g} to {interval.high:.3g})"


def _task_lines(found: Comparison, verbose: bool) -> Iterator[str]:
    for score in found.scores:
        between = _between(score.interval)
        yield f"{score.name}: {score.before:.4g} before, {score.after:.4g} after, a drop of {score.drop:.4g}{between}"
    task = found.task
    if task is None:
        return
    yield f"task, on {task.samples:,} samples of {task.source}:"
    for name, change in (("top-1", task.top1), ("top-5", task.top5)):
        if change is not None:
            drop = f"{change.drop:.2f} points{_between(change.interval)}"
            yield f"  {name}: {change.before:.2f} % before, {change.after:.2f} % after, a drop of {drop}"
    rows = {row.label: row for row in task.per_class}
    shown = task.per_class if verbose else [rows[label] for label in task.worst]
    if shown and not verbose:
        yield "  classes that lost most:"
    for row in shown:
        yield f"    {_class(row)}"


def _class(row: ClassChange) -> str:
    drop = f"{row.drop:.1f} points{_between(row.interval)}"
    before_after = f"{row.before:.1f} % before, {row.after:.1f} % after"
    return f"class {row.label}: {before_after}, a drop of {drop}, {row.samples:,} samples"
