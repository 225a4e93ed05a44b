"""Everything that lives in the driver's `__main__`, sent to a real worker process and back."""

from __future__ import annotations

from collections.abc import Callable

Run = Callable[..., str]


def test_plain_functions_globals_and_no_cloudpickle(run_driver: Run) -> None:
    run_driver("""
        import math, sys, os.path, xml.dom.minidom
        from peer import Worker
        K = 3
        def is_even(n): return n == 0 or is_odd(n - 1)
        def is_odd(n): return n != 0 and is_even(n - 1)
        def fact(n): return 1 if n < 2 else n * fact(n - 1)
        def f(x, *, scale=2): return math.sqrt(x) * K * scale + len(os.path.join("a", "b"))
        def nested(x):
            def inner(y): return y + K + fact(3)
            return inner(x)
        def submodule(): return xml.dom.minidom.parseString("<a/>").documentElement.tagName
        def heavy(): return sorted(set(sys.modules) & {"cloudpickle", "numpy"}), __name__, __file__
        def set_global(v):
            global STATE
            STATE = v
        def get_global(): return globals()["STATE"]
        STATE = 0
        with Worker() as w:
            assert w.call(f, 4) == 2 * 3 * 2 + 3
            assert w.call(is_even, 10) is True and w.call(is_odd, 4) is False
            assert w.call(fact, 5) == 120
            assert w.call(nested, 1) == 10
            assert w.call(submodule) == "a"
            assert w.call(heavy) == ([], "__main__", __file__), w.call(heavy)
            w.call(set_global, 7)
            assert w.call(get_global) == 7
            assert w.call(f, 4) == 15
            assert w.call(get_global) == 7
        assert "cloudpickle" not in sys.modules
    """)


def test_initializer_value_survives_the_first_shipment(run_driver: Run) -> None:
    run_driver("""
        from peer import Worker
        model = None
        def init(v):
            global model
            model = v
        def use(): return model
        def make():
            globals()["late"] = 5
        def read(): return late
        late = None
        with Worker() as w:
            w.call(init, "loaded")
            assert w.call(use) == "loaded"
            w.call(make)
            assert w.call(read) == 5            # `late` is shipped for the first time: it does not overwrite
            late = 6
            assert w.call(read) == 6            # rebound in the driver: it does
            model = "other"
            assert w.call(use) == "other"
    """)


def test_classes_of_all_kinds(run_driver: Run) -> None:
    run_driver("""
        import abc, enum, functools, typing
        from collections import namedtuple
        from dataclasses import dataclass, field, fields, replace
        from peer import Worker

        @dataclass
        class Point:
            x: int
            y: int = 0
            tags: list = field(default_factory=list)
            def norm(self): return abs(self.x) + abs(self.y)
        @dataclass(frozen=True, slots=True)
        class Frozen:
            a: int
        @dataclass
        class Point3(Point):
            z: int = 5
        class Color(enum.Enum):
            RED = 1
            GREEN = 2
            def label(self): return self.name.lower()
        class Flags(enum.IntFlag):
            A = 1
            B = 2
        class Named(typing.NamedTuple):
            a: int
            b: str = "x"
            def both(self): return (self.b, self.a)
        Old = namedtuple("Old", "p q")
        class Failure(Exception):
            def __init__(self, code, text):
                super().__init__(code, text)
                self.code = code
        class Meta(type):
            def __new__(mcs, name, bases, ns, **kw):
                cls = super().__new__(mcs, name, bases, ns)
                cls.registered = True
                return cls
            def hello(cls): return "hello " + cls.__name__
        class WithMeta(metaclass=Meta):
            value = 3
        class Outer:
            class Inner:
                def __init__(self, v): self.v = v
                def get(self): return self.v + Outer.base
            base = 10
        class Base:
            def __init__(self): self.trace = ["base"]
            def who(self): return "Base"
            @property
            def prop(self): return self._p
            @prop.setter
            def prop(self, v): self._p = v
            @classmethod
            def make(cls): return cls()
            @staticmethod
            def stat(x): return x * 2
            @functools.cached_property
            def cached(self): return len(self.trace)
        class Child(Base):
            def __init__(self):
                super().__init__()
                self.trace.append(__class__.__name__)
            def who(self): return super().who() + "+Child"
        class Shape(abc.ABC):
            @abc.abstractmethod
            def area(self): ...
        class Square(Shape):
            __slots__ = ("side",)
            def __init__(self, side): self.side = side
            def area(self): return self.side ** 2
        T = typing.TypeVar("T")
        class Box(typing.Generic[T]):
            def __init__(self, item: T): self.item = item
        UserId = typing.NewType("UserId", int)
        class TD(typing.TypedDict):
            a: int
        class Left: pass
        class Right: partner = Left
        Left.partner = Right
        class Node:
            registry = {}
            def __init_subclass__(cls, **kw):
                super().__init_subclass__(**kw)
                Node.registry[cls.__name__] = cls
        class Leaf(Node): pass

        def echo(v): return v
        def attr(v, name): return getattr(v, name)()
        def color(c): return c.label(), c is Color.GREEN, Color(1) is Color.RED, list(Color) == [Color.RED, Color.GREEN]
        def raises(): raise Failure(3, "three")
        def build():
            return (Point(1), Frozen(2), Point3(1, 2), Named(1), Old(1, 2), WithMeta(), Outer.Inner(1), Child(),
                    Square(3), Box[int](4), TD(a=1), Flags.A | Flags.B)
        def dc(p):
            q = replace(p, y=9)
            return [f.name for f in fields(p)], q, Point(1).tags is not Point(1).tags
        def child():
            c = Child.make(); c.prop = 4
            return c.trace, c.who(), c.prop, Child.stat(2), c.cached
        def slots():
            try: Frozen(1).__dict__
            except AttributeError: return True
        def abstract():
            try: Shape()
            except TypeError: return True
        def ids(): return UserId(3), typing.get_args(Box[int]), Box.__parameters__ == (T,)
        def partners(): return Left.partner is Right, Right.partner is Left
        def meta(): return WithMeta.hello(), WithMeta.registered, type(WithMeta) is Meta
        def leaf(): return Leaf().registry["Leaf"] is Leaf
        with Worker() as w:
            for value in (Point(1, 2), Point3(1), Frozen(3), Color.RED, Flags.A | Flags.B, Named(1), Old(1, 2), Point,
                          Color, Outer.Inner, Failure, {"a": [Point(1), Color.GREEN]}):
                assert w.call(echo, value) == value, value
            assert w.call(attr, Point(-1, 2), "norm") == 3
            assert w.call(attr, Named(1, "z"), "both") == ("z", 1)
            assert w.call(attr, Outer.Inner(5), "get") == 15
            assert w.call(attr, Square(4), "area") == 16
            assert w.call(color, Color.GREEN) == ("green", True, True, True)
            failure = w.call(echo, Failure(1, "x"))
            assert type(failure) is Failure and failure.code == 1
            built = w.call(build)
            assert [type(b) for b in built] == [
                Point, Frozen, Point3, Named, Old, WithMeta, Outer.Inner, Child, Square, Box, dict, Flags], built
            assert w.call(dc, Point(1)) == (["x", "y", "tags"], Point(1, 9), True)
            assert w.call(child) == (["base", "Child"], "Base+Child", 4, 4, 2)
            assert w.call(slots) and w.call(abstract)
            assert w.call(ids) == (3, (int,), True)
            assert w.call(partners) == (True, True)
            assert w.call(meta) == ("hello WithMeta", True, True)
            assert w.call(leaf)
            assert w.call(Point, 3) == Point(3)
            assert w.call(Point(3, 4).norm) == 7
            assert w.call(functools.partial(Point, y=3), 1) == Point(1, 3)
            assert w.call(Child.make).trace == ["base", "Child"]
            assert w.call(Child.who, Child()) == "Base+Child"
    """)


def test_decorated_functions(run_driver: Run) -> None:
    run_driver("""
        import functools, contextlib
        from peer import Worker
        calls = []
        def traced(f):
            @functools.wraps(f)
            def wrapper(*a, **k):
                calls.append(f.__name__)
                return f(*a, **k) + 100
            return wrapper
        @traced
        def g(x): return x + 1
        @functools.lru_cache(maxsize=7)
        def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
        @functools.singledispatch
        def show(x): return "object"
        @show.register
        def _(x: int): return "int"
        @show.register(list)
        def _(x): return "list of " + ",".join(map(show, x))
        @contextlib.contextmanager
        def managed():
            yield 5
        def use():
            with managed() as v: return v, fib(30), fib.cache_parameters(), show([1, "a"]), g(1), list(calls)
        counter = functools.partial(g, 5)
        def part(): return counter()
        with Worker() as w:
            assert w.call(g, 1) == 102
            assert w.call(fib, 20) == 6765
            assert w.call(show, 1) == "int"
            assert w.call(use) == (5, 832040, {"maxsize": 7, "typed": False}, "list of int,object", 102, ["g", "g"])
            assert w.call(part) == 106
    """)


def test_globals_that_cannot_travel(run_driver: Run) -> None:
    run_driver("""
        import contextvars, logging, multiprocessing, sqlite3, sys, threading
        from peer import Remote, Worker
        lock = threading.Lock(); rlock = threading.RLock(); event = threading.Event(); event.set()
        condition = threading.Condition(); semaphore = threading.Semaphore(3); local = threading.local()
        var = contextvars.ContextVar("var", default=4)
        bare = contextvars.ContextVar("bare")
        log = logging.getLogger("app.x")
        class Service:
            def __init__(self): self.lock = threading.Lock(); self.n = 1
            def get(self):
                with self.lock: return self.n
        service = Service()
        db = sqlite3.connect(":memory:")
        mp_lock = multiprocessing.get_context("spawn").Lock()
        out = sys.stdout
        SENTINEL = object()
        def all_of_them():
            with lock, rlock, condition: pass
            local.x = 1
            return event.is_set(), semaphore._value, local.x, var.get(), bare.get(None), log.name, service.get()
        def query(): return db.execute("select 1")
        def untouched(): return db is None, 1 if False else 2
        def locked():
            with mp_lock: pass
        def identity(x=SENTINEL): return x is SENTINEL
        def has(): return hasattr(db, "execute")
        def prints(): return out is sys.stdout
        class Holder:
            mode = SENTINEL
        def held(): return Holder.mode is SENTINEL
        with Worker() as w:
            assert w.call(all_of_them) == (True, 3, 1, 4, None, "app.x", 1)
            assert w.call(untouched) == (False, 2)
            for f in (query, has):
                try: w.call(f)
                except Remote as e:
                    kind, name, text, trace = e.args
                    assert name == "TypeError" and "'db'" in text and "sqlite3.Connection" in text, text
                    assert f.__name__ + "()" in text, text
                else: raise AssertionError
            try: w.call(locked)
            except Remote as e: assert "'mp_lock'" in e.args[2] and "initializer" in e.args[2], e
            else: raise AssertionError
            assert w.call(identity) is True
            assert w.call(held) is True
            assert w.call(prints) is True
    """)


def test_rebinding_takes_effect_at_the_next_call(run_driver: Run) -> None:
    run_driver("""
        from peer import Worker
        def helper(): return 1
        def f(): return helper(), K
        K = "a"
        class C:
            version = 1
            def get(self): return self.version
        def version_of(c): return c.get(), type(c) is C
        def count(): return len(C.__name__)
        def later(): return not_yet()
        old = C()
        with Worker() as w, Worker(w.book) as w2:
            for worker in (w, w2):
                assert worker.call(f) == (1, "a")
                assert worker.call(version_of, old) == (1, True)
            try: w.call(later)
            except Exception as e: assert "not_yet" in str(e)
            in_flight = w.payload(version_of, old)
            shipped = w.shipped_bytes
            assert w.call(f) == (1, "a") and w.shipped_bytes == shipped     # nothing again
            def helper(): return 2
            assert w.call(f) == (2, "a") and w2.call(f) == (2, "a")
            K = "b"
            assert w.call(f) == (2, "b")
            class C:
                version = 2
                def get(self): return self.version
            def not_yet(): return "now"
            assert w.call(version_of, C()) == (2, True)
            assert w.call(version_of, old) == (1, False)                     # it stays what it was
            back = w.call(lambda x: x, old)
            assert type(back) is type(old), back
            assert w.run(*in_flight) == (1, True)                            # pickled before: as it was then
            assert w.call(version_of, C()) == (2, True)
            assert w2.call(version_of, C()) == (2, True)
            assert w.call(later) == "now"
            del in_flight
            for i in range(50):
                exec(f"def helper(): return {i}")
                assert w.call(f)[0] == i
            assert len(w.known) < 30, w.known
            f = lambda: "lambda"
            f.__name__ = f.__qualname__ = "f"
            assert w.call(f) == "lambda"
            len = lambda x: 99                                               # a builtin is shadowed
            assert w.call(count) == 99
    """)


def test_python_dash_m_and_relative_imports(run_driver: Run, tmp_path: object) -> None:
    package = tmp_path / "pkg"  # type: ignore[operator]
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "helper.py").write_text("def h(): return 'helped'\n")
    (package / "__main__.py").write_text(
        "from peer import Worker\n"
        "from . import helper\n"
        "def f():\n"
        "    from .helper import h\n"
        "    return h(), helper.h(), __package__, __spec__.name\n"
        "if __name__ == '__main__':\n"
        "    with Worker() as w:\n"
        "        w.call(exec, 'import sys; sys.path.insert(0, \".\")')\n"
        "        assert w.call(f) == ('helped', 'helped', 'pkg', 'pkg.__main__'), w.call(f)\n"
    )
    run_driver("", "-m", "pkg")


def test_large_globals_leave_the_stream(run_driver: Run) -> None:
    run_driver("""
        import numpy
        from peer import Worker
        big = numpy.arange(300_000)
        def total(): return int(big.sum())
        with Worker() as w:
            assert w.call(total) == int(big.sum())
            needs = w.encoder.encode(total).needs
            sizes = [(w.book.bytes_of(n).size_bytes, [b.nbytes for b in w.book.bytes_of(n).buffers]) for n in needs]
            assert any(buffers == [big.nbytes] for _, buffers in sizes) and all(size < 5000 for size, _ in sizes), sizes
    """)


def test_a_worker_ships_to_a_worker_of_its_own(run_driver: Run) -> None:
    run_driver("""
        from dataclasses import dataclass
        from peer import Worker
        K = 4
        @dataclass
        class P:
            x: int
        def leaf(p): return P(p.x + K)
        def outer(n):
            from peer import Worker
            with Worker() as w:
                return [w.call(leaf, P(i)) for i in range(n)], w.call(lambda: K)
        with Worker() as w:
            assert w.call(outer, 2) == ([P(4), P(5)], 4)
    """)


def test_what_only_the_worker_has_comes_back_by_value(run_driver: Run) -> None:
    run_driver("""
        from peer import Worker
        def make():
            exec("class Only:\\n    v = 1\\n    def get(self): return self.v\\ndef only(x): return x + 1", globals())
            return Only(), only, lambda x: x * 2
        with Worker() as w:
            instance, function, unnamed = w.call(make)
            assert instance.get() == 1 and function(1) == 2 and unnamed(4) == 8
    """)
