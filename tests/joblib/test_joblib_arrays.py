"""Arrays as arguments and results: stored once and shared, private to whoever gets them, mapped files by their name."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import wait_until
from joblib import Parallel, delayed, parallel_config

numpy = pytest.importorskip("numpy")


LARGE = 1_000_003  # float64: 8 MB, and not a whole number of pages


def call(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The result of one call in a worker."""
    return Parallel(n_jobs=2, backend="scaleout", **options)([delayed(function)(*arguments)])[0]


# -- where an array lies ---------------------------------------------------------------------------


def place_of(array: Any) -> tuple[str, int] | None:
    """The file, by device and inode, and the position in it, that the array's first byte is mapped from."""
    address = array.__array_interface__["data"][0]
    with open("/proc/self/maps") as file:
        for line in file:
            limits, _, offset, device, inode, *_ = line.split(maxsplit=5)
            low, high = (int(limit, 16) for limit in limits.split("-"))
            if low <= address < high:
                return (f"{device} {inode}", int(offset, 16) + address - low) if inode != "0" else None
    return None


def see(array: Any, index: int) -> tuple[int, Any, float, bool]:
    return index, place_of(array), float(array.sum()), bool(array.flags.writeable)


@pytest.mark.parametrize("options", [{"batch_size": 1}, {}, {"pre_dispatch": "all"}, {"batch_size": 7}], ids=str)
def test_a_large_argument_of_many_calls_is_stored_once(options: dict[str, Any]) -> None:
    array = numpy.arange(LARGE, dtype=float)
    found = Parallel(n_jobs=2, backend="scaleout", **options)(delayed(see)(array, i) for i in range(40))
    assert [index for index, *_ in found] == list(range(40))
    assert {total for _, _, total, _ in found} == {float(array.sum())}
    assert all(is_writeable for *_, is_writeable in found)
    places = {place for _, place, *_ in found}
    assert len(places) == 1 and None not in places


def test_so_is_each_of_several_arguments_and_of_a_keyword() -> None:
    arrays = [numpy.full(LARGE, float(i)) for i in range(3)]
    calls = [delayed(see_all)(arrays[0], [arrays[1]], last=arrays[2]) for _ in range(20)]
    places = set(Parallel(n_jobs=2, backend="scaleout")(calls))
    assert len(places) == 1 and len(set(places.pop())) == 3


def see_all(first: Any, others: list[Any], *, last: Any) -> tuple[Any, ...]:
    return place_of(first), place_of(others[0]), place_of(last)


def memory_bytes() -> int:
    """What the memory files of this process take."""
    total = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            if "memfd:scaleout" in os.readlink(f"/proc/self/fd/{fd}"):
                total += os.stat(f"/proc/self/fd/{fd}").st_blocks * 512
        except OSError:
            continue  # the one that listed the directory
    return total


def test_memory_is_bounded_by_what_is_under_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One array for all calls: its size once. One for each call: those of a few calls."""
    monkeypatch.setenv("JOBLIB_TEMP_FOLDER", str(tmp_path))
    array = numpy.ones(LARGE)
    most = 0
    with Parallel(n_jobs=2, backend="scaleout", batch_size=1, return_as="generator") as parallel:
        for index, _, total, _ in parallel(delayed(see)(array, i) for i in range(100)):
            assert total == LARGE
            if index % 10 == 0:
                most = max(most, memory_bytes())
        assert array.nbytes <= most < 1.5 * array.nbytes
    most = 0
    with Parallel(n_jobs=2, backend="scaleout", batch_size=1, return_as="generator") as parallel:
        for index, _, total, _ in parallel(delayed(see)(numpy.full(LARGE, float(i)), i) for i in range(100)):
            assert total == index * LARGE
            most = max(most, memory_bytes())
        assert most < 16 * array.nbytes
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_in_any_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nor is there while it runs; and what loky would be told about its files is taken without a word."""
    monkeypatch.setenv("JOBLIB_TEMP_FOLDER", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    array = numpy.ones(LARGE)
    options = {"max_nbytes": 1000, "mmap_mode": "w+", "temp_folder": str(tmp_path)}
    results = Parallel(n_jobs=2, backend="scaleout", return_as="generator", **options)(
        delayed(see)(array, i) for i in range(20)
    )
    for _, _, total, _ in results:
        assert total == LARGE
        assert list(tmp_path.iterdir()) == []
        assert not [name for name in os.listdir("/dev/shm") if f"joblib_memmapping_folder_{os.getpid()}" in name]
    assert call(see, array, 0, **options)[2] == LARGE


# -- who sees a change -----------------------------------------------------------------------------


def add_one(array: Any) -> float:
    """Also shows whether somebody was there before."""
    before = float(array[0] + array[-1])
    array += 1
    return before


@pytest.mark.parametrize("size", [10, LARGE])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_a_change_in_place_is_seen_nowhere_else(batch_size: int, size: int) -> None:
    array = numpy.zeros(size)
    calls = [delayed(add_one)(array.copy() if size == 10 else array[:]) for _ in range(20)]
    assert Parallel(n_jobs=2, backend="scaleout", batch_size=batch_size)(calls) == [0.0] * 20
    assert not array.any()


def returned(array: Any) -> Any:
    array[0] = -1
    return array


def test_a_changed_argument_comes_back_changed() -> None:
    array = numpy.arange(LARGE, dtype=float)
    result = call(returned, array)
    assert result[0] == -1 and (result[1:] == array[1:]).all() and array[0] == 0
    result += 1
    assert array[0] == 0 and array[1] == 1


def content(array: Any, index: int) -> tuple[int, float, float]:
    return index, float(array[0]), float(array[-1])


@pytest.mark.parametrize("size", [100, 20_000, LARGE], ids=["in the frame", "small", "large"])
@pytest.mark.parametrize("pre_dispatch", ["2 * n_jobs", "all"])
def test_a_generator_that_refills_one_buffer(pre_dispatch: Any, size: int) -> None:
    """joblib cuts two calls at a time off the iterator, for two jobs: what it holds then is what is delivered."""
    buffer = numpy.zeros(size)

    def calls() -> Iterator[Any]:
        for i in range(30):
            buffer[:] = i
            yield delayed(content)(buffer, i)
            yield delayed(content)(buffer, i)

    found = Parallel(n_jobs=2, backend="scaleout", batch_size=1, pre_dispatch=pre_dispatch)(calls())
    assert found == [(i, i, i) for i in range(30) for _ in range(2)]


@pytest.mark.parametrize("position", [0, LARGE // 2, -1])
def test_one_element_that_changes(position: int) -> None:
    buffer = numpy.zeros(LARGE)

    def calls() -> Iterator[Any]:
        for i in range(10):
            buffer[position] = i
            yield delayed(element)(buffer, position)
            yield delayed(element)(buffer, position)

    found = Parallel(n_jobs=2, backend="scaleout", batch_size=1)(calls())
    assert found == [i for i in range(10) for _ in range(2)]


def element(array: Any, position: int) -> Any:
    return array[position].item()


@pytest.mark.parametrize("changed", [(0.0, -0.0), (float("nan"), 1.0)], ids=str)
def test_bits_count_not_values(changed: tuple[float, float]) -> None:
    """0.0 == -0.0, and no NaN is equal to itself: what is delivered is what is there, and stored once if it stays."""
    buffer = numpy.full(LARGE, changed[0])
    with Parallel(n_jobs=2, backend="scaleout", batch_size=1) as parallel:
        first = set(parallel(delayed(bits)(buffer) for _ in range(6)))
        buffer[:] = changed[1]
        second = set(parallel(delayed(bits)(buffer) for _ in range(6)))
    assert {found for found, _ in first} == {numpy.float64(changed[0]).tobytes()}
    assert {found for found, _ in second} == {numpy.float64(changed[1]).tobytes()}
    assert len(first) == len(second) == 1


def bits(array: Any) -> tuple[bytes, Any]:
    return array[-1].tobytes(), place_of(array)


@pytest.mark.parametrize("dtype", ["u1", "f4", "S3"])
def test_sizes_that_are_no_whole_number_of_words(dtype: str) -> None:
    buffer = numpy.zeros(1_000_001, dtype)
    last = {"u1": [1, 2, 3], "f4": [1.0, 2.0, 3.0], "S3": [b"a", b"b", b"c"]}[dtype]

    def calls() -> Iterator[Any]:
        for value in last:
            buffer[-1] = value
            yield delayed(element)(buffer, -1)
            yield delayed(element)(buffer, -1)

    found = Parallel(n_jobs=2, backend="scaleout", batch_size=1)(calls())
    assert found == [value for value in last for _ in range(2)]


def test_new_arrays_at_the_same_address() -> None:
    found = Parallel(n_jobs=2, backend="scaleout", batch_size=1)(
        delayed(content)(numpy.full(LARGE, float(i)), i) for i in range(40)
    )
    assert found == [(i, i, i) for i in range(40)]


def test_changes_between_calls_of_one_parallel_object() -> None:
    array = numpy.zeros(LARGE)
    with Parallel(n_jobs=2, backend="scaleout") as parallel:
        for i in range(5):
            array[:] = i
            assert parallel(delayed(content)(array, i) for _ in range(5)) == [(i, i, i)] * 5


# -- mapped files ----------------------------------------------------------------------------------


def described(array: Any) -> dict[str, Any]:
    return {
        "type": type(array).__name__,
        "file": str(getattr(array, "filename", None)),
        "mode": getattr(array, "mode", None),
        "place": place_of(array),
        "writeable": bool(array.flags.writeable),
        "strides": array.strides,
        "dtype": array.dtype.str if array.dtype.names is None else array.dtype.descr,
        "values": array.tolist(),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "mapped"
    numpy.arange(6_000, dtype="i4").tofile(path)
    return path


CUTS: dict[str, Callable[[Any], Any]] = {
    "all of it": lambda array: array,
    "a slice": lambda array: array[100:200],
    "every third": lambda array: array[10:100:3],
    "backwards": lambda array: array[::-1],
    "a piece backwards": lambda array: array[500:100:-7],
    "two dimensions": lambda array: array.reshape(60, 100)[3:7, 5:90:4],
    "turned around": lambda array: array.reshape(60, 100)[::-2, ::-3],
    "transposed": lambda array: array.reshape(60, 100).T,
    "a row many times": lambda array: numpy.broadcast_to(array[:10], (5, 10)),
    "one element": lambda array: array[7:8],
    "no dimension": lambda array: array[7:8].reshape(()),
    "as an array": lambda array: numpy.asarray(array)[20:40],
    "other words": lambda array: array[10:20].view("u1"),
    "a slice of a slice": lambda array: array[100:][50:60],
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("mode", ["r", "r+"])
def test_a_mapped_file_travels_as_its_name(mode: str, cut: str, path: Path) -> None:
    array = CUTS[cut](numpy.memmap(path, "i4", mode))
    here, there = described(array), call(described, array)
    assert here["place"] is not None
    assert there == here


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("offset", [0, 4, 4096, 5000])
def test_at_an_offset_in_fortran_order(offset: int, mode: str, path: Path) -> None:
    array = numpy.memmap(path, "i4", mode, offset, (30, 40), "F")
    assert call(described, array) == described(array)
    assert call(described, array[3:9, ::-2]) == described(array[3:9, ::-2])


def test_a_mapped_file_of_records(path: Path) -> None:
    array = numpy.memmap(path, [("number", "i4"), ("weight", "f4"), ("name", "S4")], "r")
    assert call(described, array[5:50]) == described(array[5:50])
    numbers = array["number"]
    assert call(described, numbers) == described(numbers)


def write(array: Any, index: int) -> None:
    array[index] = -index


def test_who_writes_into_a_mapped_file_writes_for_all(path: Path) -> None:
    array = numpy.memmap(path, "i4", "r+")
    Parallel(n_jobs=2, backend="scaleout")(delayed(write)(array[100:], index) for index in range(1, 50))
    assert array[100:150].tolist() == [100, *range(-1, -50, -1)]
    assert numpy.fromfile(path, "i4")[149] == -49
    with pytest.raises(ValueError, match="read-only"):
        call(write, numpy.memmap(path, "i4", "r"), 1)


def test_a_new_file(tmp_path: Path) -> None:
    array = numpy.memmap(tmp_path / "new", "i4", "w+", shape=(100,))
    Parallel(n_jobs=2, backend="scaleout")(delayed(write)(array, index) for index in range(100))
    assert array.tolist() == [-index for index in range(100)]


@pytest.mark.parametrize("size", [100, 6_000 * 50])
def test_a_private_mapping_goes_by_value(size: int, tmp_path: Path) -> None:
    """It may differ from its file, and what a worker writes is the worker's."""
    numpy.arange(size, dtype="i4").tofile(tmp_path / "mapped")
    array = numpy.memmap(tmp_path / "mapped", "i4", "c")
    array[0] = 7
    found = call(described, array)
    assert found["values"] == array.tolist() and found["type"] == "ndarray" and found["writeable"]
    call(write, array, 1)
    assert array[1] == 1
    assert numpy.fromfile(tmp_path / "mapped", "i4")[:2].tolist() == [0, 1]


def test_a_file_that_has_lost_its_name_goes_by_value(path: Path) -> None:
    array = numpy.memmap(path, "i4", "r")
    path.unlink()
    assert call(described, array)["values"] == array.tolist()
    with tempfile.TemporaryFile() as file:
        file.write(bytes(4_000))
        file.flush()
        assert call(described, numpy.memmap(file, "i4", "r+"))["values"] == [0] * 1_000


def test_nothing_of_a_mapped_file(path: Path) -> None:
    array = numpy.memmap(path, "i4", "r")[10:10]
    assert call(described, array)["values"] == []


def opened(path: Path, mode: str) -> Any:
    return numpy.memmap(path, "i4", mode)[10:20]


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_a_mapped_file_as_result(mode: str, path: Path) -> None:
    assert described(call(opened, path, mode)) == described(opened(path, mode))


def test_a_mapped_file_in_other_objects(path: Path) -> None:
    array = numpy.memmap(path, "i4", "r")
    (one, (two,)) = call(described_both, {"key": array[:10], "others": [array[5:9]]})
    assert (one, two) == (described(array[:10]), described(array[5:9]))


def described_both(value: dict[str, Any]) -> Any:
    return described(value["key"]), [described(other) for other in value["others"]]


# -- kinds of arrays -------------------------------------------------------------------------------


class Labelled(numpy.ndarray):  # type: ignore[misc,name-defined]
    pass


def read_only(array: Any) -> Any:
    array.flags.writeable = False
    return array


LARGE_RECORDS = numpy.zeros(50_000, [("number", "i8"), ("name", "U5"), ("inner", [("x", "f4", (2,))])])
LARGE_RECORDS["number"] = range(50_000)
KINDS: dict[str, Any] = {
    "no elements": numpy.zeros(0),
    "no rows": numpy.zeros((0, 5), "f4"),
    "no dimension": numpy.array(3.5),
    "objects": numpy.array([1, "two", [3], None, {"four": numpy.arange(4)}], dtype=object),
    "many objects": numpy.array([str(i) for i in range(30_000)], dtype=object),
    "records": LARGE_RECORDS[:10],
    "many records": LARGE_RECORDS,
    "a recarray": LARGE_RECORDS.view(numpy.recarray),
    "texts": numpy.array(["a", "bcd", "\N{SNOWMAN}"] * 50_000),
    "dates": numpy.arange("2020-01", "2024-01", dtype="datetime64[D]"),
    "truths": numpy.arange(300_000) % 3 == 0,
    "complex numbers": numpy.arange(50_000) * (1 + 2j),
    "big-endian": numpy.arange(100_000, dtype=">i4"),
    "Fortran's order": numpy.asfortranarray(numpy.arange(200_000.0).reshape(400, 500)),
    "not contiguous": numpy.arange(400_000.0).reshape(400, 1000)[::2, ::-3],
    "read-only": read_only(numpy.arange(10)),
    "large and read-only": read_only(numpy.arange(LARGE)),
    "a subclass": numpy.arange(100_000).view(Labelled),
    "masked": numpy.ma.masked_greater(numpy.arange(100_000), 50_000),
    "a matrix of one element many times": numpy.broadcast_to(numpy.float64(2.5), (300, 300)),
}


def echo(array: Any) -> Any:
    return array, kind_of(array)


def kind_of(array: Any) -> tuple[Any, ...]:
    return type(array), array.dtype, array.shape, array.flags.f_contiguous, array.flags.writeable


@pytest.mark.parametrize("kind", KINDS)
def test_as_argument_and_as_result(kind: str) -> None:
    array = KINDS[kind]
    returned, kind_there = call(echo, array)
    flat = array.flags.c_contiguous or array.flags.f_contiguous  # else numpy itself pickles a copy that is
    for found in (kind_there, kind_of(returned)):
        assert found[:3] == kind_of(array)[:3]
        if flat and array.dtype != object:
            assert found[3] == array.flags.f_contiguous
            assert kind == "masked" or found[4] == array.flags.writeable
    if array.dtype == object:
        assert str(returned.tolist()) == str(array.tolist())
    else:
        numpy.testing.assert_array_equal(returned, array)


def make(index: int) -> Any:
    return {"index": index, "array": numpy.full(LARGE, float(index))}


@pytest.mark.parametrize("return_as", ["list", "generator", "generator_unordered"])
def test_large_results(return_as: str) -> None:
    seen = set()
    for result in Parallel(n_jobs=2, backend="scaleout", return_as=return_as)(delayed(make)(i) for i in range(12)):
        array = result["array"]
        assert array.flags.writeable and (array == result["index"]).all()
        array += 1
        seen.add(result["index"])
    assert seen == set(range(12))


def test_results_outlive_the_workers() -> None:
    from scaleout.joblib_backend import close_idle

    results = Parallel(n_jobs=2, backend="scaleout")(delayed(make)(i) for i in range(4))
    close_idle()
    assert [result["array"].sum() for result in results] == [i * LARGE for i in range(4)]


def test_what_nobody_needs_is_given_back() -> None:
    with parallel_config(backend="scaleout", n_jobs=2), Parallel() as parallel:
        for _ in range(5):
            assert len(parallel(delayed(make)(i) for i in range(4))) == 4
        parallel([delayed(abs)(1)])
        wait_until(lambda: memory_bytes() < LARGE * 8, "what went through is gone")
