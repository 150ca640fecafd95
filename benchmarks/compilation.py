"""Cost of a first step: seconds to trace, lower and compile; lines of the program.

    python benchmarks/compilation.py [--rounds 3] [--out DIR]

Measures the gradient of twenty layers, and of an LSTM over twenty steps, plain and on
hardware. JAX's caches are cleared before each. The table shows the minimum over a few
rounds, in processor time, because other work on the machine hardly changes it. Wall
time is shorter, because compilation runs on several threads.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import linen as nn
from tables import RESULTS, keep, machine

import hwtrain

NOISE = hwtrain.WeightModifierParameter(type="add_normal", std_dev=0.1)
CONVERTERS = {"inp_bits": 8, "out_bits": 8, "out_bound": 10.0}
HARDWARE = {
    "plain": None,
    "noise, range, 8-bit converters, out_noise": hwtrain.Hardware(
        modifier=NOISE,
        input_range=hwtrain.InputRangeParameter(),
        forward=hwtrain.IOParameters(**CONVERTERS, out_noise=0.04),
    ),
    "weight noise": hwtrain.Hardware(modifier=NOISE),
    "out_noise": hwtrain.Hardware(forward=hwtrain.IOParameters(out_noise=0.04)),
}


class Layers(nn.Module):
    """Twenty dense layers in sequence."""

    @nn.compact
    def __call__(self, x):
        for _ in range(20):
            x = nn.Dense(32)(x)
        return x


MODELS = {
    "twenty Dense(32)": (Layers(), (4, 32)),
    "LSTM over 20 steps": (nn.RNN(nn.OptimizedLSTMCell(32)), (4, 20, 32)),
}


def measured(model, hardware, shape):
    """Returns seconds of every stage, and the lines of the program."""
    module = model if hardware is None else hwtrain.analogize(model, hardware)
    x = jnp.ones(shape)
    variables = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(module.init, jax.random.key(0), x),
    )
    jax.clear_caches()

    def loss(variables, key):
        return (module.apply(variables, x, rngs={"mismatch": key}) ** 2).sum()

    times = [time.process_time()]
    traced = jax.jit(jax.grad(loss)).trace(variables, jax.random.key(1))
    times.append(time.process_time())
    lowered = traced.lower()
    times.append(time.process_time())
    lowered.compile()
    times.append(time.process_time())
    stages = zip(("trace", "lower", "compile"), times, times[1:])
    seconds = {name: after - before for name, before, after in stages}
    return {**seconds, "lines": lowered.as_text().count("\n")}


def least(rounds):
    """Returns the minimum of every number over rounds."""
    return {name: min(each[name] for each in rounds) for name in rounds[0]}


def main():
    """Measures all models on all hardware, and keeps their tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the files")
    options = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    tables = {
        name: [
            {"case": case}
            | least([measured(model, hardware, shape) for _ in range(options.rounds)])
            for case, hardware in HARDWARE.items()
        ]
        for name, (model, shape) in MODELS.items()
    }
    heading = "Seconds of a first step by stage, and lines of its program"
    keep(options.out / "compilation", "compilation", heading, tables, machine())


if __name__ == "__main__":
    main()
