"""Modules of a file meet those of a model, or both sides are listed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import hwtrain
from hwtrain.checkpoint.importers._modules import Module
from hwtrain.checkpoint.importers._pairing import entries, flattened, pairs, places


def layer(name, *shape, bias=True):
    arrays = {"weight": np.zeros(shape, np.float32)}
    if bias:
        arrays["bias"] = np.zeros(shape[0], np.float32)
    return Module(name=name, arrays=arrays, shape=shape)


def norm(name, size, *roles):
    arrays = {role: np.zeros(size, np.float32) for role in roles}
    return Module(name=name, arrays=arrays)


def model(module, *example):
    variables = module.init(jax.random.key(0), *example)
    shapes = {}
    for tree in variables.values():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            shapes["/".join(key.key for key in path)] = leaf.shape
    analog = hwtrain.analogize(module, hwtrain.Hardware())
    return places(shapes, hwtrain.plan(analog, variables, *example))


def named(found, there, names=()):
    made = pairs(entries(found), there, dict(names))
    return {entry.name: place.name for entry, place in made}


class Mlp(nn.Module):
    sizes: tuple = (4, 4, 3)

    @nn.compact
    def __call__(self, x):
        for size in self.sizes:
            x = nn.Dense(size)(x)
        return x


X = jnp.ones((2, 4))


def test_equal_sizes_go_by_order():
    found = [layer("a", 4, 4), layer("b", 4, 4), layer("c", 3, 4)]
    wanted = {"a": "Dense_0", "b": "Dense_1", "c": "Dense_2"}
    assert named(found, model(Mlp(), X)) == wanted
    swapped = {"a": "Dense_1", "b": "Dense_0"}
    assert named(found, model(Mlp(), X), swapped) == {**wanted, **swapped}


def test_another_order_is_ambiguous():
    # The head comes first in the file: its order says nothing about the two others.
    found = [layer("head", 3, 4), layer("a", 4, 4), layer("b", 4, 4)]
    with pytest.raises(ValueError, match="different orders.*a .4 inputs.*Dense_1"):
        named(found, model(Mlp(), X))
    # With sizes that differ, it does not matter.
    found = [layer("head", 3, 5), layer("a", 5, 4)]
    assert named(found, model(Mlp((5, 3)), X)) == {"head": "Dense_1", "a": "Dense_0"}


def test_what_is_left_over_is_listed_on_both_sides():
    with pytest.raises(ValueError) as caught:
        named([layer("a", 4, 4), layer("b", 5, 4, bias=False)], model(Mlp((4, 3)), X))
    text = str(caught.value)
    assert "in the file b (4 inputs, 5 outputs, no bias)" in text
    assert "in the model Dense_1 (4 inputs, 3 outputs, a bias)" in text
    assert "--names names.toml" in text and "Dense_0" not in text


class Others(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        position = self.param("position", nn.initializers.zeros, (6, 8))
        x = nn.Embed(10, 8)(tokens) + position[: tokens.shape[-1]]
        x = nn.LayerNorm()(x)
        return nn.RMSNorm()(nn.Dense(10, use_bias=False)(x))


def test_embeddings_norms_and_single_arrays():
    there = model(Others(), jnp.zeros((1, 6), jnp.int32))
    found = [
        Module(name="", arrays={"position": np.zeros((6, 8), np.float32)}),
        layer("tokens", 10, 8, bias=False),
        norm("norm", 8, "scale", "bias"),
        norm("rms", 10, "scale"),
    ]
    # A linear layer of these sizes looks like an embedding of the same.
    linear = layer("out", 10, 8, bias=False)
    with pytest.raises(ValueError, match="tokens .* or several|or several: .*tokens"):
        named([*found, linear], there)
    names = {"tokens": "Embed_0", "out": "Dense_0"}
    assert named([*found, linear], there, names) == {
        "position": "position",
        "tokens": "Embed_0",
        "norm": "LayerNorm_0",
        "rms": "RMSNorm_0",
        "out": "Dense_0",
    }


class Slope(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.PReLU()(nn.Dense(4)(x)))


def test_the_slope_of_a_prelu():
    there = model(Slope(), X)
    found = [layer("a", 4, 4), norm("act", 1, "scale"), layer("b", 3, 4)]
    wanted = {"a": "Dense_1", "act": "PReLU_0/negative_slope", "b": "Dense_0"}
    assert named(found, there) == wanted


def test_names_that_are_misspelt_get_a_hint():
    found = [layer("a", 4, 4), layer("b", 3, 4)]
    with pytest.raises(ValueError, match="no 'Dense0'.*did you mean 'Dense_0'"):
        named(found, model(Mlp((4, 3)), X), {"a": "Dense0"})


def test_layers_under_two_names_are_named():
    found = [layer("a", 4, 4), layer("b", 4, 4), layer("head", 3, 4)]
    with pytest.raises(ValueError, match="two names: a and b have equal weights"):
        named(found, model(Mlp((4, 3)), X))
    found[0].arrays["weight"][:] = 1
    with pytest.raises(ValueError) as caught:
        named(found, model(Mlp((4, 3)), X))
    assert "two names" not in str(caught.value)


class Convolutions(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (1, 3), feature_group_count=2)(x)
        return nn.Dense(3)(x.reshape(len(x), -1))


def test_windows_are_compared():
    there = model(Convolutions(), jnp.ones((1, 2, 5, 2)))
    found = [layer("conv", 4, 1, 1, 3), layer("head", 3, 40)]
    assert named(found, there) == {"conv": "Conv_0", "head": "Dense_0"}
    found[0] = layer("conv", 4, 1, 3, 1)
    with pytest.raises(
        ValueError, match=r"a window of \(3, 1\), and Conv_0 of the mod"
    ):
        named(found, there)


def test_flattened_images_are_noticed():
    there = model(Convolutions(), jnp.ones((1, 2, 5, 2)))
    found = [layer("conv", 4, 1, 1, 3), layer("head", 3, 40)]
    assert flattened(pairs(entries(found), there, {})) == ["head"]
    assert not flattened(pairs(entries([layer("a", 3, 4)]), model(Mlp((3,)), X), {}))


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        layers = nn.scan(
            lambda module, x, _: (module(x), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=2,
        )
        return nn.ConvTranspose(4, (3,))(layers(nn.Dense(4), x, None)[0][..., None, :])


def test_stacks_and_transposed_convolutions_are_named():
    found = [layer("a", 4, 4), layer("b", 4, 4), layer("up", 4, 4, 3)]
    with pytest.raises(ValueError) as caught:
        named(found, model(Scanned(), X))
    text = str(caught.value)
    assert "a stack of 2 layers in one array, which is not converted" in text
    assert "conv_transpose, which is not converted" in text
