"""Dense layers over any axes, against Flax's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw

SMALL_TILES = hw.Hardware(
    forward=hw.IOParameters(out_bound=1e6),  # on tiles, but as good as ideal
    mapping=hw.MappingParameter(
        max_input_size=3, max_output_size=2, weight_scaling_omega=1.0
    ),
)
CASES = [
    ((2, 3, 4), (5,), (-1,), (), {}),
    ((2, 3, 4), (2, 5), (1, -1), (), {}),
    ((2, 3, 4), (5,), (-1, 0), (), {"use_bias": False}),
    ((2, 3, 4), (2, 2), (-1,), (0,), {}),
    ((2, 3, 4, 5), (3,), (-1,), (0, 1), {"use_bias": False}),
    ((2, 3, 4), (2, 2), (2, 1), (0,), {"dtype": jnp.bfloat16}),
]


@pytest.mark.sampled
@pytest.mark.parametrize(("shape", "features", "axis", "batch", "options"), CASES)
@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_flaxs_own_layer_gives_the_same(
    framework, shape, features, axis, batch, options
):
    x = jax.random.normal(jax.random.key(0), shape)
    if framework == "linen":
        layer = nn.DenseGeneral(features, axis, batch, **options)
        variables = jax.jit(layer.init)(jax.random.key(1), x)
        analog = hw.eval_mode(hw.analogize(layer, SMALL_TILES))
        plan = hw.plan(analog, variables, x)
        expected, found = jax.jit(lambda v, x: (layer.apply(v, x), analog.apply(v, x)))(
            variables, x
        )
    else:
        layer = nnx.LinearGeneral(
            tuple(shape[i] for i in sorted(i % len(shape) for i in axis)),
            features,
            axis=axis,
            batch_axis={i: shape[i] for i in batch},
            rngs=nnx.Rngs(0),
            **options,
        )
        analog = hw.eval_mode(hw.analogize(layer, SMALL_TILES))
        plan = hw.plan(analog)
        expected, found = nnx.jit(lambda a, b, x: (a(x), b(x)))(layer, analog, x)
    weight = plan["kernel"]
    assert weight.stack == tuple(shape[i] for i in batch)
    assert sum(weight.row_sizes) == np.prod([shape[i] for i in axis])
    assert sum(weight.column_sizes) == np.prod(features)
    assert found.dtype == expected.dtype
    atol = 0.05 if options.get("dtype") else 2e-6
    np.testing.assert_allclose(
        np.float32(found), np.float32(expected), rtol=1e-5, atol=atol
    )


def test_every_crossbar_of_a_batch_has_its_own_range_and_scale():
    x = jnp.stack([jnp.full((3, 4), 0.5), jnp.full((3, 4), 8.0)])
    hardware = hw.Hardware(
        input_range=hw.InputRangeParameter(init_value=1.0),
        forward=hw.IOParameters(inp_res=0.5),  # levels -r, 0, r
        mapping=hw.MappingParameter(weight_scaling_omega=1.0),
    )
    layer = nn.DenseGeneral(2, batch_dims=(0,), use_bias=False)
    analog = hw.eval_mode(hw.analogize(layer, hardware))
    params = jax.jit(analog.init)(jax.random.key(0), x)["params"]
    params["input_range"] = params["input_range"].at[1].set(4.0)
    found = analog.apply({"params": params}, x)
    # 0.5 lies between the levels 0 and 1 of the first crossbar, and goes to the even
    # one; 8 is clipped to 4, which is a level of the second.
    kernel = np.asarray(params["kernel"])
    np.testing.assert_allclose(found[0], np.zeros((3, 2)), atol=1e-6)
    expected = np.full((3, 4), 4.0) @ kernel[1]
    np.testing.assert_allclose(found[1], expected, rtol=1e-5, atol=1e-6)


def test_a_layer_with_its_own_call_stays_digital_and_says_so():
    class Doubled(nn.Dense):
        @nn.compact
        def __call__(self, inputs):
            shape = (inputs.shape[-1], self.features)
            return 2 * inputs @ self.param("kernel", self.kernel_init, shape)

    analog = hw.analogize(Doubled(3), SMALL_TILES)
    with pytest.raises(ValueError, match="overrides Dense.__call__"):
        analog.init(jax.random.key(0), jnp.ones((1, 2)))


def test_normalisation_says_why_it_is_digital():
    x = jnp.ones((2, 4))
    model = nn.Sequential([nn.Dense(3), nn.LayerNorm()])
    analog = hw.analogize(model, SMALL_TILES)
    found = hw.inspect(analog, jax.jit(analog.init)(jax.random.key(0), x), x)
    reasons = dict(found.digital)
    assert reasons["layers_1/scale"] == "LayerNorm: normalisation is digital"
    twin = nnx.Sequential(
        nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.LayerNorm(3, rngs=nnx.Rngs(0))
    )
    reasons = dict(hw.inspect(hw.analogize(twin, SMALL_TILES)).digital)
    assert reasons["layers/1/scale"] == "LayerNorm: normalisation is digital"
