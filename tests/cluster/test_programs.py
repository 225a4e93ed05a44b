"""Programs of every kind, unchanged but for SCALEOUT_ADDRESS, on two nodes."""

from __future__ import annotations

import json

from clusters import Cluster, descendants

POOL = """
    import json, os, time
    from scaleout.multiprocessing import Pool, cpu_count

    def where(number):
        time.sleep(0.01)  # or the first workers that are up have done it all
        return number * number, os.getppid()

    class Point:
        def __init__(self, x):
            self.x = x

    def moved(point):
        return Point(point.x + offset)

    def set_offset(value):
        global offset
        offset = value

    if __name__ == "__main__":
        with Pool(4, set_offset, (10,)) as pool:
            found = pool.map(where, range(300), chunksize=1)
            points = pool.map(moved, [Point(x) for x in range(5)])
            failure = None
            try:
                pool.apply(divmod, (1, 0))
            except ZeroDivisionError as error:
                failure = str(error)
            lambdas = pool.map(lambda x: x + 1, range(3))
            pids = sorted(worker.pid for worker in pool._pool)
        print(json.dumps({
            "squares": [value for value, _ in found] == [n * n for n in range(300)],
            "zygotes": len({zygote for _, zygote in found}),
            "points": [type(point) is Point and point.x for point in points],
            "failure": failure,
            "lambdas": lambdas,
            "pids": pids,
            "cpus": cpu_count(),
        }))
"""


def test_a_pool_is_spread_over_the_nodes(pair: Cluster) -> None:
    said = json.loads(pair.run(POOL))
    pids = said.pop("pids")
    assert said == {
        "squares": True,
        "zygotes": 2,
        "points": [10, 11, 12, 13, 14],
        "failure": "integer division or modulo by zero",
        "lambdas": [1, 2, 3],
        "cpus": 4,
    }
    assert len(set(pids)) == 4
    for node in pair.nodes():  # the program has ended
        assert descendants(int(node["pid"])) == []


def test_large_values_both_ways(pair: Cluster) -> None:
    """Writable, private, and the same bytes; one argument in many calls is one object."""
    said = pair.run(
        """
        import numpy
        from scaleout.multiprocessing import Pool

        def changed(array):
            array[0] = 7
            return array

        def total(array, number):
            array += number
            return array.sum()

        if __name__ == "__main__":
            array = numpy.arange(1_000_000.0)
            with Pool(4) as pool:
                for _ in range(5):
                    for back in pool.imap(changed, [array] * 4):
                        assert back[0] == 7 and (back[1:] == array[1:]).all()
                        back[1] = 3
                assert array[0] == 0 and array[1] == 1
                totals = pool.starmap(total, [(array, number) for number in range(8)])
                assert totals == [array.sum() + 1_000_000 * number for number in range(8)]
                texts = [str(n) * 20 for n in range(50_000)]
                assert pool.apply(list, (texts,)) == texts
                try:
                    pool.apply(fail, (array,))
                except ValueError as error:
                    assert (error.args[0] == array).all()
            print("well")

        def fail(array):
            raise ValueError(array)
        """.replace("def fail(array):\n            raise ValueError(array)\n", "").replace(
            "def total(", "def fail(array):\n            raise ValueError(array)\n\n        def total("
        )
    )
    assert said == "well\n"


def test_executor_and_joblib(pair: Cluster) -> None:
    said = pair.run(
        """
        import time
        from concurrent.futures import as_completed
        import joblib
        import scaleout.joblib_backend
        from scaleout.futures import ScaleoutExecutor

        if __name__ == "__main__":
            with ScaleoutExecutor(4) as executor:
                futures = [executor.submit(pow, n, 2) for n in range(100)]
                assert sorted(future.result() for future in as_completed(futures)) == [n * n for n in range(100)]
                assert list(executor.map(abs, range(-50, 0), chunksize=7)) == list(range(50, 0, -1))
                sleeper = executor.submit(time.sleep, 0.5)
                while not sleeper.running():
                    time.sleep(0.01)
                assert not sleeper.cancel()
                waiting = [executor.submit(time.sleep, 0.2) for _ in range(40)]
                assert sum(future.cancel() for future in waiting) >= 30
            with joblib.parallel_backend("scaleout", n_jobs=-1):
                assert joblib.Parallel()(joblib.delayed(pow)(n, 3) for n in range(500)) == [n**3 for n in range(500)]
            print("well")
        """
    )
    assert said == "well\n"


def test_tasks_actors_and_objects(pair: Cluster) -> None:
    said = pair.run(
        """
        import numpy
        import scaleout

        @scaleout.remote
        def factorial(n):
            return 1 if n < 2 else n * scaleout.get(factorial.remote(n - 1))

        @scaleout.remote
        def ones(n):
            return numpy.ones(n)

        @scaleout.remote
        def total(*arrays):
            return float(sum(array.sum() for array in arrays))

        @scaleout.remote
        def makes_more():
            return scaleout.get(total.remote(scaleout.put(numpy.ones(200_000)), ones.remote(100_000)))

        @scaleout.remote
        class Counter:
            def __init__(self):
                self.count = 0
                self.seen = None

            def add(self, n):
                self.count += n
                return self.count

            def keep(self, array):
                self.seen = array
                return self.seen

        @scaleout.remote
        def use(counter):
            return [scaleout.get(counter.add.remote(1)) for _ in range(10)]

        @scaleout.remote(num_returns="streaming")
        def stream(n):
            for number in range(n):
                yield numpy.full(50_000, number)

        if __name__ == "__main__":
            assert scaleout.cluster_resources()["CPU"] == 4
            assert scaleout.get(factorial.remote(12)) == 479001600
            assert scaleout.get(total.remote(ones.remote(300_000), ones.remote(200_000))) == 500_000
            stored = scaleout.put(numpy.arange(300_000.0))
            assert scaleout.get([total.remote(stored, stored) for _ in range(8)]) == [2 * sum(range(300_000))] * 8
            assert scaleout.get(makes_more.remote()) == 300_000
            counter = Counter.remote()
            assert scaleout.get([counter.add.remote(n) for n in range(5)]) == [0, 1, 3, 6, 10]
            scaleout.get([use.remote(counter) for _ in range(3)])
            assert scaleout.get(counter.add.remote(0)) == 40
            assert (scaleout.get(counter.keep.remote(stored)) == numpy.arange(300_000.0)).all()
            assert [int(scaleout.get(ref)[0]) for ref in stream.remote(6)] == list(range(6))
            del stored, counter
            scaleout.shutdown()
            print("well")
        """
    )
    assert said == "well\n"


def test_what_workers_of_other_machines_cannot_inherit(cluster: Cluster) -> None:
    """A lock is found by its name, and so would work by chance where a node is on this machine."""
    cluster.start_head()
    said = cluster.run(
        """
        import sys
        from scaleout.errors import ClusterError
        from scaleout.multiprocessing import Array, Event, Lock, Pipe, Pool, Queue, Value

        names = []
        for made in (Lock(), Event(), Queue(), Pipe()[0], Value("i"), Array("i", 3)):
            try:
                Pool(1, print, (made,))
            except ClusterError as error:
                assert "of this machine alone" in str(error)
                names.append(type(made).__name__)
        with Pool(1, print, (1,)) as pool:
            names.append(str(pool.apply(abs, (-1,))))
        sys.stdout.write(" ".join(names) + "\\n")  # at once: what the worker prints comes when it likes
        """
    )
    lines = [line for line in said.splitlines() if not line.startswith("(")]
    assert lines == ["Lock Event Queue Connection Synchronized SynchronizedArray 1"]


def test_a_pool_inside_a_task(pair: Cluster) -> None:
    said = pair.run(
        """
        from scaleout.multiprocessing import Pool

        def inner(n):
            with Pool(2) as pool:
                return sum(pool.map(abs, range(-n, 0)))

        if __name__ == "__main__":
            with Pool(3) as pool:
                print(pool.map(inner, [1, 2, 3, 4]))
        """
    )
    assert said == "[1, 3, 6, 10]\n"


def test_pools_one_after_the_other(pair: Cluster) -> None:
    said = pair.run(
        """
        from scaleout.multiprocessing import Pool

        if __name__ == "__main__":
            for number in range(10):
                with Pool(2) as pool:
                    assert pool.map(abs, [-number]) == [number]
            print("well")
        """
    )
    assert said == "well\n"
