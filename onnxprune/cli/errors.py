"""How a run of the command ends: one line that says what went wrong, and an exit code of the table."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import click

from onnxprune.errors import OnnxPruneError, RunError, UsageError

_LINE = 4000  # characters of a line at most


def ended(run: Callable[[], Any]) -> int:
    """Returns the exit code of a run, having told in one line what went wrong, if anything."""
    try:
        code = run()
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except OnnxPruneError as error:
        _tell_notes(error)
        return failed(str(error), error.exit_code)
    except click.ClickException as error:
        return failed(str(UsageError(error.format_message())), UsageError.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return failed("interrupted: run it again", RunError.exit_code)
    except BrokenPipeError:  # who reads stdout has seen enough (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return RunError.exit_code
    except MemoryError:
        return failed("out of memory: take a machine with more, or a smaller model", RunError.exit_code)
    except Exception:  # ours: the traceback is what a bug report needs
        from onnxprune.reports.terminal import safe

        for line in traceback.format_exc().splitlines():
            to_stderr(safe(line, _LINE))
        return failed("this is a bug in onnxprune, please report it with the lines above", RunError.exit_code)


def _tell_notes(error: OnnxPruneError) -> None:
    """Prints what an error has in its notes: the traceback of the user's own script."""
    from onnxprune.reports.terminal import safe

    for note in getattr(error, "__notes__", ()):
        for line in note.splitlines():
            to_stderr(safe(line, _LINE))


def failed(message: str, code: int) -> int:
    """Tells what went wrong, and returns the exit code."""
    from onnxprune.reports.terminal import safe

    to_stderr(f"error: {safe(message, _LINE)}", "red")
    return code


def to_stderr(line: str, colour: str | None = None) -> None:
    """Prints a line, its first word in colour if a terminal is there."""
    word, _, rest = line.partition(": ")
    shown = f"{click.style(word, fg=colour, bold=True)}: {rest}" if colour else line
    click.echo(shown, err=True)
