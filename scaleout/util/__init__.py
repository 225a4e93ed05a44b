"""What can be built of actors, and mostly is: a pool of them, a queue."""

from __future__ import annotations

from scaleout.util.actor_pool import ActorPool
from scaleout.util.queue import Empty, Full, Queue

__all__ = ["ActorPool", "Empty", "Full", "Queue"]
