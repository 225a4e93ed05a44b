"""`multiprocessing.queues`: the standard library's own module under our name, until scaleout provides it."""

import sys
from multiprocessing import queues

sys.modules[__name__] = queues
