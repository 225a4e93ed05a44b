"""Parameter servers: softmax regression on scikit-learn's digits, the weights kept by actors.

What one sees: gradients are tasks; the weights lie in one actor or, cut by rows, in four; training waits for a whole
step or takes each gradient as it comes. A worker may be killed at any point: a lost gradient is computed again, and a
killed server is replayed from its last checkpoint, so that it has the very weights it had.

    python examples/parameter_server.py
"""

from __future__ import annotations

import numpy
from sklearn.datasets import load_digits

import scaleout

STEPS, WORKERS, BATCH, RATE, TRAINED = 40, 4, 100, 0.008, 1500


@scaleout.remote(on_failure="replay", checkpoint_every=20)
class ParameterServer:
    def __init__(self, rows: int) -> None:
        self.weights = numpy.zeros((rows, 10))

    def apply(self, *gradients: numpy.ndarray) -> numpy.ndarray:
        self.weights -= RATE / WORKERS * sum(gradients)
        return self.weights

    def save_checkpoint(self) -> numpy.ndarray:
        return self.weights

    def load_checkpoint(self, weights: numpy.ndarray) -> None:
        self.weights = weights


@scaleout.remote
def compute_gradient(images, digits, seed, *weights):
    """That of one random batch, cut as the weights are. The seed is an argument, so a retry gives the same."""
    chosen = numpy.random.default_rng(seed).choice(len(images), BATCH)
    scores = images[chosen] @ numpy.concatenate(weights)
    probabilities = numpy.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    probabilities[range(BATCH), digits[chosen]] -= 1
    pieces = numpy.split(images[chosen].T @ probabilities / BATCH, len(weights))
    return pieces if len(pieces) > 1 else pieces[0]


def train(images: scaleout.ObjectRef, digits: scaleout.ObjectRef, shards: int, is_sync: bool) -> numpy.ndarray:
    """The weights. Only references pass through here; arrays go from task to actor and from actor to task."""
    servers = [ParameterServer.remote(64 // shards) for _ in range(shards)]
    weights = [server.apply.remote() for server in servers]

    def start(seed: int) -> list[scaleout.ObjectRef]:
        pieces = compute_gradient.options(num_returns=shards).remote(images, digits, seed, *weights)
        return pieces if shards > 1 else [pieces]

    pending = [start(seed) for seed in range(WORKERS)]
    for seed in range(WORKERS, STEPS * WORKERS, WORKERS if is_sync else 1):
        firsts = [pieces[0] for pieces in pending]
        ready, _ = scaleout.wait(firsts, num_returns=WORKERS if is_sync else 1)
        applied = [pending.pop(firsts.index(ref)) for ref in reversed(ready)]
        weights = [server.apply.remote(*pieces) for server, *pieces in zip(servers, *applied, strict=True)]
        pending += [start(seed + number) for number in range(len(ready))]
    return numpy.concatenate(scaleout.get(weights))


def main() -> None:
    images, digits = load_digits(return_X_y=True)
    data = scaleout.put(images[:TRAINED]), scaleout.put(digits[:TRAINED])
    for mode in ("synchronous", "asynchronous"):
        found = [train(*data, shards, mode == "synchronous") for shards in (1, 4)]
        right = [(numpy.argmax(images[TRAINED:] @ weights, axis=1) == digits[TRAINED:]).mean() for weights in found]
        assert min(right) > 0.87, right
        assert mode == "asynchronous" or numpy.allclose(*found)
        print(f"{mode}, one server and four: right about more than 87 % of the digits")


if __name__ == "__main__":
    main()
