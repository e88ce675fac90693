"""The files that are being made: what has to go where a process ends in the middle of a save.

A process that ends by an error removes them itself. One that is killed, or dies in a native library, cannot: so what
it makes also stands in a journal, if there is one, from which whoever started the process removes it. Runs that write
to one place at a time leave each other's files alone.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

__all__ = ["PREFIX", "Unfinished", "journal_to", "mentions", "remove_data", "remove_left", "taking_part"]

PREFIX = ".onnxprune-"
"""Temporary files begin with it."""

_OPEN: set[Unfinished] = set()
_NUMBERS = itertools.count()
_JOURNALS: list[int] = []  # descriptors: one where this process has been started to work for another, else none


class Unfinished:
    """The files that one save has made so far and that stand for nothing yet.

    Args:
        target: the file that the save is to replace.
    """

    def __init__(self, target: Path) -> None:
        self.target = target.absolute()
        self._files: list[Path] = []
        self._number = next(_NUMBERS)
        _OPEN.add(self)

    def add(self, file: Path) -> None:
        """Takes a file in; to be called before it is there."""
        self._set([*self._files, file])

    def drop(self, file: Path) -> None:
        """Lets a file go that is not there any more."""
        self._set([each for each in self._files if each != file])

    def remove(self) -> None:
        """Removes what stands for nothing; the end of a save, whether it came through or not."""
        _remove(self.target, self._files)
        self._set([])
        _OPEN.discard(self)

    def _set(self, files: list[Path]) -> None:
        self._files = files
        for journal in _JOURNALS:
            line = json.dumps([self._number, os.fspath(self.target), [os.fspath(file) for file in files]])
            os.write(journal, f"{line}\n".encode())


@contextmanager
def journal_to(path: Path) -> Iterator[None]:
    """Writes down in a file what is made inside."""
    handle = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    _JOURNALS.append(handle)
    try:
        yield
    finally:
        _JOURNALS.remove(handle)
        os.close(handle)


def remove_left(journal: Path | None = None) -> None:
    """Removes what a process that has ended left behind, by its journal; by default what this one is making."""
    sets = {str(id(each)): (each.target, each._files) for each in list(_OPEN)} if journal is None else _read(journal)
    for target, files in sets.values():
        _remove(target, files)


def _read(journal: Path) -> dict[str, tuple[Path, list[Path]]]:
    sets = {}
    with contextlib.suppress(OSError):
        for line in journal.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):  # the disk was full in the middle of a line
                number, target, files = json.loads(line)
                sets[str(number)] = Path(target), [Path(file) for file in files]
    return sets


def _remove(target: Path, files: Iterable[Path]) -> None:
    for file in files:
        if file.name.startswith(PREFIX):
            with contextlib.suppress(OSError):  # the error that led here says more
                file.unlink(missing_ok=True)
        else:
            remove_data(target, [file])


def remove_data(target: Path, files: Iterable[Path]) -> None:
    """Removes data files of a model, unless it names them, or somebody is saving in that folder who may come to."""
    for file in files:
        with _alone_in(file.parent) as alone, contextlib.suppress(OSError):  # what is left over does no harm
            if alone and not mentions(target, file.name):
                file.unlink(missing_ok=True)


def mentions(path: Path, name: str) -> bool:
    """Returns whether a file holds a name."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(os.fsencode(name)) >= 0
    except (OSError, ValueError):
        return False


# -------------------------------------------------------------------------------------------------- several runs
@contextmanager
def taking_part(folder: Path) -> Iterator[None]:
    """Keeps others from removing data files in a folder meanwhile: one of this content may be there already."""
    with _locked(folder, exclusive=False):
        yield


@contextmanager
def _alone_in(folder: Path) -> Iterator[bool]:
    """Gives whether nobody else is saving in a folder; as long as this lasts, nobody begins to."""
    with _locked(folder, exclusive=True) as alone:
        yield alone


@contextmanager
def _locked(folder: Path, *, exclusive: bool) -> Iterator[bool]:
    """Gives whether a folder is locked, which ends with the process; where there are no locks, as if it were."""
    locks = _locks()
    if locks is None:
        yield True
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        yield True
        return
    try:
        locked = True
        try:
            locks.flock(handle, locks.LOCK_EX | locks.LOCK_NB if exclusive else locks.LOCK_SH)
        except BlockingIOError:
            locked = False
        except OSError:  # some network file systems have none
            pass
        yield locked
    finally:
        os.close(handle)


def _locks() -> ModuleType | None:
    try:
        import fcntl
    except ImportError:
        return None
    return fcntl
