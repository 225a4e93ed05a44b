"""Tasks, actors and objects, beside Ray: the rows of `ray microbenchmark`, and what is known to be hard.

    python -m benchmarks.microbenchmark            (options as of `python -m benchmarks`)

The two have one interface, so each experiment is written once, for `api`: the module of the contender.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.model import Contender, Experiment, Row, Sample, Setting
from benchmarks.peers import WORKERS

RAY = Contender("ray", "ray")
SCALEOUT = Contender("scaleout", "scaleout")

SYNC, ASYNC = 1 / 15, 1 / 30  # of Ray's time


def started(setting: Setting) -> Any:
    """The contender's module, with two CPUs."""
    if setting.peer == "ray":
        import ray

        ray.init(address="local", num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
        return ray
    import scaleout

    scaleout.init(num_cpus=WORKERS)
    return scaleout


def negate(x: int) -> int:
    return -x


def count_arguments(*values: Any) -> int:
    return len(values)


class Adder:
    """An actor whose calls cost nothing."""

    def __init__(self) -> None:
        self.total = 0

    def add(self, amount: int) -> int:
        self.total += amount
        return self.total


class AsyncAdder:
    def __init__(self) -> None:
        self.total = 0

    async def add(self, amount: int) -> int:
        self.total += amount
        return self.total


class Client:
    """An actor that is a client itself."""

    def __init__(self, api: str) -> None:
        import importlib

        self.api = importlib.import_module(api)
        self.negate = self.api.remote(negate)

    def run_tasks(self, count: int) -> int:
        return len(self.api.get([self.negate.remote(i) for i in range(count)]))

    def call(self, actors: list[Any], count: int) -> int:
        return len(self.api.get([actors[i % len(actors)].add.remote(1) for i in range(count)]))

    def call_in_turn(self, actor: Any, count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            self.api.get(actor.add.remote(1))
        return (time.perf_counter() - start) / count


def timed(count: int, run: Callable[[], object]) -> Iterator[Sample]:
    """Samples of the time per unit, without end; the first run warms up."""
    run()
    while True:
        start = time.perf_counter()
        run()
        yield {"s": (time.perf_counter() - start) / count}


def task_sync(setting: Setting) -> Iterator[Sample]:
    api = started(setting)
    call = api.remote(negate)
    count = setting.size(1000, 100)

    def run() -> None:
        for i in range(count):
            assert api.get(call.remote(i)) == -i

    yield from timed(count, run)


def task_async(setting: Setting) -> Iterator[Sample]:
    api = started(setting)
    call = api.remote(negate)
    count = setting.size(5000, 500)
    yield from timed(count, lambda: api.get([call.remote(i) for i in range(count)]))


def clients_tasks(setting: Setting) -> Iterator[Sample]:
    api = started(setting)
    clients = [api.remote(Client).options(num_cpus=0).remote(api.__name__) for _ in range(2)]
    count = setting.size(2000, 200)
    yield from timed(2 * count, lambda: api.get([client.run_tasks.remote(count) for client in clients]))


def _adder(api: Any, cls: type = Adder, **options: Any) -> Any:
    actor = api.remote(cls).options(num_cpus=0, **options).remote()
    api.get(actor.add.remote(0))
    return actor


def actor_sync(setting: Setting) -> Iterator[Sample]:
    api = started(setting)
    actor = _adder(api)
    count = setting.size(1000, 100)

    def run() -> None:
        for _ in range(count):
            api.get(actor.add.remote(1))

    yield from timed(count, run)


def actor_async(setting: Setting) -> Iterator[Sample]:
    api = started(setting)
    actor = _adder(api, **setting.options)
    count = setting.size(5000, 500)
    yield from timed(count, lambda: api.get([actor.add.remote(1) for _ in range(count)]))


def async_actor_async(setting: Setting) -> Iterator[Sample]:
    api = started(setting)
    actor = _adder(api, AsyncAdder)
    count = setting.size(5000, 500)
    yield from timed(count, lambda: api.get([actor.add.remote(1) for _ in range(count)]))


def async_actor_sync(setting: Setting) -> Iterator[Sample]:
    api = started(setting)
    actor = _adder(api, AsyncAdder)
    count = setting.size(1000, 100)

    def run() -> None:
        for _ in range(count):
            api.get(actor.add.remote(1))

    yield from timed(count, run)


def one_to_n(setting: Setting) -> Iterator[Sample]:
    api = started(setting)
    actors = [_adder(api) for _ in range(4)]
    count = setting.size(5000, 500)
    yield from timed(count, lambda: api.get([actors[i % 4].add.remote(1) for i in range(count)]))


def n_to_n(setting: Setting) -> Iterator[Sample]:
    api = started(setting)
    actors = [_adder(api) for _ in range(2)]
    clients = [api.remote(Client).options(num_cpus=0).remote(api.__name__) for _ in range(2)]
    count = setting.size(2000, 200)
    yield from timed(2 * count, lambda: api.get([client.call.remote(actors, count) for client in clients]))


def from_worker(setting: Setting) -> Iterator[Sample]:
    api = started(setting)
    actor = _adder(api)
    client = api.remote(Client).options(num_cpus=0).remote(api.__name__)
    count = setting.size(1000, 100)
    api.get(client.call_in_turn.remote(actor, count))
    while True:
        yield {"s": api.get(client.call_in_turn.remote(actor, count))}


def put_small(setting: Setting) -> Iterator[Sample]:
    api = started(setting)
    count = setting.size(5000, 500)
    yield from timed(count, lambda: [api.put(i) for i in range(count)])


def get_small(setting: Setting) -> Iterator[Sample]:
    api = started(setting)
    refs = [api.put(i) for i in range(setting.size(5000, 500))]

    def run() -> None:
        for ref in refs:
            api.get(ref)

    yield from timed(len(refs), run)


def put_large(setting: Setting) -> Iterator[Sample]:
    """Freeing as it goes; `copy`: the same in plain memory, which is warm."""
    import numpy

    api = started(setting)
    array: Any = numpy.ones(setting.size(12_500_000, 1_250_000))
    target: Any = numpy.ones_like(array)
    repeat = 5
    while True:
        start = time.perf_counter()
        for _ in range(repeat):
            numpy.copyto(target, array)
        copy_s = time.perf_counter() - start
        start = time.perf_counter()
        for _ in range(repeat):
            ref = api.put(array)
            del ref
        yield {"s": time.perf_counter() - start, "x": (time.perf_counter() - start) / copy_s}


def wait_many(setting: Setting) -> Iterator[Sample]:
    api = started(setting)
    call = api.remote(negate)
    count = 1000

    def run() -> None:
        api.wait([call.remote(i) for i in range(count)], num_returns=count)

    yield from timed(1, run)


def many_arguments(setting: Setting) -> Iterator[Sample]:
    api = started(setting)
    call = api.remote(count_arguments)
    refs = [api.put(i) for i in range(setting.size(10_000, 1000))]

    def run() -> None:
        assert api.get(call.remote(*refs)) == len(refs)

    yield from timed(1, run)


def many_returns(setting: Setting) -> Iterator[Sample]:
    api = started(setting)
    count = setting.size(3000, 300)
    call = api.remote(_range).options(num_returns=count)
    yield from timed(1, lambda: api.get(call.remote(count)))


def _range(count: int) -> list[int]:
    return list(range(count))


def many_queued(setting: Setting) -> Iterator[Sample]:
    api = started(setting)
    call = api.remote(negate)
    count = setting.size(100_000, 10_000)
    yield from timed(count, lambda: api.get([call.remote(i) for i in range(count)]))


def million(setting: Setting) -> Iterator[Sample]:
    """While one task keeps both workers busy: what a queued task takes of the driver's memory, and of its time."""
    import psutil

    api = started(setting)
    call = api.remote(negate)
    hold = api.remote(time.sleep)
    count, few = setting.size((1_000_000, 10_000), (20_000, 2000))
    api.get(call.remote(1))
    held = [hold.remote(1e6) for _ in range(WORKERS)]
    time.sleep(0.2)  # until they run
    start = time.perf_counter()
    refs = [call.remote(i) for i in range(few)]
    few_s = (time.perf_counter() - start) / few
    process = psutil.Process()
    before = process.memory_info().rss
    start = time.perf_counter()
    refs += [call.remote(i) for i in range(count)]
    many_s = (time.perf_counter() - start) / count
    kilobytes = (process.memory_info().rss - before) / count / 1000
    del held
    yield {"x": many_s / few_s, "kb": kilobytes}


def history(setting: Setting) -> Iterator[Sample]:
    """What is written down of each task, for `list_tasks` and `timeline`: its share of what a task takes."""
    from scaleout._runtime import session
    from scaleout._runtime.node.history import now_ns

    api = started(setting)
    call = api.remote(negate)
    count = setting.size(5000, 500)
    clerk = session.default_client()._owner.clerk
    noted: list[Any] = []
    note = clerk.note
    clerk.note = lambda *facts: noted.append(facts)
    api.get([call.remote(i) for i in range(10)])
    clerk.note = note
    while True:
        start = time.perf_counter()
        api.get([call.remote(i) for i in range(count)])
        tasks_s = time.perf_counter() - start
        start = time.perf_counter()
        for _ in range(count):
            now_ns()  # when it was submitted
            note(*noted[-1])
        yield {"x": (time.perf_counter() - start) / tasks_s}


def recursion(setting: Setting) -> Iterator[Sample]:
    api = started(setting)
    depth = setting.size(500, 50)
    call = api.remote(factorial)
    api.get(call.remote(call, 1))
    while True:
        start = time.perf_counter()
        assert api.get(call.remote(call, depth)) > depth
        yield {"s": time.perf_counter() - start}


def factorial(call: Any, n: int) -> int:
    if n <= 1:
        return 1
    import scaleout

    result: int = n * scaleout.get(call.remote(call, n - 1))
    return result


def _beside_ray(
    name: str, function: Callable[[Setting], Iterator[Sample]], measures: str, at_most: float | None, **options: Any
) -> Experiment:
    row = Row(name, measures, "s", at_most=at_most, reference=("ray",))
    contenders = (Contender("ray", "ray", options), Contender("scaleout", "scaleout", options))
    return Experiment(name, function, (row,), contenders=contenders)


EXPERIMENTS = (
    _beside_ray("task-sync", task_sync, "task, and its result; round trip", SYNC),
    _beside_ray("task-async", task_async, "5000 tasks, then their results; per task", ASYNC),
    _beside_ray("clients-tasks", clients_tasks, "2 actors submit 2000 tasks each; per task", None),
    _beside_ray("actor-sync", actor_sync, "1:1 actor call; round trip", SYNC),
    _beside_ray("actor-async", actor_async, "1:1 actor calls, 5000, then results; per call", ASYNC),
    _beside_ray("actor-concurrent", actor_async, "the same, max_concurrency=16; per call", None, max_concurrency=16),
    _beside_ray("actors-1-n", one_to_n, "1:4 actor calls, 5000, then results; per call", ASYNC),
    _beside_ray("actors-n-n", n_to_n, "2:2 actor calls, 2000 each; per call", None),
    _beside_ray("async-actor-sync", async_actor_sync, "async actor call; round trip", None),
    _beside_ray("async-actor-async", async_actor_async, "async actor calls, 5000, then results; per call", None),
    _beside_ray("put-small", put_small, "put of an int", ASYNC),
    _beside_ray("get-small", get_small, "get of an int that was put", ASYNC),
    Experiment(
        "put-large",
        put_large,
        (Row("put-large", "put of 100 MB, freed at once; to a warm copy in memory", "x", 1.25, (), metric="x"),),
        contenders=(SCALEOUT,),
    ),
    _beside_ray("wait-1000", wait_many, "1000 tasks, wait for all", None),
    Experiment(
        "arguments-10000",
        many_arguments,
        (Row("arguments-10000", "10 000 references as arguments of one task", "s", 0.5, ()),),
        contenders=(SCALEOUT,),
    ),
    _beside_ray("returns-3000", many_returns, "a task with 3000 results", None),
    _beside_ray("queued-100000", many_queued, "100 000 tasks, then their results; per task", None),
    Experiment(
        "million",
        million,
        (
            Row("million-memory", "1 000 000 tasks queued: memory per task, in kB", "count", 1.0, (), metric="kb"),
            Row("million-time", "the same: time to submit one, to that among 10 000", "x", 1.5, (), metric="x"),
        ),
        contenders=(SCALEOUT,),
        is_isolated=True,
    ),
    Experiment(
        "recursion",
        recursion,
        (Row("recursion", "a task that waits for a task that waits ..., 500 deep", "s", 3.0, ()),),
        contenders=(SCALEOUT,),
    ),
    Experiment(
        "history",
        history,
        (Row("history", "what the history adds to a task, as a share of its time", "x", 0.05, (), metric="x"),),
        contenders=(SCALEOUT,),
    ),
    Experiment(
        "actor-from-worker",
        from_worker,
        (Row("actor-from-worker", "actor call by a handle in a worker; round trip", "s", None, ("ray",)),),
        contenders=(RAY, SCALEOUT),
    ),
)


if __name__ == "__main__":
    from benchmarks.__main__ import main

    if not any(word.startswith("--rows") for word in sys.argv[1:]):
        sys.argv += ["--rows", ",".join(row.name for experiment in EXPERIMENTS for row in experiment.rows)]
    sys.exit(main())
