"""joblib on scaleout: `import scaleout.joblib_backend`, then name the backend.

    import scaleout.joblib_backend
    from joblib import Parallel, delayed, parallel_config

    with parallel_config(backend="scaleout"):
        Parallel(n_jobs=-1)(delayed(f)(x) for x in items)

The import registers the backend "scaleout" with joblib, and changes nothing else of joblib's. It takes what joblib's
own process backend, loky, takes. Workers stay warm between calls, for 300 s by default; `close_idle()` ends them at
once.
"""

from __future__ import annotations

from joblib.parallel import register_parallel_backend

from scaleout.joblib_backend.backend import NAME, ScaleoutBackend
from scaleout.joblib_backend.warm import close_idle

__all__ = ["ScaleoutBackend", "close_idle", "register"]


def register() -> None:
    """Make "scaleout" a backend that joblib knows by name. Importing this package has done so already."""
    register_parallel_backend(NAME, ScaleoutBackend)


register()
