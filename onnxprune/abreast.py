"""Work on several batches at a time, with the same results for any number of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

from threadpoolctl import threadpool_limits

Item = TypeVar("Item")
Made = TypeVar("Made")

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
