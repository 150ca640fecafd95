"""`hwtrain convert`."""

import argparse
from pathlib import Path

from rich.console import Console

from hwtrain import checkpoint
from hwtrain.checkpoint import destination
from hwtrain.checkpoint.adapters import ADAPTERS
from hwtrain.cli.errors import bad_input
from hwtrain.cli.options import Commands


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "convert",
        help="write a hardware-ready checkpoint for another program",
        description="Writes a hardware-ready checkpoint in the format of a simulator "
        "or of a chip's programmer; docs/deployment.md describes each.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path)
    parser.add_argument("--to", required=True, choices=sorted(ADAPTERS), help="format")
    parser.add_argument(
        "--chip",
        type=int,
        metavar="SEED",
        help="a frozen chip of the checkpoint (default: the nominal model)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="the new file or folder (default: CHECKPOINT.FORMAT, beside it)",
    )
    parser.set_defaults(command=_convert)


def _convert(options: argparse.Namespace) -> int:
    path: Path = options.checkpoint
    # Of the resolved path, because "." has no name.
    out = options.out or Path(f"{path.resolve()}.{options.to}")
    with bad_input():
        destination.check_free(out)
        ADAPTERS[options.to](checkpoint.load(path), out, chip=options.chip)
    Console().print(f"{out} written", soft_wrap=True, highlight=False, markup=False)
    return 0
