"""Runs experiments: a process per contender, repetitions taken in turn."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.model import Contender, Experiment, Sample
from benchmarks.peers import why_missing

ROOT = Path(__file__).resolve().parent.parent
SAMPLE_TIMEOUT_S = 300  # far above any sample; so that a hang becomes a failed contender
EXIT_TIMEOUT_S = 20


@dataclass
class Outcome:
    """What became of one contender: its samples, or why there are none (or no more)."""

    samples: list[Sample] = field(default_factory=list)
    skipped: str | None = None
    failed: str | None = None

    @property
    def is_running(self) -> bool:
        return self.skipped is None and self.failed is None


class ContenderFailed(Exception):
    """A measuring process raised, ended or fell silent; the message says which."""


def run(experiment: Experiment, repeat: int, is_quick: bool, say: Callable[[str], None]) -> dict[str, Outcome]:
    """Outcomes by contender key. Never raises for what a contender does."""
    outcomes = {c.key: Outcome(skipped=_why_missing_cached(c.peer)) for c in experiment.contenders}
    rounds = repeat * experiment.repeat_factor
    take = _take_isolated if experiment.is_isolated else _take_in_one_process_each
    take(experiment, outcomes, rounds, is_quick, say)
    return outcomes


_missing: dict[str, str | None] = {}


def _why_missing_cached(peer: str) -> str | None:
    if peer not in _missing:
        _missing[peer] = why_missing(peer)
    return _missing[peer]


def _take_in_one_process_each(
    experiment: Experiment,
    outcomes: dict[str, Outcome],
    rounds: int,
    is_quick: bool,
    say: Callable[[str], None],
) -> None:
    with ExitStack() as stack:
        processes: dict[str, MeasuringProcess] = {}
        for contender in experiment.contenders:
            if outcomes[contender.key].is_running:
                say(f"{contender.key}: set up")
                process = MeasuringProcess(experiment, contender, is_quick)
                processes[contender.key] = stack.enter_context(process)
                if experiment.has_warm_up:
                    _sample_into(outcomes[contender.key], process, is_kept=False)
        for number in range(rounds):
            for key, process in processes.items():
                if outcomes[key].is_running:
                    say(f"{key}: {number + 1} of {rounds}")
                    _sample_into(outcomes[key], process)


def _take_isolated(
    experiment: Experiment,
    outcomes: dict[str, Outcome],
    rounds: int,
    is_quick: bool,
    say: Callable[[str], None],
) -> None:
    for number in range(rounds):
        for contender in experiment.contenders:
            if outcomes[contender.key].is_running:
                say(f"{contender.key}: {number + 1} of {rounds}")
                with MeasuringProcess(experiment, contender, is_quick) as process:
                    _sample_into(outcomes[contender.key], process)


def _sample_into(outcome: Outcome, process: MeasuringProcess, is_kept: bool = True) -> None:
    try:
        sample = process.sample()
    except ContenderFailed as failure:
        outcome.failed = str(failure)
    else:
        if is_kept:
            outcome.samples.append(sample)


class MeasuringProcess:
    """`python -m benchmarks.measure ...` in a process group of its own, which ends with it."""

    def __init__(self, experiment: Experiment, contender: Contender, is_quick: bool) -> None:
        command = [sys.executable, "-m", "benchmarks.measure", experiment.name, contender.key]
        self._stderr = tempfile.TemporaryFile(mode="w+", errors="replace")
        self._process = subprocess.Popen(
            [*command, "quick" if is_quick else "full"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            cwd=ROOT,
            env=_environment(),
            start_new_session=True,
        )

    def sample(self) -> Sample:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write("sample\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ContenderFailed(f"ended: {self._last_words()}") from None
        if not select.select([self._process.stdout], [], [], SAMPLE_TIMEOUT_S)[0]:
            raise ContenderFailed(f"no answer in {SAMPLE_TIMEOUT_S} s")
        line = self._process.stdout.readline()
        if not line:
            raise ContenderFailed(f"ended: {self._last_words()}")
        answer: dict[str, float] = json.loads(line)
        if "error" in answer:
            raise ContenderFailed(str(answer["error"]))
        return answer

    def _last_words(self) -> str:
        """The exit status, if it has one yet, and the last line on its stderr."""
        self._stderr.seek(0)
        line = (self._stderr.read().strip().splitlines() or ["no message"])[-1]
        ended = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        return f"status {ended.si_status}, {line}" if ended else line

    def __enter__(self) -> MeasuringProcess:
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        # Looked at without being reaped, so that its group's number is still its own.
        waiting = os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG
        deadline = time.monotonic() + EXIT_TIMEOUT_S
        while os.waitid(*waiting) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process.stdout.close()
        self._stderr.close()


def _environment() -> dict[str, str]:
    """Generated scripts find the checkout; every contender pays for the same sys.path."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    paths = [str(ROOT), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return environment
