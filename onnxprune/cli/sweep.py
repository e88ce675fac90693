"""`onnxprune sweep`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from onnxprune.cli.asking import asked, choices, data
from onnxprune.cli.common import EXIT_CODES, selection, working
from onnxprune.cli.config import Configured
from onnxprune.errors import UsageError, quote
from onnxprune.reports.formats import to_text

DEFAULT = "macs=0.9,0.8,0.7,0.6,0.5,0.4,0.3,0.2"


@click.command(cls=Configured, epilog=EXIT_CODES, short_help="Draw the trade-off curve over many targets.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--targets",
    multiple=True,
    metavar="KEY=V,V,...",
    help=f"What may be left at each point: macs=0.9,0.7,0.5 or size=4MB,2MB; may be repeated. Default: {DEFAULT}.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder for sweep.json, .svg and .html, and the plans; default: MODEL.sweep beside the input. A sweep that "
    "was ended goes on there.",
)
@click.option("--models", is_flag=True, help="Write the model of every point too, validated.")
@click.option("--latency", is_flag=True, help="Measure the latency of every point, in turns with the original.")
@choices
@data
@selection
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but warnings and errors.")
@click.option("-v", "--verbose", is_flag=True, help="Print the stages.")
def sweep(
    *,
    model: Path,
    targets: tuple[str, ...],
    output: Path | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Cut MODEL to many targets and say what each leaves and loses: MACs, bytes, latency, fidelity, top-1.

    What groups cost the outputs is measured once for all points. Each point has a plan: `onnxprune MODEL --apply PLAN`
    with the same data makes the very model that was measured.
    """
    if quiet and verbose:
        raise UsageError("--quiet and --verbose contradict each other: give one of them")
    folder = output or model.parent / f"{model.stem}.sweep"
    wanted = _spelt_out(targets or (DEFAULT,))
    with working(quiet or as_json, verbose) as progress:
        from onnxprune.reports.records import write
        from onnxprune.reports.tradeoff_view import chart
        from onnxprune.tradeoff import sweep as run

        found = run(model, wanted, folder, progress=progress, **asked(options))
        write(folder / "sweep.svg", chart(found))
        write(folder / "sweep.html", to_text(found, ".html"))
    if as_json:
        click.echo(found.to_json(), nl=False)
    elif not quiet:
        from onnxprune.reports.terminal import console_on, print_lines, print_table, safe
        from onnxprune.reports.tradeoff_view import columns, lines, rows

        console = console_on(sys.stdout)
        print_table(console, columns(found), [tuple(map(safe, row)) for row in rows(found)])
        print_lines(console, [safe(line) for line in lines(found)])
        print_lines(
            console, [f"written: {safe(str(folder / name))}" for name in ("sweep.json", "sweep.svg", "sweep.html")]
        )


def _spelt_out(texts: Sequence[str]) -> list[str]:
    """Returns one target for each value of `macs=0.9,0.7`."""
    found = []
    for text in texts:
        kind, equals, values = text.partition("=")
        if not equals or not values.strip(", "):
            raise UsageError(f"--targets {quote(text)}: give what may be left at each point, like macs=0.9,0.7,0.5")
        found += [f"{kind}={value.strip()}" for value in values.split(",") if value.strip()]
    return found
