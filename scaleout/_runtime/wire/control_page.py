"""The words that an owner and one of its workers share: plain loads and stores, no system call, no lock.

Each word has one writer: `revoked_from`, `allowance_bytes` and `interrupted` are the owner's, all others the worker's.
`interrupted` is the task that the last SIGINT of the owner is meant for, so that one that comes late spares the next.
`running` is what `claimed` is, but for a worker that runs one task inside another, which waits for it: `claimed` only
grows, and `running` is the outer task again when the inner one has ended. `since_ns` is when `running` was claimed.

The protocol of `claimed` and `revoked_from`: before it touches task k in any way the worker stores
`claimed = k`, then loads `revoked_from`; if that is at most k it skips k and reports it "returned". To take
tasks back, the owner stores `revoked_from = m`, and at least REVOKE_SETTLE_SECONDS later loads `claimed`: if
it is below m, the worker has not looked at m yet and, since it will load `revoked_from` after its next store
of `claimed`, never will: everything from m on is the owner's again. Otherwise each task from m on ends as a
result or as "returned". The wait stands in for the memory fence that Python does not offer; a store buffer
drains in nanoseconds.
"""

from __future__ import annotations

import mmap
import os

PAGE_BYTES = 4096
PAGES_PER_FILE = 64

CLAIMED = 0
SINCE_NS = 1
REVOKED_FROM = 2
ITEM_INDEX = 3
IN_USER_CODE = 4
ALLOWANCE_BYTES = 5
USED_BYTES = 6
INTERRUPTED = 7
RUNNING = 8
WORDS = 9

NOTHING_REVOKED = (1 << 64) - 1
NO_ITEM = (1 << 64) - 1


def map_page(fd: int, index: int) -> memoryview:
    """The words of page `index` of the file `fd`, shared with whoever else maps it."""
    mapping = mmap.mmap(fd, PAGE_BYTES, offset=index * PAGE_BYTES)
    return memoryview(mapping).cast("Q")[:WORDS]


class ControlPages:
    """An owner's supply of control pages: a few memory files, each of many pages, mapped page by page."""

    def __init__(self) -> None:
        self._fds: list[int] = []
        self._free: list[tuple[int, int]] = []

    def take(self) -> tuple[int, int, memoryview]:
        """A fresh page: the file to hand to the worker, the page's index in it, and its words."""
        if not self._free:
            fd = _create_file(PAGES_PER_FILE * PAGE_BYTES)
            self._fds.append(fd)
            self._free.extend((fd, index) for index in reversed(range(PAGES_PER_FILE)))
        fd, index = self._free[-1]
        words = map_page(fd, index)
        self._free.pop()
        for word in range(WORDS):
            words[word] = 0
        words[REVOKED_FROM] = NOTHING_REVOKED
        words[ITEM_INDEX] = NO_ITEM
        return fd, index, words

    def give_back(self, fd: int, index: int) -> None:
        """The worker that used this page is gone: the page may be given to another."""
        self._free.append((fd, index))

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        self._free.clear()


def _create_file(size_bytes: int) -> int:
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("scaleout-control", os.MFD_CLOEXEC)
    else:  # pragma: no cover - macOS
        import tempfile

        fd, path = tempfile.mkstemp()
        os.unlink(path)
    try:
        os.ftruncate(fd, size_bytes)
    except BaseException:
        os.close(fd)
        raise
    return fd
