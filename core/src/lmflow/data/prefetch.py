"""What is needed next, made while what is here is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")


def prefetch(make: Callable[[Given], Made], given: Iterable[Given], ahead: int = 1) -> Iterator[Made]:
    """`make` of each of `given` in order; a thread works up to `ahead` of them before they are asked for.

    What `make` raises is raised where its result would have come. Nothing more is begun once the caller stops.
    """
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="lmflow-ahead") as other:
        try:
            for each in given:
                waiting.append(other.submit(make, each))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for job in waiting:
                job.cancel()
