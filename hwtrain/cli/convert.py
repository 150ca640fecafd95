"""`hwtrain convert`."""

import argparse
from pathlib import Path

from rich.console import Console

from hwtrain import checkpoint
from hwtrain.checkpoint import adapters
from hwtrain.cli.errors import bad_input
from hwtrain.cli.options import Commands


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "convert",
        help="write a hardware-ready checkpoint for another program",
        description="Writes the conductances of a hardware-ready checkpoint in the "
        "format of a simulator or a programmer.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path)
    parser.set_defaults(command=_convert)
