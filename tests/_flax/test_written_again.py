"""Flax methods that hwtrain reimplements compute the same as the originals.

If a version of Flax gives a method a new argument, or lets it read a new field, the
second test fails before any number differs.
"""

import ast
import inspect
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain.sockets import _table as table

TILES = hw.Hardware(
    forward=hw.IOParameters(out_bound=1e6),  # on tiles, but as good as ideal
    mapping=hw.MappingParameter(
        max_input_size=4, max_output_size=2, weight_scaling_omega=1.0
    ),
)
BIAS = nn.initializers.normal(1.0)
EXACT = {"precision": jax.lax.Precision.HIGHEST, "preferred_element_type": jnp.float32}
CONV = {"strides": 2, "kernel_dilation": 2, "padding": "CIRCULAR", "bias_init": BIAS}


def mask(*shape):
    return jnp.asarray(np.random.default_rng(3).random(shape) < 0.6, jnp.float32)


LSTM = {"gate_fn": nn.relu, "activation_fn": jnp.sin, "bias_init": BIAS}
WRITTEN_AGAIN = {
    (nn.Einsum, "__call__"): [
        lambda: nn.Einsum((3, 4, 2), "bte,ehd->bthd", bias_init=BIAS, **EXACT),
        lambda: nn.Einsum((3, 4), "...e,eh->...h", use_bias=False, dtype=jnp.float32),
    ],
    (nn.ConvTranspose, "__call__"): [
        lambda: nn.ConvTranspose(4, (3,), mask=mask(3, 3, 4), **CONV, **EXACT),
        lambda: nn.ConvTranspose(4, (2,), transpose_kernel=True, use_bias=False),
    ],
    (nn.ConvLocal, "__call__"): [
        lambda: nn.ConvLocal(4, (2,), padding="VALID", bias_init=BIAS),
        lambda: nn.ConvLocal(4, (2,), padding="VALID", mask=mask(4, 6, 4)),
    ],
    (nn.OptimizedLSTMCell, "__call__"): [
        lambda: nn.OptimizedLSTMCell(4, dtype=jnp.float32, **LSTM),
        lambda: nn.OptimizedLSTMCell(4),
    ],
    (nn.Embed, "attend"): [lambda: nn.Embed(5, 3), lambda: nn.Embed(1, 3)],
    (nnx.ConvTranspose, "__call__"): [
        lambda: nnx.ConvTranspose(
            3, 4, 3, mask=mask(3, 3, 4), rngs=nnx.Rngs(0), **CONV, **EXACT
        ),
        lambda: nnx.ConvTranspose(
            3, 4, (2,), transpose_kernel=True, use_bias=False, rngs=nnx.Rngs(0)
        ),
    ],
    (nnx.LoRA, "__call__"): [
        lambda: nnx.LoRA(
            3,
            2,
            4,
            base_module=nnx.Linear(3, 4, rngs=nnx.Rngs(1)),
            b_initializer=BIAS,
            rngs=nnx.Rngs(0),
        ),
        lambda: nnx.LoRA(3, 2, 4, b_initializer=BIAS, rngs=nnx.Rngs(0)),
    ],
    (nnx.Embed, "attend"): [
        lambda: nnx.Embed(5, 3, rngs=nnx.Rngs(0)),
        lambda: nnx.Embed(1, 3, rngs=nnx.Rngs(0)),
    ],
}
"""The methods, each with layers whose options are not those of default, and are."""


def name(key):
    return f"{key[0].__module__}.{key[0].__name__}.{key[1]}"


X = jax.random.normal(jax.random.key(0), (2, 5, 3))


def inputs(layer):
    if isinstance(layer, nn.OptimizedLSTMCell):
        carry = (jnp.full((2, 5, 4), 0.3), jnp.full((2, 5, 4), -0.2))
        return (carry, X)
    return (X,)


def outcome(layer, method, hardware):
    """Returns results and gradients with respect to parameters and inputs."""
    arguments = inputs(layer)
    if isinstance(layer, nn.Module):
        start = layer.clone().init(jax.random.key(1), *arguments, method=method)
        if hardware is not None:
            rule = hw.Rule(".*", hardware)
            layer = hw.eval_mode(hw.analogize(layer, rule))

        def run(params, arguments):
            return layer.apply({"params": params}, *arguments, method=method)

        params = start["params"]
    else:
        if hardware is not None:
            layer = hw.eval_mode(hw.analogize(layer, hw.Rule(".*", hardware)))
        graph, params, rest = nnx.split(layer, nnx.Param, ...)

        def run(params, arguments):
            model = nnx.merge(graph, params, rest)
            return getattr(model, method)(*arguments)

    def loss(params, arguments):
        found = run(params, arguments)
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(found)), found

    gradients, found = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, arguments)
    return jax.tree.leaves(found), jax.tree.leaves(gradients)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("key", WRITTEN_AGAIN, ids=name)
def test_it_does_what_the_method_of_flax_does(key, number):
    _, method = key
    make = WRITTEN_AGAIN[key][number]
    found = outcome(make(), method, TILES)
    expected = outcome(make(), method, None)
    for ours, theirs in zip(found, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            np.testing.assert_allclose(a, b, atol=2e-6 * max(1, np.abs(b).max()))


def test_every_method_that_a_row_writes_again_is_compared():
    rows = {
        (cls, row.method)
        for cls, rows in table._rows.items()
        for row in rows
        if row.written is not None
    }
    assert rows == set(WRITTEN_AGAIN) == set(READS)


READS = {
    (nn.Einsum, "__call__"): (
        {"inputs", "einsum_str"},
        {"shape", "einsum_str", "_get_bias_shape", "preferred_element_type"},
    ),
    (nn.ConvTranspose, "__call__"): (
        {"inputs"},
        {
            *("features", "kernel_size", "strides", "padding", "kernel_dilation"),
            *("mask", "transpose_kernel", "preferred_element_type"),
        },
    ),
    (nn.ConvLocal, "__call__"): (
        {"inputs"},
        {
            *("features", "kernel_size", "strides", "padding", "kernel_dilation"),
            *("input_dilation", "feature_group_count", "mask", "shared_weights"),
            *("conv_general_dilated", "conv_general_dilated_cls"),
        },
    ),
    (nn.OptimizedLSTMCell, "__call__"): (
        {"carry", "inputs"},
        {"gate_fn", "activation_fn", "recurrent_kernel_init"},
    ),
    (nn.Embed, "attend"): ({"query"}, {"embedding"}),
    (nnx.ConvTranspose, "__call__"): (
        {"inputs"},
        {
            *("kernel", "bias", "kernel_shape", "kernel_size", "strides", "padding"),
            *("kernel_dilation", "mask", "transpose_kernel", "preferred_element_type"),
        },
    ),
    (nnx.LoRA, "__call__"): (
        {"x", "kwargs"},
        {"lora_a", "lora_b", "base_module"},
    ),
    (nnx.Embed, "attend"): ({"query", "out_sharding"}, {"embedding"}),
}
"""The arguments of each, and the fields that it reads beside those of every layer."""

OF_EVERY_LAYER = {
    *("dtype", "param_dtype", "precision", "promote_dtype", "use_bias"),
    *("param", "kernel_init", "bias_init"),
}


@pytest.mark.parametrize("key", WRITTEN_AGAIN, ids=name)
def test_flax_has_given_it_nothing_new(key):
    cls, method = key
    function = inspect.unwrap(getattr(cls, method))
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    fields = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self"
    }
    arguments, known = READS[key]
    new = set(inspect.signature(function).parameters) - {"self"} - arguments
    assert not new, f"{cls.__name__}.{method} takes {new}: write it again with them"
    new = fields - known - OF_EVERY_LAYER
    assert not new, f"{cls.__name__}.{method} reads {new}: write it again with them"
    gone = known - fields
    assert not gone, f"{cls.__name__}.{method} no longer reads {gone}"
