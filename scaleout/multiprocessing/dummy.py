"""`multiprocessing.dummy`: the standard library's own module under our name, until scaleout provides it."""

import sys
from multiprocessing import dummy

sys.modules[__name__] = dummy
