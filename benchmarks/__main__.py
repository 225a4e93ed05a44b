"""The command line: `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from pathlib import Path

from benchmarks import report
from benchmarks.registry import EXPERIMENTS, ROW_NAMES
from benchmarks.runner import Outcome, run

FULL_REPEAT, QUICK_REPEAT = 5, 3
BUSY_LOAD = 0.5  # processes that were already running, on average over a minute


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="scaleout beside its peers, row by row")
    parser.add_argument("--rows", metavar="A,B", help=f"only these rows, of: {', '.join(ROW_NAMES)}")
    parser.add_argument("--repeat", type=int, metavar="N", help="repetitions (default 5; quick 3)")
    parser.add_argument("--quick", action="store_true", help="smaller sizes: verdicts are rough")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page there")
    arguments = parser.parse_args()
    arguments.rows = arguments.rows.split(",") if arguments.rows else ROW_NAMES
    unknown = sorted(set(arguments.rows) - set(ROW_NAMES))
    if unknown:
        parser.error(f"no such row: {', '.join(unknown)}; there are: {', '.join(ROW_NAMES)}")
    if arguments.repeat is None:
        arguments.repeat = QUICK_REPEAT if arguments.quick else FULL_REPEAT
    if arguments.repeat < 1:
        parser.error("--repeat takes a number of at least 1")
    return arguments


def main() -> int:
    """0, also when bars are missed; 1 when a contender failed outright."""
    arguments = _arguments()
    words = sys.argv[1:]
    if "--json" in words:  # where the samples went is of no use to a reader
        del words[words.index("--json") : words.index("--json") + 2]
    command = shlex.join(["python", "-m", "benchmarks", *words])
    experiments = [e for e in EXPERIMENTS if any(r.name in arguments.rows for r in e.rows)]
    outcomes: dict[str, dict[str, Outcome]] = {}
    start = time.monotonic()
    load = os.getloadavg()[0]
    for number, experiment in enumerate(experiments, 1):

        def say(what: str, where: str = f"[{number}/{len(experiments)}] {experiment.name}") -> None:
            if sys.stderr.isatty():
                print(f"\r\x1b[K{where}: {what}", end="", file=sys.stderr, flush=True)

        experiment_start = time.monotonic()
        outcomes[experiment.name] = run(experiment, arguments.repeat, arguments.quick, say)
        say(f"{time.monotonic() - experiment_start:.0f} s\n")
    lines = [
        report.line_of(row, outcomes[experiment.name])
        for experiment in experiments
        for row in experiment.rows
        if row.name in arguments.rows
    ]
    notes = report.notes(outcomes)
    if arguments.quick:
        notes.insert(0, "quick run: sizes and repetitions are smaller than the table says")
    if load > BUSY_LOAD:
        notes.insert(0, f"the machine was busy at the start (load {load:.1f}): even ratios are unsure")
    print(*report.machine(), report.as_text(report.table(lines)), sep="\n")
    print(f"{report.summary(lines)}; {time.monotonic() - start:.0f} s", *notes, sep="\n")
    if arguments.json:
        arguments.json.write_text(report.as_json(lines, experiments, outcomes, command) + "\n")
    if arguments.write:
        arguments.write.parent.mkdir(parents=True, exist_ok=True)
        arguments.write.write_text(report.as_page(lines, notes, command, arguments.repeat))
    any_failed = any(o.failed is not None for by_key in outcomes.values() for o in by_key.values())
    return 1 if any_failed else 0


if __name__ == "__main__":
    sys.exit(main())
