"""The command: `onnxprune MODEL --ratio 0.5`. Errors are one line, and the exit code says what happened."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import click

from onnxprune import __version__
from onnxprune.cli import bench, gate, history, inspect, prune, sweep, validate
from onnxprune.cli.common import EXIT_CODES, WORDS
from onnxprune.cli.errors import ended
from onnxprune.cli.seldom import postpone

# Nothing of weight is imported up here, nor by the commands: `onnxprune --help` must not wait for onnxruntime.


class _Cli(click.Group):
    """A group in which `prune` may be left out, and whose errors are one line and an exit code of the table."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Puts `prune` in front unless a command, or an option of the group itself, stands there."""
        ctx.meta[WORDS] = list(args)
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
            records = [
                each.get_help_record(ctx) for each in self.commands["prune"].params if isinstance(each, click.Option)
            ]
            formatter.write_dl([each for each in records if each is not None])
        super().format_options(ctx, formatter)

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Runs the command and ends with its exit code."""
        extra["standalone_mode"] = False
        sys.exit(ended(lambda: super(_Cli, self).main(*args, **extra)))


@click.group(
    cls=_Cli,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog=EXIT_CODES,
    no_args_is_help=False,
)
@click.version_option(__version__, prog_name="onnxprune", message="%(prog)s %(version)s")
def cli() -> None:
    """Makes trained ONNX models smaller and faster, with no training.

    `onnxprune MODEL` is short for `onnxprune prune MODEL`.
    """


for _command in (prune.prune, inspect.inspect, bench.bench, validate.validate, gate.gate, history.history, sweep.sweep):
    cli.add_command(_command)


def prepare() -> None:
    """Makes this process one of the command, in its environment and streams."""
    # The wheels of onnxruntime report on every session to their maker: not from a command about its user's own models.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    postpone()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show must not end the run


def main() -> None:
    """Runs the command; what opens a model runs in a process of its own."""
    prepare()
    arguments = tuple(sys.argv[1:])
    cli.main(list(arguments), prog_name="onnxprune", obj=arguments)
