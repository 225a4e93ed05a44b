"""Arrays over a file that numpy has mapped travel as the file's name: nothing is copied, and who maps the file to write
into it (mode "r+" or "w+") writes into the same file in every process. So does joblib's loky.

A private mapping (mode "c") may differ from its file, so it goes by value, as other arrays do.
"""

from __future__ import annotations

import mmap
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def reducers() -> dict[type, Callable[[Any], Any]]:
    """What the pickler does with arrays, in the driver and in workers; empty before somebody has imported numpy."""
    numpy = sys.modules.get("numpy")
    return {} if numpy is None else {numpy.ndarray: _reduce_array, numpy.memmap: _reduce_array}


def _reduce_array(array: Any) -> Any:
    if array.base is None:
        return array.__reduce_ex__(5)
    file = _file_behind(array) if array.size else None
    if file is None:
        import numpy

        return numpy.asarray(array).__reduce_ex__(5)
    start, stop = _byte_bounds(array)
    first = array.__array_interface__["data"][0]
    position = file.offset + start - file.__array_interface__["data"][0]
    mode = "r" if file.mode == "r" else "r+"
    return _map_array, (
        type(array), os.fspath(file.filename), mode, position, stop - start, first - start,
        array.shape, array.strides, array.dtype, array.flags.writeable,
    )  # fmt: skip


def _file_behind(array: Any) -> Any:
    """The array that numpy made when it mapped the file; None without a file, or if that is not what it shows."""
    import numpy

    while isinstance(array, numpy.ndarray):
        if isinstance(array, numpy.memmap) and isinstance(array.base, mmap.mmap):
            is_whole = array.filename is not None and array.mode != "c" and os.path.exists(array.filename)
            return array if is_whole and array.size else None
        array = array.base
    return None


def _map_array(
    kind: type, filename: str, mode: Any, position: int, size_bytes: int, first: int, shape: Any, strides: Any,
    dtype: Any, is_writeable: bool,
) -> Any:  # fmt: skip
    import numpy

    file: Any = numpy.memmap(filename, numpy.uint8, mode, position, (size_bytes,))
    array: Any = numpy.ndarray.__new__(kind, shape, dtype, file, first, strides)
    if kind is numpy.memmap:
        for name in ("_mmap", "filename", "offset", "mode"):
            setattr(array, name, getattr(file, name))
    if not is_writeable:
        array.flags.writeable = False
    return array


def _byte_bounds(array: Any) -> tuple[int, int]:
    """The first address, and the one behind the last, of what the array shows."""
    low = high = array.__array_interface__["data"][0]
    for length, stride in zip(array.shape, array.strides, strict=True):
        reach = (length - 1) * stride
        if reach < 0:
            low += reach
        else:
            high += reach
    return low, high + array.itemsize
