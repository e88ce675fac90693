"""`onnxprune bench`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.common import EXIT_CODES, as_json, check_written, provided, reported, working, write_reports
from onnxprune.cli.config import Configured

if TYPE_CHECKING:
    from onnxprune.latency.timing import Timing


@click.command(cls=Configured, epilog=EXIT_CODES, short_help="Time the original and the pruned model in turns.")
@click.argument("original", type=click.Path(path_type=Path))
@click.argument("pruned", type=click.Path(path_type=Path))
@provided
@click.option(
    "--threads",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="How many threads work on one operator; default: the provider's own choice.",
)
@click.option("--batch", type=click.IntRange(1), metavar="N", help="Samples of one run; default: 1.")
@click.option(
    "--calib",
    "calibration",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Data to take the input from, as for prune; default: made up.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=300,
    show_default=True,
    metavar="N",
    help="How many rounds at most: original, pruned, original.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    default=20.0,
    show_default=True,
    metavar="S",
    help="After which no new round begins.",
)
@reported
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, metavar="N", help="Seed of made-up inputs."
)
@as_json
def bench(original: Path, pruned: Path, reports: tuple[Path, ...], as_json: bool, **options: Any) -> None:
    """Time ORIGINAL and PRUNED in turns, as they are served, and say what can be said about it.

    The original takes its turn twice in every round: what it differs by from itself is the noise, and an effect that
    is not larger is called not conclusive.
    """
    check_written(reports, {}, {"the original": original, "the pruned model": pruned})
    with working(as_json, False) as progress:
        from onnxprune.latency.benchmark import bench as run

        timing = run(original, pruned, progress=progress, **options)
    write_reports(timing, reports)
    if as_json:
        click.echo(timing.to_json(), nl=False)
    else:
        for line in _lines(timing):
            click.echo(line)


def _lines(timing: Timing) -> Iterator[str]:
    """Yields what is printed: both models' times, and what can be said about them."""
    from onnxprune.latency.timing import verdict
    from onnxprune.reports.terminal import safe

    yield f"{'milliseconds':14}{'p10':>10}{'p50':>10}"
    for name, spread in (("original", timing.original), ("pruned", timing.pruned)):
        yield f"{name:14}{spread.p10:>10.4g}{spread.p50:>10.4g}"
    yield verdict(timing)
    threads = f"threads: {timing.threads}" if timing.threads else "the provider's own number of threads"
    yield f"{timing.rounds} rounds on {', '.join(timing.provider)}, {threads}; {safe(', '.join(timing.inputs))}"
