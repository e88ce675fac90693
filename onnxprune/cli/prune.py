"""`onnxprune prune`, or `onnxprune MODEL` for short."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.common import (
    EXIT_CODES,
    REPORT_FORMATS,
    formatted,
    name_of,
    same_file,
    selection,
    working,
    write_text,
)
from onnxprune.cli.errors import to_stderr
from onnxprune.errors import RunError, UsageError, quote

if TYPE_CHECKING:
    from onnxprune.calibration.pictures import PictureLayout


@click.command(epilog=EXIT_CODES, short_help="Write a smaller model.")
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
    help="Instead of a ratio, the share that may be left: macs=0.5, params=0.5; may be repeated.",
)
@click.option(
    "--criterion",
    metavar="NAME",
    help="What tells the units that matter: obs (default: the loss that least squares can't mend), l1, l2, bn_scale, "
    "fpgm, lamp, random, or with data mean, rms, apoz, wanda, correlation, loss (each unit masked: exact and slow).",
)
@click.option(
    "--compensate",
    metavar="MODE",
    default="auto",
    help="How the rest makes up for the cut: auto (default), none, bias, lstsq (least squares).",
)
@click.option("--allocation", metavar="MODE", default="auto", help="How the cut is spread: auto (default), uniform.")
@click.option(
    "--streams/--no-streams",
    default=None,
    help="Cut residual streams too; default: with --ratio yes, with --target no.",
)
@click.option(
    "--calib",
    "calibration",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Calibration inputs: .npz (keys = input names), .npy, a folder of them, test_data_set_*, or pictures.",
)
@click.option(
    "--data-script",
    metavar="F.py[:NAME]",
    help="Python that gives them: get_next() (CalibrationDataReader) or an iterable of dicts. It is run.",
)
@click.option("--samples", type=click.IntRange(1), metavar="N", help="How many calibration samples to use.")
@click.option("--mean", metavar="X[,X,X]", help="Pictures: what is taken off each channel.")
@click.option("--std", metavar="X[,X,X]", help="Pictures: what each channel is then divided by.")
@click.option("--image-size", metavar="N or HxW", help="Pictures: size, where the model leaves it open.")
@click.option("--layout", type=click.Choice(["nchw", "nhwc"]), help="Pictures: order of axes, where it can't be told.")
@click.option("--align", type=click.IntRange(1), default=1, metavar="N", help="Round kept counts up to multiples of N.")
@click.option("--no-validate", "validate", flag_value=False, default=True, help="Skip the proof in onnxruntime.")
@click.option(
    "--report",
    "reports",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="PATH",
    help="Write a report, .json or .md; may be repeated.",
)
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
    timeout: float | None,
    targets: tuple[str, ...],
    mean: str | None,
    std: str | None,
    image_size: str | None,
    layout: PictureLayout | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Cut the units that matter least out of MODEL and write a smaller model.

    The options that are not named here are those of `onnxprune.prune`.
    """
    _check_together(options["ratio"], targets, options["apply"], quiet, verbose)
    dry_run = options["dry_run"]
    target = output or (model if in_place else default_output(model))
    _check_files(model, None if dry_run else target, options["apply"], reports, plan_path)
    with working(quiet or as_json, verbose, timeout) as progress:
        from onnxprune.calibration import PictureOptions
        from onnxprune.options import parse_target
        from onnxprune.pipeline import prune as run

        options["target"] = dict(map(parse_target, targets))
        options["pictures"] = PictureOptions(
            _numbers("--mean", mean), _numbers("--std", std), _size(image_size), layout
        )
        result = run(model, output=None if dry_run else target, in_place=in_place, progress=progress, **options)
        for path in reports:
            write_text(path, formatted(result.report, path.suffix), result)
        if plan_path is not None:
            write_text(plan_path, result.plan.to_json(), result)
    for warning in result.report.warnings:
        from onnxprune.terminal import safe

        to_stderr(f"warning: {safe(warning)}", "yellow")
    if as_json:
        click.echo(result.report.to_json(), nl=False)
    elif not quiet:
        from onnxprune.terminal import console_on, print_report

        print_report(result.report, console_on(sys.stdout), dry_run=dry_run, verbose=verbose)


def default_output(model: Path) -> Path:
    """Returns the place beside a model that the pruned one goes to: `x.onnx` gives `x.pruned.onnx`."""
    stem = model.stem if model.suffix.lower() == ".onnx" else model.name
    return model.parent / f"{stem}.pruned.onnx"


def _check_together(
    ratio: float | None, targets: Sequence[str], apply: Path | None, quiet: bool, verbose: bool
) -> None:
    given = [
        name
        for name, value in (("--ratio", ratio), ("--target", targets or None), ("--apply", apply))
        if value is not None
    ]
    if not given:
        raise UsageError(
            "how much to cut is missing: give --ratio R (0 <= R < 1, like --ratio 0.5), --target macs=0.5, "
            "or --apply PLAN"
        )
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} contradict each other: give one of them")
    if quiet and verbose:
        raise UsageError("--quiet and --verbose contradict each other: give one of them")


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """Returns the numbers of `0.485,0.456,0.406`."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"{option} {quote(text)}: give one number, or one for each channel, like 0.5,0.5,0.5"
        ) from None


def _size(text: str | None) -> tuple[int, int] | None:
    """Returns (height, width) of `224` or `480x640`."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdigit() and int(part) for part in parts):
        raise UsageError(f"--image-size {quote(text)}: give a size in pixels, like 224 or 480x640")
    return int(parts[0]), int(parts[-1])


def _check_files(
    model: Path, target: Path | None, apply: Path | None, reports: Sequence[Path], plan_path: Path | None
) -> None:
    """Passes if what is written besides the model hits no other file of this run, and can be written at all."""
    for path in reports:
        if path.suffix not in REPORT_FORMATS:
            raise UsageError(f"--report {name_of(path)} is of no known format: end it in {' or '.join(REPORT_FORMATS)}")
    taken = {"the input": model, "the output": target, "the plan to apply": apply}
    for option, path in [*(("--report", path) for path in reports), *([("--plan", plan_path)] if plan_path else [])]:
        for what, other in taken.items():
            if other is not None and same_file(path, other):
                raise UsageError(f"{option} {name_of(path)} is {what}: give it a path of its own")
        if path.exists() and not path.is_file():
            raise UsageError(f"{option} {name_of(path)} is a folder or a device: give the path of a file to write")
        folder = path.absolute().parent
        if not folder.is_dir():
            raise RunError(f"{option} {name_of(path)} cannot be written: its folder does not exist, create it first")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise RunError(f"{option} {name_of(path)} cannot be written: its folder is read-only, choose another one")
        taken[f"another {option}"] = path
