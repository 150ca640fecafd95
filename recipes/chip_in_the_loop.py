"""Chip in the loop: a network is tuned to the conductances measured on one chip.

    hwtrain train configs/digits_mlp.toml && python recipes/chip_in_the_loop.py

programs chips with the hardware-aware networks of that run, reads their conductances
back into a file, and tunes with the measured weights in the forward pass: either only
the digital parameters, so that the chip stays as it is, or all of them, so that it is
programmed and measured again. It takes a minute on one core. The chips are simulated.
They have more mismatch than the training was told, or stuck devices too. Accuracy in %,
mean over 4 chips and 3 training seeds ± half the 95 % interval over the seeds:

    mismatch           as programmed   digital tuned   programmed 1 x   and 2 x
    promised, 0.1      98.11 ± 0.41    98.00 ± 0.55    98.09 ± 0.29     97.85 ± 0.78
    twice that         97.48 ± 1.16    97.65 ± 0.35    98.04 ± 0.56     97.91 ± 0.08
    and 10 % stuck     93.56 ± 4.72    96.26 ± 0.56    97.50 ± 0.73     97.85 ± 0.16

A chip keeps its mismatch and its stuck devices when it is programmed again.
"""

import dataclasses
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from rich.console import Console
from rich.table import Table
from scipy import stats

import hwtrain
from hwtrain import checkpoint, train

HERE = Path(__file__).parent
data, network = (train.resolve(f"digits.py:{x}", HERE) for x in ("data", "mlp"))
CHIPS, STEPS, BATCH, ROUNDS = 4, 300, 64, 3
MISMATCH = {"promised": 0.1, "twice that": 0.2, "and 10 % stuck": 0.2}
"""The standard deviations of the chips' mismatch; 0.1 is that of the training."""


def measure(variables, plan, chip: int, path: Path) -> None:
    """Writes the file of a chip's conductances, as a measurement would."""
    with tempfile.TemporaryDirectory() as folder:
        made = hwtrain.export(f"{folder}/real", variables, plan, chip_seed=chip)
        held, found = hwtrain.load(made), {}
        for weight in plan:
            for i, tiles in enumerate(held.conductances(weight, chip)):
                for j, tile in enumerate(tiles):
                    for device, g in tile.conductances.items():
                        if tile.programmed:  # with stuck devices, those are targets
                            g = tile.programmed[device].g_prog
                        found[f"conductances/{weight}/tile/{i}/{j}/{device}"] = g
    np.savez(path, **found)


class Loop:
    """One kind of chips, and the networks on them."""

    def __init__(self, kind: str):
        (train_x, train_y), (self.test_x, self.test_y) = data()
        hardware = train.read_config(
            HERE.parent / "configs" / "digits_mlp.toml"
        ).hardware
        stuck = hwtrain.StuckParameter(at_g_min=0.05, at_g_max=0.05)
        real = dataclasses.replace(
            hardware,
            mismatch=dataclasses.replace(hardware.mismatch, std_dev=MISMATCH[kind]),
            stuck=stuck if "stuck" in kind else None,
        )
        self.real = hwtrain.analogize(network(), real)
        self.analog = hwtrain.chip_mode(hwtrain.analogize(network(), hardware))
        self.train_set = jnp.asarray(train_x), jnp.asarray(train_y)
        self.tune = jax.jit(self._tune)

    def logits(self, params, x):
        """Returns the logits of a chip's parameters, by path."""
        rngs = {"mismatch": jax.random.key(0)}
        given = {"params": unflatten_dict(params, sep="/")}
        return self.analog.apply(given, x, rngs=rngs)

    def accuracy(self, params) -> float:
        """Returns the accuracy in % of a chip's parameters, by path."""
        right = self.logits(params, self.test_x).argmax(-1) == self.test_y
        return 100 * float(right.mean())

    def _tune(self, chip, changes):
        """Returns trained changes of a chip's parameters, by path."""
        x, y = self.train_set
        optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, STEPS))

        def loss(changes, rows):
            logits = self.logits(moved(chip, changes), x[rows])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, y[rows])
            return losses.mean()

        def step(carry, number):
            changes, state = carry
            rows = jax.random.randint(jax.random.key(number), (BATCH,), 0, len(x))
            gradients = jax.grad(loss)(changes, rows)
            updates, state = optimizer.update(gradients, state)
            return (optax.apply_updates(changes, updates), state), None

        start = changes, optimizer.init(changes)
        (changes, _), _ = jax.lax.scan(step, start, jnp.arange(STEPS))
        return changes

    def accuracies(self, nominal, plan, chip: int, folder: Path) -> list[float]:
        """Returns the accuracies of one chip, before and after it is tuned.

        Args:
          nominal: the trained parameters.
          plan: their plan.
          chip: the chip's seed.
          folder: for files of the chip.
        """
        real = hwtrain.plan(self.real, nominal, self.test_x[:1])
        digital = [entry.path for entry in plan.digital]
        weights = [weight.path for weight in plan.weights]
        found = []
        for number in range(ROUNDS):
            measure(nominal, real, chip, folder / "chip.npz")
            measured = {chip: checkpoint.read_conductances(folder / "chip.npz", plan)}
            path = folder / f"chip_{chip}_{number}"
            held = hwtrain.load(hwtrain.export(path, nominal, plan, measured=measured))
            params = flatten_dict(held.chip(chip), sep="/")
            found.append(self.accuracy(params))
            zeros = {path: jnp.zeros_like(params[path]) for path in digital + weights}
            if number == 0:
                only = {path: zeros[path] for path in digital}
                found.append(self.accuracy(moved(params, self.tune(params, only))))
            changes = self.tune(params, zeros)
            flat = moved(flatten_dict(nominal, sep="/"), changes)
            nominal = unflatten_dict(flat, sep="/")
        return found


def moved(params, changes):
    """Returns parameters with changes, both by path."""
    return {**params, **{path: params[path] + x for path, x in changes.items()}}


def shown(values: np.ndarray) -> str:
    """Returns the mean of `[seeds, chips]` and half its 95 % interval over seeds."""
    seeds = values.mean(1)
    half = stats.t.ppf(0.975, len(seeds) - 1) * seeds.std(ddof=1) / len(seeds) ** 0.5
    return f"{values.mean():.2f} ± {half:.2f}"


def main(run: Path) -> None:
    """Prints a table of accuracies, with a row for each kind of chips."""
    again = [f"programmed again, {n} x" for n in range(1, ROUNDS)]
    table = Table("mismatch", "as programmed", "digital part tuned", *again)
    for kind in MISMATCH:
        loop, of_seeds = Loop(kind), []
        for exported in sorted((run / "export").iterdir()):
            held = hwtrain.load(exported)
            with tempfile.TemporaryDirectory() as folder:
                of_seeds.append(
                    [
                        loop.accuracies(held.params, held.plan, chip, Path(folder))
                        for chip in range(CHIPS)
                    ]
                )
        values = np.moveaxis(np.array(of_seeds), -1, 0)
        table.add_row(kind, *map(shown, values))
    Console().print(table)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/digits_mlp"))
