"""Options from a file: `onnxprune.toml`, or `[tool.onnxprune]` in `pyproject.toml`. The command line wins.

ratio = 0.5               # for every command that has the option
calib = "inputs.npz"      # paths are relative to the file

[validate]                # for this command alone
provider = ["cuda", "cpu"]
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from onnxprune.cli.limits import Limited
from onnxprune.errors import UsageError, quote

FILES = ("onnxprune.toml", "pyproject.toml")
MOST_BYTES = 1 << 20
EITHER = (
    {"ratio", "target", "max-drop", "apply"},
    {"calib", "data-script"},
    {"quiet", "verbose"},
    {"output", "in-place"},
)
"""Options of which one on the command line puts the others of the file aside."""
SOURCES = {
    ParameterSource.COMMANDLINE: "command line",
    ParameterSource.DEFAULT_MAP: "file",
    ParameterSource.DEFAULT: "default",
}


class Configured(Limited):
    """A command whose options may stand in a file."""

    def __init__(self, *args: Any, **extra: Any) -> None:
        super().__init__(*args, **extra)
        self.params += [
            click.Option(
                ["--config"],
                type=click.Path(path_type=Path),
                metavar="PATH",
                expose_value=False,
                help="Options from a TOML file; default: onnxprune.toml, or [tool.onnxprune] in pyproject.toml, here.",
            ),
            click.Option(
                ["--print-config"],
                is_flag=True,
                expose_value=False,
                help="Print all options as such a file, and where each comes from, and do nothing else.",
            ),
        ]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Takes options that the command line does not give from the file."""
        given, _, _ = self.make_parser(ctx).parse_args(list(args))
        path = given.get("config")
        found = _found(Path(path) if path is not None else None)
        if found is not None:
            ctx.default_map = self._defaults(ctx, *found, given)
        rest = super().parse_args(ctx, args)
        if given.get("print_config"):
            click.echo(_printed(ctx), nl=False)
            ctx.exit()
        return rest

    def _defaults(self, ctx: click.Context, path: Path, table: Mapping[str, Any], given: Iterable[str]) -> Any:
        """Returns a value for each parameter that the file sets and the command line leaves open."""
        siblings = getattr(ctx.parent.command, "commands", {}) if ctx.parent is not None else {}
        everywhere = {name for each in (self, *siblings.values()) for name in _options(each)}
        own = _options(self)
        common = {key: value for key, value in table.items() if key not in siblings}
        mine = table.get(self.name or "", {})
        if not isinstance(mine, Mapping):
            raise UsageError(f"{_shown(path)}: {quote(str(self.name))} should be a table of options")
        _check_known(path, common, everywhere)
        _check_known(path, mine, set(own))
        set_aside = _set_aside({_dashed(option.opts) for name, option in own.items() if option.name in set(given)})
        values = {}
        for key, value in {**common, **mine}.items():
            if key in own and key not in set_aside:
                values[str(own[key].name)] = _value(ctx, own[key], value, path)
        return values


def _options(command: click.Command) -> dict[str, click.Option]:
    hidden = ("config", "print-config", "help", "version")
    options = [each for each in command.params if isinstance(each, click.Option)]
    return {_dashed(each.opts): each for each in options if _dashed(each.opts) not in hidden}


def _dashed(names: Iterable[str]) -> str:
    return max(names, key=len).lstrip("-")


def _set_aside(given: set[str]) -> set[str]:
    return {name for ways in EITHER if ways & given for name in ways}


def _found(path: Path | None) -> tuple[Path, dict[str, Any]] | None:
    """Returns the file and its options, None if there is no file.

    Raises:
        UsageError: it cannot be read.
    """
    if path is not None:
        table = _read(path)
        return path, table.get("tool", {}).get("onnxprune", {}) if path.name == FILES[1] else table
    for name in FILES:
        here = Path(name)
        if here.is_file():
            table = _read(here)
            if name == FILES[0]:
                return here, table
            if "onnxprune" in table.get("tool", {}):
                return here, table["tool"]["onnxprune"]
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise UsageError(f"{_shown(path)} is larger than {MOST_BYTES >> 20} MiB: that is no file of options")
        return tomllib.loads(text.decode("utf-8"))
    except OSError as error:
        raise UsageError(f"{_shown(path)} cannot be read ({error.strerror}): check --config") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{_shown(path)} is not TOML ({quote(str(error), 200)}): mend it") from error


def _check_known(path: Path, table: Mapping[str, Any], known: set[str]) -> None:
    for key in table:
        if key not in known:
            near = get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}?" if near else "options are named as on the command line, without dashes"
            raise UsageError(f"{_shown(path)}: {quote(key)} is no option: {hint}")


def _value(ctx: click.Context, option: click.Option, value: Any, path: Path) -> Any:
    """Returns a value of the file as the command line would give it.

    Raises:
        UsageError: it is of another kind.
    """
    if isinstance(value, Mapping):
        value = [f"{key}={each}" for key, each in value.items()]
    if option.multiple and not isinstance(value, list):
        value = [value]
    if isinstance(option.type, click.Path):
        value = [_beside(path, v) for v in value] if isinstance(value, list) else _beside(path, value)
    wrong_flag = option.is_flag and not isinstance(value, bool)
    try:
        if wrong_flag or (isinstance(value, list) and not option.multiple):
            raise click.BadParameter("give true or false" if wrong_flag else "give one value")
        option.type_cast_value(ctx, value)
    except click.BadParameter as error:
        raise UsageError(f"{_shown(path)}: {_dashed(option.opts)}: {error.message}") from error
    return not value if _turns_off(option) else value


def _turns_off(option: click.Option) -> bool:
    """Returns whether the option is one like `--no-validate`, whose parameter it makes false."""
    return option.is_flag and option.flag_value is False


def _beside(path: Path, value: Any) -> Any:
    return str(path.parent / value) if isinstance(value, str) else value


def _shown(path: Path) -> str:
    return quote(str(path), 300)


def _printed(ctx: click.Context) -> str:
    """Returns all options of a command as TOML, with what each comes from."""
    lines = []
    for key, option in sorted(_options(ctx.command).items()):
        name = str(option.name)
        value = not ctx.params[name] if _turns_off(option) else ctx.params.get(name)
        source = ctx.get_parameter_source(name)
        told = SOURCES.get(source, "default") if source is not None else "default"
        lines.append(f"# {key} is not set" if value is None else f"{key} = {_toml(value)}  # {told}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, (bool, int, float)):
        return str(value).lower()
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
