"""Every `SCALEOUT_*` environment variable: its default, why that default, and how it is read.

For: the one object that says how this process was configured, `Settings`, and the one place that reads the
environment, `Settings.from_environ`. Not for: bounds that nobody configures; those stand in `limits.py`.

Every process that makes a session imports this module, so it imports `os` and nothing slower: no `re`, `dataclasses`,
`typing` or `logging`.

Rules that hold for all variables:

- Unset and empty mean the same: the default. (`SCALEOUT_NUM_CPUS= python job.py` is how a shell says "not set".)
- A value that is not accepted raises `SettingsError`, naming the variable, the value and what is accepted. Nothing is
  guessed, nothing is clamped.
- A variable with our prefix that we do not know is most likely a typing error: it warns, once per process and name.
- `SCALEOUT_INTERNAL_*` belongs to the runtime and its tests, which set it for their own children; never a setting.
"""

from __future__ import annotations

import os

from scaleout._runtime.base.limits import PREFETCH_TASKS
from scaleout.errors import SettingsError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PREFIX = "SCALEOUT_"
INTERNAL_PREFIX = "SCALEOUT_INTERNAL_"

# A count beyond this is a slip of the hand, not a machine: the largest hosts have thousands of CPUs, and Linux has
# 4 million PIDs.
_LARGEST_COUNT = 1_000_000
# `epoll_wait` takes milliseconds in a C int, so it ends at 24 days; 11 days is as good as for ever.
_LONGEST_TIMEOUT_S = 1e6
# 2**60: more than any machine has, and products with it still fit where C wants 64 bits.
_LARGEST_SIZE_BYTES = 1 << 60

_SIZE_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_BOOLS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


# --- parsers: text -> value, or None where the text is not accepted. No accepted value is None.


def _whole_number(text: str) -> int | None:
    # int() alone would take "1_0", "+5", "٣" and 4301 digits (with an error of its own).
    if text.isascii() and text.isdigit() and len(text) <= 19:
        return int(text)
    return None


def _count(at_least: int, at_most: int = _LARGEST_COUNT) -> Callable[[str], int | None]:
    def parse(text: str) -> int | None:
        number = _whole_number(text)
        return number if number is not None and at_least <= number <= at_most else None

    return parse


def _size(text: str) -> int | None:
    unit = _SIZE_UNITS.get(text[-1:].upper(), 0)
    number = _whole_number(text[:-1] if unit else text)
    if number is None:
        return None
    size_bytes = number * (unit or 1)
    return size_bytes if 1 <= size_bytes <= _LARGEST_SIZE_BYTES else None


def _seconds(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if 0 < seconds <= _LONGEST_TIMEOUT_S else None  # false for nan


def _bool(text: str) -> bool | None:
    return _BOOLS.get(text.lower())


def _writable_directory(text: str) -> str | None:
    # Absolute from now on: the program may change its working directory, and workers have their own.
    path = os.path.abspath(text)
    return path if os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK) else None


def _address(text: str) -> str | None:
    host, colon, port = text.rpartition(":")
    return text if host and colon and _count(1, 65535)(port) else None


# --- defaults that are measured on this machine


def usable_cpus() -> int:
    """The number of CPUs this process may run on: its affinity where the system knows one, else all; at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except (OSError, ValueError):
        return ""


def cgroup_memory_bytes(proc_cgroup: str = "/proc/self/cgroup", mount: str = "/sys/fs/cgroup") -> int | None:
    """The smallest memory limit of this process's control groups, versions 1 and 2, or None where there is none.

    A limit on any ancestor binds too, so every directory up to the mount is read. In a container without a cgroup
    namespace the path is the host's and does not exist here; walking up ends at the mount, the container's own.
    """
    smallest = None
    for line in _read(proc_cgroup).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            top, name = mount, "memory.max"
        elif "memory" in controllers.split(","):
            top, name = os.path.join(mount, "memory"), "memory.limit_in_bytes"
        else:
            continue
        parts = [part for part in path.split("/") if part and part != ".."]
        for depth in range(len(parts), -1, -1):
            limit = _whole_number(_read(os.path.join(top, *parts[:depth], name)).strip())  # "max" is no number
            if limit is not None and (smallest is None or limit < smallest):
                smallest = limit
    return smallest


def usable_memory_bytes() -> int:
    """The memory this process may use: the machine's, or less where a control group says less."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = cgroup_memory_bytes()
    return physical if limit is None else min(physical, limit)


# --- the table


class Variable:
    """One row of `VARIABLES`. `default` gets the values of the rows above; `default_text` says what it gives."""

    __slots__ = ("name", "field", "parse", "accepts", "default", "default_text", "reason")

    def __init__(
        self,
        name: str,
        *,
        parse: Callable[[str], object],
        accepts: str,
        default: Callable[[dict[str, object]], object],
        default_text: str,
        reason: str,
    ) -> None:
        self.name = name
        self.field = name[len(PREFIX) :].lower()
        self.parse = parse
        self.accepts = accepts
        self.default = default
        self.default_text = default_text
        self.reason = reason


def _default_max_processes(values: dict[str, object]) -> int:
    num_cpus = values["num_cpus"]
    assert isinstance(num_cpus, int)
    return max(1024, 8 * num_cpus)


VARIABLES = (
    Variable(
        "SCALEOUT_ADDRESS",
        parse=_address,
        accepts="accepted is HOST:PORT of a node, as `scaleout start` prints it; unset or empty: this machine",
        default=lambda values: "",
        default_text="empty",
        reason="Empty is the embedded runtime: all work runs on this machine.",
    ),
    Variable(
        "SCALEOUT_NUM_CPUS",
        parse=_count(1),
        accepts=f"accepted is a whole number from 1 to {_LARGEST_COUNT}",
        default=lambda values: usable_cpus(),
        default_text="the CPUs this process may run on",
        reason="Affinity, not the machine's count: under taskset more workers only get in each other's way.",
    ),
    Variable(
        "SCALEOUT_MAX_RETRIES",
        parse=_count(0),
        accepts=f"accepted is a whole number from 0 to {_LARGEST_COUNT}; 0 means at most once",
        default=lambda values: 3,
        default_text="3",
        reason="A worker killed by chance (out of memory, an operator) is survived; a task that always kills is named.",
    ),
    Variable(
        "SCALEOUT_STORE_BYTES",
        parse=_size,
        accepts="accepted is a whole number of bytes from 1 to 2**60, or of K, M or G (powers of 1024), such as 512M",
        default=lambda values: usable_memory_bytes() * 3 // 10,
        default_text="30 % of the memory (of the machine, or of its control group if that is less)",
        reason="Shared pages count as used memory; the rest is left to the program's own and to its workers.",
    ),
    Variable(
        "SCALEOUT_SPILL_DIR",
        parse=_writable_directory,
        accepts="accepted is an existing directory that this process may write to",
        default=lambda values: "",
        default_text="chosen by the store",
        reason="The store knows which directories are on a real disk; /tmp is often memory.",
    ),
    Variable(
        "SCALEOUT_INLINE",
        parse=_bool,
        accepts="accepted is 1, true, yes, on, 0, false, no or off",
        default=lambda values: False,
        default_text="off",
        reason="On, tasks run in the calling thread, where a debugger and coverage see them; nothing is parallel.",
    ),
    Variable(
        "SCALEOUT_IDLE_TIMEOUT_S",
        parse=_seconds,
        accepts=f"accepted is a number of seconds above 0, at most {_LONGEST_TIMEOUT_S:.0f}",
        default=lambda values: 10.0,
        default_text="10",
        reason="Who makes one pool after the other does so within seconds; later, a zygote is memory nobody asked for.",
    ),
    Variable(
        "SCALEOUT_MAX_PROCESSES",
        parse=_count(1),
        accepts=f"accepted is a whole number from 1 to {_LARGEST_COUNT}",
        default=_default_max_processes,
        default_text="max(1024, 8 × CPUs)",
        reason="Pool(200) on two cores must work; nested pools that multiply must end in an error, not a dead machine.",
    ),
    Variable(
        "SCALEOUT_PREFETCH",
        parse=_count(1, 1024),
        accepts="accepted is a whole number from 1 to 1024",
        default=lambda values: PREFETCH_TASKS,
        default_text=str(PREFETCH_TASKS),
        reason="Most tasks in flight per worker: 64 short ones cover a round trip, more is only more to take back.",
    ),
)
OF_CLUSTERS = ("SCALEOUT_HOME", "SCALEOUT_CLUSTER", "SCALEOUT_TOKEN")
"""Read where keys are kept and made (`cluster.places`, `client.cluster`); shown nowhere, as one of them is a secret."""

_VARIABLE_OF_NAME = {variable.name: variable for variable in VARIABLES}


class Settings:
    """How this process was configured: one read-only attribute per `SCALEOUT_*` variable, in lower case.

    `Settings()` is all defaults; keywords replace single values (they are trusted, not parsed). Sizes are in bytes,
    times in seconds.

    >>> Settings(max_retries=0).max_retries
    0
    >>> Settings.from_environ({"SCALEOUT_STORE_BYTES": "2K"}).store_bytes
    2048
    """

    __slots__ = tuple(variable.field for variable in VARIABLES)

    # For readers and type checkers; `tests/test_settings.py` holds these lines to the table.
    address: str
    num_cpus: int
    max_retries: int
    store_bytes: int
    spill_dir: str
    inline: bool
    idle_timeout_s: float
    max_processes: int
    prefetch: int

    def __init__(self, **values: object) -> None:
        for variable in VARIABLES:
            field = variable.field
            if field not in values:
                values[field] = variable.default(values)
            object.__setattr__(self, field, values[field])
        if len(values) != len(VARIABLES):
            unknown = next(field for field in values if PREFIX + field.upper() not in _VARIABLE_OF_NAME)
            raise TypeError(f"Settings() has no setting {unknown!r}")

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Settings:
        """The settings that `environ` (usually `os.environ`) asks for.

        Raises `SettingsError` for the first value that is not accepted. Warns once per process of an unknown variable.
        """
        values: dict[str, object] = {}
        unknown = []
        for name in environ:
            if name.startswith(PREFIX):
                variable = _VARIABLE_OF_NAME.get(name)
                if variable is not None:
                    text = environ[name].strip()
                    if text:
                        values[variable.field] = _parsed(variable, text)
                elif not name.startswith(INTERNAL_PREFIX) and name not in OF_CLUSTERS:
                    unknown.append(name)
        for name in unknown:
            _warn_unknown(name)
        return cls(**values)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"settings cannot be changed: {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"settings cannot be changed: {name}")

    def _values(self) -> tuple[object, ...]:
        return tuple(getattr(self, field) for field in self.__slots__)

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if isinstance(other, Settings) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{field}={getattr(self, field)!r}' for field in self.__slots__)})"

    def __reduce__(self) -> tuple[object, ...]:
        # The default would go through the refused __setattr__.
        return _from_values, self._values()


def _from_values(*values: object) -> Settings:
    return Settings(**dict(zip(Settings.__slots__, values, strict=True)))


def _parsed(variable: Variable, text: str) -> object:
    value = variable.parse(text)
    if value is None:
        raise SettingsError(f"{variable.name}={text!r}: {variable.accepts}")
    return value


_warned_names: set[str] = set()


def _warn_unknown(name: str) -> None:
    if name in _warned_names:
        return
    _warned_names.add(name)  # first: the warning may be turned into an exception
    # Imported here: difflib brings `re`, and hardly any process comes this way.
    import difflib
    import warnings

    # Without the prefix: it is long and would make every name resemble every other.
    fields = difflib.get_close_matches(name[len(PREFIX) :].lower(), Settings.__slots__, n=3)
    near = [PREFIX + field.upper() for field in fields]
    hint = f"did you mean {' or '.join(near)}?" if near else "known are " + ", ".join(_VARIABLE_OF_NAME)
    warnings.warn(f"{name} is not a setting of scaleout and has no effect; {hint}", stacklevel=3)
