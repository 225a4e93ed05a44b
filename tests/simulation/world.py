"""A cluster in virtual time: the real core classes (dispatcher, roster, placement, membership), driven by a clock that
jumps, and by connections that are slow, stand still, or break.

What the edges do in production is acted out here as simply as can be: a connection keeps its order and may be cut, a
node forks workers and hands on what they say, a worker claims one task after the other by the protocol of the control
page. What is decided, the core decides, as in production.

`World(seed).run()` raises AssertionError where an invariant does not hold:

- each task's outcome is delivered once;
- a task that must not run twice begins at most once;
- no two processes ever have the same epoch of a node;
- when all is mended, all tasks come to an end, and then nothing is left: no worker, no room taken.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from scaleout._runtime.base import limits
from scaleout._runtime.core.dispatch import Group, Lane
from scaleout._runtime.core.membership import Membership
from scaleout._runtime.core.placement import Room, choose
from scaleout._runtime.core.roster import Roster
from scaleout._runtime.core.tasks import Profile, Task

NOTHING_REVOKED = (1 << 64) - 1
ALL_CLAIMED = (1 << 64) - 1


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def later(self, delay_s: float, function: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (self.now + delay_s, self._count, function))

    def run_until(self, time_s: float) -> int:
        """How many events there were."""
        before = self._count
        while self._events and self._events[0][0] <= time_s:
            self.now, _, function = heapq.heappop(self._events)
            function()
        self.now = time_s
        return self._count - before


class Connection:
    """Between two ends, each a function that takes messages; None is the end of the stream. In order, each way."""

    def __init__(self, world: World, ends: tuple[Callable[[Any], None], Callable[[Any], None]]) -> None:
        self._world = world
        self._ends = ends
        self._waiting: tuple[deque[Any], deque[Any]] = (deque(), deque())
        self._is_busy = [False, False]
        self.is_open = [True, True]
        self.is_cut = False
        self.is_watched = False  # the driver hears of nodes by this one

    def send(self, side: int, message: Any) -> None:
        """From that side to the other."""
        if self.is_open[side]:
            self._waiting[side].append(message)
            self._carry(side)

    def _carry(self, side: int) -> None:
        if not self._is_busy[side] and not self.is_cut and self._waiting[side]:
            self._is_busy[side] = True
            self._world.clock.later(self._world.chance.expovariate(1 / 0.001), partial(self._deliver, side))

    def _deliver(self, side: int) -> None:
        self._is_busy[side] = False
        if self.is_cut:
            return
        if self._waiting[side]:
            message = self._waiting[side].popleft()
            if self.is_open[1 - side]:
                if message is None:
                    self.is_open[1 - side] = False
                self._ends[1 - side](message)
        self._carry(side)

    def cut(self, seconds: float) -> None:
        """For so long nothing goes through; after a while both ends give it up, each for itself."""
        self.is_cut = True
        self._world.clock.later(seconds, self._heal)
        for side in (0, 1):
            silence_s = limits.SILENCE_SECONDS + self._world.chance.random()
            if silence_s < seconds:
                self._world.clock.later(silence_s, partial(self._give_up, side))

    def _heal(self) -> None:
        self.is_cut = False
        for side in (0, 1):
            self._carry(side)

    def _give_up(self, side: int) -> None:
        if self.is_open[side]:
            self.close(side)  # the other hears of it, if it ever hears of anything again
            self._ends[side](None)

    def close(self, side: int) -> None:
        """That side has ended: what it has sent still arrives."""
        if self.is_open[side]:
            self._waiting[side].append(None)
            self.is_open[side] = False
            self._carry(side)

    def drop(self) -> None:
        """A machine is gone: what was on its way is lost."""
        for side in (0, 1):
            self._waiting[side].clear()
            self._world.clock.later(0.001, partial(self._give_up, side))


class Worker:
    """On a node: claims, runs, answers."""

    def __init__(self, world: World, number: int, say: Callable[[Any], None]) -> None:
        self._world = world
        self._say = say
        self.number = number
        self.queue: deque[tuple[int, SimulatedTask]] = deque()
        self.claimed = 0
        self.revoked_from = NOTHING_REVOKED
        self.is_running = False
        self.is_leaving = False
        self.is_dead = False

    def start(self) -> None:
        if not self.is_dead:
            self._say(("ready", self.number))
            self.next()

    def take(self, tasks: list[tuple[int, SimulatedTask]]) -> None:
        self.queue.extend(tasks)
        self.next()

    def next(self) -> None:
        while not self.is_dead and not self.is_running and self.queue:
            sequence, task = self.queue.popleft()
            self.claimed = sequence
            if self.revoked_from <= sequence:
                self._say(("returned", self.number, sequence))
                continue
            self.is_running = True
            self._world.began(task)
            self._world.clock.later(task.duration_s, partial(self._end, sequence, task))
            if self._world.chance.random() < self._world.deadliness:
                self._world.clock.later(task.duration_s * self._world.chance.random(), self.die)
        if self.is_leaving and not self.is_running and not self.queue:
            self.die(is_charged=False)

    def _end(self, sequence: int, task: SimulatedTask) -> None:
        if not self.is_dead:
            self.is_running = False
            self._say(("result", self.number, sequence, task.duration_s))
            self.next()

    def die(self, is_charged: bool = True) -> None:
        if not self.is_dead:
            self.is_dead = True
            self._say(("exited", self.number, self.claimed, is_charged))


class SimulatedTask:
    def __init__(self, duration_s: float, may_repeat: bool) -> None:
        self.duration_s = duration_s
        self.may_repeat = may_repeat
        self.submitted_at = 0.0
        self.delay_s = 0.0  # until it began first
        self.begun = 0
        self.outcomes: list[str] = []


class Node:
    """A daemon: a tenant for each connection of a driver's, and its place in the cluster."""

    def __init__(self, world: World, node_id: str, cpus: int) -> None:
        self._world = world
        self.node_id = node_id
        self.boot_id = f"boot{world.chance.getrandbits(32):x}"
        self.resources = {"CPU": 1000 * cpus}
        self.epoch = 0
        self._version = 0  # of the list of nodes that it has told its drivers
        self.tenants: dict[Connection, dict[int, Worker]] = {}
        self.is_dead = False
        self.is_partitioned = False  # from the head
        world.clock.later(0.0, self._renew)

    def _renew(self) -> None:
        if self.is_dead:
            return
        head = self._world.head
        if head is not None and not self.is_partitioned:
            self._world.head_messages += 1
            if not (self.epoch and head.renewed(self._world.clock.now, self.node_id, self.epoch)):
                before, self.epoch = self.epoch, self._world.register(self)
                if before and before != self.epoch:
                    self._close_tenants()
            if head.version != self._version:
                self._version = head.version
                self._world.tell_drivers_of(self)
        self._world.clock.later(limits.RENEW_SECONDS, self._renew)

    def accept(self, connection: Connection) -> None:
        self.tenants[connection] = {}

    def obey(self, connection: Connection, message: Any) -> None:
        workers = self.tenants.get(connection)
        if workers is None:
            return
        if message is None:
            self._end_tenant(connection)
            return
        kind, number, *rest = message
        if kind == "watch":
            connection.is_watched = True
            self._version = 0  # so that it is told soon
        elif kind == "fork":
            worker = workers[number] = Worker(self._world, number, partial(self._heard, connection))
            self._world.clock.later(0.05 * self._world.chance.random(), worker.start)
        elif number in workers:
            worker = workers[number]
            if kind == "tasks":
                worker.take(rest[0])
            elif kind == "revoke":
                worker.revoked_from = rest[0]
            elif kind == "look":
                self._world.clock.later(
                    limits.REVOKE_SETTLE_SECONDS, partial(self._answer, connection, worker, rest[0])
                )
            elif kind == "exit":
                worker.is_leaving = True
                worker.next()

    def _answer(self, connection: Connection, worker: Worker, question: int) -> None:
        connection.send(1, ("looked", worker.number, worker.claimed, question))

    def _heard(self, connection: Connection, message: Any) -> None:
        if message[0] == "exited":
            self.tenants.get(connection, {}).pop(message[1], None)
        connection.send(1, message)

    def _end_tenant(self, connection: Connection) -> None:
        for worker in self.tenants.pop(connection).values():
            worker.is_dead = True
        connection.close(1)

    def _close_tenants(self) -> None:
        for connection in list(self.tenants):
            self._end_tenant(connection)

    def crash(self) -> None:
        self.is_dead = True
        for connection, workers in self.tenants.items():
            for worker in workers.values():
                worker.is_dead = True
            connection.drop()
        self.tenants.clear()


class Seat:
    """A worker as its driver has it."""

    def __init__(self, number: int, link: Link) -> None:
        self.number = number
        self.link = link
        self.lane: Lane = None  # type: ignore[assignment]
        self.questions: dict[int, Callable[[int], None]] = {}


class Link:
    def __init__(self, node_id: str, resources: dict[str, int]) -> None:
        self.node_id = node_id
        self.room = Room(resources)
        self.seats: dict[int, Seat] = {}
        self.connection: Connection = None  # type: ignore[assignment]


class Driver:
    """A program with one group: what `node.owner` and `cluster.fleet` do, without values."""

    def __init__(self, world: World, size: int, max_retries: int) -> None:
        self._world = world
        self.roster = Roster(0, [])
        self.links: list[Link] = []
        self._teller: Link | None = None
        self.group = Group(size, tasks_per_worker=None, max_retries=max_retries, cpus=size)
        self.max_retries = max_retries
        self.tasks: list[SimulatedTask] = []
        self._profile = Profile()
        self._numbers = 0
        self._questions = 0
        self._is_ticking = False
        self._has_begun = False
        self._dialling = 0

    def submit(self, count: int, duration_s: float | None = None) -> None:
        chance = self._world.chance
        for _ in range(count):
            lasts_s = (
                chance.expovariate(1 / chance.choice((0.0001, 0.01, 0.5, 3.0))) if duration_s is None else duration_s
            )
            task = SimulatedTask(lasts_s, self.max_retries > 0)
            task.submitted_at = self._world.clock.now
            self.tasks.append(task)
            if self.group.is_broken:
                task.outcomes.append("broken")
            else:
                self.group.submitted(Task(None, None, 0, b"", (), None, task, 0, self._profile))
        self.settle()

    # -- the owner's turn ------------------------------------------------------------------------

    def settle(self) -> None:
        group = self.group
        if not self._has_begun and self.links and not self._dialling:  # as a program: once all have answered
            self._has_begun = True
            group.refill()
        group.pump()
        while group.effects:
            effects, group.effects = group.effects, []
            for name, *rest in effects:
                getattr(self, f"_{name}")(*rest)
            group.pump()
        if group.needs_tick and not self._is_ticking:
            self._is_ticking = True
            self._world.clock.later(limits.STALL_SECONDS, self._tick)

    def _tick(self) -> None:
        self._is_ticking = False
        self.group.tick()
        self.settle()

    def _start(self, count: int) -> None:
        for left in range(count, 0, -1):
            room = choose((link.room for link in self.links), ())
            if room is None:
                self.group.asked -= left
                self._has_begun = False  # asked for again when there is a node
                return
            link = next(link for link in self.links if link.room is room)
            self._numbers += 1
            seat = Seat(self._numbers, link)
            seat.lane = self.group.worker_started(seat)
            link.seats[seat.number] = seat
            room.take(())
            self._tell(seat, "fork")

    def _tell(self, seat: Seat, kind: str, *rest: Any) -> None:
        seat.link.connection.send(0, (kind, seat.number, *rest))

    def _send(self, lane: Lane, tasks: list[Task]) -> None:
        self._tell(lane.worker, "tasks", [(task.sequence, task.sink) for task in tasks])

    def _revoke(self, lane: Lane, sequence: int) -> None:
        self._tell(lane.worker, "revoke", sequence)
        self._questions += 1
        lane.worker.questions[self._questions] = partial(self._settled, lane, sequence)
        self._tell(lane.worker, "look", self._questions)

    def _settled(self, lane: Lane, sequence: int, claimed: int) -> None:
        if lane.revoked_from == sequence:
            self.group.revocation_settled(lane, claimed)

    def _unrevoke(self, lane: Lane) -> None:
        self._tell(lane.worker, "revoke", NOTHING_REVOKED)
        self.group.lane_reopened(lane)

    def _retire(self, lane: Lane) -> None:
        self._tell(lane.worker, "exit")

    def _failed(self, task: Task, lane: Lane) -> None:
        self._outcome(task, "worker died")

    def _broken(self) -> None:
        for task in self.group.take_all():
            self._outcome(task, "broken")

    def _outcome(self, task: Task, outcome: str) -> None:
        task.sink.outcomes.append(outcome)  # type: ignore[attr-defined]
        assert len(task.sink.outcomes) == 1, task.sink.outcomes  # type: ignore[attr-defined]

    # -- links -----------------------------------------------------------------------------------

    def heard(self, link: Link, message: Any) -> None:
        if message is None:
            self._lost(link)
        else:
            kind, number, *rest = message
            if kind == "nodes":
                self._told(number, *rest)
            elif number in link.seats:
                self._heard_of(link, link.seats[number], kind, *rest)
        self.settle()

    def _heard_of(self, link: Link, seat: Seat, kind: str, *rest: Any) -> None:
        group = self.group
        if kind == "ready":
            group.worker_ready(seat.lane)
        elif kind == "result":
            sequence, duration_s = rest
            task = group.finished(seat.lane, sequence, int(duration_s * 1e6))
            if task is not None:
                self._outcome(task, "result")
        elif kind == "returned":
            group.returned(seat.lane, [rest[0]])
        elif kind == "looked":
            claimed, question = rest
            then = seat.questions.pop(question, None)
            if then is not None:
                then(claimed)
        elif kind == "exited":
            claimed, is_charged = rest
            self._bury(link, seat, claimed, is_charged)

    def _bury(self, link: Link, seat: Seat, claimed: int, is_charged: bool) -> None:
        del link.seats[seat.number]
        link.room.give_back(())
        for then in list(seat.questions.values()):
            then(claimed)
        self.group.worker_died(seat.lane, claimed, is_charged)

    def _lost(self, link: Link) -> None:
        if link not in self.links:
            return
        self.links.remove(link)
        self.roster.lost(link.node_id)
        self._need_teller()
        link.connection.close(0)
        for seat in list(link.seats.values()):
            self._bury(link, seat, ALL_CLAIMED, False)
        self._world.clock.later(limits.REDIAL_SECONDS, self.dial)

    def told_first(self, version: int, nodes: list[Any]) -> None:
        self._told(version, nodes)
        self.settle()

    def _told(self, version: int, nodes: list[Any]) -> None:
        news = self.roster.told(version, nodes)
        if news is None:
            return
        for link in list(self.links):
            if link.node_id in news.gone:
                self._lost(link)
                continue
            if news.resting.get(link.node_id) and link.room.is_wanted:
                for seat in list(link.seats.values()):
                    self.group.lane_unwanted(seat.lane)
            link.room.is_wanted = link.node_id not in news.resting
        self.dial()

    def dial(self) -> None:
        for node_id in self.roster.to_dial():
            self._dialling += 1
            self._world.clock.later(0.01 * self._world.chance.random(), partial(self._dialled, node_id))

    def _dialled(self, node_id: str) -> None:
        self._dialling -= 1
        node = self._world.nodes.get(node_id)
        if node is None or node.is_dead or self._world.chance.random() < self._world.deafness:
            self.roster.unreachable(node_id)
            self._world.clock.later(limits.REDIAL_SECONDS, self.dial)
            self.settle()
            return
        if not self.roster.linked(node_id):
            return
        link = Link(node_id, node.resources)
        ends = (partial(self.heard, link), lambda message: node.obey(link.connection, message))
        link.connection = Connection(self._world, ends)
        self._world.connections.append(link.connection)
        node.accept(link.connection)
        self.links.append(link)
        self._need_teller()
        self.settle()

    def _need_teller(self) -> None:
        if self._teller not in self.links:
            self._teller = self.links[0] if self.links else None
            if self._teller is not None:
                self._teller.connection.send(0, ("watch", 0))

    def close(self) -> None:
        self.group.closing()
        self.settle()


class World:
    """One run. The same seed, the same run."""

    def __init__(self, seed: int, nodes: int = 5, drivers: int = 2, tasks: int = 300) -> None:
        self.chance = random.Random(seed)
        self.clock = Clock()
        self.deadliness = self.chance.choice((0, 0, 0.001, 0.02))
        self.deafness = self.chance.choice((0, 0, 0.2))
        self._epochs: dict[str, tuple[int, str, bool]] = {}  # what the head has on its disk
        self._given: dict[tuple[str, int], str] = {}
        self._heads = 0
        self.head_messages = self.lists_given = 0  # renewals, and how often the head said which nodes there are
        self.head: Membership | None = None
        self.nodes: dict[str, Node] = {}
        self.connections: list[Connection] = []
        self._faults = self.chance.sample(
            [self._kill_node, self._cut_link, self._partition, self._kill_head, self._drain, self._kill_workers],
            self.chance.randrange(7),
        )
        self.is_mended = False
        self.start_head()
        for number in range(nodes):
            self.add_node(f"node{number}")
        self._tick_head()
        self.drivers = [
            Driver(self, self.chance.randrange(1, 2 * nodes + 2), self.chance.choice((0, 3))) for _ in range(drivers)
        ]
        self._tasks = tasks
        self.clock.later(0.1, self._tell_lost_drivers)

    # -- the head --------------------------------------------------------------------------------

    def start_head(self) -> None:
        self._heads += 1
        self.head = Membership(dict(self._epochs), version=self._heads << 20)

    def register(self, node: Node) -> int:
        assert self.head is not None
        epoch = self.head.registered(self.clock.now, node.node_id, node.boot_id)
        assert self._given.setdefault((node.node_id, epoch), node.boot_id) == node.boot_id, "an epoch twice"
        self._keep(node.node_id)
        return epoch

    def _keep(self, node_id: str) -> None:
        assert self.head is not None
        member = self.head.members[node_id]
        self._epochs[node_id] = member.epoch, member.boot_id, member.is_draining

    def _tick_head(self) -> None:
        if self.head is not None:
            for node_id in self.head.tick(self.clock.now):
                self._keep(node_id)
        self.clock.later(0.25, self._tick_head)

    def listed(self) -> tuple[int, list[Any]]:
        assert self.head is not None
        self.lists_given += 1
        return self.head.version, [
            (member.node_id, member.node_id, self.nodes[member.node_id].resources, member.state, member.is_draining)
            for member in self.head.here()
        ]

    def tell_drivers_of(self, node: Node) -> None:
        """What a node has learned from the head it says to its drivers."""
        for connection in node.tenants:
            if connection.is_watched:
                connection.send(1, ("nodes", *self.listed()))

    def _tell_lost_drivers(self) -> None:
        """Who has no node asks for one, as a program does when it is started."""
        for driver in self.drivers:
            if not driver.links and self.head is not None:
                driver.told_first(*self.listed())
        self.clock.later(limits.RENEW_SECONDS, self._tell_lost_drivers)

    # -- nodes and faults ------------------------------------------------------------------------

    def add_node(self, node_id: str) -> None:
        self.nodes[node_id] = Node(self, node_id, self.chance.randrange(1, 4))

    def began(self, task: SimulatedTask) -> None:
        if not task.begun:
            task.delay_s = self.clock.now - task.submitted_at
        task.begun += 1
        assert task.may_repeat or task.begun == 1, "it must not run twice"

    def _some_node(self) -> Node | None:
        alive = [node for node in self.nodes.values() if not node.is_dead]
        return self.chance.choice(alive) if alive else None

    def _kill_node(self) -> None:
        node = self._some_node()
        if node is not None:
            node.crash()
            self.clock.later(20 * self.chance.random(), partial(self.add_node, node.node_id))

    def _cut_link(self) -> None:
        open_links = [connection for connection in self.connections if all(connection.is_open)]
        if open_links:
            self.chance.choice(open_links).cut(25 * self.chance.random())

    def _partition(self) -> None:
        node = self._some_node()
        if node is not None:
            node.is_partitioned = True
            self.clock.later(25 * self.chance.random(), partial(setattr, node, "is_partitioned", False))

    def _kill_head(self) -> None:
        if self.head is not None:
            self.head = None
            self.clock.later(30 * self.chance.random(), self.start_head)

    def _drain(self) -> None:
        if self.head is not None and len(self.nodes) > 1:
            node = self._some_node()
            if node is not None and self.head.drained(node.node_id):
                self._keep(node.node_id)

    def _kill_workers(self) -> None:
        node = self._some_node()
        for workers in list(node.tenants.values()) if node is not None else ():
            for worker in list(workers.values()):
                if self.chance.random() < 0.5:
                    worker.die()

    def _fault(self) -> None:
        if not self.is_mended:
            self.chance.choice(self._faults)()
            self.clock.later(self.chance.expovariate(1 / 3), self._fault)

    def mend(self) -> None:
        """Nothing fails from now on."""
        self.is_mended = True
        self.deadliness = self.deafness = 0

    # -- a run -----------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Faults for a minute, then none: by the end all has come to its end. Some figures."""
        if self._faults:
            self._fault()
        for second in range(60):
            if second % 6 == 0:
                for driver in self.drivers:
                    driver.submit(self.chance.randrange(self._tasks // 10 + 1))
            self.clock.run_until(second + 1.0)
        self.mend()
        work_s = max(sum(task.duration_s for task in driver.tasks) / driver.group.size for driver in self.drivers)
        events = self.clock.run_until(self.clock.now + 300 + 2 * work_s)
        for driver in self.drivers:
            for task in driver.tasks:
                assert len(task.outcomes) == 1, f"a task has {task.outcomes} after all was mended"
                assert task.outcomes == ["result"] or driver.max_retries == 0 or self._faults or self.deadliness
            driver.close()
        self.clock.run_until(self.clock.now + 60)
        for driver in self.drivers:
            assert not driver.group.lanes, "workers are left"
            assert all(link.room.workers == 0 and not link.seats for link in driver.links)
            driver.group.validate()
        assert not any(workers for node in self.nodes.values() for workers in node.tenants.values())
        tasks = [task for driver in self.drivers for task in driver.tasks]
        return {
            "tasks": len(tasks),
            "begun": sum(task.begun for task in tasks),
            "failed": sum(task.outcomes != ["result"] for task in tasks),
            "events": events,
        }
