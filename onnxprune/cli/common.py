"""What the commands have in common: options, the spinner and the time limit, and the files they write."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.errors import to_stderr
from onnxprune.errors import RunError, UsageError, quote
from onnxprune.reports.formats import FORMATS, to_text
from onnxprune.reports.records import Record

if TYPE_CHECKING:
    from onnxprune.pipeline import Result

WORDS = "onnxprune.words"  # where a context keeps what was typed

EXIT_CODES = """\b
Exit codes: 0 done, 1 a gate failed, 2 usage, 3 model rejected, 4 data rejected,
5 provider or environment missing, 6 nothing to prune, 7 failed while running."""


reported = click.option(
    "--report",
    "reports",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="PATH",
    help="Write a report: .html, .json, .md or .xml (JUnit); may be repeated.",
)
provided = click.option(
    "--provider",
    metavar="NAME",
    multiple=True,
    help="Execution provider: cpu (default), cuda, ...; may be repeated, in order.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def selection(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that say what is looked at, and on which provider."""
    options = [
        click.option("--include", metavar="PATTERN", multiple=True,
                     help="Cut only groups with this group, weight or node name (a glob; may be repeated)."),
        click.option("--exclude", metavar="PATTERN", multiple=True,
                     help="Don't cut groups with this group, weight or node name (a glob; may be repeated)."),
        click.option("--approximate", is_flag=True,
                     help="Open axes that can't be cut exactly (a normalisation or a mean over them)."),
        provided,
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True, metavar="N",
                     help="Seed of every random draw."),
        as_json,
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@contextmanager
def working(silent: bool, verbose: bool) -> Iterator[Callable[[str], None]]:
    """Gives a function that tells which stage has begun: on a spinner if a terminal is there, in lines if verbose."""
    from onnxprune.reports.terminal import console_on

    console = console_on(sys.stderr)
    spinner = console.status("starting") if console.is_terminal and not silent and not verbose else None

    def progress(stage: str) -> None:
        if spinner is not None:
            spinner.update(stage)
        elif verbose:
            to_stderr(stage)

    with spinner or nullcontext():
        yield progress


def check_written(reports: Sequence[Path], others: Mapping[str, Path | None], taken: Mapping[str, Path | None]) -> None:
    """Passes if what is written besides a model hits no other file of this run, and can be written at all.

    Args:
        reports: paths of reports.
        others: by option, what else is written.
        taken: files that must not be hit, by what they are.

    Raises:
        UsageError: a path is taken, no file, or a report of no known format.
        RunError: it cannot be written there.
    """
    for path in reports:
        if path.suffix not in FORMATS:
            raise UsageError(f"--report {name_of(path)} is of no known format: end it in {' or '.join(FORMATS)}")
    own = dict(taken)
    given = [(option, path) for option, path in others.items() if path is not None]
    for option, path in [*(("--report", path) for path in reports), *given]:
        for what, other in own.items():
            if other is not None and same_file(path, other):
                raise UsageError(f"{option} {name_of(path)} is {what}: give it a path of its own")
        if path.exists() and not path.is_file():
            raise UsageError(f"{option} {name_of(path)} is a folder or a device: give the path of a file to write")
        folder = path.absolute().parent
        if not folder.is_dir():
            raise RunError(f"{option} {name_of(path)} cannot be written: its folder does not exist, create it first")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise RunError(f"{option} {name_of(path)} cannot be written: its folder is read-only, choose another one")
        own[f"another {option}"] = path


def command_line() -> str:
    """Returns the command as it was typed."""
    return shlex.join(["onnxprune", *click.get_current_context().meta.get(WORDS, [])])


def write_reports(report: Record, paths: Sequence[Path]) -> None:
    """Writes a report, each in the format that its name's ending asks for."""
    from onnxprune.reports.records import write

    for path in paths:
        write(path, to_text(report, path.suffix))


def write_text(path: Path, text: str, result: Result) -> None:
    """Writes a report or plan, if it is not data of the input: that is known only now."""
    from onnxprune.reports.records import write

    if any(same_file(path, file) for file in result._source.data_files):
        raise UsageError(f"{name_of(path)} is a data file of the input: give it a path of its own")
    write(path, text)


def same_file(one: Path, other: Path) -> bool:
    """Returns whether two paths lead to one file, there or not."""
    try:
        return one.samefile(other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)


def name_of(path: Path) -> str:
    """Returns a path as errors show it."""
    return quote(os.fspath(path), 300)
