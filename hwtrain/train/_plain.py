"""Trains the plain model of a configuration in memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hwtrain._arrays.fast_random import fast_prng, threefry_prng
from hwtrain._errors import InputError
from hwtrain.train._comparison import start
from hwtrain.train._config import Config
from hwtrain.train._divergence import diverged
from hwtrain.train._loop import run_steps
from hwtrain.train._preparation import prepare, variables_of
from hwtrain.train._reading import read_config
from hwtrain.train._report import PLAIN


def train_plain(
    config: str | Path, overrides: Sequence[str] = (), *, seed: int = 0
) -> dict[str, Any]:
    """Returns the trained plain model of a configuration, and writes nothing.

    It is the model of `RUN/plain/seed_N` after `hwtrain train`, but always that of the
    last update: as a teacher, or as the start of another training, where it is small
    enough to be trained again.

    Args:
      config: the TOML file.
      overrides: as `read_config` takes them.
      seed: the training seed.

    Returns:
      Its variables by collection, with the averaged parameters if it averages.

    Raises:
      ValueError: one line that names the wrong entry, or the update after which a loss
        or a parameter was NaN or infinite.
    """
    found = read_config(config, overrides)
    if not isinstance(found, Config):
        raise InputError(
            f"{config}: expected a configuration of a plain and a hardware-aware "
            "model, got one with a table [mismatch]"
        )
    training, ready = found.training, prepare(found, Path(config).parent)
    state = start(found, ready, PLAIN, seed)
    updates = run_steps(
        ready.plain_step,
        state,
        ready.data.training(seed, 0, None),
        steps=training.steps,
        seed=seed,
        generator=fast_prng if training.generator == "fast" else threefry_prng,
    )
    for state, _ in updates:  # noqa: B007 - the last one counts
        pass
    if int(state.first_bad):
        raise diverged(
            int(state.first_bad), title=PLAIN, saved=None, rate=training.learning_rate
        )
    return variables_of(ready, state)
