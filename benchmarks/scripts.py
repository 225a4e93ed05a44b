"""Generated driver programs: what a user would write, free of anything of this package."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def script_directory(files: Mapping[str, str]) -> Iterator[Path]:
    """A temporary directory with these files: name -> source."""
    with tempfile.TemporaryDirectory(prefix="scaleout-benchmarks-") as name:
        directory = Path(name)
        for file_name, source in files.items():
            (directory / file_name).write_text(source)
        yield directory


def whole_process_s(*arguments: str) -> float:
    """Wall time of `python ARGUMENTS`, from start to exit; raises if it fails."""
    start = time.perf_counter()
    process = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    elapsed_s = time.perf_counter() - start
    if process.returncode != 0:
        raise RuntimeError(f"exit status {process.returncode}: {process.stderr.strip()[-500:]}")
    return elapsed_s


class ScriptProcess:
    """A running script that answers each line on its stdin with one line on its stdout."""

    def __init__(self, script: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def ask(self, question: str) -> str:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the script ended at {question!r}, status {self._process.wait()}")
        return answer.strip()

    def __enter__(self) -> ScriptProcess:
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
