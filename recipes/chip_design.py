"""Which constant of a chip costs accuracy: its gradient with respect to each of them.

    hwtrain train configs/digits_pcm.toml && python recipes/chip_design.py

evaluates the hardware-aware networks of that run on a chip with more imperfections, a
day after programming, and plots `chip_design.png` there; two minutes on one core. In
points of accuracy, on 96 chips of 3 networks with an accuracy of 94.97 ± 0.26 %: for
10 % more of a constant, by the gradient of a relaxed accuracy, one backward pass for
all constants; and what accuracy itself does when the constant is halved or doubled.

    constant                value   10 % more      halved         doubled
    programming noise       5       -0.81 ± 0.07   +1.96 ± 0.21   -16.76 ± 1.21
    output noise            0.1     -0.14 ± 0.01   +0.43 ± 0.10   -2.23 ± 0.19
    drift                   1       -0.13 ± 0.01   +0.29 ± 0.09   -1.89 ± 0.19
    resistance of wires     10      -0.10 ± 0.01   +0.21 ± 0.09   -0.75 ± 0.12
    gain of columns         0.1     -0.07 ± 0.01   +0.17 ± 0.10   -1.04 ± 0.20
    read noise of devices   1       -0.07 ± 0.01   +0.24 ± 0.09   -0.88 ± 0.19
    read noise of the tile  0.02    -0.04 ± 0.00   +0.07 ± 0.08   -0.51 ± 0.11
"""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import hwtrain
from hwtrain import periphery, train

HERE = Path(__file__).parent
data, network = (train.resolve(f"digits.py:{x}", HERE) for x in ("data", "narrow"))

CONFIG = HERE.parent / "configs" / "digits_pcm.toml"
DAY_S, CHIPS = 86_400.0, 32
TEMPERATURE = 0.5
"""Logits by which the right class must lead for an example to count as nearly right."""

FORWARD = hwtrain.IOParameters(
    inp_bits=8,
    out_bits=8,
    out_bound=10.0,
    out_noise=0.1,
    w_noise=0.02,
    w_noise_type="additive_constant",
    stages=(
        periphery.ColumnErrors(gain_std=0.1),
        periphery.WireResistance(r_wire_ohm=10.0),
    ),
)
# So that wires know the conductance of a weight: each largest one is that of a device.
MAPPING = hwtrain.MappingParameter(weight_scaling_omega=1.0)
CONSTANTS = {
    "programming noise": (5.0, ("noise_model.prog_noise_scale",)),
    "read noise of devices": (1.0, ("noise_model.read_noise_scale",)),
    "drift": (1.0, ("noise_model.drift_scale",)),
    "read noise of the tile": (0.02, ("forward.w_noise",)),
    "output noise": (0.1, ("forward.out_noise",)),
    "gain of columns": (0.1, ("forward.stages.column_errors.gain_std",)),
    "resistance of wires": (10.0, ("forward.stages.wire_resistance.r_wire_ohm",)),
}
"""Of each constant, its value and the numbers of the hardware that have it."""


def on_chip(analog, plan, variables, x, seed, factors):
    """Returns the logits of a chip whose constants are larger by `factors`."""
    values = {
        key: value * factor
        for (value, keys), factor in zip(CONSTANTS.values(), factors, strict=True)
        for key in keys
    }
    of_chip = {k: v for k, v in values.items() if k.startswith("noise_model")}
    of_model = {k: v for k, v in values.items() if k not in of_chip}
    plan = hwtrain.with_constants(plan, of_chip)
    analog = hwtrain.with_constants(analog, of_model)
    chip = hwtrain.program_chip(variables["params"], plan, hwtrain.chip_key(seed))
    keys = jax.random.split(jax.random.fold_in(jax.random.key(1), seed))
    given = {"params": chip.at(DAY_S, keys[0])}
    return analog.apply(given, x, rngs={"mismatch": keys[1]})


def accuracies(logits, labels):
    """Returns the accuracy in %, and a relaxed one that has a gradient."""
    right = jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
    others = jnp.where(jax.nn.one_hot(labels, logits.shape[-1]) > 0, -jnp.inf, logits)
    lead = right - others.max(-1)
    return 100 * jnp.mean(lead > 0), 100 * jnp.mean(jax.nn.sigmoid(lead / TEMPERATURE))


def of_network(variables):
    """Returns gradients and accuracies on chips.

    Args:
      variables: of the trained network.

    Returns:
      `[chips, constants]`, for factors of 1; and `[chips, 1 + 2 constants]` in %: as it
      is, with each constant halved, with each doubled.
    """
    hardware = train.read_config(CONFIG).hardware
    hardware = dataclasses.replace(hardware, forward=FORWARD, mapping=MAPPING)
    analog = hwtrain.chip_mode(hwtrain.analogize(network(), hardware))
    _, (x, y) = data()
    variables = {"params": hwtrain.adopt(analog, variables["params"], x[:1])}
    plan = hwtrain.plan(analog, variables, x[:1])

    @jax.jit
    def gradient(seed, factors):
        def relaxed(factors):
            logits = on_chip(analog, plan, variables, x, seed, factors)
            return accuracies(logits, y)[::-1]

        return jax.value_and_grad(relaxed, has_aux=True)(factors)

    ones = np.ones(len(CONSTANTS))
    each = np.eye(len(CONSTANTS))
    settings = [ones, *(ones - 0.5 * each), *(ones + each)]
    slopes = [gradient(seed, ones)[1] for seed in range(CHIPS)]
    found = [[gradient(seed, s)[0][1] for s in settings] for seed in range(CHIPS)]
    return np.array(slopes), np.array(found)


def plot(slopes, changes, path):
    """Draws a bar for each constant, and what halving and doubling it really does."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    order = np.argsort(slopes.mean(0))[::-1]
    names = np.array(list(CONSTANTS))[order]
    axes[0].barh(names, slopes.mean(0)[order], xerr=interval(slopes)[order])
    axes[0].set_xlabel("points of relaxed accuracy\nfor 10 % more, by the gradient")
    for offset, label, values in zip((0.2, -0.2), ("halved", "doubled"), changes):
        places = np.arange(len(names)) + offset
        means, errors = values.mean(0)[order], interval(values)[order]
        axes[1].barh(places, means, 0.4, xerr=errors, label=label)
    axes[1].set_xlabel("points of accuracy")
    axes[1].legend(loc="lower left")
    for each in axes:
        each.axvline(0, color="black", linewidth=0.8)
    figure.savefig(path, dpi=150)


def interval(values: np.ndarray) -> np.ndarray:
    """Returns half the 95 % interval of the mean over chips."""
    return 1.96 * values.std(0, ddof=1) / len(values) ** 0.5


def main(run: Path) -> None:
    """Prints a table of constants, and plots it."""
    paths = sorted((run / "export").iterdir())
    of_networks = [of_network(hwtrain.load(path).variables) for path in paths]
    slopes, found = (np.concatenate(each) for each in zip(*of_networks, strict=True))
    slopes = 0.1 * slopes  # factors of 1 become 1.1
    base, count = found[:, :1], len(CONSTANTS)
    halved, doubled = found[:, 1 : 1 + count] - base, found[:, 1 + count :] - base
    table = Table("constant", "value", "10 % more", "halved", "doubled")
    for number, (name, (value, _)) in enumerate(CONSTANTS.items()):
        cells = (x[:, number] for x in (slopes, halved, doubled))
        shown = (f"{x.mean():+.2f} ± {interval(x):.2f}" for x in cells)
        table.add_row(name, f"{value:g}", *shown)
    Console().print(table)
    print(
        f"accuracy {base.mean():.2f} ± {interval(base)[0]:.2f} % of {len(base)} chips"
    )
    plot(slopes, (halved, doubled), run / "chip_design.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/digits_pcm"))
