"""References to objects, for those above: see `base.references`."""

from __future__ import annotations

from scaleout._runtime.base.references import ObjectRef

__all__ = ["ObjectRef"]
