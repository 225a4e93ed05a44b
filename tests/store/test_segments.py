"""Segment files and the writer: real memfds and files; only failures that cannot be had for real are injected."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
import zlib

import pytest

from scaleout._runtime.store import segment
from scaleout._runtime.store.writer import SegmentWriter
from scaleout.errors import StoreFullError

MB = 1 << 20


@pytest.fixture
def make_writer(tmp_path):
    writers = []

    def make(allowance_bytes=64 * MB, spill_dir=str(tmp_path)):
        writers.append(SegmentWriter(allowance_bytes=lambda: allowance_bytes, spill_dir=spill_dir))
        return writers[-1]

    yield make
    for writer in writers:
        writer.close()


def content_of(writer, extent):
    fd, _, _ = writer.fd_of(extent[0])
    return os.pread(fd, extent[2], extent[1])


def committed_bytes(fd):
    return os.fstat(fd).st_blocks * 512


def fail(code):
    def raise_error(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    return raise_error


# -- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_memfd", [True, False])
def test_a_memory_segment_is_sparse_and_has_no_name(use_memfd):
    file = segment.create_memory_segment(use_memfd=use_memfd)
    try:
        assert file.size_bytes == os.fstat(file.fd).st_size == segment.SEGMENT_BYTES
        assert file.must_reserve is not use_memfd
        assert committed_bytes(file.fd) == 0
        assert not os.get_inheritable(file.fd)
        assert os.readlink(f"/proc/self/fd/{file.fd}").endswith("(deleted)")
    finally:
        os.close(file.fd)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM])
def test_without_memfd_a_file_in_shared_memory_or_the_temporary_directory_is_taken(monkeypatch, code):
    monkeypatch.setattr(os, "memfd_create", fail(code))
    file = segment.create_memory_segment(MB)
    os.close(file.fd)
    assert file.must_reserve
    monkeypatch.setattr(segment, "_open_unlinked", refuse_shm := fail_for("/dev/shm", segment._open_unlinked))
    file = segment.create_memory_segment(MB)
    os.close(file.fd)
    assert refuse_shm.asked == ["/dev/shm", tempfile.gettempdir()]


def fail_for(path, real):
    def open_unlinked(directory):
        open_unlinked.asked.append(directory)
        if directory == path:
            raise FileNotFoundError(errno.ENOENT, "no such directory", directory)
        return real(directory)

    open_unlinked.asked = []
    return open_unlinked


def test_a_disk_segment_without_o_tmpfile_is_unlinked_at_once(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "O_TMPFILE")
    file = segment.create_disk_segment(str(tmp_path))
    try:
        assert list(tmp_path.iterdir()) == []
        assert file.must_reserve
        assert not os.get_inheritable(file.fd)
    finally:
        os.close(file.fd)


def test_a_segment_is_smaller_where_files_cannot_be_so_large(monkeypatch):
    real = os.ftruncate

    def ftruncate(fd, size):
        if size > 5 << 30:  # RLIMIT_FSIZE, or FAT
            raise OSError(errno.EFBIG, "too large")
        real(fd, size)

    monkeypatch.setattr(os, "ftruncate", ftruncate)
    file = segment.create_memory_segment()
    os.close(file.fd)
    assert file.size_bytes == 4 << 30


def test_an_fd_is_not_lost_when_the_file_cannot_be_sized(monkeypatch):
    monkeypatch.setattr(os, "ftruncate", fail(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):  # the leak guard looks at the fds
        segment.create_memory_segment()


def test_the_spill_directory_is_not_in_memory_if_a_disk_is_there(monkeypatch):
    in_memory = {"/var/tmp"}
    monkeypatch.setattr(segment, "_is_in_memory", lambda path: path in in_memory)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: "/tmp")
    assert segment.default_spill_dir() == "/tmp"
    in_memory.clear()
    assert segment.default_spill_dir() == "/var/tmp"
    in_memory.update(("/tmp", "/var/tmp"))
    assert segment.default_spill_dir() == "/tmp"


def test_proc_mounts_tells_what_is_in_memory():
    assert not segment._is_in_memory("/")
    with open("/proc/mounts") as mounts:
        shm = [line.split()[2] for line in mounts if line.split()[1] == "/dev/shm"]
    if shm == ["tmpfs"]:
        assert segment._is_in_memory("/dev/shm/below")


def test_the_first_store_of_a_process_imports_no_ctypes():
    """A Pool that moves no large data must not pay for it."""
    code = """if True:
        import sys
        from scaleout._runtime.store.writer import SegmentWriter
        from scaleout._runtime.store import reader
        writer = SegmentWriter(allowance_bytes=lambda: 1 << 20)
        writer.write(writer.allocate(5), [b"small"])
        found = {"ctypes", "numpy", "tempfile"} & set(sys.modules)
        assert not found, found
    """
    subprocess.run([sys.executable, "-c", code], check=True)


# -- memory ---------------------------------------------------------------------------------------


def test_nothing_exists_before_the_first_allocation(make_writer):
    writer = make_writer()
    assert writer.segments() == []
    assert (writer.used_bytes, writer.free_warm_bytes, writer.spilled_bytes) == (0, 0, 0)
    writer.allocate(1)
    assert len(writer.segments()) == 1
    assert 0 < writer.segments()[0] < 1 << 63


def test_chunks_of_all_kinds_are_written_one_after_the_other(make_writer):
    np = pytest.importorskip("numpy")
    writer = make_writer()
    fortran = np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3))
    structured = np.zeros(2, dtype=[("a", "<i4"), ("b", "S3")])
    chunks = [b"bytes", bytearray(b"array"), memoryview(b"a view")[1:], b"", fortran, structured]
    expected = b"bytes" + b"array" + b" view" + fortran.tobytes(order="A") + structured.tobytes()
    for _ in range(2):  # cold, then warm
        extent = writer.allocate(len(expected) + 10)
        assert writer.write(extent, chunks) is None
        assert content_of(writer, extent)[: len(expected)] == expected
        writer.free(extent)


def test_a_warm_range_is_recycled_and_written_through_the_mapping(make_writer):
    writer = make_writer()
    data = os.urandom(5 * MB + 17)
    extent = writer.allocate(len(data))
    writer.write(extent, [data])
    writer.free(extent)
    assert writer.free_warm_bytes == segment.round_to_pages(len(data))
    again = writer.allocate(len(data))
    assert again == extent
    writer.write(again, [data[::-1][:MB], data[MB:]])
    assert content_of(writer, again) == data[::-1][:MB] + data[MB:]
    assert writer.free_warm_bytes == 0


def test_short_writes_and_many_chunks(make_writer, monkeypatch):
    real = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, offset: real(fd, [buffers[0][:7]], offset))
    writer = make_writer()
    chunks = [bytes([index % 251]) * (index % 23) for index in range(2000)]
    extent = writer.allocate(sum(map(len, chunks)))
    writer.write(extent, chunks)
    assert content_of(writer, extent) == b"".join(chunks)


def test_chunks_that_are_too_long_are_refused(make_writer):
    writer = make_writer()
    extent = writer.allocate(10)
    with pytest.raises(ValueError, match="11 bytes do not fit into an extent of 10"):
        writer.write(extent, [b"x" * 11])


def test_memory_is_given_back_by_trim(make_writer):
    writer = make_writer()
    extents = [writer.allocate(4 * MB) for _ in range(3)]
    for extent in extents:
        writer.write(extent, [bytes(4 * MB)])
    fd, size, is_on_disk = writer.fd_of(extents[0][0])
    assert (size, is_on_disk) == (segment.SEGMENT_BYTES, False)
    assert committed_bytes(fd) == 12 * MB
    writer.free(extents[0])
    writer.free(extents[2])
    assert committed_bytes(fd) == 12 * MB
    assert writer.trim(5 * MB) == 3 * MB
    assert (committed_bytes(fd), writer.free_warm_bytes, writer.used_bytes) == (9 * MB, 5 * MB, 4 * MB)
    assert writer.trim(0) == 5 * MB
    assert committed_bytes(fd) == 4 * MB


def test_used_and_warm_memory_stay_within_the_allowance_together(make_writer):
    writer = make_writer(allowance_bytes=8 * MB)
    small = [writer.allocate(MB) for _ in range(6)]
    for extent in small:
        writer.write(extent, [bytes(MB)])
    for extent in small[::2] + small[1:5:2]:
        writer.free(extent)
    large = writer.allocate(6 * MB)
    writer.write(large, [bytes(6 * MB)])
    assert writer.used_bytes + writer.free_warm_bytes == 8 * MB
    assert committed_bytes(writer.fd_of(large[0])[0]) <= 8 * MB


def test_a_terabyte_allowance_costs_nothing_until_used(make_writer):
    writer = make_writer(allowance_bytes=1 << 40)
    before = [writer.allocate(300 << 30) for _ in range(3)]
    assert not any(writer.fd_of(extent[0])[2] for extent in before)
    assert committed_bytes(writer.fd_of(before[0][0])[0]) == 0
    last = (before[2][0], before[2][1] + (300 << 30) - MB, MB)
    writer.write(last, [bytes(MB)])
    assert committed_bytes(writer.fd_of(before[0][0])[0]) == MB


def test_a_double_or_foreign_free_is_refused(make_writer):
    writer = make_writer()
    extent = writer.allocate(10)
    writer.free(extent)
    with pytest.raises(ValueError, match="not in use"):
        writer.free(extent)
    with pytest.raises(ValueError, match="not one of this writer"):
        writer.free((12345, 0, 10))


def test_one_fd_per_segment(make_writer):
    before = len(os.listdir("/proc/self/fd"))
    writer = make_writer(allowance_bytes=2 * MB)
    for _ in range(2):  # the second time through a mapping
        extent = writer.allocate(MB)
        writer.write(extent, [bytes(MB)])
        writer.free(extent)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    writer.allocate(4 * MB)
    assert len(os.listdir("/proc/self/fd")) == before + 2
    writer.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_where_the_segment_cannot_be_mapped_warm_ranges_are_written_all_the_same(make_writer, monkeypatch):
    monkeypatch.setattr(segment, "map_shared", fail(errno.ENOMEM))
    writer = make_writer()
    for data in (b"first", b"again"):
        extent = writer.allocate(5)
        writer.write(extent, [data])
        assert content_of(writer, extent) == data
        writer.free(extent)


def test_running_out_of_fds_is_said_as_it_is_and_a_later_try_works(make_writer, monkeypatch):
    writer = make_writer()
    with monkeypatch.context() as patch:
        patch.setattr(os, "memfd_create", fail(errno.EMFILE))
        with pytest.raises(OSError, match="Too many open files"):
            writer.allocate(10)
    assert writer.segments() == []
    writer.allocate(10)


def test_memory_that_the_system_refuses_while_writing_is_a_full_store(make_writer, monkeypatch):
    writer = make_writer()
    extent = writer.allocate(MB)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", fail(errno.ENOMEM))
        with pytest.raises(StoreFullError, match="Cannot allocate memory") as caught:
            writer.write(extent, [bytes(MB)])
    assert caught.value.size_bytes == MB
    writer.free(extent)
    assert writer.used_bytes == 0


# -- disk -----------------------------------------------------------------------------------------


def test_what_goes_over_the_allowance_is_on_disk_with_a_checksum(make_writer, tmp_path):
    writer = make_writer(allowance_bytes=2 * MB)
    memory = writer.allocate(2 * MB)
    disk = writer.allocate(3 * MB)
    assert [writer.fd_of(extent[0])[2] for extent in (memory, disk)] == [False, True]
    assert list(tmp_path.iterdir()) == []
    fd = writer.fd_of(disk[0])[0]
    assert committed_bytes(fd) >= 3 * MB, "blocks are reserved before they are written"
    data = os.urandom(3 * MB)
    assert writer.checksum_of(disk) is None
    assert writer.write(disk, [data[:MB], data[MB:]]) == zlib.crc32(data) == writer.checksum_of(disk)
    assert writer.checksum_of(memory) is None
    assert (writer.used_bytes, writer.spilled_bytes) == (2 * MB, 3 * MB)
    writer.free(disk)
    assert writer.checksum_of(disk) is None
    assert writer.spilled_bytes == 0
    assert committed_bytes(fd) < MB, "disk blocks are given back at once"
    writer.free(memory)
    assert writer.fd_of(writer.allocate(2 * MB)[0])[2] is False


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_names_sizes_and_changes_nothing(make_writer, monkeypatch, code):
    writer = make_writer(allowance_bytes=MB)
    writer.allocate(MB)
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", fail(code))
        with pytest.raises(StoreFullError, match=r"3\.1 MB does not fit: of the 1\.0 MB of memory") as caught:
            writer.allocate(3 * MB)
    assert caught.value.size_bytes == 3 * MB
    assert caught.value.budget_bytes == MB
    assert caught.value.disk_free_bytes > 0
    assert isinstance(caught.value.__cause__, OSError)
    assert writer.spilled_bytes == 0
    assert writer.fd_of(writer.allocate(3 * MB)[0])[2] is True


def test_an_object_larger_than_the_disk_is_refused_without_trying(make_writer, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", fail(errno.EIO))
    writer = make_writer(allowance_bytes=MB)
    with pytest.raises(StoreFullError, match="to spare$"):
        writer.allocate(1 << 50)
    assert writer.segments() == []


def test_a_spill_directory_that_is_not_there_is_named(make_writer, tmp_path):
    writer = make_writer(allowance_bytes=0, spill_dir=str(tmp_path / "missing"))
    with pytest.raises(StoreFullError, match="missing cannot be used .No such file"):
        writer.allocate(10)


def test_a_small_dev_shm_without_memfd_overflows_to_disk(make_writer, monkeypatch):
    monkeypatch.setattr(os, "memfd_create", fail(errno.ENOSYS))
    writer = make_writer()
    memory = writer.allocate(MB)
    assert committed_bytes(writer.fd_of(memory[0])[0]) == MB
    real = os.posix_fallocate
    memory_fd = writer.fd_of(memory[0])[0]

    def posix_fallocate(fd, offset, size):
        if fd == memory_fd:
            raise OSError(errno.ENOSPC, "small /dev/shm")
        real(fd, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", posix_fallocate)
    assert writer.fd_of(writer.allocate(MB)[0])[2] is True
    assert (writer.used_bytes, writer.free_warm_bytes) == (MB, 0)
    writer.free(memory)
    assert writer.allocate(MB) == memory, "its blocks are still there"


def test_a_file_system_that_cannot_punch_holes_is_no_error(make_writer, monkeypatch):
    monkeypatch.setattr(segment, "punch", lambda fd, offset, size: False)
    writer = make_writer(allowance_bytes=0)
    for _ in range(2):
        extent = writer.allocate(MB)
        writer.write(extent, [bytes(MB)])
        writer.free(extent)


def test_punch_reports_what_the_kernel_says():
    with pytest.raises(OSError, match="Bad file descriptor"):
        segment.punch(-1, 0, 4096)
    read_end, write_end = os.pipe()
    try:
        with pytest.raises(OSError):
            segment.punch(write_end, 0, 4096)
    finally:
        os.close(read_end)
        os.close(write_end)
