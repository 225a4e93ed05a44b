"""``python -m compat_tests``: see cli.py."""

import sys

from compat_tests.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
