"""The program's own modules, for workers on machines that do not have them: the driver's side of `process.sources`.

Its own is what it has imported, or could, from directories that are not those of installed packages or of the standard
library. Nothing is imported here to find out.
"""

from __future__ import annotations

import io
import itertools
import os
import site
import sys
import tarfile
from hashlib import sha256
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, PathFinder
from types import ModuleType

from scaleout._runtime.base import limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from scaleout._runtime.process.sources import Found

SUFFIX = ".py"
FILES_LOOKED_AT = 10_000
"""In a directory on the path, and in a package: with more it takes too long to look at them all."""

LEFT_OUT = ("__pycache__", ".git")
OURS = "scaleout"


class Archive:
    """A directory, packed: `init(runtime_env={"working_dir": ...})`. ValueError if it is too large."""

    def __init__(self, folder: str) -> None:
        sizes = dict(_files_in(folder))
        if sum(sizes.values()) > limits.SOURCES_BYTES:
            largest = max(sizes, key=lambda name: sizes[name])
            raise ValueError(
                f"working_dir {folder!r} has {sum(sizes.values()) >> 20} MB in {len(sizes)} files, and nodes are sent "
                f"{limits.SOURCES_BYTES >> 20} MB at most; the largest, {largest}, has {sizes[largest]} bytes"
            )
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w", dereference=True) as tar:
            for name in sizes:
                tar.add(os.path.join(folder, name), name)
        self.data = packed.getbuffer()
        self.digest = sha256(self.data).digest()


def _files_in(folder: str) -> Iterator[tuple[str, int]]:
    """Names, relative to it, and sizes in bytes; without what is made anew anyway."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in LEFT_OUT)
        for name in sorted(files):
            path = os.path.join(place, name)
            if os.path.isfile(path):
                yield os.path.relpath(path, folder), os.path.getsize(path)


class OwnSources:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._installed = _installed_folders()
        self.names: list[str] = []  # of top-level modules that may be its own
        self.folder = self.work = ""  # where a node keeps them: each has its own
        self.archive: Archive | None = None  # of the working directory that was asked for
        self._named: dict[bytes, str] = {}  # path by hash
        self._sent: dict[str, int] = {}  # bytes by path
        self._is_pure: dict[str, bool] = {}  # by top-level name

    def look(self) -> None:
        """What is there now."""
        imported = [name for name in list(sys.modules) if isinstance(name, str) and "." not in name]
        names = {name for name in imported if self._is_own(_origin_of(name))}
        for entry in sys.path:
            if isinstance(entry, str) and not self._is_installed(_absolute(entry)):
                names.update(_names_in(entry or os.curdir))
        names -= {OURS, "__main__"}
        self.names = sorted(names)

    def module(self, name: str) -> Found | None:
        """See `process.sources.SourcesOfOwner`."""
        found = _find(name)
        if found is None:
            return None
        folders = [_absolute(folder) for folder in found[1]]
        if found[0] is None:
            return ("", True, b"", folders) if any(not self._is_installed(folder) for folder in folders) else None
        path = _absolute(found[0])
        if not self._is_own(path) or not self._is_sendable(name.partition(".")[0]):
            return None
        try:
            with open(path, "rb") as file:
                digest = sha256(file.read()).digest()
        except OSError:
            return None
        self._named[digest] = path
        return path, bool(folders), digest, folders

    def source(self, digest: bytes, offset: int) -> bytes | str:
        """A part of a file that `module` has named; or why it is not sent. Nobody can ask for any other file."""
        path = self._named.get(digest, "")
        try:
            with open(path, "rb") as file:
                file.seek(offset)
                data = file.read(limits.SOURCE_PART_BYTES)
                size_bytes = os.fstat(file.fileno()).st_size
        except OSError as error:
            return f"{path} cannot be read by the program that has it: {error.strerror}"
        sizes = {**self._sent, path: size_bytes}
        if sum(sizes.values()) > limits.SOURCES_BYTES:
            largest = max(sizes, key=lambda path: sizes[path])
            return (
                f"{path} is not sent to the nodes: with it the program's own modules have more than "
                f"{limits.SOURCES_BYTES >> 20} MB (the largest, {largest}, has {sizes[largest]} bytes); "
                "install them there"
            )
        self._sent = sizes
        return data

    def packed(self, offset: int) -> bytes:
        """A part of the working directory's archive."""
        return b"" if self.archive is None else bytes(self.archive.data[offset : offset + limits.SOURCE_PART_BYTES])

    def _is_sendable(self, top: str) -> bool:
        """Not if parts of it are compiled: nodes have it installed, or not at all."""
        if top not in self._is_pure:
            origin, folders = _find(top) or (None, [])
            walked = (os.walk(folder) for folder in folders if origin is not None)
            files = (file for places in walked for _, _, files in places for file in files)
            some = itertools.islice(files, FILES_LOOKED_AT)
            self._is_pure[top] = top != OURS and not any(file.endswith(tuple(EXTENSION_SUFFIXES)) for file in some)
        return self._is_pure[top]

    def _is_own(self, origin: str | None) -> bool:
        return isinstance(origin, str) and origin.endswith(SUFFIX) and not self._is_installed(_absolute(origin))

    def _is_installed(self, path: str) -> bool:
        return os.path.join(path, "").startswith(self._installed)


def _imported(name: str) -> ModuleSpec | None:
    """The spec of a module that is imported. No code of the user's runs: what is in `sys.modules` may be anything."""
    module = sys.modules.get(name)
    if not issubclass(type(module), ModuleType):
        return None
    spec = ModuleType.__getattribute__(module, "__dict__").get("__spec__")  # a subclass may load itself here
    return spec if type(spec) is ModuleSpec else None


def _origin_of(name: str) -> str | None:
    spec = _imported(name)
    return spec.origin if spec is not None and spec.has_location else None


def _absolute(path: str) -> str:
    try:
        return os.path.abspath(path)
    except OSError:  # there is no current directory any more
        return path


def _find(name: str) -> tuple[str | None, list[str]] | None:
    """Where the module comes from, or would if it were imported: its file, if it is one, and the package's folders."""
    spec = _imported(name)
    if spec is not None:
        return spec.origin if spec.has_location else None, list(spec.submodule_search_locations or ())
    parent, _, own_name = name.rpartition(".")
    above = _find(parent) if parent else (None, [entry for entry in sys.path if isinstance(entry, str)])
    if above is None:
        return None
    try:
        spec = PathFinder.find_spec(own_name, above[1])
    except (ImportError, OSError, ValueError):
        return None
    if spec is None:
        return None
    if spec.loader is None:  # a package without a file
        return None, [folder for entry in above[1] if os.path.isdir(folder := os.path.join(entry, own_name))]
    return spec.origin if spec.has_location else None, list(spec.submodule_search_locations or ())


def _names_in(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            stems = [
                entry.name.removesuffix(SUFFIX)
                for entry in itertools.islice(entries, FILES_LOOKED_AT)
                if entry.name.endswith(SUFFIX) or ("." not in entry.name and entry.is_dir())
            ]
    except (OSError, ValueError):
        return []
    return [stem for stem in stems if stem.isidentifier()]


def _installed_folders() -> tuple[str, ...]:
    folders = {os.path.dirname(os.path.abspath(os.__file__)), *site.getsitepackages(), site.getusersitepackages()}
    return tuple(os.path.join(os.path.abspath(folder), "") for folder in folders)
