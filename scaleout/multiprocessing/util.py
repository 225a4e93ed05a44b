"""`multiprocessing.util`: the standard library's own module under our name, until scaleout provides it."""

import sys
from multiprocessing import util

sys.modules[__name__] = util
