"""The errors of `scaleout.errors` that users of executors catch as BrokenProcessPool: each is both.

Imported when the first of them is raised, as `concurrent.futures.process` takes 18 ms to import.
"""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool

from scaleout import errors


class WorkerDiedError(errors.WorkerDiedError, BrokenProcessPool):
    """See `scaleout.errors.WorkerDiedError`. Only this call has failed: the executor goes on."""


class OutOfMemoryError(errors.OutOfMemoryError, WorkerDiedError):
    """See `scaleout.errors.OutOfMemoryError`."""


class TaskUnpicklingError(errors.TaskUnpicklingError, BrokenProcessPool):
    """See `scaleout.errors.TaskUnpicklingError`."""


class ResultUnpicklingError(errors.ResultUnpicklingError, BrokenProcessPool):
    """See `scaleout.errors.ResultUnpicklingError`."""


class InitializerError(errors.InitializerError, BrokenProcessPool):
    """See `scaleout.errors.InitializerError`; an executor is broken by the first failure of its initializer."""


class NestingLimitError(errors.NestingLimitError, BrokenProcessPool):
    """See `scaleout.errors.NestingLimitError`."""


class ProcessLimitError(errors.ProcessLimitError, BrokenProcessPool):
    """See `scaleout.errors.ProcessLimitError`."""


class SessionClosedError(errors.SessionClosedError, BrokenProcessPool):
    """The executor's workers were terminated while, or before, this result was awaited."""
