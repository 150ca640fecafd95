"""Draws the curves of docs/physics.md: `python docs/plots.py [folder]`.

The folder is `docs/images` unless given.
"""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import hwtrain as hw
from hwtrain.hardware import GlobalDriftCompensation, StateIndependentNoiseModel
from hwtrain.plan import AnalogWeight, Plan

DAY_S = 86_400.0
CHIPS = {
    "PCM": hw.presets.pcm(),
    "Hermes": hw.presets.hermes(),
    "state-independent": dataclasses.replace(
        hw.presets.pcm(), noise_model=StateIndependentNoiseModel()
    ),
    "ReRAM, Wan 2022": hw.presets.reram_wan2022(),
    "ReRAM, CMO": hw.presets.reram_cmo(),
}


def figure_of(title, x_label, y_label):
    """Returns a small figure and its axes."""
    figure = Figure(figsize=(5, 3.2), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    return figure, axes


def programming_noise():
    """Draws the programming noise over the target."""
    figure, axes = figure_of("Programming noise", "target / g_max", "σ / g_max")
    for name, chip in CHIPS.items():
        model = chip.noise_model
        g = np.linspace(0.0, model.g_max, 100)
        axes.plot(g / model.g_max, model.programming_sigma(g) / model.g_max, label=name)
    axes.legend()
    return figure


def drift_exponent():
    """Draws the mean drift exponent over the target, and its spread."""
    figure, axes = figure_of("Drift exponent", "target / g_max", "ν")
    for name, chip in CHIPS.items():
        model = chip.noise_model
        if not hasattr(model, "drift_mean"):
            continue
        a = np.geomspace(1e-3, 1.0, 200)
        mean, std = model.drift_mean(a * model.g_max), model.drift_std(a * model.g_max)
        axes.semilogx(a, mean, label=name)
        axes.fill_between(a, mean - std, mean + std, alpha=0.2)
    axes.legend()
    return figure


def read_noise():
    """Draws the noise of one read a day after programming."""
    figure, axes = figure_of("Read noise after a day", "target / g_max", "σ / g_max")
    for name, chip in CHIPS.items():
        model = chip.noise_model
        g = jnp.linspace(0.0, model.g_max, 100)
        devices = model.program(jax.random.key(0), g)
        sigma = model.read_sigma(devices, DAY_S) / model.g_max
        axes.plot(g / model.g_max, sigma, label=name)
    axes.legend()
    return figure


def drift_over_time(compensation, title):
    """Draws the mean absolute weight over time, relative to the nominal one."""
    figure, axes = figure_of(title, "time since programming in s", "mean |W| / nominal")
    kernel = jax.random.normal(jax.random.key(0), (128, 64))
    times = jnp.geomspace(1.0, 365 * DAY_S, 40)
    for name, chip in CHIPS.items():
        chip = dataclasses.replace(chip, drift_compensation=compensation)
        weight = AnalogWeight(
            path="layer/kernel",
            kind="dense",
            layer="Dense",
            shape=kernel.shape,
            rows=(0,),
            columns=(1,),
            hardware=chip,
            rule="",
            ranged=False,
        )
        params = {"layer": {"kernel": kernel}}
        programmed = hw.program_chip(params, Plan((weight,)), hw.chip_key(0))
        at = jax.jit(jax.vmap(lambda t, p=programmed: p.at(t)["layer"]["kernel"]))
        share = jnp.abs(at(times)).mean((1, 2)) / jnp.abs(kernel).mean()
        axes.semilogx(times, share, label=name)
    axes.legend()
    return figure


def main(folder):
    """Writes every figure into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "programming_noise": programming_noise(),
        "drift_exponent": drift_exponent(),
        "read_noise": read_noise(),
        "drift": drift_over_time(None, "Drift"),
        "compensated": drift_over_time(
            GlobalDriftCompensation(), "Drift with global compensation"
        ),
    }
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png")
        print(folder / f"{name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent / "images")
