"""Options of the commands that cut: what to cut and how, on which data, and how fast it is to be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.errors import UsageError, quote

if TYPE_CHECKING:
    from onnxprune.calibration.pictures import PictureOptions

Command = Callable[..., Any]

_CHOICES = [
    click.option("--criterion", metavar="NAME",
                 help="What tells the units that matter: obs (default: the loss that least squares can't mend), l1, "
                 "l2, bn_scale, fpgm, lamp, random, or with data mean, rms, apoz, wanda, correlation, loss (each unit "
                 "masked: exact and slow)."),
    click.option("--compensate", metavar="MODE", default="auto",
                 help="How the rest makes up for the cut: none, bias, lstsq (least squares, layer by layer), joint "
                 "(then also layers with activations, attention or gates between them together: nearer, but slower), "
                 "auto (joint)."),
    click.option("--allocation", metavar="MODE", default="auto",
                 help="How the cut is spread over groups: uniform (default with --ratio), global (by importance), "
                 "sensitivity (default otherwise: each group is cut alone, and what that costs is measured), auto."),
    click.option("--streams/--no-streams", default=None,
                 help="Cut residual streams too; default: not if a target is met uniformly or globally."),
    click.option("--max-ratio-per-group", metavar="[PATTERN=]R", multiple=True,
                 help="Share of a group's units that may go at most, for all groups or by name (a glob)."),
    click.option("--min-units", metavar="[PATTERN=]N", multiple=True,
                 help="Units of a group that stay at least, for all groups or by name (a glob)."),
    click.option("--align", metavar="N or auto",
                 help="Round kept counts up to multiples of N; auto (default but with --ratio): where that pays."),
    click.option("--threads", type=click.IntRange(0), default=0, metavar="N",
                 help="Threads that latency is measured with; default: the provider's own choice."),
    click.option("--batch", type=click.IntRange(1), default=1, metavar="N",
                 help="Batch size that latency is measured at; default: 1."),
    click.option("--jobs", type=click.IntRange(1), metavar="N",
                 help="Batches or measurements at a time, with the same result; default: one for each processor."),
]  # fmt: skip

_DATA = [
    click.option("--calib", "calibration", type=click.Path(path_type=Path), metavar="PATH",
                 help="Calibration inputs: .npz (keys = input names), .npy, a folder of them, test_data_set_*, or "
                 "pictures."),
    click.option("--data-script", metavar="F.py[:NAME]",
                 help="Python that gives them: get_next() (CalibrationDataReader) or an iterable of dicts. It is run."),
    click.option(
        "--samples",
        type=click.IntRange(1),
        metavar="N",
        help="How many calibration samples to use; where there are far fewer, mixtures of them are used, too.",
    ),
    click.option("--eval", "evaluate", type=click.Path(path_type=Path), metavar="PATH",
                 help="Labelled data, in any form that calibration inputs have: top-1 before and after."),
    click.option("--labels", metavar="KEY",
                 help="Where the labels of --eval are: a name in there, or a file of their own."),
    click.option("--mean", metavar="X[,X,X]", help="Pictures: what is taken off each channel."),
    click.option("--std", metavar="X[,X,X]", help="Pictures: what each channel is then divided by."),
    click.option("--image-size", metavar="N or HxW", help="Pictures: size, where the model leaves it open."),
    click.option("--layout", type=click.Choice(["nchw", "nhwc"]),
                 help="Pictures: order of axes, where it can't be told."),
]  # fmt: skip


def choices(command: Command) -> Command:
    """Adds the options that say what goes, and how the rest makes up for it."""
    return _with(_CHOICES, command)


def data(command: Command) -> Command:
    """Adds the options that say where data come from."""
    return _with(_DATA, command)


def _with(options: Sequence[Callable[[Command], Command]], command: Command) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def asked(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the library takes for the values of `choices` and `data`.

    Raises:
        UsageError: one makes no sense.
    """
    from onnxprune.allocation.bounds import parse_bounds

    found = pictured(options)
    found["max_ratio_per_group"] = dict(parse_bounds("--max-ratio-per-group", found["max_ratio_per_group"])) or None
    found["min_units"] = dict(parse_bounds("--min-units", found["min_units"])) or None
    found["align"] = _align(found["align"])
    return found


def pictured(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options with how pixels become inputs in the place of the four that say it.

    Raises:
        UsageError: one makes no sense.
    """
    found = dict(options)
    found["pictures"] = _pictures(*(found.pop(name) for name in ("mean", "std", "image_size", "layout")))
    return found


def _align(text: str | None) -> int | str | None:
    if text is None or text == "auto":
        return text
    if not text.isdigit() or not int(text):
        raise UsageError(f"--align {quote(text)}: give the multiple that kept counts are rounded to, like 8, or auto")
    return int(text)


def _pictures(mean: str | None, std: str | None, size: str | None, layout: Any) -> PictureOptions:
    from onnxprune.calibration import PictureOptions

    return PictureOptions(_numbers("--mean", mean), _numbers("--std", std), _size(size), layout)


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
