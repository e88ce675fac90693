"""What the commands have in common: options, the spinner and the time limit, and the files they write."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.errors import failed, to_stderr
from onnxprune.errors import RunError, UsageError, quote

if TYPE_CHECKING:
    from onnxprune.pipeline import Result
    from onnxprune.report import Report

REPORT_FORMATS = (".json", ".md")

EXIT_CODES = """\b
Exit codes: 0 done, 1 a gate failed, 2 usage, 3 model rejected, 4 data rejected,
5 provider or environment missing, 6 nothing to prune, 7 failed while running."""


def selection(command: Callable[..., Any]) -> Callable[..., Any]:
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


@contextmanager
def working(silent: bool, verbose: bool, timeout: float | None) -> Iterator[Callable[[str], None]]:
    """Gives a function that tells which stage has begun: on a spinner if a terminal is there, in lines if verbose."""
    from onnxprune.terminal import console_on
    from onnxprune.timeout import time_limit

    console = console_on(sys.stderr)
    spinner = console.status("starting") if console.is_terminal and not silent and not verbose else None

    def leave(message: str) -> None:
        if spinner is not None:
            spinner.stop()
        failed(message, RunError.exit_code)

    def progress(stage: str) -> None:
        if spinner is not None:
            spinner.update(stage)
        elif verbose:
            to_stderr(stage)

    with time_limit(timeout, leave):
        if spinner is None:
            yield progress
        else:
            with spinner:
                yield progress


def formatted(report: Report, suffix: str) -> str:
    """Returns a report in the format that a file name's ending asks for."""
    if suffix == ".json":
        return report.to_json()
    from onnxprune.markdown import to_markdown

    return to_markdown(report)


def write_text(path: Path, text: str, result: Result) -> None:
    """Writes a report or plan, if it is not data of the input: that is known only now."""
    from onnxprune.report import write

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
