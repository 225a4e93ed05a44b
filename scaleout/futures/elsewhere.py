"""Where futures are completed whose conditions somebody holds just now: see `future._settle`."""

from __future__ import annotations

from _thread import start_new_thread
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

HOLDS_SECONDS = 1.0
"""Who has a future's condition lets it go before this, but where it is one of very many that he takes at once."""


class Elsewhere:
    """Runs functions one after the other, in a thread that is there as long as there are any. Without a lock."""

    def __init__(self) -> None:
        self._functions: deque[Callable[[], None]] = deque()
        self._runner: dict[str, object] = {}

    def put(self, function: Callable[[], None]) -> None:
        self._functions.append(function)
        if self._is_mine(object()):
            start_new_thread(self._run, ())

    def _is_mine(self, claim: object) -> bool:
        return self._runner.setdefault("claim", claim) is claim

    def _run(self) -> None:
        while True:
            while self._functions:
                self._functions.popleft()()
            self._runner.clear()  # from now on `put` starts another
            if not self._functions or not self._is_mine(object()):
                return
