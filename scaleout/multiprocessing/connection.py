"""`multiprocessing.connection`: the standard library's own module under our name, until scaleout provides it."""

import sys
from multiprocessing import connection

sys.modules[__name__] = connection
