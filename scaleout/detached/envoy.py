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

    CALLS = 10_000  # that may be under way at a time

    def __init__(self, address: str) -> None:
        self._line = Line(address)

    async def create(self, cls: type, options: dict[str, Any], /, *args: Any, **kwargs: Any) -> int:
        """Start an actor; its key."""
        facts, _ = await self._line.ask(("create", options), [packed((cls, args, kwargs))])
        return int(facts[0])

    async def find(self, namespace: str, name: str) -> Any:
        """(key, options) of the living actor of this name, or None."""
        facts, _ = await self._line.ask(("find", namespace, name))
        return facts[0]

    async def kill(self, key: int, may_restart: bool) -> None:
        await self._line.ask(("kill", key, may_restart))

    async def call(self, key: int, method: str, said: tuple[Any, ...], /, *args: Any, **kwargs: Any) -> Any:
        """Call a method of an actor. `said`: (how many results, retries, time limit)."""
        question = self._line.ask(("call", key, method, said), [packed((args, kwargs))])
        try:
            _, values = await question
        except asyncio.CancelledError:
            self._line.tell(("cancel", question.number))
            raise
        results = tuple(map(unpacked, values))
        return results[0] if said[0] == 1 else results

    async def stream(
        self, key: int, method: str, said: tuple[Any, ...], /, *args: Any, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """The same of a method that yields. Asks for each item: so the actor is as far ahead of its consumer as
        streams are."""
        question = self._line.ask(("stream", key, method, said), [packed((args, kwargs))])
        try:
            await question
            while True:
                _, values = await self._line.ask(("next", question.number))
                if not values:
                    return
                yield unpacked(values[0])
        finally:
            self._line.tell(("drop", question.number))


class Question(asyncio.Future):
    """Its answer is (facts, values)."""

    number: int


class Line:
    """A connection to the steward: made when something is to be said, and anew when it has broken."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._numbers = itertools.count(1)
        self._unsaid: deque[tuple[tuple[Any, ...], Sequence[Any]]] = deque()
        self._is_speaking = False
        self._writer: asyncio.StreamWriter | None = None
        self._questions: dict[int, Question] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def ask(self, facts: tuple[Any, ...], values: Sequence[Any] = ()) -> Question:
        """Say it, after what was said before; the question can be awaited. ClusterError if the steward is gone."""
        question = Question()
        question.number = next(self._numbers)
        self._questions[question.number] = question
        self._say((question.number, *facts), values)
        return question

    def tell(self, facts: tuple[Any, ...]) -> None:
        """What needs no answer."""
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
                if self._writer is None:
                    reader, self._writer = await door.dial(self._address)
                    self._do(self._listen(reader, self._writer))
                facts, values = self._unsaid.popleft()
                try:
                    door.write(self._writer, facts, values)
                except ValueError as error:
                    self._questions.pop(facts[0]).set_exception(error)
                    continue
                await self._writer.drain()
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing will be heard
            self._lost(self._writer, f"the steward of detached actors at {self._address} cannot be reached: {error}")
        finally:
            self._is_speaking = False

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reason = "has ended"
        try:
            while True:
                (number, is_well, *facts), values = await door.read(reader)
                question = self._questions.pop(number, None)
                if question is None or question.done():
                    continue
                if is_well:
                    question.set_result((facts, values))
                else:
                    question.set_exception(_exception_of(facts[0], values[0]))
        except (EOFError, OSError):
            pass
        except Exception as error:  # noqa: BLE001 - nonsense
            reason = f"makes no sense: {error}"
        self._lost(writer, f"the steward of detached actors at {self._address} {reason}; the call may have been made")

    def _lost(self, writer: asyncio.StreamWriter | None, message: str) -> None:
        """Nothing more comes by this connection."""
        if writer is not self._writer:
            return
        self._writer = None
        if writer is not None:
            writer.close()
        self._unsaid.clear()
        questions, self._questions = self._questions, {}
        for question in questions.values():
            if not question.done():
                question.set_exception(ClusterError(message))


def _exception_of(text: str, parts: Sequence[Any]) -> BaseException:
    try:
        error: BaseException = unpacked(parts)
    except Exception as reason:  # noqa: BLE001 - of the exception's own class
        error = ResultUnpicklingError(f"an exception of a detached actor cannot be unpickled: {reason}")
    if text:
        error.__cause__ = RemoteTraceback(text)
    return error
