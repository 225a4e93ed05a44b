"""What workers log reaches the handlers of the program."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

SETUP = """
import logging, os, sys, threading, time
from scaleout.multiprocessing import Pool

log = logging.getLogger("app.part")

"""


def run(tmp_path: Path, script: str) -> str:
    """What the program prints; it must end well, and say nothing on stderr."""
    path = tmp_path / "program.py"
    path.write_text(SETUP + textwrap.dedent(script))
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_a_file_and_a_format_are_the_programs(tmp_path: Path) -> None:
    run(
        tmp_path,
        f"""
        import scaleout
        from scaleout.futures import ScaleoutExecutor

        def work(number):
            log.info("item %d", number, extra={{"shade": object}})
            log.debug("not wanted")
            thread = threading.Thread(target=log.warning, args=("from a thread: %s", [number]))
            thread.start()
            thread.join()
            try:
                1 / 0
            except ZeroDivisionError:
                log.exception("no good")
            return number

        @scaleout.remote
        class Actor:
            def speak(self):
                log.info("an actor")

        if __name__ == "__main__":
            form = "%(levelname)s %(name)s %(process)d %(message)s %(shade)s"
            formatter = logging.Formatter(form, defaults={{"shade": "-"}})
            handler = logging.FileHandler({str(tmp_path / "log")!r})
            handler.setFormatter(formatter)
            logging.basicConfig(level=logging.INFO, handlers=[handler])
            with Pool(2) as pool:
                assert pool.map(work, range(3), chunksize=1) == [0, 1, 2]
                assert pool.apply(work, (3,)) == 3
            with ScaleoutExecutor(2) as executor:
                executor.submit(work, 4).result()
            actor = Actor.remote()
            scaleout.get([scaleout.remote(work).remote(5), actor.speak.remote()])
            scaleout.shutdown()
            print(os.getpid())
        """,
    )
    text = (tmp_path / "log").read_text()
    lines = text.splitlines()
    for number in range(6):
        (line,) = [line for line in lines if f"item {number}" in line]
        assert line.startswith("INFO app.part ")
        assert line.endswith(f"item {number} <class 'object'>")
        assert sum(f"from a thread: [{number}] -" in line for line in lines) == 1
    assert text.count("an actor") == 1
    assert text.count("no good -\nTraceback (most recent call last):\n") == 6
    assert text.count("ZeroDivisionError: division by zero\n") == 6
    assert "not wanted" not in text


def test_order_and_loggers_with_handlers_of_their_own(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        """
        def inner(number):
            log.info("inner %d", number)

        def work(number):
            for step in range(100):
                log.info("%d %d", number, step)
            with Pool(1) as pool:
                pool.map(inner, [number])
            logging.getLogger("other").warning("nobody asked for this one")

        if __name__ == "__main__":
            log.addHandler(logging.StreamHandler(sys.stdout))
            log.setLevel(logging.INFO)
            log.propagate = False
            logging.getLogger("other").addHandler(logging.NullHandler())
            logging.getLogger("other").propagate = False
            with Pool(2) as pool:
                pool.map(work, range(4), chunksize=1)
        """,
    ).splitlines()
    for number in range(4):
        of_it = [line for line in said if line.startswith(f"{number} ")]
        assert of_it == [f"{number} {step}" for step in range(100)]
        assert said.count(f"inner {number}") == 1
    assert len(said) == 404


def test_handlers_that_are_slow_or_raise_or_use_the_pool(tmp_path: Path) -> None:
    said = run(
        tmp_path,
        """
        class Odd(logging.Handler):
            def emit(self, record):
                if "ask" in record.msg:
                    answers.append(pool.apply(abs, (-7,)))
                elif "raise" in record.msg:
                    raise RuntimeError("in the handler")
                elif "slow" in record.msg:
                    time.sleep(0.001)
                    seen.append(record.msg)

        def work(what, times):
            for _ in range(times):
                log.warning(what)
            return what

        if __name__ == "__main__":
            answers, seen, hooked = [], [], []
            threading.excepthook = lambda args: hooked.append(str(args.exc_value))
            logging.getLogger().addHandler(Odd())
            with Pool(2) as pool:
                assert pool.apply(work, ("ask", 3)) == "ask"
                while len(answers) < 3:
                    time.sleep(0.01)
                assert pool.apply(work, ("raise", 1)) == "raise"
                while not hooked:
                    time.sleep(0.01)
                assert pool.apply(work, ("slow", 30_000)) == "slow"
                dropped = 30_000 - len(seen)
                assert pool.map(abs, range(-9, 0)) == [*range(9, 0, -1)]
            pool.join()
            print(answers, hooked, dropped > 0, len(seen) < 30_000)
        """,
    )
    assert said == "[7, 7, 7] ['in the handler'] True True\n"


def test_odd_records(tmp_path: Path) -> None:
    """None of them is a failure of the task; a forked child of a worker does not write to the worker's link."""
    path = tmp_path / "program.py"
    path.write_text(
        SETUP
        + textwrap.dedent("""
        class Unprintable:
            def __str__(self):
                raise ValueError("unprintable")

        def work(number):
            log.info("%s", Unprintable())
            log.info("x" * 1_000_000)
            log.info("surrogate \\ud800 %s", lambda: 1)
            pid = os.fork()
            if not pid:
                for _ in range(1000):
                    log.info("in a child")
                os._exit(0)
            os.waitpid(pid, 0)
            log.info("end")
            return number

        if __name__ == "__main__":
            logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message).40s")
            with Pool(2) as pool:
                print(pool.map(work, range(4), chunksize=1))
        """)
    )
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "[0, 1, 2, 3]\n" in done.stdout
    assert done.stdout.count("end\n") == 4
    assert done.stdout.count("x" * 40) == 4
    assert "in a child" not in done.stdout
    assert done.stderr.count("ValueError: unprintable") == 4


def test_a_program_that_has_set_up_nothing(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(
        SETUP
        + textwrap.dedent("""
        def work(number):
            log.info("no")
            log.warning("yes")
            logging.basicConfig(stream=sys.stdout, format="mine %(message)s")
            log.warning("also")

        if __name__ == "__main__":
            with Pool(1) as pool:
                pool.map(work, [1])
        """)
    )
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "mine also\n", "yes\n")
