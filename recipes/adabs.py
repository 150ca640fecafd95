"""Batch norm on a drifting chip: its statistics are estimated anew (AdaBS).

    hwtrain train configs/digits_conv.toml && python recipes/adabs.py

evaluates the hardware-aware networks of that run, in a minute each on one core. On
phase-change memory, accuracy in %, mean over 32 chips and 5 training seeds ± half the
95 % interval over the seeds:

    time       nothing         AdaBS           drift compensation   both
    1 s        98.67 ± 0.52    98.68 ± 0.51    98.67 ± 0.52         98.68 ± 0.50
    1 hour     98.36 ± 0.60    98.69 ± 0.49    98.65 ± 0.49         98.69 ± 0.49
    1 day      96.70 ± 0.49    98.67 ± 0.46    98.63 ± 0.47         98.67 ± 0.46
    1 month    90.97 ± 2.06    98.65 ± 0.44    98.59 ± 0.47         98.66 ± 0.43
    1 year     82.86 ± 3.95    98.65 ± 0.43    98.57 ± 0.43         98.64 ± 0.43

The statistics are those of 256 training inputs; the test is another read of the chip.

References:
  Joshi et al., Accurate deep neural network inference using computational phase-change
  memory, Nature Communications 2020.
"""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

import hwtrain
from hwtrain import train

HERE = Path(__file__).parent
data, network = (
    train.resolve(f"digits_conv.py:{x}", HERE) for x in ("data", "network")
)

CONFIG = HERE.parent / "configs" / "digits_conv.toml"
TIMES_S = {"1 s": 1.0, "1 hour": 3600.0, "1 day": 86_400.0, "1 month": 2.6e6}
TIMES_S["1 year"] = 3.15e7
CHIPS, INPUTS = 32, 256
"""Chips of each training seed, and training inputs that statistics are taken of."""


def on_chips(hardware, variables, *, adapted: bool) -> np.ndarray:
    """Returns the accuracies in % `[chips, times]` of one network.

    Args:
      hardware: of all layers.
      variables: of the trained network.
      adapted: estimate the statistics anew on each chip, at each time.
    """
    (train_x, _), (test_x, test_y) = data()
    analog = hwtrain.chip_mode(hwtrain.analogize(network(), hardware))
    plan = hwtrain.plan(analog, variables, test_x[:1], train=False)
    batch = train_x[np.random.default_rng(0).permutation(len(train_x))[:INPUTS]]

    @jax.jit
    def accuracy(seed, t_s):
        chip = hwtrain.program_chip(variables["params"], plan, hwtrain.chip_key(seed))
        keys = jax.random.split(jax.random.fold_in(jax.random.key(1), seed), 4)
        statistics = variables["batch_stats"]

        def update(statistics, x):
            given = {"params": chip.at(t_s, keys[0]), "batch_stats": statistics}
            rngs = {"mismatch": keys[1]}
            _, changed = analog.apply(
                given, x, train=True, rngs=rngs, mutable=["batch_stats"]
            )
            return changed["batch_stats"]

        if adapted:
            statistics = train.batch_statistics(update, statistics, [batch])
        # The test is another read of the chip.
        given = {"params": chip.at(t_s, keys[2]), "batch_stats": statistics}
        logits = analog.apply(given, test_x, train=False, rngs={"mismatch": keys[3]})
        return 100 * jnp.mean(logits.argmax(-1) == test_y)

    times = list(TIMES_S.values())
    return np.array([[accuracy(chip, t) for t in times] for chip in range(CHIPS)])


def shown(values: np.ndarray) -> str:
    """Returns the mean of `[seeds, chips]` and half its 95 % interval over seeds."""
    seeds = values.mean(1)
    half = stats.t.ppf(0.975, len(seeds) - 1) * seeds.std(ddof=1) / len(seeds) ** 0.5
    return f"{values.mean():.2f} ± {half:.2f}"


def main(run: Path) -> None:
    """Prints a table of accuracy over time."""
    config = train.read_config(CONFIG)
    bare = dataclasses.replace(config.hardware, drift_compensation=None)
    columns = {
        "nothing": (bare, False),
        "AdaBS": (bare, True),
        "drift compensation": (config.hardware, False),
        "both": (config.hardware, True),
    }
    table = Table("time", *columns)
    found = {}
    for name, (hardware, adapted) in columns.items():
        rules = dataclasses.replace(config, hardware=hardware).assigned
        of_seeds = [
            on_chips(rules, hwtrain.load(path).variables, adapted=adapted)
            for path in sorted((run / "export").iterdir())
        ]
        found[name] = np.stack(of_seeds)
    for number, time in enumerate(TIMES_S):
        table.add_row(time, *(shown(x[:, :, number]) for x in found.values()))
    Console().print(table)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/digits_conv"))
