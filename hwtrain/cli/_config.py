"""`hwtrain config`."""

import argparse
import json
import sys

import tomli_w
from rich.console import Console

from hwtrain import train
from hwtrain._parts.fields import to_dict
from hwtrain._plan.tables import count
from hwtrain.cli._errors import bad_input
from hwtrain.train._entries import EntryError
from hwtrain.train._reading import located
from hwtrain.train._schema import schema


def main(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    if options.what == "schema":
        print(json.dumps(schema(), indent=2, ensure_ascii=False))
        return 0
    with bad_input():
        config = train.read_config(options.config, options.overrides)
        if options.what == "show":
            sys.stdout.write(tomli_w.dumps(to_dict(config)))
            return 0
        prepare, _ = train.job_of(config)
        try:
            ready = prepare(config, options.config.parent)
        except EntryError as error:
            raise located(error, options.config, options.overrides) from error
    steps, seeds = config.training.steps, len(config.training.seeds)
    found = f"{count(steps, 'update')} for {count(seeds, 'seed')}"
    if isinstance(config, train.Config):
        found += f", {count(len(ready.plan.weights), 'analog array')}"
        if ready.plan.outputs:
            stored = count(len(ready.plan.outputs), "module")
            found += f", {stored} with results in few bits"
    console = Console()
    console.print(f"{options.config} is right: {found}", soft_wrap=True)
    if ready.initial is not None:
        said = ready.initial.report.describe()
        console.print(said, soft_wrap=True, highlight=False, markup=False)
    return 0
