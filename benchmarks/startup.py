"""Start-up: whole processes from `python` to exit, and what the import costs."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.model import POOLS, SCALEOUT, Contender, Experiment, Row, Sample, Setting
from benchmarks.peers import POOL_IMPORT
from benchmarks.scripts import script_directory, whole_process_s

_FUNCTION = """
def square(x):
    return x * x
"""

_MAP_AND_EXIT = """
if __name__ == "__main__":
    with Pool(2) as pool:
        assert pool.map(square, range(10)) == [x * x for x in range(10)]
"""

_LARGE_POOL = """
if __name__ == "__main__":
    pool = Pool({processes})
    assert pool.map(square, range({processes})) == [x * x for x in range({processes})]
    pool.close()
    pool.join()
"""


def whole_process(setting: Setting) -> Iterator[Sample]:
    pool_import = POOL_IMPORT[setting.peer] + "\n"
    if setting.options["in_main"]:
        files = {"script.py": pool_import + _FUNCTION + _MAP_AND_EXIT}
    else:
        script = pool_import + "from tasks import square\n" + _MAP_AND_EXIT
        files = {"script.py": script, "tasks.py": _FUNCTION}
    yield from _run_again_and_again(files)


def large_pool(setting: Setting) -> Iterator[Sample]:
    body = _LARGE_POOL.format(processes=setting.size(200, 40))
    yield from _run_again_and_again({"script.py": POOL_IMPORT[setting.peer] + _FUNCTION + body})


def _run_again_and_again(files: dict[str, str]) -> Iterator[Sample]:
    with script_directory(files) as directory:
        while True:
            yield {"s": whole_process_s(str(directory / "script.py"))}


def import_only(setting: Setting) -> Iterator[Sample]:
    while True:
        yield {"s": whole_process_s("-c", setting.options["code"])}


def _pools(in_main: bool) -> tuple[Contender, ...]:
    return tuple(Contender(c.key, c.peer, {"in_main": in_main}) for c in POOLS)


EXPERIMENTS = (
    Experiment(
        "start-main",
        whole_process,
        (
            Row(
                "start-main",
                "process: start, Pool(2), map 10, exit",
                "s",
                at_most=1.0,
                reference=("spawn",),
            ),
        ),
        contenders=_pools(in_main=True),
        repeat_factor=3,
    ),
    Experiment(
        "start-module",
        whole_process,
        (
            Row(
                "start-module",
                "the same, function in a module",
                "s",
                at_most=1.0,
                reference=("spawn",),
            ),
        ),
        contenders=_pools(in_main=False),
        repeat_factor=3,
    ),
    Experiment(
        "import",
        import_only,
        (
            Row(
                "import",
                "import scaleout.multiprocessing, net of bare Python",
                "s",
                at_most=1.2,
                reference=("import multiprocessing.pool",),
                minus="python -c pass",
            ),
            Row(
                "import-raw",
                "the same, with Python's own start",
                "s",
                reference=("import multiprocessing.pool",),
            ),
        ),
        contenders=(
            Contender("python -c pass", "stdlib", {"code": "pass"}),
            Contender("import multiprocessing.pool", "stdlib", {"code": "import multiprocessing.pool"}),
            Contender(SCALEOUT.key, "scaleout", {"code": "import scaleout.multiprocessing"}),
        ),
        repeat_factor=5,
    ),
    # The import above may put off its work until the first Pool(); these are the modules with the classes.
    Experiment(
        "import-pool",
        import_only,
        (
            Row(
                "import-pool",
                "import scaleout.multiprocessing.pool, net of bare Python",
                "s",
                at_most=1.2,
                reference=("import multiprocessing.pool",),
                minus="python -c pass",
            ),
        ),
        contenders=(
            Contender("python -c pass", "stdlib", {"code": "pass"}),
            Contender("import multiprocessing.pool", "stdlib", {"code": "import multiprocessing.pool"}),
            Contender(SCALEOUT.key, "scaleout", {"code": "import scaleout.multiprocessing.pool"}),
        ),
        repeat_factor=5,
    ),
    Experiment(
        "pool-200",
        large_pool,
        (
            Row(
                "pool-200",
                "process: Pool(200), map 200, close, join",
                "s",
                at_most=0.12,
                reference=("spawn",),
            ),
        ),
        has_warm_up=False,
    ),
)
