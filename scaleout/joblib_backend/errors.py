"""The errors of `scaleout.errors` as users of joblib catch them: each is loky's BrokenProcessPool too, and so
`concurrent.futures`' own; a worker's death is its TerminatedWorkerError."""

from __future__ import annotations

from joblib.externals.loky.process_executor import BrokenProcessPool, TerminatedWorkerError

from scaleout import errors


class WorkerDiedError(errors.WorkerDiedError, TerminatedWorkerError):
    """See `scaleout.errors.WorkerDiedError`. It ends the `Parallel` call; the next one finds workers as usual."""


class OutOfMemoryError(errors.OutOfMemoryError, WorkerDiedError):
    """See `scaleout.errors.OutOfMemoryError`."""


class TaskUnpicklingError(errors.TaskUnpicklingError, BrokenProcessPool):
    """See `scaleout.errors.TaskUnpicklingError`."""


class ResultUnpicklingError(errors.ResultUnpicklingError, BrokenProcessPool):
    """See `scaleout.errors.ResultUnpicklingError`."""


class InitializerError(errors.InitializerError, BrokenProcessPool):
    """See `scaleout.errors.InitializerError`; the first failure of an initializer ends the `Parallel` call."""


class NestingLimitError(errors.NestingLimitError, BrokenProcessPool):
    """See `scaleout.errors.NestingLimitError`."""


class ProcessLimitError(errors.ProcessLimitError, BrokenProcessPool):
    """See `scaleout.errors.ProcessLimitError`."""


class SessionClosedError(errors.SessionClosedError, BrokenProcessPool):
    """The workers were terminated before this call had a result."""
