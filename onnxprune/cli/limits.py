"""Commands that open models nobody vouches for: each runs in a process of its own, within limits."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from onnxprune.graph.isolation import Limits


class Limited(click.Command):
    """A command with `--timeout` and `--max-memory`, whose function gets neither.

    It runs in a process of its own where the object of its context is the command line, as `main` passes it; else,
    as in that process, right here and without limits.
    """

    def __init__(self, *args: Any, **extra: Any) -> None:
        super().__init__(*args, **extra)
        self.params += [
            click.Option(["--timeout"], type=float, metavar="S", help="Give up after S seconds (exit code 7)."),
            click.Option(["--max-memory"], metavar="SIZE", help="Give up when it needs more, like 2GB (exit code 7)."),
        ]

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command, and returns what it gives, or the exit code of the other process."""
        from onnxprune.graph.isolation import Limits, run_apart

        limits = Limits.parse(ctx.params.pop("timeout"), ctx.params.pop("max_memory"))
        if not isinstance(ctx.obj, tuple):
            _silence_logs()
            return super().invoke(ctx)
        return run_apart(run_here, ctx.obj, limits, limits=limits, native=bool(ctx.params.get("verbose")))


def run_here(arguments: tuple[str, ...], limits: Limits) -> int:
    """Returns the exit code of a command line that is run in this process."""
    from onnxprune.cli import cli, prepare
    from onnxprune.cli.errors import ended

    prepare()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # what numpy meets in a damaged model goes to developers only
    code = ended(limits.bind_memory)
    if code:
        return code
    try:
        cli.main(list(arguments), prog_name="onnxprune")
    except SystemExit as end:
        return int(end.code or 0)


def _silence_logs() -> None:
    """Keeps off stderr what onnx-ir logs of a damaged model: what is wrong with it, an error says in one line."""
    import logging

    logging.getLogger("onnx_ir").addHandler(logging.NullHandler())
