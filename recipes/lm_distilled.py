"""Distillation of `lm.py`: the model for a chip learns from the plain one.

As in analog foundation models (Büchel et al. 2025), the student starts from the weights
of its teacher and learns the teacher's distribution of every next byte, under noise.
"""

import os
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx

from hwtrain import train as training

HERE = Path(__file__).parent
lm_tiny, text = (training.resolve(f"lm.py:{x}", HERE) for x in ("lm_tiny", "text"))

TEACHER = HERE.parent / "runs/lm_tiny/plain/seed_0"
"""The teacher, unless the environment variable `TEACHER` names another one."""


def teacher():
    """Returns the function `tokens -> logits` of the teacher."""
    arrays = training.read_arrays(os.environ.get("TEACHER", TEACHER))
    graph, params = nnx.split(nnx.eval_shape(lambda: lm_tiny(nnx.Rngs(0))))
    found, report = training.initialised(nnx.to_pure_dict(params), arrays)
    if report.missing:
        raise ValueError(f"expected all parameters of the teacher: {report.describe()}")
    logits = jax.jit(lambda params, tokens: nnx.merge(graph, params)(tokens))
    return lambda tokens: np.asarray(logits(found, tokens))


def data():
    """Returns functions of batches: to train, `(bytes, logits of the teacher)`.

    Those of the test are the bytes alone, as in `lm.py`: runs of both can be compared.
    """
    (train, evaluation), logits = text(), teacher()

    def with_logits(seed, start_step):
        return ((tokens, logits(tokens)) for tokens in train(seed, start_step))

    return with_logits, evaluation


def distilled(outputs: jax.Array, batch) -> jax.Array:
    """Returns the cross entropy of the teacher's distributions in nats, `[B]`."""
    _, logits = batch
    wanted = jax.nn.softmax(logits[:, :-1])
    return optax.softmax_cross_entropy(outputs[:, :-1], wanted).mean(axis=-1)
