"""Workers between calls: who finds them again, who gets others, and when they end."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from faults import is_gone, wait_until
from joblib import Parallel, delayed, parallel_config
from meetings import meet

from scaleout._runtime import session
from scaleout.joblib_backend import close_idle, warm


def nothing(*values: Any) -> None:
    pass


def idle_groups() -> list[Any]:
    return warm.groups._idle


# -- found again -----------------------------------------------------------------------------------


def test_the_next_call_finds_the_workers(met: Any) -> None:
    assert met() == met() == met()


def test_more_jobs_keep_the_workers_there_are(met: Any) -> None:
    two = met(2)
    four = met(4)
    assert two < four
    assert met(4) == four
    assert met(3) < four
    assert len(idle_groups()) == 1


def test_an_exception_costs_only_those_that_run_something(met: Any, tmp_path: Path) -> None:
    before = met()
    started = tmp_path / "started"
    with pytest.raises(ZeroDivisionError):
        Parallel(n_jobs=2, backend="scaleout", batch_size=1)([delayed(wait_long)(started), delayed(fail_when)(started)])
    after = met()
    assert len(after) == 2 and len(after & before) == 1


def wait_long(started: Path) -> None:
    started.touch()
    wait_until(lambda: False, deadline_s=60)


def fail_when(started: Path) -> None:
    wait_until(started.exists)
    raise ZeroDivisionError


def test_what_a_worker_imported_stays_imported(met: Any) -> None:
    met()
    first = Parallel(n_jobs=2, backend="scaleout")(delayed(remember)("x") for _ in range(20))
    again = Parallel(n_jobs=2, backend="scaleout")(delayed(remember)("y") for _ in range(20))
    assert {"x"} == set(first) == set(again)


def remember(value: str) -> str:
    return vars(sys).setdefault("_remembered_by_a_test", value)  # type: ignore[no-any-return]


# -- others ----------------------------------------------------------------------------------------


def test_another_initializer_or_other_arguments_get_workers_of_their_own(met: Any) -> None:
    content = [1]
    plain = met()
    one = met(initializer=nothing, initargs=(1, content))
    assert one.isdisjoint(plain)
    assert met(initializer=nothing, initargs=(1, [1])) == one  # equal will do
    other = met(initializer=nothing, initargs=(2, [1]))
    assert other.isdisjoint(one)
    content.append(2)  # the same object, but not what the workers were started with
    assert met(initializer=nothing, initargs=(1, content)).isdisjoint(plain | one | other)


def test_another_environment_gets_workers_of_its_own(met: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = met()
    with parallel_config("scaleout", inner_max_num_threads=7):
        limited = set(Parallel(n_jobs=2)(delayed(os.getpid)() for _ in range(10)))
    assert limited.isdisjoint(plain)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert met().isdisjoint(plain | limited)


def test_another_place_gets_workers_of_its_own(met: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = met()
    monkeypatch.chdir(tmp_path)
    moved = met()
    assert moved.isdisjoint(plain)
    assert set(Parallel(n_jobs=2, backend="scaleout")(delayed(os.getcwd)() for _ in range(5))) == {str(tmp_path)}
    monkeypatch.syspath_prepend(tmp_path / "modules")
    assert met().isdisjoint(plain | moved)


def test_two_threads_never_share_workers(tmp_path: Path) -> None:
    found: list[set[int]] = []
    (tmp_path / "all").mkdir()

    def call() -> None:
        found.append(
            set(
                Parallel(n_jobs=2, backend="scaleout", batch_size=1)(
                    delayed(meet)(tmp_path / "all", 6) for _ in range(2)
                )
            )
        )

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set.union(*found)) == 6


# -- the end ---------------------------------------------------------------------------------------


def test_close_idle_ends_them(met: Any) -> None:
    pids = met()
    close_idle()
    assert all(is_gone(pid) for pid in pids)
    assert idle_groups() == []
    assert met().isdisjoint(pids)


def test_the_session_s_close_idle_ends_them_too(met: Any) -> None:
    pids = met()
    session.close_idle()
    assert all(is_gone(pid) for pid in pids)


def test_idle_workers_are_given_up_after_a_while(met: Any) -> None:
    pids = met(idle_worker_timeout=0.05)
    wait_until(lambda: all(is_gone(pid) for pid in pids))
    assert idle_groups() == []


def test_workers_that_were_used_since_are_not_given_up(met: Any) -> None:
    def look(group: Any) -> None:
        warm.groups._look_at_idle_time(group, group.next_look_at)

    pids = met(idle_worker_timeout=0.05)
    assert met(idle_worker_timeout=1000) in (pids, met(idle_worker_timeout=1000))  # found, or just too late
    (group,) = idle_groups()
    group.idle_since -= 0.06  # the look that was ordered for the first call comes, and finds the second one's time
    look(group)
    assert idle_groups() == [group]
    group.idle_since -= 1000
    look(group)
    assert idle_groups() == []


def test_the_time_is_that_of_the_last_call(met: Any) -> None:
    pids = met(idle_worker_timeout=1000)
    assert met(idle_worker_timeout=0.05) == pids
    wait_until(lambda: all(is_gone(pid) for pid in pids))
    assert idle_groups() == []


def test_what_is_idle_is_bounded(met: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scaleout._runtime.session.cpu_count", lambda: 2)
    pids = [met(initializer=nothing, initargs=(i,)) for i in range(4)]
    assert [group.recipe.initargs for group in idle_groups()] == [(2,), (3,)]
    for number in (0, 1):
        wait_until(lambda pids=pids[number]: all(is_gone(pid) for pid in pids))
    large = met(n_jobs=5)
    assert len(idle_groups()) == 1  # the one used last is kept, however large
    assert met(n_jobs=5) == large


def test_workers_that_died_while_idle_are_replaced(met: Any) -> None:
    pids = met()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda pid=pid: is_gone(pid))
    assert len(met(max_retries=None)) == 2


def test_a_forked_child_makes_its_own(met: Any) -> None:
    pids = met()
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            found = Parallel(n_jobs=2, backend="scaleout")(delayed(os.getpid)() for _ in range(20))
            close_idle()
            os.write(write_end, b"fine" if pids.isdisjoint(found) and os.getpid() not in found else b"shared")
        finally:
            os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        assert pipe.read() == b"fine"
    os.waitpid(child, 0)
    assert met() == pids


def test_a_parallel_object_of_the_parent_is_refused_in_a_child() -> None:
    with Parallel(n_jobs=2, backend="scaleout") as parallel:
        assert parallel(delayed(abs)(i) for i in range(3)) == [0, 1, 2]
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                parallel(delayed(abs)(i) for i in range(3))
            except BaseException as error:  # noqa: BLE001 - its name is what is looked at
                os.write(write_end, type(error).__name__.encode())
            finally:
                os._exit(0)
        os.close(write_end)
        with open(read_end, "rb") as pipe:
            assert pipe.read() == b"ForeignSessionError"
        os.waitpid(child, 0)
        assert parallel(delayed(abs)(i) for i in range(3)) == [0, 1, 2]


def test_an_initializer_that_fails_spoils_its_workers_only(met: Any, tmp_path: Path) -> None:
    from concurrent.futures.process import BrokenProcessPool

    plain = met()
    with pytest.raises(BrokenProcessPool, match="its initializer failed: ZeroDivisionError") as caught:
        met(initializer=divide, initargs=(tmp_path,))
    assert "in divide" in str(caught.value.__cause__.__cause__)
    (tmp_path / "may pass").touch()
    assert len(met(initializer=divide, initargs=(tmp_path,))) == 2
    assert met() == plain


def divide(directory: Path) -> None:
    if not (directory / "may pass").exists():
        raise ZeroDivisionError("in the initializer")
