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
    list                                          -> [facts of all living actors]
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import marshal
import os
import secrets
import signal
import socket
import sqlite3
import sys
import time
import traceback
from collections import OrderedDict
from pathlib import Path

from scaleout._runtime import session
from scaleout._runtime.cluster import door
from scaleout.api import cancel, shutdown
from scaleout.detached.inside import Hosted, HostedAsync
from scaleout.detached.register import Register
from scaleout.detached.values import packed
from scaleout.errors import ActorDiedError, ClusterError, InfeasibleError, ScaleoutError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable
    from typing import Any

LOOK_SECONDS = 0.5
"""How often it looks which actors are dead."""

IDLE_SECONDS = 30.0
"""Without an actor and a caller for so long, it ends; whoever knocks has another started."""

ORPHAN_SECONDS = 120.0
"""Without a head for so long, it ends, and its actors with it."""

LINGER_SECONDS = 6.0
"""For so long nodes may have the workers of a program that was killed, and a little longer."""

TEXT_CHARACTERS = 100_000
"""Of a traceback, the end."""

KEPT_DEAD = 10_000
"""Of so many dead actors it is still known how they died."""


class Steward:
    """The actors, by their keys."""

    def __init__(self, register: Register) -> None:
        self._register = register
        self._client = session.default_client()
        self._classes = [self._client.prepare(cls) for cls in (Hosted, HostedAsync)]
        self._actors: dict[int, Any] = {}
        self._keys: dict[tuple[str, str], int] = {}
        self._coming: dict[int, tuple[dict[str, Any], Any]] = {}  # that no node has a place for yet
        self._dead: OrderedDict[int, dict[str, Any]] = OrderedDict()  # what is said of them
        self.is_ready = asyncio.Event()  # those of the steward before are there again

    @property
    def is_idle(self) -> bool:
        return not self._actors and not self._coming

    async def start_again(self) -> None:
        """Those that an earlier steward had, as far as they may be made anew."""
        earlier = list(self._register.all())
        if not self._register.begin() and earlier:
            await asyncio.sleep(LINGER_SECONDS)  # it was killed, and nodes may still have its actors
        self._coming = {key: (options, parts) for key, options, parts in earlier}
        self.look()
        self.is_ready.set()

    def create(self, options: dict[str, Any], parts: Any) -> int:
        """An actor's key; if it may be made anew it is durable. ValueError if its name is taken."""
        self.look()  # the name of one that has just died is free
        key = secrets.randbits(62) | 1
        self._start(key, options, parts)
        if options["max_restarts"] and not options["keeps_log"]:
            try:
                self._register.add(key, options, parts)
            except Exception as error:
                door.report(f"no actor can be kept: {error}")
                self.kill(key, False)
                raise ClusterError(f"the steward's database cannot be written: {error}") from error
        return key

    def _start(self, key: int, options: dict[str, Any], parts: Any) -> None:
        name = options["namespace"], options["name"]
        if name in self._keys:
            raise ValueError(f"there is a detached actor named {name[1]!r} already in namespace {name[0]!r}")
        # In its worker that name leads here, too, and not to what wraps it.
        inner = {**options, "namespace": f"\0{name[0]}", "is_detached": False}
        record = self._classes[options["of_worker"]["is_async"]]
        _, self._actors[key] = self._client.create_actor(record, (name[0], parts), {}, inner)
        self._keys[name] = key

    def find(self, namespace: str, name: str) -> Any:
        """(key, options), or None."""
        self.look()
        key = self._keys.get((namespace, name))
        if key is None:
            return None
        options = {**self._actors[key].options, "namespace": namespace, "is_detached": True}
        return key, options

    def call(self, key: int, method: str, arguments: tuple[Any, ...], returns: Any, said: tuple[Any, ...]) -> Any:
        """The reference to the answer, or the stream of them."""
        hold = self._actors.get(key)
        if hold is None:
            raise self._died(key)
        _, retries, timeout_s = said
        options = session.task_options(num_returns=returns, max_retries=retries, timeout_s=timeout_s)
        return self._client.call_actor(hold, method, arguments, {}, options)

    def _died(self, key: int) -> ScaleoutError:
        facts = self._dead.get(key)
        if key in self._coming:
            return ClusterError("the actor is to be started again, and no node has a place for it yet")
        if facts is None:
            return ActorDiedError("the actor is dead, and was not to be started again after its steward's end")
        return ActorDiedError(facts["message"], class_name=facts["class"], name=facts["name"])

    def kill(self, key: int, may_restart: bool) -> None:
        if key in self._actors:
            self._client.kill_actor(self._actors[key], may_restart)
            self.look()
        elif self._coming.pop(key, None) is not None:
            self._forget(key)

    def look(self) -> None:
        """What is dead need not be known again; what had no place may have one now."""
        for key, hold in list(self._actors.items()):
            if hold.death:
                options = hold.options
                del self._actors[key], self._keys[options["namespace"][1:], options["name"]]
                self._dead[key] = self._client.death_of(hold)
                self._forget(key)
        while len(self._dead) > KEPT_DEAD:
            self._dead.popitem(last=False)
        for key, (options, parts) in list(self._coming.items()):
            name = f"{options['class_name']} {options['name']!r}"
            try:
                self._start(key, options, parts)
            except InfeasibleError:
                continue
            except Exception as error:  # noqa: BLE001 - of what an earlier steward has written
                door.report(f"the actor {name} is gone: {type(error).__name__}: {error}")
                self._forget(key)
            else:
                door.report(f"the actor {name} is started again")
            del self._coming[key]

    def _forget(self, key: int) -> None:
        try:
            self._register.remove(key)
        except sqlite3.Error as error:
            door.report(f"an actor that is gone cannot be forgotten: {error}")

    def list(self) -> list[dict[str, Any]]:
        facts = {int(found["id"], 16): found for found in self._client.list_actors()}
        return [
            {**facts[hold.id], "id": f"{key:016x}", "namespace": hold.options["namespace"][1:]}
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
        """Until the other side is gone; calls that it has begun go on."""
        try:
            await self._steward.is_ready.wait()
            while True:
                (number, kind, *facts), values = await door.read(self._reader)
                if kind not in KINDS:
                    raise ValueError(f"a request of the kind {kind!r}")
                try:
                    answer = getattr(self, f"_{kind}")(number, *facts, *values)
                except Exception as error:  # noqa: BLE001 - what was asked for cannot be
                    answer = self._refuse(number, error)
                task = asyncio.get_running_loop().create_task(self._see_to(number, answer))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        except (EOFError, OSError):
            pass
        except Exception as error:  # noqa: BLE001 - of what was sent
            door.report(f"a connection is closed: {type(error).__name__}: {error}")
        finally:
            for task in list(self._tasks):
                task.cancel()
            for stream in self._streams.values():
                stream.close()

    async def _see_to(self, number: int, answer: Awaitable[None]) -> None:
        """Whatever comes of it, who waits is told."""
        try:
            await answer
        except Exception as error:  # noqa: BLE001 - also what is an OSError, as that a call has run out of time
            try:
                await self._refuse(number, error)
            except OSError:
                pass  # nobody is there any more

    async def _reply(self, number: int, *facts: Any, values: Any = ()) -> None:
        if number:
            await self._writer.drain()
            door.write(self._writer, (number, True, *facts), values)
            await self._writer.drain()

    async def _refuse(self, number: int, error: Exception) -> None:
        cause = error.__cause__
        text = "".join(traceback.format_exception(type(cause), cause, cause.__traceback__)) if cause is not None else ""
        await self._fail(number, text, packed(error))

    async def _fail(self, number: int, text: str, parts: Any) -> None:
        if number:
            await self._writer.drain()
            door.write(self._writer, (number, False, text[-TEXT_CHARACTERS:]), [parts])
            await self._writer.drain()

    # Each of these does what must be done in order, and gives the coroutine of the answer.

    def _create(self, number: int, options: dict[str, Any], parts: Any) -> Awaitable[None]:
        return self._reply(number, self._steward.create(options, parts))

    def _find(self, number: int, namespace: str, name: str) -> Awaitable[None]:
        return self._reply(number, self._steward.find(namespace, name))

    def _kill(self, number: int, key: int, may_restart: bool) -> Awaitable[None]:
        self._steward.kill(key, may_restart)
        return self._reply(number)

    def _list(self, number: int) -> Awaitable[None]:
        return self._reply(number, values=[[marshal.dumps(self._steward.list())]])

    def _call(self, number: int, key: int, method: str, said: tuple[Any, ...], parts: Any) -> Awaitable[None]:
        ref = self._refs[number] = self._steward.call(key, "call", (method, said[0], parts), 1, said)
        return self._answer(number, ref)

    async def _answer(self, number: int, ref: Any) -> None:
        try:
            await self._hand_on(number, ref)
        finally:
            self._refs.pop(number, None)

    async def _hand_on(self, number: int, ref: Awaitable[Any]) -> None:
        is_well, text, values = await ref
        if is_well:
            await self._reply(number, values=values)
        else:
            await self._fail(number, text, values[0])

    async def _cancel(self, _: int, number: int) -> None:
        if number in self._refs:
            cancel(self._refs[number])

    def _stream(self, number: int, key: int, method: str, said: tuple[Any, ...], parts: Any) -> Awaitable[None]:
        self._streams[number] = self._steward.call(key, "stream", (method, parts), "streaming", said)
        return self._reply(number)

    def _next(self, number: int, stream: int) -> Awaitable[None]:
        if stream not in self._streams:
            raise ClusterError("the stream has ended with the connection over which it was begun")
        return self._item(number, self._streams[stream])

    async def _item(self, number: int, stream: Any) -> None:
        async for ref in stream:
            await self._hand_on(number, ref)
            return
        await self._reply(number)

    async def _drop(self, _: int, stream: int) -> None:
        if stream in self._streams:
            self._streams.pop(stream).close()


KINDS = frozenset({"create", "find", "call", "stream", "next", "drop", "cancel", "kill", "list"})


async def run(local: Path, listener: socket.socket) -> None:
    """Until there is nothing to do, or it is told to end."""
    is_over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, is_over.set)
    register = Register(local / "actors.sqlite")
    steward = Steward(register)
    visits: set[Visit] = set()

    async def welcome(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visit = Visit(steward, reader, writer)
        visits.add(visit)
        try:
            await visit.run()
        finally:
            visits.remove(visit)

    server = await door.serve(listener, welcome)
    starting = loop.create_task(steward.start_again())
    used_at = headed_at = time.monotonic()
    while not is_over.is_set():
        try:
            await asyncio.wait_for(is_over.wait(), LOOK_SECONDS)
            break
        except asyncio.TimeoutError:
            pass
        if starting.done():
            starting.result()
            steward.look()
        now = time.monotonic()
        if visits or not steward.is_idle:
            used_at = now
        if door.has_head(local):
            headed_at = now
        if now - used_at > IDLE_SECONDS or now - headed_at > ORPHAN_SECONDS:
            break
    server.close()
    shutdown()
    register.end()


def main(arguments: list[str]) -> int:
    """`arguments`: JSON of the local directory, and the descriptor of the listening socket."""
    options = json.loads(arguments[0])
    local = Path(options["local"])
    lock = open(local / "steward.lock", "a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        door.report("there is a steward already")
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
