"""The user's own Python file as a source of data. It runs only when it is asked for by name."""

from __future__ import annotations

import contextlib
import difflib
import re
import sys
import traceback
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxprune.calibration import arrays, streams
from onnxprune.calibration.batches import Calibration, calibrate, count
from onnxprune.calibration.layout import layout
from onnxprune.errors import DataError, OnnxPruneError, UsageError, quote
from onnxprune.graph.inputs import InputSpec

__all__ = ["execute", "failure", "open_script", "running", "split_script"]

_USUAL = ("load_data", "get_data", "calibration_data", "data_reader", "reader", "data")


def open_script(
    script: str | Path, specs: Sequence[InputSpec], *, samples: int | None = None, batch: int = 32, seed: int = 0
) -> Calibration:
    """Return what a Python file gives as calibration data: its first `samples` samples.

    What the file defines may be a class or an object with `get_next()` (onnxruntime's CalibrationDataReader), an
    iterable of dicts, a dict of arrays, or a function that returns one of these. It runs here and not later.

    Args:
        script: `FILE.py` or `FILE.py:NAME`.
        specs: what the model takes.
        samples: how many to take, None for `DEFAULT_SAMPLES`.
        batch: how many to feed at once, where the model does not say.
        seed: of the choice, where all data are in memory.

    Raises:
        UsageError: there is no such file or name.
        DataError: the script failed (its traceback is in the error's notes), or its data do not fit the model.
    """
    path, name = split_script(script)
    wanted = count(samples)
    place = layout(specs)
    with running(path) as module:
        execute(path, module)
        data = _data(_pick(module, path, name), path)
        if isinstance(data, Mapping):
            blocks = [arrays.from_dict(data, specs, place)]
        else:
            items = streams.items_of(data, lambda error, where: failure(error, path, where))
            blocks = streams.blocks_of(items, specs, place, wanted)
    source = f"script {arrays.shown_path(path)}"
    if not sum(b.rows for b in blocks):
        raise DataError(f"{source} gave no samples: was its reader read to the end before?")
    return calibrate(blocks, specs, place, samples=samples, batch=batch, seed=seed, source=source)


def split_script(script: str | Path) -> tuple[Path, str | None]:
    """Return the file and the name that `FILE.py:NAME` stands for."""
    named = re.fullmatch(r"(.+\.py):([^:/\\]+)", str(script), re.DOTALL)
    return (Path(named[1]), named[2]) if named else (Path(script), None)


@contextlib.contextmanager
def running(path: Path, module: types.ModuleType | None = None) -> Iterator[types.ModuleType]:
    """Give the module that the script fills, while it can import its neighbours and prints to stderr.

    Args:
        path: of the script.
        module: what it filled before, if it is only called again.
    """
    if module is None:
        arrays.beginning(path)
        module = types.ModuleType(f"onnxprune_script_{re.sub(r'[^A-Za-z0-9_]', '_', path.stem)}")
        module.__file__ = str(path)
    folder = str(path.resolve().parent)
    sys.modules[module.__name__] = module  # dataclasses and the like look their module up
    sys.path.insert(0, folder)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield module
    finally:
        sys.modules.pop(module.__name__, None)
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def execute(path: Path, module: types.ModuleType) -> None:
    """Run a script.

    Raises:
        DataError: it failed.
    """
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        raise failure(error, path, "running it") from error


def _pick(module: types.ModuleType, path: Path, name: str | None) -> Any:
    """Return the object in the script that gives the data."""
    public = {k: v for k, v in vars(module).items() if not k.startswith("_") and _could_give(v, module)}
    if name is not None:
        if name in vars(module):
            return vars(module)[name]
        near = difflib.get_close_matches(name, public, 1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(public) or 'nothing that could give data'}"
        raise UsageError(f"{arrays.shown_path(path)} defines no {quote(name)}: {hint}")
    readers = [k for k, v in public.items() if callable(getattr(v, "get_next", None))]
    for found in (readers, [k for k in _USUAL if k in public][:1], list(public)):
        if len(found) == 1:
            return public[found[0]]
    names = ", ".join(public) or "nothing that could give data"
    raise UsageError(f"{arrays.shown_path(path)} defines {names}: say which with {path.name}:NAME")


def _could_give(value: object, module: types.ModuleType) -> bool:
    if isinstance(value, types.ModuleType | str | bytes):
        return False
    if isinstance(value, type) or callable(value):
        return getattr(value, "__module__", None) == module.__name__ and not _needs_arguments(value)
    return hasattr(value, "get_next") or hasattr(value, "__iter__") or hasattr(value, "__getitem__")


def _needs_arguments(value: Any) -> bool:
    import inspect

    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return False
    free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(p.default is p.empty and p.kind not in free for p in parameters)


def _data(value: Any, path: Path) -> Any:
    """Return a reader, an iterable or a mapping, calling classes and functions for it."""
    for _ in range(3):
        if isinstance(value, Mapping) or (not isinstance(value, type) and _gives(value)):
            return value
        if not callable(value):
            break
        try:
            value = value()
        except (Exception, SystemExit) as error:
            raise failure(error, path, f"calling {getattr(value, '__name__', 'it')}") from error
    raise DataError(
        f"script {arrays.shown_path(path)} gives a {type(value).__name__}: "
        "give an object with get_next(), an iterable of dicts, or a dict of arrays"
    )


def _gives(value: Any) -> bool:
    if isinstance(value, str | bytes):
        return False
    return callable(getattr(value, "get_next", None)) or hasattr(value, "__iter__") or hasattr(value, "__getitem__")


def failure(error: BaseException, path: Path, doing: str) -> DataError:
    """Return the error for an exception of the script's, with the script's part of the traceback in its notes."""
    if isinstance(error, OnnxPruneError) and isinstance(error, DataError):
        return error
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename != str(path):
        frames = frames.tb_next
    line = f", line {frames.tb_lineno}" if frames is not None else ""
    trimmed = error.with_traceback(frames)
    reason = next(iter(str(error).splitlines()), "")
    failed = DataError(
        f"script {arrays.shown_path(path)}{line}: {doing} failed: {type(error).__name__}"
        f"{': ' + reason if reason else ''}: mend the script"
    )
    failed.add_note("".join(traceback.format_exception(trimmed)).rstrip())
    return failed
