"""A detached actor in its worker: what comes and goes is packed, so that its owner need not know what it is."""

from __future__ import annotations

import inspect
import traceback

from scaleout._runtime import session
from scaleout.detached.values import packed, unpacked
from scaleout.errors import ResultPicklingError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from typing import Any

    Outcome = tuple[bool, str, list[list[Any]]]
    """(whether it is the result, the traceback if it is an exception, the values, packed)"""


class Hosted:
    """One whose methods are plain functions. `parts` are of (its class, the arguments); in `namespace` it finds others
    by name."""

    def __init__(self, namespace: str, parts: Sequence[Any]) -> None:
        session.default_client().namespace = namespace
        try:
            cls, args, kwargs = unpacked(parts)
            self._actor = cls(*args, **kwargs)
        except Exception as error:
            raise RuntimeError(_named(error)) from error  # one that its owner knows, too

    def call(self, method: str, returns: int, parts: Sequence[Any]) -> Outcome:
        """A call of a method of the actor's, with packed (args, kwargs)."""
        try:
            args, kwargs = unpacked(parts)
            return _result(getattr(self._actor, method)(*args, **kwargs), returns)
        except SystemExit:
            raise
        except BaseException as error:  # noqa: BLE001 - the user's, handed on
            return _failure(error)

    def stream(self, method: str, parts: Sequence[Any]) -> Iterator[Outcome]:
        """The same of one that yields; an exception is the last item."""
        try:
            args, kwargs = unpacked(parts)
            for item in getattr(self._actor, method)(*args, **kwargs):
                yield _result(item, 1)
        except (SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001 - the user's, handed on
            yield _failure(error)

    def save_checkpoint(self) -> list[Any]:
        return packed(self._actor.save_checkpoint())

    def load_checkpoint(self, parts: Sequence[Any]) -> None:
        self._actor.load_checkpoint(unpacked(parts))


class HostedAsync(Hosted):
    """One that has `async def` methods."""

    async def call(self, method: str, returns: int, parts: Sequence[Any]) -> Outcome:  # type: ignore[override]
        try:
            args, kwargs = unpacked(parts)
            result = getattr(self._actor, method)(*args, **kwargs)
            if inspect.isawaitable(result):
                result = await result
            return _result(result, returns)
        except SystemExit:
            raise
        except BaseException as error:  # noqa: BLE001 - the user's, handed on
            return _failure(error)

    async def stream(self, method: str, parts: Sequence[Any]) -> AsyncIterator[Outcome]:  # type: ignore[override]
        try:
            args, kwargs = unpacked(parts)
            items = getattr(self._actor, method)(*args, **kwargs)
            if hasattr(items, "__aiter__"):
                async for item in items:
                    yield _result(item, 1)
            else:
                for item in items:
                    yield _result(item, 1)
        except (SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001 - the user's, handed on
            yield _failure(error)


def _result(value: Any, returns: int) -> Outcome:
    if returns == 1:
        return True, "", [packed(value)]
    values = () if value is None and not returns else tuple(value)
    if len(values) != returns:
        raise ValueError(f"it was to return {returns} values (num_returns) and has returned {len(values)}")
    return True, "", [packed(value) for value in values]


def _failure(error: BaseException) -> Outcome:
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    if not isinstance(error, Exception) or isinstance(error, (StopIteration, StopAsyncIteration)):
        error = RuntimeError(_named(error))  # what would mean something else to the loops on its way
    try:
        return False, text, [packed(error)]
    except Exception as reason:  # noqa: BLE001 - of anything in it
        instead = ResultPicklingError(f"the exception {type(error).__qualname__} cannot be pickled: {reason}")
        return False, text, [packed(instead)]


def _named(error: BaseException) -> str:
    return f"{type(error).__qualname__}: {error}"
