"""Detached actors: made by one program, called by others, beyond the end of the first, of the head, of the steward."""

from __future__ import annotations

import json
import textwrap
from typing import Any

from clusters import Cluster, finish, kill, read_line, wait_until

COUNTER = """
    import os, scaleout

    class Odd(Exception):
        pass

    class Mark:
        def __init__(self, text):
            self.text = text

    @scaleout.remote
    class Counter:
        def __init__(self, start=0):
            self.count = start
            self.seen = []

        def add(self, amount=1):
            self.count += amount
            return self.count

        def note(self, number):
            self.seen.append(number)

        def notes(self):
            return self.seen

        def items(self, count):
            yield from range(count)

        @scaleout.method(num_returns=2)
        def both(self):
            return "left", "right"

        def fail(self):
            raise Odd("no")

        def echo(self, value):
            return value

        def pid(self):
            return os.getpid()

        def leave(self):
            scaleout.exit_actor()
"""


def with_counter(script: str) -> str:
    return textwrap.dedent(COUNTER) + textwrap.dedent(script)


MAKE = with_counter("""
    counter = Counter.options(name="counter", lifetime="detached").remote(5)
    print(scaleout.get(counter.add.remote()), counter)
""")


def actors(cluster: Cluster) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(cluster.must("actors", "--json"))
    return found


def steward_pid(cluster: Cluster) -> int:
    (lock,) = (cluster.directory / "run").glob("**/steward.lock")
    return int(lock.read_text())


def test_an_actor_outlives_its_program_and_is_found_by_others(pair: Cluster) -> None:
    assert pair.run(MAKE).startswith("6 <detached actor Counter 'counter', ")
    # Programs that do not know the class.
    found = """
        import scaleout
        counter = scaleout.get_actor("counter")
        print(scaleout.get([counter.add.remote(), counter.add.remote(amount=10)]))
    """
    assert pair.run(found) == "[7, 17]\n"
    assert pair.run(found) == "[18, 28]\n"
    (fact,) = actors(pair)
    assert (fact["name"], fact["class_name"], fact["state"], fact["restarts"]) == ("counter", "Counter", "ALIVE", 0)
    assert "'counter'  Counter  ALIVE  pid " in pair.must("actors")


def test_calls_are_as_those_of_any_actor(pair: Cluster) -> None:
    pair.run(MAKE)
    output = pair.run(
        with_counter("""
        import numpy

        counter = scaleout.get_actor("counter")

        # Values, references, names of arguments, large ones, the program's own classes.
        assert scaleout.get(counter.echo.remote(scaleout.put("put"))) == "put"
        assert scaleout.get(counter.echo.remote(value=[1])) == [1]
        array = scaleout.get(counter.echo.remote(numpy.arange(1_000_000)))
        array += 1
        assert array.sum() == 500_000_500_000
        mark = scaleout.get(counter.echo.remote(Mark("m")))
        assert type(mark) is Mark and mark.text == "m", type(mark)

        # Several results, streams, order.
        assert scaleout.get(counter.both.remote()) == ["left", "right"]
        assert [scaleout.get(ref) for ref in counter.items.remote(5)] == [0, 1, 2, 3, 4]
        for number in range(500):
            counter.note.remote(number)
        assert scaleout.get(counter.notes.remote()) == list(range(500))

        # From tasks; a handle as an argument of another detached actor.
        @scaleout.remote
        def add(handle, amount):
            return scaleout.get(handle.add.remote(amount))

        @scaleout.remote
        def find():
            return scaleout.get(scaleout.get_actor("counter").add.remote(0))

        assert scaleout.get(add.remote(counter, 4)) == 10
        assert scaleout.get(find.remote()) == 10

        @scaleout.remote
        class Proxy:
            def __init__(self, handle):
                self.handle = handle

            def add(self, amount):
                return scaleout.get(self.handle.add.remote(amount))

        proxy = Proxy.options(name="proxy", lifetime="detached").remote(counter)
        assert scaleout.get(proxy.add.remote(5)) == 15

        # Failures. (The class of the first program's is another Odd.)
        mine = Counter.options(name="mine", lifetime="detached").remote()
        try:
            scaleout.get(mine.fail.remote())
        except Odd as error:
            assert str(error) == "no" and "in fail" in str(error.__cause__), error.__cause__
        for value in [scaleout.put(1)], Counter.remote():
            try:
                scaleout.get(counter.echo.remote([value]))
            except TypeError as error:
                assert "is of this program alone" in str(error), error
            else:
                raise AssertionError(value)
        try:
            Counter.options(name="counter", lifetime="detached").remote()
        except ValueError as error:
            assert "already" in str(error)
        same = Counter.options(name="counter", lifetime="detached", get_if_exists=True).remote()
        assert same == counter and scaleout.get(same.add.remote(0)) == 15
        try:
            scaleout.get_actor("nobody")
        except ValueError as error:
            assert "no actor named 'nobody'" in str(error)
        try:
            scaleout.get_actor("counter", namespace="elsewhere")
        except ValueError:
            pass
        print("all")
        """)
    )
    assert output == "all\n"


def test_the_end_of_an_actor(pair: Cluster) -> None:
    output = pair.run(
        with_counter("""
        from scaleout.errors import ActorDiedError

        def dies(call):
            try:
                scaleout.get(call())
            except ActorDiedError as error:
                return str(error)

        def gone(name):
            try:
                scaleout.get_actor(name)
            except ValueError:
                return True

        killed = Counter.options(name="a", lifetime="detached").remote()
        scaleout.kill(killed)
        assert gone("a") and "named 'a' is dead: it was killed" in dies(killed.add.remote), dies(killed.add.remote)
        Counter.options(name="a", lifetime="detached").remote()

        left = Counter.options(name="b", lifetime="detached").remote()
        assert "exit_actor" in dies(left.leave.remote)
        assert gone("b")

        @scaleout.remote
        class Broken:
            def __init__(self):
                raise Odd("never")

            def call(self):
                pass

        broken = Broken.options(name="c", lifetime="detached").remote()
        story = dies(broken.call.remote)
        assert "class Broken" in story or "actor Broken" in story, story
        print("all")
        """)
    )
    assert output == "all\n"
    wait_until(lambda: [fact["name"] for fact in actors(pair)] == ["a"])


def test_async_actors_and_those_that_are_restarted(pair: Cluster) -> None:
    output = pair.run(
        """
        import asyncio, os, signal, scaleout

        @scaleout.remote
        class Gate:
            def __init__(self):
                self.event = asyncio.Event()

            async def wait(self):
                await self.event.wait()
                return "open"

            async def open(self):
                self.event.set()

            async def numbers(self):
                for number in range(3):
                    yield number

        gate = Gate.options(name="gate", lifetime="detached").remote()
        waits = [gate.wait.remote() for _ in range(10)]
        lost = gate.wait.remote()
        scaleout.cancel(lost)
        try:
            scaleout.get(lost)
        except scaleout.errors.TaskCancelledError:
            print("cancelled")
        gate.open.remote()
        print(set(scaleout.get(waits)), [scaleout.get(ref) for ref in gate.numbers.remote()])

        @scaleout.remote(on_failure="replay", max_task_retries=-1)
        class Sum:
            def __init__(self):
                self.value = 0

            def add(self, number):
                self.value += number
                return self.value

            def pid(self):
                return os.getpid()

        total = Sum.options(name="sum", lifetime="detached").remote()
        print(scaleout.get([total.add.remote(number) for number in range(5)]))
        os.kill(scaleout.get(total.pid.remote()), signal.SIGKILL)
        print(scaleout.get(total.add.remote(1)))
        """.replace("import asyncio,", "import scaleout.errors, asyncio,")
    )
    assert output == "cancelled\n{'open'} [0, 1, 2]\n[0, 1, 3, 6, 10]\n11\n"


def test_modules_of_the_program_go_along(pair: Cluster) -> None:
    there = pair.directory / "elsewhere"
    there.mkdir()
    (there / "helper_of_detached.py").write_text(
        "class Tool:\n"
        "    def __init__(self, size):\n        self.size = size\n"
        "    def twice(self):\n        return Tool(self.size * 2)\n"
    )
    made = pair.run(
        f"""
        import sys
        sys.path.insert(0, {str(there)!r})
        import helper_of_detached, scaleout
        tool = scaleout.remote(helper_of_detached.Tool).options(name="tool", lifetime="detached").remote(4)
        twice = scaleout.get(tool.twice.remote())
        print(twice.size, type(twice) is helper_of_detached.Tool)
        """
    )
    assert made == "8 True\n"
    other = 'import scaleout\nprint(scaleout.get(scaleout.get_actor("tool").twice.remote()).size)\n'
    assert pair.run(other) == "8\n"


def test_a_head_that_is_killed_in_a_map_finds_its_actors_again(cluster: Cluster) -> None:
    address = cluster.start_head(cpus=0)
    cluster.start_node()
    cluster.run(MAKE)
    pid = steward_pid(cluster)
    program = cluster.start(
        with_counter("""
        from scaleout.multiprocessing import Pool
        import time

        def slow(number):
            time.sleep(0.02)
            return number

        counter = scaleout.get_actor("counter")
        print(scaleout.get(counter.add.remote()), flush=True)
        with Pool(2) as pool:
            result = pool.map_async(slow, range(200), chunksize=1)
            print("mapping", flush=True)
            assert result.get() == list(range(200))
        input()
        print(scaleout.get(counter.add.remote()))
        """),
        stdin=True,
    )
    assert read_line(program) == "7"
    assert read_line(program) == "mapping"
    kill(cluster.pid_of(address))
    assert cluster.start_head(cpus=0) == address
    assert program.stdin is not None
    program.stdin.write("\n")
    program.stdin.flush()
    assert finish(program) == "8\n"
    assert steward_pid(cluster) == pid
    found = 'import scaleout\nprint(scaleout.get(scaleout.get_actor("counter").add.remote()))\n'
    assert cluster.run(found) == "9\n"


def test_a_steward_that_is_killed_starts_again_what_it_may(pair: Cluster) -> None:
    pair.run(
        with_counter("""
        Counter.options(name="once", lifetime="detached").remote()
        again = Counter.options(name="again", lifetime="detached", on_failure="restart").remote(100)
        assert scaleout.get(again.add.remote()) == 101
        """)
    )
    program = pair.start(
        with_counter("""
        import time
        from scaleout.errors import ActorDiedError, ClusterError
        again, once = scaleout.get_actor("again"), scaleout.get_actor("once")
        print(scaleout.get(again.add.remote()), flush=True)
        input()
        deadline = time.monotonic() + 30
        while True:
            try:
                print(scaleout.get(again.add.remote()))
                break
            except ClusterError:  # it may just be about to end
                assert time.monotonic() < deadline
        try:
            scaleout.get(once.add.remote())
        except ActorDiedError as error:
            print("dead")
        """),
        stdin=True,
    )
    assert read_line(program) == "102"
    pid = steward_pid(pair)
    kill(pid)
    wait_until(lambda: _is_gone(pid))
    assert program.stdin is not None
    program.stdin.write("\n")
    program.stdin.flush()
    assert finish(program) == "101\ndead\n"
    assert [fact["name"] for fact in actors(pair)] == ["again"]


def test_the_end_of_a_cluster_is_that_of_its_steward(pair: Cluster) -> None:
    pair.run(MAKE)
    pid = steward_pid(pair)
    pair.must("stop")
    assert _is_gone(pid)


def test_without_detached_actors_there_is_no_steward(pair: Cluster) -> None:
    pair.run("import scaleout\nassert scaleout.get(scaleout.put(1)) == 1\n")
    assert not [path for path in (pair.directory / "run").glob("**/steward.lock") if path.read_text()]


def _is_gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True
