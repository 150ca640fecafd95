"""Losses and metrics against NumPy, and how models are called."""

import numpy as np
import pytest

from hwtrain.train import _task as task
from hwtrain.train._entries import EntryError
from hwtrain.train._task import Metric, forward_of

RNG = np.random.default_rng(0)


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.mark.parametrize("shape", [(5,), (5, 3)])
def test_cross_entropy_and_accuracy(shape):
    outputs = RNG.normal(size=(*shape, 4)).astype(np.float32)
    labels = RNG.integers(0, 4, shape)
    picked = np.take_along_axis(log_softmax(outputs), labels[..., None], -1)[..., 0]
    batch, rest = (None, labels), tuple(range(1, len(shape)))
    found = task.softmax_cross_entropy(outputs, batch)
    np.testing.assert_allclose(found, -picked.mean(rest), rtol=1e-5)
    right = 100 * (outputs.argmax(-1) == labels).mean(rest)
    np.testing.assert_allclose(task.accuracy(outputs, batch), right, rtol=1e-6)


def test_mean_squared_error():
    outputs, targets = RNG.normal(size=(2, 5, 3, 2)).astype(np.float32)
    expected = ((outputs - targets) ** 2).mean((1, 2))
    found = task.mean_squared_error(outputs, (None, targets))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"shape \(5, 3\), got \(5, 3, 1\)"):
        task.mean_squared_error(outputs[..., :1], (None, targets[..., 0]))


@pytest.mark.parametrize("wrap", [lambda tokens: tokens, lambda tokens: (tokens,)])
def test_next_token_cross_entropy(wrap):
    outputs = RNG.normal(size=(2, 6, 5)).astype(np.float32)
    tokens = RNG.integers(0, 5, (2, 6))
    logs = log_softmax(outputs)
    expected = [
        -np.mean([logs[b, t, tokens[b, t + 1]] for t in range(5)]) for b in range(2)
    ]
    found = task.next_token_cross_entropy(outputs, wrap(tokens))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_which_value_is_better():
    up = Metric("accuracy", task.accuracy, "higher", "%")
    down = Metric("loss", task.mean_squared_error, "lower")
    assert (up.title, down.title) == ("accuracy in %", "loss")
    assert up.improves(2, 1) and not up.improves(1, 1) and not up.improves(0, 1)
    assert down.improves(0, 1) and not down.improves(1, 1) and not down.improves(2, 1)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_is_refused_with_its_metric(wrong):
    metric = Metric("hits", task.accuracy, "higher")
    metric.require_finite([[1.0, 2.0]], "on a chip")
    with pytest.raises(EntryError, match=f"metrics.hits: .*got {wrong:g} on a chip"):
        metric.require_finite([[1.0, wrong]], "on a chip")


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda x: x, {}),
        (lambda x, train: x, {"train": True}),
        (lambda x, *, deterministic=True: x, {"deterministic": False}),
        (lambda x, training=False, mask=None: x, {"training": True}),
    ],
)
@pytest.mark.parametrize("batch", [("x", "y"), "x"])
def test_a_model_is_told_whether_it_trains(call, told, batch):
    def apply(*args, **kwargs):
        return args, kwargs

    forward = forward_of(call)
    assert forward(apply, batch, True) == (("x",), told)
    opposite = {name: not value for name, value in told.items()}
    assert forward(apply, batch, False) == (("x",), opposite)
