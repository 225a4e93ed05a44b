"""The thread that pulls a lazy iterable: one per running `imap` over a generator, never in `next()`."""

from __future__ import annotations

import threading
from itertools import islice

from scaleout._runtime.session import FEED_TASKS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any


class Feeder:
    """Submits the tasks of one lazy map, at most `limit` of them ahead of what has been taken or completed.

    `submit(index, value)` queues one task, `end(count, error)` tells how many there were and what the iterable raised.
    """

    def __init__(
        self,
        iterable: Iterable[Any],
        chunksize: int | None,
        submit: Callable[[int, Any], None],
        end: Callable[[int, BaseException | None], None],
        limit: int,
    ) -> None:
        self._iterable = iterable
        self._chunksize = chunksize
        self._submit = submit
        self._end = end
        self._room = threading.Semaphore(limit)
        self.is_stopped = False
        self._has_begun = threading.Event()
        self.thread = threading.Thread(target=self._run, name="scaleout-feeder", daemon=True)

    def taken(self) -> None:
        """A result has left: there is room for one more task."""
        self._room.release()

    def stop(self) -> None:
        """Pull no more."""
        self.is_stopped = True
        self._room.release()

    def give_up(self) -> None:
        """The thread could not be started."""
        self._has_begun.set()

    def join(self) -> None:
        """Any other thread: wait for the end, also if the start is still under way."""
        self._has_begun.wait()
        if self.thread.ident is not None:
            self.thread.join()

    def _run(self) -> None:
        self._has_begun.set()
        count = 0
        error = None
        try:
            for value in chunks_of(self._iterable, self._chunksize):
                self._room.acquire()
                if self.is_stopped:
                    break
                self._submit(count, value)
                count += 1
                del value
        except BaseException as raised:
            error = raised
        self._iterable = ()
        self._end(count, error)


def chunks_of(iterable: Iterable[Any], chunksize: int | None) -> Iterator[Any]:
    """The items themselves (None), or tuples of `chunksize` of them."""
    iterator = iter(iterable)
    if chunksize is None:
        yield from iterator
        return
    while chunk := tuple(islice(iterator, chunksize)):
        yield chunk


__all__ = ["FEED_TASKS", "Feeder", "chunks_of"]
