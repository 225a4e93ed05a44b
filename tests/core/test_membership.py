"""The head's view of the nodes: epochs only grow, a dead node's is over, a head's restart gives nothing up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scaleout._runtime.core.membership import ALIVE, DEAD, LEFT, SUSPECTED, Membership


def test_a_node_s_life() -> None:
    membership = Membership({}, suspect_s=3, ttl_s=10)
    assert membership.registered(0.0, "a", "boot1") == 1
    assert membership.renewed(1.0, "a", 1)
    assert membership.tick(3.9) == []
    assert membership.members["a"].state == ALIVE
    version = membership.version
    assert membership.tick(4.0) == []
    assert membership.members["a"].state == SUSPECTED
    assert membership.version > version
    assert membership.renewed(5.0, "a", 1)
    assert membership.members["a"].state == ALIVE
    membership.tick(9.0)
    assert membership.tick(15.0) == ["a"]
    assert membership.members["a"].state == DEAD
    assert not membership.renewed(15.1, "a", 1)
    assert membership.registered(16.0, "a", "boot1") == 2
    assert not membership.renewed(17.0, "a", 1)
    membership.left("a", 1)  # an old word
    assert membership.here()
    membership.left("a", 2)
    assert membership.members["a"].state == LEFT
    assert membership.here() == []
    assert membership.registered(18.0, "a", "boot1") == 3


def test_a_process_registers_twice() -> None:
    """Its answer was lost: it is still the same."""
    membership = Membership({})
    assert membership.registered(0.0, "a", "boot1") == membership.registered(1.0, "a", "boot1") == 1
    assert membership.registered(2.0, "a", "boot2") == 2  # another process


def test_a_head_that_was_started_anew() -> None:
    membership = Membership({"a": (4, "boot1", True), "b": (7, "boot2", True)})
    assert membership.tick(1000.0) == []
    assert membership.here() == []
    assert not membership.renewed(1000.0, "a", 4)  # its address is not known: it has to say
    assert membership.registered(1000.0, "a", "boot1") == 4
    assert membership.renewed(1001.0, "a", 4)
    assert membership.registered(1000.0, "b", "another") == 8
    assert [member.is_draining for member in membership.here()] == [True, False]


def test_draining_ends_with_the_process() -> None:
    membership = Membership({})
    membership.registered(0.0, "a", "boot1")
    assert membership.drained("a")
    assert not membership.drained("b")
    assert membership.members["a"].is_draining
    membership.registered(1.0, "a", "boot2")
    assert not membership.members["a"].is_draining


events = st.lists(
    st.tuples(
        st.sampled_from(["register", "renew", "leave", "tick", "restart"]),
        st.sampled_from("ab"),
        st.integers(1, 3),
        st.floats(0, 12),
    ),
    max_size=60,
)


@given(events)
def test_epochs_never_come_twice(steps: list[tuple[str, str, int, float]]) -> None:
    """Whatever happens, and however often the head is started anew from what it has kept: two processes never have the
    same epoch of a node, and one that was given up is refused under its old one."""
    membership = Membership({})
    kept: dict[str, tuple[int, str, bool]] = {}
    given_to: dict[tuple[str, int], str] = {}
    over: set[tuple[str, int]] = set()
    now = 0.0
    for what, node, number, passed in steps:
        now += passed
        boot = f"boot{number}"
        if what == "register":
            before = membership.members.get(node)
            epoch = membership.registered(now, node, boot)
            kept[node] = epoch, boot, False
            assert given_to.setdefault((node, epoch), boot) == boot
            assert (node, epoch) not in over
            if before is not None:
                over.update((node, earlier) for earlier in range(1, epoch))
        elif what == "renew":
            if membership.renewed(now, node, number):
                assert kept[node][0] == number
                assert (node, number) not in over
        elif what == "leave" and node in kept:
            member = membership.members[node]
            if membership.left(node, kept[node][0]):
                over.add((node, kept[node][0]))
                kept[node] = member.epoch, member.boot_id, False
        elif what == "tick":
            for died in membership.tick(now):
                member = membership.members[died]
                over.add((died, member.epoch))
                kept[died] = member.epoch, member.boot_id, False
        elif what == "restart":
            membership = Membership(dict(kept))
