"""The encoder in this process: streams, buffers, reducers, threads, interrupts."""

from __future__ import annotations

import copyreg
import multiprocessing
import multiprocessing.connection
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest

from scaleout._runtime.pickling import names
from scaleout._runtime.pickling.decode import decode
from scaleout._runtime.pickling.definitions import DefinitionBook
from scaleout._runtime.pickling.encode import OUT_OF_BAND_BYTES, Encoded, Encoder


@pytest.fixture
def encoder() -> Encoder:
    return Encoder(DefinitionBook())


def value_of(encoded: Encoded) -> Any:
    return decode(b"".join(encoded.chunks), encoded.buffers)


class Plain:
    def __init__(self, value: Any) -> None:
        self.value = value


class Reduced:
    pass


def make_marked() -> str:
    return "marked"


def reduce_marked(obj: Any) -> Any:
    return make_marked, ()


@pytest.fixture
def unregister() -> Iterator[None]:
    extra = dict(ForkingPickler._extra_reducers)
    plain = dict(copyreg.dispatch_table)
    yield
    ForkingPickler._extra_reducers.clear()
    ForkingPickler._extra_reducers.update(extra)
    copyreg.dispatch_table.clear()
    copyreg.dispatch_table.update(plain)


@pytest.mark.parametrize("value", [1, None, (1, 2.5, "a", None, True), {"a": [1, {2}]}, b"x" * 100, "é", [b"y" * 9999]])
def test_small_values_are_one_chunk(encoder: Encoder, value: Any) -> None:
    for _ in range(3):
        encoded = encoder.encode(value)
        assert len(encoded.chunks) == 1 and type(encoded.chunks[0]) is bytes
        assert encoded.size_bytes == len(encoded.chunks[0])
        assert not encoded.buffers and encoded.needs == ()
        assert value_of(encoded) == value


def test_a_large_bytes_object_is_not_copied(encoder: Encoder) -> None:
    large = b"x" * 1_000_000
    encoded = encoder.encode((1, large, "end"))
    assert any(chunk is large for chunk in encoded.chunks)
    assert encoded.size_bytes == sum(map(len, encoded.chunks))
    assert value_of(encoded) == (1, large, "end")
    assert value_of(encoder.encode(list(range(100_000)))) == list(range(100_000))


def test_large_buffers_leave_the_stream_and_small_ones_stay(encoder: Encoder) -> None:
    numpy = pytest.importorskip("numpy")
    large, small = numpy.zeros(OUT_OF_BAND_BYTES, "u1"), numpy.ones(OUT_OF_BAND_BYTES - 1, "u1")
    encoded = encoder.encode([large, small, large])
    assert [view.nbytes for view in encoded.buffers] == [OUT_OF_BAND_BYTES]
    assert encoded.buffers[0].obj is large
    result = value_of(encoded)
    assert (result[0] == large).all() and (result[1] == small).all()
    assert encoder.encode(small[:10]).buffers == ()
    fortran = numpy.asfortranarray(numpy.arange(40_000).reshape(200, 200))
    assert (value_of(encoder.encode(fortran)) == fortran).all()
    assert (value_of(encoder.encode(fortran[::2, ::3])) == fortran[::2, ::3]).all()


def test_nothing_is_shared_between_calls_and_nothing_is_kept(encoder: Encoder) -> None:
    shared = Plain(1)
    first, second = encoder.encode(shared), encoder.encode(shared)
    assert first.chunks == second.chunks
    count = sys.getrefcount(shared)
    encoder.encode((shared, shared))
    assert sys.getrefcount(shared) == count


def test_reducers_of_user_code_are_honoured(encoder: Encoder, unregister: None) -> None:
    assert isinstance(value_of(encoder.encode(Reduced())), Reduced)
    ForkingPickler.register(Reduced, reduce_marked)
    assert value_of(encoder.encode(Reduced())) == "marked"
    ForkingPickler._extra_reducers[Reduced] = lambda obj: (str, ("other",))
    assert value_of(encoder.encode(Reduced())) == "other"
    copyreg.pickle(Plain, lambda obj: (str, ("plain",)))
    assert value_of(encoder.encode([Plain(1), Reduced()])) == ["plain", "other"]
    del ForkingPickler._extra_reducers[Reduced]
    assert isinstance(value_of(encoder.encode(Reduced())), Reduced)
    assert value_of(encoder.encode(Plain(1))) == "plain"
    assert value_of(encoder.encode((Plain(1), lambda: 5)))[0] == "plain"


def test_descriptors_are_refused_outside_of_spawning(encoder: Encoder) -> None:
    ours, theirs = multiprocessing.Pipe()
    plain = socket.socket()
    try:
        with pytest.raises(RuntimeError, match="initializer argument"):
            encoder.encode(ours)
        with pytest.raises(TypeError):
            encoder.encode(plain)
        with pytest.raises(RuntimeError, match="inheritance"):
            encoder.encode(multiprocessing.get_context("spawn").Lock())
    finally:
        ours.close(), theirs.close(), plain.close()


def test_what_passes_to_a_child_passes_while_spawning(encoder: Encoder) -> None:
    class Popen:
        def __init__(self) -> None:
            self.descriptors: list[int] = []

        def duplicate_for_child(self, fd: int) -> int:
            self.descriptors.append(fd)
            return fd

        def DupFd(self, fd: int) -> Any:
            return fd

    context = multiprocessing.get_context("spawn")
    popen, lock = Popen(), context.Lock()
    ours, theirs = multiprocessing.Pipe()
    try:
        encoded = encoder.encode_for_spawn((len, (lock, ours, lambda: 1)), popen)
        assert encoded.size_bytes and popen.descriptors == [ours.fileno()]
        assert multiprocessing.context.get_spawning_popen() is None
        with pytest.raises(TypeError):
            encoder.encode_for_spawn(threading.Lock(), popen)
        assert multiprocessing.context.get_spawning_popen() is None
    finally:
        ours.close(), theirs.close()


def test_threads_share_an_encoder(encoder: Encoder) -> None:
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for i in range(300):
                value = (seed, i, "x" * (i % 50))
                assert value_of(encoder.encode(value)) == value
                assert value_of(encoder.encode(lambda value=value: value))() == value
        except BaseException as error:  # noqa: BLE001 - for the main thread to see
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures


class Reentrant:
    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def __reduce__(self) -> Any:
        return pickle.loads, (self.encoder.encode(["inner", Plain(1)]).chunks[0],)


def test_a_reducer_may_encode(encoder: Encoder) -> None:
    assert value_of(encoder.encode([Reentrant(encoder), 5]))[1] == 5


class Interrupting:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), ValueError("v"), TypeError("t"), MemoryError()])
def test_the_encoder_is_whole_after_an_exception(encoder: Encoder, error: BaseException) -> None:
    value = ["some text before it", 1, 2.5]
    for _ in range(3):
        with pytest.raises(type(error)):
            encoder.encode([value, Interrupting(error)])
        assert value_of(encoder.encode(value)) == value


def test_a_recursion_error_stays_one(encoder: Encoder) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(RecursionError):
        encoder.encode(deep)
    while deep:  # a deep list is taken apart by hand: its deallocation is deep too
        deep = deep[0]


def test_an_interrupt_at_any_line_leaves_the_book_whole() -> None:
    """KeyboardInterrupt raised at each line of our code in turn, while a definition is made; then it is made."""
    script = """
import sys
from scaleout._runtime.pickling import definitions, by_value, encode
from scaleout._runtime.pickling.namespace import Namespace
files = {module.__file__ for module in (definitions, by_value, encode)}
K = [1]
class Base: k = K
class C(Base):
    def f(self): return g(self)
def g(x, d=K): return h(x) + len(K)
def h(x): return C
book = definitions.DefinitionBook()
encoder = encode.Encoder(book)
encoder.encode(C())                                     # imports are done
at = rounds = 0
def tracer(frame, event, arg):
    if frame.f_code.co_filename not in files: return None
    def local(frame, event, arg):
        global left
        left -= 1
        if left == 0: raise KeyboardInterrupt
        return local
    return local
while True:
    at += 3
    K = [at]
    exec("class Base: k = K\\nclass C(Base):\\n    def f(self): return g(self)\\ndef g(x, d=K): return h(x) + len(K)")
    left = at
    value = C()
    sys.settrace(tracer)
    try:
        encoder.encode(value)
    except KeyboardInterrupt:
        interrupted = True
    else:
        interrupted = False
    finally:
        sys.settrace(None)
    encoded = encoder.encode(value)
    namespace = Namespace()
    for number in encoded.needs:
        found = book.bytes_of(number)
        namespace.define(number, b"".join(found.chunks), found.buffers)
    assert not namespace._waiting
    names = {key[1]: namespace._values[i] for i, key in namespace._keys.items()}
    assert names["K"] == [at] and names["C"].__mro__[1].k == [at], names
    if not interrupted: break
    rounds += 1
assert rounds > 50, rounds
"""
    root = str(Path(__file__).resolve().parent.parent.parent)
    subprocess.run([sys.executable, "-c", script], check=True, timeout=90, cwd=root)


# -- names -----------------------------------------------------------------------------------------


class Straße:
    pass


def test_names_in_streams_are_never_too_few() -> None:
    for value, expected in [
        (Plain(1), {"Plain"}),
        ([Plain, Reduced, Plain], {"Plain", "Reduced"}),
        (Straße(), {"Straße"}),
        ([float(i) for i in range(1000)], set()),
        (bytes(range(256)) * 10, set()),
        ({"Plain": Reduced}, {"Reduced"}),
    ]:
        found = names.names_in_stream(pickle.dumps(value, 5))
        assert found is None or found >= expected, (value, found)
    assert names.names_in_stream(pickle.dumps(["Plain", Plain], 5)) is None  # the name is a memo reference
    padding = [str(i) for i in range(20_000)]
    for count in range(10_000, 10_200):  # a frame may end inside of a global
        found = names.names_in_stream(names.join_frames([pickle.dumps([padding[:count], Plain], 5)]))
        assert found is None or "Plain" in found


def test_global_names_of_code() -> None:
    source = "\n".join(f"name_{i}" for i in range(300))  # needs EXTENDED_ARG
    space: dict[str, Any] = {}
    exec(
        "def f(a):\n"
        "    global written\n"
        "    written = used.attribute\n"
        "    class Local(base):\n"
        "        field = in_class\n"
        "    return [inner(x) for x in a] + [lambda: deep]\n"
        "def g():\n    return " + " + ".join(f"name_{i}" for i in range(300)),
        space,
    )
    found = names.global_names(space["f"].__code__)
    assert {"written", "used", "base", "in_class", "inner", "deep"} <= found.keys()
    assert "attribute" not in found and "a" not in found
    assert list(names.global_names(space["g"].__code__)) == [f"name_{i}" for i in range(300)]
    assert len(names.global_names(compile(source, "s", "exec"))) == 300


def test_modules_are_light_to_import() -> None:
    heavy = ["cloudpickle", "numpy", "ctypes", "inspect", "dataclasses", "typing", "multiprocessing", "logging"]
    script = (
        "import sys\n"
        "from scaleout._runtime.pickling import decode, definitions, encode, namespace\n"
        f"print(sorted(set({heavy}) & set(sys.modules)))"
    )
    root = str(Path(__file__).resolve().parent.parent.parent)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {root!r})\n{script}"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


def test_joined_needs_keep_what_they_name() -> None:
    script = """
from scaleout._runtime.pickling.definitions import DefinitionBook
book = DefinitionBook()
def f(): return g()
def g(): return 1
def h(): return 2
needs = book.join(book.require(("__main__", "f")), (), book.require(("__main__", "h")))
assert set(needs) == {1, 2, 3}, needs
def g(): return 3
def h(): return 4
book.require(("__main__", "f")), book.require(("__main__", "h"))
assert not book.forgotten and all(book.bytes_of(number) for number in needs)
old = set(needs)
needs = None
assert set(book.forgotten) < old and len(book.forgotten) == 2, book.forgotten    # f itself is as it was
"""
    root = str(Path(__file__).resolve().parent.parent.parent)
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, cwd=root)
