"""Draws the curves of docs/optimisation.md: `python docs/optimisation_plots.py`.

They are written to `docs/images`, or to the folder given as an argument.
"""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from matplotlib.figure import Figure

import hwtrain as hw

STEPS, BATCH, INPUTS, OUTPUTS = 600, 64, 16, 8
ADC = hw.IOParameters(inp_bits=4, out_bound=1.5)
DAC = hw.IOParameters(inp_bits=4)
FIRST = {"init_from_data": 0}
MANAGED = {**FIRST, "init_value": 2.0, "manage_output_clipping": True}

# Fields by figure, and curves by field: label, options, periphery.
FIGURES = {
    "range_start": {
        "init_value": [
            (f"{value:g}", {**FIRST, "init_value": value}, DAC)
            for value in (1.0, 3.0, 9.0)
        ],
        "init_from_data": [
            (f"{count}", {"init_from_data": count, "init_value": 9.0}, DAC)
            for count in (0, 10, 100)
        ],
        "init_std_alpha": [
            (f"{alpha:g}", {"init_from_data": 10, "init_std_alpha": alpha}, DAC)
            for alpha in (1.5, 3.0, 6.0)
        ],
    },
    "range_gradient": {
        "learn_input_range": [
            ("true", {**FIRST, "init_value": 1.0}, DAC),
            (
                "false",
                {"init_from_data": 0, "init_value": 1.0, "learn_input_range": False},
                DAC,
            ),
        ],
        "gradient_scale": [
            (f"{scale:g}", {**FIRST, "init_value": 1.0, "gradient_scale": scale}, DAC)
            for scale in (0.3, 1.0, 3.0)
        ],
        "gradient_relative": [
            (
                str(flag).lower(),
                {**FIRST, "init_value": 0.3, "gradient_relative": flag},
                DAC,
            )
            for flag in (True, False)
        ],
    },
    "range_balance": {
        "decay": [
            (f"{decay:g}", {**FIRST, "init_value": 9.0, "decay": decay}, DAC)
            for decay in (0.0, 0.001, 0.1)
        ],
        "input_min_percentage": [
            (
                f"{share:g}",
                {
                    **FIRST,
                    "init_value": 9.0,
                    "decay": 0.1,
                    "input_min_percentage": share,
                },
                DAC,
            )
            for share in (0.8, 0.95, 0.999)
        ],
        "manage_output_clipping": [
            ("false", {**FIRST, "init_value": 2.0}, ADC),
            ("true", MANAGED, ADC),
        ],
        "output_min_percentage": [
            (f"{share:g}", {**MANAGED, "output_min_percentage": share}, ADC)
            for share in (0.8, 0.95, 0.99)
        ],
    },
}


class Layer(nn.Module):
    """One analog layer."""

    @nn.compact
    def __call__(self, x):
        """Returns the outputs."""
        return nn.Dense(OUTPUTS, name="layer", use_bias=False)(x)


def inputs(key):
    """Returns heavy-tailed inputs: a normal number times a random scale."""
    keys = jax.random.split(key)
    scale = jnp.exp(0.4 * jax.random.normal(keys[0], (BATCH, 1)))
    return scale * jax.random.normal(keys[1], (BATCH, INPUTS))


@functools.cache
def curves(options, io):
    """Returns range, clipped share and loss at every step of a training."""
    chip = hw.Hardware(
        input_range=hw.InputRangeParameter(**dict(options)),
        forward=io,
        mapping=hw.MappingParameter(weight_scaling_omega=1.0),
    )
    example = jnp.ones((BATCH, INPUTS))
    analog = hw.analogize(Layer(), chip)
    params = analog.init(jax.random.key(0), example)["params"]
    tx = hw.optim.hardware_aware(optax.sgd(0.1), hw.plan(analog, params, example))
    teacher = jax.random.normal(jax.random.key(1), (INPUTS, OUTPUTS)) / np.sqrt(INPUTS)

    def step(carry, key):
        params, state = carry
        x = inputs(key)

        def loss(params):
            return jnp.square(analog.apply({"params": params}, x) - x @ teacher).mean()

        value, gradients = jax.value_and_grad(loss)(params)
        r = params["layer"]["input_range"][0, 0]
        updates, state = tx.update(gradients, state, params)
        found = r, jnp.mean(jnp.abs(x) >= r), value
        return (optax.apply_updates(params, updates), state), found

    keys = jax.random.split(jax.random.key(2), STEPS)
    start = params, tx.init(params)
    return [
        np.asarray(c) for c in jax.jit(lambda: jax.lax.scan(step, start, keys)[1])()
    ]


def smooth(curve, width=15):
    """Returns the running mean."""
    return np.convolve(curve, np.ones(width) / width, mode="valid")


def draw(fields):
    """Draws a row for each field: range, clipped share, loss."""
    figure = Figure(figsize=(9, 2.4 * len(fields)), dpi=100, layout="constrained")
    rows = figure.subplots(len(fields), 3, sharex=True, squeeze=False)
    for axes, (field, variants) in zip(rows, fields.items()):
        for label, options, io in variants:
            r, clipped, loss = curves(tuple(sorted(options.items())), io)
            axes[0].plot(r, label=label)
            axes[1].plot(smooth(100 * clipped))
            axes[2].semilogy(smooth(loss))
        axes[0].legend(title=field, fontsize=8, title_fontsize=8)
        axes[0].set_ylabel("range r")
        axes[1].set_ylabel("clipped inputs, %")
        axes[2].set_ylabel("loss")
        axes[0].set_ylim(bottom=0)
        axes[1].set_ylim(bottom=0)
    for axis in rows[-1]:
        axis.set_xlabel("update")
    return figure


def main(folder):
    """Writes every figure into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, fields in FIGURES.items():
        draw(fields).savefig(folder / f"{name}.png")
        print(folder / f"{name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent / "images")
