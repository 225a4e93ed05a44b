"""Modules that the program's machine has and the nodes' have not.

All of this is one machine. So the program finds its modules below `/proc/self/fd/N`, a directory that it has open: for
any other process there is nothing of that name.
"""

from __future__ import annotations

import contextlib
import os
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from clusters import Cluster, finish, wait_until

from scaleout._runtime.base import limits
from scaleout._runtime.cluster.sources import OwnSources

MODULES = {
    "shop/__init__.py": "from .prices import price\n__version__ = '1'",
    "shop/prices.py": """
        from . import taxes
        def price(item):
            return len(item) + taxes.of(item)
        def fail(item):
            raise ValueError(item)  # this very line
    """,
    "shop/taxes.py": "def of(item): return 100",
    "shop/late.py": "class Basket:\n    def __init__(self, n): self.n = n\n    def count(self): return self.n",
    "spread/part/inside.py": "def answer(_=None): return 42",
    "single.py": "import os\ndef pid(_): return os.getpid()\nLARGE = '''" + "x" * 2_000_000 + "'''",
    "broken.py": "def f(:\n",
}

PROLOGUE = """
    import os, sys
    folder = os.open({folder!r}, os.O_RDONLY)
    sys.path.insert(0, f"/proc/self/fd/{{folder}}")
    from scaleout.multiprocessing import Pool
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    for name, source in MODULES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
    return folder


@pytest.fixture
def own_path(shop: Path) -> Iterator[Path]:
    """The folder is on this process's path."""
    sys.path.insert(0, str(shop))
    yield shop
    sys.path.remove(str(shop))
    for name in list(sys.modules):
        if name.partition(".")[0] in ("shop", "single", "spread"):
            del sys.modules[name]


def run(cluster: Cluster, folder: Path, script: str) -> str:
    return cluster.run(textwrap.dedent(PROLOGUE).format(folder=str(folder)) + textwrap.dedent(script))


def test_packages_and_what_they_import(cluster: Cluster, shop: Path) -> None:
    cluster.start_head()
    cluster.start_node()
    answer = run(
        cluster,
        shop,
        """
        import shop, single
        def later(n):
            from shop.late import Basket  # which the program itself has not imported
            import spread.part.inside
            return Basket(n).count() + spread.part.inside.answer()
        with Pool(4) as pool:
            assert pool.map(shop.price, ["a", "bc"] * 50, chunksize=1) == [101, 102] * 50
            assert pool.map(later, range(20), chunksize=1) == [n + 42 for n in range(20)]
            pids = set()
            while len(pids) < 4:  # who has the module first could do them all
                pids.update(pool.map(single.pid, range(100), chunksize=1))
            try:
                pool.apply(shop.prices.fail, ("pear",))
            except ValueError as error:
                print("# this very line" in str(error.__cause__), shop.prices.__file__ in str(error.__cause__))
            import importlib
            try:
                pool.apply(importlib.import_module, ("broken",))
            except SyntaxError as error:
                print(error.filename == f"/proc/self/fd/{folder}/broken.py", error.text)
            try:
                pool.apply(importlib.import_module, ("shop.nothing",))
            except ModuleNotFoundError as error:
                print(error)
        """,
    )
    assert answer.split("\n") == ["True True", "True def f(:", "", "No module named 'shop.nothing'", ""]


def test_tasks_actors_and_joblib(cluster: Cluster, shop: Path) -> None:
    cluster.start_head()
    run(
        cluster,
        shop,
        """
        import joblib, scaleout, scaleout.joblib_backend, shop.late
        Basket = scaleout.remote(shop.late.Basket)
        basket = Basket.remote(7)
        assert scaleout.get(basket.count.remote()) == 7
        assert scaleout.get([scaleout.remote(shop.price).remote("abc") for _ in range(10)]) == [103] * 10
        with joblib.parallel_backend("scaleout", n_jobs=2):
            assert joblib.Parallel()(joblib.delayed(shop.price)(item) for item in "abcdef") == [101] * 6
        """,
    )


def test_the_programs_own_comes_first(cluster: Cluster, shop: Path, tmp_path: Path) -> None:
    """And what only the node has is found as well."""
    there = tmp_path / "there"
    there.mkdir()
    (there / "single.py").write_text("def pid(_): return 'the wrong one'")
    (there / "of_node.py").write_text("def name(): return 'of the node'")
    (there / "spread/part").mkdir(parents=True)
    (there / "spread/part/beside.py").write_text("answer = 43")
    cluster.environ["PYTHONPATH"] = str(there)
    cluster.start_head()
    del cluster.environ["PYTHONPATH"]
    answer = run(
        cluster,
        shop,
        """
        import single
        def of_node():
            import of_node, spread.part.inside, spread.part.beside
            return of_node.name(), spread.part.inside.answer(), spread.part.beside.answer
        with Pool(2) as pool:
            print(type(pool.apply(single.pid, (0,))).__name__, pool.apply(of_node))
        """,
    )
    assert answer == "int ('of the node', 42, 43)\n"


def test_a_pool_in_a_worker(cluster: Cluster, shop: Path) -> None:
    cluster.start_head()
    answer = run(
        cluster,
        shop,
        """
        def load(name):
            import importlib
            return len(vars(importlib.import_module(name)).get("LARGE", ""))
        def nested(items):
            import shop
            with Pool(2) as pool:
                return pool.map(shop.price, items), pool.map(load, ["single", "spread.part.inside"], chunksize=1)
        with Pool(1) as pool:
            print(pool.apply(nested, (["a", "bc"],)))
        """,
    )
    assert answer == "([101, 102], [2000000, 0])\n"


def test_a_child_that_a_task_forks(cluster: Cluster, shop: Path) -> None:
    """It has the link to the owner as well, and must leave it alone."""
    cluster.start_head()
    answer = run(
        cluster,
        shop,
        """
        def forks(number):
            import shop
            pid = os.fork()
            if not pid:
                try:
                    import nowhere.at_all
                except ModuleNotFoundError:
                    os._exit(7)
                os._exit(1)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with Pool(2) as pool:
            print(set(pool.map(forks, range(100), chunksize=1)))
        """,
    )
    assert answer == "{7}\n"


def test_an_edited_module(cluster: Cluster, shop: Path) -> None:
    """Workers that start later have what is in the file then; nothing of an earlier program is kept."""
    cluster.start_head()
    script = "import shop.taxes\nwith Pool(1) as pool: print(pool.apply(shop.taxes.of, ('a',)))"
    assert run(cluster, shop, script) == "100\n"
    (shop / "shop/taxes.py").write_text("def of(item): return 2000")
    assert run(cluster, shop, script) == "2000\n"


def test_a_working_directory(cluster: Cluster, tmp_path: Path) -> None:
    """Each node has one copy, which goes with the program."""
    folder = tmp_path / "work"
    (folder / "data/deep").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / ".git/objects").write_bytes(bytes(60_000_000))
    (folder / "data/deep/numbers").write_bytes(bytes(range(256)) * 10_000)
    (folder / "run.sh").write_text("#!/bin/sh\necho ran")
    (folder / "run.sh").chmod(0o755)
    (folder / "beside.py").write_text("VALUE = 5")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_text("of a file beside the folder")
    cluster.start_head()
    cluster.start_node()
    answer = cluster.run(
        f"""
        import os, subprocess, time
        import scaleout
        scaleout.init(runtime_env={{"working_dir": {str(folder)!r}}})

        @scaleout.remote
        def look():
            import beside
            time.sleep(0.05)
            with open("data/deep/numbers", "rb") as file:
                size = len(file.read())
            assert open("linked").read() == "of a file beside the folder"
            return os.getppid(), os.getcwd(), size, subprocess.check_output("./run.sh"), beside.VALUE, os.listdir()

        seen = scaleout.get([look.remote() for _ in range(40)])
        while len({{zygote for zygote, *_ in seen}}) < 2:  # one node may be up before the other
            seen += scaleout.get([look.remote() for _ in range(40)])
        assert len({{folder for _, folder, *_ in seen}}) == 2
        assert {str(folder)!r} not in {{folder for _, folder, *_ in seen}}
        ((size, said, value, names),) = {{(size, said, value, tuple(sorted(n))) for _, _, size, said, value, n in seen}}
        print(size, said, value, [name for name in names if name != "__pycache__"])
        """
    )
    assert answer == "2560000 b'ran\\n' 5 ['beside.py', 'data', 'linked', 'run.sh']\n"
    wait_until(lambda: not list(cluster.directory.glob("run/scaleout/*/sources/work-*/*")))


def test_a_working_directory_that_is_too_large(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(bytes(1000))
    with open(tmp_path / "large", "wb") as file:
        file.truncate(70 << 20)
    cluster.start_head()
    answer = cluster.run(
        f"""
        import scaleout
        try:
            scaleout.init(runtime_env={{"working_dir": {str(tmp_path)!r}}})
        except ValueError as error:
            print(error)
        """
    )
    assert "70 MB" in answer and "50 MB" in answer and "large" in answer


def test_the_address_is_given_by_the_program(cluster: Cluster) -> None:
    address = cluster.start_head(cpus=3)
    script = """
        import os, scaleout
        from scaleout.multiprocessing import cpu_count
        scaleout.init({0})
        print(scaleout.cluster_resources()["CPU"], cpu_count())
    """
    there = cluster.start(script.format(f"address={address!r}"), SCALEOUT_ADDRESS="")
    assert finish(there) == "3.0 3\n"
    here = cluster.run("""
        import scaleout
        from scaleout.multiprocessing import Pool
        scaleout.init(address="local")
        with Pool(1) as pool:
            assert pool.apply(abs, (-1,)) == 1
            scaleout.shutdown()
            scaleout.init(address="local")  # as it is already
    """)
    here = cluster.run(script.format("address='local', num_cpus=1"))
    assert here == f"1.0 {len(os.sched_getaffinity(0))}\n"
    wrong = cluster.start("import scaleout\nscaleout.init(address='nonsense')", SCALEOUT_ADDRESS="")
    assert "'nonsense'" in wrong.communicate()[1] and wrong.returncode == 1


def test_what_is_of_the_program(own_path: Path) -> None:
    sources = OwnSources()
    sources.look()
    assert {"shop", "single", "spread"} <= set(sources.names)
    assert not {"scaleout", "os", "json", "numpy", "pytest", "encodings"} & set(sources.names)
    for name in ("os", "numpy", "pytest", "scaleout", "scaleout.errors", "xml.dom", "sys", "shop.nothing", "no.such"):
        assert sources.module(name) is None, name
    path, is_package, digest, folders = sources.module("shop.prices") or pytest.fail("not found")
    assert path == str(own_path / "shop/prices.py") and not is_package and folders == []
    assert sources.source(digest, 0) == Path(path).read_bytes() and sources.source(digest, 10_000) == b""
    assert "shop.prices" not in sys.modules  # nothing of it has run


def test_odd_modules(own_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = OwnSources()
    monkeypatch.setitem(sys.modules, "odd", object())  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "odder", None)  # type: ignore[arg-type]
    sources.look()
    assert sources.module("odd") is None and sources.module("odder") is None
    import spread.part  # type: ignore[import-not-found]

    monkeypatch.delitem(sys.modules, "spread")
    with contextlib.suppress(KeyError):  # of the import system; the owner answers None then
        sources.module("spread.part")
    del spread


def test_no_current_directory(own_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    monkeypatch.syspath_prepend("")
    gone.rmdir()
    sources = OwnSources()
    sources.look()
    assert "shop" in sources.names and sources.module("shop.taxes") is not None


def test_no_other_file_is_read(own_path: Path) -> None:
    assert isinstance(OwnSources().source(bytes(32), 0), str)


def test_compiled_packages_are_not_sent(own_path: Path) -> None:
    (own_path / "shop/fast.cpython-311-x86_64-linux-gnu.so").touch()
    (own_path / "shop/fast.abi3.so").touch()
    assert OwnSources().module("shop") is None


def test_too_much(own_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SOURCES_BYTES", 1 << 20)
    sources = OwnSources()
    small, large = sources.module("shop.taxes"), sources.module("single")
    assert small is not None and large is not None
    assert isinstance(sources.source(small[2], 0), bytes)
    reason = sources.source(large[2], 0)
    assert isinstance(reason, str) and "single.py" in reason and "1 MB" in reason and "install" in reason
    assert os.path.getsize(large[0]) > 1 << 20
