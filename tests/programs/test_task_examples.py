"""The examples of tasks, actors and objects: what they print is right, also when one of their workers is killed.

Which worker, and when, comes from a seed: the moment is a share of the time from the first worker to the end, as
long as that was when nobody was killed.
"""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from faults import kill, wait_until
from outputs import ENDS_IN_S, EXAMPLES
from programs import Program, parent_of, running

NEEDED = {
    "hyperparameter_search": ["sklearn.datasets"],
    "model_server": ["sklearn.datasets", "starlette", "uvicorn"],
    "parameter_server": ["sklearn.datasets"],
    "reinforcement_learning": [],
    "streaming_pipeline": [],
    "tree_reduce": [],
}
LAST_LINES = {
    "hyperparameter_search": "the best network is right about ",
    "model_server": "297 requests, 94.6% of the answers are right",
    "parameter_server": "asynchronous, one server and four: right about more than 87 % of the digits",
    "reinforcement_learning": "the learned policy keeps it up for 200 of 200 steps",
    "streaming_pipeline": "each file as 32 numbers",
    "tree_reduce": " words: self ",
}
MOST_LINES = 79

Plain = Callable[[str], tuple[str, float]]


def start(name: str, directory: Path) -> AbstractContextManager[Program]:
    for module in NEEDED[name]:
        pytest.importorskip(module, reason=f"{name}.py imports it")
    return running(EXAMPLES / f"{name}.py", directory)


def workers_of(program: Program) -> list[int]:
    """The processes whose parent, the zygote, is the program's child."""
    found = []
    for pid in program.processes():
        try:
            if pid != program.pid and parent_of(parent_of(pid)) == program.pid:
                found.append(pid)
        except OSError:
            continue  # it is gone
    return found


def wait_for_workers(program: Program) -> None:
    wait_until(lambda: workers_of(program) or program.process.poll() is not None, "there are workers", ENDS_IN_S)


def finish(program: Program) -> str:
    """What it has printed. It has ended well, quietly, and left nothing."""
    assert program.finish(ENDS_IN_S) == 0, program.stdout + program.stderr
    assert program.stderr == ""
    program.check_nothing_left()
    return program.stdout


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Plain:
    """What an example prints, and how many seconds it has workers, when nobody is killed. Found out once for each."""
    known: dict[str, tuple[str, float]] = {}

    def run(name: str) -> tuple[str, float]:
        if name not in known:
            with start(name, tmp_path_factory.mktemp(name)) as program:
                wait_for_workers(program)
                started = time.monotonic()
                stdout = finish(program)
                known[name] = stdout, time.monotonic() - started
        return known[name]

    return run


@pytest.mark.parametrize("name", NEEDED)
def test_the_result_is_right(name: str, plain: Plain) -> None:
    stdout, _ = plain(name)
    assert LAST_LINES[name] in stdout.splitlines()[-1]


@pytest.mark.parametrize("name", NEEDED)
def test_it_is_short_and_says_its_command(name: str) -> None:
    text = (EXAMPLES / f"{name}.py").read_text()
    assert text.count("\n") <= MOST_LINES
    assert f"\n    python examples/{name}.py\n" in text.split('"""')[1]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", NEEDED)
def test_with_a_worker_killed_the_result_is_the_same(name: str, seed: int, plain: Plain, tmp_path: Path) -> None:
    expected, lasted_s = plain(name)
    rng = random.Random(f"{name} {seed}")
    after_s = rng.uniform(0.02, 0.9) * lasted_s
    while True:
        with start(name, tmp_path) as program:
            wait_for_workers(program)
            is_killed = kill_one(program, after_s, rng)
            assert finish(program) == expected
        if is_killed:
            break
        after_s /= 2  # it was faster this time


def kill_one(program: Program, after_s: float, rng: random.Random) -> bool:
    """Whether there was one to kill then."""
    try:
        program.process.wait(after_s)
    except subprocess.TimeoutExpired:
        pass
    workers = workers_of(program)
    if not workers:
        return False
    kill(rng.choice(workers))
    return True
