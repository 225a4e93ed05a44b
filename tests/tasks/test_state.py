"""Looking inside: lists and the trace."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from faults import note, notes, wait_until

import scaleout


@scaleout.remote
def wait_at(path: str, log: str) -> None:
    note(log, os.getpid())
    with open(path):
        pass


@scaleout.remote
def add(a: int, b: int) -> int:
    return a + b


@scaleout.remote(name="keeper")
class Keeper:
    def get(self) -> int:
        return 1

    def die(self) -> None:
        os._exit(1)


def states() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for task in scaleout.list_tasks():
        found.setdefault(task["name"], []).append(task["state"])
    return found


def test_tasks(one_slot: None, tmp_path: Path) -> None:
    gate, log = str(tmp_path / "gate"), str(tmp_path / "log")
    os.mkfifo(gate)
    running = wait_at.remote(gate, log)
    pending, dependent = add.options(name="pending").remote(1, 2), add.options(name="dependent").remote(1, running)
    cancelled = add.options(name="cancelled").remote(1, 2)
    scaleout.cancel(cancelled)
    wait_until(lambda: notes(log))
    assert states() == {
        "wait_at": ["RUNNING"],
        "pending": ["PENDING"],
        "dependent": ["WAITING"],
        "cancelled": ["CANCELLED"],
    }
    (task,) = [task for task in scaleout.list_tasks() if task["state"] == "RUNNING"]
    assert task["pid"] == int(notes(log)[0])
    assert task["id"] == running.hex()
    with open(gate, "w"):
        pass
    scaleout.get(pending)
    with pytest.raises(TypeError):
        scaleout.get(dependent)
    found = states()
    assert (found["pending"], found["dependent"]) == (["FINISHED"], ["FAILED"])
    failed = scaleout.remote(max_retries=0, name="dies")(os._exit).remote(1)
    scaleout.wait([failed])
    late = scaleout.remote(timeout_s=0.05, name="late")(__import__("time").sleep).remote(60)
    scaleout.wait([late])
    found = states()
    assert (found["dies"], found["late"]) == (["FAILED"], ["FAILED"])


def test_sync_calls_are_seen_too() -> None:
    for number in range(20):
        scaleout.get(add.remote(number, 1))
    assert states()["add"] == ["FINISHED"] * 20


def test_actors() -> None:
    keeper = Keeper.remote()
    scaleout.get(keeper.get.remote())
    (found,) = scaleout.list_actors()
    assert (found["class_name"], found["name"], found["state"], found["restarts"]) == ("Keeper", "keeper", "ALIVE", 0)
    scaleout.wait([keeper.die.remote()])
    wait_until(lambda: scaleout.list_actors()[0]["state"] == "DEAD")
    assert "exit code 1" in scaleout.list_actors()[0]["death"]
    assert {task["type"] for task in scaleout.list_tasks()} == {"actor call"}


def test_objects() -> None:
    small, large, failed = scaleout.put(1), scaleout.put("x" * 1_000_000), scaleout.remote(lambda: 1 / 0).remote()
    scaleout.wait([failed])
    found = {entry["id"]: entry for entry in scaleout.list_objects()}
    assert len(found) == 3
    assert found[small.hex()]["is_stored"] is False
    assert (found[large.hex()]["is_stored"], found[large.hex()]["size_bytes"] >= 1_000_000) == (True, True)
    assert found[failed.hex()]["state"] == "FAILED"


def test_timeline(tmp_path: Path) -> None:
    scaleout.get([add.remote(number, 1) for number in range(30)])
    scaleout.get(scaleout.put("x" * 1_000_000))
    path = tmp_path / "trace.json"
    count = scaleout.timeline(str(path))
    trace = json.loads(path.read_text())
    spans = trace["traceEvents"]
    assert len(spans) == count
    for kind in ("submit", "queue", "run"):
        found = [span for span in spans if span.get("cat") == kind and span["name"] == "add"]
        assert len(found) == 30
        assert all(span["ph"] == "X" and span["dur"] >= 0 and span["ts"] > 0 for span in found)
    runs = {span["args"]["id"]: span for span in spans if span.get("cat") == "run"}
    for span in spans:
        if span.get("cat") == "queue":
            assert span["ts"] + span["dur"] == pytest.approx(runs[span["args"]["id"]]["ts"], abs=1)
    assert {span["pid"] for span in runs.values()} <= {task["pid"] for task in scaleout.list_tasks()}


def test_history_is_bounded() -> None:
    for _ in range(3):
        scaleout.get([add.remote(number, 1) for number in range(4000)])
    assert len(scaleout.list_tasks()) == 10_000
