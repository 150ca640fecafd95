"""Distillation: a small network for a chip learns from the logits of a plain teacher.

The teacher is the plain network of `digits_conv.toml`, trained anew in seconds; of a
larger one, `hwtrain.train.read_arrays` reads the checkpoint. Its logits come with the
batches: they are data like any other, not constants of the compiled step.
"""

from pathlib import Path

import jax
import numpy as np
import optax
from flax import linen as nn

from hwtrain import train as training

HERE = Path(__file__).parent
TEACHER = HERE.parent / "configs" / "digits_conv.toml"
images, teacher = (
    training.resolve(f"digits_conv.py:{x}", HERE) for x in ("data", "network")
)
IMAGES, BATCH, TEMPERATURE, OF_TEACHER = 200, 64, 2.0, 0.9
"""Images to train on, images in a batch, the temperature of both softmaxes, and the
weight of the teacher's part of the loss."""


class Student(nn.Module):
    """64-32-10 with ReLU."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[B, 10]` logits of `[B, 8, 8, 1]` pixels."""
        x = nn.relu(nn.Dense(32, name="hidden")(x.reshape(len(x), -1)))
        return nn.Dense(10, name="head")(x)


def student() -> nn.Module:
    """Returns the student."""
    return Student()


def data():
    """Returns batches `(pixels, labels, logits of the teacher)`.

    The student has few images; the teacher has learned from all of them.
    """
    (train_x, train_y), (test_x, test_y) = images()
    train_x, train_y = train_x[:IMAGES], train_y[:IMAGES]
    variables = training.train_plain(TEACHER)

    @jax.jit
    def logits(x):
        return teacher().apply(variables, x, train=False)

    train_set = (train_x, train_y, np.asarray(logits(train_x)))
    test_set = (test_x, test_y, np.asarray(logits(test_x)))

    def train(seed, start_step):
        step = start_step
        while True:
            rows = np.random.default_rng((seed, step)).integers(0, IMAGES, BATCH)
            yield tuple(array[rows] for array in train_set)
            step += 1

    return train, lambda: iter([test_set])


def distilled(outputs, batch):
    """Returns the loss of each example: of the label, and of the teacher's logits."""
    _, labels, logits = batch
    of_label = optax.softmax_cross_entropy_with_integer_labels(outputs, labels)
    wanted = jax.nn.softmax(logits / TEMPERATURE)
    of_teacher = optax.softmax_cross_entropy(outputs / TEMPERATURE, wanted)
    # The gradient of a softmax at a temperature T is smaller by T squared.
    of_teacher = TEMPERATURE**2 * of_teacher
    return (1 - OF_TEACHER) * of_label + OF_TEACHER * of_teacher
