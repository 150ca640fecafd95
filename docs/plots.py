"""Draws the plots of docs/physics.md: `python docs/plots.py [folder]`.

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
from hwtrain._plan.plan import Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.devices import (
    GlobalDriftCompensation,
    GlobalDriftCompensationWithExactReference,
    PerColumnDriftCompensation,
    StateIndependentNoiseModel,
)
from hwtrain.weights import BinaryWeights, WeightModifierParameter
from hwtrain.weights.learned_bound import learned_clip

DAY_S = 86_400.0
TIME = "time since programming in s"
CHIPS = {
    "PCM": hw.presets.pcm(),
    "Hermes": hw.presets.hermes(),
    "state-independent": dataclasses.replace(
        hw.presets.pcm(), noise_model=StateIndependentNoiseModel()
    ),
    "ReRAM, Wan 2022": hw.presets.reram_wan2022(),
    "ReRAM, CMO": hw.presets.reram_cmo(),
}
MODIFIERS = {
    "add_normal, 0.05": {"type": "add_normal", "std_dev": 0.05},
    "mult_normal, 0.1": {"type": "mult_normal", "std_dev": 0.1},
    "discretize, 8 steps": {"type": "discretize", "res": 8.0},
    "the same, stochastic": {"type": "discretize", "res": 8.0, "sto_round": True},
    "discretize_add_normal": {
        "type": "discretize_add_normal",
        "res": 8.0,
        "std_dev": 0.02,
    },
    "dorefa, clip 0.6": {"type": "dorefa", "res": 0.1},
    "poly": {"type": "poly", "std_dev": 1.0},
    "prog_noise": {"type": "prog_noise", "std_dev": 1.0},
    "pcm_noise, 1 day": {
        "type": "pcm_noise",
        "std_dev": 1.0,
        "pcm_t_inference": DAY_S,
    },
    "drop_connect, 0.1": {"type": "drop_connect", "pdrop": 0.1},
}


def grid_of(rows, columns, size, **options):
    """Returns a figure and its axes, `[rows, columns]`."""
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def figure_of(title, x_label, y_label):
    """Returns a small figure and its axes."""
    figure, axes = grid_of(1, 1, (5, 3.2))
    axes[0, 0].set(title=title, xlabel=x_label, ylabel=y_label)
    return figure, axes[0, 0]


def modifiers():
    """Draws the output of every modifier over weights from -1 to 1."""
    figure, axes = grid_of(2, 6, (13, 4.6), sharex=True, sharey=True)
    w = jnp.linspace(-1.0, 1.0, 600)
    parts = {name: WeightModifierParameter(**x) for name, x in MODIFIERS.items()}
    parts["binary"] = BinaryWeights()
    for panel, (name, modifier) in zip(axes.flat, parts.items()):
        panel.plot(w, w, color="0.8", zorder=0)
        panel.plot(w, modifier(jax.random.key(0), w, jnp.ones(())), ".", markersize=2)
        panel.set_title(name, fontsize=9)
    for panel in axes.flat[len(parts) :]:
        panel.set_axis_off()
    figure.supxlabel("nominal weight / A")
    figure.supylabel("modified weight / A")
    return figure


def draws():
    """Draws the noise of one output for draws per step, per example and per vector."""
    figure, axes = grid_of(1, 3, (8, 2.8), sharex=True, sharey=True)
    names = {"a step": {}, "an example": {"per_batch_sample": True}}
    names["a vector"] = {"per_vector": True}
    x = jnp.ones((8, 12, 16))
    image = None
    for panel, (name, per) in zip(axes.flat, names.items()):
        noise = noise_of_outputs(
            x, WeightModifierParameter(type="add_normal", std_dev=0.1, **per)
        )
        image = panel.imshow(noise, vmin=-1.0, vmax=1.0, cmap="RdBu", aspect="auto")
        panel.set(title=f"one draw for {name}", xlabel="position")
    axes[0, 0].set_ylabel("example")
    figure.colorbar(image, ax=axes, label="noise of an output")
    return figure


def noise_of_outputs(x, modifier):
    """Returns the noise of the only output of a layer, `[examples, positions]`."""
    analog = hw.analogize(nn.Dense(1, use_bias=False), hw.Hardware(modifier=modifier))
    params = {"kernel": jnp.ones((x.shape[-1], 1))}
    y = analog.apply({"params": params}, x, rngs={"mismatch": jax.random.key(3)})
    return y[..., 0] - x.sum(-1)


def bounds():
    """Draws the bounds of every clip over the weights of a layer."""
    figure, axes = figure_of("Clipping", "weight w", "number of weights")
    w = jax.random.normal(jax.random.key(0), (256, 64)) * 0.3
    axes.hist(np.ravel(w), bins=100, color="0.8")
    clips = {
        "fixed_value 1": {"type": "fixed_value", "fixed_value": 1.0},
        "layer_gaussian 2.5": {"type": "layer_gaussian", "sigma": 2.5},
        "average_channel_max": {"type": "average_channel_max"},
    }
    for color, (name, options) in enumerate(clips.items()):
        bound = float(hw.WeightClipParameter(**options).bound(w, (256,))[0, 0])
        for side in (-bound, bound):
            label = name if side > 0 else None
            axes.axvline(side, color=f"C{color}", label=label)
    axes.set_ylim(0, 800)
    axes.legend(fontsize=8, loc="upper center")
    return figure


def learned_bound():
    """Draws weights under a learned bound, and the gradient of the bound."""
    figure, axes = grid_of(1, 2, (8, 3))
    w, c = jnp.linspace(-1.5, 1.5, 601)[:, None], jnp.ones((1, 1))
    for name, steps in {"clip": None, "6 steps": 6.0}.items():
        # Each weight is its own matrix, so that the plot shows its own gradient.
        alone = jax.vmap(lambda w, s=steps: learned_clip(w[None], c, (1,), s)[0])(w)
        slope = jax.vmap(
            jax.grad(lambda c, w, s=steps: learned_clip(w[None], c, (1,), s).sum()),
            (None, 0),
        )(c, w)
        axes[0, 0].plot(w, alone[:, 0], label=name)
        axes[0, 1].plot(w, slope[:, 0, 0], label=name)
    axes[0, 0].set(xlabel="w / c", ylabel="weight in the forward pass / c")
    axes[0, 1].set(xlabel="w / c", ylabel="gradient of c for a gradient of 1")
    axes[0, 0].legend()
    figure.suptitle("A learned bound")
    return figure


def remapping():
    """Draws the weights of a crossbar's columns before and after remapping."""
    figure, axes = grid_of(1, 3, (8, 2.8), sharey=True)
    spread = jnp.geomspace(0.05, 0.6, 12)
    w = jnp.clip(jax.random.normal(jax.random.key(0), (64, 12)) * spread, -0.8, 0.8)
    kinds = ("none", "layerwise_symmetric", "channelwise_symmetric")
    for panel, kind in zip(axes.flat, kinds):
        remap = hw.WeightRemapParameter(type=kind)
        scale = remap.scale(w, jnp.ones((1, 1)), (64,), (12,))
        columns = np.broadcast_to(np.arange(12), w.shape)
        panel.plot(columns, w / scale, ".", markersize=2, color="C0")
        panel.set(title=kind, xlabel="column", ylim=(-1.1, 1.1), xticks=range(0, 12, 2))
    axes[0, 0].set_ylabel("weight on the crossbar")
    return figure


def training_drift():
    """Draws a weight that drifts, with a write after 300 s."""
    figure, axes = figure_of("Drift while training", "time in s", "weight")
    for nu in (0.02, 0.05, 0.1):
        drift = hw.SimpleDriftParameter(nu=nu, t_0=10.0)
        w, times, path = jnp.ones(()), np.arange(10.0, 1000.0, 10.0), []
        state = drift.begin(w)
        for t_s in times:
            w = jnp.ones(()) if t_s == 300.0 else w
            w, state = drift.step(state, w, 10.0)
            path.append(float(w))
        axes.plot(times, path, label=f"ν = {nu}")
    axes.legend()
    return figure


def mismatch():
    """Draws the weights of one chip over the nominal ones."""
    figure, axes = grid_of(1, 2, (7, 3), sharey=True)
    w = jnp.linspace(-1.0, 1.0, 600)
    for panel, kind in zip(axes.flat, ("add_normal", "mult_normal")):
        chip = hw.MismatchParameter(type=kind, std_dev=0.1)(jax.random.key(0), w, 1.0)
        panel.plot(w, chip, ".", markersize=2)
        panel.set(title=f"mismatch: {kind}, 0.1", xlabel="nominal weight / A")
    axes[0, 0].set_ylabel("weight of a chip / A")
    return figure


def conductances():
    """Draws the devices' conductances of every converter over the weight."""
    figure, axes = grid_of(1, 4, (11, 2.9))
    curves = ((1.0, 2.5, 6.0, 15.0, 25.0), (25.0, 14.5, 6.0, 3.0, 1.0))
    converters = {
        "single_device": hw.SingleDeviceConductanceConverter(),
        "single_pair, g_min 2": hw.SinglePairConductanceConverter(g_min=2.0),
        "dual_pair, f 1 and 3": hw.DualPairConductanceConverter(f_lst=(1.0, 3.0)),
        "custom_pair": hw.CustomPairConductanceConverter(f_lst=(1.0,), g_lst=curves),
    }
    w = jnp.linspace(-1.0, 1.0, 201)[:, None]
    for panel, (name, converter) in zip(axes.flat, converters.items()):
        found, _ = converter.convert_to_conductances(w)
        for device, g in zip(converter.devices, found):
            panel.plot(w, g, label=device)
        panel.set(title=name, xlabel="weight / largest")
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.26)}
        panel.legend(fontsize=7, ncols=2, **below)
    axes[0, 0].set_ylabel("conductance in µS")
    return figure


def programming_noise():
    """Draws the programming noise over the target."""
    figure, axes = figure_of("Programming noise", "target / g_max", "σ / g_max")
    for name, chip in CHIPS.items():
        model = chip.noise_model
        g = np.linspace(0.0, model.g_max, 100)
        axes.plot(g / model.g_max, model.programming_sigma(g) / model.g_max, label=name)
    axes.legend(fontsize=8, loc=(0.42, 0.22))
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
    axes.legend(fontsize=8)
    return figure


def read_noise():
    """Draws the noise of a read a day after programming, averaged over many devices."""
    figure, axes = figure_of("Read noise after a day", "target / g_max", "σ / g_max")
    for name, chip in CHIPS.items():
        model = chip.noise_model
        g = jnp.linspace(0.0, model.g_max, 50)
        devices = model.program(jax.random.key(0), jnp.broadcast_to(g, (4000, 50)))
        sigma = model.read_sigma(devices, DAY_S).mean(0) / model.g_max
        axes.plot(g / model.g_max, sigma, label=name)
    axes.legend(fontsize=8)
    return figure


def weights_over_time(chip, times):
    """Returns the nominal kernel of a layer, and that of a chip at every time."""
    kernel = jax.random.normal(jax.random.key(0), (128, 64))
    kernel = kernel * jnp.geomspace(0.1, 1.0, 64)
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
    at = jax.jit(jax.vmap(lambda t_s: programmed.at(t_s)["layer"]["kernel"]))
    return kernel, at(times)


def drift():
    """Draws the mean absolute weight over time, relative to the nominal one."""
    figure, axes = figure_of("Drift", TIME, "mean |W| / nominal")
    times = jnp.geomspace(1.0, 365 * DAY_S, 40)
    for name, chip in CHIPS.items():
        kernel, now = weights_over_time(chip, times)
        share = jnp.abs(now).mean((1, 2)) / jnp.abs(kernel).mean()
        axes.semilogx(times, share, label=name)
    axes.legend(fontsize=8)
    return figure


def compensation():
    """Draws the error of the weights over time with every drift compensation."""
    figure, axes = figure_of(
        "Drift compensation, PCM",
        "time since programming in s",
        "error of W / rms of W",
    )
    times = jnp.geomspace(1.0, 365 * DAY_S, 40)
    kinds = {
        "none": None,
        "global": GlobalDriftCompensation(),
        "global_exact_reference": GlobalDriftCompensationWithExactReference(),
        "per_column": PerColumnDriftCompensation(),
    }
    for name, kind in kinds.items():
        chip = dataclasses.replace(hw.presets.pcm(), drift_compensation=kind)
        kernel, now = weights_over_time(chip, times)
        error = jnp.sqrt(jnp.square(now - kernel).mean((1, 2)))
        axes.semilogx(times, error / jnp.sqrt(jnp.square(kernel).mean()), label=name)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    return figure


FIGURES = (
    modifiers,
    draws,
    bounds,
    learned_bound,
    remapping,
    training_drift,
    mismatch,
    conductances,
    programming_noise,
    drift_exponent,
    read_noise,
    drift,
    compensation,
)


def main(folder):
    """Writes every figure into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for figure in FIGURES:
        path = folder / f"{figure.__name__}.png"
        figure().savefig(path)
        print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent / "images")
