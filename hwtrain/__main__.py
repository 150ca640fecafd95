"""Runs the command as `python -m hwtrain`."""

import sys

from hwtrain.cli import run

if __name__ == "__main__":
    sys.exit(run())
