"""What all shims say of a failed call; the exception's class is the shim's."""

from __future__ import annotations

from scaleout._runtime.base.signals import exit_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from scaleout._runtime.client.outcomes import Failure


def story_of_death(failure: Failure, first_index: int | None) -> tuple[str, dict[str, Any]]:
    """(message, attributes) for a call whose workers died; `first_index`: the position of its first item, if any."""
    facts = dict(failure.facts)
    pid = facts.pop("pid", None)
    usage = facts.get("usage")
    index = facts.get("item_index")
    if first_index is not None:
        index = first_index + (index or 0) if index is not None else first_index
    facts["item_index"] = index
    attempts = facts["attempts"]
    item = facts.pop("label", "") or ("the call" if index is None else f"item {index}")
    message = (
        f"the worker (pid {pid}) that ran {item} died with {exit_text(facts['exitcode'])}; "
        f"it was started {attempts} time{'s' if attempts != 1 else ''} and every worker that ran it died"
    )
    if usage:
        shown = ", ".join(f"{size >> 20} MiB in {worker}" for worker, size in sorted(usage.items()))
        message += f"; memory had run short, the workers held {shown}"
    return message, facts


def story_of_refusal(failure: Failure) -> tuple[str, str]:
    """(name of the error, message) for a group that could not start a single worker."""
    reason = failure.facts[1]
    if reason == "depth":
        return (
            "NestingLimitError",
            "a Pool inside a Pool inside ... : more than 5 levels; most likely a recursion without an end",
        )
    if reason == "processes":
        reason = "the limit of SCALEOUT_MAX_PROCESSES worker processes is reached"
    return "ProcessLimitError", f"no worker could be started: {reason}"


def text_of(error: BaseException | None) -> str:
    """What an exception of the user's says of itself, if it can."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - a __str__ of the user's
        return f"{type(error).__name__}, which cannot be shown"
