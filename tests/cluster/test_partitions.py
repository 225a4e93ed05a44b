"""Machines that cannot reach one another for a while: packets vanish, and nobody is told. In network namespaces."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from clusters import Cluster, counted, finish, go_on, read_line, wait_until
from test_lineage import TASKS

numbers = itertools.count()


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


class Network:
    """Machines 1, 2, ... on a switch, each a network namespace: 10.77.0.1, ... Programs are on machine 1."""

    def __init__(self, machines: int) -> None:
        self._prefix = f"so{os.getpid()}-{next(numbers)}"
        self._spaces: list[str] = []
        self._switch = self._add("switch")
        ip("-n", self._switch, "link", "add", "switch", "type", "bridge")
        ip("-n", self._switch, "link", "set", "switch", "up")
        for machine in range(1, machines + 1):
            space = self._add(str(machine))
            ip(
                "-n",
                self._switch,
                "link",
                "add",
                f"to{machine}",
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                space,
            )
            ip("-n", self._switch, "link", "set", f"to{machine}", "master", "switch", "up")
            ip("-n", space, "addr", "add", f"{self.address_of(machine)}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")
            ip("-n", space, "link", "set", "lo", "up")

    def _add(self, name: str) -> str:
        space = f"{self._prefix}-{name}"
        ip("netns", "add", space)
        self._spaces.append(space)
        return space

    @staticmethod
    def address_of(machine: int) -> str:
        return f"10.77.0.{machine}"

    def command_on(self, machine: int) -> list[str]:
        return ["ip", "netns", "exec", self._spaces[machine]]

    def cut(self, machine: int) -> None:
        """Nothing comes to it or from it any more."""
        ip("-n", self._switch, "link", "set", f"to{machine}", "down")

    def heal(self, machine: int) -> None:
        ip("-n", self._switch, "link", "set", f"to{machine}", "up")

    def deafen(self, machine: int, towards: int) -> None:
        """What one sends to the other vanishes; not what that sends back."""
        ip("-n", self._spaces[machine], "route", "add", "blackhole", f"{self.address_of(towards)}/32")

    def undeafen(self, machine: int, towards: int) -> None:
        ip("-n", self._spaces[machine], "route", "del", "blackhole", f"{self.address_of(towards)}/32")

    def part(self, how: str) -> None:
        """Machines 1 and 2, of which the second one is the node."""
        {"both ways": self.cut, "towards the node": self.deafen, "from the node": self.deafen}[how](*self._parted(how))

    def rejoin(self, how: str) -> None:
        {"both ways": self.heal, "towards the node": self.undeafen, "from the node": self.undeafen}[how](
            *self._parted(how)
        )

    @staticmethod
    def _parted(how: str) -> tuple[int, ...]:
        return {"both ways": (2,), "towards the node": (1, 2), "from the node": (2, 1)}[how]

    def close(self) -> None:
        for space in self._spaces:
            ip("netns", "del", space)


class Machines(Cluster):
    """A cluster whose commands run on machines of a network."""

    def __init__(self, directory: Path, network: Network) -> None:
        super().__init__(directory)
        self.network = network
        self.prefix = network.command_on(1)

    def start_on(self, machine: int, cpus: int = 2) -> str:
        """The node's address."""
        self.prefix = self.network.command_on(machine)
        try:
            if machine == 1:
                return self.start_head("--host", self.network.address_of(1), cpus=cpus)
            return self.start_node(cpus=cpus)
        finally:
            self.prefix = self.network.command_on(1)


@pytest.fixture
def machines() -> Iterator[Machines]:
    """Two machines, a node on each."""
    if os.geteuid() or sys.platform != "linux" or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    try:
        network = Network(2)
    except OSError as error:
        pytest.skip(f"there are no network namespaces here: {error}")
    with tempfile.TemporaryDirectory(prefix="so-") as directory:
        made = Machines(Path(directory), network)
        try:
            made.start_on(1)
            made.start_on(2)
            yield made
        finally:
            made.stop()
            network.close()


MAP = """
    import os, time
    from scaleout.multiprocessing import Pool

    def where(number):
        time.sleep(0.01)
        return os.getpid()

    def work(number):
        with open("count", "a") as file:
            file.write(f"{number}\\n")
        time.sleep(0.05)
        return number * number

    if __name__ == "__main__":
        with Pool(4) as pool:
            while len({*pool.map(where, range(20), chunksize=1)}) < 4:
                pass
            result = pool.map_async(work, range(400), chunksize=1)
            print("running", flush=True)
            assert result.get() == [number * number for number in range(400)]
            print("well")
"""


def test_a_short_cut_is_not_noticed(machines: Machines) -> None:
    program = machines.start(MAP)
    assert read_line(program) == "running"
    for _ in range(2):
        time.sleep(0.3)
        machines.network.cut(2)
        time.sleep(2)
        machines.network.heal(2)
    assert finish(program) == "well\n"
    assert counted(machines) == {str(number): 1 for number in range(400)}


@pytest.mark.parametrize("how", ["both ways", "towards the node", "from the node"])
def test_a_node_that_is_cut_off_for_long(machines: Machines, how: str) -> None:
    """Its work is done elsewhere, it ends what it still had of the program, and comes back as another one."""
    (address,) = [f"{node['host']}:{node['port']}" for node in machines.nodes() if not node["is_head"]]
    old_id = next(node["epoch"] for node in machines.nodes() if not node["is_head"])
    pid = machines.pid_of(address)
    program = machines.start(MAP)
    assert read_line(program) == "running"
    old_workers = [worker for zygote in psutil.Process(pid).children() for worker in zygote.children()]
    assert old_workers
    machines.network.part(how)
    wait_until(lambda: len(machines.nodes()) == 1)
    assert finish(program) == "well\n"
    count = counted(machines)
    assert set(count) == {str(number) for number in range(400)}
    assert sum(count.values()) <= 400 + 2 * 64  # what its two workers had, once more
    machines.network.rejoin(how)
    wait_until(lambda: len(machines.nodes()) == 2)
    assert next(node["epoch"] for node in machines.nodes() if not node["is_head"]) != old_id
    wait_until(lambda: not any(worker.is_running() and worker.status() != "zombie" for worker in old_workers))
    assert "well" in finish(machines.start(MAP))


def test_values_and_actors_of_a_node_that_is_cut_off(machines: Machines) -> None:
    program = machines.start(
        TASKS
        + """
    @scaleout.remote(max_restarts=5, max_task_retries=5)
    class Counter:
        def __init__(self):
            self.value = 0
            note(f"born {os.getpid()}")

        def add(self):
            self.value += 1
            note(f"{os.getpid()}")
            return os.getpid()

    if __name__ == "__main__":
        wait_for_both_nodes()
        counters = [Counter.remote() for _ in range(4)]
        pids = scaleout.get([counter.add.remote() for counter in counters])
        made = ready([make.remote(number) for number in range(8)])
        lost = [number for number, place in enumerate(places(made)) if place != os.environ["SCALEOUT_ADDRESS"]]
        print("ready", flush=True)
        sys.stdin.readline()
        doubled = [double.remote(ref) for ref in made]
        again = scaleout.get([counter.add.remote() for counter in counters])
        assert sum(before != after for before, after in zip(pids, again)) in (1, 2, 3)
        assert [array[0] for array in scaleout.get(doubled)] == [2 * number for number in range(8)]
        assert scaleout.get(total.remote(*doubled)) == 2 * ITEMS * 28
        print("went on", flush=True)
        sys.stdin.readline()
        last = scaleout.get([counter.add.remote() for counter in counters])
        assert last == again
        print(lost)
    """,
        stdin=True,
    )
    assert read_line(program) == "ready"
    machines.network.cut(2)
    go_on(program)
    assert read_line(program) == "went on"
    machines.network.heal(2)
    wait_until(lambda: len(machines.nodes()) == 2)
    go_on(program)
    lost = eval(finish(program))
    assert lost
    count = counted(machines)
    assert [count[f"make {number}"] for number in range(8)] == [1 + (number in lost) for number in range(8)]
