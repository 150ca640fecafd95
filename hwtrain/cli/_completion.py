"""`hwtrain completion`."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import shtab

import hwtrain.devices  # noqa: F401 (registers the families)
from hwtrain._parts import registry
from hwtrain.cli._parser import SOURCES, TARGETS, TECHNOLOGIES, make_parser

SUGGESTED = {"to": TARGETS, "source": SOURCES, "technology": TECHNOLOGIES}
"""Values of arguments that also take one of the user's own."""


def main(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    parser = make_parser()
    suggested = {**SUGGESTED, "family": registry.names("noise_model")}
    for action in _actions(parser):
        if action.dest in suggested:
            action.choices = suggested[action.dest]
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
