"""The examples, and small programs in the manner of those that people have, run as processes of their own."""

import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parent.parent / "reliability"))
