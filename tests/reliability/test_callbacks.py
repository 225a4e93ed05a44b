"""The thread that runs users' callbacks."""

from __future__ import annotations

import sys
import threading

from scaleout._runtime.node.callbacks import CallbackThread


def test_a_thread_that_is_told_to_end_more_than_once_ends() -> None:
    """By several threads, at any moment; what was put in before still runs."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(500):
            thread = CallbackThread()
            seen: list[int] = []
            thread.put(lambda seen=seen: seen.append(1))  # type: ignore[misc]
            other = threading.Thread(target=thread.put, args=(None,))
            other.start()
            thread.put(None)
            thread.put(None)
            other.join()
            thread.join()
            assert seen == [1]
    finally:
        sys.setswitchinterval(interval)
