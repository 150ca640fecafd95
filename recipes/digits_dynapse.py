"""Handwritten digits as spike trains for a recurrent layer of DynapSim neurons.

Copy this file to start your own recipe: a configuration refers to its functions.
"""

import jax
import numpy as np
from flax import linen as nn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import hwtrain

STEPS = 30
"""Length of a spike train, in steps of 1 ms."""


def data():
    """Returns digits as rate-coded spike trains, `[examples, 30, 64]`, and labels.

    A pixel of full brightness spikes every second step, a dark one never. Pixel i
    starts at its own phase and spikes when its phase plus half its brightness times the
    step passes a whole number.
    """
    images, labels = load_digits(return_X_y=True)
    phase = np.random.default_rng(0).uniform(size=64)
    steps = np.arange(STEPS + 1)[:, None]
    count = np.floor(phase + 0.5 * images[:, None] / 16 * steps)
    spikes = np.diff(count, axis=1).astype(np.float32)
    train_x, test_x, train_y, test_y = train_test_split(
        spikes, labels.astype(np.int32), test_size=450, stratify=labels, random_state=0
    )
    return (train_x, train_y), (test_x, test_y)


class SpikingClassifier(nn.Module):
    """64 inputs, 64 recurrent DynapSim neurons, and a digital readout of their rates.

    Attributes:
      reference: whether to reproduce Rockpool instead of the corrected physics.
    """

    reference: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[B, 10]` logits of `[B, T, 64]` spikes."""
        # Smaller weights would leave most neurons below their threshold at first.
        scale = nn.initializers.variance_scaling(4.0, "fan_in", "normal")
        x = nn.Dense(64, use_bias=False, kernel_init=scale, name="w_in")(x)
        cell = hwtrain.dynapse.DynapSim(features=64, reference=self.reference)
        spikes = nn.RNN(cell, name="neurons")(x)
        return nn.Dense(10, name="readout")(10 * spikes.mean(axis=1))


def network() -> nn.Module:
    """Returns the Linen model."""
    return SpikingClassifier()


def reference_network() -> nn.Module:
    """Returns the Linen model with neurons as Rockpool computes them."""
    return SpikingClassifier(reference=True)
