"""What there is, what is asked for, and who gets it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from faults import note, notes, wait_until

import scaleout
from scaleout import errors


@scaleout.remote
def wait_at(path: str, log: str) -> str | None:
    note(log, os.getpid())
    with open(path):
        return os.environ.get("CUDA_VISIBLE_DEVICES")


def test_what_there_is() -> None:
    scaleout.init(num_cpus=3, num_gpus=2, memory=1 << 30, resources={"tpu": 4, "disk": 0.5})
    expected = {"CPU": 3, "GPU": 2, "memory": 1 << 30, "tpu": 4, "disk": 0.5}
    assert scaleout.cluster_resources() == expected
    assert scaleout.available_resources() == expected
    (node,) = scaleout.list_nodes()
    assert node["resources"] == expected
    assert scaleout.get(scaleout.remote(scaleout.cluster_resources).remote()) == expected


def test_init_twice() -> None:
    scaleout.init(num_cpus=1)
    with pytest.raises(RuntimeError, match="shutdown"):
        scaleout.init(num_cpus=2)
    scaleout.init(num_cpus=2, ignore_reinit_error=True)
    assert scaleout.cluster_resources()["CPU"] == 1


@pytest.mark.parametrize(
    "options",
    [
        {"num_cpus": -1},
        {"num_cpus": "2"},
        {"num_gpus": True},
        {"resources": {"x": -1}},
        {"object_store_memory": 0},
        {"object_store_memory": "1G"},
        {"address": "elsewhere"},
        {"runtime_env": {"pip": ["x"]}},
        {"runtime_env": {"env_vars": {"A=B": "x"}}},
        {"runtime_env": {"env_vars": {"A": "x\0"}}},
        {"runtime_env": {"working_dir": "/nowhere/at/all"}},
    ],
)
def test_init_with_what_is_wrong(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="."):
        scaleout.init(**options)
    assert not scaleout.is_initialized()


@pytest.mark.parametrize("given", [["env_vars"], {"env_vars": ["A"]}, {"env_vars": {"A": 1}}, {"working_dir": 5}])
def test_a_runtime_env_of_wrong_types(given: Any) -> None:
    with pytest.raises(TypeError, match="."):
        scaleout.init(runtime_env=given)
    assert not scaleout.is_initialized()


def test_workers_find_the_runtime_env(tmp_path: Path) -> None:
    (tmp_path / "only_here.py").write_text("VALUE = 5")
    scaleout.init(num_cpus=2, runtime_env={"env_vars": {"ONLY_THERE": "yes"}, "working_dir": str(tmp_path)})

    def seen() -> tuple[Any, ...]:
        import only_here  # type: ignore[import-not-found]

        return os.environ["ONLY_THERE"], os.getcwd(), only_here.VALUE

    look = scaleout.remote(seen)

    @scaleout.remote
    def look_from_inside() -> Any:
        return scaleout.get(look.remote())

    @scaleout.remote
    class Looker:
        def look(self) -> Any:
            return seen()

    found = scaleout.get([look.remote(), look_from_inside.remote(), Looker.remote().look.remote()])
    assert found == [("yes", str(tmp_path), 5)] * 3
    assert "ONLY_THERE" not in os.environ
    assert os.getcwd() != str(tmp_path)
    scaleout.shutdown()

    @scaleout.remote
    def is_there() -> bool:
        return "ONLY_THERE" in os.environ

    assert not scaleout.get(is_there.remote())


@pytest.mark.parametrize(
    ("total", "options", "at_once"),
    [
        ({"num_cpus": 2}, {"num_cpus": 1}, 2),
        ({"num_cpus": 2}, {"num_cpus": 2}, 1),
        ({"num_cpus": 1}, {"num_cpus": 0.25}, 4),
        ({"num_cpus": 2, "resources": {"seat": 3}}, {"num_cpus": 0, "resources": {"seat": 1}}, 3),
        ({"num_cpus": 2, "memory": 1000}, {"num_cpus": 0, "memory": 400}, 2),
        ({"num_cpus": 2, "num_gpus": 1}, {"num_cpus": 0, "num_gpus": 0.5}, 2),
    ],
)
def test_so_many_run_at_once(total: dict[str, Any], options: dict[str, Any], at_once: int, tmp_path: Path) -> None:
    scaleout.init(**total)
    gate, log = str(tmp_path / "gate"), str(tmp_path / "log")
    os.mkfifo(gate)
    refs = [wait_at.options(**options).remote(gate, log) for _ in range(at_once + 2)]
    wait_until(lambda: len(notes(log)) == at_once)
    left = scaleout.available_resources()
    used = {name: amount - left[name] for name, amount in scaleout.cluster_resources().items()}
    assert sum(task["state"] == "RUNNING" for task in scaleout.list_tasks()) == at_once
    for name, amount in {"CPU": options.get("num_cpus", 1), **options.get("resources", {})}.items():
        assert used[name] == pytest.approx(amount * at_once)
    with open(gate, "w"):  # stays open, so that those that follow find it open
        wait_until(lambda: len(notes(log)) == at_once + 2)
        scaleout.get(refs)
    wait_until(lambda: scaleout.available_resources() == scaleout.cluster_resources())


def test_as_many_as_init_says(tmp_path: Path) -> None:
    """Also when there are fewer CPUs, and again after an actor had some of them while nothing else was to be done."""
    scaleout.init(num_cpus=5)
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
        gate, log = str(tmp_path / name / "gate"), str(tmp_path / name / "log")
        os.mkfifo(gate)
        refs = [wait_at.remote(gate, log) for _ in range(5)]
        wait_until(lambda log=log: len(notes(log)) == 5)  # type: ignore[misc]
        with open(gate, "w"):
            scaleout.get(refs)
        actor = Idle.options(num_cpus=1).remote()
        scaleout.get(actor.answer.remote())
        wait_until(lambda: scaleout.available_resources()["CPU"] == 4)
        scaleout.kill(actor)
        wait_until(lambda: scaleout.available_resources()["CPU"] == 5)


@scaleout.remote
class Idle:
    def answer(self) -> None:
        pass


def test_shapes_do_not_starve_one_another() -> None:
    scaleout.init(num_cpus=2, resources={"a": 1, "b": 1})
    add = scaleout.remote(lambda number: number + 1)
    refs = []
    for number in range(60):
        options = [{}, {"num_cpus": 2}, {"resources": {"a": 1}}, {"num_cpus": 0.5, "resources": {"b": 1}}][number % 4]
        refs.append(add.options(**options).remote(number))
    assert scaleout.get(refs, timeout=60) == list(range(1, 61))


def test_what_is_never_there_says_so() -> None:
    scaleout.init(num_cpus=2)
    task = scaleout.remote(lambda: 1)
    for options, match in [
        ({"num_cpus": 3}, "3 CPU asked for, and there is no more than 2 CPU"),
        ({"num_gpus": 1}, "1 GPU"),
        ({"resources": {"unobtainium": 1}}, "1 unobtainium"),
    ]:
        with pytest.raises(errors.InfeasibleError, match=match) as caught:
            task.options(**options).remote()
        assert isinstance(caught.value, ValueError)

        @scaleout.remote
        def nested(options: dict[str, Any] = options) -> Any:
            return scaleout.get(scaleout.remote(lambda: 1).options(**options).remote())

        with pytest.raises(errors.InfeasibleError, match=match):
            scaleout.get(nested.remote(), timeout=30)
    assert scaleout.get(task.remote()) == 1


def test_no_two_tasks_have_the_same_gpu(tmp_path: Path) -> None:
    """Each in a worker of its own; the next one's is started as the last one leaves."""

    @scaleout.remote(num_gpus=1, max_retries=0)
    def hold(folder: str) -> str:
        device = os.environ["CUDA_VISIBLE_DEVICES"]
        path = os.path.join(folder, device)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        time.sleep(0.005)
        os.unlink(path)
        return device

    @scaleout.remote(num_gpus=1)
    def wait_for(refs: list[Any]) -> str:
        return scaleout.get(refs[0])  # type: ignore[no-any-return]

    scaleout.init(num_cpus=4, num_gpus=2)
    devices = scaleout.get([hold.remote(str(tmp_path)) for _ in range(40)], timeout=60)
    assert set(devices) == {"0", "1"}
    assert scaleout.get(wait_for.remote([hold.remote(str(tmp_path))]), timeout=60) in ("0", "1")


def test_who_has_the_only_gpu_makes_what_it_waits_for_also_if_that_could_not_begin_at_once() -> None:
    @scaleout.remote
    def late() -> int:
        time.sleep(0.2)
        return 1

    @scaleout.remote(num_gpus=1)
    def inner(value: int) -> int:
        return value + 1

    @scaleout.remote(num_gpus=1)
    def outer() -> int:
        return scaleout.get(inner.remote(late.remote()))  # type: ignore[no-any-return]

    scaleout.init(num_cpus=2, num_gpus=1)
    assert scaleout.get(outer.remote(), timeout=60) == 2


def test_gpus_are_told_in_the_environment(tmp_path: Path) -> None:
    scaleout.init(num_cpus=4, num_gpus=2)
    gate, log = str(tmp_path / "gate"), str(tmp_path / "log")
    os.mkfifo(gate)
    refs = [wait_at.options(num_gpus=1).remote(gate, log) for _ in range(2)]
    wait_until(lambda: len(notes(log)) == 2)
    with open(gate, "w"):
        seen = scaleout.get(refs)
    assert sorted(seen) == ["0", "1"]
    visible = scaleout.remote(lambda: os.environ.get("CUDA_VISIBLE_DEVICES"))
    assert scaleout.get(visible.options(num_gpus=2).remote(), timeout=30) == "0,1"
    assert scaleout.get(visible.remote()) == os.environ.get("CUDA_VISIBLE_DEVICES")

    @scaleout.remote(num_gpus=0.5)
    class Half:
        def device(self) -> str:
            return os.environ["CUDA_VISIBLE_DEVICES"]

    halves = [Half.remote() for _ in range(4)]
    assert sorted(scaleout.get([half.device.remote() for half in halves], timeout=30)) == ["0", "0", "1", "1"]
    del halves
    assert scaleout.get(visible.options(num_gpus=2).remote(), timeout=30) == "0,1"
