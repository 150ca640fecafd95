"""A bias on rows of the crossbar, as its page has it: aihwkit, exports, gradients."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw

PAGE = Path(__file__).parents[2] / "docs/periphery.md"


def layer():
    """The class on the page."""
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    names = {"nn": nn, "jnp": jnp, "jax": jax, "hwtrain": hw}
    (found,) = (block for block in code if "class BiasOnRows" in block)
    exec(found, names)
    return names["BiasOnRows"]


class Nnx(nnx.Module):
    def __init__(self, kernel):
        rows, columns = kernel.shape
        self.dense = nnx.Linear(rows, columns, use_bias=False, rngs=nnx.Rngs(0))
        self.dense.kernel[...] = kernel

    def __call__(self, x):
        ones = jnp.ones((*x.shape[:-1], self.dense.kernel.shape[0] - x.shape[-1]))
        return self.dense(jnp.concatenate([x, ones], -1))


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_outputs_are_those_of_aihwkit_without_a_digital_bias(golden, framework):
    cases = golden("aihwkit_analog_bias")
    assert len(cases) == 5
    for name, case in cases.items():
        x, w, b = (jnp.asarray(case[key], jnp.float32) for key in ("x", "w", "b"))
        chip = hw.Hardware(
            forward=hw.IOParameters(inp_bound=1.0, **case["forward"]),
            mapping=hw.MappingParameter(weight_scaling_omega=case["omega"]),
        )
        kernel = jnp.concatenate([w.T, b[None]])
        if framework == "linen":
            analog = hw.analogize(layer()(features=4), chip)
            found = analog.apply({"params": {"dense": {"kernel": kernel}}}, x)
        else:
            found = hw.analogize(Nnx(kernel), chip)(x)
        np.testing.assert_allclose(found, case["y"], atol=2e-5, err_msg=name)
        assert np.abs(found - (x @ w.T + b)).max() > 0.01


def test_rows_of_a_bias_are_exported_trained_and_programmed(tmp_path):
    x = jax.random.normal(jax.random.key(0), (6, 5))
    module = layer()(features=3, rows=4)
    analog = hw.analogize(module, hw.presets.pcm())
    variables = analog.init(jax.random.key(1), x)
    assert variables["params"]["dense"]["kernel"].shape == (9, 3)
    plan = hw.plan(analog, variables, x)
    path = hw.export(tmp_path / "model", variables, plan, chip_seed=0)
    ((tile,),) = hw.load(path).conductances("dense/kernel", 0)
    assert tile.programmed["g_pos"].g_prog.shape == (9, 3)

    def loss(variables):
        rngs = {"mismatch": jax.random.key(2)}
        return jnp.sum(analog.apply(variables, x, rngs=rngs))

    slope = jax.grad(loss)(variables)["params"]["dense"]["kernel"]
    # Each row of the bias is driven by 1 in each of the six examples.
    np.testing.assert_allclose(slope[5:], 6.0, rtol=0.05)
