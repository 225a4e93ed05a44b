"""`multiprocessing.sharedctypes`: the standard library's own module under our name, until scaleout provides it."""

import sys
from multiprocessing import sharedctypes

sys.modules[__name__] = sharedctypes
