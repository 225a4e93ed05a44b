"""CPU work in an asyncio program: gather, timeouts and cancellation of calls in `loop.run_in_executor`.

What to change: the executor's name and import. `scaleout.futures.aio` adds what `run_in_executor` lacks: a bounded
`map` over (async) iterables, futures that can be awaited as they are, and a timeout that ends the call itself.

What one sees: counts of primes, a call that was given up after its timeout, a call that was cancelled in the queue; and
after that, with scaleout, what it adds.

    python examples/asyncio_tasks.py            # on ScaleoutExecutor
    python examples/asyncio_tasks.py stdlib     # on ProcessPoolExecutor

The executor stands around `asyncio.run`, not inside: so Ctrl-C ends also the calls that are running.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import Executor, ProcessPoolExecutor

from scaleout.futures import ScaleoutExecutor, aio

STEP = 2_000
LIMIT = 40_000


def count_primes(start: int, stop: int) -> int:
    return sum(all(n % i for i in range(2, int(n**0.5) + 1)) for n in range(max(start, 2), stop))


async def main(executor: Executor) -> None:
    loop = asyncio.get_running_loop()
    calls = [loop.run_in_executor(executor, count_primes, n, n + STEP) for n in range(0, LIMIT, STEP)]
    counts = await asyncio.gather(*calls)
    print(f"{sum(counts)} primes below {LIMIT}, the last {counts[-1]} of them from {LIMIT - STEP} on")

    try:
        await asyncio.wait_for(loop.run_in_executor(executor, time.sleep, 0.5), timeout=0.05)
    except asyncio.TimeoutError:
        print("a call was not awaited any longer")

    calls = [loop.run_in_executor(executor, time.sleep, 0.1) for _ in range(20)]
    calls[-1].cancel()
    ends = await asyncio.gather(*calls, return_exceptions=True)
    print(f"{ends.count(None)} calls returned, the last was cancelled: {isinstance(ends[-1], asyncio.CancelledError)}")


async def starts() -> AsyncIterator[int]:
    """As from a socket or a queue."""
    for n in range(0, LIMIT, STEP):
        await asyncio.sleep(0)
        yield n


async def what_scaleout_adds(executor: ScaleoutExecutor) -> None:
    print("what scaleout adds:")
    print("  a future can be awaited:", await executor.submit(count_primes, 0, STEP))
    total = 0
    async for count in aio.map(executor, count_primes, starts(), range(STEP, LIMIT + STEP, STEP)):
        total += count
    print("  an async iterator of results:", total)
    try:
        await executor.options(timeout_s=0.1).submit(time.sleep, 60)
    except concurrent.futures.TimeoutError:
        print("  a call that ran for too long was ended")


if __name__ == "__main__":
    if sys.argv[1:] == ["stdlib"]:
        with ProcessPoolExecutor() as processes:
            asyncio.run(main(processes))
    else:
        with ScaleoutExecutor() as executor:
            asyncio.run(main(executor))
            asyncio.run(what_scaleout_adds(executor))
