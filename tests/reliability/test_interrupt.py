"""Ctrl-C in every wait, and an exception at every opcode of the runtime's frames in the main thread."""

from __future__ import annotations

import dis
import gc
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.context import get_spawning_popen
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
from faults import DEADLINE_S, state_of, wait_until
from programs import Program, running

from scaleout.errors import CallInterruptedError, ResultUnpicklingError
from scaleout.multiprocessing import Pool

WAITS = """
    import os, signal, sys, time
    from scaleout.multiprocessing import Pool

    def say(*words):
        os.write(1, (" ".join(map(str, words)) + "\\n").encode())

    def sleep(_=None):
        say("busy")
        time.sleep(3600)

    def ignore(_=None):
        say("busy")
        while True:
            try:
                time.sleep(3600)
            except KeyboardInterrupt:
                say("ignored")

    def stubborn(_=None):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        ignore()

    def spin(_=None):
        say("busy")
        while True:
            pass

    def wait_get(pool, task):
        pool.apply_async(task).get()

    def wait_get_with_timeout(pool, task):
        pool.apply_async(task).get(3600)

    def wait_map(pool, task):
        pool.map(task, range(10_000), chunksize=1)

    def wait_generator(pool, task):
        pool.map(task, (number for number in range(10_000)), chunksize=3)

    def wait_imap(pool, task):
        next(pool.imap(task, range(10_000)))

    def wait_imap_fed(pool, task):
        next(pool.imap_unordered(task, (number for number in range(10_000)), buffersize=1000))

    def wait_join(pool, task):
        pool.map_async(task, range(10_000), chunksize=1)
        pool.close()
        say("joining")
        pool.join()

    def wait_exit(pool, task):
        with pool:
            pool.map_async(task, range(10_000), chunksize=1)
            wait_busy()
        # terminate() takes its time with tasks that ignore SIGTERM

    def wait_busy():
        while not os.path.exists("busy"):
            time.sleep(0.001)

    wait, task = os.environ["WAIT"], os.environ["TASK"]
    pool = Pool(2)
    pool.map(abs, range(4), chunksize=1)
    try:
        globals()["wait_" + wait](pool, globals()[task])
    except KeyboardInterrupt:
        say("interrupted", time.monotonic())
    else:
        say("not interrupted")
    if wait in ("join", "exit"):
        pool.join()
        say("joined", time.monotonic())
        pool = Pool(2)
    assert pool.map(abs, range(-50, 50), chunksize=1) == [abs(number) for number in range(-50, 50)]
    say("usable", time.monotonic())
    pool.terminate()
    pool.join()
"""

ENDS_IN_S = 5.0
"""Far more than the second that is promised: this machine may be loaded. What was measured is printed."""


def measure(program: Program, sent_at: float, what: str) -> float:
    for line in program.stdout.splitlines():
        if line.startswith(what):
            return float(line.split()[1]) - sent_at
    raise AssertionError(f"no {what!r} in {program.stdout}\n{program.stderr}")


@pytest.mark.parametrize("whole_group", [False, True], ids=["driver", "group"])
@pytest.mark.parametrize("task", ["sleep", "spin", "ignore"])
@pytest.mark.parametrize("wait", ["get", "get_with_timeout", "map", "generator", "imap", "imap_fed", "join"])
def test_ctrl_c_in_a_wait(wait: str, task: str, whole_group: bool, tmp_path: Path, record_property: Any) -> None:
    with running(WAITS, tmp_path, WAIT=wait, TASK=task) as program:
        program.wait_for("busy", 1 if "get" in wait else 2)
        if wait == "join":
            program.wait_for("joining")
        wait_until(lambda: state_of(program.pid) == "S", "the main thread waits")
        sent_at = time.monotonic()
        program.interrupt(whole_group)
        assert program.finish() == 0, program.stdout + program.stderr
        assert program.stderr == ""
        prompt_s = measure(program, sent_at, "interrupted")
        usable_s = measure(program, sent_at, "usable")
        print(f"CTRL-C {wait} {task} {'group' if whole_group else 'driver'}: {prompt_s:.3f} usable {usable_s:.3f}")
        assert prompt_s < ENDS_IN_S
        assert usable_s < ENDS_IN_S
        program.check_nothing_left()


@pytest.mark.parametrize("whole_group", [False, True], ids=["driver", "group"])
def test_ctrl_c_in_the_exit_of_with(whole_group: bool, tmp_path: Path) -> None:
    """Where terminate() waits for tasks that ignore SIGTERM."""
    with running(WAITS, tmp_path, WAIT="exit", TASK="stubborn") as program:
        program.wait_for("busy", 2)
        (tmp_path / "busy").touch()
        time.sleep(0.05)  # into the half second that terminate() takes; earlier or later, the outcome is the same
        sent_at = time.monotonic()
        program.interrupt(whole_group)
        assert program.finish() == 0, program.stdout + program.stderr
        assert program.stderr == ""
        prompt_s = measure(program, sent_at, "interrupted")
        joined_s = measure(program, sent_at, "joined")
        print(f"CTRL-C with-exit {'group' if whole_group else 'driver'}: {prompt_s:.3f} joined {joined_s:.3f}")
        assert prompt_s < ENDS_IN_S
        program.check_nothing_left()


TWICE = """
    import os, signal, sys, time
    from scaleout.multiprocessing import Pool

    def stubborn(_=None):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(1, b"busy\\n")
        while True:
            try:
                time.sleep(3600)
            except KeyboardInterrupt:
                pass

    def main():
        with Pool(2) as pool:
            try:
                pool.map(stubborn, range(10_000), chunksize=1)
            finally:
                os.write(1, b"first\\n")

    try:
        main()
    except KeyboardInterrupt:
        os.write(1, b"out\\n")
        raise
"""


@pytest.mark.parametrize("whole_group", [False, True], ids=["driver", "group"])
def test_ctrl_c_twice_ends_the_program(whole_group: bool, tmp_path: Path) -> None:
    with running(TWICE, tmp_path) as program:
        program.wait_for("busy", 2)
        sent_at = time.monotonic()
        program.interrupt(whole_group)
        program.wait_for("first")
        program.interrupt(whole_group)
        # 1 if some thread happens to `exec` between the exception and the exit, as the import of a named tuple does:
        # the interpreter's note that it is to end by SIGINT is a global that every `exec` clears.
        assert program.finish() in (-signal.SIGINT, 1), program.stdout + program.stderr
        print(f"CTRL-C twice {'group' if whole_group else 'driver'}: {time.monotonic() - sent_at:.3f}")
        # One traceback: the driver's own.
        assert program.stderr.count("Traceback (most recent call last)") <= 2, program.stderr
        assert program.stderr.rstrip().endswith("KeyboardInterrupt")
        assert "Process" not in program.stderr
        program.check_nothing_left()


NEIGHBOURS = """
    import os, sys, threading, time
    from scaleout.multiprocessing import Pool

    def wait(_):
        os.write(1, b"busy\\n")
        time.sleep(3600)

    def quick(number):
        return number

    pool = Pool(2)
    others = []
    stop = threading.Event()

    def submit():
        while not stop.is_set():
            others.append(pool.map_async(quick, range(20), chunksize=1))
            others[-1].wait(60)
            os.write(1, b"map\\n")

    thread = threading.Thread(target=submit)
    thread.start()
    for round in range(10):
        os.write(1, b"round %d\\n" % round)
        try:
            pool.apply(wait, (round,))
        except KeyboardInterrupt:
            pass
    stop.set()
    thread.join()
    for other in others:
        assert other.get(60) == list(range(20))
    pool.close()
    pool.join()
    os.write(1, b"done\\n")
"""


def test_ctrl_c_hits_the_interrupted_call_only(tmp_path: Path) -> None:
    """The tasks of other calls run before, beside and after it on the same workers."""
    with running(NEIGHBOURS, tmp_path) as program:
        for round_number in range(10):
            program.wait_for("busy", round_number + 1)
            program.wait_for("map", program.stdout.count("map") + 2)
            program.interrupt(whole_group=False)
        assert program.finish() == 0, program.stderr
        assert (program.stdout.count("done"), program.stderr) == (1, "")


# -- an exception at every opcode -------------------------------------------------------------------


class Alarm(Exception):
    """As the signal handlers of other libraries raise."""


LOOKS_FOR_SIGNALS = {
    dis.opmap[name]
    for name in ("RESUME", "JUMP_BACKWARD", "JUMP_ABSOLUTE", "CALL", "CALL_KW", "CALL_FUNCTION", "CALL_FUNCTION_EX")
    + ("CALL_FUNCTION_KW", "CALL_METHOD", "SEND", "FOR_ITER")
    if name in dis.opmap
}


def is_in_finalizer(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


class Injector:
    """Raises at the `position`th opcode of the main thread, in frames of ours, at which a signal handler could.

    Those are the ones after an opcode that looks for signals: calls, backward jumps, function starts. Nowhere else does
    the interpreter run a handler, above all not between the entry of a `with` and its first opcode, nor at its exit
    before `__exit__` is called; no `with lock:` would survive that. Nor in a finalizer, which runs wherever garbage
    happens to be collected: what is raised in it reaches nobody, Python prints it and goes on.
    """

    def __init__(self, position: int, kind: type[BaseException], files: tuple[str, ...] = ("/scaleout/",)) -> None:
        self.left = position
        self.kind = kind
        self.files = files
        self.count = 0
        self.where = ""
        self._codes: dict[CodeType, bytes] = {}

        self._last: dict[FrameType, int] = {}

    def _may_be_interrupted(self, frame: FrameType) -> bool:
        code = self._codes.get(frame.f_code)
        if code is None:
            code = self._codes[frame.f_code] = frame.f_code.co_code
        last = self._last.get(frame, -1)
        self._last[frame] = code[frame.f_lasti]
        return last in LOOKS_FOR_SIGNALS

    def _is_of_interest(self, file: str) -> bool:
        return any(part in file for part in self.files)

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "call" and (not self._is_of_interest(frame.f_code.co_filename) or is_in_finalizer(frame)):
            return None
        frame.f_trace = self._trace  # or 3.13 does not take notice of the next line
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if event == "opcode" and self._may_be_interrupted(frame):
            self.count += 1
            if self.count == self.left:
                self.where = f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}"
                raise self.kind
        return self._trace

    def run(self, operation: Callable[[], Any]) -> Any:
        before = sys.gettrace()
        sys._getframe().f_trace_opcodes = True  # 3.12 and later send opcode events only if one frame had asked before
        sys.settrace(self._trace)
        try:
            return operation()
        finally:
            sys.settrace(before)
            self._last.clear()


def count_opcodes(operation: Callable[[], Any], files: tuple[str, ...] = ("/scaleout/",)) -> int:
    injector = Injector(-1, Alarm, files)
    injector.run(operation)
    return injector.count


def walk(
    prepare: Callable[[], Any],
    operate: Callable[[Any], Any],
    check: Callable[[Any, str], None],
    stride: int,
    kind: type[BaseException],
    files: tuple[str, ...] = ("/scaleout/",),
) -> int:
    """Every `stride`th position of `operate` in `files`; returns how many exceptions were raised."""
    subject = prepare()
    total = count_opcodes(lambda: operate(subject), files)
    check(subject, "nowhere")
    raised = 0
    for position in range(1, total + 1, stride):
        subject = prepare()
        injector = Injector(position, kind, files)
        try:
            injector.run(lambda subject=subject: operate(subject))
        except kind:
            raised += 1
        except ResultUnpicklingError as error:  # nobody can tell it from one that the unpickling itself raised
            assert type(error.__cause__) is kind
            raised += 1
        assert get_spawning_popen() is None, f"locks can be pickled anywhere after an exception at {injector.where}"
        check(subject, injector.where)
    print(f"{raised} of {total} positions, stride {stride}")
    return raised


def check_usable(pool: Any, where: str) -> None:
    result = pool.map_async(abs, range(-3, 3), chunksize=1)
    result.wait(DEADLINE_S)
    assert result.ready(), f"the pool is stuck after an exception at {where}"
    assert result.get() == [3, 2, 1, 0, 1, 2]


def owned_ranges(pool: Any) -> int:
    return len(pool._group._owner.objects.ranges)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, Alarm])
class TestEveryOpcode:
    def test_submit(self, kind: type[BaseException]) -> None:
        with Pool(2) as pool:
            check_usable(pool, "")
            assert walk(lambda: pool, lambda pool: pool.apply_async(abs, (-1,)), check_usable, 1, kind) > 5

    def test_apply(self, kind: type[BaseException]) -> None:
        """In turn: from the third on the calling thread talks to the worker itself."""
        with Pool(2) as pool:

            def prepare() -> Any:
                for _ in range(4):
                    assert pool.apply(abs, (-1,)) == 1
                return pool

            def check(pool: Any, where: str) -> None:
                for _ in range(3):
                    result = pool.apply(abs, (-2,))
                    assert result == 2, (result, where)
                check_usable(pool, where)

            assert walk(prepare, lambda pool: pool.apply(abs, (-1,)), check, 1, kind) > 5

    def test_submit_of_a_map(self, kind: type[BaseException]) -> None:
        with Pool(2) as pool:
            check_usable(pool, "")
            assert walk(lambda: pool, lambda pool: pool.map_async(abs, [-1, 2]), check_usable, 1, kind) > 5

    def test_submit_of_an_imap(self, kind: type[BaseException]) -> None:
        with Pool(2) as pool:
            check_usable(pool, "")
            assert walk(lambda: pool, lambda pool: pool.imap(abs, iter([-1, 2])), check_usable, 1, kind) > 5

    def test_submit_of_a_large_argument(self, kind: type[BaseException]) -> None:
        """Nor is a range of the store held for ever."""
        large = b"x" * 300_000

        def check(pool: Any, where: str) -> None:
            check_usable(pool, where)

        with Pool(2) as pool:
            check_usable(pool, "")
            walk(lambda: pool, lambda pool: pool.apply_async(len, (large,)), check, 1, kind)

    def test_get(self, kind: type[BaseException]) -> None:
        with Pool(2) as pool:

            def check(result: Any, where: str) -> None:
                result.wait(DEADLINE_S)
                assert result.ready(), where
                try:
                    assert result.get() == 1
                except (CallInterruptedError, ResultUnpicklingError):
                    pass
                check_usable(pool, where)

            def prepare() -> Any:
                return pool.apply_async(abs, (-1,))

            def operate(result: Any) -> Any:
                return result.get(DEADLINE_S)

            assert walk(prepare, operate, check, 1, kind) > 5

    def test_get_of_a_map(self, kind: type[BaseException]) -> None:
        with Pool(2) as pool:

            def check(result: Any, where: str) -> None:
                result.wait(DEADLINE_S)
                assert result.ready(), where
                try:
                    assert result.get() == [1, 2, 3]
                except (CallInterruptedError, ResultUnpicklingError):
                    pass
                check_usable(pool, where)

            def prepare() -> Any:
                return pool.map_async(abs, [-1, -2, -3], chunksize=1)

            def operate(result: Any) -> Any:
                return result.get(DEADLINE_S)

            assert walk(prepare, operate, check, 1, kind) > 5

    def test_next(self, kind: type[BaseException]) -> None:
        with Pool(2) as pool:

            def check(results: Any, where: str) -> None:
                values = []
                for _ in range(10):
                    try:
                        values.append(results.next(DEADLINE_S))
                    except StopIteration:
                        break
                    except (CallInterruptedError, ResultUnpicklingError):
                        values.append(None)
                else:
                    raise AssertionError(f"no end after an exception at {where}")
                left = [value for value in values if value is not None]
                assert left in ([1, 2, 3], [2, 3], [1, 3], [3], [1, 2], [1], [2], []), (values, where)
                check_usable(pool, where)

            def operate(results: Any) -> Any:
                return results.next(DEADLINE_S)

            assert walk(lambda: pool.imap(abs, [-1, -2, -3]), operate, check, 1, kind) > 5

    def test_close(self, kind: type[BaseException]) -> None:
        def check(pool: Any, where: str) -> None:
            pool.close()
            pool.join()

        assert walk(lambda: Pool(1), lambda pool: pool.close(), check, 1, kind) > 3

    def test_join(self, kind: type[BaseException]) -> None:
        def prepare() -> Any:
            pool = Pool(1)
            pool.close()
            return pool

        assert walk(prepare, lambda pool: pool.join(), lambda pool, where: pool.join(), 1, kind) > 5

    def test_terminate(self, kind: type[BaseException]) -> None:
        def check(pool: Any, where: str) -> None:
            pool.terminate()
            pool.join()

        assert walk(lambda: Pool(1), lambda pool: pool.terminate(), check, 1, kind) > 5

    @pytest.mark.filterwarnings("ignore:unclosed running:ResourceWarning")
    def test_terminate_is_not_called_again(self, kind: type[BaseException]) -> None:
        """The pool is dropped, which ends it."""
        assert walk(lambda: Pool(1), lambda pool: pool.terminate(), lambda pool, where: None, 1, kind) > 5


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # struck between `open()` and its `with`
@pytest.mark.parametrize("kind", [KeyboardInterrupt, Alarm])
def test_an_exception_at_every_opcode_of_opening_a_pool(kind: type[BaseException]) -> None:
    """No pool, no workers: the threads end, and the zygote waits for the next one."""

    def operate(_: None) -> None:
        Pool(1, len, ("",)).terminate()

    def check(_: None, where: str) -> None:
        gc.collect()
        wait_until(lambda: not any(thread.name == "scaleout-reactor" for thread in threading.enumerate()), where)

    gc.collect()
    gc.freeze()  # or each of three hundred collections looks at all that the tests before have imported
    try:
        assert walk(lambda: None, operate, check, 3, kind) > 100
    finally:
        gc.unfreeze()
    with Pool(1) as pool:
        check_usable(pool, "the last")
