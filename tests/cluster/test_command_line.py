"""`scaleout start`, `stop`, `status`, `drain`, `token`, `logs`: what they say, and how they end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from clusters import DEADLINE_S, Cluster, kill, wait_until


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a failed command says."""
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if not line.startswith(("Usage:", "Try "))]
    assert len([line for line in lines if line]) == 1, done.stderr
    return lines[-1]


def test_the_life_of_a_cluster(cluster: Cluster) -> None:
    head = cluster.start_head(cpus=3)
    node = cluster.start_node("--resources", '{"license": 2}')
    first, second = sorted(cluster.nodes(), key=lambda found: not found["is_head"])
    assert (first["is_head"], first["resources"]["CPU"], f"{first['host']}:{first['port']}") == (True, "3000", head)
    assert (second["resources"]["license"], f"{second['host']}:{second['port']}") == ("2000", node)
    shown = cluster.must("status").splitlines()
    assert [line.split()[2] for line in shown] == ["alive", "alive"]
    cluster.must("drain", second["node_id"])
    assert "draining" in cluster.must("status")
    assert "no node" in error_of(cluster.scaleout("drain", "nobody"))
    assert f"node {second['node_id']} is here" in cluster.log()
    said = cluster.must("stop")
    assert head in said and node in said
    assert "no node" in cluster.must("stop")
    assert list(cluster.directory.glob("run/scaleout/default/node-*.json")) == []
    assert list(cluster.directory.glob("home/default/node-*")) == []


def test_a_head_comes_back_where_it_was(cluster: Cluster) -> None:
    address = cluster.start_head()
    token = cluster.must("token")
    cluster.stop()
    assert cluster.start_head() == address
    assert cluster.must("token") == token


def test_a_second_head_of_the_same_name(cluster: Cluster) -> None:
    address = cluster.start_head()
    assert address in error_of(cluster.scaleout("start", "--head"))
    assert cluster.must("start", "--head", "--name", "other").startswith("node ")
    cluster.must("stop", "--name", "other")
    assert len(cluster.nodes()) == 1


def test_bad_input(cluster: Cluster) -> None:
    def error(*arguments: str, **environ: str) -> str:
        return error_of(cluster.scaleout("start", *arguments, **environ))

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert port in error("--head", "--port", port)
    assert "either --head" in error()
    assert "either --head" in error("--head", "--address", "h:1")
    assert "JSON" in error("--head", "--resources", "license=2")
    assert "'../x'" in error("--head", "--name", "../x")
    assert "192.0.2" in error("--head", "--host", "192.0.2.1")
    assert "no address that others can dial" in error("--head", "--host", "0.0.0.0")
    assert "token" in error("--address", "127.0.0.1:1")
    assert "not a join token" in error("--address", "127.0.0.1:1", SCALEOUT_TOKEN="sesame")
    token = "0" * 32 + "-" + "0" * 64
    assert "no node answers at 127.0.0.1:1" in error("--address", "127.0.0.1:1", SCALEOUT_TOKEN=token)
    assert "HOST:PORT" in error("--address", "nowhere", SCALEOUT_TOKEN=token)
    assert "no cluster" in error_of(cluster.scaleout("status"))
    cluster.start_head()
    assert "another cluster" in error_of(_from_elsewhere(cluster, token))


def _from_elsewhere(cluster: Cluster, token: str) -> subprocess.CompletedProcess[str]:
    elsewhere = str(cluster.directory / "elsewhere")
    return cluster.scaleout("start", "--address", cluster.address, SCALEOUT_HOME=elsewhere, SCALEOUT_TOKEN=token)


def test_joining_from_another_home(cluster: Cluster) -> None:
    """As from another machine: with the token and nothing else."""
    cluster.start_head()
    done = _from_elsewhere(cluster, cluster.must("token").strip())
    assert done.returncode == 0, done.stderr
    assert len(cluster.nodes()) == 2
    script = "from scaleout.multiprocessing import Pool\nprint(Pool(2).map(abs, [-1, -2]))"
    home = {"SCALEOUT_HOME": str(cluster.directory / "elsewhere")}
    assert cluster.run(script, **home) == "[1, 2]\n"


def test_a_program_with_a_token(cluster: Cluster) -> None:
    cluster.start_head()
    home = {"SCALEOUT_HOME": str(cluster.directory / "laptop")}
    script = "from scaleout.multiprocessing import Pool\nprint(Pool(2).map(abs, [-1, -2]))"
    assert cluster.run(script, SCALEOUT_TOKEN=cluster.must("token").strip(), **home) == "[1, 2]\n"
    assert cluster.run(script, **home) == "[1, 2]\n"  # it has a key now


def test_programs_that_cannot_reach_the_cluster(cluster: Cluster) -> None:
    cluster.start_head()
    script = "from scaleout.multiprocessing import Pool\nPool(2)"

    def last_line(**environ: str) -> str:
        program = cluster.start(script, **environ)
        _, errors = program.communicate(timeout=DEADLINE_S)
        assert program.returncode == 1
        return errors.splitlines()[-1]

    assert "no node answers at 127.0.0.1:1" in last_line(SCALEOUT_ADDRESS="127.0.0.1:1")
    assert "HOST:PORT" in last_line(SCALEOUT_ADDRESS="nowhere")
    assert "SCALEOUT_TOKEN" in last_line(SCALEOUT_HOME=str(cluster.directory / "empty"))


def test_in_the_foreground(cluster: Cluster) -> None:
    command = [sys.executable, "-m", "scaleout.cli", "start", "--head", "--block"]
    with subprocess.Popen(command, env=cluster.environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert b'"address"' in process.stdout.readline()
        assert len(cluster.nodes()) == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 0


def test_what_a_killed_node_leaves_is_removed(cluster: Cluster) -> None:
    cluster.start_head()
    node = cluster.start_node()
    kill(cluster.pid_of(node))
    wait_until(lambda: "suspected" in cluster.must("status"))
    assert node not in cluster.must("stop")
    left = Path(cluster.directory, "run/scaleout/default")
    assert [path.name for path in left.glob("node-*.json")] == []


def test_state_of_another_version(cluster: Cluster) -> None:
    import sqlite3

    cluster.start_head()
    cluster.stop()
    database = sqlite3.connect(cluster.directory / "run/scaleout/default/head.sqlite")
    database.execute("PRAGMA user_version = 99")
    database.close()
    assert "schema 99" in error_of(cluster.scaleout("start", "--head"))


def test_a_directory_that_others_may_write_to(cluster: Cluster) -> None:
    home = cluster.directory / "home" / "default"
    home.mkdir(parents=True)
    home.chmod(0o777)
    cluster.start_head()
    assert home.stat().st_mode & 0o777 == 0o700
    assert os.listdir(home)


def test_certificates_are_renewed_when_half_of_their_time_is_over(cluster: Cluster) -> None:
    """Of the head, of a node on a machine of its own, and of programs; all go on as before, and start anew."""
    cluster.start_head()
    home, elsewhere = cluster.directory / "home/default", cluster.directory / "elsewhere"
    there = {"SCALEOUT_HOME": str(elsewhere), "SCALEOUT_TOKEN": cluster.must("token").strip()}
    cluster.must("start", "--address", cluster.address, "--num-cpus", "2", **there)
    files = [path for path in (*home.glob("*.pem"), *elsewhere.glob("default/*.pem")) if path.name != "ca.pem"]
    before = {path: path.read_bytes() for path in files}
    assert len(before) == 4
    for path in files:
        os.utime(path, (0, 0))
    for node in cluster.nodes():
        os.kill(int(node["pid"]), signal.SIGHUP)
    wait_until(lambda: all(path.read_bytes() != data for path, data in before.items()))
    wait_until(lambda: cluster.log().count("is renewed") == 4)
    assert "Traceback" not in cluster.log() and "not renewed" not in cluster.log()
    assert [node["state"] for node in cluster.nodes()] == ["alive", "alive"]
    os.utime(home / "driver.pem", (0, 0))
    driver = (home / "driver.pem").read_bytes()
    both = """
        import os, scaleout
        make = scaleout.remote(lambda number: os.getppid())
        while len(set(scaleout.get([make.remote(number) for number in range(20)]))) < 2:
            pass
        print("both")
    """
    assert cluster.run(both) == "both\n"
    assert (home / "driver.pem").read_bytes() != driver


def test_nobody_gets_a_certificate_for_what_another_is(pair: Cluster) -> None:
    pair.run(
        f"""
        import json, time
        from scaleout._runtime.cluster import dial, keys, places, tls
        from scaleout._runtime.cluster.admission import receive_frame
        from scaleout._runtime.wire import frames
        from scaleout.errors import ClusterError

        identity = tls.Identity(places.home("default"), "driver")
        for role, member_id in (("node", "0123"), ("driver", "0123"), ("node", None)):
            sock, welcome = dial.connect({pair.address!r}, tls.client_context(identity))
            _, request = keys.new_request("x")
            asked = dict(token="", role=role, id=member_id or welcome["id"], request=request.decode())
            sock.sendall(frames.frame(frames.JOIN, json.dumps(asked).encode()))
            answer = json.loads(receive_frame(sock, 1 << 16, time.monotonic() + 20)[1])
            assert "the token is not the cluster's" in answer["error"], answer
        """
    )
