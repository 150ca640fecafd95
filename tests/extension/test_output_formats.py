"""Formats of a user's own for results: used, proved, exported, or refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain._parts.fields import from_dict, to_dict

X = jax.random.normal(jax.random.key(0), (3, 6))


@hw.register("output_format", "test_powers")
class Powers(hw.OutputFormat):
    """Keeps the sign and the nearest power of two below."""

    lowest: int = -8

    def store(self, y):
        power = jnp.maximum(jnp.floor(jnp.log2(jnp.abs(y))), self.lowest)
        stored = jnp.sign(y) * 2.0**power
        return y + jax.lax.stop_gradient(stored.astype(y.dtype) - y)

    def describe(self):
        return f"powers of two from 2^{self.lowest}"


@hw.register("output_format", "test_drawing")
class Drawing(Powers):
    draws = "read"


@hw.register("output_format", "test_leaf")
class WithLeaf(Powers):
    def leaves(self, weight):
        return (hw.LeafSpec(name="step"),)


@hw.register("output_format", "test_other_shape")
class OtherShape(Powers):
    def store(self, y):
        return y.sum(-1)


class Unregistered(Powers):
    pass


def powers(y):
    y = np.asarray(y, np.float64)
    return np.sign(y) * 2.0 ** np.maximum(np.floor(np.log2(np.abs(y))), -8)


RULES = [hw.Rule("", hw.Hardware(outputs=Powers()))]


def test_it_stores_results_in_both_frameworks():
    variables = nn.Dense(5).init(jax.random.key(1), X)
    found = hw.analogize(nn.Dense(5), RULES).apply(variables, X)
    right = powers(nn.Dense(5).apply(variables, X))
    np.testing.assert_allclose(found, right, rtol=1e-6)
    layer = nnx.LayerNorm(6, rngs=nnx.Rngs(0))
    found = hw.analogize(layer, RULES)(X)
    np.testing.assert_allclose(found, powers(layer(X)), rtol=1e-6)


def test_it_is_proved_shown_and_exported(tmp_path):
    model = hw.analogize(nnx.LayerNorm(6, rngs=nnx.Rngs(0)), RULES)
    (row,) = hw.assert_active(model, None, X).rows
    assert row[:2] == ("the model", "outputs")
    assert hw.inspect(model).results[0]["stored as"] == "powers of two from 2^-8"
    (output,) = hw.load(hw.export(tmp_path / "model", model)).plan.outputs
    assert output.format == Powers()


def test_one_that_changes_nothing_is_found(monkeypatch):
    model = hw.analogize(nnx.LayerNorm(6, rngs=nnx.Rngs(0)), RULES)
    monkeypatch.setattr(Powers, "store", lambda self, y: y)
    with pytest.raises(ValueError, match="results are stored as they are"):
        hw.assert_active(model, None, X)


def test_it_is_written_and_read():
    chip = hw.Hardware(outputs=Powers(lowest=-4))
    data = to_dict(chip)
    assert data["outputs"]["type"] == "test_powers"
    assert data["outputs"]["of"].endswith("test_output_formats:Powers")
    assert from_dict(hw.Hardware, data) == chip


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (Drawing(), "a format has no key"),
        (WithLeaf(), "declares leaves"),
        (Unregistered(), "expected a registered output_format"),
    ],
)
def test_formats_that_cannot_be_are_refused(part, said):
    with pytest.raises(ValueError, match=said):
        hw.Hardware(outputs=part)


def test_one_that_returns_another_shape_is_refused():
    rule = hw.Rule("", hw.Hardware(outputs=OtherShape()))
    model = hw.analogize(nnx.LayerNorm(6, rngs=nnx.Rngs(0)), [rule])
    with pytest.raises(ValueError, match="must keep shape and dtype"):
        model(X)
