"""Imports inside scaleout/ point down (docs/architecture.md, "Layers"), without a cycle, and the core stays pure.

The graph is read from the sources, so an import counts wherever it stands: at the top, inside a function, under
TYPE_CHECKING. Of `importlib.import_module` and `__import__` those with a literal name count too.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "scaleout"

# From high to low. A module may import its own layer and everything below it.
RUNTIME_LAYERS = [
    ("_runtime.session", "_runtime.refs"),
    ("_runtime.client",),
    ("_runtime.cluster",),
    ("_runtime.node",),
    ("_runtime.process",),
    ("_runtime.pickling",),
    ("_runtime.store",),
    ("_runtime.wire",),
    ("_runtime.core",),
    ("_runtime.base",),
]
# The public functions and classes of the runtime itself are one room.
FACE = "face"
FACE_MODULES = ("actors", "api", "detached", "handles", "remoting", "serializers", "state", "util")
# Above all layers. Each sees itself, `errors` and the seam, and nothing else.
SHIMS = ("multiprocessing", "futures", "joblib_backend", "cli", FACE)
SEAM = ("_runtime.session", "_runtime.refs")
# What the command line sees, in the seam's place: it has no session.
CONTROL = "_runtime.cluster.control"
# What detached actors see besides: they are called from one program to another.
DOOR = "_runtime.cluster.door"

# What decides must not know the time, the network, other threads or chance; `now` and facts are handed in.
IMPURE = frozenset(
    "_posixsubprocess _socket _thread asyncio concurrent ctypes datetime fcntl io logging mmap multiprocessing os "
    "pathlib pickle queue random secrets select selectors shutil signal socket subprocess tempfile threading time uuid "
    "warnings weakref".split()
)


def _module_names(package: Path) -> dict[str, Path]:
    """Every module under `package`, by its dotted name, which begins with the package's own."""
    modules = {}
    for path in sorted(package.rglob("*.py")):
        parts = [package.name, *path.relative_to(package).with_suffix("").parts]
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def _imported_names(module: str, path: Path) -> Iterator[tuple[str, int]]:
    """All dotted names that a module imports, absolute, with their lines; `from a import b` gives `a.b`."""
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                package_parts = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
                base = package_parts[: len(package_parts) - (node.level - 1)]
                source = ".".join([*base, source] if source else base)
            for alias in node.names:
                yield f"{source}.{alias.name}", node.lineno
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            if function in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value, node.lineno


Imports = dict[str, dict[str, int]]


def _import_graph(package: Path) -> tuple[Imports, Imports]:
    """For each module what it imports, with a line: the package's own modules, and top-level names from outside."""
    modules = _module_names(package)
    inside: Imports = {module: {} for module in modules}
    outside: Imports = {module: {} for module in modules}
    for module, path in modules.items():
        for name, line in _imported_names(module, path):
            if name.split(".")[0] != package.name:
                outside[module].setdefault(name.split(".")[0], line)
                continue
            while name not in modules:  # a name inside a module: the module counts
                name = name.rpartition(".")[0]
            inside[module].setdefault(name, line)
    return inside, outside


def _is_in(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def _layer_of(module: str) -> int | None:
    """0 is the highest layer of the runtime; None is a module in no layer. `module` is without the package's name."""
    for level, rooms in enumerate(RUNTIME_LAYERS):
        if any(_is_in(module, room) for room in rooms):
            return level
    return None


def _may_import(module: str, target: str) -> bool:
    """Whether the arrow points down; both names without the package's own, "" being the package's `__init__`."""
    if target == "errors":
        return module != "errors"
    if module == "":
        return _shim_of(target) is not None  # the public face
    if module == "errors":
        return False
    shim = _shim_of(module)
    if shim == "cli":
        return _shim_of(target) == shim or target == CONTROL
    if target == DOOR and _is_in(module, "detached"):
        return True
    if shim is not None:
        return _shim_of(target) == shim or target in SEAM
    level, target_level = _layer_of(module), _layer_of(target)
    return level is not None and target_level is not None and target_level >= level


def _shim_of(module: str) -> str | None:
    if any(_is_in(module, room) for room in FACE_MODULES):
        return FACE
    return next((shim for shim in SHIMS if _is_in(module, shim)), None)


def violations(package: Path) -> list[str]:
    """Every import that points up, module without a layer, cycle, or impure import of the core: one line each."""
    inside, outside = _import_graph(package)
    short = {module: module.partition(".")[2] for module in inside}
    found = []
    for module, targets in inside.items():
        if (
            short[module] not in ("", "errors", "_runtime")
            and _layer_of(short[module]) is None
            and _shim_of(short[module]) is None
        ):
            found.append(f"{module} is in no layer")
        for target, line in targets.items():
            if not _may_import(short[module], short[target]):
                found.append(f"{module}:{line} imports {target}")
    for module, names in outside.items():
        if _is_in(short[module], "_runtime.core"):
            found += [
                f"{module}:{line} imports {name}, and the core is pure"
                for name, line in names.items()
                if name in IMPURE
            ]
    try:
        graphlib.TopologicalSorter(inside).prepare()
    except graphlib.CycleError as error:
        found.append("cycle: " + " <- ".join(error.args[1]))
    return found


def test_imports_point_down_without_cycles() -> None:
    assert violations(PACKAGE) == []


def test_private_packages_are_empty_but_for_a_docstring() -> None:
    for path in sorted((PACKAGE / "_runtime").rglob("__init__.py")):
        body = ast.parse(path.read_bytes()).body
        assert len(body) == 1, path
        assert ast.get_docstring(ast.Module(body, [])), path


# --- the check itself can fail


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"_runtime/core/a.py": "from scaleout._runtime.base import limits\nimport scaleout.errors, math"}, []),
        ({"_runtime/session.py": "from . import refs\nfrom .client import x\nfrom ..errors import E"}, []),
        ({"futures/a.py": "from scaleout._runtime import session\nfrom . import b", "futures/b.py": ""}, []),
        ({"__init__.py": "from scaleout import api"}, []),
        (
            {"_runtime/base/limits.py": "from scaleout._runtime.core import a"},
            ["scaleout._runtime.base.limits:1 imports scaleout._runtime.core.a"],
        ),
        (
            {"_runtime/core/a.py": "def f():\n    import scaleout._runtime.wire"},
            ["scaleout._runtime.core.a:2 imports scaleout._runtime.wire"],
        ),
        (
            {"_runtime/core/a.py": "if TYPE_CHECKING:\n    from ..wire import frames"},
            ["scaleout._runtime.core.a:2 imports scaleout._runtime.wire.frames"],
        ),
        (
            {"_runtime/wire/frames.py": "importlib.import_module('scaleout.api')"},
            ["scaleout._runtime.wire.frames:1 imports scaleout.api"],
        ),
        (
            {"futures/a.py": "import scaleout._runtime.core.a"},
            ["scaleout.futures.a:1 imports scaleout._runtime.core.a"],
        ),
        (
            {"futures/a.py": "from scaleout.multiprocessing import Pool"},
            ["scaleout.futures.a:1 imports scaleout.multiprocessing"],
        ),
        ({"futures/a.py": "import scaleout"}, ["scaleout.futures.a:1 imports scaleout"]),
        (
            {"errors.py": "from scaleout._runtime.base import limits"},
            ["scaleout.errors:1 imports scaleout._runtime.base.limits"],
        ),
        (
            {"_runtime/client/a.py": "from scaleout import __version__"},
            ["scaleout._runtime.client.a:1 imports scaleout"],
        ),
        ({"_runtime/tools.py": ""}, ["scaleout._runtime.tools is in no layer"]),
        (
            {"_runtime/core/a.py": "from . import b", "_runtime/core/b.py": "def f():\n    from .a import x"},
            ["cycle: scaleout._runtime.core.a <- scaleout._runtime.core.b <- scaleout._runtime.core.a"],
        ),
        (
            {"_runtime/core/a.py": "def f():\n    from time import sleep"},
            ["scaleout._runtime.core.a:2 imports time, and the core is pure"],
        ),
        ({"_runtime/core/a.py": "import os.path"}, ["scaleout._runtime.core.a:1 imports os, and the core is pure"]),
    ],
)
def test_the_check_finds(tmp_path: Path, files: dict[str, str], expected: list[str]) -> None:
    tree = {
        **dict.fromkeys(
            ["__init__.py", "errors.py", "api.py", "multiprocessing/__init__.py", "futures/__init__.py"], ""
        ),
        **dict.fromkeys(
            ["_runtime/__init__.py", "_runtime/session.py", "_runtime/refs.py", "_runtime/client/__init__.py"], ""
        ),
        **dict.fromkeys(["_runtime/wire/__init__.py", "_runtime/wire/frames.py", "_runtime/core/__init__.py"], ""),
        **dict.fromkeys(["_runtime/core/a.py", "_runtime/base/__init__.py", "_runtime/base/limits.py"], ""),
        **files,
    }
    for name, source in tree.items():
        path = tmp_path / "scaleout" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    found = violations(tmp_path / "scaleout")
    if expected and expected[0].startswith("cycle") and found:
        # graphlib may begin at either end
        assert found[0].startswith("cycle: ") and set(found[0][7:].split(" <- ")) == set(expected[0][7:].split(" <- "))
        assert len(found) == 1
    else:
        assert found == expected


def test_the_tree_under_test_is_not_empty() -> None:
    assert len(_module_names(PACKAGE)) > 10
