"""One batch of calls on its way: what runs in the worker, and what stands for the batch until its results are here."""

from __future__ import annotations

from scaleout._runtime.session import outcome
from scaleout.joblib_backend.failures import exception_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def run_batch(batch: Callable[[], Any]) -> Any:
    """In the worker. Importing this module has made the backend known there by its name, for calls inside calls."""
    return batch()


class SubmittedBatch:
    """What joblib gets for a batch, and gives back to learn what became of it. `arrived(batch, status)` is called when
    the batch has ended."""

    __slots__ = ("_arrived", "_delivered", "callback", "has_failed")

    def __init__(
        self,
        callback: Callable[[SubmittedBatch], None] | None,
        arrived: Callable[[SubmittedBatch, int], None],
    ) -> None:
        self.callback = callback
        self._arrived = arrived
        self._delivered: tuple[int, Any] | None = None
        self.has_failed = False

    def deliver(self, index: int, status: int, payload: Any) -> None:
        """On the runtime's thread."""
        self._delivered = (status, payload)
        self._arrived(self, status)

    def result(self) -> Any:
        """The results of the batch's calls, or the exception of the first that failed, raised. Once."""
        assert self._delivered is not None
        status, payload = self._delivered
        self._delivered = None
        success, value = outcome(status, payload)
        del payload
        if success:
            return value
        self.has_failed = True
        raise exception_of(value)
