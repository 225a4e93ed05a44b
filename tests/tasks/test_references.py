"""Counting references: whoever holds one has the object; when nobody does, it is gone, as the fixture checks."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import os
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
from faults import wait_until

import scaleout
from scaleout import errors

numpy = pytest.importorskip("numpy")


@scaleout.remote
def identity(value: Any) -> Any:
    return value


@scaleout.remote
def read(container: Any) -> Any:
    return scaleout.get(list(container))


@scaleout.remote
def make(value: Any) -> Any:
    """References to objects that only this task has ever referred to, small and large."""
    return [scaleout.put(value), scaleout.put([value] * 50_000), identity.remote(value)]


@scaleout.remote
class Holder:
    def __init__(self, *kept: Any) -> None:
        self.kept = list(kept)

    def keep(self, container: Any) -> None:
        self.kept.append(container)

    def read(self) -> Any:
        return scaleout.get([ref for container in self.kept for ref in container])

    def give(self) -> Any:
        return self.kept

    def drop(self) -> None:
        self.kept.clear()


def objects() -> int:
    return len(scaleout.list_objects())


def settles_at(count: int) -> None:
    wait_until(lambda: objects() == count, f"{count} objects", deadline_s=10)


def test_an_object_goes_with_its_last_reference() -> None:
    first = scaleout.put("value")
    second = pickle.loads(pickle.dumps(first))
    del first
    assert scaleout.get(second) == "value"
    assert objects() == 1
    del second
    assert objects() == 0


@pytest.mark.parametrize("value", ["small", "x" * 200_000])
def test_references_in_results(value: str) -> None:
    """Their release had been sent before the result that hands them on."""
    small, large, result = scaleout.get(make.remote(value))
    assert scaleout.get([small, result]) == [value, value]
    assert scaleout.get(large) == [value] * 50_000
    settles_at(3)


def test_references_in_results_that_go_through_many_hands() -> None:
    refs = scaleout.get(make.remote("deep"))
    for _ in range(5):
        refs = scaleout.get(identity.remote(refs))
    container = scaleout.put({"refs": refs})
    del refs
    gc.collect()
    assert scaleout.get(read.remote(scaleout.get(container)["refs"]))[0] == "deep"
    again = scaleout.get(identity.remote([container]))[0]
    del container
    assert scaleout.get(scaleout.get(again)["refs"][2]) == "deep"


def test_a_result_of_references_that_nobody_reads() -> None:
    refs = [make.remote(number) for number in range(20)]
    scaleout.wait(refs, num_returns=20)
    assert objects() >= 80
    del refs
    settles_at(0)


def test_references_inside_of_references() -> None:
    ref = scaleout.put("bottom")
    for _ in range(50):
        ref = scaleout.put([ref])
    assert objects() == 51
    found: Any = [ref]
    while isinstance(found, list):
        found = scaleout.get(found[0])
    assert found == "bottom"
    del found, ref
    settles_at(0)


@pytest.mark.parametrize("drop_first", [True, False])
def test_a_borrowed_reference_outlives_the_lenders(drop_first: bool) -> None:
    holder = Holder.remote()
    ref = scaleout.put("lent")
    kept = holder.keep.remote([ref])
    if drop_first:
        del ref
    scaleout.get(kept)
    del kept
    if not drop_first:
        del ref
    gc.collect()
    assert scaleout.get(holder.read.remote()) == ["lent"]
    assert objects() == 1
    scaleout.get(holder.drop.remote())
    settles_at(0)


def test_references_in_an_actors_constructor_and_its_death() -> None:
    holder = Holder.remote([scaleout.put("first"), scaleout.put("second")])
    assert scaleout.get(holder.read.remote()) == ["first", "second"]
    assert objects() == 2
    scaleout.kill(holder)
    settles_at(0)


def test_an_actor_passes_on_what_it_holds() -> None:
    first, second = Holder.remote(), Holder.remote()
    scaleout.get(first.keep.remote([scaleout.put("passed"), scaleout.put(numpy.ones(100_000))]))
    (container,) = scaleout.get(first.give.remote())
    scaleout.get([second.keep.remote(container), first.drop.remote()])
    del container
    scaleout.kill(first)
    text, array = scaleout.get(second.read.remote())
    assert text == "passed"
    assert array.sum() == 100_000


def test_what_an_actor_has_put_outlives_it() -> None:
    @scaleout.remote
    class Maker:
        def make(self) -> Any:
            return [scaleout.put("kept"), scaleout.put(numpy.full(100_000, 2.0)), identity.remote(5)]

    maker = Maker.remote()
    refs = scaleout.get(maker.make.remote())
    scaleout.kill(maker)
    text, array, number = scaleout.get(refs)
    assert (text, float(array.sum()), number) == ("kept", 200_000.0, 5)


def test_a_task_that_is_cancelled_lets_go_what_it_was_given(one_slot: None) -> None:
    blocker_gate = threading.Event()
    blocker = scaleout.remote(lambda: __import__("time").sleep(3600)).remote()
    refs = [identity.remote([scaleout.put(number)]) for number in range(10)]
    late = identity.remote([scaleout.put("x" * 100_000), blocker])
    for ref in (*refs, late, blocker):
        scaleout.cancel(ref)
    with pytest.raises(errors.TaskCancelledError):
        scaleout.get(blocker, timeout=20)
    del refs, late, blocker, ref
    blocker_gate.set()
    settles_at(0)


def test_what_is_taken_back_from_a_worker_lets_go() -> None:
    """Tasks that were sent, and went back unstarted, had kept the references in their arguments for ever."""
    quick, slow = scaleout.remote(lambda refs: len(refs)), scaleout.remote(lambda refs: __import__("time").sleep(0.05))
    scaleout.get([quick.remote([scaleout.put(0)]) for _ in range(20)])  # known to be short, and so prefetched
    mixed = [(slow if number % 10 == 0 else quick).remote([scaleout.put(number)]) for number in range(100)]
    scaleout.get(mixed)
    del mixed
    settles_at(0)


def test_a_reference_pickled_by_the_user() -> None:
    ref = scaleout.put("by hand")
    data = pickle.dumps([ref])
    assert scaleout.get(pickle.loads(data)[0]) == "by hand"

    @scaleout.remote
    def use(data: bytes) -> Any:
        return scaleout.get(pickle.loads(data)[0])

    assert scaleout.get(use.remote(data)) == "by hand"
    del ref
    gc.collect()
    with pytest.raises(errors.ObjectLostError, match="pickled by hand"):
        scaleout.get(pickle.loads(data)[0])
    with pytest.raises(errors.ObjectLostError, match="pickled by hand"):
        scaleout.get(use.remote(data))


def test_a_closure_that_refers_to_an_object() -> None:
    ref = scaleout.put("enclosed")
    assert scaleout.get(scaleout.remote(lambda: scaleout.get(ref)).remote()) == "enclosed"


def test_equality_hash_and_repr() -> None:
    ref = scaleout.put(1)
    other = scaleout.get(identity.remote([ref]))[0]
    assert other == ref
    assert hash(other) == hash(ref)
    assert len({ref, other}) == 1
    assert ref != scaleout.put(1)
    assert "ready" in repr(ref)
    failed = scaleout.remote(lambda: 1 / 0).remote()
    scaleout.wait([failed])
    assert "failed" in repr(failed)


def test_put_of_a_reference() -> None:
    with pytest.raises(TypeError, match="not a reference"):
        scaleout.put(scaleout.put(1))


# -- waiting -------------------------------------------------------------------------------------


def test_wait() -> None:
    done, failed = scaleout.put(1), scaleout.remote(lambda: 1 / 0).remote()
    never = scaleout.remote(lambda: __import__("time").sleep(3600)).remote()
    ready, rest = scaleout.wait([never, failed, done], num_returns=2)
    assert (ready, rest) == ([failed, done], [never])
    assert scaleout.wait([never, failed, done], num_returns=1) == ([failed], [never, done])
    assert scaleout.wait([never], timeout=0.01) == ([], [never])
    assert scaleout.wait([done, never], num_returns=2, timeout=0) == ([done], [never])
    scaleout.cancel(never, force=True)
    assert scaleout.wait([never]) == ([never], [])


@pytest.mark.parametrize("num_returns", [0, 3, -1, 1.0, "1"])
def test_wait_for_a_wrong_number(num_returns: Any) -> None:
    refs = [scaleout.put(1), scaleout.put(2)]
    with pytest.raises(ValueError, match="from 1 to 2"):
        scaleout.wait(refs, num_returns=num_returns)


def test_wait_for_what_is_wrong() -> None:
    ref = scaleout.put(1)
    with pytest.raises(ValueError, match="once"):
        scaleout.wait([ref, ref])
    with pytest.raises(TypeError, match="list of references"):
        scaleout.wait(ref)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not 5"):
        scaleout.wait([5])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="num_returns"):
        scaleout.wait([])


def test_as_completed() -> None:
    refs = [identity.remote(number) for number in range(30)]
    assert sorted(scaleout.get(list(scaleout.as_completed(refs)))) == list(range(30))
    assert list(scaleout.as_completed([])) == []
    assert list(scaleout.as_completed([refs[0], refs[0]])) == [refs[0]] * 2
    never = scaleout.remote(lambda: __import__("time").sleep(3600)).remote()
    order = scaleout.as_completed([never, refs[0]], timeout=0.2)
    assert next(order) == refs[0]
    with pytest.raises(errors.GetTimeoutError, match="1 reference"):
        next(order)
    scaleout.cancel(never, force=True)


def test_futures_and_await() -> None:
    future = identity.remote(5).future()
    assert isinstance(future, concurrent.futures.Future)
    assert future.result(timeout=20) == 5
    failed = scaleout.remote(lambda: 1 / 0).remote()
    assert isinstance(failed.future().exception(timeout=20), ZeroDivisionError)
    refs = [identity.remote(number) for number in range(20)]
    done, _ = concurrent.futures.wait([ref.future() for ref in refs], timeout=20)
    assert sorted(future.result() for future in done) == list(range(20))

    async def main() -> Any:
        values = await asyncio.gather(*refs)
        with pytest.raises(ZeroDivisionError):
            await failed
        never = scaleout.remote(lambda: __import__("time").sleep(3600)).remote()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(never, 0.05)
        scaleout.cancel(never, force=True)
        return values

    assert asyncio.run(main()) == list(range(20))


def test_await_in_a_task_and_in_its_threads() -> None:
    @scaleout.remote
    def outer() -> Any:
        async def main() -> Any:
            values = await asyncio.gather(*[identity.remote(number) for number in range(10)])
            try:
                await asyncio.wait_for(scaleout.remote(__import__("time").sleep).remote(0.3), 0.01)
            except asyncio.TimeoutError:
                values.append("late")
            return values

        return asyncio.run(main())

    assert scaleout.get(outer.remote()) == [*range(10), "late"]


# -- other processes and other sessions ----------------------------------------------------------


def test_references_after_the_session() -> None:
    there, pending = scaleout.put(1), scaleout.remote(lambda: __import__("time").sleep(3600)).remote()
    dependent = identity.remote(pending)
    assert scaleout.is_initialized()
    scaleout.shutdown()
    assert not scaleout.is_initialized()
    for ref in (pending, dependent):
        with pytest.raises(errors.SessionClosedError):
            scaleout.get(ref, timeout=20)
    repr(there)
    assert scaleout.get(identity.remote(2)) == 2  # a new session


def test_shutdown_wakes_whoever_waits() -> None:
    never = scaleout.remote(lambda: __import__("time").sleep(3600)).remote()
    found: list[BaseException] = []

    def wait() -> None:
        try:
            scaleout.get(never)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is looked at
            found.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(lambda: [task for task in scaleout.list_tasks() if task["state"] == "RUNNING"])
    scaleout.shutdown()
    thread.join(20)
    assert [type(error) for error in found] == [errors.SessionClosedError]


def test_a_forked_child_has_a_session_of_its_own_and_says_what_is_not(tmp_path: Path) -> None:
    ref = identity.remote(1)
    scaleout.get(ref)
    pending = scaleout.remote(lambda: __import__("time").sleep(3600)).remote()
    pid = os.fork()
    if pid == 0:
        try:
            said = []
            for use in (lambda: scaleout.get(pending, timeout=5), lambda: scaleout.wait([pending], timeout=5)):
                try:
                    use()
                    said.append("nothing")
                except errors.ForeignSessionError:
                    said.append("foreign")
            said += map(str, scaleout.get([identity.remote(3), scaleout.put(4), ref]))
            scaleout.shutdown()
            (tmp_path / "said").write_text(" ".join(said))
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert (tmp_path / "said").read_text() == "foreign foreign 3 4 1"
    scaleout.cancel(pending, force=True)
    assert scaleout.get(identity.remote(2)) == 2


def test_passed_on_and_dropped_in_any_order() -> None:
    """Every way through three hands: tasks and actors, kept or not, the driver's reference dropped early or late."""
    holders = [Holder.remote() for _ in range(2)]
    for step in range(60):
        ref = scaleout.put(step) if step % 3 else identity.remote(step)
        if step % 2:
            ref = scaleout.get(identity.remote([ref]))[0]
        holder = holders[step % 2]
        calls = [holder.keep.remote([ref])]
        if step % 4 == 0:
            calls.append(read.remote([ref]))
        if step % 5 == 0:
            del ref
        calls.append(holder.read.remote())
        assert scaleout.get(calls[-1])[-1] == step
        if step % 7 == 0:
            scaleout.get(holder.drop.remote())
            other = holders[1 - step % 2]
            scaleout.get(other.keep.remote([]))
        del calls
    scaleout.get([holder.drop.remote() for holder in holders])
    ref = None
    settles_at(0)
