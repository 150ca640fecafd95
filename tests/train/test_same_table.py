"""The digits recipe gives one table in Linen and NNX for equal initial parameters."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from hwtrain.train import read_config
from hwtrain.train._comparison import compare
from hwtrain.train._preparation import prepare

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = ("digits_mlp.toml", "digits_mlp_nnx.toml")


def table(name, initial, tmp_path):
    config = read_config(CONFIGS / name)
    training = dataclasses.replace(config.training, seeds=(0,))
    config = dataclasses.replace(config, training=training)
    ready = prepare(config, CONFIGS)

    def from_equal(model):
        def init(seed):
            return jax.tree.map(np.array, initial(seed)), {}

        return model._replace(init=init)

    ready = dataclasses.replace(
        ready, plain=from_equal(ready.plain), aware=from_aware(ready, initial)
    )
    out = tmp_path / name
    out.mkdir()
    return compare(config, ready, out, console=Console(quiet=True))


def from_aware(ready, initial):
    """The hardware-aware model with the user's parameters given."""

    def init(seed):
        params, state = ready.aware.init(seed)
        for layer, values in initial(seed).items():
            params[layer] = {**params[layer], **jax.tree.map(np.array, values)}
        return params, state

    return ready.aware._replace(init=init)


@pytest.mark.nightly
def test_the_whole_table_is_the_same_to_rounding(tmp_path):
    config = read_config(CONFIGS / NAMES[0])
    init = prepare(config, CONFIGS).plain.init

    def initial(seed):
        return init(seed)[0]

    linen, nnx = (table(name, initial, tmp_path) for name in NAMES)
    for ours, theirs in zip(linen, nnx):
        assert (ours.model, ours.mismatch_std) == (theirs.model, theirs.mismatch_std)
        # Half of one test image: rounding that grows may cost a chip one of 450.
        difference = ours.mean - theirs.mean
        assert abs(difference) < 0.1, (ours.model, ours.mismatch_std, difference)
