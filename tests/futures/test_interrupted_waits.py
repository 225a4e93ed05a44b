"""An exception of a signal handler in the standard library's waits leaves locks of futures taken: only theirs are."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import _base
from types import SimpleNamespace
from typing import Any

import pytest
from faults import DEADLINE_S
from test_interrupt import Alarm, walk

from scaleout.futures import ScaleoutExecutor
from scaleout.futures.elsewhere import HOLDS_SECONDS

FILES = ("/concurrent/futures/_base.py", "/threading.py", "/scaleout/")

WAITS: dict[str, Callable[[list[Any]], object]] = {
    "all": futures.wait,
    "first": lambda made: futures.wait(made, return_when=futures.FIRST_COMPLETED),
    "first exception": lambda made: futures.wait(made, return_when=futures.FIRST_EXCEPTION),
    "as_completed": lambda made: list(futures.as_completed(made)),
}


@pytest.mark.slow
@pytest.mark.parametrize("wait", WAITS)
def test_an_exception_at_every_opcode_of_a_wait(wait: str) -> None:
    """The runtime goes on, the futures end, and what waits for their results gets them."""
    with ScaleoutExecutor(2) as executor:

        def prepare() -> list[Any]:
            return [executor.submit(time.sleep, 0.002) for _ in range(4)]

        def check(made: list[Any], where: str) -> None:
            assert executor.submit(abs, -2).result(DEADLINE_S) == 2, where
            for future in made:
                assert future.result(DEADLINE_S) is None, where

        assert walk(prepare, WAITS[wait], check, 7, Alarm, FILES) > 5


def test_a_condition_that_is_never_let_go() -> None:
    """Whoever looks at such a future while it runs waits; results, callbacks and the runtime do not."""
    held = threading.Event()
    called = threading.Event()

    def take(made: list[Any]) -> None:
        for future in made:
            future._condition.acquire()
        held.set()

    with ScaleoutExecutor(2) as executor:
        made = [executor.submit(time.sleep, 0.2) for _ in range(2)]
        made += [executor.submit(abs, -number) for number in range(50)]
        made[1].add_done_callback(lambda future: called.set())
        thread = threading.Thread(target=take, args=(made,))
        thread.start()
        assert held.wait(DEADLINE_S)
        assert made[-1].cancel() and made[-1].cancelled()
        assert executor.submit(abs, -3).result(DEADLINE_S) == 3
        assert [future.result(DEADLINE_S) for future in made[2:-1]] == list(range(49))
        assert called.wait(DEADLINE_S)
        thread.join()


HOLDING = """
def hold(future, let_go):
    future._condition.acquire()
    try:
        while not let_go.is_set:
            pass
    finally:
        future._condition.release()
"""


def test_a_condition_of_very_many() -> None:
    """The standard library is at work on them for longer than it should take: that is waited for."""
    there: dict[str, Any] = {}
    exec(compile(HOLDING, _base.__file__, "exec"), there)
    let_go = SimpleNamespace(is_set=False)
    with ScaleoutExecutor(1) as executor:
        future = executor.submit(time.sleep, 0.2)
        thread = threading.Thread(target=there["hold"], args=(future, let_go))
        thread.start()
        time.sleep(HOLDS_SECONDS * 1.5)
        assert not future.done() and executor.submit(abs, -2).result(DEADLINE_S) == 2
        let_go.is_set = True
        assert future.result(DEADLINE_S) is None
        thread.join()


def test_a_condition_that_is_held_for_a_moment() -> None:
    """Nothing is told before it is let go."""
    with ScaleoutExecutor(1) as executor:
        future = executor.submit(abs, -1)
        with future._condition:
            assert executor.submit(abs, -2).result(DEADLINE_S) == 2
            assert not future.done()
        assert future.result(DEADLINE_S) == 1
        assert futures.wait([future]).done == {future}


def test_a_callback_that_waits_for_a_future_whose_condition_is_held() -> None:
    held, let_go, answers = threading.Event(), threading.Event(), []

    def hold(future: Any) -> None:
        with future._condition:
            held.set()
            assert let_go.wait(DEADLINE_S)

    with ScaleoutExecutor(2) as executor:
        second = executor.submit(time.sleep, 0.2)
        thread = threading.Thread(target=hold, args=(second,))
        thread.start()
        assert held.wait(DEADLINE_S)
        first = executor.submit(abs, -1)
        first.add_done_callback(lambda future: answers.append(second.result(DEADLINE_S)))
        time.sleep(0.4)
        let_go.set()
        thread.join()
        assert second.result(DEADLINE_S) is None
    assert answers == [None]
