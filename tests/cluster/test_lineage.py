"""Large results that stay at the nodes where they were made: used there, fetched from there, made again when lost."""

from __future__ import annotations

from clusters import Cluster, counted, finish, kill, read_line, wait_until

TASKS = """
    import collections, gc, os, sys, time, numpy, scaleout
    from scaleout._runtime.node.lineage import Lineage

    ITEMS = 100_000  # of 8 bytes

    def note(what):
        with open("count", "a") as file:
            file.write(what + "\\n")

    @scaleout.remote
    def make(number):
        note(f"make {number}")
        return numpy.full(ITEMS, number, dtype="f8")

    @scaleout.remote
    def double(array):
        note(f"double {int(array[0])}")
        return array * 2

    @scaleout.remote
    def total(*arrays):
        note("total")
        return float(sum(array.sum() for array in arrays))

    def places(refs):
        # of each, the node that has it; None if it is here
        return [ref._hold.places[0].address if ref._hold.places else None for ref in refs]

    def lineage():
        (found,) = [each for each in gc.get_objects() if type(each) is Lineage]
        return found

    def wait_for_both_nodes():
        while len({place for place in places(ready([make.remote(0) for _ in range(8)]))}) < 2:
            pass
        open("count", "w").close()

    def ready(refs):
        scaleout.wait(refs, num_returns=len(refs))
        return refs

    def check_that_nothing_is_left():
        gc.collect()
        owner = lineage()._owner
        deadline = time.monotonic() + 30
        while owner.objects.ranges._uses or scaleout.list_objects() or lineage()._staying:
            assert time.monotonic() < deadline, (owner.objects.ranges._uses, scaleout.list_objects())
            time.sleep(0.02)
        while lineage().freed:
            lineage().size_bytes -= lineage().freed.popleft()
        assert lineage().size_bytes == 0
        assert not lineage()._moving and owner.keeper.mirrors.transfers.is_idle
        assert not any(node.mirrored for node in owner.keeper.nodes)
"""


def test_values_stay_where_they_are_made_and_tasks_go_there(pair: Cluster) -> None:
    said = pair.run(
        TASKS
        + """
    if __name__ == "__main__":
        wait_for_both_nodes()
        made = ready([make.remote(number) for number in range(12)])
        assert None not in places(made), places(made)
        for ref in made:  # nobody has anything else to do
            (there,) = ready([double.remote(ref)])
            assert places([there]) == places([ref])
        doubled = ready([double.remote(ref) for ref in made])
        assert [array[0] for array in scaleout.get(doubled)] == [2 * number for number in range(12)]
        assert places(doubled) == [None] * 12
        assert scaleout.get(total.remote(*made)) == ITEMS * 66
        assert scaleout.get(made[3])[0] == 3 and places(made[3:4]) == [None]
        del made, doubled, ref, there
        check_that_nothing_is_left()
        print("well")
    """
    )
    assert said == "well\n"


def test_whoever_wants_a_value_gets_it(pair: Cluster) -> None:
    """Inside of tasks, of values, by actors, futures, `await`: from wherever it is."""
    said = pair.run(
        TASKS
        + """
    @scaleout.remote
    def first_of(refs):
        return [float(scaleout.get(ref)[0]) for ref in refs]

    @scaleout.remote
    def nested(number):
        refs = [make.remote(number + step) for step in range(4)]
        return {"refs": refs, "sum": scaleout.get(total.remote(*refs)), "array": numpy.ones(ITEMS)}

    @scaleout.remote
    class Collector:
        def __init__(self, first):
            self.seen = [float(first[0])]

        def add(self, array):
            self.seen.append(float(array[0]))
            return numpy.full(ITEMS, len(self.seen))

        def all(self):
            return self.seen

    async def wait_for(refs):
        return [float((await ref)[0]) for ref in refs]

    def main():
        wait_for_both_nodes()
        made = ready([make.remote(number) for number in range(8)])
        assert scaleout.get([first_of.remote(made), first_of.remote(made[::-1])]) == [[*range(8)], [*range(7, -1, -1)]]
        made = ready([make.remote(number) for number in range(8)])
        collectors = [Collector.remote(made[0]) for _ in range(3)]
        answers = [collector.add.remote(ref) for ref in made for collector in collectors]
        assert scaleout.get([collector.all.remote() for collector in collectors]) == [[0, *range(8)]] * 3
        assert places(ready(answers)) == [None] * 24  # nobody could make them again
        made = [make.remote(number) for number in range(8)]
        assert [float(ref.future().result()[0]) for ref in made] == [*range(8)]
        import asyncio
        made = ready([make.remote(number) for number in range(8)])
        assert asyncio.run(wait_for(made)) == [*range(8)]
        outer = ready([nested.remote(10 * number) for number in range(4)])
        for number, found in enumerate(scaleout.get(outer)):
            assert found["sum"] == ITEMS * (40 * number + 6) and found["array"].sum() == ITEMS
            assert scaleout.get(total.remote(*found["refs"])) == found["sum"]
        del found
        try:
            slow = make.remote(1)
            scaleout.get(slow, timeout=0)
        except scaleout.errors.GetTimeoutError:
            pass

    if __name__ == "__main__":
        main()
        check_that_nothing_is_left()
        print("well")
    """
    )
    assert said == "well\n"


def start_graph(cluster: Cluster, keeps_first: bool, then: str) -> None:
    """Two stages on two nodes; one node is killed; then the third. `lost` is what was only there."""
    program = cluster.start(
        TASKS
        + f"""
    if __name__ == "__main__":
        wait_for_both_nodes()
        made = [make.remote(number) for number in range(8)]
        doubled = ready([double.remote(ref) for ref in made])
        if not {keeps_first}:
            del made
        victim = [place for place in places(doubled) if place != os.environ["SCALEOUT_ADDRESS"]][0]
        lost = [number for number, place in enumerate(places(doubled)) if place == victim]
        also = [] if not {keeps_first} else [
            number for number, place in enumerate(places(made)) if number in lost and place == victim
        ]
        print(victim, flush=True)
        sys.stdin.read()
"""
        + then,
        stdin=True,
    )
    address = read_line(program)
    kill(cluster.pid_of(address))
    said = finish(program)
    lost, also = eval(said)
    count = counted(cluster)
    assert lost
    assert [count[f"double {number}"] for number in range(8)] == [1 + (number in lost) for number in range(8)]
    assert [count[f"make {number}"] for number in range(8)] == [1 + (number in also) for number in range(8)]


def test_what_was_lost_with_a_node_is_made_again_and_nothing_else(pair: Cluster) -> None:
    start_graph(
        pair,
        True,
        """
        assert scaleout.get(total.remote(*doubled)) == 2 * ITEMS * 28
        print((lost, also))
        """,
    )


def test_also_what_it_was_made_from_if_nobody_has_that_any_more(pair: Cluster) -> None:
    start_graph(
        pair,
        False,
        """
        assert [array[0] for array in scaleout.get(doubled)] == [2 * number for number in range(8)]
        print((lost, lost))
        """,
    )


def test_a_node_that_is_drained_gives_its_values_away(pair: Cluster) -> None:
    program = pair.start(
        TASKS
        + """
    if __name__ == "__main__":
        wait_for_both_nodes()
        made = ready([make.remote(number) for number in range(8)])
        print([place for place in places(made) if place != os.environ["SCALEOUT_ADDRESS"]][0], flush=True)
        while len({*places(made)} - {None}) == 2:
            time.sleep(0.01)
        print("given away", flush=True)
        sys.stdin.read()
        assert scaleout.get(total.remote(*made)) == ITEMS * 28
        print("well")
    """,
        stdin=True,
    )
    address = read_line(program)
    node_id = next(node["node_id"] for node in pair.nodes() if f"{node['host']}:{node['port']}" == address)
    pair.must("drain", node_id)
    assert read_line(program) == "given away"
    kill(pair.pid_of(address))
    assert finish(program) == "well\n"
    assert {number: counted(pair)[f"make {number}"] for number in range(8)} == dict.fromkeys(range(8), 1)


def test_what_cannot_be_made_again_is_not_lost(pair: Cluster) -> None:
    program = pair.start(
        TASKS
        + """
    @scaleout.remote
    def put(number):
        return [scaleout.put(numpy.full(ITEMS, number))]

    @scaleout.remote(num_returns=2)
    def two(number):
        return numpy.full(ITEMS, number), numpy.full(ITEMS, number)

    @scaleout.remote(num_returns="streaming")
    def several(number):
        for _ in range(2):
            yield numpy.full(ITEMS, number)

    if __name__ == "__main__":
        wait_for_both_nodes()
        once = make.options(max_retries=0)
        refs = [once.remote(number) for number in range(8)]
        refs += [ref for number in range(8) for ref in two.remote(number)]
        refs += [ref for number in range(8) for ref in several.remote(number)]
        refs += [ref for refs in scaleout.get([put.remote(number) for number in range(8)]) for ref in refs]
        ready(refs)
        assert places(refs) == [None] * len(refs)
        print("ready", flush=True)
        sys.stdin.read()
        assert [int(array[0]) for array in scaleout.get(refs)] == [
            *range(8), *(n for n in range(8) for _ in range(2)), *(n for n in range(8) for _ in range(2)), *range(8)
        ]
        print("well")
    """,
        stdin=True,
    )
    assert read_line(program) == "ready"
    kill(next(int(node["pid"]) for node in pair.nodes() if not node["is_head"]))
    wait_until(lambda: len(pair.nodes()) == 1)
    assert finish(program) == "well\n"
    assert set(counted(pair).values()) == {1}
