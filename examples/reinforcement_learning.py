"""Reinforcement learning: actors play episodes of a pole on a cart, and the best policies shape the next ones.

What one sees: the cross-entropy method. Rollout workers are actors, each with an environment of its own, in an
`ActorPool`; every policy of a generation is played by whichever is idle. A worker may be killed at any point: the pool
makes a new actor, and the episodes that were lost are played again, with the same seed.

    python examples/reinforcement_learning.py
"""

from __future__ import annotations

import math
import random

import numpy

import scaleout
from scaleout.util import ActorPool

WORKERS, GENERATIONS, POLICIES, ELITE, EPISODES, LONGEST = 3, 6, 24, 6, 3, 200


class PoleOnCart:
    """Barto, Sutton and Anderson's: push the cart left or right, so that the pole stays up and the cart in sight."""

    def reset(self, seed: int) -> list[float]:
        rng = random.Random(seed)
        self.state = [rng.uniform(-0.05, 0.05) for _ in range(4)]
        return self.state

    def step(self, is_right: bool) -> tuple[list[float], bool]:
        """The state a fiftieth of a second later, and whether it is over."""
        place, speed, angle, turning = self.state
        push = (10.0 if is_right else -10.0) + 0.05 * turning**2 * math.sin(angle)
        falling = 9.8 * math.sin(angle) - math.cos(angle) * push / 1.1
        turning_more = falling / (0.5 * (4 / 3 - 0.1 * math.cos(angle) ** 2 / 1.1))
        speeding = (push - 0.05 * turning_more * math.cos(angle)) / 1.1
        changes = speed, speeding, turning, turning_more
        self.state = [value + 0.02 * change for value, change in zip(self.state, changes, strict=True)]
        return self.state, abs(self.state[0]) > 2.4 or abs(self.state[2]) > math.radians(12)


@scaleout.remote
class RolloutWorker:
    def __init__(self) -> None:
        self.environment = PoleOnCart()

    def play(self, policy: list[float], seed: int) -> float:
        """For how many steps the policy keeps the pole up, on average."""
        return sum(self.play_once(policy, seed + episode) for episode in range(EPISODES)) / EPISODES

    def play_once(self, policy: list[float], seed: int) -> int:
        state = self.environment.reset(seed)
        for step in range(LONGEST):
            state, is_over = self.environment.step(sum(map(float.__mul__, policy, state)) > 0)
            if is_over:
                return step
        return LONGEST


def main() -> None:
    pool = ActorPool([RolloutWorker.remote() for _ in range(WORKERS)], refill=RolloutWorker.remote)
    rng = numpy.random.default_rng(1)
    mean, spread = numpy.zeros(4), numpy.ones(4)
    for generation in range(GENERATIONS):
        policies = rng.normal(mean, spread, (POLICIES, 4))
        calls = [(policy.tolist(), 100 * generation) for policy in policies]
        steps = numpy.array(list(pool.map(lambda worker, call: worker.play.remote(*call), calls)))
        elite = policies[numpy.argsort(-steps, kind="stable")[:ELITE]]
        mean, spread = elite.mean(axis=0), elite.std(axis=0) + 0.05
        print(f"generation {generation}: the pole stayed up for {steps.mean():.0f} steps, at best {steps.max():.0f}")
    (final,) = pool.map(lambda worker, policy: worker.play.remote(policy, 10_000), [mean.tolist()])
    assert final == LONGEST, final
    print(f"the learned policy keeps it up for {final:.0f} of {LONGEST} steps")


if __name__ == "__main__":
    main()
