"""What an import and a first Pool bring into a process: nothing that costs more than the Pool itself (numpy: 57 ms)."""

from __future__ import annotations

import ast
import subprocess
import sys

HEAVY = [
    "asyncio",
    "cloudpickle",
    "concurrent.futures.process",
    "ctypes",
    "grpc",
    "joblib",
    "json",
    "multiprocessing.pool",
    "numpy",
    "psutil",
    "pyarrow",
    "tempfile",
    "typing",
]

# What the interpreter loads by itself (a .pth file in site-packages may do anything) is not ours to answer for.
SETUP = f"""\
import sys
own = set(sys.modules)
def heavy(): return [name for name in {HEAVY} if name in sys.modules and name not in own]
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", SETUP + code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def test_the_check_can_fail() -> None:
    assert run("import ctypes\nprint(heavy())") == "['ctypes']"


def test_import_scaleout() -> None:
    assert run("import scaleout\nprint(heavy())") == "[]"


def test_importing_pool() -> None:
    assert run("from scaleout.multiprocessing import Pool\nprint(heavy())") == "[]"


def test_a_first_pool_in_the_driver() -> None:
    assert (
        run("from scaleout.multiprocessing import Pool\nwith Pool(1) as pool: pool.map(abs, [-1])\nprint(heavy())")
        == "[]"
    )


def test_a_first_pool_in_its_worker() -> None:
    # `eval` crosses by name; a function of this `__main__` may well need cloudpickle.
    expression = f"[name for name in {HEAVY} if name in __import__('sys').modules]"
    code = (
        f"from scaleout.multiprocessing import Pool\nwith Pool(1) as pool: print(pool.apply(eval, ({expression!r},)))"
    )
    assert set(ast.literal_eval(run(code))) <= set(ast.literal_eval(run(f"print({expression})")))
