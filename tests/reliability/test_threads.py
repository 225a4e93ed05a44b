"""Many threads of the driver at once, callbacks, and pools that are dropped anywhere."""

from __future__ import annotations

import gc
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from faults import DEADLINE_S, wait_until

from scaleout.errors import SessionClosedError
from scaleout.multiprocessing import Pool


def square(number: int) -> int:
    return number * number


def add(left: int, right: int) -> int:
    return left + right


def fail(number: int) -> int:
    raise ValueError(number)


def in_threads(count: int, target: Callable[[int], None]) -> None:
    """Run `target(0..count-1)` at once; raises the first error."""
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            target(number)
        except BaseException as error:  # noqa: BLE001 - it is raised in the main thread
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * DEADLINE_S)
        assert not thread.is_alive(), "a thread is stuck"
    if errors:
        raise errors[0]


def use(pool: Any, seed: int, rounds: int) -> None:
    """Every kind of call, in a random order."""
    chance = random.Random(seed)
    for round_number in range(rounds):
        base = seed * 1000 + round_number
        kind = chance.randrange(8)
        if kind == 0:
            assert pool.apply(add, (base, 1)) == base + 1
        elif kind == 1:
            assert pool.map(square, range(base, base + 40)) == [n * n for n in range(base, base + 40)]
        elif kind == 2:
            assert list(pool.imap(square, iter(range(base, base + 20)))) == [n * n for n in range(base, base + 20)]
        elif kind == 3:
            values = pool.imap_unordered(square, range(base, base + 20), chunksize=3)
            assert sorted(values) == [n * n for n in range(base, base + 20)]
        elif kind == 4:
            results = [pool.apply_async(add, (base, n)) for n in range(20)]
            assert [result.get(DEADLINE_S) for result in results] == [base + n for n in range(20)]
        elif kind == 5:
            assert pool.starmap(add, [(base, n) for n in range(20)], chunksize=4) == [base + n for n in range(20)]
        elif kind == 6:
            with pytest.raises(ValueError, match=str(base)):
                pool.apply(fail, (base,))
        else:
            assert len(pool.apply(bytes, (200_000,))) == 200_000


def test_sixteen_threads_on_one_pool() -> None:
    with Pool(2) as pool:
        in_threads(16, lambda number: use(pool, number, 12))


def test_sixteen_threads_that_only_apply() -> None:
    """Direct calls and calls through the reactor, side by side."""

    def apply(pool: Any, number: int) -> None:
        for i in range(100):
            assert pool.apply(add, (number, i)) == number + i

    with Pool(2) as pool:
        apply(pool, 0)
        in_threads(16, lambda number: apply(pool, number))
        apply(pool, 0)


def test_pools_opened_and_closed_in_parallel() -> None:
    def open_and_close(number: int) -> None:
        for round_number in range(4):
            pool = Pool(1 + number % 2)
            assert pool.map(square, range(5), chunksize=1) == [0, 1, 4, 9, 16]
            if round_number % 2:
                pool.terminate()
            else:
                pool.close()
            pool.join()

    in_threads(8, open_and_close)


def test_terminate_while_other_threads_submit() -> None:
    """Each call ends: with a result, or with an error that says why there is none."""
    for _ in range(5):
        pool = Pool(2)
        counts: Counter[str] = Counter()
        lock = threading.Lock()
        has_begun = threading.Event()

        def submit(
            number: int, pool: Any = pool, counts: Any = counts, lock: Any = lock, has_begun: Any = has_begun
        ) -> None:
            while True:
                try:
                    if number % 3 == 0:
                        pool.apply(square, (2,))
                    elif number % 3 == 1:
                        pool.map_async(square, range(50), chunksize=1).get(DEADLINE_S)
                    else:
                        list(pool.imap(square, iter(range(20))))
                    outcome = "value"
                except SessionClosedError:
                    outcome = "closed"
                except ValueError as error:
                    assert str(error) == "Pool not running"
                    return
                with lock:
                    counts[outcome] += 1
                    if counts["value"] > 20:
                        has_begun.set()

        def end(number: int, pool: Any = pool, submit: Any = submit, has_begun: Any = has_begun) -> None:
            if number:
                submit(number)
            else:
                has_begun.wait(DEADLINE_S)
                pool.terminate()
                pool.join()

        in_threads(8, end)
        assert counts["value"] > 20


def test_close_while_other_threads_submit() -> None:
    for _ in range(5):
        pool = Pool(2)
        done: list[Any] = []

        def submit(number: int, pool: Any = pool, done: Any = done) -> None:
            try:
                while True:
                    done.append(pool.apply_async(square, (number,)))
            except ValueError:
                pass

        def close(number: int, pool: Any = pool, done: Any = done) -> None:
            if number:
                submit(number)
            else:
                wait_until(lambda: len(done) > 200)
                pool.close()
                pool.join()

        in_threads(4, close)
        ended = Counter()
        for result in done:
            assert result.ready() or result.wait(DEADLINE_S) is None
            try:
                result.get(0)
                ended["value"] += 1
            except SessionClosedError:  # it was on its way when the pool had ended
                ended["closed"] += 1
        assert ended["closed"] <= 8, ended
        assert ended["value"] > 200


# -- callbacks --------------------------------------------------------------------------------------


def test_each_callback_is_called_once_and_before_the_result_is_ready() -> None:
    called: list[Any] = []
    with Pool(2) as pool:
        results = []
        for number in range(500):
            function = fail if number % 5 == 0 else square
            results.append(
                pool.apply_async(
                    function,
                    (number,),
                    callback=lambda value, number=number: called.append((number, value)),
                    error_callback=lambda error, number=number: called.append((number, error)),
                )
            )
        for number, result in enumerate(results):
            result.wait(DEADLINE_S)
            assert any(entry[0] == number for entry in called)
    assert Counter(number for number, _ in called) == dict.fromkeys(range(500), 1)
    for number, value in called:
        assert isinstance(value, ValueError) if number % 5 == 0 else value == number * number


def test_a_map_s_callback_is_called_once() -> None:
    called: list[Any] = []
    with Pool(2) as pool:
        pool.map_async(square, range(100), 3, callback=called.append, error_callback=called.append).get()
        pool.map_async(square, [], callback=called.append).get()
        with pytest.raises(ValueError):
            pool.map_async(fail, range(100), 3, callback=called.append, error_callback=called.append).get()
    values, error = called[0], called[-1]
    assert values == [n * n for n in range(100)]
    assert isinstance(error, ValueError)
    assert len(called) == 2


def test_a_callback_that_raises_goes_to_the_excepthook(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", seen.append)

    def callback(value: int) -> None:
        raise KeyError(value)

    with Pool(2) as pool:
        results = [pool.apply_async(square, (number,), callback=callback) for number in range(5)]
        assert [result.get(DEADLINE_S) for result in results] == [0, 1, 4, 9, 16]
        assert pool.map(square, range(3)) == [0, 1, 4]
    assert sorted(entry.exc_value.args[0] for entry in seen) == [0, 1, 4, 9, 16]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_callback_that_wants_to_leave(error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)

    def callback(value: int) -> None:
        raise error

    with Pool(1) as pool:
        assert pool.apply_async(square, (3,), callback=callback).get(DEADLINE_S) == 9
        assert pool.apply_async(square, (4,), callback=lambda value: None).get(DEADLINE_S) == 16


def test_a_callback_that_submits() -> None:
    """And one that waits for what it submitted."""
    with Pool(2) as pool:
        chain: list[int] = []
        done = threading.Event()

        def callback(value: int) -> None:
            chain.append(value)
            if value < 1000:
                pool.apply_async(add, (value, 100), callback=callback)
            else:
                done.set()

        pool.apply_async(add, (0, 0), callback=callback)
        assert done.wait(DEADLINE_S)
        assert chain == list(range(0, 1001, 100))
        inner: list[int] = []

        def wait(value: int) -> None:
            inner.append(pool.apply(add, (value, 1)))
            inner.extend(pool.map(abs, [-7]))

        outer = pool.apply_async(square, (2,), callback=wait)
        assert outer.get(DEADLINE_S) == 4
        assert inner == [5, 7]


def test_a_callback_that_ends_the_pool() -> None:
    pool = Pool(2)
    done = threading.Event()

    def callback(value: int) -> None:
        pool.terminate()
        pool.join()
        done.set()

    pool.apply_async(square, (2,), callback=callback)
    assert done.wait(DEADLINE_S)


def test_callbacks_of_calls_that_a_terminate_ends() -> None:
    called: list[Any] = []
    pool = Pool(1)
    results = [pool.apply_async(time.sleep, (3600,), error_callback=called.append) for _ in range(5)]
    pool.terminate()
    for result in results:
        with pytest.raises(SessionClosedError):
            result.get(DEADLINE_S)
    assert [type(error) for error in called] == [SessionClosedError] * 5


# -- dropped pools ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:unclosed running:ResourceWarning")
def test_running_pools_are_collected_in_any_thread() -> None:
    def drop(number: int) -> None:
        for _ in range(3):
            pool = Pool(1)
            assert pool.apply_async(square, (3,)).get(DEADLINE_S) == 9  # one under way would keep the pool alive
            holder: list[Any] = [pool]
            holder.append(holder)
            del pool, holder
            gc.collect()

    in_threads(6, drop)
    gc.collect()  # a collection that begins during another one does nothing
    wait_until(lambda: not any(thread.name == "scaleout-reactor" for thread in threading.enumerate()), "all have ended")


@pytest.mark.filterwarnings("ignore:unclosed running:ResourceWarning")
def test_a_pool_that_is_dropped_ends_its_workers() -> None:
    pool = Pool(2)
    workers = pool._pool
    del pool
    gc.collect()
    for worker in workers:
        worker.join(DEADLINE_S)
        assert not worker.is_alive()


def test_a_result_keeps_its_pool() -> None:
    result = Pool(1).apply_async(square, (7,))
    gc.collect()
    with pytest.warns(ResourceWarning, match="unclosed running"):
        assert result.get(DEADLINE_S) == 49
        del result
        gc.collect()
