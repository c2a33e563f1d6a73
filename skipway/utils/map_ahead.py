"""Ordered parallel map that works ahead of its consumer, with a bound on the results that wait."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["map_ahead"]

T = TypeVar("T")
R = TypeVar("R")


def map_ahead(
    function: Callable[[T], R], items: Iterable[T], *, threads: int, ahead: int | Callable[[], int]
) -> Iterator[R]:
    """Apply `function` to `items` in threads, and yield the results in order.

    The items are taken from their iterator in the consumer's thread. If the consumer stops early, waiting items are
    dropped.

    Args:
        function: called in threads.
        items: its arguments.
        threads: maximum number of threads.
        ahead: number of items that are taken ahead of the consumer; a callable may change it over time.

    >>> list(map_ahead(abs, [3, -1, -2], threads=2, ahead=2))
    [3, 1, 2]
    """
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="skipway-ahead")
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            while len(waiting) > (ahead() if callable(ahead) else ahead):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
