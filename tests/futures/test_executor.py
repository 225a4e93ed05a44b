"""`ScaleoutExecutor` as a program sees it that was written for one of the standard library's."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    TimeoutError,
    as_completed,
    wait,
)
from concurrent.futures.process import BrokenProcessPool, _RemoteTraceback
from pathlib import Path
from typing import Any

import pytest
from faults import DEADLINE_S, wait_until

from scaleout.futures import ScaleoutExecutor
from scaleout.futures.errors import InitializerError


def add(x: int, y: int = 0) -> int:
    return x + y


def fail(error: BaseException) -> None:
    raise error


def wait_for_file(path: Path) -> str:
    wait_until(path.exists)
    return path.name


def note_start(started: Path, release: Path) -> int:
    started.touch()
    wait_until(release.exists)
    return os.getpid()


@pytest.fixture
def executor() -> Iterator[ScaleoutExecutor]:
    with ScaleoutExecutor(2) as executor:
        yield executor


# -- construction ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "keywords"),
    [
        ((), {}),
        ((2,), {}),
        ((2, "prefix"), {}),
        ((2, "prefix", add, (1,)), {}),
        ((2,), {"thread_name_prefix": "prefix", "initializer": add, "initargs": (1,)}),
        ((2, multiprocessing.get_context("spawn")), {}),
        ((2, None, add, (1,)), {"max_tasks_per_child": 3}),
        ((), {"max_workers": 1, "mp_context": multiprocessing.get_context("fork")}),
    ],
)
def test_accepts_the_arguments_of_both(arguments: Any, keywords: Any) -> None:
    with ScaleoutExecutor(*arguments, **keywords) as executor:
        assert isinstance(executor, Executor)
        assert executor.submit(add, 1, y=2).result(DEADLINE_S) == 3


@pytest.mark.parametrize(
    "keywords",
    [
        {"max_workers": 0},
        {"max_workers": -1},
        {"max_workers": "2"},
        {"initializer": 3},
        {"max_tasks_per_child": 1.5, "mp_context": multiprocessing.get_context("spawn")},
        {"max_tasks_per_child": 0, "mp_context": multiprocessing.get_context("spawn")},
    ],
)
def test_refuses_what_the_standard_library_refuses(keywords: dict[str, Any]) -> None:
    if "max_tasks_per_child" in keywords and sys.version_info < (3, 11):
        pytest.skip("max_tasks_per_child came with Python 3.11")
    with pytest.raises((TypeError, ValueError)) as theirs:
        ProcessPoolExecutor(**keywords)
    with pytest.raises(type(theirs.value)) as ours:
        ScaleoutExecutor(**keywords)
    assert str(ours.value) == str(theirs.value)


def test_refuses_a_bad_number_of_retries() -> None:
    with pytest.raises(ValueError, match="max_retries"):
        ScaleoutExecutor(max_retries=-1)


def test_without_a_call_there_is_no_worker() -> None:
    executor = ScaleoutExecutor(4)
    assert executor._processes == {}
    executor.shutdown()


def test_workers_come_as_they_are_needed() -> None:
    with ScaleoutExecutor(4) as executor:
        for _ in range(3):
            executor.submit(add, 1).result(DEADLINE_S)
        assert len(executor._processes) == 1
        wait([executor.submit(time.sleep, 0.01) for _ in range(20)], DEADLINE_S)
        assert len(executor._processes) == 4 == executor._max_workers
        assert all(process.is_alive() and process.pid == pid for pid, process in executor._processes.items())


# -- calls -----------------------------------------------------------------------------------------


def test_submit(executor: ScaleoutExecutor) -> None:
    future = executor.submit(add, 1, y=2)
    assert isinstance(future, Future)
    assert future.result(DEADLINE_S) == 3
    assert future.exception() is None
    assert future.done() and not future.running() and not future.cancelled() and not future.cancel()
    assert "state=finished returned int" in repr(future) and repr(future).startswith("<Future at")


def test_submit_takes_any_keyword(executor: ScaleoutExecutor) -> None:
    assert executor.submit(dict, fn=1, self=2, args=3).result(DEADLINE_S) == {"fn": 1, "self": 2, "args": 3}


def test_lambdas_and_closures(executor: ScaleoutExecutor) -> None:
    base = 10
    assert list(executor.map(lambda x: x + base, range(3))) == [10, 11, 12]


def test_an_exception_comes_with_its_remote_traceback(executor: ScaleoutExecutor) -> None:
    future = executor.submit(fail, KeyError("k"))
    with pytest.raises(KeyError) as caught:
        future.result(DEADLINE_S)
    assert type(caught.value.__cause__) is _RemoteTraceback
    assert "in fail" in caught.value.__cause__.tb
    assert future.exception() is caught.value
    assert "raised KeyError" in repr(future)


def test_a_system_exit_is_the_future_s_exception(executor: ScaleoutExecutor) -> None:
    assert executor.submit(fail, SystemExit(3)).exception(DEADLINE_S).code == 3  # type: ignore[union-attr]


def test_an_exception_may_be_returned(executor: ScaleoutExecutor) -> None:
    future = executor.submit(ValueError, "no failure")
    assert future.exception(DEADLINE_S) is None
    assert type(future.result()) is ValueError


class Unpicklable:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


@pytest.mark.parametrize("error", [pickle.PicklingError("no"), RuntimeError("no"), SystemExit(1)])
def test_what_cannot_be_pickled_is_the_future_s_exception(executor: ScaleoutExecutor, error: BaseException) -> None:
    for future in (executor.submit(id, Unpicklable(error)), executor.submit(functools.partial(id, Unpicklable(error)))):
        assert future.exception(DEADLINE_S) is error
    with pytest.raises(type(error)):
        list(executor.map(functools.partial(id, Unpicklable(error)), range(3)))
    assert executor.submit(add, 1).result(DEADLINE_S) == 1


def test_a_result_that_cannot_be_pickled(executor: ScaleoutExecutor) -> None:
    error = executor.submit(threading.Lock).exception(DEADLINE_S)
    assert isinstance(error, TypeError) and "lock" in str(error)


def test_arrays(executor: ScaleoutExecutor) -> None:
    import numpy

    array = numpy.arange(1_000_000.0)
    future = executor.submit(numpy.add, array, 1)
    result = future.result(DEADLINE_S)
    result[0] = 5
    assert result[-1] == 1_000_000
    assert [float(part[0]) for part in executor.map(numpy.multiply, [array] * 3, range(3))] == [0.0, 0.0, 0.0]


def test_many_small_calls(executor: ScaleoutExecutor) -> None:
    futures = [executor.submit(add, i) for i in range(3000)]
    assert [future.result(DEADLINE_S) for future in futures] == list(range(3000))


# -- map -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunksize", [1, 3, 100])
@pytest.mark.parametrize("buffersize", [None, 1, 4])
def test_map(executor: ScaleoutExecutor, chunksize: int, buffersize: int | None) -> None:
    results = executor.map(pow, range(20), iter(range(30)), chunksize=chunksize, buffersize=buffersize)
    assert list(results) == list(map(pow, range(20), range(20)))
    assert list(executor.map(add, [], chunksize=chunksize, buffersize=buffersize)) == []


@pytest.mark.parametrize(
    ("keywords", "error"),
    [({"chunksize": 0}, ValueError), ({"buffersize": 0}, ValueError), ({"buffersize": 1.5}, TypeError)],
)
def test_map_refuses(executor: ScaleoutExecutor, keywords: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        executor.map(add, [1], **keywords)


def test_map_calls_at_once_and_a_buffer_bounds_it(executor: ScaleoutExecutor) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for i in range(10):
            taken.append(i)
            yield i

    results = executor.map(add, items())
    assert len(taken) == 10
    assert list(results) == list(range(10))
    taken.clear()
    results = executor.map(add, items(), buffersize=3)
    assert len(taken) == 3
    next(results)
    assert len(taken) == 4
    assert list(results) == list(range(1, 10))


def test_a_buffered_map_keeps_its_executor() -> None:
    results = ScaleoutExecutor(1).map(add, range(10), buffersize=2)
    gc.collect()
    assert list(results) == list(range(10))


def test_map_in_order_up_to_the_first_exception(executor: ScaleoutExecutor) -> None:
    results = executor.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5])
    assert [next(results), next(results)] == [(0, 1), (0, 1)]
    with pytest.raises(ZeroDivisionError):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_the_iterable_s_exception(executor: ScaleoutExecutor) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("items")

    with pytest.raises(KeyError):
        executor.map(add, items())
    assert executor.submit(add, 1).result(DEADLINE_S) == 1


def test_map_timeout(executor: ScaleoutExecutor, tmp_path: Path) -> None:
    assert list(executor.map(wait_for_file, [tmp_path] * 4)) == [tmp_path.name] * 4  # the workers are up
    results = executor.map(wait_for_file, [tmp_path, tmp_path / "later"], timeout=1.5)
    assert next(results) == tmp_path.name
    with pytest.raises(TimeoutError):
        next(results)
    (tmp_path / "later").touch()


def test_a_map_that_is_given_up_cancels_the_rest(executor: ScaleoutExecutor, tmp_path: Path) -> None:
    started = [tmp_path / f"{i}" for i in range(50)]
    results = executor.map(note_start, started, [tmp_path] + [tmp_path / "go"] * 49)
    next(results)
    results.close()  # type: ignore[attr-defined]
    (tmp_path / "go").touch()
    executor.shutdown()
    assert sum(path.exists() for path in started) < 10


def test_results_are_released(executor: ScaleoutExecutor) -> None:
    for value in executor.map(make_thing, range(5)):
        reference = weakref.ref(value)
        del value
        assert reference() is None
    for value in executor.map(make_thing, range(5), chunksize=2):
        reference = weakref.ref(value)
        del value
        assert reference() is None
    future = executor.submit(make_thing, 1)
    reference = weakref.ref(future.result(DEADLINE_S))
    assert reference() is not None
    del future
    assert reference() is None


class Thing:
    pass


def make_thing(_: int) -> Thing:
    return Thing()


def test_arguments_are_released(executor: ScaleoutExecutor, tmp_path: Path) -> None:
    thing = Thing()
    reference = weakref.ref(thing)
    futures = [executor.submit(wait_for_file, tmp_path / "go") for _ in range(2)]
    futures.append(executor.submit(id, thing))
    del thing
    assert reference() is None  # pickled, so nothing here needs it
    (tmp_path / "go").touch()
    wait(futures, DEADLINE_S)


def test_futures_are_released_without_the_collector(executor: ScaleoutExecutor) -> None:
    gc.collect()
    gc.disable()
    try:
        references = []
        for call in (lambda: executor.submit(add, 1), lambda: executor.submit(fail, KeyError())):
            future = call()
            wait([future], DEADLINE_S)
            try:
                future.result()
            except KeyError:
                pass
            references.append(weakref.ref(future))
            del future
        executor.submit(add, 2).result(DEADLINE_S)
        assert [reference() for reference in references] == [None, None]
    finally:
        gc.enable()


# -- waiting ---------------------------------------------------------------------------------------


def test_wait(executor: ScaleoutExecutor, tmp_path: Path) -> None:
    quick = executor.submit(add, 1)
    slow = executor.submit(wait_for_file, tmp_path / "go")
    assert wait([quick, slow], DEADLINE_S, FIRST_COMPLETED) == ({quick}, {slow})
    assert wait([quick, slow], 0.01) == ({quick}, {slow})
    (tmp_path / "go").touch()
    assert wait([quick, slow], DEADLINE_S, ALL_COMPLETED).not_done == set()


def test_wait_for_the_first_exception(executor: ScaleoutExecutor, tmp_path: Path) -> None:
    slow = executor.submit(wait_for_file, tmp_path / "go")
    futures = [slow, executor.submit(add, 1), executor.submit(fail, KeyError())]
    assert wait(futures, DEADLINE_S, FIRST_EXCEPTION).not_done == {slow}
    (tmp_path / "go").touch()


def test_a_result_that_cannot_be_unpickled_is_an_exception_to_wait_for(
    executor: ScaleoutExecutor, tmp_path: Path
) -> None:
    slow = executor.submit(wait_for_file, tmp_path / "go")
    futures = [slow, executor.submit(make_unpicklable_here)]
    assert wait(futures, DEADLINE_S, FIRST_EXCEPTION).not_done == {slow}
    (tmp_path / "go").touch()
    assert isinstance(futures[1].exception(), BrokenProcessPool)


class UnpicklableHere:
    def __reduce__(self) -> Any:
        return fail, (ValueError("here"),)


def make_unpicklable_here() -> UnpicklableHere:
    return UnpicklableHere()


def test_as_completed(executor: ScaleoutExecutor) -> None:
    futures = {executor.submit(add, i): i for i in range(100)}
    assert sorted(future.result() for future in as_completed(futures, DEADLINE_S)) == list(range(100))


def test_waiting_while_results_come_in(executor: ScaleoutExecutor) -> None:
    """A first look at a future and its completion meet, again and again: none is missed or counted twice."""
    for _ in range(30):
        futures = [executor.submit(add, i) for i in range(100)]
        assert len(list(as_completed(futures, DEADLINE_S))) == 100
        futures = [executor.submit(add, i) for i in range(100)]
        assert len(wait(futures, DEADLINE_S).done) == 100


def test_waiting_in_many_threads(executor: ScaleoutExecutor, tmp_path: Path) -> None:
    future = executor.submit(wait_for_file, tmp_path / "go")
    with ThreadPoolExecutor(8) as threads:
        waiting = [threads.submit(future.result, DEADLINE_S) for _ in range(4)]
        waiting += [threads.submit(lambda: len(wait([future], DEADLINE_S).done)) for _ in range(4)]
        (tmp_path / "go").touch()
        assert [each.result() for each in waiting] == ["go"] * 4 + [1] * 4


def test_callbacks(executor: ScaleoutExecutor, tmp_path: Path) -> None:
    called: list[Any] = []
    done = threading.Event()
    future = executor.submit(wait_for_file, tmp_path / "go")
    future.add_done_callback(lambda future: called.append((future.result(), threading.current_thread().name)))
    future.add_done_callback(lambda future: done.set())
    (tmp_path / "go").touch()
    assert done.wait(DEADLINE_S)
    assert called == [("go", "scaleout-callbacks")]
    future.add_done_callback(lambda future: called.append(2))
    assert called[1] == 2  # completed already: at once


def test_a_callback_that_raises_is_logged(executor: ScaleoutExecutor, caplog: Any, tmp_path: Path) -> None:
    done = threading.Event()
    future = executor.submit(wait_for_file, tmp_path / "go")
    future.add_done_callback(lambda future: fail(KeyError("callback")))
    future.add_done_callback(lambda future: done.set())
    with caplog.at_level(logging.ERROR, "concurrent.futures"):
        (tmp_path / "go").touch()
        assert done.wait(DEADLINE_S)
    assert "exception calling callback" in caplog.text


def test_a_callback_may_submit_and_wait(executor: ScaleoutExecutor) -> None:
    chained: Future[int] = Future()
    executor.submit(add, 1).add_done_callback(
        lambda future: chained.set_result(executor.submit(add, future.result(), 1).result(DEADLINE_S))
    )
    assert chained.result(DEADLINE_S) == 2


def test_result_timeout(executor: ScaleoutExecutor, tmp_path: Path) -> None:
    future = executor.submit(wait_for_file, tmp_path / "go")
    for call in (future.result, future.exception):
        with pytest.raises(TimeoutError):
            call(0.01)
    (tmp_path / "go").touch()
    assert future.result(DEADLINE_S) == "go"


def test_run_in_executor() -> None:
    async def program() -> list[int]:
        loop = asyncio.get_running_loop()
        with ScaleoutExecutor(2) as executor:
            return await asyncio.gather(*(loop.run_in_executor(executor, add, i, i) for i in range(10)))

    assert asyncio.run(program()) == [2 * i for i in range(10)]


# -- cancelling ------------------------------------------------------------------------------------


def test_cancel(tmp_path: Path) -> None:
    with ScaleoutExecutor(1) as executor:
        running = executor.submit(note_start, tmp_path / "started", tmp_path / "go")
        pending = [executor.submit(add, i) for i in range(20)]
        wait_until((tmp_path / "started").exists)
        assert running.running() and not running.cancel()
        assert "state=running" in repr(running)
        assert not any(future.running() for future in pending)
        called: list[Any] = []
        pending[3].add_done_callback(called.append)
        assert all(future.cancel() for future in pending[:10])
        assert all(future.cancelled() and future.done() and future.cancel() for future in pending[:10])
        for call in (pending[0].result, pending[0].exception):
            with pytest.raises(CancelledError):
                call()
        assert wait(pending[:10], 0).not_done == set()
        assert len(list(as_completed(pending[:10], 0))) == 10
        (tmp_path / "go").touch()
        assert [future.result(DEADLINE_S) for future in pending[10:]] == list(range(10, 20))
        running.result(DEADLINE_S)
    assert called == [pending[3]]


def test_cancel_what_waits_at_a_worker(tmp_path: Path) -> None:
    """Prefetched is not started: it can be cancelled, and what stood behind it runs."""
    with ScaleoutExecutor(1) as executor:
        wait([executor.submit(wait_until_then, None, i) for i in range(200)], DEADLINE_S)  # short: it is prefetched
        first = executor.submit(wait_until_then, str(tmp_path), -1)
        rest = [executor.submit(wait_until_then, None, i) for i in range(50)]
        wait_until((tmp_path / "started").exists)
        assert [future.cancel() for future in rest[::2]] == [True] * 25
        (tmp_path / "go").touch()
        assert first.result(DEADLINE_S) == -1
        assert [future.result(DEADLINE_S) for future in rest[1::2]] == list(range(1, 50, 2))


def wait_until_then(directory: str | None, value: int) -> int:
    if directory is not None:
        note_start(Path(directory) / "started", Path(directory) / "go")
    return value


def test_cancelling_while_they_run(executor: ScaleoutExecutor) -> None:
    """Each ends in one of two ways, and a cancelled one has not run."""
    for _ in range(10):
        futures = [executor.submit(add, i) for i in range(200)]
        cancelled = [future.cancel() for future in futures[::-1]][::-1]
        for i, future in enumerate(futures):
            if cancelled[i]:
                assert future.cancelled()
            else:
                assert future.result(DEADLINE_S) == i


def test_a_waiting_thread_learns_of_a_cancellation(tmp_path: Path) -> None:
    with ScaleoutExecutor(1) as executor, ThreadPoolExecutor(1) as threads:
        running = executor.submit(note_start, tmp_path / "started", tmp_path / "go")
        pending = executor.submit(add, 1)
        waiting = threads.submit(pending.exception)
        wait_until((tmp_path / "started").exists)
        pending.cancel()
        assert isinstance(waiting.exception(DEADLINE_S), CancelledError)
        (tmp_path / "go").touch()
        running.result(DEADLINE_S)


# -- initializer, recycling ------------------------------------------------------------------------

_initialized: Any = None


def initialize(value: Any) -> None:
    global _initialized
    _initialized = value


def initialized() -> Any:
    return _initialized


def test_initializer() -> None:
    with ScaleoutExecutor(2, initializer=initialize, initargs=("done",)) as executor:
        assert {executor.submit(initialized).result(DEADLINE_S) for _ in range(5)} == {"done"}


def test_initializer_with_a_queue() -> None:
    queue = multiprocessing.get_context("spawn").SimpleQueue()
    with ScaleoutExecutor(1, initializer=initialize, initargs=(queue,)) as executor:
        executor.submit(put_in_initialized, 3).result(DEADLINE_S)
        assert queue.get() == 3
    queue.close()


def put_in_initialized(value: Any) -> None:
    _initialized.put(value)


@pytest.mark.parametrize(
    "initializer", [functools.partial(fail, ValueError("in initializer")), os._exit, signal.raise_signal]
)
def test_a_failing_initializer_breaks_the_executor(initializer: Any, caplog: Any) -> None:
    arguments = {"partial": ()}.get(type(initializer).__name__, (9,))
    executor = ScaleoutExecutor(2, initializer=initializer, initargs=arguments)
    futures = [executor.submit(add, i) for i in range(5)]
    for future in futures:
        error = future.exception(DEADLINE_S)
        assert isinstance(error, InitializerError) and isinstance(error, BrokenProcessPool)
    assert executor._broken
    with pytest.raises(BrokenProcessPool):
        executor.submit(add, 1)
    with pytest.raises(BrokenProcessPool):
        executor.map(add, [1])
    executor.shutdown()
    if arguments == ():
        give_up_at = time.monotonic() + DEADLINE_S
        while not ("Exception in initializer:" in caplog.text and "ValueError: in initializer" in caplog.text):
            assert time.monotonic() < give_up_at, caplog.text
            time.sleep(0.01)
        assert "in initializer" in str(error)


def test_max_tasks_per_child() -> None:
    with ScaleoutExecutor(1, max_tasks_per_child=2) as executor:
        pids = [executor.submit(os.getpid).result(DEADLINE_S) for _ in range(6)]
    assert pids[0::2] == pids[1::2]
    assert len(set(pids)) == 3


# -- inline ----------------------------------------------------------------------------------------


def test_inline(monkeypatch: pytest.MonkeyPatch) -> None:
    from scaleout._runtime import session

    session.close_all()
    monkeypatch.setenv("SCALEOUT_INLINE", "1")
    monkeypatch.setattr(session, "_session", None)
    with ScaleoutExecutor(2) as executor:
        assert executor.submit(os.getpid).result() == os.getpid()
        assert list(executor.map(add, range(3), chunksize=2)) == [0, 1, 2]
        assert isinstance(executor.submit(fail, KeyError()).exception(), KeyError)
        assert not executor.submit(add, 1).cancel()
        assert executor.options(timeout_s=1).submit(add, 1).result() == 1
    monkeypatch.undo()


@pytest.mark.parametrize(("chunksize", "calls"), [(1, 10), (4, 3)])
@pytest.mark.parametrize("buffersize", [None, 2])
def test_map_goes_through_a_submit_that_was_replaced(chunksize: int, calls: int, buffersize: int | None) -> None:
    """As the standard library's does; tqdm counts that way."""
    seen = []
    with ScaleoutExecutor(2) as executor:
        submit = executor.submit

        def counted(*args: Any) -> Any:
            seen.append(args)
            return submit(*args)

        executor.submit = counted  # type: ignore[method-assign]
        results = executor.map(add, range(10), range(10), chunksize=chunksize, buffersize=buffersize)
        assert len(seen) == (calls if buffersize is None else 2)
        assert list(results) == list(range(0, 20, 2))
        assert len(seen) == calls


def test_map_goes_through_the_submit_of_a_subclass() -> None:
    """Which may need no worker."""

    class Inline(ScaleoutExecutor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            future: Future[Any] = Future()
            future.set_result(fn(*args, **kwargs))
            return future

    with Inline(2) as executor:
        assert list(executor.map(add, range(3))) == [0, 1, 2]
        assert list(executor.map(add, range(3), chunksize=2)) == [0, 1, 2]
        assert executor._processes == {}
