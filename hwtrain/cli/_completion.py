"""`hwtrain completion`."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import shtab

from hwtrain.cli._parser import make_parser


def main(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    parser = make_parser()
    for action in _actions(parser):
        if action.type is Path:
            vars(action)["complete"] = shtab.FILE  # an attribute that shtab reads
    sys.stdout.write(shtab.complete(parser, options.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yields the arguments of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _actions(inner)
