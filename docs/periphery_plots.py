"""Draws the plots of docs/periphery.md: `python docs/periphery_plots.py [folder]`.

The folder is `docs/images` by default.
"""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from matplotlib.figure import Figure

import hwtrain as hw
from hwtrain.periphery import (
    AdcThresholds,
    ColumnErrors,
    ComparatorOffsets,
    DeviceNonlinearity,
    crossbar_currents,
)

X = jnp.linspace(-1.0, 1.0, 801)


def panels(count, size):
    """Returns a figure and a row of its axes."""
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False)[0]


def outputs(io, columns=1):
    """Returns the outputs of a layer of one row, of weights of 1, over its input."""
    layer = nn.Dense(columns, use_bias=False)
    analog = hw.chip_mode(hw.analogize(layer, hw.Hardware(forward=io)))
    variables = hw.analogize(layer, hw.Hardware(forward=io)).init(
        jax.random.key(0), X[:1, None]
    )
    params = {**variables["params"], "kernel": jnp.ones((1, columns))}
    rngs = {"mismatch": jax.random.key(1)}
    return analog.apply({"params": params}, X[:, None], rngs=rngs)


def converters():
    """Draws an uneven ADC, a gain and an offset per column, and a nonlinear device."""
    figure, (adc, columns, device) = panels(3, (11, 3.2))
    table = tuple(0.6 * np.sin(np.linspace(0, 2 * np.pi, 14)))
    even = hw.IOParameters(out_bits=4, out_bound=1.0)
    uneven = AdcThresholds(bound=1.0, inl_lsb=table)
    measured = hw.IOParameters(out_bits=4, out_bound=1.0, stages=(uneven,))
    adc.plot(X, outputs(even)[:, 0], "0.7", label="even")
    adc.plot(X, outputs(measured)[:, 0], label="AdcThresholds")
    adc.set(title="an ADC of 4 bits", xlabel="current", ylabel="output")
    adc.legend()
    errors = ColumnErrors(gain_std=0.1, offset_std=0.05)
    columns.plot(X, outputs(hw.IOParameters(stages=(errors,)), 12), linewidth=0.8)
    columns.set(title="ColumnErrors, 12 columns of a chip", xlabel="current")
    for kappa in (0.5, 1.5, 3.0):
        io = hw.IOParameters(stages=(DeviceNonlinearity(kappa=kappa),))
        device.plot(X, outputs(io)[:, 0], label=f"κ = {kappa:g}")
    device.plot(X, X, "0.7", zorder=0)
    device.set(title="DeviceNonlinearity", xlabel="voltage / largest", ylabel="I / I₀")
    device.legend()
    return figure


def comparators():
    """Draws the codes of flash ADCs of a chip, and how often they are others."""
    figure, (each, shares) = panels(2, (8, 3.2))
    even = hw.IOParameters(out_res=10.0, out_bound=1.0)
    each.plot(X, outputs(even)[:, 0], "0.7", linewidth=3, label="even")
    for std in (0.02, 0.04, 0.08):
        stage = ComparatorOffsets(bound=1.0, steps=10, offset_std=std)
        flash = dataclasses.replace(even, stages=(stage,))
        found = outputs(flash, 2000)
        if std == 0.08:
            each.plot(X, found[:, :5], linewidth=0.8)
        wrong = jnp.mean(jnp.abs(found - outputs(even)) > 0.1, axis=1)
        shares.plot(X, wrong, label=f"offsets {std / 0.2:g} of a step")
    each.set(
        title="5 columns, offsets 0.4 of a step", xlabel="current", ylabel="output"
    )
    each.legend()
    shares.set(title="2000 columns", xlabel="current", ylabel="share of other codes")
    shares.set_ylim(top=0.9)  # the legend stands above the curves
    shares.legend(loc="upper right")
    return figure


def wires():
    """Draws the share of its voltage that each device of a crossbar gets."""
    figure, axes = panels(3, (11, 3.2))
    g = np.full((64, 64), 25e-6)
    image = None
    for panel, ohm in zip(axes, (0.5, 2.0, 8.0)):
        # The current of column j from row i alone, over G V, by superposition.
        rows = np.eye(64)
        each = crossbar_currents(g, rows, r_wire_ohm=ohm)
        share = np.asarray(each) / 25e-6
        image = panel.imshow(share, vmin=0.0, vmax=1.0)
        panel.set(title=f"{ohm:g} ohm between neighbours", xlabel="column")
    axes[0].set_ylabel("row that is driven")
    figure.colorbar(image, ax=list(axes), label="current / that without wires")
    return figure


def results():
    """Draws the levels of results in few bits."""
    figure, (fixed, dynamic) = panels(2, (8, 3.2))
    y = jnp.linspace(-2.0, 2.0, 801)
    for bits in (3, 4, 8):
        stored = hw.DigitalFormat(bits=bits, full_scale=1.5).store(y[None])[0]
        fixed.plot(y, stored, label=f"{bits} bits")
    fixed.set(title="full_scale=1.5", xlabel="result", ylabel="stored")
    fixed.legend()
    vectors = jax.random.normal(jax.random.key(0), (400, 16)) * 2.0 ** jnp.linspace(
        -4, 4, 400
    ).reshape(-1, 1)
    size = jnp.abs(vectors).max(-1)
    for name, full_scale in (("of each vector", None), ("32", 32.0)):
        stored = hw.DigitalFormat(bits=8, full_scale=full_scale).store(vectors)
        error = jnp.sqrt(jnp.square(stored - vectors).mean(-1)) / size
        dynamic.loglog(size, error, ".", markersize=3, label=f"full scale {name}")
    dynamic.set(
        title="8 bits", xlabel="largest of a vector", ylabel="error / the largest"
    )
    dynamic.legend()
    return figure


FIGURES = (converters, comparators, wires, results)


def main(folder):
    """Writes every figure into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for figure in FIGURES:
        figure().savefig(folder / f"{figure.__name__}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent / "images")
