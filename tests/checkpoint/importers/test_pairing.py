"""Modules of a file meet those of a model, or both sides are listed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import hwtrain
from hwtrain.checkpoint.importers._modules import Module
from hwtrain.checkpoint.importers._pairing import flattened, pairs
from hwtrain.checkpoint.importers._places import entries, places


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


class Named(nn.Module):
    """`fc1` is made before `fc2`, and Linen has the layers of both blocks inside."""

    @nn.compact
    def __call__(self, x):
        for name in ("first", "second"):
            x = Block(name=name)(x)
        return x


class Block(nn.Module):
    names: tuple = ("fc1", "fc2")

    @nn.compact
    def __call__(self, x):
        for name in self.names:
            x = nn.Dense(4, name=name)(x)
        return x


def test_equal_names_go_before_the_order():
    crossed = [layer("fc2", 4, 4), layer("fc1", 4, 4)]
    assert named(crossed, model(Block(), X)) == {"fc2": "fc2", "fc1": "fc1"}
    # Of several blocks, the last parts of the names, each in order.
    found = [layer(f"{x}.{y}", 4, 4) for x in "ab" for y in ("fc2", "fc1")]
    assert named(found, model(Named(), X)) == {
        "a.fc2": "first/fc2",
        "a.fc1": "first/fc1",
        "b.fc2": "second/fc2",
        "b.fc1": "second/fc1",
    }
    # Whole names say more.
    names = ("second.fc2", "second.fc1", "first.fc1", "first.fc2")
    whole = [layer(name, 4, 4) for name in names]
    wanted = {entry.name: entry.name.replace(".", "/") for entry in whole}
    assert named(whole, model(Named(), X)) == wanted
    # A table is above them.
    swapped = {"fc1": "fc2", "fc2": "fc1"}
    assert named(crossed, model(Block(), X), swapped) == swapped


def test_equal_names_of_blocks_are_in_order():
    found = [layer("head", 3, 4)] + [layer(f"{x}.fc1", 4, 4) for x in "ab"]
    there = model(Blocks(), X)
    # The head comes first in the file: its order says nothing about the blocks.
    with pytest.raises(ValueError, match="different orders.*a.fc1 .4 inputs"):
        named(found, there)
    wanted = {"a.fc1": "first/fc1", "b.fc1": "second/fc1", "head": "top"}
    assert named([*found[1:], found[0]], there) == wanted


class Blocks(nn.Module):
    @nn.compact
    def __call__(self, x):
        for name in ("first", "second"):
            x = Block(("fc1",), name=name)(x)
        return nn.Dense(3, name="top")(x)


def test_numbers_are_no_names():
    found = [layer("2", 4, 4), layer("0", 4, 4)]
    there = model(Block(("0", "2")), X)
    assert named(found, there) == {"2": "0", "0": "2"}


def test_whole_names_go_first_also_where_others_differ():
    there = model(Block(("fc1", "fc2", "last")), X)
    for first in (("fc2", "fc1"), ("fc1", "fc2")):
        found = [layer(name, 4, 4) for name in (*first, "head")]
        wanted = {"fc1": "fc1", "fc2": "fc2", "head": "last"}
        assert named(found, there) == wanted


class Nested(nn.Module):
    names: tuple

    @nn.compact
    def __call__(self, x):
        for outer, inner in self.names:
            x = Block((inner,), name=outer)(x)
        return x


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        # Numbers count the layers: the second is another one on each side.
        (("conv1", "conv3", "conv5"), ("conv1", "conv2", "conv3")),
        # A last part says one thing, and what it is part of another.
        (("attn.out", "mlp.proj"), (("attn", "proj"), ("mlp", "out"))),
        (("critic.0", "actor.0"), (("actor", "layers_0"), ("critic", "layers_0"))),
        (("model.b.lin", "model.a.lin"), (("a", "lin"), ("b", "lin"))),
        (("heads.0", "branches.0"), ("branches_0", "heads_0")),
    ],
)
def test_names_that_contradict_the_order_are_refused(ours, theirs):
    kind = Block if isinstance(theirs[0], str) else Nested
    there = model(kind(theirs), X)
    found = [layer(name, 4, 4) for name in ours]
    match = "names of the file .* contradict that .* would become .*--names"
    with pytest.raises(ValueError, match=match):
        named(found, there)
    # A table decides.
    names = {one: place.name for one, place in zip(ours, there)}
    assert named(found, there, names) == names


@pytest.mark.parametrize(
    "names", [("0", "2", "4"), ("q", "k", "v"), ("l1", "l2", "l4")]
)
def test_names_that_say_nothing_leave_the_order(names):
    there = model(Block(("Dense_0", "Dense_1", "Dense_2")), X)
    found = [layer(name, 4, 4) for name in names]
    assert [*named(found, there).values()] == ["Dense_0", "Dense_1", "Dense_2"]


class Arrays(nn.Module):
    @nn.compact
    def __call__(self, x):
        for name in ("a", "b"):
            x = x + self.param(name, nn.initializers.zeros, (1, 4))
        return nn.Dense(4)(x)


def test_single_arrays_of_equal_names():
    arrays = {name: np.zeros((1, 4), np.float32) for name in ("b", "a")}
    found = [Module(name="", arrays=arrays), layer("fc", 4, 4)]
    assert named(found, model(Arrays(), X)) == {"b": "b", "a": "a", "fc": "Dense_0"}
    arrays["c"] = arrays.pop("a")
    with pytest.raises(ValueError) as caught:
        named(found, model(Arrays(), X))
    # They are equal, but no layers.
    assert "two names" not in str(caught.value)
