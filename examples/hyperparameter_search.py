"""Population-based search: actors train networks on scikit-learn's digits, and the worst copy the best.

What one sees: each member is an actor that trains a small network with settings of its own. After each generation the
worse half take over networks of the better half, as references, and settings that differ a little. A worker may be
killed at any point: the program gets `ActorDiedError`, and goes on with a new actor from the last generation's network.

    python examples/hyperparameter_search.py
"""

from __future__ import annotations

import numpy
from sklearn.datasets import load_digits

import scaleout
from scaleout.errors import ActorDiedError

POPULATION, GENERATIONS, BATCHES, BATCH, SHAPES = 6, 5, 40, 50, ((64, 32), (32, 10))
TRAIN, VALIDATE, TEST = slice(1200), slice(1200, 1500), slice(1500, None)


def accuracy(network: list[numpy.ndarray], images: numpy.ndarray, digits: numpy.ndarray) -> float:
    return float(((numpy.maximum(images @ network[0], 0) @ network[1]).argmax(axis=1) == digits).mean())


@scaleout.remote
class Member:
    def __init__(self, images: numpy.ndarray, digits: numpy.ndarray, network: list[numpy.ndarray]) -> None:
        self.images, self.digits, self.network = images, digits, network

    def take_over(self, network: list[numpy.ndarray]) -> None:
        self.network = network

    @scaleout.method(num_returns=2)
    def train(self, rate: float, decay: float, seed: int) -> tuple[list[numpy.ndarray], float]:
        images, digits, (into, out) = self.images[TRAIN], self.digits[TRAIN], self.network
        for chosen in numpy.random.default_rng(seed).choice(len(images), (BATCHES, BATCH)):
            hidden = numpy.maximum(images[chosen] @ into, 0)
            errors = numpy.exp(hidden @ out)
            errors /= errors.sum(axis=1, keepdims=True)
            errors[range(BATCH), digits[chosen]] -= 1
            back = (errors @ out.T) * (hidden > 0)
            out -= rate * (hidden.T @ errors / BATCH + decay * out)
            into -= rate * (images[chosen].T @ back / BATCH + decay * into)
        return self.network, accuracy(self.network, self.images[VALIDATE], self.digits[VALIDATE])


def main() -> None:
    images, digits = load_digits(return_X_y=True)
    images, rng = images / 16, numpy.random.default_rng(0)
    data = scaleout.put(images), scaleout.put(digits)
    networks = [scaleout.put([rng.normal(0, 0.1, shape) for shape in SHAPES]) for _ in range(POPULATION)]
    settings = [tuple(10 ** rng.uniform((-2.5, -5), (0, -2))) for _ in range(POPULATION)]
    members = [Member.remote(*data, network) for network in networks]
    scores = [0.0] * POPULATION
    for generation in range(GENERATIONS):
        missing = set(range(POPULATION))
        while missing:
            calls = {number: members[number].train.remote(*settings[number], generation) for number in missing}
            for number, (network, score) in calls.items():
                try:
                    scores[number] = scaleout.get(score)
                    networks[number] = network
                    missing.remove(number)
                except ActorDiedError:
                    members[number] = Member.remote(*data, networks[number])
        order = sorted(range(POPULATION), key=lambda number: -scores[number])
        print(f"generation {generation}: best {scores[order[0]]:.1%}, worst {scores[order[-1]]:.1%}")
        for better, worse in zip(order[: POPULATION // 2], order[POPULATION // 2 :], strict=True):
            networks[worse] = networks[better]
            settings[worse] = tuple(setting * rng.choice([0.8, 1.25]) for setting in settings[better])
            members[worse].take_over.remote(networks[worse])
    right = accuracy(scaleout.get(networks[order[0]]), images[TEST], digits[TEST])
    assert right > 0.85
    print(f"the best network is right about {right:.1%} of the digits that nobody trained or chose by")


if __name__ == "__main__":
    main()
