"""`multiprocessing.shared_memory`: the standard library's own module under our name, until scaleout provides it."""

import sys
from multiprocessing import shared_memory

sys.modules[__name__] = shared_memory
