"""Pools and executors in a notebook: definitions in cells, new ones in later cells, tracebacks, the Stop button."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
from outputs import EXAMPLES, output_of

for name in ("nbclient", "ipykernel"):
    pytest.importorskip(name, reason="a notebook is run by it")

RUN_NOTEBOOK = Path(__file__).with_name("run_notebook.py")
ANSI_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def outputs_of(notebook: Path, directory: Path) -> list[list[dict[str, Any]]]:
    """What each code cell shows."""
    folders = {f"{name}_DIR": str(directory / name.lower()) for name in ("JUPYTER_RUNTIME", "JUPYTER_CONFIG")}
    output_of(RUN_NOTEBOOK, directory, str(notebook), IPYTHONDIR=str(directory / "ipython"), **folders)
    found: list[list[dict[str, Any]]] = json.loads((directory / "outputs.json").read_text())
    return found


def shown_by(directory: Path, *cells: str, interrupted: str = "") -> list[str]:
    """The text that each of the cells shows: printed, its last value, or its traceback."""
    notebook = {
        "cells": [
            {
                "cell_type": "code",
                "id": f"cell-{number}",
                "metadata": {"tags": ["interrupted"] if interrupted and interrupted in source else []},
                "source": textwrap.dedent(source).strip(),
                "execution_count": None,
                "outputs": [],
            }
            for number, source in enumerate(cells)
        ],
        "metadata": {},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    path = directory / "notebook.ipynb"
    path.write_text(json.dumps(notebook))
    return ["".join(text_of(output) for output in outputs) for outputs in outputs_of(path, directory)]


def text_of(output: dict[str, Any]) -> str:
    if output["output_type"] == "error":
        return ANSI_COLOUR.sub("", "\n".join(output["traceback"]))
    return str(output["text"] if output["output_type"] == "stream" else output["data"]["text/plain"])


START = """
    import time
    from scaleout.futures import ScaleoutExecutor
    from scaleout.multiprocessing import Pool

    pool = Pool(2)
    executor = ScaleoutExecutor(2)
"""
END = """
    pool.terminate()
    executor.shutdown()
"""


def test_the_example_shows_what_is_stored_in_it(tmp_path: Path) -> None:
    example = EXAMPLES / "notebook.ipynb"
    cells = [cell for cell in json.loads(example.read_text())["cells"] if cell["cell_type"] == "code"]
    shown = ["".join(text_of(output) for output in outputs) for outputs in outputs_of(example, tmp_path)]
    for cell, text in zip(cells, shown, strict=True):
        stored = [{key: as_text(value) for key, value in output.items()} for output in cell["outputs"]]
        assert text == "".join(text_of(output) for output in stored), cell["id"]


def as_text(value: Any) -> Any:
    """A file keeps a text as a list of lines."""
    if isinstance(value, dict):
        return {key: as_text(each) for key, each in value.items()}
    return "".join(value) if isinstance(value, list) else value


def test_a_new_definition_is_used_from_the_next_call_on(tmp_path: Path) -> None:
    shown = shown_by(
        tmp_path,
        START,
        """
        class Thing:
            def name(self):
                return "old"

        def name_of(thing):
            return thing.name() + SUFFIX, thing

        SUFFIX = "!"
        """,
        "[name for name, _ in pool.map(name_of, [Thing(), Thing()])] + [executor.submit(name_of, Thing()).result()[0]]",
        """
        class Thing:
            def name(self):
                return "new"
        """,
        """
        name, thing = pool.apply(name_of, (Thing(),))
        name, type(thing) is Thing, executor.submit(name_of, Thing()).result()[0]
        """,
        """
        SUFFIX = "?"
        pool.apply(name_of, (Thing(),))[0], next(executor.map(name_of, [Thing()]))[0]
        """,
        """
        def name_of(thing):
            return "another function", None

        pool.apply(name_of, (Thing(),))[0], executor.submit(name_of, Thing()).result()[0]
        """,
        END,
    )
    assert shown == [
        "",
        "",
        "['old!', 'old!', 'old!']",
        "",
        "('new!', True, 'new!')",
        "('new?', 'new?')",
        "('another function', 'another function')",
        "",
    ]


FAIL = """
    def fail(x):
        raise ValueError(f"no {x}")
"""
CALLS_THAT_FAIL = ["pool.apply(fail, (3,))", "pool.map(fail, [3])", "executor.submit(fail, 3).result()"]


def test_a_traceback_from_a_worker(tmp_path: Path) -> None:
    shown = shown_by(tmp_path, START, FAIL, *CALLS_THAT_FAIL, END)[2:-1]
    for call, text in zip(CALLS_THAT_FAIL, shown, strict=True):
        assert "RemoteTraceback" in text and "line 2, in fail\n" in text
        assert f"----> 1 {call}" in text
        assert text.endswith("ValueError: no 3")


def test_a_traceback_from_a_worker_shows_the_lines_of_cells(tmp_path: Path) -> None:
    for text in shown_by(tmp_path, START, FAIL, *CALLS_THAT_FAIL, END)[2:-1]:
        assert 'in fail\n    raise ValueError(f"no {x}")\nValueError: no 3\n' in text


def test_an_interrupted_cell_leaves_pool_and_executor_usable(tmp_path: Path) -> None:
    """The cell is interrupted when what its worker prints is shown in it."""
    waits = [
        "pool.apply(wait)",
        "pool.map(wait, range(100))",
        "list(pool.imap_unordered(wait, (n for n in range(100))))",
        "executor.submit(wait).result()",
        "list(executor.map(wait, range(100)))",
    ]
    usable = "pool.map(abs, [-1, -2]), list(executor.map(abs, [-3, -4]))"
    define = """
    def wait(_=None):
        print("busy", flush=True)
        time.sleep(3600)
    """
    cells = [cell for wait in waits for cell in (wait, usable)]
    shown = shown_by(tmp_path, START, define, *cells, END, interrupted="(wait")[2:-1]
    for wait, interrupted, after in zip(waits, shown[::2], shown[1::2], strict=True):
        assert interrupted.startswith("busy\n"), wait
        assert "KeyboardInterrupt" in interrupted, wait
        assert after == "([1, 2], [3, 4])", wait


def test_what_is_left_open_ends_with_the_kernel(tmp_path: Path) -> None:
    """`output_of` waits until every process is gone."""
    shown = shown_by(
        tmp_path,
        START,
        """
        results = pool.map_async(time.sleep, [3600] * 10)
        pool.apply_async(print, ("never",))
        future = executor.submit(abs, -1)
        future.result()
        """,
    )
    assert shown == ["", "1"]
