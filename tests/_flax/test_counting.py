"""Counts of multiplications, against numbers of positions, steps and heads by hand."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain._flax.counting import multiplications

B = 2  # examples in every call
CHIP = hw.Hardware(
    forward=hw.IOParameters(inp_bits=8, out_bits=8, out_bound=10.0),
    mapping=hw.MappingParameter(max_input_size=4, max_output_size=4),
)


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def linen(model, *inputs, hardware=CHIP, **kwargs):
    analog = hw.analogize(model, hardware)
    call = {k: v for k, v in kwargs.items() if k != "forward"}
    variables = jax.eval_shape(
        lambda *given: analog.init(jax.random.key(0), *given, **call), *inputs
    )
    return multiplications(analog, variables, *inputs, **kwargs)


class Scanned(nn.Module):
    """Three layers as one scan, rematerialised."""

    @nn.compact
    def __call__(self, x):
        def body(layer, x, _):
            return layer(x), None

        layer = nn.remat(nn.Dense)(8)
        axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        return nn.scan(body, length=3, **axes)(layer, x, None)[0]


class Mapped(nn.Module):
    """Five layers that see the same inputs."""

    @nn.compact
    def __call__(self, x):
        axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        return nn.vmap(nn.Dense, in_axes=None, axis_size=5, **axes)(4)(x)


class Shared(nn.Module):
    """One layer, called three times."""

    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(8, name="layer")
        return layer(layer(layer(x)))


RNN = {f"cell/{side}{gate}/kernel": B * 7 for side in "ih" for gate in "ifgo"}
CASES = {
    "dense": (nn.Dense(5), (B, 8), {"kernel": B}),
    "a sequence": (nn.Dense(5), (B, 7, 8), {"kernel": B * 7}),
    "same padding": (nn.Conv(6, (3, 3)), (B, 8, 8, 4), {"kernel": B * 64}),
    # (9 - 3) / 2 + 1 positions.
    "strides": (
        nn.Conv(6, (3,), strides=2, padding="VALID"),
        (B, 9, 4),
        {"kernel": B * 4},
    ),
    "dilation": (
        nn.Conv(6, (3,), kernel_dilation=2, padding="VALID"),
        (B, 9, 4),
        {"kernel": B * 5},
    ),
    # Each position has a product with the matrix of every group.
    "groups": (
        nn.Conv(6, (3,), feature_group_count=2),
        (B, 8, 4),
        {"kernel": B * 8 * 2},
    ),
    "depthwise": (
        nn.Conv(4, (3,), feature_group_count=4),
        (B, 8, 4),
        {"kernel": B * 8 * 4},
    ),
    "local": (nn.ConvLocal(6, (3,)), (B, 8, 4), {"kernel": B * 8}),
    "transposed": (
        nn.ConvTranspose(6, (3,), strides=(2,)),
        (B, 8, 4),
        {"kernel": B * 16},
    ),
    # One matrix of 8 x 15, and three matrices of 8 x 5, each for its own vectors.
    "einsum": (nn.Einsum((3, 8, 5), "bti,hio->bhto"), (B, 7, 8), {"kernel": B * 7}),
    "a stack in an einsum": (
        nn.Einsum((3, 8, 5), "bhti,hio->bhto"),
        (B, 3, 7, 8),
        {"kernel": B * 3 * 7},
    ),
    "lstm": (nn.RNN(nn.LSTMCell(6)), (B, 7, 3), RNN),
    "optimised lstm": (nn.RNN(nn.OptimizedLSTMCell(6)), (B, 7, 3), RNN),
    "a scan of layers": (Scanned(), (B, 8), {"Dense_0/kernel": B * 3}),
    "a map of layers": (Mapped(), (B, 8), {"VmapDense_0/kernel": B * 5}),
    "shared": (Shared(), (B, 8), {"layer/kernel": B * 3}),
}


@pytest.mark.parametrize("name", CASES)
def test_products_of_linen_layers(name):
    model, inputs, expected = CASES[name]
    found = linen(model, shape(*inputs))
    got = dict(found.products)
    if name == "a scan of layers":
        got = {"Dense_0/kernel": sum(got.values())}
    assert got == expected
    assert found.digital == {}


def test_attention_multiplies_queries_and_keys_digitally():
    heads, length, width = 2, 5, 8
    model = nn.MultiHeadDotProductAttention(num_heads=heads)
    found = linen(model, shape(B, length, width))
    names = ("query", "key", "value", "out")
    assert found.products == {f"{name}/kernel": B * length for name in names}
    # Scores, and sums of values, both over all pairs of places.
    assert found.digital == {"": 2 * B * heads * length**2 * (width // heads)}


class Net(nnx.Module):
    """A convolution, a recurrent layer and a head."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 6, (3,), rngs=rngs)
        self.rnn = nnx.RNN(nnx.GRUCell(6, 4, rngs=rngs))
        self.head = nnx.Linear(4, 5, rngs=rngs)

    def __call__(self, x):
        return self.head(self.rnn(self.conv(x))[:, -1])


def test_products_of_an_nnx_model():
    rules = [hw.Rule("head", None), CHIP]
    analog = hw.analogize(Net(nnx.Rngs(0)), rules)
    found = multiplications(analog, None, shape(B, 7, 3))
    cell = {path: n for path, n in found.products.items() if path.startswith("rnn")}
    assert found.products["conv/kernel"] == B * 7
    assert set(cell.values()) == {B * 7}
    assert found.digital == {"head/kernel": B * 4 * 5}


@pytest.mark.parametrize(
    ("model", "inputs", "macs"),
    [
        (nn.Dense(5), (B, 7, 8), B * 7 * 8 * 5),
        (nn.Conv(6, (3, 3)), (B, 8, 8, 4), B * 64 * 9 * 4 * 6),
        (nn.Conv(6, (3,), feature_group_count=2), (B, 8, 4), B * 8 * 3 * 2 * 6),
        (nn.RNN(nn.SimpleCell(6)), (B, 7, 3), B * 7 * (3 + 6) * 6),
        (Scanned(), (B, 8), 3 * B * 8 * 8),
    ],
)
def test_digital_layers_are_counted_by_multiplications(model, inputs, macs):
    class Both(nn.Module):
        @nn.compact
        def __call__(self, x):
            model.clone(parent=None, name="digital")
            nn.Dense(1, name="analog")(x)
            return model.clone(parent=self, name="digital")(x)

    rules = [hw.Rule("analog", CHIP)]
    found = linen(Both(), shape(*inputs), hardware=rules)
    assert sum(found.digital.values()) == macs
    assert all(path.startswith("digital/") for path in found.digital)


class Looped(nn.Module):
    """A layer in a loop whose length depends on values, or not."""

    fixed: bool

    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(8, name="layer")
        layer(x)
        if self.fixed:
            return jax.lax.fori_loop(0, 4, lambda _, x: layer(x), x)
        done = lambda x: x.sum() < 4  # noqa: E731
        return jax.lax.while_loop(done, lambda x: layer(x) + 1, x)


def test_a_loop_of_fixed_length_is_counted():
    assert linen(Looped(True), shape(B, 8)).products == {"layer/kernel": B * 5}


def test_a_loop_of_unknown_length_is_refused():
    with pytest.raises(ValueError, match="products of layer/kernel cannot be counted"):
        linen(Looped(False), shape(B, 8))


def test_the_larger_branch_of_a_condition_counts():
    class Chosen(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.Dense(8, name="layer")
            layer(x)
            twice = lambda x: layer(layer(x))  # noqa: E731
            return jax.lax.cond(x.sum() > 0, twice, lambda x: layer(x), x)

    assert linen(Chosen(), shape(B, 8)).products == {"layer/kernel": B * 3}


def test_every_call_of_a_forward_function_counts():
    def forward(apply, batch):
        return apply(batch["one"]) - apply(batch["two"])

    analog = hw.analogize(nn.Dense(4), CHIP)
    variables = jax.eval_shape(analog.init, jax.random.key(0), shape(B, 8))
    batch = {"one": shape(B, 8), "two": shape(B, 8)}
    found = multiplications(analog, variables, batch, forward=forward)
    assert found.products == {"kernel": 2 * B}


def test_a_weight_that_a_layer_computes_is_counted():
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.WeightNorm(nn.Dense(4, name="d"))(x)

    assert linen(Normed(), shape(B, 8)).products == {"d/kernel": B}


def test_a_prefix_is_part_of_the_path():
    analog = hw.analogize(nn.Dense(4), CHIP, name="inner")
    variables = jax.eval_shape(analog.init, jax.random.key(0), shape(B, 8))
    found = multiplications(analog, variables, shape(B, 8))
    assert found.products == {"inner/kernel": B}


def test_a_mesh_is_refused():
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((1,), ("data",), axis_types=auto)
    axes = jax.sharding.PartitionSpec("data")
    chip = hw.analogize(nn.Dense(4), CHIP)
    variables = chip.init(jax.random.key(0), jnp.ones((B, 8)))

    def forward(apply, x):
        run = jax.shard_map(apply, mesh=mesh, in_specs=axes, out_specs=axes)
        return run(x)

    with pytest.raises(ValueError, match="cannot be counted inside of a shard_map"):
        multiplications(chip, variables, shape(B, 8), forward=forward)
