"""Modules that lie on the driver's machine alone, in a worker of another one.

What the program has in directories of its own (the script's, the current one: not what is installed) is imported from
there, also if this machine has something of the same name. The worker asks its owner what a name stands for and gets
the file's path, the hash of what is in it, and only then, if no file here has that hash, the source. What it gets it
leaves in a directory of the node, by its hash, for the workers after it.

`sys.modules` and the import system are the interpreter's own; only the finder is ours.
"""

from __future__ import annotations

import marshal
import os
import select
import sys
from _thread import get_ident
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import spec_from_file_location

from scaleout._runtime.wire import frames
from scaleout._runtime.wire.frames import frame
from scaleout.errors import InternalError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType
    from typing import Any

    Found = tuple[str, bool, bytes, list[str]]

    Worker = Any  # process.worker's

of_program: list[str] = []
"""The names of the modules that were found so."""

FIRST_QUESTION = 1 << 62
"""Beyond the numbers of `Requests`."""


class SourcesOfOwner:
    """What the owner says of its modules. As `cluster.sources.OwnSources`, so that workers of this one can ask it."""

    def __init__(self, worker: Worker, names: list[str], folder: str, work: str) -> None:
        self._worker = worker
        self.names = names
        self.folder = folder
        self.work = work
        self._questions = 0

    def module(self, name: str) -> Found | None:
        """(path, whether it is a package, hash of the source, further directories of the package); None: not of the
        program's own."""
        found: Found | None = self._ask("module", name)
        return found

    def source(self, digest: bytes, offset: int) -> bytes | str:
        """A part of a file that `module` has named; or why it is not sent."""
        part: bytes | str = self._ask("source", digest, offset)
        return part

    def whole_source(self, digest: bytes, path: str) -> bytes:
        """What a file of the program's has in it. ImportError if the owner does not give it."""
        kept = os.path.join(self.folder, digest.hex()) if self.folder else ""
        for place in filter(None, (path, kept)):
            data = _read(place, digest)
            if data is not None:
                return data
        data = b""
        while sent := self.source(digest, len(data)):
            if isinstance(sent, str):
                raise ImportError(sent)
            data += sent
        if not _is(data, digest):
            raise ImportError(f"{path} changed while a worker imported it")
        if kept:
            _keep(kept, data)
        return data

    def packed(self, offset: int) -> bytes:
        """A part of the archive of the program's working directory."""
        part: bytes = self._ask("packed", offset)
        return part

    def unpacked(self, digest: bytes) -> str:
        """The path of this node's copy of the program's working directory, which its workers here share."""
        folder = os.path.join(self.work, digest.hex())
        if os.path.isdir(folder):
            return folder
        import shutil
        import tarfile
        from io import BytesIO

        data = b""
        while part := self.packed(len(data)):
            data += part
        if not _is(data, digest):
            raise InternalError("the archive of the working directory is not the one that was announced")
        temporary = f"{folder}.{os.getpid()}"
        os.makedirs(temporary, mode=0o700)
        with tarfile.open(fileobj=BytesIO(data)) as tar:
            if hasattr(tarfile, "data_filter"):  # not before 3.10.12 and 3.11.4
                tar.extractall(temporary, filter="data")
            else:
                tar.extractall(temporary)  # the program has made it itself, of plain files
        try:
            os.rename(temporary, folder)
        except OSError:  # another worker was faster
            shutil.rmtree(temporary)
        return folder

    def _ask(self, *question: Any) -> Any:
        """As `Requests.ask`. But until somebody else asks for something there are no `Requests`, by which the main loop
        would be slower ever after: then the main thread, if it is that, waits for its answer by itself."""
        worker = self._worker
        if worker.requests is not None or get_ident() != worker.main_ident:
            return worker.need_requests().ask(question)
        self._questions += 1
        number = FIRST_QUESTION + self._questions
        worker.send(frame(frames.REQUEST, marshal.dumps(question), number=number))
        poll = select.poll()
        poll.register(worker.link.fileno(), select.POLLIN)
        answer = b""
        try:
            while not answer and worker.goes_reading():
                poll.poll()  # here a Ctrl-C may strike
                with worker.shielded():
                    for entry in worker.sorted_out(self._receive()):
                        if entry[0] == frames.WAITED and entry[3] == number:
                            answer = entry[4]
                        else:
                            worker.queue.append(entry)
        finally:
            worker.stops_reading()
        return marshal.loads(answer) if answer else worker.need_requests().ask(question)

    def _receive(self) -> bytes:
        data: bytes = self._worker.link.receive()
        if not data:
            self._worker.link_lost()
        return data


def _read(path: str, digest: bytes) -> bytes | None:
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError:
        return None
    return data if _is(data, digest) else None


def _is(data: bytes, digest: bytes) -> bool:
    from hashlib import sha256

    return sha256(data).digest() == digest


def _keep(path: str, data: bytes) -> None:
    """Whole or not at all: others read it while this is written."""
    temporary = f"{path}.{os.getpid()}"
    try:
        with open(temporary, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except OSError:  # the disk is full, or the directory gone: the next one asks again
        try:
            os.unlink(temporary)
        except OSError:
            pass


class SentLoader(SourceFileLoader):
    """Of a module whose source has been sent. Its file's path is that on the owner's machine."""

    def __init__(self, name: str, path: str, source: bytes) -> None:
        super().__init__(name, path)
        self._source = source

    def get_data(self, path: str) -> bytes:
        return self._source if path == self.path else super().get_data(path)

    def path_stats(self, path: str) -> Any:
        raise OSError  # there is no bytecode of it here


class SourceFinder:
    """The first on `sys.meta_path` for the program's own names; the last for all others, which it may have as well."""

    def __init__(self, sources: SourcesOfOwner, is_first: bool) -> None:
        self._sources = sources
        self._names = frozenset(sources.names)
        self._is_first = is_first
        self._pid = os.getpid()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if (name.partition(".")[0] in self._names) is not self._is_first or os.getpid() != self._pid:
            return None  # of a child that was forked here the owner knows nothing
        try:
            found = self._sources.module(name)
        except OSError:  # the owner is gone
            return None
        if found is None:
            return None
        origin, is_package, digest, folders = found
        of_program.append(name)
        if not origin:
            here = PathFinder.find_spec(name, path)
            beside = [] if here is None or here.loader is not None else here.submodule_search_locations or []
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = [*folders, *(folder for folder in beside if folder not in folders)]
            return spec
        here = PathFinder.find_spec(name, [os.path.dirname(folders[0] if is_package else origin)])
        if here is not None and here.origin == origin and _read(origin, digest) is not None:
            return here  # the same file, with its bytecode and what else lies beside it
        loader = SentLoader(name, origin, self._sources.whole_source(digest, origin))
        return spec_from_file_location(name, origin, loader=loader, submodule_search_locations=folders or None)


def install(worker: Worker, names: list[str], folder: str, work: str) -> SourcesOfOwner:
    """From now on this process imports what its owner has. `folder` is where the node keeps modules, and `work` where
    it keeps the working directories of this driver's workers."""
    sources = SourcesOfOwner(worker, names, folder, work)
    sys.meta_path.insert(0, SourceFinder(sources, is_first=True))
    sys.meta_path.append(SourceFinder(sources, is_first=False))
    return sources
