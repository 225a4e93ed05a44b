"""Full sockets, interrupted and refused system calls: slower or fewer, never stuck, never wrong."""

from __future__ import annotations

import errno
import mmap
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from faults import DEADLINE_S

from scaleout._runtime.node import supervisor as supervisor_module
from scaleout._runtime.node.reactor import Reactor
from scaleout._runtime.wire import frames
from scaleout._runtime.wire import link as link_module
from scaleout._runtime.wire.link import Link
from scaleout.errors import ProcessLimitError, SessionClosedError
from scaleout.multiprocessing import Pool


@pytest.fixture
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Socket pairs that hold a few KB: every larger frame is sent in pieces, and both sides find them full."""
    real = socket.socketpair

    def socketpair(*arguments: Any) -> tuple[socket.socket, socket.socket]:
        pair = real(*arguments)
        for end in pair:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4608)
        return pair

    monkeypatch.setattr(socket, "socketpair", socketpair)


def echo(value: bytes) -> bytes:
    return value


def pattern(number: int, size: int) -> bytes:
    return number.to_bytes(4, "big") * (size // 4)


@pytest.mark.parametrize(("size", "count"), [(60_000, 2000), (100_000, 1000), (1_000_000, 100)])
def test_echo_with_small_buffers(small_buffers: None, size: int, count: int) -> None:
    with Pool(2) as pool:
        results = [pool.apply_async(echo, (pattern(number, size),)) for number in range(count)]
        for number, result in enumerate(results):
            assert result.get(DEADLINE_S) == pattern(number, size)
            results[number] = None  # type: ignore[call-overload]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "count"), [(60_000, 10_000), (100_000, 10_000), (1_000_000, 300)])
def test_echo_of_very_many(small_buffers: None, size: int, count: int) -> None:
    with Pool(2) as pool:
        results = [pool.apply_async(echo, (pattern(number, size),)) for number in range(count)]
        for number, result in enumerate(results):
            assert result.get(20 * DEADLINE_S) == pattern(number, size)
            results[number] = None  # type: ignore[call-overload]


@pytest.mark.parametrize("size", [60_000, 100_000])
def test_imap_of_large_items_from_many_threads(small_buffers: None, size: int) -> None:
    errors: list[BaseException] = []

    def use(seed: int) -> None:
        try:
            items = (pattern(seed * 1000 + number, size) for number in range(60))
            for number, value in enumerate(pool.imap(echo, items, buffersize=20)):
                assert value == pattern(seed * 1000 + number, size)
        except BaseException as error:  # noqa: BLE001 - it is raised in the main thread
            errors.append(error)

    with Pool(2) as pool:
        threads = [threading.Thread(target=use, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * DEADLINE_S)
            assert not thread.is_alive()
    assert errors == []


def test_results_that_nobody_reads_do_not_stop_the_others(small_buffers: None) -> None:
    with Pool(2) as pool:
        unread = [pool.apply_async(echo, (pattern(number, 60_000),)) for number in range(500)]
        assert pool.apply_async(echo, (b"after",)).get(DEADLINE_S) == b"after"
        assert unread[-1].get(DEADLINE_S) == pattern(499, 60_000)


# -- the link alone ---------------------------------------------------------------------------------


class Moody:
    """A socket whose calls are interrupted, refused and cut short, at random but repeatably."""

    def __init__(self, real: socket.socket, chance: random.Random) -> None:
        self._real = real
        self._chance = chance

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def _mood(self) -> None:
        if self._chance.random() < 0.3:
            raise BlockingIOError(errno.EAGAIN, "not now")

    def send(self, data: Any) -> int:
        self._mood()
        return self._real.send(data[: self._chance.randint(1, 1 + len(data) // 2)])

    def sendmsg(self, buffers: list[Any], ancillary: Any) -> int:
        self._mood()
        return self._real.sendmsg([buffers[0][: self._chance.randint(1, len(buffers[0]))]], ancillary)

    def recvmsg(self, size: int, *rest: Any) -> Any:
        self._mood()
        return self._real.recvmsg(self._chance.randint(1, min(size, 3000)), *rest)


@pytest.mark.parametrize("seed", range(10))
def test_frames_and_descriptors_arrive_whole_and_in_order(seed: int) -> None:
    chance = random.Random(seed)
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)
    out, back = Link(Moody(ours, chance)), Link(Moody(theirs, chance))  # type: ignore[arg-type]
    sent, received, inodes = [], [], []
    for number in range(300):
        body = bytes([number % 256]) * chance.choice([0, 1, 19, 20, 21, 500, 70_000])
        fd = -1
        if chance.random() < 0.2:
            fd = os.memfd_create(f"test-{number}")
            inodes.append(os.fstat(fd).st_ino)
        out.queue(frames.frame(frames.SEGMENT if fd >= 0 else frames.RESULT, body, number=number), fd)
        if fd >= 0:
            os.close(fd)
        sent.append((number, body))
        if chance.random() < 0.5:
            out.flush()
    found = []
    for _ in range(100_000):
        is_all_out = out.flush()
        try:
            data = back.receive()
        except BlockingIOError:
            continue
        for kind, _, _, number, body in back.frames(data):
            received.append((number, body))
            if kind == frames.SEGMENT:
                fd = back.fds.popleft()
                found.append(os.fstat(fd).st_ino)
                os.close(fd)
        if is_all_out and len(received) == len(sent):
            break
    assert received == sent
    assert found == inodes
    out.close()
    back.close()


def test_a_link_whose_stream_is_over_is_not_watched_any_more() -> None:
    """It may still have something to send when its worker leaves: that once ended the reactor's thread."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    link = Link(ours)

    def more_than_the_socket_takes() -> None:
        link.queue(bytes(1 << 24))
        reactor.flush_soon(link)
        reactor.post(None)  # another turn

    def its_stream_is_over() -> None:
        reactor.forget(ours.fileno())
        theirs.close()
        reactor.flush_soon(link)  # into the void, so that nothing is left to wait for
        reactor.stop()

    turns = [its_stream_is_over, more_than_the_socket_takes]
    reactor = Reactor("test-reactor", lambda item: None, lambda: turns.pop()(), lambda: None)
    reactor.watch(ours.fileno(), lambda events: None)
    reactor.start()
    reactor.thread.join(DEADLINE_S)
    link.close()
    assert reactor.failure is None and not turns


def test_a_link_that_is_closed_takes_nothing_and_leaks_nothing() -> None:
    ours, theirs = socket.socketpair()
    link = Link(ours)
    link.queue(b"waiting", 0)
    link.close()
    theirs.close()
    link.queue(b"late", 0)
    link.queue_and_give(b"late", os.dup(0))
    link.close()


def test_a_pool_on_moody_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole runtime, with every call of the driver's side cut short."""
    chance = random.Random(1)
    real_init = Link.__init__

    def init(self: Link, sock: socket.socket) -> None:
        real_init(self, sock)
        if threading.current_thread().name == "scaleout-reactor":
            self.sock = Moody(sock, chance)  # type: ignore[assignment]

    monkeypatch.setattr(Link, "__init__", init)
    with Pool(2) as pool:
        assert pool.map(echo, [pattern(n, 5000) for n in range(200)], chunksize=1) == [
            pattern(n, 5000) for n in range(200)
        ]
        results = [pool.apply_async(echo, (pattern(n, 60_000),)) for n in range(100)]
        assert [result.get(DEADLINE_S) for result in results] == [pattern(n, 60_000) for n in range(100)]
        assert len(pool.apply(bytes, (1_000_000,))) == 1_000_000


# -- refusals ---------------------------------------------------------------------------------------


class Refusals:
    """Lets `after` calls of a function pass, and refuses the `times` that follow."""

    def __init__(self, real: Callable[..., Any], error: int, after: int, times: int) -> None:
        self.real = real
        self.error = error
        self.after = after
        self.times = times

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        if self.after > 0:
            self.after -= 1
        elif self.times > 0:
            self.times -= 1
            raise OSError(self.error, os.strerror(self.error))
        return self.real(*arguments, **keywords)


def refuse(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, error: int, *, after: int = 0, times: int = 10**9
) -> None:
    monkeypatch.setattr(module, name, Refusals(getattr(module, name), error, after, times))


@pytest.fixture
def warm() -> Iterator[None]:
    """A zygote that runs already, so that only what a group needs is refused."""
    with Pool(1) as pool:
        pool.apply(abs, (1,))
    yield
    with Pool(2) as pool:  # and what was refused once is not for ever
        assert pool.map(abs, [-1, -2], chunksize=1) == [1, 2]


REFUSED = [
    (socket, "socketpair", errno.EMFILE),
    (socket, "socketpair", errno.ENFILE),
    (os, "memfd_create", errno.EMFILE),
    (os, "ftruncate", errno.ENOSPC),
    (mmap, "mmap", errno.ENOMEM),
    (os, "dup", errno.EMFILE),
]
IDS = [f"{name}-{errno.errorcode[error]}" for _, name, error in REFUSED]


@pytest.mark.parametrize(("module", "name", "error"), REFUSED, ids=IDS)
def test_no_worker_at_all(module: Any, name: str, error: int, warm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        refuse(patch, module, name, error)
        with Pool(2) as pool:
            result = pool.map_async(abs, range(4))
            result.wait(DEADLINE_S)
            assert result.ready()
            with pytest.raises(ProcessLimitError, match=os.strerror(error)):
                result.get()
            with pytest.raises(ProcessLimitError):
                pool.apply_async(abs, (1,)).get(DEADLINE_S)


@pytest.mark.parametrize(("module", "name", "after"), [(socket, "socketpair", 2), (mmap, "mmap", 2)])
def test_fewer_workers_than_asked_for(
    module: Any, name: str, after: int, warm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[Any] = []
    monkeypatch.setattr(supervisor_module, "warn_of_smaller_group", lambda *arguments: warned.append(arguments))
    with monkeypatch.context() as patch:
        refuse(patch, module, name, errno.ENOMEM, after=after)
        with Pool(5) as pool:
            assert pool.map(abs, range(-20, 0), chunksize=1) == list(range(20, 0, -1))
            assert len(pool._pool) == 2
    assert warned == [(2, f"[Errno 12] {os.strerror(errno.ENOMEM)}")]


def test_the_warning_of_a_smaller_group() -> None:
    with pytest.warns(RuntimeWarning, match=r"a worker could not be started \(no room\); going on with 3"):
        supervisor_module.warn_of_smaller_group(3, "no room")


def test_a_replacement_is_refused(warm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The group goes on with those that are left."""
    monkeypatch.setattr(supervisor_module, "warn_of_smaller_group", lambda *arguments: None)
    with Pool(2) as pool, monkeypatch.context() as patch:
        pool.map(abs, range(4), chunksize=1)
        refuse(patch, socket, "socketpair", errno.EMFILE)
        pool._pool[0].kill()
        pool._pool[0].join(DEADLINE_S)
        assert pool.map(abs, range(-9, 0), chunksize=1) == list(range(9, 0, -1))
        assert len(pool._pool) == 1


def test_the_zygote_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first Pool says so at once."""
    from scaleout._runtime import session

    session.close_idle()
    with monkeypatch.context() as patch:
        patch.setattr(session, "_session", None)
        refuse(patch, os, "posix_spawn", errno.EAGAIN)
        with pytest.raises(OSError, match=os.strerror(errno.EAGAIN)):
            Pool(2)
    with Pool(1) as pool:
        assert pool.apply(abs, (-1,)) == 1


def test_the_zygote_cannot_be_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later one, too, or its calls do."""
    from scaleout._runtime import session

    with Pool(1) as pool:
        pool.apply(abs, (1,))
    session.close_idle()
    with monkeypatch.context() as patch:
        refuse(patch, os, "posix_spawn", errno.EAGAIN)
        with Pool(2) as pool:
            with pytest.raises(ProcessLimitError, match=os.strerror(errno.EAGAIN)):
                pool.apply_async(abs, (1,)).get(DEADLINE_S)
    with Pool(1) as pool:
        assert pool.apply(abs, (-1,)) == 1


def test_large_arguments_without_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call that needs a segment fails, by name; the pool goes on."""
    with Pool(1) as pool:
        pool.apply(abs, (1,))
        with monkeypatch.context() as patch:
            refuse(patch, os, "memfd_create", errno.EMFILE)
            with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
                pool.apply_async(len, (b"x" * 500_000,)).get(DEADLINE_S)
        assert pool.apply_async(len, (b"x" * 500_000,)).get(DEADLINE_S) == 500_000


def use_up_descriptors() -> int:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (32, hard))
    kept = []
    try:
        while True:
            kept.append(os.dup(0))
    except OSError:
        return len(kept)
    finally:
        globals()["kept"] = kept


def give_back_descriptors() -> None:
    for fd in globals()["kept"]:
        os.close(fd)


def make_bytes(size: int) -> bytes:
    return b"y" * size


def test_a_worker_without_descriptors() -> None:
    """It cannot take a segment: its call ends with an error, or another worker does it."""
    with Pool(1, max_retries=0) as pool:
        assert pool.apply(use_up_descriptors) > 0
        with pytest.raises(Exception):  # noqa: B017 - which one depends on where it is short
            pool.apply_async(make_bytes, (500_000,)).get(DEADLINE_S)
        result = pool.apply_async(len, (b"x" * 500_000,))
        result.wait(DEADLINE_S)
        assert result.ready()
        for worker in pool._pool:
            worker.kill()
            worker.join(DEADLINE_S)
        assert pool.apply_async(len, (b"x" * 500_000,)).get(DEADLINE_S) == 500_000


# -- a bug of ours ----------------------------------------------------------------------------------


def test_a_reactor_that_fails_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever raises there: calls under way and later ones say so, and the next Pool works."""
    seen: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", seen.append)
    pool = Pool(2)
    pool.map(abs, range(4), chunksize=1)
    pending = pool.map_async(echo, [b"x"] * 10, chunksize=1)
    stuck = pool.apply_async(time.sleep, (3600,))

    def fail() -> None:
        raise ZeroDivisionError

    pool._group.post(fail)
    for result in (pending, stuck):
        result.wait(DEADLINE_S)
        assert result.ready()
    with pytest.raises(SessionClosedError, match="runtime failed") as caught:
        stuck.get()
    assert type(caught.value.__cause__) is ZeroDivisionError
    with pytest.raises(SessionClosedError):
        pool.apply_async(abs, (1,)).get(DEADLINE_S)
    with pytest.raises(SessionClosedError):
        pool.apply_async(abs, (1,), callback=print, error_callback=lambda error: None).get(DEADLINE_S)
    with pytest.raises(SessionClosedError):
        pool.apply_async(len, (b"x" * 500_000,)).get(DEADLINE_S)
    with Pool(2) as second:
        assert second.map(abs, range(-4, 0)) == [4, 3, 2, 1]
    pool.terminate()
    pool.join()
    assert [entry.exc_type for entry in seen] == [ZeroDivisionError]


def test_the_gathering_of_sends_is_bounded() -> None:
    assert link_module.GATHER_BYTES <= 1 << 20
