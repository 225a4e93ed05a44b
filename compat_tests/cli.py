"""The command line: run the suites with the running Python, merge the runs of several Pythons, list the surface."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

from compat_tests import nodes, report, suites, surface
from compat_tests.suite import ExclusionError, Suite, load_suite
from compat_tests.supervise import RunnerError, SuiteResult, Supervisor, runner_environ

OK, REGRESSION, CANNOT_RUN = 0, 1, 2
# The slowest, 200 workers, takes 9 s on two idle cores with the stdlib's Pool; machines of CI are slower and busier.
TIMEOUT_S = 120.0


def main(arguments: list[str]) -> int:
    """Entry point. Returns 0 if all is as expected, 1 on a regression, 2 if something could not be run."""
    if arguments[:1] == ["report"]:
        return _report(arguments[1:])
    if arguments[:1] == ["surface"]:
        return surface.main()
    return _run(_run_parser().parse_args(arguments))


def _run_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m compat_tests",
        description="Run the installed upstream suites against scaleout with this Python.",
        epilog="Also: `report RUN.json... [-o FILE]` merges runs into one table; `surface` lists missing names.",
    )
    parser.add_argument("--suite", action="append", default=[], metavar="NAME", help="only this suite (repeatable)")
    parser.add_argument(
        "-k", default="", metavar="PATTERN", help="only tests whose id contains PATTERN (or matches it, with *)"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the results here instead of docs/compatibility.md"
    )
    parser.add_argument(
        "--timeout", type=float, default=TIMEOUT_S, metavar="S", help="limit per test, seconds (default %(default)s)"
    )
    parser.add_argument(
        "--nodes", type=int, default=0, metavar="N", help="workers are those of a cluster of N nodes on this machine"
    )
    parser.add_argument(
        "--sabotage", action="store_true", help="make scaleout's class fail; report what passes nevertheless"
    )
    parser.add_argument(
        "--suite-module", action="append", default=[], help=argparse.SUPPRESS
    )  # the self-checks' own suites
    return parser


def _run(options: argparse.Namespace) -> int:
    try:
        return _run_suites(options)
    except (ExclusionError, RunnerError, nodes.NodesError, subprocess.TimeoutExpired) as error:
        print(error, file=sys.stderr)
        return CANNOT_RUN


def _run_suites(options: argparse.Namespace) -> int:
    if options.nodes == 1 or options.nodes < 0:
        print(f"--nodes takes 2 or more, not {options.nodes}", file=sys.stderr)
        return CANNOT_RUN
    modules = options.suite_module or list(suites.MODULES)
    chosen = [(module, load_suite(module)) for module in modules]
    unknown = set(options.suite) - {suite.name for _, suite in chosen}
    if unknown:
        print(f"no such suite: {', '.join(sorted(unknown))}", file=sys.stderr)
        return CANNOT_RUN
    chosen = [(module, suite) for module, suite in chosen if not options.suite or suite.name in options.suite]
    with nodes.running(options.nodes) if options.nodes else contextlib.nullcontext({}) as settings:
        supervisor = Supervisor(options.timeout, options.sabotage, _say, settings)
        results = [_run_one(supervisor, module, suite, _selector(options.k)) for module, suite in chosen]
    run = report.Run(report.this_python(), results, options.nodes)
    if options.sabotage:
        return _judge_sabotage(run)
    print(report.text(run))
    if options.json:
        report.write_json(run, options.json)
    elif not (options.suite or options.k or options.suite_module or options.nodes):
        report.DOCUMENT.write_text(report.markdown([run]), encoding="utf-8")
    if options.k and not any(result.passed or result.failed for result in results):
        print(f"no counted test matches {options.k!r}", file=sys.stderr)
        return CANNOT_RUN
    return REGRESSION if any(result.is_regression for result in results) else OK


def _run_one(supervisor: Supervisor, module: str, suite: Suite, wanted: Callable[[str], bool]) -> SuiteResult:
    _say(f"{suite.name} ({suite.upstream})")
    if not _is_installed(suite.upstream):
        return SuiteResult(
            suite.name, skipped=f"{suite.upstream} is not installed with this Python: {suite.where_to_get}"
        )
    if supervisor.is_on_nodes and not suite.uses_workers:
        return SuiteResult(suite.name, skipped="it needs no workers")
    if suite.script_probe:
        _require_script_import(suite.script_probe)
    return supervisor.run_suite(module, suite, wanted)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _require_script_import(script: str) -> None:
    """Upstream runs scripts with ``python -I``: there too, the class must be scaleout's and from the same files."""

    def run(*flags: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *flags, "-c", script]
        with tempfile.TemporaryDirectory() as elsewhere:  # as the tests: not where this tree is found by itself
            return subprocess.run(
                command, cwd=elsewhere, env=runner_environ(), capture_output=True, text=True, timeout=60
            )

    here, isolated = run(), run("-I")
    if here.returncode:
        raise RunnerError(f"scaleout does not work here:\n{here.stderr}")
    if isolated.stdout != here.stdout:
        there = isolated.stdout.strip() or isolated.stderr.strip().rpartition("\n")[2]
        raise RunnerError(
            f"scaleout is {here.stdout.strip()}, but with `{sys.executable} -I`, as scripts of the suites are run, "
            f"it is: {there}. Install the project: pip install -e ."
        )
    if not here.stdout.startswith("scaleout."):
        raise RunnerError(f"a script that imports scaleout's class gets another: {here.stdout.strip()}")


def _selector(pattern: str) -> Callable[[str], bool]:
    if any(character in pattern for character in "*?["):
        return lambda test: fnmatchcase(test, pattern)
    return lambda test: pattern in test


def _judge_sabotage(run: report.Run) -> int:
    passed = [(suite.name, test) for suite in run.suites for test in suite.passed]
    for name, test in passed:
        print(f"FALSE PASS {name}: {test} passes although scaleout's class always fails")
    print(f"{sum(len(suite.failed) for suite in run.suites)} failed as they should, {len(passed)} false passes")
    return REGRESSION if passed else OK


def _report(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m compat_tests report", description="Merge runs into one table.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN.json")
    parser.add_argument(
        "-o", "--output", type=Path, default=report.DOCUMENT, metavar="FILE", help="default: %(default)s"
    )
    options = parser.parse_args(arguments)
    runs = [report.read_json(path) for path in options.runs]
    options.output.write_text(report.markdown(runs), encoding="utf-8")
    for run in runs:
        print(report.text(run))
    return REGRESSION if any(suite.is_regression for run in runs for suite in run.suites) else OK


def _say(line: str) -> None:
    print(line, flush=True)
