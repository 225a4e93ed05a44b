"""The envoy: an actor of each program that calls detached actors, which speaks to the steward for it."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque

from scaleout._runtime.cluster import door
from scaleout.detached.values import packed, unpacked
from scaleout.errors import ClusterError, RemoteTraceback, ResultUnpicklingError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from typing import Any


class Envoy:
    """The program calls its methods as those of any actor. `address` is the steward's.

    Each method asks before it waits for anything, so the calls of one caller reach the steward in their order.
    """

    CALLS = 1_000_000  # that may be under way at a time: none may keep others from the actor that they wait for

    def __init__(self, address: str) -> None:
        self._talk = Conversation(address)

    async def create(self, cls: type, options: dict[str, Any], /, *args: Any, **kwargs: Any) -> int:
        """Start an actor; its key."""
        facts, _ = await self._talk.ask(("create", options), [packed((cls, args, kwargs))]).answer()
        return int(facts[0])

    async def find(self, namespace: str, name: str) -> Any:
        """(key, options) of the living actor of this name, or None."""
        facts, _ = await self._talk.ask(("find", namespace, name)).answer()
        return facts[0]

    async def kill(self, key: int, may_restart: bool) -> None:
        await self._talk.ask(("kill", key, may_restart)).answer()

    async def call(self, key: int, method: str, said: tuple[Any, ...], /, *args: Any, **kwargs: Any) -> Any:
        """Call a method of an actor. `said`: (how many results, retries, time limit)."""
        question = self._talk.ask(("call", key, method, said), [packed((args, kwargs))])
        try:
            _, values = await question.answer()
        except asyncio.CancelledError:
            self._talk.tell(("cancel", question.number))
            raise
        results = tuple(map(unpacked, values))
        return results[0] if said[0] == 1 else results

    async def stream(
        self, key: int, method: str, said: tuple[Any, ...], /, *args: Any, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """The same of a method that yields. It is asked for each item, so that the actor is not further ahead of its
        consumer than streams are."""
        question = self._talk.ask(("stream", key, method, said), [packed((args, kwargs))])
        try:
            await question.answer()
            while True:
                _, values = await self._talk.ask(("next", question.number)).answer()
                if not values:
                    return
                yield unpacked(values[0])
        finally:
            self._talk.tell(("drop", question.number))


class Question:
    """What was asked, under its number."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.future: asyncio.Future[tuple[bool, list[Any], list[Any]]] = asyncio.get_running_loop().create_future()

    async def answer(self) -> tuple[list[Any], list[Any]]:
        """(facts, values); raises what the answer says, or ClusterError if there will be none."""
        is_well, facts, values = await self.future
        if not is_well:
            raise _exception_of(values[0]) from (RemoteTraceback(facts[0]) if facts[0] else None)
        return facts, values

    def fail(self, message: str) -> None:
        if not self.future.done():
            self.future.set_exception(ClusterError(message))
            self.future.exception()  # nobody may be waiting any more


def _exception_of(parts: Sequence[Any]) -> Exception:
    try:
        error = unpacked(parts)
    except Exception as reason:  # noqa: BLE001 - of the exception's own class
        return ResultUnpicklingError(f"an exception of a detached actor cannot be unpickled: {reason}")
    return error if isinstance(error, Exception) else RuntimeError(repr(error))


class Conversation:
    """With the steward: over a connection that is made when something is to be said, and anew when it has broken."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._numbers = itertools.count(1)
        self._unsaid: deque[tuple[tuple[Any, ...], Sequence[Any]]] = deque()
        self._is_speaking = False
        self._writer: asyncio.StreamWriter | None = None
        self._questions: dict[int, Question] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def ask(self, facts: tuple[Any, ...], values: Sequence[Any] = ()) -> Question:
        """Say it, after what was said before."""
        question = Question(next(self._numbers))
        self._questions[question.number] = question
        self._say((question.number, *facts), values)
        return question

    def tell(self, facts: tuple[Any, ...]) -> None:
        """What needs no answer; it is of what was said over this connection."""
        if self._writer is not None:
            self._say((0, *facts), ())

    def _say(self, facts: tuple[Any, ...], values: Sequence[Any]) -> None:
        self._unsaid.append((facts, values))
        if not self._is_speaking:
            self._is_speaking = True
            self._do(self._speak())

    def _do(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _speak(self) -> None:
        try:
            while self._unsaid:
                writer = self._writer or await self._connected()
                if writer is None:
                    continue
                facts, values = self._unsaid.popleft()
                try:
                    door.write(writer, facts, values)
                except ValueError as error:
                    self._questions.pop(facts[0]).fail(str(error))
                    continue
                try:
                    await writer.drain()
                except OSError:
                    self._lost(writer, "has ended")
        finally:
            self._is_speaking = False

    async def _connected(self) -> asyncio.StreamWriter | None:
        """A connection; if there is none to be had, nothing is left to be said."""
        try:
            try:
                reader, writer = await door.dial(self._address)
            except OSError:  # it may just have ended, having had nothing to do
                reader, writer = await door.dial(self._address)
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing will be heard
            reason = str(error) or type(error).__name__
            self._fail_all(f"the steward of detached actors at {self._address} cannot be reached: {reason}")
            return None
        self._writer = writer
        self._do(self._listen(reader, writer))
        return writer

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reason = "has ended"
        try:
            while True:
                (number, is_well, *facts), values = await door.read(reader)
                question = self._questions.pop(number, None)
                if question is not None and not question.future.done():
                    question.future.set_result((is_well, facts, values))
        except (EOFError, OSError):
            pass
        except Exception as error:  # noqa: BLE001 - nonsense
            reason = f"makes no sense: {error}"
        self._lost(writer, reason)

    def _lost(self, writer: asyncio.StreamWriter, reason: str) -> None:
        """Nothing more comes by this connection."""
        writer.close()
        if writer is self._writer:
            self._writer = None
            self._fail_all(
                f"the steward of detached actors at {self._address} {reason}; "
                "calls that were under way may have been made, or not"
            )

    def _fail_all(self, message: str) -> None:
        self._unsaid.clear()
        questions, self._questions = self._questions, {}
        for question in questions.values():
            question.fail(message)
