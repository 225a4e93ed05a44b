"""`multiprocessing.synchronize`: the standard library's own module under our name, until scaleout provides it."""

import sys
from multiprocessing import synchronize

sys.modules[__name__] = synchronize
