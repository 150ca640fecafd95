"""Forecasts a neuron's membrane potential by a recurrent network, in Linen and in NNX.

Copy this file to start your own recipe: a configuration refers to its functions.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx
from matplotlib.cbook import get_sample_data

STEPS = 32
"""Steps that the network sees."""

GROUP = 4
"""Samples of the series in a step."""

AHEAD = 20
"""Samples from the last one that is seen to the one that is forecast."""


def series() -> np.ndarray:
    """Returns 12000 samples of a spiking neuron's potential, which matplotlib ships."""
    return np.fromfile(get_sample_data("membrane.dat", asfileobj=False), np.float32)


def data():
    """Returns windows of three quarters to train on, of the last one to test on."""
    values = series()
    cut = len(values) * 3 // 4
    mean, std = values[:cut].mean(), values[:cut].std()
    return tuple(windows((part - mean) / std) for part in (values[:cut], values[cut:]))


def windows(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns inputs `[windows, 32, 4]` and targets `[windows, 1]`."""
    length = STEPS * GROUP
    starts = np.arange(0, len(values) - length - AHEAD + 1, GROUP)
    inputs = values[starts[:, None] + np.arange(length)]
    targets = values[starts + length - 1 + AHEAD]
    return inputs.reshape(-1, STEPS, GROUP), targets[:, None]


class Forecaster(nn.Module):
    """A recurrent layer and a dense one on its last output, in Linen."""

    cell: type[nn.RNNCellBase] = nn.GRUCell

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[B, 1]` forecasts from `[B, T, 4]` samples."""
        x = nn.RNN(self.cell(features=32, name="cell"), name="rnn")(x)
        return nn.Dense(1, name="head")(x[:, -1])


class NnxForecaster(nnx.Module):
    """The same with a GRU in NNX."""

    def __init__(self, rngs: nnx.Rngs):
        self.rnn = nnx.RNN(nnx.GRUCell(GROUP, 32, rngs=rngs), rngs=rngs)
        self.head = nnx.Linear(32, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[B, 1]` forecasts from `[B, T, 4]` samples."""
        return self.head(self.rnn(x)[:, -1])


def gru() -> nn.Module:
    """Returns the Linen model with a GRU."""
    return Forecaster()


def lstm() -> nn.Module:
    """Returns the Linen model with an LSTM."""
    return Forecaster(nn.LSTMCell)


def gru_nnx(rngs: nnx.Rngs) -> nnx.Module:
    """Returns the NNX model, initialised from `rngs`."""
    return NnxForecaster(rngs)


def error(outputs: jax.Array, batch) -> jax.Array:
    """Returns absolute errors, `[B]`, in standard deviations of the training series."""
    return jnp.abs(outputs - batch[1])[:, 0]
