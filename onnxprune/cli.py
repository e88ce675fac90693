"""The command. stdout holds the result, stderr the progress, warnings and errors, the exit code says what happened."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from onnxprune import __version__
from onnxprune.errors import OnnxPruneError, RunError, UsageError, quote

if TYPE_CHECKING:
    from onnxprune.calibration.pictures import PictureLayout
    from onnxprune.pipeline import Result
    from onnxprune.report import Report

# Nothing of weight is imported up here: `onnxprune --help` must not wait for onnxruntime.

REPORT_FORMATS = (".json", ".md")

_LINE = 4000  # characters of a line at most

_EXIT_CODES = """\b
Exit codes: 0 done, 1 a gate failed, 2 usage, 3 model rejected, 4 data rejected,
5 provider or environment missing, 6 nothing to prune, 7 failed while running."""


class _Cli(click.Group):
    """A group in which `prune` may be left out, and whose errors are one line and an exit code of the table."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Puts `prune` in front unless a command, or an option of the group itself, stands there."""
        if not args:
            raise click.UsageError("no model is given: onnxprune MODEL --ratio 0.5, or onnxprune --help")
        if args[0] not in self.commands and args[0] not in ("--help", "-h", "--version"):
            self._check_command(args)
            args = ["prune", *args]
        return super().parse_args(ctx, args)

    def _check_command(self, args: Sequence[str]) -> None:
        """Refuses what is a mistyped command rather than a model."""
        near = get_close_matches(args[0], self.commands, 1)
        if near and len(args) > 1 and not args[1].startswith("-") and not Path(args[0]).exists():
            raise click.UsageError(f"no command {args[0]!r}: did you mean {near[0]}?")

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Shows the short form first."""
        formatter.write_usage("onnxprune", "MODEL [OPTIONS]")
        formatter.write_usage("onnxprune", "COMMAND MODEL [OPTIONS]", prefix=" " * 7)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Shows the options of `prune`, then those of the group and the commands."""
        with formatter.section("Options of prune"):
            records = [each.get_help_record(ctx) for each in prune.params if isinstance(each, click.Option)]
            formatter.write_dl([each for each in records if each is not None])
        super().format_options(ctx, formatter)

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Runs the command and ends with its exit code."""
        extra["standalone_mode"] = False
        sys.exit(_ended(lambda: super(_Cli, self).main(*args, **extra)))


def _ended(run: Callable[[], Any]) -> int:
    """Returns the exit code of a run, having told in one line what went wrong, if anything."""
    try:
        code = run()
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except OnnxPruneError as error:
        return _failed(str(error), error.exit_code)
    except click.ClickException as error:
        return _failed(str(UsageError(error.format_message())), UsageError.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _failed("interrupted: run it again", RunError.exit_code)
    except BrokenPipeError:  # who reads stdout has seen enough (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return RunError.exit_code
    except MemoryError:
        return _failed("out of memory: take a machine with more, or a smaller model", RunError.exit_code)
    except Exception:  # ours: the traceback is what a bug report needs
        from onnxprune.terminal import safe

        for line in traceback.format_exc().splitlines():
            _to_stderr(safe(line, _LINE))
        return _failed("this is a bug in onnxprune, please report it with the lines above", RunError.exit_code)


def _failed(message: str, code: int) -> int:
    from onnxprune.terminal import safe

    _to_stderr(f"error: {safe(message, _LINE)}", "red")
    return code


def _to_stderr(line: str, colour: str | None = None) -> None:
    """Prints a line, its first word in colour if a terminal is there."""
    word, _, rest = line.partition(": ")
    shown = f"{click.style(word, fg=colour, bold=True)}: {rest}" if colour else line
    click.echo(shown, err=True)


@click.group(
    cls=_Cli,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog=_EXIT_CODES,
    no_args_is_help=False,
)
@click.version_option(__version__, prog_name="onnxprune", message="%(prog)s %(version)s")
def cli() -> None:
    """Makes trained ONNX models smaller and faster, with no training.

    `onnxprune MODEL` is short for `onnxprune prune MODEL`.
    """


# -------------------------------------------------------------------------------------------------- options
def _selection(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that say what is looked at, and on which provider."""
    options = [
        click.option("--include", metavar="PATTERN", multiple=True,
                     help="Cut only groups with this group, weight or node name (a glob; may be repeated)."),
        click.option("--exclude", metavar="PATTERN", multiple=True,
                     help="Don't cut groups with this group, weight or node name (a glob; may be repeated)."),
        click.option("--approximate", is_flag=True,
                     help="Open axes that can't be cut exactly (a normalisation or a mean over them)."),
        click.option("--provider", metavar="NAME", multiple=True,
                     help="Execution provider: cpu (default), cuda, ...; may be repeated, in order."),
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True, metavar="N",
                     help="Seed of every random draw."),
        click.option("--timeout", type=float, metavar="S", help="Give up after S seconds (exit code 7)."),
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@cli.command(epilog=_EXIT_CODES, short_help="Write a smaller model.")
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
@_selection
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
    with _working(quiet or as_json, verbose, timeout) as progress:
        from onnxprune.calibration import PictureOptions
        from onnxprune.options import parse_target
        from onnxprune.pipeline import prune as run

        options["target"] = dict(map(parse_target, targets))
        options["pictures"] = PictureOptions(
            _numbers("--mean", mean), _numbers("--std", std), _size(image_size), layout
        )
        result = run(model, output=None if dry_run else target, in_place=in_place, progress=progress, **options)
        for path in reports:
            _write_text(path, _formatted(result.report, path.suffix), result)
        if plan_path is not None:
            _write_text(plan_path, result.plan.to_json(), result)
    for warning in result.report.warnings:
        from onnxprune.terminal import safe

        _to_stderr(f"warning: {safe(warning)}", "yellow")
    if as_json:
        click.echo(result.report.to_json(), nl=False)
    elif not quiet:
        from onnxprune.terminal import console_on, print_report

        print_report(result.report, console_on(sys.stdout), dry_run=dry_run, verbose=verbose)


@cli.command(epilog=_EXIT_CODES, short_help="Show what can be cut, and what is frozen and why.")
@click.argument("model", type=click.Path(path_type=Path))
@_selection
def inspect(model: Path, timeout: float | None, as_json: bool, **options: Any) -> None:
    """Show the pruning groups of MODEL, what hangs on them, and what is frozen and why."""
    with _working(as_json, False, timeout) as progress:
        from onnxprune.pipeline import inspect as run

        inspection = run(model, progress=progress, **options)
    if as_json:
        click.echo(inspection.to_json(), nl=False)
    else:
        from onnxprune.terminal import console_on, print_inspection

        print_inspection(inspection, console_on(sys.stdout))


def default_output(model: Path) -> Path:
    """Returns the place beside a model that the pruned one goes to: `x.onnx` gives `x.pruned.onnx`."""
    stem = model.stem if model.suffix.lower() == ".onnx" else model.name
    return model.parent / f"{stem}.pruned.onnx"


# -------------------------------------------------------------------------------------------------- checks
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
            raise UsageError(f"--report {_name(path)} is of no known format: end it in {' or '.join(REPORT_FORMATS)}")
    taken = {"the input": model, "the output": target, "the plan to apply": apply}
    for option, path in [*(("--report", path) for path in reports), *([("--plan", plan_path)] if plan_path else [])]:
        for what, other in taken.items():
            if other is not None and _same(path, other):
                raise UsageError(f"{option} {_name(path)} is {what}: give it a path of its own")
        if path.exists() and not path.is_file():
            raise UsageError(f"{option} {_name(path)} is a folder or a device: give the path of a file to write")
        folder = path.absolute().parent
        if not folder.is_dir():
            raise RunError(f"{option} {_name(path)} cannot be written: its folder does not exist, create it first")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise RunError(f"{option} {_name(path)} cannot be written: its folder is read-only, choose another one")
        taken[f"another {option}"] = path


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)


def _name(path: Path) -> str:
    return quote(os.fspath(path), 300)


# -------------------------------------------------------------------------------------------------- work
@contextmanager
def _working(silent: bool, verbose: bool, timeout: float | None) -> Iterator[Callable[[str], None]]:
    """Gives a function that tells which stage has begun: on a spinner if a terminal is there, in lines if verbose."""
    from onnxprune.terminal import console_on
    from onnxprune.timeout import time_limit

    console = console_on(sys.stderr)
    spinner = console.status("starting") if console.is_terminal and not silent and not verbose else None

    def leave(message: str) -> None:
        if spinner is not None:
            spinner.stop()
        _failed(message, RunError.exit_code)

    def progress(stage: str) -> None:
        if spinner is not None:
            spinner.update(stage)
        elif verbose:
            _to_stderr(stage)

    with time_limit(timeout, leave):
        if spinner is None:
            yield progress
        else:
            with spinner:
                yield progress


def _formatted(report: Report, suffix: str) -> str:
    if suffix == ".json":
        return report.to_json()
    from onnxprune.markdown import to_markdown

    return to_markdown(report)


def _write_text(path: Path, text: str, result: Result) -> None:
    """Writes a report or plan, if it is not data of the input: that is known only now."""
    from onnxprune.report import write

    if any(_same(path, file) for file in result._source.data_files):
        raise UsageError(f"{_name(path)} is a data file of the input: give it a path of its own")
    write(path, text)


def main() -> None:
    """Runs the command."""
    # The wheels of onnxruntime report on every session to their maker: not from a command about its user's own models.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show must not end the run
    cli()
