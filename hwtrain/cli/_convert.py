"""`hwtrain convert`."""

import argparse
from pathlib import Path

from rich.console import Console

from hwtrain import checkpoint
from hwtrain._errors import InputError
from hwtrain.checkpoint import _destination as destination
from hwtrain.checkpoint.adapters import adapter
from hwtrain.cli import _convert_from as convert_from
from hwtrain.cli._errors import bad_input
from hwtrain.cli._options import known_parts
from hwtrain.train._folder import is_run, read_run


def main(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    with bad_input():
        _check_options(options)
    if options.source is not None:
        return convert_from.main(options)
    path: Path = options.checkpoint
    # The path is resolved, because "." has no name.
    out = options.out or Path(f"{path.resolve()}.{options.to}")
    with bad_input():
        known_parts(options, path)
        write = adapter(options.to)
        destination.check_free(out)
        if is_run(path):
            seed = read_run(path)[0].training.seeds[0]
            raise InputError(
                f"{path}: expected a hardware-ready checkpoint, got a run; give one of "
                f"its exports, such as {path / 'export' / f'seed_{seed}'}"
            )
        write(checkpoint.load(path), out, chip=options.chip)
    Console().print(f"{out} written", soft_wrap=True, highlight=False, markup=False)
    return 0


def _check_options(options: argparse.Namespace) -> None:
    """Raises for options of the other direction, which would do nothing."""
    idle = {"--from": ("chip", "parts"), "--to": ("model", "input", "names")}
    way = "--to" if options.source is None else "--from"
    for name in idle[way]:
        if getattr(options, name) not in (None, []):
            raise InputError(f"--{name} does nothing with {way}; leave it out")
