"""`multiprocessing.managers`: the standard library's own module under our name, until scaleout provides it."""

import sys
from multiprocessing import managers

sys.modules[__name__] = managers
