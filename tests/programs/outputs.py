"""The programs in `examples/`, and how the tests here run programs."""

from __future__ import annotations

from pathlib import Path

from programs import running

ENDS_IN_S = 90.0
"""A program that imports pandas three times takes seconds on an idle machine; below the hang guard's 120."""

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"


def output_of(script: str | Path, directory: Path, *arguments: str, **environ: str) -> tuple[str, str]:
    """What a program prints to stdout and stderr. It must succeed, and leave no process or temporary file."""
    with running(script, directory, *arguments, **environ) as program:
        assert program.finish(ENDS_IN_S) == 0, program.stdout + program.stderr
        program.check_nothing_left()
        return program.stdout, program.stderr
