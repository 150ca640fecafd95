"""`hwtrain verify`."""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hwtrain import checkpoint
from hwtrain._errors import InputError
from hwtrain.checkpoint._manifest import FILE_NAME
from hwtrain.cli._errors import bad_input, print_error
from hwtrain.cli._options import known_parts


def main(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    path: Path = options.checkpoint
    with bad_input():
        known_parts(options, path)
        if not (path / FILE_NAME).is_file():
            raise InputError(
                f"{path} is not a hardware-ready checkpoint: it has no {FILE_NAME}. "
                "Give the directory that hwtrain export wrote"
            )
    try:
        certificate = checkpoint.verify(path)
    except checkpoint.HardwareCheckpointError as error:
        message = " ".join(str(error).split())
        print(json.dumps({"passed": False, "error": message}, indent=2))
        print_error(f"{path} cannot be trusted: {message}")
        return 1
    print(json.dumps(certificate, indent=2))
    # stdout holds JSON alone, for programs that read it.
    Console(stderr=not on_terminal()).print(_table(certificate))
    return 0


def on_terminal() -> bool:
    """Returns whether stdout is a terminal."""
    return sys.stdout.isatty()


def _table(certificate: dict) -> Table:
    table = Table(
        "weight",
        title="Largest error, relative to the largest weight; "
        f"{certificate['tolerance']:g} is allowed",
        title_justify="left",
    )
    table.add_column("conductances", justify="right")
    table.add_column("chips", justify="right")
    for path, errors in certificate["weights"].items():
        conductances, chips = errors["conductances"], errors["chips"]
        table.add_row(
            path,
            "none" if conductances is None else f"{conductances:.1e}",
            f"{max(chips.values()):.1e} on {len(chips)}" if chips else "none",
        )
    return table
