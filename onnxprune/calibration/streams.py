"""Feeds that come one after the other: calibration readers, generators, data loaders.

They may be read only once, and a second pass over them may give other data. So the first samples are checked and kept
in a temporary file, and every pass reads those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from onnxprune.calibration import checks
from onnxprune.calibration.batches import Block, feed
from onnxprune.calibration.columns import Spool
from onnxprune.calibration.layout import Layout
from onnxprune.errors import DataError
from onnxprune.graph.inputs import InputSpec

__all__ = ["arrays_of", "blocks_of", "items_of"]

Failure = Callable[[BaseException, str], DataError]


def items_of(reader: Any, failure: Failure) -> Iterator[tuple[str, Any]]:
    """Give what a reader or an iterable gives, with a name for each item, until it ends.

    Args:
        reader: has `get_next()`, which gives None at the end, or is an iterable.
        failure: makes an error of ours out of whatever the reader raises.
    """
    get_next = getattr(reader, "get_next", None)
    try:
        iterator = iter(get_next, None) if callable(get_next) else iter(reader)
    except Exception as error:
        raise failure(error, "the data's first item") from error
    try:
        for k in range(1 << 62):
            try:
                item = next(iterator)
            except StopIteration:
                return
            except (Exception, SystemExit) as error:
                raise failure(error, f"item {k} of the data") from error
            yield f"item {k} of the data", item
    finally:
        close = getattr(iterator, "close", None)
        if callable(close):
            close()


def arrays_of(item: object, where: str) -> dict[str, Any]:
    """Return a feed's arrays by input name.

    Raises:
        DataError: it is no mapping, or holds something else than arrays.
    """
    if not isinstance(item, Mapping):
        raise DataError(f"{where} is a {type(item).__name__}: give a dict, input name to array")
    return {str(k): checks.as_array(v, f"{where}: input {str(k)!r}") for k, v in item.items()}


def blocks_of(items: Iterator[tuple[str, Any]], specs: Sequence[InputSpec], layout: Layout, wanted: int) -> list[Block]:
    """Return the first `wanted` samples of a stream of feeds, checked and kept in a temporary file.

    Raises:
        DataError: a feed does not fit the model; names the item.
    """
    spool = Spool()
    blocks: list[Block] = []
    taken = 0
    for where, item in items:
        block = feed(arrays_of(item, where), specs, layout, where, spool)
        blocks.append(block)
        taken += block.rows
        if taken >= wanted:
            break
    close = getattr(items, "close", None)
    if callable(close):
        close()
    return blocks
