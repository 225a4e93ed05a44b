"""The steward: `python -m scaleout.detached.steward OPTIONS`, as the head starts it when somebody knocks at its door.

A program of the cluster like any other, but that it owns what others leave with it. It outlives the head's process, and
ends with the head's command, or when nothing is left to do for it: no actor, no caller.

Requests are (number, kind, facts...), answers (number, whether it went well, facts...); a number 0 wants no answer.
They are begun in the order in which they come.

    create  options, [class and arguments]        -> key
    find    namespace, name                       -> (key, options) or None
    call    key, method, said, [arguments]        -> [results]
    stream  key, method, said, [arguments]        ->
    next    number of the stream                  -> [item], or nothing beyond the end
    drop, cancel  number of the stream, of the call
    kill    key, whether it may be started again  ->
    list                                          -> facts of all living actors
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pickle
import secrets
import signal
import socket
import sqlite3
import sys
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scaleout._runtime import session
from scaleout._runtime.cluster import door
from scaleout.api import cancel, shutdown
from scaleout.detached.hosted import Hosted, HostedAsync
from scaleout.detached.records import Records
from scaleout.errors import ActorDiedError, ClusterError, ScaleoutError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine
    from typing import Any

LOOK_SECONDS = 0.5
"""How often it looks which actors are dead."""

IDLE_SECONDS = 30.0
"""Without an actor and a caller for so long, it ends; whoever knocks has another started."""

ORPHAN_SECONDS = 120.0
"""Without a head for so long, it ends, and its actors with it."""

STREAMS = 1000
"""Whose next items may be waited for at a time."""

KEPT_DEAD = 10_000
"""Of so many dead actors it is still known how they died."""


class Steward:
    """The actors, by their keys."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._client = session.default_client()
        self._classes = [self._client.prepare(cls) for cls in (Hosted, HostedAsync)]
        self._actors: dict[int, Any] = {}
        self._dead: OrderedDict[int, Any] = OrderedDict()

    @property
    def is_idle(self) -> bool:
        return not self._actors

    def start_again(self) -> None:
        """Those that an earlier steward had, as far as they may be: a new process has no log of theirs."""
        for key, options, parts in self._records.all():
            name = f"{options['class_name']} {options['name']!r}"
            try:
                if not options["max_restarts"] or options["keeps_log"]:
                    raise ScaleoutError("what it had done ended with the steward before, and it is not to be restarted")
                self._start(key, options, parts)
                report(f"the actor {name} is started again")
            except (ScaleoutError, ValueError) as error:
                report(f"the actor {name} is gone: {error}")
                self._forget(key)

    def create(self, options: dict[str, Any], parts: list[Any]) -> int:
        """An actor's key; it is durable. ValueError if its name is taken."""
        key = secrets.randbits(62)
        self._start(key, options, parts)
        try:
            self._records.add(key, options, parts)
        except sqlite3.Error as error:
            report(f"no actor can be kept: {error}")
            self.kill(key, False)
            raise ClusterError(f"the steward's database cannot be written: {error}") from error
        return key

    def _start(self, key: int, options: dict[str, Any], parts: list[Any]) -> None:
        record = self._classes[options["of_worker"]["is_async"]]
        _, self._actors[key] = self._client.create_actor(record, (parts,), {}, options)

    def find(self, namespace: str, name: str) -> Any:
        """(key, options), or None."""
        found = self._client.find_actor(namespace, name)
        if found is None:
            return None
        return next(((key, found[2]) for key, hold in self._actors.items() if hold is found[1]), None)

    def call(self, key: int, method: str, arguments: tuple[Any, ...], returns: Any, said: tuple[Any, ...]) -> Any:
        """The reference to the answer, or the stream of them."""
        hold = self._actors.get(key) or self._dead.get(key)
        if hold is None:
            raise ActorDiedError("the actor is dead, or its steward had to be started anew and could not restart it")
        _, retries, timeout_s = said
        options = session.task_options(num_returns=returns, max_retries=retries, timeout_s=timeout_s)
        return self._client.call_actor(hold, method, arguments, {}, options)

    def kill(self, key: int, may_restart: bool) -> None:
        if key in self._actors:
            self._client.kill_actor(self._actors[key], may_restart)
            self.look()

    def look(self) -> None:
        """What is dead need not be known again."""
        for key, hold in list(self._actors.items()):
            if hold.death:
                self._dead[key] = self._actors.pop(key)
                self._forget(key)
        while len(self._dead) > KEPT_DEAD:
            self._dead.popitem(last=False)

    def _forget(self, key: int) -> None:
        try:
            self._records.remove(key)
        except sqlite3.Error as error:
            report(f"an actor that is gone cannot be forgotten: {error}")

    def list(self) -> list[dict[str, Any]]:
        facts = {int(found["id"], 16): found for found in self._client.list_actors()}
        return [
            {**facts[hold.id], "id": f"{key:016x}", "namespace": hold.options["namespace"]}
            for key, hold in self._actors.items()
            if hold.id in facts
        ]


class Visit:
    """One connection: a program's envoy, or a command."""

    def __init__(self, steward: Steward, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._steward = steward
        self._reader = reader
        self._writer = writer
        self._refs: dict[int, Any] = {}  # of calls that are under way
        self._streams: dict[int, Any] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until the other side is gone; what it has begun goes on, but for streams."""
        try:
            while True:
                (number, kind, *facts), values = await door.read(self._reader)
                if kind not in KINDS:
                    raise ValueError(f"a request of the kind {kind!r}")
                try:
                    answer = getattr(self, f"_{kind}")(number, *facts, *values)
                except (ScaleoutError, ValueError, TypeError) as error:
                    answer = self._refuse(number, "", [pickle.dumps(error)])
                task = asyncio.get_running_loop().create_task(answer)
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        except (EOFError, OSError):
            pass
        except Exception as error:  # noqa: BLE001 - of what was sent
            report(f"a connection is closed: {type(error).__name__}: {error}")
        finally:
            for task in self._tasks:
                task.cancel()
            self._streams.clear()

    async def _reply(self, number: int, *facts: Any, values: Any = ()) -> None:
        door.write(self._writer, (number, True, *facts), values)
        await self._writer.drain()

    async def _refuse(self, number: int, text: str, parts: Any) -> None:
        door.write(self._writer, (number, False, text), [parts])
        await self._writer.drain()

    # Each of these does what must be done in order, and gives the coroutine of the answer.

    def _create(self, number: int, options: dict[str, Any], parts: list[Any]) -> Coroutine[Any, Any, None]:
        return self._reply(number, self._steward.create(options, parts))

    def _find(self, number: int, namespace: str, name: str) -> Coroutine[Any, Any, None]:
        return self._reply(number, self._steward.find(namespace, name))

    def _kill(self, number: int, key: int, may_restart: bool) -> Coroutine[Any, Any, None]:
        self._steward.kill(key, may_restart)
        return self._reply(number)

    def _list(self, number: int) -> Coroutine[Any, Any, None]:
        return self._reply(number, self._steward.list())

    def _call(
        self, number: int, key: int, method: str, said: tuple[Any, ...], parts: list[Any]
    ) -> Coroutine[Any, Any, None]:
        ref = self._refs[number] = self._steward.call(key, "call", (method, said[0], parts), 1, said)
        return self._answer(number, ref)

    async def _answer(self, number: int, ref: Any) -> None:
        try:
            await self._hand_on(number, ref)
        finally:
            self._refs.pop(number, None)

    async def _hand_on(self, number: int, ref: Awaitable[Any]) -> None:
        try:
            is_well, text, values = await ref
        except ScaleoutError as error:
            await self._refuse(number, "", [pickle.dumps(error)])
            return
        if is_well:
            await self._reply(number, values=values)
        else:
            await self._refuse(number, text, values[0])

    def _cancel(self, _: int, number: int) -> Coroutine[Any, Any, None]:
        if number in self._refs:
            cancel(self._refs[number])
        return _nothing()

    def _stream(
        self, number: int, key: int, method: str, said: tuple[Any, ...], parts: list[Any]
    ) -> Coroutine[Any, Any, None]:
        self._streams[number] = self._steward.call(key, "stream", (method, parts), "streaming", said)
        return self._reply(number)

    def _next(self, number: int, stream: int) -> Coroutine[Any, Any, None]:
        return self._item(number, self._streams[stream])

    async def _item(self, number: int, stream: Any) -> None:
        try:
            ref = await anext(stream)
        except StopAsyncIteration:
            await self._reply(number)
        else:
            await self._hand_on(number, ref)

    def _drop(self, _: int, stream: int) -> Coroutine[Any, Any, None]:
        self._streams.pop(stream, None)
        return _nothing()


KINDS = frozenset({"create", "find", "call", "stream", "next", "drop", "cancel", "kill", "list"})


async def _nothing() -> None:
    pass


async def run(local: Path, listener: socket.socket) -> None:
    """Until there is nothing to do, or it is told to end."""
    is_over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, is_over.set)
    loop.set_default_executor(ThreadPoolExecutor(STREAMS))
    records = Records(local / "actors.sqlite")
    steward = Steward(records)
    steward.start_again()
    visits: set[Visit] = set()

    async def welcome(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visit = Visit(steward, reader, writer)
        visits.add(visit)
        try:
            await visit.run()
        finally:
            visits.remove(visit)

    server = await door.serve(listener, welcome)
    used_at = headed_at = time.monotonic()
    while not is_over.is_set():
        try:
            await asyncio.wait_for(is_over.wait(), LOOK_SECONDS)
        except asyncio.TimeoutError:
            pass
        steward.look()
        now = time.monotonic()
        if visits or not steward.is_idle:
            used_at = now
        if _has_head(local):
            headed_at = now
        if now - used_at > IDLE_SECONDS or now - headed_at > ORPHAN_SECONDS:
            break
    server.close()
    records.close()
    shutdown()


def _has_head(local: Path) -> bool:
    """Whether the head's process is there."""
    for path in local.glob("node-*.json"):
        try:
            record = json.loads(path.read_text())
            if record["is_head"]:
                os.kill(record["pid"], 0)
                return True
        except (OSError, ValueError, KeyError):
            continue
    return False


def report(line: str) -> None:
    """Into the log."""
    print(time.strftime("%Y-%m-%d %H:%M:%S"), line, file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    """`arguments`: JSON of the local directory, and the descriptor of the listening socket."""
    options = json.loads(arguments[0])
    local = Path(options["local"])
    lock = open(local / "steward.lock", "a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        report("there is a steward already")
        return 1
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    listener = socket.socket(fileno=options["listener"])
    os.set_inheritable(listener.fileno(), False)
    asyncio.run(run(local, listener))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
