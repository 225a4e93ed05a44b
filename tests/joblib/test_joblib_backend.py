"""The backend as a user of joblib meets it: calls, batches, generators, how many workers, what they start with."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from multiprocessing import TimeoutError as JoblibTimeoutError
from typing import Any

import joblib
import joblib.parallel
import pytest
from faults import wait_until
from joblib import Parallel, delayed, effective_n_jobs, parallel_backend, parallel_config
from joblib.parallel import SequentialBackend, ThreadingBackend, get_active_backend

from scaleout._runtime import session
from scaleout._runtime.node import host
from scaleout.joblib_backend import ScaleoutBackend, register
from scaleout.joblib_backend.recipe import THREAD_LIMITS


def square(x: float) -> float:
    return x * x


def raise_for_seven(x: int) -> int:
    if x == 7:
        raise ZeroDivisionError("seven")
    return x


def wait_for(path: Any) -> int:
    wait_until(path.exists)
    return os.getpid()


def environment(*names: str) -> list[str | None]:
    return [os.environ.get(name) for name in names]


def run(**arguments: Any) -> Any:
    return Parallel(n_jobs=2, backend="scaleout", **arguments)(delayed(square)(i) for i in range(50))


SQUARES = [i * i for i in range(50)]


# -- calls -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", ["auto", 1, 7, 100])
@pytest.mark.parametrize("pre_dispatch", ["2 * n_jobs", "all", 1, 5])
def test_results_in_order(batch_size: Any, pre_dispatch: Any) -> None:
    assert run(batch_size=batch_size, pre_dispatch=pre_dispatch) == SQUARES


def test_calls_run_in_other_processes() -> None:
    pids = Parallel(n_jobs=2, backend="scaleout")(delayed(os.getpid)() for _ in range(20))
    assert os.getpid() not in pids and len(set(pids)) <= 2


@pytest.mark.parametrize("context", [parallel_config, parallel_backend])
def test_named_in_a_context(context: Any) -> None:
    with context("scaleout", n_jobs=2):
        assert type(get_active_backend()[0]) is ScaleoutBackend
        assert Parallel()(delayed(square)(i) for i in range(50)) == SQUARES
        assert effective_n_jobs() == 2


def test_one_parallel_object_for_many_calls() -> None:
    with Parallel(n_jobs=2, backend="scaleout") as parallel:
        workers = parallel._backend._workers
        for _ in range(3):
            assert parallel(delayed(square)(i) for i in range(50)) == SQUARES
        assert parallel._backend._workers is workers
    assert parallel._backend._workers is None
    assert parallel(delayed(square)(i) for i in range(50)) == SQUARES


def test_nothing_to_do() -> None:
    assert Parallel(n_jobs=2, backend="scaleout")([]) == []


def test_the_remote_traceback_is_the_cause() -> None:
    with pytest.raises(ZeroDivisionError, match="^seven$") as caught:
        Parallel(n_jobs=2, backend="scaleout")(delayed(raise_for_seven)(i) for i in range(20))
    assert type(caught.value.__cause__).__name__ == "_RemoteTraceback"
    assert "in raise_for_seven" in str(caught.value.__cause__)


def test_an_exception_leaves_a_managed_parallel_usable() -> None:
    with Parallel(n_jobs=2, backend="scaleout") as parallel:
        workers = parallel._backend._workers
        with pytest.raises(ZeroDivisionError):
            parallel(delayed(raise_for_seven)(i) for i in range(20))
        assert parallel._backend._workers is not workers
        assert parallel(delayed(square)(i) for i in range(50)) == SQUARES


def test_an_exception_of_the_iterator() -> None:
    def calls(count: int) -> Any:
        for i in range(count):
            yield delayed(square)(i)
        raise LookupError("no more")

    for count in (0, 5, 50):
        with pytest.raises(LookupError, match="no more"):
            Parallel(n_jobs=2, backend="scaleout")(calls(count))
    assert run() == SQUARES


@pytest.mark.parametrize("kind", [SystemExit, GeneratorExit])
def test_what_joblib_does_not_catch_of_the_iterator_does_not_hang(kind: Any) -> None:
    def calls() -> Any:
        for i in range(30):  # the later ones are asked for on another thread
            yield delayed(square)(i)
        raise kind("enough")

    with pytest.raises(kind, match="enough"):
        Parallel(n_jobs=2, backend="scaleout")(calls())
    assert run() == SQUARES


def test_a_parallel_call_in_the_iterator_of_another() -> None:
    def calls() -> Any:
        for i in range(12):
            inner = Parallel(n_jobs=2, backend="scaleout")(delayed(square)(j) for j in range(3))
            yield delayed(square)(sum(inner) + i)

    assert Parallel(n_jobs=2, backend="scaleout")(calls()) == [square(5 + i) for i in range(12)]


@pytest.mark.parametrize("inner", [{}, {"return_as": "generator"}, {"timeout": 50}])
def test_a_parallel_call_in_the_iterator_while_callbacks_of_the_outer_one_wait(
    inner: dict[str, Any], tmp_path: Any
) -> None:
    """joblib holds the lock that they need while it pulls the iterator on."""

    def calls() -> Any:
        yield delayed(os.mkfifo)(tmp_path / "first")
        yield delayed(square)(1)
        wait_until((tmp_path / "first").exists)
        for i in range(3):
            squares = Parallel(n_jobs=2, backend="scaleout", batch_size=1, **inner)(
                delayed(square)(j) for j in range(200)
            )
            yield delayed(square)(sum(squares) + i)

    expected = sum(j * j for j in range(200))
    results = Parallel(n_jobs=2, backend="scaleout", batch_size=1)(calls())
    assert results == [None, 1, *(square(expected + i) for i in range(3))]


def test_timeout(tmp_path: Any) -> None:
    with pytest.raises(JoblibTimeoutError):
        Parallel(n_jobs=2, backend="scaleout", timeout=0.05)(delayed(wait_for)(tmp_path / "never") for _ in range(4))
    assert run(timeout=60) == SQUARES


def test_progress_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    run(verbose=11)
    assert "Using backend ScaleoutBackend with 2 concurrent workers." in capsys.readouterr().err


# -- generators ------------------------------------------------------------------------------------


@pytest.mark.parametrize("return_as", ["generator", "generator_unordered"])
def test_generators(return_as: str) -> None:
    results = run(return_as=return_as)
    assert sorted(results) == SQUARES
    assert return_as == "generator_unordered" or list(run(return_as=return_as)) == SQUARES


def test_unordered_results_do_not_wait_for_a_slow_one(tmp_path: Any) -> None:
    calls = [delayed(wait_for)(tmp_path / "go"), *(delayed(square)(i) for i in range(9))]
    results = Parallel(n_jobs=2, backend="scaleout", return_as="generator_unordered", batch_size=1)(calls)
    assert sorted(next(results) for _ in range(9)) == [square(i) for i in range(9)]
    (tmp_path / "go").touch()
    assert next(results) != os.getpid()


def test_a_generator_that_is_dropped_half_consumed(tmp_path: Any) -> None:
    results = Parallel(n_jobs=2, backend="scaleout", return_as="generator", batch_size=1)(
        delayed(wait_for)(tmp_path / "never") if i > 5 else delayed(square)(i) for i in range(100)
    )
    assert [next(results) for _ in range(5)] == SQUARES[:5]
    with pytest.warns(UserWarning, match="cancelled"):
        del results
    assert run() == SQUARES


def test_two_generators_at_once_in_one_context() -> None:
    with parallel_config("scaleout", n_jobs=2):
        first = Parallel(return_as="generator", batch_size=1)(delayed(square)(i) for i in range(50))
        second = Parallel(return_as="generator", batch_size=1)(delayed(square)(i) for i in range(50))
        assert list(zip(first, second, strict=True)) == list(zip(SQUARES, SQUARES, strict=True))
        assert Parallel()(delayed(square)(i) for i in range(50)) == SQUARES


def test_a_call_while_a_generator_is_half_consumed() -> None:
    first = run(return_as="generator", batch_size=1, pre_dispatch=4)
    assert next(first) == 0
    assert run() == SQUARES
    assert list(first) == SQUARES[1:]


# -- how many --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_jobs", "expected"), [(1, 1), (2, 2), (5, 5), (-1, 4), (-2, 3), (-4, 1), (-100, 1), (None, 1)]
)
def test_effective_n_jobs(n_jobs: int | None, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scaleout.joblib_backend.backend.cpu_count", lambda: 4)
    assert ScaleoutBackend(nesting_level=0).effective_n_jobs(n_jobs) == expected


def test_no_jobs_are_refused() -> None:
    with pytest.raises(ValueError, match="n_jobs == 0 in Parallel has no meaning"):
        Parallel(n_jobs=0, backend="scaleout")(delayed(square)(i) for i in range(3))


def test_one_job_is_no_job() -> None:
    parallel = Parallel(n_jobs=1, backend="scaleout")
    assert parallel(delayed(os.getpid)() for _ in range(3)) == [os.getpid()] * 3
    assert type(parallel._backend) is SequentialBackend


def test_cpus_are_scaleouts() -> None:
    code = (
        "import scaleout.joblib_backend, joblib\n"
        "with joblib.parallel_config('scaleout', n_jobs=-1): print(joblib.effective_n_jobs(None))"
    )
    environ = {**os.environ, "SCALEOUT_NUM_CPUS": "3"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("3\n", "")


def test_inline_runs_in_the_calling_thread() -> None:
    code = (
        "import os, threading, scaleout.joblib_backend\n"
        "from joblib import Parallel, delayed\n"
        "def where(): return os.getpid(), threading.get_ident()\n"
        "assert Parallel(n_jobs=2, backend='scaleout')(delayed(where)() for _ in range(2000)) == [where()] * 2000"
    )
    environ = {**os.environ, "SCALEOUT_INLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_shared_memory_means_threads() -> None:
    with parallel_config("scaleout", n_jobs=2):
        assert type(Parallel(require="sharedmem")._backend) is ThreadingBackend
        assert type(Parallel(prefer="threads")._backend) is ScaleoutBackend  # a hint; the context is explicit
    with pytest.raises(ValueError, match="does not support shared memory"):
        Parallel(backend="scaleout", require="sharedmem")


# -- what workers start with -----------------------------------------------------------------------


def test_workers_keep_libraries_from_starting_too_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scaleout.joblib_backend.recipe.cpu_count", lambda: 8)
    for name in (*THREAD_LIMITS, "ENABLE_IPC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    calls = [delayed(environment)(*THREAD_LIMITS, "ENABLE_IPC") for _ in range(4)]
    for found in Parallel(n_jobs=2, backend="scaleout")(calls):
        assert found == [*("3" if name == "MKL_NUM_THREADS" else "4" for name in THREAD_LIMITS), "1"]
    with parallel_config("scaleout", n_jobs=2, inner_max_num_threads=2):
        for found in Parallel()(calls):
            assert found == [*["2"] * len(THREAD_LIMITS), "1"]
    assert "OMP_NUM_THREADS" not in os.environ


def test_the_limits_are_there_before_numpy_is(monkeypatch: pytest.MonkeyPatch) -> None:
    numpy = pytest.importorskip("numpy")
    threadpoolctl = pytest.importorskip("threadpoolctl")
    if not any(pool["num_threads"] for pool in threadpoolctl.threadpool_info()):
        pytest.skip(f"numpy {numpy.__version__} has no threads of its own here")
    session.close_idle()  # its zygote may have imported numpy
    monkeypatch.setattr(host, "preloaded_modules", [])
    with parallel_config("scaleout", n_jobs=2, inner_max_num_threads=1):
        for pools in Parallel()(delayed(thread_pools)() for _ in range(4)):
            assert {pool["num_threads"] for pool in pools} == {1}


def thread_pools() -> Any:
    import numpy
    import threadpoolctl

    numpy.dot(numpy.ones((100, 100)), numpy.ones((100, 100)))
    return threadpoolctl.threadpool_info()


seen: list[Any] = []


def note(*values: Any) -> None:
    seen.extend(values)


def noted() -> list[Any]:
    return seen


def test_initializers() -> None:
    arguments: dict[str, Any] = {"initializer": note, "initargs": (1, "two")}
    expected = [[1, "two"]] * 10
    assert Parallel(n_jobs=2, backend="scaleout", **arguments)(delayed(noted)() for _ in range(10)) == expected
    with parallel_config("scaleout", n_jobs=2, **arguments):
        assert Parallel()(delayed(noted)() for _ in range(10)) == expected


def test_loky_s_former_timeout_is_refused() -> None:
    with pytest.raises(ValueError, match="idle_worker_timeout"):
        Parallel(n_jobs=2, backend=ScaleoutBackend(timeout=3))(delayed(square)(i) for i in range(3))


# -- registration ----------------------------------------------------------------------------------


def test_only_the_register_changes() -> None:
    code = (
        "import copyreg, joblib.parallel as parallel\n"
        "def state():\n"
        "    found = {n: v for n, v in vars(parallel).items() if n != 'BACKENDS' and not n.startswith('__')}\n"
        "    return found, dict(parallel.BACKENDS), dict(copyreg.dispatch_table)\n"
        "before = state()\n"
        "import scaleout.joblib_backend\n"
        "after = state()\n"
        "assert after[0] == before[0] and after[2] == before[2]\n"
        "assert after[1].keys() - before[1].keys() == {'scaleout'}\n"
        "assert all(after[1][name] is before[1][name] for name in before[1])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_registering_again_changes_nothing() -> None:
    register()
    assert joblib.parallel.BACKENDS["scaleout"] is ScaleoutBackend
    assert joblib.parallel.DEFAULT_BACKEND == "loky"


def test_a_pickled_backend_is_looked_up_anew() -> None:
    backend = ScaleoutBackend(nesting_level=1, initializer=note, initargs=(3,))
    backend.inner_max_num_threads = 2
    copied = pickle.loads(pickle.dumps(backend))
    assert type(copied) is ScaleoutBackend and copied._workers is None
    assert (copied.nesting_level, copied.inner_max_num_threads) == (1, 2)
    assert copied.backend_kwargs == {"initializer": note, "initargs": (3,)}


def test_calls_from_many_threads() -> None:
    found: list[Any] = [None] * 4

    def call(number: int) -> None:
        found[number] = run()

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [SQUARES] * 4


def test_one_instance_in_many_threads() -> None:
    backend = ScaleoutBackend(nesting_level=0)
    found: list[Any] = [None] * 4

    def call(number: int) -> None:
        found[number] = Parallel(n_jobs=2, backend=backend)(delayed(square)(i) for i in range(50))

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [SQUARES] * 4
