"""Low-rank adapters on a frozen analog base: for any chip, or for each chip its own.

    hwtrain train configs/digits_mlp.toml && hwtrain train configs/digits_lora.toml

trains one set of adapters for all chips, and

    python recipes/adapters.py

programs chips with the plain model once, and trains own adapters for each chip after it
has drifted, all chips in one step by `jax.vmap`. It takes two minutes on one core.
Without drift compensation, accuracy in %, mean over 32 chips and 5 training seeds ±
half the 95 % interval over the seeds:

    time       without adapters                 own adapters for each chip
    1 hour     95.06 ± 0.78, worst chip 89.6    97.72 ± 0.32, worst chip 96.4
    1 day      94.67 ± 0.89, worst chip 88.0    97.67 ± 0.22, worst chip 96.4
    1 month    93.83 ± 1.07, worst chip 86.0    97.41 ± 0.28, worst chip 96.4
    1 year     92.44 ± 1.40, worst chip 84.2    96.99 ± 0.31, worst chip 95.8

Adapters are trained at the time at which they are evaluated, in 200 updates; each of
them, and the test, is another read of the chip. The chips have a mismatch of 0.1 too.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from rich.console import Console
from rich.table import Table
from scipy import stats

import hwtrain
from hwtrain import train

data = train.resolve("digits.py:data", Path(__file__).parent)

CONFIGS = Path(__file__).parents[1] / "configs"
TIMES_S = {"1 hour": 3600.0, "1 day": 86_400.0, "1 month": 2.6e6, "1 year": 3.15e7}
SEEDS, CHIPS, STEPS, BATCH = (0, 1, 2, 3, 4), 32, 200, 64
LAYERS, RANK = {"hidden_0": 128, "hidden_1": 64, "head": 10}, 4
BESIDE = {f"{name}_{part}" for name in LAYERS for part in ("down", "up")}
"""The names of the adapters."""


class Adapted(nn.Module):
    """The digits' MLP with a low-rank adapter beside each layer."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[B, 10]` logits of `[B, 64]` pixels."""
        for name, size in LAYERS.items():
            down = nn.Dense(RANK, use_bias=False, name=f"{name}_down")
            up = nn.Dense(size, kernel_init=nn.initializers.zeros, name=f"{name}_up")
            x = nn.Dense(size, name=name)(x) + up(down(x))
            x = x if name == "head" else nn.relu(x)
        return x


def adapted() -> nn.Module:
    """Returns the model, whose adapters add nothing at first."""
    return Adapted()


def on_chips(seed: int) -> np.ndarray:
    """Returns accuracies in % `[2, times, chips]`, without and with adapters.

    Args:
      seed: the training seed of the plain model.
    """
    (train_x, train_y), (test_x, test_y) = jax.tree.map(jnp.asarray, data())
    plain = train.train_plain(CONFIGS / "digits_mlp.toml", seed=seed)
    hardware = train.read_config(CONFIGS / "digits_lora.toml").assigned
    analog = hwtrain.chip_mode(hwtrain.analogize(adapted(), hardware))
    fresh = adapted().init(jax.random.key(seed), test_x[:1])
    start, _ = train.initialised(fresh, flatten_dict(plain["params"], sep="/"))
    variables = hwtrain.adopt(analog, start, test_x[:1])
    variables = hwtrain.calibrate(analog, variables, [(train_x,)])
    plan = hwtrain.plan(analog, variables, test_x[:1])

    def programmed(chip):
        return hwtrain.program_chip(variables["params"], plan, hwtrain.chip_key(chip))

    def logits(chip, adapters, t_s, x, key):
        read, noise = jax.random.split(key)
        params = {**flatten_dict(chip.at(t_s, read), sep="/"), **adapters}
        params = unflatten_dict(params, sep="/")
        return analog.apply({"params": params}, x, rngs={"mismatch": noise})

    def accuracy(chip, adapters, t_s, key):
        right = logits(chip, adapters, t_s, test_x, key).argmax(-1) == test_y
        return 100 * right.mean()

    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, STEPS))

    def step(chip, adapters, state, t_s, rows, key):
        def loss(adapters):
            found = logits(chip, adapters, t_s, train_x[rows], key)
            labels = train_y[rows]
            return optax.softmax_cross_entropy_with_integer_labels(found, labels).mean()

        updates, state = optimizer.update(jax.grad(loss)(adapters), state)
        return optax.apply_updates(adapters, updates), state

    of_chips = jax.vmap(step, in_axes=(0, 0, 0, None, None, 0))
    accuracies = jax.vmap(accuracy, in_axes=(0, 0, None, 0))

    @jax.jit
    def before_and_after(chips, t_s):
        params = flatten_dict(chips.params, sep="/")
        first = {path: x for path, x in params.items() if path.split("/")[0] in BESIDE}

        def one(carry, number):
            rows = jax.random.randint(jax.random.key(number), (BATCH,), 0, len(train_x))
            # Each step reads the chips anew.
            keys = jax.random.fold_in(jax.random.key(seed), number)
            keys = jax.random.split(keys, CHIPS)
            return of_chips(chips, *carry, t_s, rows, keys), None

        start = first, jax.vmap(optimizer.init)(first)
        (trained, _), _ = jax.lax.scan(one, start, jnp.arange(STEPS))
        keys = jax.random.split(jax.random.key(100 + seed), CHIPS)
        return [accuracies(chips, x, t_s, keys) for x in (first, trained)]

    chips = jax.jit(jax.vmap(programmed))(jnp.arange(CHIPS))
    found = [before_and_after(chips, t_s) for t_s in TIMES_S.values()]
    return np.swapaxes(np.array(found), 0, 1)


def shown(values: np.ndarray) -> str:
    """Returns the mean of `[seeds, chips]` and half its 95 % interval over seeds."""
    seeds = values.mean(1)
    half = stats.t.ppf(0.975, len(seeds) - 1) * seeds.std(ddof=1) / len(seeds) ** 0.5
    return f"{values.mean():.2f} ± {half:.2f}, worst chip {values.min():.1f}"


def main() -> None:
    """Prints a table of accuracy before and after."""
    found = np.stack([on_chips(seed) for seed in SEEDS])
    table = Table("time", "without adapters", "own adapters for each chip")
    for number, time in enumerate(TIMES_S):
        table.add_row(time, *(shown(found[:, kind, number]) for kind in (0, 1)))
    Console().print(table)


if __name__ == "__main__":
    main()
