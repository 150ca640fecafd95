"""A user-defined product of a layer is linear, or refused by name."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

import hwtrain as hw

HARDWARE = hw.Hardware(
    input_range=hw.InputRangeParameter(init_value=2.0),
    mapping=hw.MappingParameter(
        max_input_size=4, max_output_size=3, weight_scaling_omega=1.0
    ),
)
X = jax.random.normal(jax.random.key(1), (3, 6))
product = jax.lax.dot_general


@jax.custom_vjp
def rounded(x):
    return jnp.round(x * 8) / 8


rounded.defvjp(lambda x: (rounded(x), None), lambda _, cotangent: (cotangent,))


def levels(x, w, numbers, **options):
    y = product(
        (x * 4).astype(jnp.int8), w, numbers, preferred_element_type=jnp.float32
    )
    return y / 4


def chosen(x, w, numbers, **options):
    full = functools.partial(product, dimension_numbers=numbers, **options)
    return jax.lax.cond(x[0, 0] > 0, full, lambda x, w: full(x, w), x, w)


def accumulated(x, w, numbers, **options):
    def add(total, _):
        return jnp.maximum(total, product(x, w, numbers, **options)), None

    return jax.lax.scan(add, product(x, w, numbers, **options), None, 2)[0]


NONLINEAR = {
    "clipped inputs": (
        lambda x, w, *args, **kwargs: product(jnp.clip(x, -1, 1), w, *args, **kwargs),
        "changes its inputs",
    ),
    "rounded inputs": (
        lambda x, w, *args, **kwargs: product(rounded(x), w, *args, **kwargs),
        "changes its inputs",
    ),
    "inputs as integers": (levels, "changes its inputs"),
    "inputs of eight bits": (
        lambda x, w, *args, **kwargs: product(
            x.astype(jnp.float8_e4m3fn).astype(x.dtype), w, *args, **kwargs
        ),
        "'convert_element_type' changes its inputs",
    ),
    "rounded in a jit": (
        lambda x, w, *args, **kwargs: product(
            jax.jit(jnp.round)(x), w, *args, **kwargs
        ),
        "'round' changes its inputs",
    ),
    "clipped results": (
        lambda *args, **kwargs: jnp.clip(product(*args, **kwargs), -1, 1),
        "changes its results",
    ),
    "rounded results": (
        lambda *args, **kwargs: jnp.round(product(*args, **kwargs)),
        "'round' changes its results",
    ),
    "an offset": (
        lambda *args, **kwargs: product(*args, **kwargs) + 1,
        "'add' changes its results",
    ),
    "the inputs again": (
        lambda x, w, *args, **kwargs: jnp.concatenate(
            [product(x, w, *args, **kwargs)[..., :2], x[..., :2]], -1
        ),
        "inputs in them beside the product",
    ),
    "a choice by the inputs": (chosen, "'cond' changes its results"),
    "the largest of a loop": (accumulated, "changes its results"),
}


def blocks(x, w, numbers, **options):
    parts = [product(x, each, numbers, **options) for each in jnp.split(w, 2, -1)]
    return jnp.concatenate(parts, -1)


def swapped(x, w, numbers, **options):
    """Multiplies from the left: Wᵀ xᵀ."""
    (of_x, of_w), (batch_x, batch_w) = numbers
    y = product(w, x, ((of_w, of_x), (batch_w, batch_x)), **options)
    first, columns = len(batch_w), w.ndim - len(batch_w) - len(of_w)
    return jnp.moveaxis(y, range(first, first + columns), range(-columns, 0))


def compiled(x, w, numbers, **options):
    inner = jax.jit(lambda x, w: product(x, w, numbers, **options))
    return jax.checkpoint(inner)(x, w)


def narrow(x, w, numbers, **options):
    y = product(x.astype(jnp.bfloat16), w.astype(jnp.bfloat16), numbers)
    return y.astype(x.dtype)


def summed_on_a_mesh(x, w, numbers, **options):
    mesh = Mesh(np.array(jax.devices()[:1]), ("m",))
    return jax.shard_map(
        lambda x, w: jax.lax.psum(product(x, w, numbers, **options), "m"),
        mesh=mesh,
        in_specs=(PartitionSpec(None, "m"), PartitionSpec("m", None)),
        out_specs=PartitionSpec(),
    )(x, w)


LINEAR = {
    "precision": functools.partial(product, precision="highest"),
    "preferred_element_type": lambda x, w, numbers, **options: product(
        x, w, numbers, preferred_element_type=jnp.float32
    ),
    "blocks": blocks,
    "swapped": swapped,
    "narrow": narrow,
    "jit and remat": compiled,
    "on a mesh": summed_on_a_mesh,
}
LAYERS = {
    "Dense": lambda own: nn.Dense(4, dot_general=own),
    "dot_general_cls": lambda own: nn.Dense(4, dot_general_cls=lambda: own),
    "DenseGeneral": lambda own: nn.DenseGeneral(4, dot_general=own),
    "Linear": lambda own: nnx.Linear(6, 4, dot_general=own, rngs=nnx.Rngs(0)),
    "LinearGeneral": lambda own: nnx.LinearGeneral(
        6, 4, dot_general=own, rngs=nnx.Rngs(0)
    ),
}


def called(model, hardware):
    """Returns what the analog model gives, without noise, and what the plain one."""
    if isinstance(model, nnx.Module):
        return hw.eval_mode(hw.analogize(model, hardware))(X), model(X)
    analog = hw.analogize(model, hardware)
    params = analog.init(jax.random.key(0), X)
    plain = {"params": hw.strip(params["params"])}
    return hw.eval_mode(analog).apply(params, X), model.apply(plain, X)


@pytest.mark.sampled
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("way", NONLINEAR)
def test_a_product_that_is_not_linear_is_refused(way, layer):
    own, why = NONLINEAR[way]
    match = f"kernel: the dot_general of its layer does more than multiply: .*{why}"
    for hardware in (HARDWARE, hw.Hardware()):
        with pytest.raises(ValueError, match=match) as raised:
            called(LAYERS[layer](own), hardware)
        assert "IOParameters(" in str(raised.value) and "\n" not in str(raised.value)
    # A digital layer may compute anything, also beside a layer on hardware.
    rules = [hw.Rule("layers_0|layers/0", None), hw.Rule(".*", HARDWARE)]
    first = LAYERS[layer](own)
    if isinstance(first, nnx.Module):
        model = nnx.Sequential(first, nnx.Linear(4, 2, rngs=nnx.Rngs(1)))
    else:
        model = nn.Sequential([first, nn.Dense(2)])
    assert called(model, rules)[0].shape == (3, 2)


@pytest.mark.sampled
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("way", LINEAR)
def test_a_linear_product_multiplies_on_every_tile(way, layer):
    wide = hw.Hardware(
        input_range=hw.InputRangeParameter(init_value=100.0), mapping=HARDWARE.mapping
    )
    found, expected = called(LAYERS[layer](LINEAR[way]), wide)
    tolerance = 0.02 if way == "narrow" else 1e-5
    np.testing.assert_allclose(found, expected, atol=tolerance)


OWN = {
    "linen": lambda: nn.Conv(
        4, (3,), conv_general_dilated=jax.lax.conv_general_dilated
    ),
    "nnx": lambda: nnx.Conv(
        6,
        4,
        (3,),
        conv_general_dilated=functools.partial(jax.lax.conv_general_dilated),
        rngs=nnx.Rngs(0),
    ),
}


@pytest.mark.parametrize("framework", OWN)
def test_a_convolution_of_the_user_s_own_is_no_analog_layer(framework):
    """Linear or not, it gets none of the windows of a crossbar."""
    image = jnp.ones((1, 5, 6))
    with pytest.raises(ValueError, match="it has a conv_general_dilated of its own"):
        model = OWN[framework]()
        analog = hw.analogize(model, HARDWARE)
        analog.init(jax.random.key(0), image)
