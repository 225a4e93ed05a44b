"""Calls that end before their time: by a failure, by Ctrl-C, with the program, with the driver's death.

Where a `Parallel` has 10 000 calls, each would take an hour: so whatever waits for one of them does not end in time.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Iterator
from multiprocessing import TimeoutError as JoblibTimeoutError
from pathlib import Path
from typing import Any

import joblib.parallel
import pytest
from faults import note, notes, state_of, wait_until
from joblib import Parallel, delayed
from programs import Program, running
from test_interrupt import Alarm, walk

from scaleout.joblib_backend import close_idle, warm

COUNT = 10_000

ENDS_IN_S = 5.0
"""Far more than the second that is promised: this machine may be loaded. What was measured is printed."""


def square(x: float) -> float:
    return x * x


def block(log: Path) -> None:
    note(log, os.getpid())
    time.sleep(3600)


def fail_when(path: Path, log: Path) -> None:
    wait_until(lambda: path.exists() and log.exists())
    raise ZeroDivisionError("early")


def check_usable() -> None:
    assert Parallel(n_jobs=2, backend="scaleout")(delayed(square)(i) for i in range(50)) == [i * i for i in range(50)]


# -- a failure -------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_managed", [False, True], ids=["", "managed"])
@pytest.mark.parametrize("return_as", ["list", "generator", "generator_unordered"])
@pytest.mark.parametrize("pre_dispatch", ["all", "2 * n_jobs"])
def test_an_early_failure(pre_dispatch: str, return_as: str, is_managed: bool, met: Any, tmp_path: Path) -> None:
    """What is queued is never started, the iterator is not pulled any further, the workers serve the next call."""
    log = tmp_path / "started"
    before = met()
    pulled = 0
    told_at = 0.0

    def calls() -> Any:
        nonlocal pulled, told_at
        for pulled in range(1, COUNT + 1):
            if pulled == (COUNT if pre_dispatch == "all" else 4):  # no more will be asked for before the failure
                (tmp_path / "fail").touch()
                told_at = time.monotonic()
            yield delayed(fail_when)(tmp_path / "fail", log) if pulled == 1 else delayed(block)(log)

    parallel = Parallel(n_jobs=2, backend="scaleout", batch_size=1, pre_dispatch=pre_dispatch, return_as=return_as)
    if is_managed:
        with parallel:
            with pytest.raises(ZeroDivisionError, match="early"):
                list(parallel(calls()))
            took_s = time.monotonic() - told_at
            assert sorted(parallel(delayed(square)(i) for i in range(50))) == [i * i for i in range(50)]
    else:
        with pytest.raises(ZeroDivisionError, match="early"):
            list(parallel(calls()))
        took_s = time.monotonic() - told_at
    print(f"ABORT {pre_dispatch} {return_as}: {took_s:.3f}")
    assert took_s < ENDS_IN_S
    assert pulled == (COUNT if pre_dispatch == "all" else 4)
    after = met()
    assert len(after) == 2
    assert len(after & before) <= 1  # whoever ran one of them is gone; whoever failed may have started one, too
    assert len(notes(log)) <= 2


def test_a_timeout_among_10_000_calls(met: Any, tmp_path: Path) -> None:
    log = tmp_path / "started"
    parallel = Parallel(n_jobs=2, backend="scaleout", batch_size=1, pre_dispatch="all", timeout=0.1)
    with pytest.raises(JoblibTimeoutError):
        parallel(delayed(block)(log) for _ in range(COUNT))
    assert len(met()) == 2
    assert len(notes(log)) <= 2


# -- what cannot be pickled ------------------------------------------------------------------------


def told(error: BaseException) -> str:
    return " ".join([str(error), *getattr(error, "__notes__", [])])


@pytest.mark.parametrize("position", [0, 30])
def test_a_callable_that_cannot_travel_names_the_variable(position: int, tmp_path: Path) -> None:
    with open(tmp_path / "log", "w") as stream:

        def write(value: object) -> int:
            return stream.write(str(value))

        calls = [delayed(write)(i) if i == position else delayed(square)(i) for i in range(40)]
        with pytest.raises(TypeError, match=r"cannot pickle '(_io\.)?TextIOWrapper'") as caught:
            Parallel(n_jobs=2, backend="scaleout")(calls)
    assert "the variable 'stream' of the closure of function" in told(caught.value)
    check_usable()


class Holder:
    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, value: object) -> Any:
        return self.stream.write(str(value))


def test_a_method_whose_object_cannot_travel_names_the_attribute(tmp_path: Path) -> None:
    with open(tmp_path / "log", "w") as stream, pytest.raises(TypeError, match="cannot pickle") as caught:
        Parallel(n_jobs=2, backend="scaleout")(delayed(Holder(stream).write)(i) for i in range(4))
    assert "the attribute 'stream' of an object of class 'Holder'" in told(caught.value)
    check_usable()


class Unwilling:
    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind

    def __reduce__(self) -> Any:
        raise self.kind("not me")


@pytest.mark.parametrize("return_as", ["list", "generator", "generator_unordered"])
@pytest.mark.parametrize("position", [0, 30])  # pickled by the thread that calls, or by the one for callbacks
@pytest.mark.parametrize("kind", [LookupError, SystemExit])
def test_an_argument_that_cannot_travel(kind: type[BaseException], position: int, return_as: str) -> None:
    calls = [delayed(square)(Unwilling(kind) if i == position else i) for i in range(40)]
    with Parallel(n_jobs=2, backend="scaleout", batch_size=1, return_as=return_as) as parallel:
        with pytest.raises(kind, match="not me"):
            list(parallel(calls))
        assert sorted(parallel(delayed(square)(i) for i in range(50))) == [i * i for i in range(50)]
    check_usable()


# -- callbacks -------------------------------------------------------------------------------------


class Fails(Parallel):
    """As a progress bar does whose output is gone."""

    kind: type[BaseException]

    def print_progress(self) -> None:
        super().print_progress()
        if self.n_completed_tasks >= 5:
            raise self.kind("no more bars")


@pytest.mark.parametrize("return_as", ["list", "generator", "generator_unordered"])
@pytest.mark.parametrize("kind", [LookupError, SystemExit, KeyboardInterrupt])
def test_an_exception_where_progress_is_shown(kind: type[BaseException], return_as: str) -> None:
    parallel = Fails(n_jobs=2, backend="scaleout", batch_size=1, return_as=return_as)
    parallel.kind = kind
    with pytest.raises(kind, match="no more bars"):
        list(parallel(delayed(square)(i) for i in range(COUNT)))
    assert parallel.n_completed_tasks < COUNT
    check_usable()


def test_callbacks_of_progress_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs put a class of their own in place of joblib's callback, to count batches."""
    counted: list[int] = []

    class Counts(joblib.parallel.BatchCompletionCallBack):  # type: ignore[misc]
        def __call__(self, *arguments: Any, **keywords: Any) -> Any:
            counted.append(self.batch_size)
            return super().__call__(*arguments, **keywords)

    monkeypatch.setattr(joblib.parallel, "BatchCompletionCallBack", Counts)
    check_usable()
    assert sum(counted) == 50


@pytest.mark.parametrize("return_as", ["list", "generator", "generator_unordered"])
def test_an_exception_in_such_a_callback(return_as: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []

    class Raises(joblib.parallel.BatchCompletionCallBack):  # type: ignore[misc]
        def __call__(self, *arguments: Any, **keywords: Any) -> Any:
            counted.append(self.batch_size)
            if len(counted) == 3:
                raise LookupError("no bar")
            return super().__call__(*arguments, **keywords)

    with monkeypatch.context() as patched:
        patched.setattr(joblib.parallel, "BatchCompletionCallBack", Raises)
        with pytest.raises(LookupError, match="no bar"):
            list(
                Parallel(n_jobs=2, backend="scaleout", batch_size=1, return_as=return_as)(
                    delayed(square)(i) for i in range(COUNT)
                )
            )
    check_usable()


# -- Ctrl-C ----------------------------------------------------------------------------------------

HEAD = """
    import atexit, os, signal, sys, threading, time
    import scaleout.joblib_backend
    from joblib import Parallel, delayed, parallel_config

    COUNT = 10_000

    def say(*words):
        os.write(1, (" ".join(map(str, words)) + "\\n").encode())

    def square(number):
        return number * number

    def sleep(*_):
        say("busy")
        time.sleep(3600)

    def spin(*_):
        say("busy")
        while True:
            pass

    def ignore(*_):
        say("busy")
        while True:
            try:
                time.sleep(3600)
            except KeyboardInterrupt:
                pass

    def calls(task):
        return (delayed(task)(number) for number in range(COUNT))

    def parallel(**arguments):
        return Parallel(**{"n_jobs": 2, "backend": "scaleout", "batch_size": 1, "pre_dispatch": "all", **arguments})

    def nest():
        parallel()(calls(sleep))

"""

WAITS = (
    HEAD
    + """
    def in_list(task):
        parallel()(calls(task))

    def in_lazy_list(task):
        parallel(pre_dispatch="2 * n_jobs", batch_size="auto")(calls(task))

    def in_list_with_timeout(task):
        parallel(timeout=3600)(calls(task))

    def in_generator(task):
        next(parallel(return_as="generator")(calls(task)))

    def in_unordered(task):
        next(parallel(return_as="generator_unordered")(calls(task)))

    def in_managed(task):
        with parallel() as managed:
            managed(calls(task))

    def in_config(task):
        with parallel_config("scaleout", n_jobs=2):
            Parallel(pre_dispatch="all")(calls(task))

    def in_iterator(task):
        def slow():
            for number in range(COUNT):
                if number == COUNT // 2:
                    time.sleep(3600)
                yield delayed(task)(number)
        parallel()(slow())

    manner, task = sys.argv[1:]
    if manner.startswith("uncaught "):
        globals()[manner.removeprefix("uncaught ")](globals()[task])
    assert parallel()(delayed(square)(number) for number in range(4)) == [0, 1, 4, 9]
    try:
        globals()[manner](globals()[task])
    except KeyboardInterrupt:
        say("interrupted", time.monotonic())
    else:
        say("not interrupted")
    assert parallel()(delayed(square)(number) for number in range(100)) == [number ** 2 for number in range(100)]
    say("usable", time.monotonic())
"""
)

MANNERS = [
    "in_list",
    "in_lazy_list",
    "in_list_with_timeout",
    "in_generator",
    "in_unordered",
    "in_managed",
    "in_config",
    "in_iterator",
]


def moment(program: Program, what: str) -> float:
    for line in program.stdout.splitlines():
        if line.startswith(what):
            return float(line.split()[1])
    raise AssertionError(f"no {what!r} in {program.stdout}\n{program.stderr}")


def wait_for_busy_workers(program: Program) -> None:
    program.wait_for("busy\n", 2)
    wait_until(lambda: state_of(program.pid) == "S", "the main thread waits")


@pytest.mark.parametrize("whole_group", [False, True], ids=["driver", "group"])
@pytest.mark.parametrize(
    ("manner", "task"), [*((manner, "sleep") for manner in MANNERS), ("in_list", "spin"), ("in_list", "ignore")]
)
def test_ctrl_c(manner: str, task: str, whole_group: bool, tmp_path: Path) -> None:
    with running(WAITS, tmp_path, manner, task) as program:
        wait_for_busy_workers(program)
        sent_at = time.monotonic()
        program.interrupt(whole_group)
        assert program.finish() == 0, program.stdout + program.stderr
        assert program.stderr == ""
        prompt_s, usable_s = moment(program, "interrupted") - sent_at, moment(program, "usable") - sent_at
        print(f"CTRL-C {manner} {task} {'group' if whole_group else 'driver'}: {prompt_s:.3f} usable {usable_s:.3f}")
        assert prompt_s < ENDS_IN_S
        assert usable_s < ENDS_IN_S
        program.check_nothing_left()


@pytest.mark.parametrize("whole_group", [False, True], ids=["driver", "group"])
@pytest.mark.parametrize("manner", ["in_list", "in_generator", "in_managed"])
def test_ctrl_c_that_nobody_catches(manner: str, whole_group: bool, tmp_path: Path) -> None:
    with running(WAITS, tmp_path, f"uncaught {manner}", "sleep") as program:
        wait_for_busy_workers(program)
        sent_at = time.monotonic()
        program.interrupt(whole_group)
        assert program.finish() == -signal.SIGINT, program.stdout + program.stderr
        print(f"CTRL-C uncaught {manner} {'group' if whole_group else 'driver'}: {time.monotonic() - sent_at:.3f}")
        assert time.monotonic() - sent_at < ENDS_IN_S
        assert program.stderr.endswith("KeyboardInterrupt\n"), program.stderr
        assert "in sleep" not in program.stderr  # workers print nothing
        assert "Exception ignored" not in program.stderr
        program.check_nothing_left()


def test_ctrl_c_that_leaves_a_lock_of_joblib_s_locked() -> None:
    """As it does between the acquisition in `Condition.__enter__` and its return to the `with`."""

    def calls() -> Any:
        for number in range(20):
            yield delayed(square)(number)
        parallel._ready_batches.mutex.acquire()
        raise KeyboardInterrupt

    with Parallel(n_jobs=2, backend="scaleout", pre_dispatch="all") as parallel:
        with pytest.raises(KeyboardInterrupt):
            parallel(calls())
        assert parallel(delayed(square)(i) for i in range(50)) == [i * i for i in range(50)]


# -- the driver's death, and its exit --------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        "parallel()(calls(sleep))",
        "parallel()(calls(spin))",
        "next(parallel(return_as='generator')(calls(sleep)))",
        "parallel()(delayed(nest)() for _ in range(2))",
        "parallel()(delayed(sleep)(b'large' * 1_000_000) for _ in range(10))",
    ],
    ids=["sleep", "spin", "generator", "nested", "stored"],
)
def test_a_killed_driver_takes_everything_along(call: str, tmp_path: Path) -> None:
    with running(f"{HEAD}    {call}\n", tmp_path) as program:
        program.wait_for("busy\n", 4 if "nest" in call else 2)
        assert len(program.processes()) >= 4  # the driver, the zygote, the workers
        program.kill()
        program.check_nothing_left()
        assert program.stderr == ""


def run(script: str, directory: Path, *, code: int = 0) -> tuple[list[str], str]:
    """The script's lines and its stderr; checks that it ended soon after it had said "ending", and left nothing."""
    with running(HEAD + script, directory) as program:
        assert program.finish() == code, program.stdout + program.stderr
        took_s = time.monotonic() - moment(program, "ending")
        print(f"the exit took {took_s:.3f} s")
        assert took_s < ENDS_IN_S
        program.check_nothing_left()
        return [line for line in program.stdout.splitlines() if not line.startswith("ending ")], program.stderr


WARM = """
    assert parallel()(delayed(square)(number) for number in range(4)) == [0, 1, 4, 9]
"""
ENDING = """
    say("ending", time.monotonic())
"""


@pytest.mark.parametrize(
    ("leave", "code"),
    [("", 0), ("sys.exit(3)", 3), ("os._exit(4)", 4), ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM)],
    ids=["", "exit", "_exit", "SIGTERM"],
)
def test_exit_with_warm_workers(leave: str, code: int, tmp_path: Path) -> None:
    assert run(f"{WARM}{ENDING}    {leave}\n", tmp_path, code=code) == ([], "")


def test_warm_workers_run_their_own_exit_functions(tmp_path: Path) -> None:
    script = """
    def register(_):
        atexit.register(say, "worker's")
        time.sleep(0.01)

    parallel()(delayed(register)(number) for number in range(1))
    """
    assert run(script + ENDING, tmp_path) == (["worker's"], "")


def test_exit_with_an_open_managed_parallel(tmp_path: Path) -> None:
    script = """
    managed = parallel()
    managed.__enter__()
    managed(delayed(square)(number) for number in range(4))
    """
    assert run(script + ENDING, tmp_path) == ([], "")


def test_exit_while_a_daemon_thread_waits(tmp_path: Path) -> None:
    """It is told, if it still runs by then, that there will be no results."""
    script = """
    from scaleout.joblib_backend.errors import SessionClosedError
    def work():
        try:
            parallel()(calls(sleep))
        except SessionClosedError:
            pass
    threading.Thread(target=work, daemon=True).start()
    time.sleep(0.5)  # earlier or later, the outcome is the same
    """
    assert run(script + ENDING, tmp_path)[1] == ""


@pytest.mark.skipif(
    sys.version_info[:2] == (3, 12), reason="CPython 3.12 starts no thread once the main thread has ended"
)
def test_a_thread_that_has_begun_is_waited_for(tmp_path: Path) -> None:
    script = """
    def work():
        main.join()
        say(*parallel()(delayed(square)(number) for number in range(4)))
    main = threading.main_thread()
    threading.Thread(target=work).start()
    """
    assert run(script + ENDING, tmp_path) == (["0 1 4 9"], "")


HELD = {
    "a global": "results = start()",
    "a cycle": """
    class Holder:
        pass
    holder = Holder()
    holder.itself = holder
    holder.results = results = start()
    """,
    "a frame": """
    def hold():
        results = start()
        yield next(results)
        yield results
    frame = hold()
    results = iter([next(frame)])
    """,
    "a thread": """
    def keep():
        results = start()
        say("first", next(results))
        kept.set()
        time.sleep(3600)
    kept = threading.Event()
    threading.Thread(target=keep, daemon=True).start()
    kept.wait()
    results = iter([0])
    """,
}


@pytest.mark.parametrize("place", HELD)
@pytest.mark.parametrize("later", ["square", "sleep"])
@pytest.mark.parametrize("return_as", ["generator", "generator_unordered"])
def test_a_half_consumed_generator_at_the_exit(return_as: str, later: str, place: str, tmp_path: Path) -> None:
    script = f"""
    def start():
        return parallel(return_as={return_as!r}, pre_dispatch={"2 * n_jobs"!r})(
            delayed({later} if number > 5 else square)(number) for number in range(COUNT)
        )

    {HELD[place].strip()}
    say("first", next(results))
    """
    lines, stderr = run(script + ENDING, tmp_path)
    assert any(line.startswith("first ") for line in lines)
    assert all("UserWarning: " in line and "cancelled" in line for line in stderr.splitlines()), stderr  # of joblib's


# -- an exception at every opcode of ours in the main thread ---------------------------------------


@pytest.fixture
def fast_collections() -> Iterator[None]:
    """By the garbage collector, which leaves alone what was there before."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def call_three(return_as: str) -> None:
    parallel = Parallel(n_jobs=2, backend="scaleout", batch_size=1, pre_dispatch="all", return_as=return_as)
    assert list(parallel(delayed(abs)(-i) for i in range(3))) == [0, 1, 2]


def check_groups(where: str) -> None:
    """The next call works, and there are no workers that nobody can find again."""
    gc.collect()  # joblib's objects hold one another
    wait_until(lambda: not warm.groups._taken, where)
    assert Parallel(n_jobs=2, backend="scaleout")(delayed(abs)(-i) for i in range(5)) == list(range(5)), where
    assert len(warm.groups._idle) <= 2, where


@pytest.mark.usefixtures("fast_collections")
@pytest.mark.parametrize(("kind", "return_as"), [(KeyboardInterrupt, "list"), (Alarm, "generator")])
def test_an_exception_at_every_opcode(kind: type[BaseException], return_as: str) -> None:
    check_groups("the start")
    assert walk(lambda: None, lambda _: call_three(return_as), lambda _, where: check_groups(where), 3, kind) > 50


@pytest.mark.usefixtures("fast_collections")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # struck between `open()` and its `with`
@pytest.mark.parametrize("kind", [KeyboardInterrupt, Alarm])
def test_an_exception_while_workers_are_started(kind: type[BaseException]) -> None:
    check_groups("the start")
    assert walk(close_idle, lambda _: call_three("list"), lambda _, where: check_groups(where), 101, kind) > 10
