"""Cost of a hardware-aware training step against a plain one, in one interleaved run.

    python benchmarks/digits_step.py [--blocks 60] [--out DIR]

Measures forward, backward and update of configs/digits_mlp.toml, in blocks of steps.
"""

import argparse
import dataclasses
import functools
from pathlib import Path

import jax
from interleaved import interleaved
from tables import RESULTS, keep, machine, row

from hwtrain import fast_prng, optim
from hwtrain._plan.hardware import Hardware
from hwtrain.train import _linen as linen
from hwtrain.train import init_state, make_step, read_config
from hwtrain.train._preparation import prepare

CONFIG = Path(__file__).parent.parent / "configs" / "digits_mlp.toml"


def variants(hardware):
    """Returns hardware by name: the recipe's, and each of its parts alone."""
    parts = {
        "hardware-aware": hardware,
        "noise and clip": Hardware(modifier=hardware.modifier, clip=hardware.clip),
        "noise alone": Hardware(modifier=hardware.modifier),
        "clip alone": Hardware(clip=hardware.clip),
        "input range alone": Hardware(input_range=hardware.input_range),
    }
    return {
        name: dataclasses.replace(part, mismatch=None, converter=None)
        for name, part in parts.items()
    }


def runners(config, ready):
    """Returns for each variant a function that runs a number of steps."""
    forward, example = ready.task.forward, ready.data.example
    cases = {"plain": (ready.plain, ready.optimizer)}
    for name, hardware in variants(config.hardware).items():
        model, plan = linen.hardware_aware(ready.factory, hardware, forward, example)
        cases[name] = model, optim.hardware_aware(ready.optimizer, plan)
    return {name: runner(*case, config, ready) for name, case in cases.items()}


def runner(model, optimizer, config, ready):
    """Returns a function that runs some steps and returns their last results."""
    step = make_step(model, optimizer, ready.task.loss, take=ready.data.take)
    state = init_state(model.init(0), optimizer)
    fast = config.training.generator == "fast"
    key = jax.random.key(0, impl=fast_prng if fast else None)
    source = ready.data.training(0, 0, None)

    def run(steps):
        nonlocal state
        for _ in range(steps):
            state, loss = step(state, next(source), key)
        return state, loss

    return run


def measure(blocks, steps):
    """Returns the rows of the table."""
    config = read_config(CONFIG)
    cases = runners(config, prepare(config, CONFIG.parent))
    runs = {name: functools.partial(run, steps) for name, run in cases.items()}
    timings = interleaved(runs, blocks)
    return [row(name, timing, steps) for name, timing in timings.items()]


def main():
    """Measures the steps and keeps their table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=60)
    parser.add_argument("--steps", type=int, default=50, help="steps in a block")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the files")
    options = parser.parse_args()
    tables = {"One step": measure(options.blocks, options.steps)}
    heading = "The model of configs/digits_mlp.toml, batch 64"
    keep(options.out / "digits_step", "digits_step", heading, tables, machine())


if __name__ == "__main__":
    main()
