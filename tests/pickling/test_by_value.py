"""What has no name: lambdas, closures, local classes; and what the errors say."""

from __future__ import annotations

from collections.abc import Callable

Run = Callable[..., str]


def test_closures_and_lambdas(run_driver: Run) -> None:
    run_driver("""
        import functools, sys
        from peer import Worker
        K = 5
        def helper(x): return x + K
        def make_counter():
            n = 0
            def bump():
                nonlocal n
                n += 1
                return n
            def read(): return n
            return bump, read
        def make_recursive():
            def fact(n): return 1 if n < 2 else n * fact(n - 1)
            def even(n): return n == 0 or odd(n - 1)
            def odd(n): return n != 0 and even(n - 1)
            return fact, even
        def use(pair):
            bump, read = pair
            bump(); bump()
            return read()
        def with_defaults(k):
            def f(a: int, b=k, *, c=[1]) -> str:
                "doc"
                return a, b, c, k
            f.tag = "t"
            return f
        def look(f): return f.__name__, f.__qualname__, f.__doc__, f.__annotations__, f.tag, f.__module__
        def set_k(v):
            global K
            K = v
        with Worker() as w:
            assert w.call(lambda x: helper(x), 1) == 6
            w.call(set_k, 50)
            assert w.call(lambda x: helper(x) + K, 1) == 101       # the one namespace
            assert w.call(use, make_counter()) == 2
            fact, even = make_recursive()
            assert w.call(fact, 6) == 720 and w.call(even, 8) is True
            f = with_defaults(3)
            assert w.call(f, 1) == (1, 3, [1], 3)
            assert w.call(look, f) == (
                "f", "with_defaults.<locals>.f", "doc", {"a": int, "return": str}, "t", "__main__")
            assert "cloudpickle" not in sys.modules
            assert w.call(functools.partial(lambda a, b: a - b, b=1), 3) == 2
            back = w.call(lambda: (lambda y: y * K))
            assert back(2) == 10                                   # the driver's K
    """)


def test_local_classes_keep_their_identity(run_driver: Run) -> None:
    run_driver("""
        import enum, collections
        from dataclasses import dataclass
        from peer import Worker
        def local():
            @dataclass
            class P:
                x: int
                def twice(self): return P(self.x * 2)
            class E(enum.Enum):
                A = 1
            class Base:
                def f(self): return "base"
            class Sub(Base):
                hits = 0
                def f(self): return super().f() + "sub"
            N = collections.namedtuple("N", "a b")
            return P, E, Sub, N
        P, E, Sub, N = local()
        with Worker() as w:
            assert w.call(lambda p: p.twice(), P(2)) == P(4)
            assert w.call(lambda e: (e, E.A is e), E.A) == (E.A, True)
            assert w.call(lambda s: s.f(), Sub()) == "basesub"
            Sub.hits = 3
            assert w.call(lambda s: type(s).hits, Sub()) == 3
            assert type(w.call(lambda s: s, Sub())) is Sub and Sub.hits == 3
            assert w.call(lambda: N(1, 2)) == (1, 2)
            assert w.call(lambda a, b: type(a) is type(b), Sub(), Sub())
            class_of = w.call(lambda c: c, Sub)
            assert class_of is Sub
    """)


def test_functions_whose_globals_are_no_module(run_driver: Run) -> None:
    run_driver("""
        from peer import Worker
        names = {"__name__": "__main__", "K": 4}
        exec("def g(x): return x + K\\ndef f(x): return g(x) * K", names)
        with Worker() as w:
            assert w.call(names["f"], 1) == 20
    """)


def test_errors_name_the_variable(run_driver: Run) -> None:
    run_driver("""
        import sys, threading, functools
        from peer import Worker
        from scaleout._runtime.pickling.encode import Encoder, Hint
        from scaleout._runtime.pickling.definitions import DefinitionBook
        encoder = Encoder(DefinitionBook())
        def outer():
            lk = threading.Lock()
            def f(): return lk
            return f
        def text(obj, kind=TypeError):
            try: encoder.encode(obj)
            except kind as e: return str(e) + " " + " ".join(getattr(e, "__notes__", []))
            raise AssertionError
        class Holder:
            def __init__(self): self.lk = threading.Lock()
        t = text(outer())
        assert "cannot pickle '_thread.lock' object" in t, t
        assert "the variable 'lk' of the closure of function 'outer.<locals>.f'" in t, t
        assert "'lk' of an object of class 'Holder'" in text([1, Holder()])
        assert "the object of the bound method" in text(Holder().__init__) or "'lk'" in text(Holder().__init__)
        assert "cannot pickle" in text(threading.Lock())
        assert "default of parameter 'x'" in text(lambda x=threading.Lock(): 1)
        assert "argument 'b'" in text(functools.partial(print, b=threading.Lock()))
        class Bad:
            def __reduce__(self): raise ZeroDivisionError("mine")
        assert "mine" in text(Bad(), ZeroDivisionError)
        class Late:
            def __reduce__(self): raise ValueError("late")
        t = text((lambda: 1, Late()), ValueError)
        hint = Hint()
        encoder.encode(lambda: 1, hint); assert hint.is_by_value
        assert encoder.encode((1,), hint).chunks
        for v in (1, "a"): encoder.encode(v)          # the pool is whole after failures
        file = open(sys.argv[0]); text(file); file.close()
    """)


def test_modules_that_workers_cannot_import(run_driver: Run) -> None:
    run_driver("""
        import sys, types
        from peer import Worker
        source = '''
        import threading
        K = 2
        lock = threading.Lock()
        class Thing:
            def __init__(self, v): self.v = v
            def __eq__(self, other): return type(self) is type(other) and self.v == other.v
            def grow(self): return Thing(self.v + helper())
        def helper():
            with lock: return K
        def work(x): return x * helper()
        def closure(n): return lambda x: work(x) + n
        def identity(x): return x
        '''
        import textwrap
        for name in ("hidden", "hidden2", "pack", "pack.hidden3"):
            module = types.ModuleType(name)
            exec(textwrap.dedent(source), module.__dict__)
            sys.modules[name] = module
        import hidden, hidden2
        hidden3 = sys.modules["pack.hidden3"]
        def uses_module(x): return hidden.work(x) + hidden2.K
        with Worker() as w:
            assert w.call(hidden.work, 3) == 6                      # a miss, then it works
            assert "hidden" in w.book.by_value_modules
            assert w.call(hidden.work, 4) == 8
            assert w.call(hidden.Thing.grow, hidden.Thing(1)) == hidden.Thing(3)
            assert w.call(hidden2.closure(1), 5) == 11              # by value, of a module that is missing
            assert w.call(hidden3.identity, hidden3.Thing(2)) == hidden3.Thing(2)
            assert w.call(uses_module, 2) == 6
            hidden.K = 10
            assert w.call(hidden.work, 3) == 30
    """)


def test_a_module_the_worker_has_in_another_edition(run_driver: Run, tmp_path: object) -> None:
    (tmp_path / "edition.py").write_text("def old(): return 'old'\n")  # type: ignore[operator]
    run_driver("""
        import sys
        sys.path.insert(0, ".")
        import edition
        from peer import Worker
        exec("def new(): return 'new ' + old()", edition.__dict__)
        with Worker() as w:
            w.call(exec, "import sys; sys.path.insert(0, '.')")
            assert w.call(edition.old) == "old"
            assert w.call(edition.new) == "new old"
    """)
