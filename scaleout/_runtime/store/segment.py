"""The files behind segments, and the few things asked of the kernel about them: create, map, punch out.

A segment is a sparse file of fixed virtual size without a name: the kernel frees it with the last process that has it
open or mapped, so nothing can be left behind, also after `kill -9`. In memory it is a memfd; on disk (for what goes
over the memory budget) an unlinked file.

Running out of room, and SIGBUS: touching a *mapped* page that cannot be provided kills the process, while `pwrite`
and `fallocate` report it. Hence
- a memfd is not limited by the size of /dev/shm (it lives on the kernel's internal tmpfs, which has no limit), but
  its pages count against the memory cgroup and, with overcommit_memory=2, the commit limit. New pages are only ever
  made by `pwrite`, which fails with ENOMEM or ENOSPC (or has the OOM killer choose, as any allocation does), never
  with SIGBUS.
- on any other file (disk; /dev/shm where there is no memfd) the blocks are reserved before they are written:
  `must_reserve`.
- readers map only ranges that were written in full, whose pages therefore exist (in memory, swap, or on disk).

No numpy here, and ctypes only when first needed: a Pool that moves no large data must not pay for its import (2 to
10 ms).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import mmap
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ctypes
    from typing import Any

SEGMENT_BYTES = 64 << 30
"""Virtual size of a segment unless its allowance is larger: costs nothing until used, and leaves a process room to
map two thousand segments in its 47 bits of addresses."""

SMALLEST_SEGMENT_BYTES = 1 << 30
"""Where RLIMIT_FSIZE or the file system allows no file of the wanted size, the size is halved, down to here."""

PAGE_BYTES = mmap.PAGESIZE

Extent = tuple[int, int, int]
"""(segment_id, offset, size_bytes): starts on a page; no other extent has bytes on its last one."""

_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # some Pythons have no name for it: the generic Linux value
_MAP_PRIVATE = getattr(mmap, "MAP_PRIVATE", 2)
_MAP_SHARED = getattr(mmap, "MAP_SHARED", 1)
_MAP_FIXED = 0x10
_FALLOC_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01

_MEMORY_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs", "devtmpfs", "hugetlbfs"})


class SegmentFile:
    """A freshly made file without a name. `must_reserve`: blocks have to be reserved before they are written
    (`os.posix_fallocate`)."""

    __slots__ = ("fd", "must_reserve", "size_bytes")

    def __init__(self, fd: int, size_bytes: int, *, must_reserve: bool) -> None:
        self.fd = fd
        self.size_bytes = size_bytes
        self.must_reserve = must_reserve


def round_to_pages(size_bytes: int) -> int:
    return -(-size_bytes // PAGE_BYTES) * PAGE_BYTES


# -- creating -------------------------------------------------------------------------------------


def create_memory_segment(size_bytes: int = SEGMENT_BYTES, *, use_memfd: bool = True) -> SegmentFile:
    """A sparse file in memory. Without memfd (old kernels, strict sandboxes): an unlinked file in /dev/shm."""
    if use_memfd and hasattr(os, "memfd_create"):
        try:
            fd = os.memfd_create("scaleout", os.MFD_CLOEXEC)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EPERM, errno.EACCES):
                raise
        else:
            return SegmentFile(fd, _make_sparse(fd, size_bytes), must_reserve=False)
    try:
        return create_disk_segment("/dev/shm", size_bytes)
    except OSError:
        return create_disk_segment(_temporary_directory(), size_bytes)


def create_disk_segment(spill_dir: str, size_bytes: int = SEGMENT_BYTES) -> SegmentFile:
    """A sparse file without a name in `spill_dir`."""
    fd = _open_unlinked(spill_dir)
    return SegmentFile(fd, _make_sparse(fd, size_bytes), must_reserve=True)


def default_spill_dir() -> str:
    """A directory on a real disk: /var/tmp, else the temporary directory; the latter also if neither is on a disk."""
    fallback = _temporary_directory()
    for path in ("/var/tmp", fallback):
        if os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK) and not _is_in_memory(path):
            return path
    return fallback


def _open_unlinked(directory: str) -> int:
    if hasattr(os, "O_TMPFILE"):
        try:
            return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC | os.O_EXCL, 0o600)
        except OSError as error:
            # What file systems (overlay on old kernels, NFS) and kernels without O_TMPFILE answer.
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
                raise
    import tempfile  # 10 ms, and hardly ever needed

    fd, path = tempfile.mkstemp(prefix="scaleout-", dir=directory)
    os.unlink(path)
    return fd


def _make_sparse(fd: int, size_bytes: int) -> int:
    """Set the file's virtual size, in whole pages; what it became. Closes `fd` if that cannot be done."""
    size_bytes = round_to_pages(size_bytes)
    while True:
        try:
            os.ftruncate(fd, size_bytes)
        except OSError as error:
            if error.errno not in (errno.EFBIG, errno.EINVAL) or size_bytes // 2 < SMALLEST_SEGMENT_BYTES:
                os.close(fd)
                raise
            size_bytes = round_to_pages(size_bytes // 2)
        else:
            return size_bytes


def _temporary_directory() -> str:
    import tempfile

    return tempfile.gettempdir()


def _is_in_memory(path: str) -> bool:
    """True if /proc/mounts says that `path` is on a file system in memory; False where it cannot be told."""
    path = os.path.realpath(path)
    best, kind = "", ""
    with contextlib.suppress(OSError), open("/proc/mounts", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            fields = line.split(" ")
            mount_point = fields[1].replace("\\040", " ")
            is_below = mount_point == "/" or path == mount_point or path.startswith(mount_point + "/")
            if is_below and len(mount_point) >= len(best):  # of equals the later mount hides the earlier
                best, kind = mount_point, fields[2]
    return kind in _MEMORY_FILE_SYSTEMS


# -- mapping --------------------------------------------------------------------------------------


def map_private(fd: int, offset: int, size_bytes: int) -> mmap.mmap:
    """A writable copy-on-write mapping of a page-aligned range: nobody else sees what is written to it."""
    return _map(fd, offset, size_bytes, _MAP_PRIVATE | _MAP_NORESERVE)


def map_shared(fd: int, size_bytes: int) -> mmap.mmap:
    """A mapping through which the segment itself is written."""
    return _map(fd, 0, size_bytes, _MAP_SHARED | _MAP_NORESERVE)


def _map(fd: int, offset: int, size_bytes: int, flags: int) -> mmap.mmap:
    """Like `mmap.mmap`, but without the duplicate of the fd that it keeps: a process may map thousands of
    segments."""
    if sys.version_info >= (3, 13):
        return mmap.mmap(fd, size_bytes, flags, mmap.PROT_READ | mmap.PROT_WRITE, offset=offset, trackfd=False)
    if not sys.platform.startswith("linux"):
        return mmap.mmap(fd, size_bytes, flags, mmap.PROT_READ | mmap.PROT_WRITE, offset=offset)
    # An anonymous mapping, which has no fd, reserves the addresses and is the Python object that unmaps them at its
    # end; the file is then mapped in its place.
    import ctypes

    mapping = mmap.mmap(-1, size_bytes, _MAP_PRIVATE | _MAP_NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE)
    address = ctypes.addressof(ctypes.c_ubyte.from_buffer(mapping))
    libc = _libc()
    if libc.mmap(address, size_bytes, mmap.PROT_READ | mmap.PROT_WRITE, flags | _MAP_FIXED, fd, offset) != address:
        raise _os_error(ctypes.get_errno())
    return mapping


# -- punching out ---------------------------------------------------------------------------------


def write_all(fd: int, data: memoryview, offset: int) -> None:
    """OSError if there is no room for it."""
    while data:
        written = os.pwrite(fd, data, offset)
        data = data[written:]
        offset += written


def punch(fd: int, offset: int, size_bytes: int) -> bool:
    """Give a range's pages or blocks back to the system; it reads as zeros from then on.

    False where the file system cannot do that: then they stay until the segment ends, and nothing else is wrong.
    """
    import ctypes

    while _libc().fallocate(fd, _FALLOC_PUNCH_HOLE_KEEP_SIZE, offset, size_bytes) != 0:
        code = ctypes.get_errno()
        if code in (errno.EOPNOTSUPP, errno.ENOSYS):
            return False
        if code != errno.EINTR:
            raise _os_error(code)
    return True


def trim_heap() -> None:
    """Give back what free() keeps: after a large value was unpickled and dropped that may be tens of megabytes."""
    trim = getattr(_libc(), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


@functools.cache
def _libc() -> ctypes.CDLL:
    """The C library, with the types of the calls made here. Its calls release the GIL."""
    import ctypes

    libc: Any = ctypes.CDLL(None, use_errno=True)
    # The names with 64 in them take 64-bit offsets on every platform; musl has only the plain ones, and they do too.
    libc.mmap = getattr(libc, "mmap64", None) or libc.mmap
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
    )  # fmt: skip
    libc.fallocate = getattr(libc, "fallocate64", None) or libc.fallocate
    libc.fallocate.restype = ctypes.c_int
    libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return libc


def _os_error(code: int) -> OSError:
    return OSError(code, os.strerror(code))
