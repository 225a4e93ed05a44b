"""A model server: async actors answer an HTTP endpoint, a batch of requests at a time.

What one sees: a nearest-neighbour model of scikit-learn's digits lies once in shared memory, and two replicas use it.
The endpoint, an ASGI app, awaits a replica's answer; the replica gathers what comes within some milliseconds into one
matrix product. A worker may be killed at any point: its replica starts again, and its calls are made again.

    python examples/model_server.py
"""

import asyncio
import itertools
import json
import socket
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy
import uvicorn
from sklearn.datasets import load_digits
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import scaleout

REPLICAS, CLIENTS, PATIENCE_S = 2, 16, 0.005


def digits_of(known: numpy.ndarray, digits: numpy.ndarray, images: list[list[float]]) -> list[int]:
    distances = (known**2).sum(axis=1) - 2 * numpy.array(images) @ known.T
    return digits[distances.argmin(axis=1)].tolist()


@scaleout.remote(on_failure="restart", max_task_retries=-1)
class Replica:
    def __init__(self, *model: numpy.ndarray) -> None:
        self.model = model
        self.waiting: dict[asyncio.Future, list[float]] = {}

    async def predict(self, image: list[float]) -> tuple[int, int]:
        answer = asyncio.get_running_loop().create_future()
        self.waiting[answer] = image
        if len(self.waiting) == 1:
            answer.get_loop().call_later(PATIENCE_S, self.answer)
        return await answer

    def answer(self) -> None:
        batch, self.waiting = self.waiting, {}
        for answer, digit in zip(batch, digits_of(*self.model, list(batch.values())), strict=True):
            answer.set_result((digit, len(batch)))


if __name__ == "__main__":
    images, digits = load_digits(return_X_y=True)
    model, asked = (images[:1500], digits[:1500]), images[1500:].tolist()
    stored = [scaleout.put(array) for array in model]
    replicas = itertools.cycle([Replica.remote(*stored) for _ in range(REPLICAS)])

    async def predict(request: Request) -> JSONResponse:
        return JSONResponse(await next(replicas).predict.remote(await request.json()))

    app = Starlette(routes=[Route("/predict", predict, methods=["POST"])])
    server, listener = uvicorn.Server(uvicorn.Config(app, log_level="warning")), socket.create_server(("127.0.0.1", 0))

    def ask(image: list[float]) -> tuple[int, int]:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/predict"
        with urllib.request.urlopen(url, json.dumps(image).encode()) as response:
            return json.load(response)

    with ThreadPoolExecutor(CLIENTS + 1) as threads:
        threads.submit(server.run, [listener])
        try:
            found, batch_sizes = zip(*threads.map(ask, asked), strict=True)
        finally:
            server.should_exit = True
    assert list(found) == digits_of(*model, asked) and max(batch_sizes) > 1
    print(f"{len(found)} requests, {(digits[1500:] == found).mean():.1%} of the answers are right")
