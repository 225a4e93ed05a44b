"""What a suite is: where upstream's tests are, which of them count, and which are excluded and why.

Every installed test is in exactly one of three groups: counted (must pass), excluded (one line with a reason in
the suite's checked-in file), or not yet provided (what it tests is re-exported from the standard library, so its
passing would say nothing about scaleout; it is not run).
"""

from __future__ import annotations

import fnmatch
import importlib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

HERE = "here"  # our class must be constructed in the test process, by the test or by its setUpClass
CHILD = "child"  # our class must be constructed and finish its work in a child process
SCRIPT = "script"  # the test runs a rewritten script in a fresh interpreter; proved by the sabotaged run

FAILS = "fails:"
ALL_PARAMETERS = "[*]"

_EXCLUSION = re.compile(
    r"^(?P<test>\S+)\s+(?:\[>=(?P<major>\d+)\.(?P<minor>\d+)\]\s+)?(?P<nodes>\[nodes\]\s+)?--\s*(?P<reason>.*)$"
)


class ExclusionError(Exception):
    """The exclusions file cannot be used as it stands."""


@dataclass(frozen=True)
class Counted:
    """Tests that must pass. ``pattern`` is ``Class.test``, with ``*``; it must match on Python >= ``since``."""

    pattern: str
    evidence: str = HERE
    since: tuple[int, int] = (3, 10)


@dataclass(frozen=True)
class Exclusion:
    """One line of an exclusions file. A reason that starts with ``fails:`` is checked by running the test. A test that
    ends with ``[*]`` stands for all sets of parameters."""

    test: str
    reason: str
    since: tuple[int, int] = (3, 10)
    on_nodes_only: bool = False

    def matches(self, test: str) -> bool:
        """Whether the line is about the test of this id."""
        if self.test.endswith(ALL_PARAMETERS):
            return test.startswith(self.test[: -len(ALL_PARAMETERS)] + "[")
        return test == self.test

    @property
    def must_fail(self) -> bool:
        """True when the reason claims that the test fails."""
        return self.reason.startswith(FAILS)


@dataclass(frozen=True)
class Suite:
    """One upstream suite."""

    name: str
    upstream: str  # the installed module
    module: str  # our module that holds its redirected classes
    counted: tuple[Counted, ...]
    exclusions_file: Path
    where_to_get: str
    script_probe: str | None  # prints the class that upstream's scripts get, and its file; None if it runs none
    runner: str = "compat_tests.runner"  # the module that runs the tests
    environ: Mapping[str, str] = field(default_factory=dict)  # of the runner and all that it starts
    first_on_path: Path | None = None  # likewise
    uses_workers: bool = True  # else there is nothing in it to be tried on nodes
    at_least: int | None = None  # so many tests must use scaleout and pass; one that does not use it is then no failure

    def exclusions(self) -> list[Exclusion]:
        """The parsed exclusions file."""
        return parse_exclusions(self.exclusions_file)

    def counted_as(self, test: str) -> Counted | None:
        """The entry that makes ``test`` count, if any; the first that matches."""
        return next((entry for entry in self.counted if fnmatch.fnmatchcase(test, entry.pattern)), None)


@dataclass(frozen=True)
class Plan:
    """The installed tests of one suite, sorted into the groups, and what is wrong with the lists."""

    counted: tuple[str, ...]
    excluded: tuple[Exclusion, ...]
    not_provided: tuple[str, ...]
    problems: tuple[str, ...]


def load_suite(module: str) -> Suite:
    """The ``SUITE`` of a suite module."""
    suite = importlib.import_module(module).SUITE
    if not isinstance(suite, Suite):
        raise TypeError(f"{module}.SUITE is not a Suite")
    return suite


def parse_exclusions(path: Path) -> list[Exclusion]:
    """Read ``test id [>=3.13] [nodes] -- reason`` lines; with ``[nodes]`` the test is excluded only where workers are
    those of a cluster's nodes. Blank lines and lines that start with ``#`` are skipped."""
    exclusions: list[Exclusion] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = _EXCLUSION.match(text)
        if match is None or not match["reason"].removeprefix(FAILS).strip():
            raise ExclusionError(
                f"{path}:{number}: an exclusion is `test id -- reason`, and the reason is required: {text!r}"
            )
        if any(match["test"] == exclusion.test for exclusion in exclusions):
            raise ExclusionError(f"{path}:{number}: {match['test']} is excluded twice")
        since = (int(match["major"]), int(match["minor"])) if match["major"] else (3, 10)
        exclusions.append(Exclusion(match["test"], match["reason"].strip(), since, bool(match["nodes"])))
    return exclusions


def plan(
    suite: Suite, installed: list[str], version: tuple[int, int] = sys.version_info[:2], on_nodes: bool = False
) -> Plan:
    """Sort the ``installed`` test ids of ``suite`` for a Python ``version``, and for workers of a cluster's nodes."""
    problems: list[str] = []
    excluded: dict[str, Exclusion] = {}
    for exclusion in suite.exclusions():
        if exclusion.on_nodes_only and not on_nodes:
            continue
        found = [test for test in installed if exclusion.matches(test)]
        excluded.update((test, replace(exclusion, test=test)) for test in found)
        if not found and version >= exclusion.since:
            problems.append(f"{exclusion.test} is excluded but no such test is installed: remove the line")
    for entry in suite.counted:
        if version >= entry.since and not fnmatch.filter(installed, entry.pattern):
            problems.append(f"{entry.pattern} counts but no such test is installed")
    counted = [test for test in installed if test not in excluded and suite.counted_as(test)]
    others = [test for test in installed if test not in excluded and not suite.counted_as(test)]
    return Plan(tuple(counted), tuple(excluded.values()), tuple(others), tuple(problems))
