"""Work on several batches at a time, with the same results for any number of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

from threadpoolctl import threadpool_limits

Item = TypeVar("Item")
Made = TypeVar("Made")

LARGE = 1 << 22  # bytes of an item from which on reading them, rather than the interpreter, takes the time
MOST = 8  # workers: more would wait for the interpreter, and every one holds a batch


def abreast(work: Callable[[Item], Made], items: Iterable[Item], jobs: int) -> Iterator[Made]:
    """Yields what is made of each item, in their order; twice as many as workers are under way at most.

    Matrix products have one thread each meanwhile: those of several workers that share all processors would wait for
    each other, and how they round must not hang on the number of workers.

    Args:
        work: called with one item; NumPy's error state is the caller's.
        items: taken one by one.
        jobs: workers; no more than `MOST`.
    """
    workers = min(jobs, MOST)
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(workers) as pool:
        going = deque[Future[Made]]()
        for item in items:
            if len(going) == 2 * workers:
                yield going.popleft().result()
            going.append(pool.submit(copy_context().run, work, item))
        while going:
            yield going.popleft().result()


def looked_at(work: Callable[[Item], Made], items: Sequence[Item], jobs: int, size: int) -> Iterator[Made]:
    """Yields what is made of each item, in their order; several at a time where they are large.

    Args:
        work: called with one item.
        items: what is looked at.
        jobs: workers.
        size: bytes of all items.
    """
    return abreast(work, items, jobs) if size >= LARGE * max(len(items), 1) else map(work, items)
