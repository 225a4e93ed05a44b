"""The reader against a real writer in the same process: two mappings of one file do not share a process."""

from __future__ import annotations

import errno
import gc
import os
import sys
import traceback
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from scaleout._runtime.store import segment
from scaleout._runtime.store.reader import SegmentReader, _Segment
from scaleout._runtime.store.writer import SegmentWriter
from scaleout.errors import ObjectLostError

KB = 1 << 10
MB = 1 << 20


class Store:
    """A writer, a reader that knows its segments, and how often the reader called on_released."""

    def __init__(self, tmp_path, allowance_bytes=256 * MB):
        self.writer = SegmentWriter(allowance_bytes=lambda: allowance_bytes, spill_dir=str(tmp_path))
        self.wakes = []
        self.reader = SegmentReader(lambda: self.wakes.append(None))

    def put(self, data):
        extent = self.writer.allocate(len(data))
        self.writer.write(extent, [data])
        if not self.reader.knows(extent[0]):
            fd, size_bytes, is_on_disk = self.writer.fd_of(extent[0])
            self.reader.add(extent[0], os.dup(fd), size_bytes, is_on_disk)
        return extent

    def content_of(self, extent):
        return os.pread(self.writer.fd_of(extent[0])[0], extent[2], extent[1])

    def committed_bytes(self, extent):
        return os.fstat(self.writer.fd_of(extent[0])[0]).st_blocks * 512


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path)
    yield store
    store.reader.close()
    store.writer.close()


@pytest.fixture(params=["shared mapping", "mapping per object"])
def any_store(store, request, monkeypatch):
    """Both ways of mapping: with overcommit_memory=2 or RLIMIT_AS the whole segment cannot be mapped."""
    if request.param == "mapping per object":
        real = segment.map_private

        def map_private(fd, offset, size_bytes):
            if size_bytes == segment.SEGMENT_BYTES:
                raise OSError(errno.ENOMEM, "no such address space")
            return real(fd, offset, size_bytes)

        monkeypatch.setattr(segment, "map_private", map_private)
    return store


def private_kb():
    """Privately written pages of segments, in this process."""
    total, is_segment = 0, False
    with open("/proc/self/smaps") as maps:
        for line in maps:
            if "-" in line.split(" ", 1)[0]:
                is_segment = "memfd:scaleout" in line
            elif is_segment and line.startswith("Private_Dirty:"):
                total += int(line.split()[1])
    return total


# -- isolation ------------------------------------------------------------------------------------


def test_a_view_has_exactly_the_bytes_and_is_writable(any_store):
    data = os.urandom(200 * KB + 3)
    view = any_store.reader.open(any_store.put(data))
    assert (view.nbytes, view.format, view.ndim, view.readonly) == (len(data), "B", 1, False)
    assert view == data


def test_writes_to_a_view_reach_neither_the_writer_nor_another_opening(any_store):
    extent = any_store.put(b"x" * 200 * KB)
    first, second = any_store.reader.open(extent), any_store.reader.open(extent)
    first[:3] = b"abc"
    second[-3:] = b"xyz"
    assert bytes(first[:4]) == b"abcx" and bytes(first[-3:]) == b"xxx"
    assert bytes(second[:3]) == b"xxx" and bytes(second[-3:]) == b"xyz"
    assert any_store.content_of(extent) == b"x" * 200 * KB
    third = any_store.reader.open(extent)
    assert third == b"x" * 200 * KB


@pytest.mark.parametrize(("skip", "size"), [(0, 4 * KB), (64 * KB, 4 * KB), (64 * KB, 136 * KB), (196 * KB, 4 * KB)])
def test_openings_that_overlap_in_part_are_isolated_too(any_store, skip, size):
    segment_id, offset, _ = extent = any_store.put(b"x" * 200 * KB)
    inner = (segment_id, offset + skip, size)
    for one, other in ((extent, inner), (inner, extent)):
        view, other_view = any_store.reader.open(one), any_store.reader.open(other)
        view[:] = b"y" * view.nbytes
        assert other_view == b"x" * other_view.nbytes
        del view, other_view
        any_store.reader.drain_released()


def test_a_later_opening_does_not_see_what_an_earlier_one_wrote(any_store):
    """Also without a drain in between: `open` gives private pages back itself; the release is reported later."""
    extent = any_store.put(b"x" * 200 * KB)
    for _ in range(3):
        view = any_store.reader.open(extent)
        assert view == b"x" * 200 * KB
        view[:] = b"y" * 200 * KB
        del view
    assert any_store.reader.drain_released() == [extent] * 3
    assert any_store.reader.drain_released() == []


def test_a_released_range_is_recycled_without_old_private_pages(any_store):
    """The whole range is given back, so new data is seen in pages that had been written privately."""
    extent = any_store.put(b"x" * 200 * KB)
    view = any_store.reader.open(extent)
    view[:] = b"y" * 200 * KB
    small = view[100:110]
    del view
    assert any_store.reader.drain_released() == []
    del small
    assert any_store.reader.drain_released() == [extent]
    any_store.writer.free(extent)
    again = any_store.put(b"z" * 200 * KB)
    assert again == extent
    assert any_store.reader.open(again) == b"z" * 200 * KB


def test_private_pages_are_given_back_before_the_extent_is_reported(store):
    """The order: last view dies, MADV_DONTNEED over the whole range, then the report."""
    extent = store.put(bytes(8 * MB))
    before = private_kb()
    view = store.reader.open(extent)
    view[:] = b"y" * 8 * MB
    assert private_kb() - before == 8 * KB
    del view
    assert private_kb() - before == 8 * KB
    assert store.reader.drain_released() == [extent]
    assert private_kb() - before == 0


# -- pins -----------------------------------------------------------------------------------------


def test_every_kind_of_derived_view_keeps_the_pin(any_store):
    np = pytest.importorskip("numpy")
    extent = any_store.put(bytes(range(256)) * KB)
    view = any_store.reader.open(extent)
    array = np.frombuffer(view, dtype=np.uint8)
    assert array.flags.writeable and not array.flags.owndata
    holders = {
        "slice of a numpy array": array[10:20:3],
        "reshaped": array.reshape(256, -1).T[5],
        "other dtype": array.view(np.int64)[::7],
        "memoryview of an array": memoryview(array)[1:],
        "memoryview slice": view[5:6],
        "cast": view.cast("Q"),
        "with a cycle": [array],
    }
    holders["with a cycle"].append(holders["with a cycle"])
    del view, array
    for name in list(holders):
        assert any_store.reader.drain_released() == [], name
        del holders[name]
    assert any_store.reader.drain_released() == []
    gc.collect()
    assert any_store.reader.drain_released() == [extent]


def test_on_released_is_called_once_the_last_view_is_gone(any_store):
    extent = any_store.put(bytes(200 * KB))
    view = any_store.reader.open(extent)
    part = view[1:]
    del view
    assert any_store.wakes == []
    del part
    assert len(any_store.wakes) == 1


def test_garbage_that_comes_back_to_life_keeps_its_pin(any_store):
    """The collector calls weakref callbacks before `__del__`, which may save the view: the pin must hold."""
    saved = []

    class Saves:
        def __init__(self, view):
            self.view, self.me = view, self

        def __del__(self):
            saved.append(self.view)

    extent = any_store.put(b"x" * 200 * KB)
    Saves(any_store.reader.open(extent))
    gc.collect()
    assert len(saved) == 1
    assert any_store.reader.drain_released() == []
    assert saved.pop() == b"x" * 200 * KB
    assert any_store.reader.drain_released() == [extent]


def test_a_finalizer_may_open_and_drain_anywhere(store):
    """User code that the garbage collector runs inside the reader opens extents there."""
    extent = store.put(b"x" * 200 * KB)
    store.reader.open(extent)
    inner_views = []

    def on_released():
        inner_views.append(store.reader.open(extent))
        store.reader.drain_released()

    reader = SegmentReader(on_released)
    fd, size_bytes, _ = store.writer.fd_of(extent[0])
    reader.add(extent[0], os.dup(fd), size_bytes)
    try:
        view = reader.open(extent)
        del view
        second = reader.open(extent)
        second[:] = b"y" * 200 * KB
        assert all(view == b"x" * 200 * KB for view in inner_views)
        assert reader.drain_released() == [extent]
    finally:
        reader.close()


def test_an_open_while_its_range_is_given_back_gets_a_mapping_of_its_own(any_store, monkeypatch):
    """As if a garbage collection, or another thread, opened in the middle of `_settle`."""
    extent = any_store.put(b"x" * 200 * KB)
    inner_views = []
    real = _Segment.unclaim

    def unclaim(*args):
        inner_views.append(any_store.reader.open(extent))
        inner_views[-1][:1] = b"z"
        real(*args)

    any_store.reader.open(extent)[:1] = b"y"
    with monkeypatch.context() as patch:
        patch.setattr(_Segment, "unclaim", unclaim)
        any_store.wakes.clear()
        view = any_store.reader.open(extent)
    assert any_store.wakes, "what `open` settled itself has to be drained"
    assert [bytes(inner[:1]) for inner in inner_views] == [b"z"]
    assert bytes(view[:1]) == b"x"
    assert any_store.reader.drain_released() == [extent]


@pytest.mark.parametrize("switch_interval_s", [None, 1e-6])
def test_many_threads_open_write_and_release_one_extent(store, switch_interval_s):
    """Also with a change of threads after nearly every opcode, which finds in one run what else takes hundreds."""
    extent = store.put(b"x" * 200 * KB)
    reported = []

    def use(index):
        for _ in range(100):
            view = store.reader.open(extent)
            assert bytes(view[:2]) == b"xx"
            view[:2] = bytes([index, index])
            assert bytes(view[:2]) == bytes([index, index])
            del view
            reported.extend(store.reader.drain_released())

    before = sys.getswitchinterval()
    sys.setswitchinterval(switch_interval_s or before)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(use, range(4)))
    finally:
        sys.setswitchinterval(before)
    reported.extend(store.reader.drain_released())
    assert reported == [extent] * 400


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_anywhere_in_open_reports_at_most_once_and_breaks_nothing(store):
    """A KeyboardInterrupt at each line of the reader in turn: nothing is doubled, and the next open is right."""
    extent = store.put(b"x" * 200 * KB)
    store.reader.open(extent)[:1] = b"y"
    file = sys.modules[SegmentReader.__module__].__file__
    for stop_at in range(1, 1000):
        count = 0

        def trace(frame, event, arg, stop_at=stop_at):
            nonlocal count
            if frame.f_code.co_filename != file:
                return None
            if event == "line":
                count += 1
                if count == stop_at:
                    raise KeyboardInterrupt
            return trace

        was_interrupted = False
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            store.reader.open(extent)[:1] = b"y"
        except KeyboardInterrupt:
            was_interrupted = True
        finally:
            sys.settrace(before)
        reported = store.reader.drain_released()
        assert set(reported) <= {extent} and len(reported) <= 2  # the second: opened before the loop
        view = store.reader.open(extent)
        assert view == b"x" * 200 * KB
        del view
        assert store.reader.drain_released() == [extent]
        if not was_interrupted:
            assert store.reader._segments[extent[0]].claims == []
            return
    raise AssertionError("never ran to its end")


# -- failure --------------------------------------------------------------------------------------


def test_damage_on_disk_is_found_by_its_checksum(tmp_path):
    store = Store(tmp_path, allowance_bytes=0)
    try:
        data = os.urandom(3 * MB)
        extent = store.put(data)
        checksum = store.writer.checksum_of(extent)
        assert store.reader.open(extent, checksum) == data
        assert store.reader.copy_out(extent, checksum) == data
        os.pwrite(store.writer.fd_of(extent[0])[0], bytes([data[MB] ^ 1]), extent[1] + MB)
        with pytest.raises(ObjectLostError, match="damaged on disk"):
            store.reader.open(extent, checksum)
        with pytest.raises(ObjectLostError, match="damaged on disk"):
            store.reader.copy_out(extent, checksum)
        assert store.reader.drain_released() == [extent] * 2, "an open that raised is reported too"
    finally:
        store.reader.close()
        store.writer.close()


def test_a_disk_that_cannot_be_read_is_a_lost_object(store, monkeypatch):
    extent = store.put(b"data")

    def pread(fd, size, offset):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", pread)
    with pytest.raises(ObjectLostError, match="Input/output error"):
        store.reader.open(extent, 0)


def test_an_object_that_cannot_be_mapped_is_a_memory_error_and_reported(store, monkeypatch):
    extent = store.put(bytes(200 * KB))
    with monkeypatch.context() as patch:

        def map_private(fd, offset, size_bytes):
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

        patch.setattr(segment, "map_private", map_private)
        with pytest.raises(MemoryError, match="cannot be mapped"):
            store.reader.open(extent)
    assert store.reader.drain_released() == [extent]
    assert store.reader.open(extent) == bytes(200 * KB)


def test_an_unknown_segment_is_a_lost_object(store):
    with pytest.raises(ObjectLostError, match="not known here"):
        store.reader.open((77, 0, 4096))
    with pytest.raises(ObjectLostError, match="not known here"):
        store.reader.copy_out((77, 0, 4096))
    assert store.reader.drain_released() == [(77, 0, 4096)]


@pytest.mark.parametrize("wrong", [(0, 100, 10), (0, 0, 0), (0, -4096, 10), (0, segment.SEGMENT_BYTES, 1)])
def test_what_is_no_extent_is_refused(store, wrong):
    segment_id, _, _ = store.put(bytes(200 * KB))
    with pytest.raises(ValueError, match="is not an extent"):
        store.reader.open((segment_id, *wrong[1:]))


def test_rlimit_as_for_real(store):
    """A child with little address space maps object by object."""
    resource = pytest.importorskip("resource")
    extent = store.put(b"x" * 200 * KB)

    def check():
        resource.setrlimit(resource.RLIMIT_AS, (32 << 30, 32 << 30))
        view = store.reader.open(extent)
        assert view == b"x" * 200 * KB
        assert store.reader._segments[extent[0]]._mapping is None

    assert exit_status_of(fork_and_run(check)) == 0


# -- small objects, fds ---------------------------------------------------------------------------


def test_small_objects_are_copied_out(store):
    extent = store.put(b"small")
    assert store.reader.copy_out(extent) == b"small"
    assert store.reader.drain_released() == []


def test_one_fd_per_segment_whatever_is_open(any_store):
    extent = any_store.put(bytes(200 * KB))
    before = len(os.listdir("/proc/self/fd"))
    views = [any_store.reader.open(extent) for _ in range(5)]
    assert len(os.listdir("/proc/self/fd")) == before
    del views


def test_the_fd_of_a_segment_that_is_known_already_is_closed(store):
    segment_id, _, _ = store.put(b"x")
    fd, size_bytes, _ = store.writer.fd_of(segment_id)
    before = len(os.listdir("/proc/self/fd"))
    store.reader.add(segment_id, os.dup(fd), size_bytes)
    assert len(os.listdir("/proc/self/fd")) == before


# -- dead writers ---------------------------------------------------------------------------------


def test_a_dropped_segment_goes_with_its_last_view(any_store):
    extent = any_store.put(b"x" * 200 * KB)
    views = [any_store.reader.open(extent), any_store.reader.open(extent)]
    fds = len(os.listdir("/proc/self/fd"))
    any_store.reader.drop_segment(extent[0])
    assert not any_store.reader.knows(extent[0])
    with pytest.raises(ObjectLostError):
        any_store.reader.open(extent)
    any_store.reader.drain_released()
    views.pop()
    assert any_store.reader.drain_released() == [extent]
    assert views[0] == b"x" * 200 * KB
    views.clear()
    assert any_store.reader.drain_released() == [extent]
    assert len(os.listdir("/proc/self/fd")) == fds - 1
    assert any_store.reader._segments == {}


def test_memory_of_a_dead_writer_is_given_back_though_one_view_lives(any_store):
    extents = [any_store.put(bytes([index]) * MB) for index in range(8)]
    kept, other = any_store.reader.open(extents[3]), any_store.reader.open(extents[5])
    any_store.reader.drop_segment(extents[0][0])
    any_store.reader.punch_unpinned(extents[0][0], keep=[extents[6]])
    assert any_store.committed_bytes(extents[0]) == 3 * MB
    assert any_store.content_of(extents[6]) == bytes([6]) * MB
    del other
    any_store.reader.punch_unpinned(extents[0][0])
    assert any_store.committed_bytes(extents[0]) == MB
    assert kept == bytes([3]) * MB
    any_store.reader.punch_unpinned(12345)


def test_views_outlive_the_reader(any_store):
    extent = any_store.put(b"x" * 200 * KB)
    views = [any_store.reader.open(extent), any_store.reader.open(extent)]
    any_store.reader.close()
    assert all(view == b"x" * 200 * KB for view in views)
    views.clear()
    assert any_store.wakes == []
    assert any_store.reader.drain_released() == []


def test_nothing_refers_to_a_reader_but_its_user(any_store):
    any_store.reader.open(any_store.put(bytes(200 * KB)))
    dead = weakref.ref(any_store.reader)
    view = any_store.reader.open(any_store.put(bytes(200 * KB)))
    any_store.reader.close()
    any_store.reader = SegmentReader()
    gc.collect()
    assert dead() is None
    assert view.nbytes == 200 * KB


# -- fork -----------------------------------------------------------------------------------------


def fork_and_run(check):
    """The pid of a fork child that exits with 0 if `check` runs to its end."""
    pid = os.fork()
    if pid == 0:
        try:
            check()
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    return pid


def exit_status_of(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_views_stay_valid_in_a_fork_child_that_forgets(any_store):
    extent = any_store.put(b"x" * 200 * KB)
    views = [any_store.reader.open(extent), any_store.reader.open(extent)]
    read_end, write_end = os.pipe()

    def check():
        any_store.reader.forget()
        any_store.writer.close()
        os.close(write_end)
        os.read(read_end, 1)  # until the parent has done all it may do
        assert all(view == b"x" * 200 * KB for view in views)
        views[0][:1] = b"y"
        views.clear()
        assert any_store.reader.drain_released() == [] and any_store.wakes == []
        fd = os.memfd_create("new")
        os.ftruncate(fd, MB)
        any_store.reader.add(5, fd, MB)
        assert any_store.reader.open((5, 0, 10)) == bytes(10)
        assert any_store.reader.drain_released() == [(5, 0, 10)]

    any_store.reader.retain_pinned()  # before the fork
    pid = fork_and_run(check)
    os.close(read_end)
    views.clear()
    assert any_store.reader.drain_released() == [], "the child may still see them"
    later = any_store.reader.open(extent)
    assert later == b"x" * 200 * KB
    del later
    assert any_store.reader.drain_released() == [extent]
    os.close(write_end)
    assert exit_status_of(pid) == 0
