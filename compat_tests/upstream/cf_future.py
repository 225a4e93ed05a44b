"""``FutureTests`` of ``test.test_concurrent_futures.test_future``, on the futures that ``ScaleoutExecutor`` makes."""

import unittest
from concurrent.futures import _base
from typing import Any

from compat_tests import evidence
from compat_tests.upstream.cf_code import run_upstream
from scaleout.futures.future import ScaleoutFuture

_UPSTREAM: dict[str, Any] = {"__name__": __name__}
run_upstream(_UPSTREAM, "test_future")
evidence.install(evidence.FUTURE)


def _create_future(state: str = _base.PENDING, exception: Any = None, result: Any = None) -> ScaleoutFuture:
    future = ScaleoutFuture()
    future._state = state
    future._exception = exception
    future._result = result
    return future


class FutureTests(_UPSTREAM["FutureTests"]):  # type: ignore[misc]
    """Upstream's; the names its methods read stand for futures of ours as soon as the class is set up."""

    @classmethod
    def setUpClass(cls) -> None:
        _UPSTREAM.update(
            Future=ScaleoutFuture,
            create_future=_create_future,
            PENDING_FUTURE=_create_future(),
            RUNNING_FUTURE=_create_future(_base.RUNNING),
            CANCELLED_FUTURE=_create_future(_base.CANCELLED),
            CANCELLED_AND_NOTIFIED_FUTURE=_create_future(_base.CANCELLED_AND_NOTIFIED),
            EXCEPTION_FUTURE=_create_future(_base.FINISHED, exception=OSError()),
            SUCCESSFUL_FUTURE=_create_future(_base.FINISHED, result=42),
        )


def setUpModule() -> None:
    _UPSTREAM["setUpModule"]()


assert issubclass(FutureTests, unittest.TestCase)
