"""Runs the command as `python -m hwtrain`."""

import sys

from hwtrain.cli import main

if __name__ == "__main__":
    sys.exit(main())
