"""Work that overlaps with what makes its input."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item, Result = TypeVar("Item"), TypeVar("Result")


def overlapped(function: Callable[[Item], Result], items: Iterable[Item], ahead: int = 2) -> Iterator[Result]:
    """`function(item)` of every item, in order, in one thread, while the caller's makes the items that follow.

    An error of `function` is raised here; the items after it are not worked on.

    Args:
        ahead: how many items may wait.
    """
    pool, waiting = ThreadPoolExecutor(max_workers=1), deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
