"""A driver script of corner cases: everything below lives in `__main__`. Run by test_corner_cases.py, with "strict" or not."""

# ruff: noqa
import sys
import abc, asyncio, collections, enum, functools, itertools, operator, re, threading, typing, weakref, logging, random, decimal, string
from dataclasses import dataclass, field
from peer import Worker, Remote

REG = {}


def register(c):
    REG[c.__name__] = c
    return c


@register
class A:
    registry = REG

    @classmethod
    def names(cls):
        return sorted(cls.registry), cls.registry["A"] is A, REG is cls.registry


@register
class B(A):
    def sib(self):
        return REG["A"] is A


def use_reg():
    return REG["B"]().sib(), A.names(), B.names()


class Singleton:
    _inst = None

    def __reduce__(self):
        return "SINGLE"


SINGLE = Singleton()


def single(s):
    return s is SINGLE


rx = re.compile("a+")
ctr = itertools.count(3)
Ctx = decimal.Context(prec=3)
od = collections.OrderedDict(a=1)
dd = collections.defaultdict(list)
tmpl = string.Template("$a")
rng = random.Random(3)


def various():
    return rx.match("aa").group(), next(ctr), Ctx.prec, list(od), dd["x"], tmpl.substitute(a=1), 0 <= rng.random() < 1


async def co(x):
    await asyncio.sleep(0)
    return x + len(od)


def run():
    return asyncio.run(co(2))


def gen(n):
    yield from range(n)


def usegen():
    return list(gen(3))


class Desc:
    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, obj, cls=None):
        return self if obj is None else "desc " + self.name


class HasDesc:
    d = Desc()


def desc():
    return HasDesc().d


class Proto(typing.Protocol):
    def m(self) -> int: ...


@typing.runtime_checkable
class RProto(typing.Protocol):
    def m(self) -> int: ...


class Impl:
    def m(self):
        return 1


def proto():
    return isinstance(Impl(), RProto)


class Perm(enum.Flag):
    R = enum.auto()
    W = enum.auto()


class Alias(enum.Enum):
    A = 1
    B = 1


class StrE(str, enum.Enum):
    X = "x"

    def up(self):
        return self.value.upper()


class Planet(enum.Enum):
    E = (1, 2)

    def __init__(self, m, r):
        self.m = m
        self.r = r

    @property
    def g(self):
        return self.m / self.r


def enums():
    return (
        (Perm.R | Perm.W).value,
        StrE("x") is StrE.X,
        StrE.X.up(),
        Planet.E.g,
        Planet((1, 2)) is Planet.E,
        Alias["B"] is Alias.A,
        list(Alias.__members__),
    )


class Slots:
    __slots__ = ("a", "__weakref__")


class SubSlots(Slots):
    __slots__ = ("b",)

    def __init__(self):
        self.a = 1
        self.b = 2


def slots():
    s = SubSlots()
    weakref.ref(s)
    return s.a, s.b, hasattr(s, "__dict__")


class Vab(abc.ABC):
    @classmethod
    def __subclasshook__(cls, c):
        return NotImplemented


Vab.register(int)


def vab():
    return isinstance(3, Vab), isinstance("", Vab)


class Exc(Exception):
    def __init__(self, a, *, b=1):
        super().__init__(a)
        self.b = b


def boom():
    raise Exc(1, b=2)


try:
    raise Exc(5, b=6)
except Exc as e:
    caught = e


class Call:
    def __init__(self, k):
        self.k = k

    def __call__(self, x):
        return x * self.k * FACTOR


FACTOR = 2
inst = Call(3)


def use_inst():
    return inst(2)


class WithNew:
    def __new__(cls, v):
        o = super().__new__(cls)
        o.v = v
        return o

    def __getnewargs__(self):
        return (self.v,)


P = typing.ParamSpec("P")
R = typing.TypeVar("R", bound=A)


def deco(f: typing.Callable[P, R]) -> typing.Callable[P, R]:
    @functools.wraps(f)
    def w(*a: P.args, **k: P.kwargs):
        return f(*a, **k)

    return w


@deco
@deco
def twice(x):
    return x * FACTOR


class Multi:
    @deco
    def m(self):
        return "m"

    @functools.singledispatchmethod
    def sd(self, x):
        return "obj"

    @sd.register
    def _(self, x: int):
        return "int"

    @functools.lru_cache
    def c(self):
        return 7

    pm = functools.partialmethod(lambda self, a: a, 4)

    @staticmethod
    def s():
        return __class__.__name__


def multi():
    m = Multi()
    return m.m(), m.sd(1), m.sd(""), m.c(), m.pm(), Multi.s()


class Meta2(type):
    def __call__(cls, *a):
        o = super().__call__(*a)
        o.made = 1
        return o

    @property
    def tag(cls):
        return "t" + cls.__name__


class M2(metaclass=Meta2):
    pass


def m2():
    return M2().made, M2.tag


def cell_late():
    def inner():
        return later

    later = 5
    return inner


lateclosure = cell_late()


def lc():
    return lateclosure()


def whoami():
    return (
        __name__,
        whoami.__globals__ is sys.modules["__main__"].__dict__,
        sys.modules["__mp_main__"] is sys.modules["__main__"],
    )


def ann(x: "A", y: typing.Optional[A] = None) -> "B":
    return typing.get_type_hints(ann) and True


bound = inst.__call__


def ub():
    return bound(1)


cm = A.names


def ucm():
    return cm()[1]


def kw(*, a=SINGLE, b=REG):
    return a is SINGLE, b is REG


class Outer:
    class Mid:
        class In:
            def who(self):
                return Outer.Mid.In is type(self), __class__.__qualname__


def nested(x):
    return x.who()


def global_lambda_user():
    return lam(3)


lam = lambda x: x + FACTOR


def make(n):
    def power(x):
        return x**n

    return power


square = make(2)


def sq():
    return square(3)


logger = logging.getLogger(__name__)


def lg():
    logger.debug("x")
    return logger.name


cond = {"lock": threading.Lock(), "f": sys.stdin}


def dcond():
    return cond["lock"]


def fails_on_use_only():
    return 1 if True else cond


T = typing.NamedTuple("T", [("a", int)])


class Gen(typing.Generic[R]):
    def __class_getitem__(cls, i):
        return super().__class_getitem__(i)


def failing(call, *args):
    try:
        call(*args)
    except Remote as e:
        return e.args
    raise AssertionError(call)


with Worker(strict="strict" in sys.argv) as w:

    def check(f, want, *args):
        got = w.call(f, *args)
        assert got == want, (f, got, want)

    check(use_reg, use_reg())
    check(single, True, SINGLE)
    check(various, ("aa", 3, 3, ["a"], [], "1", True))
    check(run, 3)
    check(usegen, [0, 1, 2])
    check(desc, "desc d")
    check(proto, True)
    check(enums, enums())
    check(slots, (1, 2, False))
    check(vab, (True, False))
    check(use_inst, 12)
    check(inst, 12, 2)
    check(twice, 6, 3)
    check(multi, multi())
    check(m2, m2())
    check(lc, 5)
    check(whoami, ("__main__", True, True))
    check(ann, True, 1)
    check(ub, 6)
    check(ucm, True)
    check(kw, (True, True))
    check(nested, (True, "Outer.Mid.In"), Outer.Mid.In())
    check(global_lambda_user, 5)
    check(lam, 5, 3)
    check(square, 9, 3)
    check(sq, 9)
    check(lg, "__main__")
    check(fails_on_use_only, 1)
    check(Outer.Mid.In.who, (True, "Outer.Mid.In"), Outer.Mid.In())
    check(operator.attrgetter("k"), 3, inst)
    check(T, T(1), 1)
    check(lambda: WithNew(3).v, 3)
    check(functools.partial(twice, 4), 8)
    check(lambda: caught.b, 6)
    check(bound, 6, 1)
    check(lambda: Perm.R | Perm.W, Perm.R | Perm.W)
    check(lambda: (StrE.X, Planet.E), (StrE.X, Planet.E))
    check(lambda: Gen[A] and 1, 1)
    check(lambda: [type(x).__name__ for x in (A(), B())], ["A", "B"])
    check(lambda: weakref, weakref)
    assert failing(w.call, boom)[:3] == ("raised", "Exc", "1")
    text = failing(w.call, dcond)[2]
    assert "the global 'cond' of __main__" in text and "(used in dcond())" in text, text
