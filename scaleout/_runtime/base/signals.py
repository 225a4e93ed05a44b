"""How a process ended, in words."""

from __future__ import annotations

import signal


def exit_text(exitcode: int | None) -> str:
    """
    >>> exit_text(-9), exit_text(3), exit_text(None)
    ('signal 9 (SIGKILL)', 'exit code 3', 'an unknown exit status')
    """
    if exitcode is None:
        return "an unknown exit status"
    if exitcode >= 0:
        return f"exit code {exitcode}"
    try:
        return f"signal {-exitcode} ({signal.Signals(-exitcode).name})"
    except ValueError:
        return f"signal {-exitcode}"
