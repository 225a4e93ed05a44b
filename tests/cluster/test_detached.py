"""Detached actors: made by one program, called by others, beyond the end of the first, of the head, of the steward."""

from __future__ import annotations

import json
import textwrap
from typing import Any

from clusters import Cluster, finish, go_on, kill, read_line, wait_until

from scaleout._runtime.cluster.running import process_start

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
                assert "is of its own program alone" in str(error), error
            else:
                raise AssertionError(value)

        @scaleout.remote
        class Giver:
            def give(self):
                return scaleout.put(1)

        giver = Giver.options(name="giver", lifetime="detached").remote()
        try:
            scaleout.get(giver.give.remote())
        except TypeError as error:
            assert "is of its own program alone" in str(error), error
        else:
            raise AssertionError("a reference of another program")
        scaleout.kill(giver)
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


def test_calls_that_run_out_of_time(pair: Cluster) -> None:
    """The actor is killed for it, by its policy, and the caller is told why."""
    output = pair.run(
        with_counter("""
        import time
        from scaleout.errors import ActorDiedError, TaskTimeoutError

        @scaleout.remote
        class Slow:
            def call(self, seconds):
                time.sleep(seconds)
                return "done"

            def items(self):
                time.sleep(60)
                yield 1

        for name, options in (("raise", {}), ("restart", {"on_failure": "restart"})):
            slow = Slow.options(name=name, lifetime="detached", **options).remote()
            try:
                scaleout.get(slow.call.options(timeout_s=0.3).remote(60))
            except TaskTimeoutError:
                print("out of time")
            try:
                print(scaleout.get(slow.call.remote(0)))
            except ActorDiedError:
                print("dead")
        slow = Slow.options(name="stream", lifetime="detached").remote()
        try:
            for ref in slow.items.options(timeout_s=0.3).remote():
                scaleout.get(ref)
        except TaskTimeoutError:
            print("stream out of time")
        """)
    )
    assert output == "out of time\ndead\nout of time\ndone\nstream out of time\n"


def test_the_name_of_a_dead_actor_is_free_at_once(pair: Cluster) -> None:
    pair.run(
        with_counter("""
        import signal
        from scaleout.errors import ActorDiedError

        @scaleout.remote
        class Dies:
            def die(self):
                os.kill(os.getpid(), signal.SIGKILL)

            def leave(self):
                scaleout.exit_actor()

        for _ in range(4):
            for method in ("die", "leave"):
                actor = Dies.options(name="dies", lifetime="detached").remote()
                try:
                    scaleout.get(getattr(actor, method).remote())
                except ActorDiedError:
                    pass
        """)
    )


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
    go_on(program)
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
    wait_until(lambda: process_start(pid) == 0)
    go_on(program)
    assert finish(program) == "101\ndead\n"
    assert [fact["name"] for fact in actors(pair)] == ["again"]


def test_the_end_of_a_cluster_is_that_of_its_steward(pair: Cluster) -> None:
    pair.run(MAKE)
    pid = steward_pid(pair)
    pair.must("stop")
    assert process_start(pid) == 0


def test_without_detached_actors_there_is_no_steward(pair: Cluster) -> None:
    pair.run("import scaleout\nassert scaleout.get(scaleout.put(1)) == 1\n")
    assert not [path for path in (pair.directory / "run").glob("**/steward.lock") if path.read_text()]


def test_whatever_a_method_raises(pair: Cluster) -> None:
    output = pair.run(
        with_counter("""
        import asyncio, threading

        class Base(BaseException):
            pass

        @scaleout.remote
        class Raises:
            def raises(self, error):
                raise error

            def unpicklable(self):
                raise ValueError(threading.Lock())

        @scaleout.remote
        class RaisesAsync:
            async def raises(self, error):
                raise error

        counter = Counter.options(name="counter", lifetime="detached").remote()
        for number, cls in enumerate((Raises, RaisesAsync)):
            actor = cls.options(name=f"raises{number}", lifetime="detached").remote()
            for error in (
                ValueError(1), KeyboardInterrupt(3), StopIteration(4), StopAsyncIteration(5),
                asyncio.CancelledError(6), Base(7),
            ):
                other = counter.add.remote()
                try:
                    scaleout.get(actor.raises.remote(error))
                except type(error) as found:
                    print(type(found).__name__, found.args)
                except RuntimeError as found:
                    print("as", found)
                scaleout.get(other)
        try:
            scaleout.get(scaleout.get_actor("raises0").unpicklable.remote())
        except scaleout.errors.ResultPicklingError as error:
            print(str(error).split(":")[0])
        print(scaleout.get(counter.add.remote(0)))

        @scaleout.remote
        class Broken:
            def __init__(self):
                raise Odd("in the constructor")

            def call(self):
                pass

        try:
            scaleout.get(Broken.options(name="broken", lifetime="detached").remote().call.remote())
        except scaleout.errors.ActorDiedError as error:
            print(error.class_name, error.name, "Odd: in the constructor" in str(error.__cause__))
        """).replace("import asyncio,", "import scaleout.errors, asyncio,")
    )
    told = ["as StopAsyncIteration: 5", "as CancelledError: 6", "as Base: 7"]
    plain = ["ValueError (1,)", "as KeyboardInterrupt: 3", "as StopIteration: 4", *told]
    of_coroutine = ["ValueError (1,)", "as KeyboardInterrupt: 3", "as coroutine raised StopIteration", *told]
    lines = output.splitlines()
    assert lines[:12] == plain + of_coroutine, output
    assert lines[12:] == ["the exception ValueError cannot be pickled", "12", "Broken broken True"]


def test_actors_of_a_program_do_not_hold_up_one_another(pair: Cluster) -> None:
    """Neither by a value that the calls of one wait for, nor by large arguments of calls that wait."""
    output = pair.run(
        with_counter("""
        import asyncio, threading, time

        @scaleout.remote
        class Gate:
            def __init__(self):
                self.event = asyncio.Event()

            async def wait(self, data):
                await self.event.wait()

            async def open(self):
                self.event.set()

        @scaleout.remote
        def slow(gate):
            scaleout.get(gate.wait.remote(b""))
            return 1

        gate = Gate.options(name="gate", lifetime="detached").remote()
        counter = Counter.options(name="counter", lifetime="detached").remote()
        waits = [gate.wait.remote(bytes(60_000)) for _ in range(50)]
        first = counter.add.remote(slow.remote(gate))
        second = counter.add.remote(10)
        other = Counter.options(name="other", lifetime="detached").remote()
        print(scaleout.get(other.add.remote()))
        gate.open.remote()
        scaleout.get(waits)
        print(scaleout.get([first, second]))
        """)
    )
    assert output == "1\n[1, 11]\n"


def test_actors_find_one_another(pair: Cluster) -> None:
    output = pair.run(
        with_counter("""
        @scaleout.remote
        class Finder:
            def add(self, amount):
                return scaleout.get(scaleout.get_actor("counter").add.remote(amount))

            def make(self):
                Counter.options(name="made", lifetime="detached", get_if_exists=True).remote(50)
                own = Counter.options(name="counter").remote(7)  # its steward's program has another of that name
                return scaleout.get(own.add.remote(0))

        scaleout.init(namespace="here")
        Counter.options(name="counter", lifetime="detached").remote()
        finder = Finder.options(name="finder", lifetime="detached").remote()
        print(scaleout.get([finder.add.remote(2), finder.make.remote(), finder.add.remote(3)]))
        print(scaleout.get(scaleout.get_actor("made").add.remote(1)))
        """)
    )
    assert output == "[2, 7, 5]\n51\n"
    assert {(fact["namespace"], fact["name"]) for fact in actors(pair)} == {
        ("here", "counter"),
        ("here", "finder"),
        ("here", "made"),
    }


def test_streams_that_are_left(pair: Cluster) -> None:
    output = pair.run(
        with_counter("""
        import itertools

        @scaleout.remote
        class Source:
            def numbers(self):
                yield from itertools.count()

            def answer(self):
                return "here"

            def broken(self):
                yield 1
                raise Odd("at the second")

        source = Source.options(name="source", lifetime="detached").remote()
        for _ in range(3):
            numbers = source.numbers.remote()
            assert [scaleout.get(next(numbers)) for _ in range(100)] == list(range(100))
            del numbers
            print(scaleout.get(source.answer.remote()))
        items = source.broken.remote()
        print(scaleout.get(next(items)))
        try:
            scaleout.get(next(items))
        except Odd as error:
            print(error)
        """)
    )
    assert output == "here\nhere\nhere\n1\nat the second\n"
    left = 'import scaleout\nnumbers = scaleout.get_actor("source").numbers.remote()\nnext(numbers)\n'
    pair.run(left + "import os\nos._exit(0)\n")
    assert pair.run('import scaleout\nprint(scaleout.get(scaleout.get_actor("source").answer.remote()))\n') == "here\n"


def test_an_envoy_that_is_killed_has_a_successor(pair: Cluster) -> None:
    output = pair.run(
        with_counter("""
        import signal, time
        counter = Counter.options(name="counter", lifetime="detached").remote()
        for number in range(3):
            print(scaleout.get(counter.add.remote()))
            (envoy,) = [actor for actor in scaleout.list_actors() if actor["class_name"] == "Envoy"]
            os.kill(envoy["pid"], signal.SIGKILL)
            while [actor["restarts"] for actor in scaleout.list_actors()] != [number + 1]:
                time.sleep(0.01)
        print(scaleout.get(counter.add.remote()))
        """)
    )
    assert output == "1\n2\n3\n4\n"


def test_a_cluster_of_one_node_whose_head_is_killed(cluster: Cluster) -> None:
    """Its workers end with it, and its actors: those that may be started again are, as soon as there is a place."""
    address = cluster.start_head()
    program = cluster.start(
        with_counter("""
        once = Counter.options(name="once", lifetime="detached").remote()
        again = Counter.options(name="again", lifetime="detached", on_failure="restart").remote(100)
        print(scaleout.get([once.add.remote(), again.add.remote()]), flush=True)
        input()
        """),
        stdin=True,
    )
    assert read_line(program) == "[1, 101]"
    kill(cluster.pid_of(address))
    assert cluster.start_head() == address
    program.communicate("\n")
    found = """
        import scaleout
        print(scaleout.get(scaleout.get_actor("again").add.remote()))
        try:
            scaleout.get_actor("once")
        except ValueError:
            print("gone")
    """
    assert cluster.run(found) == "101\ngone\n"


def test_a_cluster_that_is_stopped_and_started(cluster: Cluster) -> None:
    cluster.start_head()
    cluster.run(
        with_counter("""
        once = Counter.options(name="once", lifetime="detached").remote()
        again = Counter.options(name="again", lifetime="detached", on_failure="restart").remote(100)
        killed = Counter.options(name="killed", lifetime="detached", on_failure="restart").remote(100)
        scaleout.get([once.add.remote(), again.add.remote(), killed.add.remote()])
        scaleout.kill(killed)
        """)
    )
    cluster.must("stop")
    cluster.start_head()
    wait_until(lambda: [fact["name"] for fact in actors(cluster)] == ["again"])
    assert cluster.run('import scaleout\nprint(scaleout.get(scaleout.get_actor("again").add.remote()))\n') == "101\n"


def test_strangers_and_nonsense_at_the_door(pair: Cluster) -> None:
    pair.run(MAKE)
    ports = json.loads(next((pair.directory / "run").glob("**/head-ports.json")).read_text())
    host = pair.address.rsplit(":", 1)[0]
    pair.run(
        f"""
        import asyncio, marshal, os, socket, ssl, struct
        from scaleout._runtime.cluster import door

        with socket.create_connection(({host!r}, {ports[2]})) as plain:
            plain.sendall(b"GET / HTTP/1.1\\r\\n\\r\\n")
            assert b"6" not in plain.recv(1000)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with socket.create_connection(({host!r}, {ports[2]})) as plain, context.wrap_socket(plain) as secure:
            try:
                secure.sendall(struct.pack("!I", 5) + bytes(5))
                assert not secure.recv(1000)
            except OSError:
                pass

        async def member(data):
            reader, writer = await door.dial("{host}:{ports[2]}")
            writer.write(data)
            if len(data) < 4:
                writer.write_eof() if writer.can_write_eof() else writer.close()
            assert await reader.read() == b""
            await door.close(writer)

        def message(*facts, sizes=()):
            data = marshal.dumps((facts, list(sizes)))
            return struct.pack("!I", len(data)) + data

        async def main():
            for data in (
                b"ab", struct.pack("!I", 1 << 31), struct.pack("!I", 3) + b"abc", message(1), message(1, "no"),
                message(1, "__init__"), message(1, "run"), message(1, "list", sizes="x"),
            ):
                await asyncio.wait_for(member(data), 20)
            reader, writer = await door.dial("{host}:{ports[2]}")
            for facts in ((1, "call", 5), (2, "next", 7), (3, "find", []), (4, "kill", None, None), (0, "cancel", 9)):
                writer.write(message(*facts))
            writer.write(message(5, "list"))
            answers = dict([(await door.read(reader))[0][:2] for _ in range(5)])
            await door.close(writer)
            assert answers == {{1: False, 2: False, 3: False, 4: True, 5: True}}, answers

        asyncio.run(main())
        """
    )
    assert pair.run('import scaleout\nprint(scaleout.get(scaleout.get_actor("counter").add.remote()))\n') == "7\n"
