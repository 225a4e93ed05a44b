"""What holds for every test: it ends, and it leaves nothing behind.

- **Hang guard.** A test that runs longer than `HANG_AFTER_S` (`SLOW_HANG_AFTER_S` with the marker `slow`) gets the
  stacks of all its threads printed and its process ended. faulthandler does it from a C thread, so it works while the
  interpreter is stuck in C or holds a lock. Under pytest-xdist the test is reported as one that crashed its process,
  and the others go on.
- **Leak guard.** What the process holds (threads, descendants, file descriptors, /dev/shm entries, mappings of files
  without a name) is listed before and after each test. What is new must go away within `LEAK_DEADLINE_S`; what stays
  fails the test by name.

Descendants are found by parentage and by a mark in their environment, so that a grandchild counts also when its parent
is dead and init has adopted it: the workers of a killed driver are exactly that.

After a test that failed, leaks are only printed: its traceback keeps its objects alive.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings

MAKER_IN_NAME = re.compile(r"(?:sem\.loky-|joblib_memmapping_folder_)(\d+)")

HANG_AFTER_S = 120.0
SLOW_HANG_AFTER_S = 600.0
LEAK_DEADLINE_S = 5.0

# Our processes carry this variable; SCALEOUT_INTERNAL_ is the prefix that the library's settings leave alone.
MARK_NAME = "SCALEOUT_INTERNAL_TEST_RUN"
SESSION_MODULE = "scaleout._runtime.session"

_failed_key = pytest.StashKey[bool]()
_stderr_fd_key = pytest.StashKey[int]()

# The same examples in every run: a red run can be repeated, a green one was not luck. HYPOTHESIS_PROFILE=explore looks
# for new ones. No deadline per example: the machines are shared.
hypothesis_settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis_settings.register_profile("explore", deadline=None, print_blob=True)
hypothesis_settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


# --- hang guard


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell starts what is to run in the background like this
        signal.signal(signal.SIGINT, signal.default_int_handler)  # or no test could interrupt anything
    os.environ[MARK_NAME] = f"{os.getpid()}-{time.monotonic_ns()}"
    # pytest is not capturing at this moment, so this is the real stderr: a dump must not end in a capture file that
    # dies with us.
    config.stash[_stderr_fd_key] = os.dup(2)


def pytest_unconfigure(config: pytest.Config) -> None:
    os.close(config.stash[_stderr_fd_key])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    limit_s = SLOW_HANG_AFTER_S if item.get_closest_marker("slow") else HANG_AFTER_S
    faulthandler.dump_traceback_later(limit_s, exit=True, file=item.config.stash[_stderr_fd_key])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


# --- leak guard


def _list_directory(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []  # not this system, or gone


def _threads() -> dict[object, str]:
    # From the interpreter, not from `threading` alone: it also knows threads started by `_thread`. Identifiers are used
    # again, names are not; but a raw thread gets a (dummy) name only once it asks for one.
    named = {
        thread.ident: thread.name for thread in threading.enumerate() if not isinstance(thread, threading._DummyThread)
    }
    return {(ident, named.get(ident)): f"thread {named.get(ident, '(raw)')!r}" for ident in sys._current_frames()}


def _fds() -> dict[object, str]:
    fds: dict[object, str] = {}
    for fd in _list_directory("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue  # the one that listed the directory
        if not _is_kept_by_stdlib(target):
            fds[fd, target] = f"fd {fd} -> {target}"
    return fds


def _mappings() -> dict[object, str]:
    """Mapped files without a name: memfds, shared anonymous pages, unlinked spill files."""
    mappings: dict[object, str] = {}
    try:
        file = open("/proc/self/maps", "rb", buffering=1 << 16)
    except OSError:
        return mappings
    with file:
        for line in file:
            if line.endswith(b" (deleted)\n"):
                _, _, _, device, inode, path = line.decode(errors="replace").split(maxsplit=5)
                if not _is_kept_by_stdlib(path):
                    mappings[device, inode] = f"mapping of {path.strip()}"
    return mappings


def _shm_entries() -> dict[object, str]:
    return {name: f"/dev/shm/{name}" for name in _list_directory("/dev/shm")}


def _is_kept_by_stdlib(path: str) -> bool:
    # multiprocessing.heap keeps the memory behind Value and Array, mapped and open, until the process ends.
    return f"/pym-{os.getpid()}-" in path


def _pids() -> set[str]:
    return {name for name in _list_directory("/proc") if name.isdigit()}


def _parent_of(pid: str) -> str | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # "pid (name) state ppid ...", where the name may hold anything.
            return file.read().rpartition(b")")[2].split()[1].decode()
    except (OSError, IndexError):
        return None


def _is_ours(pid: str) -> bool:
    """Whether a process descends from this one, by parentage or, where its parent is dead, by the mark it inherited."""
    myself = str(os.getpid())
    if pid == myself:
        return False
    ancestor: str | None = pid
    while ancestor not in (None, "0", "1", myself):
        ancestor = _parent_of(ancestor)
    if ancestor == myself:
        return True
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            environ = file.read()
    except OSError:  # gone, or of another user
        return False
    return f"{MARK_NAME}={os.environ[MARK_NAME]}".encode() in environ.split(b"\0")


def _describe_process(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            command = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        command = "gone"
    return f"process {pid} ({command[:120] or 'zombie: nobody has waited for it'})"


def _is_used_by_others(shm_name: str) -> bool:
    """Whether a process that is not ours maps or holds this entry, or has put its number into the name: tests in other
    processes make entries too, and those that kill one leave its entries behind."""
    made_by = MAKER_IN_NAME.match(shm_name)
    if made_by is not None and made_by[1] != str(os.getpid()) and not _is_ours(made_by[1]):
        return True
    try:
        entry = os.stat(f"/dev/shm/{shm_name}")
    except OSError:
        return False
    # By number: sem_open makes its file under another name and links it, and a mapping shows the first name.
    numbers = f" {os.major(entry.st_dev):02x}:{os.minor(entry.st_dev):02x} {entry.st_ino} ".encode()
    for pid in _pids():
        if pid == str(os.getpid()) or _is_ours(pid):
            continue
        try:
            with open(f"/proc/{pid}/maps", "rb") as file:
                if numbers in file.read():
                    return True
        except OSError:
            continue
        for fd in _list_directory(f"/proc/{pid}/fd"):
            try:
                if os.path.samestat(os.stat(f"/proc/{pid}/fd/{fd}"), entry):
                    return True
            except OSError:
                continue
    return False


def _stdlib_tracker() -> tuple[set[str], set[int]]:
    """The process and the fds of multiprocessing's resource tracker, which lives as long as this process."""
    module = sys.modules.get("multiprocessing.resource_tracker")
    tracker = getattr(module, "_resource_tracker", None)
    pid, fd = getattr(tracker, "_pid", None), getattr(tracker, "_fd", None)
    return ({str(pid)} if pid else set()), ({fd} if fd is not None else set())


class Holdings:
    """What this process holds at one moment."""

    def __init__(self) -> None:
        self.threads = _threads()
        self.fds = _fds()
        self.mappings = _mappings()
        self.shm_entries = _shm_entries()
        self.pids = _pids()

    def leaks_since(self, before: Holdings) -> list[str]:
        """Names of what is here, was not there before, and belongs to this process."""
        stdlib_pids, stdlib_fds = _stdlib_tracker()
        zygote_pids, zygote_fds = _warm_zygote()
        kept_pids, kept_fds = stdlib_pids | zygote_pids, stdlib_fds | zygote_fds
        leaks = [name for key, name in self.threads.items() if key not in before.threads]
        leaks += [_describe_process(pid) for pid in sorted(self.pids - before.pids - kept_pids) if _is_ours(pid)]
        leaks += [
            name
            for key, name in self.fds.items()
            if key not in before.fds and int(key[0]) not in kept_fds  # type: ignore[index]
        ]
        leaks += [name for key, name in self.mappings.items() if key not in before.mappings]
        leaks += [
            name
            for key, name in self.shm_entries.items()
            if key not in before.shm_entries and not _is_used_by_others(str(key))
        ]
        return leaks


def _session_function(name: str) -> Callable[[], Any] | None:
    # Never imported here: a test of a pure core must not load the runtime.
    return getattr(sys.modules.get(SESSION_MODULE), name, None)


def _warm_zygote() -> tuple[set[str], set[int]]:
    """The process and the fd of the zygote that the library may keep warm between pools: it may stay."""
    warm_zygote = _session_function("warm_zygote")
    found = warm_zygote() if warm_zygote is not None else None
    return (set(), set()) if found is None else ({str(found[0])}, {found[1]})


def wait_for_leaks_to_go(before: Holdings, deadline_s: float = LEAK_DEADLINE_S) -> list[str]:
    """What is still held `deadline_s` after now and was not `before`; returns as soon as there is nothing."""
    leaks = Holdings().leaks_since(before)
    if not leaks:
        return leaks  # the usual case costs one listing, and no garbage collection
    give_up_at = time.monotonic() + deadline_s
    close_idle = _session_function("close_idle")
    gc.collect()
    pause_s = 0.001
    while True:
        if close_idle is not None:
            close_idle()  # again, as a pool that is ending keeps its zygote warm in the end
        leaks = Holdings().leaks_since(before)
        if not leaks or time.monotonic() > give_up_at:
            return leaks
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.05)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.stash[_failed_key] = report.failed
    return report


@pytest.fixture(autouse=True)
def preloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers import the test's module, and that imports pytest, which takes longer than most tests."""
    host = sys.modules.get("scaleout._runtime.node.host")
    if host is not None:
        monkeypatch.setattr(host, "preloaded_modules", ["pytest"])


@pytest.fixture(autouse=True)
def leak_guard(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves a thread, process, file descriptor, mapping or shared memory entry behind."""
    before = Holdings()
    yield
    failed = request.node.stash.get(_failed_key, True)
    leaks = wait_for_leaks_to_go(before, 0.5 if failed else LEAK_DEADLINE_S)
    if leaks and failed:
        print("left behind by the failed test:", *leaks, sep="\n  ")
    elif leaks:
        pytest.fail("left behind:\n  " + "\n  ".join(leaks), pytrace=False)
