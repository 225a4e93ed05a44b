"""Drop-in concurrency on a compact distributed runtime: Pool, executors, joblib, tasks and actors.

    from scaleout.multiprocessing import Pool  # was: from multiprocessing import Pool

This module is a docstring and a version: every worker pays for its import.
"""

__version__ = "0.1.0"
