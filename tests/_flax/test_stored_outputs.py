"""What modules return is stored in few bits, in both frameworks, wherever they are."""

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain._errors import InputError

FEW = hw.DigitalFormat(bits=4)
STORED = hw.Hardware(outputs=FEW)
X = jax.random.normal(jax.random.key(0), (3, 6))


def levels(y, bits=4, full_scale=None):
    """Integers times a step, in NumPy."""
    y = np.asarray(y, np.float64)
    top = 2 ** (bits - 1) - 1
    largest = np.abs(y).max(axis=-1, keepdims=True)
    step = (largest if full_scale is None else full_scale) / top
    step = np.where(step > 0, step, 1.0)
    return np.clip(np.rint(y / step), -top, top) * step


def near(found, right, tolerance=1e-5):
    np.testing.assert_allclose(
        np.asarray(found, np.float64), right, rtol=tolerance, atol=tolerance
    )


class Block(nn.Module):
    """A norm, a layer of several row tiles, a digital one, and a residual sum."""

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm(name="norm")(x)
        y = nn.relu(nn.Dense(8, name="up")(y))
        return x + nn.Dense(6, name="down")(y)


class NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(6, rngs=rngs)
        self.up = nnx.Linear(6, 8, rngs=rngs)
        self.down = nnx.Linear(8, 6, rngs=rngs)

    def __call__(self, x):
        return x + self.down(nnx.relu(self.up(self.norm(x))))


TILED = hw.Hardware(
    forward=hw.IOParameters(inp_bits=6, inp_bound=2.0, out_bits=7, out_bound=4.0),
    mapping=hw.MappingParameter(max_input_size=2),
    outputs=hw.DigitalFormat(bits=6, full_scale=3.0),
)
RULES = [
    hw.Rule("norm", STORED),
    hw.Rule("up", TILED),
    hw.Rule("down", hw.Hardware(outputs=hw.DigitalFormat(bits=5))),
    hw.Rule("", hw.Hardware(outputs=hw.DigitalFormat(bits=8, full_scale=4.0))),
]


def in_numpy(params, x):
    """The block with all its conversions, from its parameters alone."""
    x = np.asarray(x, np.float64)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    mean = x.mean(-1, keepdims=True)
    y = (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-6)
    y = levels(y * p["norm"]["scale"] + p["norm"]["bias"])

    def converted(y, bits, bound):
        step = 2 * bound / (2**bits - 2)
        return np.clip(step * np.rint(y / step), -bound, bound)

    tiles = [slice(0, 2), slice(2, 4), slice(4, 6)]
    y = sum(
        converted(converted(y[:, rows], 6, 2.0) @ p["up"]["kernel"][rows], 7, 4.0)
        for rows in tiles
    )
    y = np.maximum(levels(y + p["up"]["bias"], 6, 3.0), 0)
    y = levels(y @ p["down"]["kernel"] + p["down"]["bias"], 5)
    return levels(x + y, 8, 4.0)


@functools.cache
def linen():
    analog = hw.analogize(Block(), RULES)
    return analog, analog.init(jax.random.key(1), X)


def nnx_model():
    model = NnxBlock(nnx.Rngs(0))
    params = linen()[1]["params"]
    for name, layer in (("norm", model.norm), ("up", model.up), ("down", model.down)):
        for leaf, value in params[name].items():
            getattr(layer, leaf)[...] = value
    return hw.analogize(model, RULES)


@pytest.mark.parametrize("mode", ["train", "chip", "eval"])
def test_a_network_computes_what_numpy_computes(mode):
    analog, variables = linen()
    right = in_numpy(variables["params"], X)
    assert np.abs(right - np.asarray(Block().apply(variables, X))).max() > 0.02
    set_mode = getattr(hw, f"{mode}_mode")
    near(set_mode(analog).apply(variables, X), right)
    near(set_mode(nnx_model())(X), right)


def test_both_frameworks_have_one_plan_of_results():
    plans = hw.plan(*linen(), X), hw.plan(nnx_model())
    found = [[(x.path, x.format, x.rule) for x in plan.outputs] for plan in plans]
    assert found[0] == found[1]
    assert [path for path, *_ in found[0]] == ["", "down", "norm", "up"]
    assert [*plans[0]] == [*plans[1]] == ["up/kernel"]


# By name: a layer of each framework, and its inputs.
KINDS = {
    "dense": (lambda: nn.Dense(5), lambda r: nnx.Linear(6, 5, rngs=r), X),
    "general": (
        lambda: nn.DenseGeneral((2, 4)),
        lambda r: nnx.LinearGeneral(6, (2, 4), rngs=r),
        X,
    ),
    "einsum": (
        lambda: nn.Einsum((6, 4), "bi,io->bo"),
        lambda r: nnx.Einsum("bi,io->bo", (6, 4), (4,), rngs=r),
        X,
    ),
    "conv": (
        lambda: nn.Conv(4, (2,)),
        lambda r: nnx.Conv(6, 4, (2,), rngs=r),
        X[None],
    ),
    "transposed": (
        lambda: nn.ConvTranspose(4, (2,)),
        lambda r: nnx.ConvTranspose(6, 4, (2,), rngs=r),
        X[None],
    ),
    "embed": (
        lambda: nn.Embed(7, 5),
        lambda r: nnx.Embed(7, 5, rngs=r),
        jnp.arange(4),
    ),
    "attention": (
        lambda: nn.MultiHeadDotProductAttention(2),
        lambda r: nnx.MultiHeadAttention(2, 6, decode=False, rngs=r),
        X[None],
    ),
    "layer norm": (lambda: nn.LayerNorm(), lambda r: nnx.LayerNorm(6, rngs=r), X),
    "rms norm": (lambda: nn.RMSNorm(), lambda r: nnx.RMSNorm(6, rngs=r), X),
    "batch norm": (
        lambda: nn.BatchNorm(use_running_average=True),
        lambda r: nnx.BatchNorm(6, use_running_average=True, rngs=r),
        X,
    ),
    "prelu": (lambda: nn.PReLU(), lambda r: nnx.PReLU(), X),
}
ON_CROSSBARS = ["dense", "general", "einsum", "conv", "transposed"]


@pytest.mark.nightly
@pytest.mark.parametrize("kind", KINDS)
def test_results_of_each_kind_of_layer_are_stored_in_linen(kind):
    make, _, x = KINDS[kind]
    variables = make().init(jax.random.key(1), x)
    analog = hw.analogize(make(), [hw.Rule("", STORED)])
    right = levels(make().apply(variables, x))
    near(hw.eval_mode(analog).apply(variables, x), right)
    assert hw.plan(analog, variables, x).weights == ()


@pytest.mark.nightly
@pytest.mark.parametrize("kind", KINDS)
def test_results_of_each_kind_of_layer_are_stored_in_nnx(kind):
    _, make, x = KINDS[kind]
    model = make(nnx.Rngs(1))
    right = levels(model(x))
    near(hw.eval_mode(hw.analogize(model, [hw.Rule("", STORED)]))(x), right)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ON_CROSSBARS)
def test_hardware_of_a_whole_model_stores_the_results_of_its_crossbars(kind):
    make, make_nnx, x = KINDS[kind]
    with_dac = hw.IOParameters(inp_bits=5, inp_bound=3.0)
    chip = hw.Hardware(forward=with_dac)
    both = [chip, hw.Hardware(forward=with_dac, outputs=FEW)]
    analogs = [hw.eval_mode(hw.analogize(make(), h)) for h in both]
    variables = analogs[0].init(jax.random.key(1), x)
    ideal, stored = (analog.apply(variables, x) for analog in analogs)
    near(stored, levels(ideal))
    model = make_nnx(nnx.Rngs(1))
    ideal, stored = (hw.eval_mode(hw.analogize(model, h))(x) for h in both)
    near(stored, levels(ideal))


def test_hardware_of_a_whole_model_leaves_norms_and_blocks_alone():
    analog = hw.analogize(Block(), hw.Hardware(outputs=FEW))
    variables = analog.init(jax.random.key(1), X)
    plan = hw.plan(analog, variables, X)
    assert [output.path for output in plan.outputs] == ["down", "up"]
    norm = hw.Rule("norm", hw.Hardware(forward=hw.IOParameters(), outputs=FEW))
    with pytest.raises(ValueError, match=r"Hardware\(outputs=\.\.\.\) alone"):
        hw.analogize(Block(), [norm]).init(jax.random.key(1), X)


def test_attend_is_stored_too():
    class Tied(nn.Module):
        @nn.compact
        def __call__(self, i):
            embed = nn.Embed(7, 5, name="embed")
            return embed.attend(embed(i))

    i = jnp.arange(4)
    variables = Tied().init(jax.random.key(1), i)
    table = np.asarray(variables["params"]["embed"]["embedding"], np.float64)
    right = levels(levels(table[np.arange(4)]) @ table.T)
    analog = hw.analogize(Tied(), [hw.Rule("embed", STORED)])
    near(analog.apply(variables, i), right)

    class NnxTied(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(7, 5, rngs=rngs)

        def __call__(self, i):
            return self.embed.attend(self.embed(i))

    model = NnxTied(nnx.Rngs(0))
    model.embed.embedding[...] = jnp.asarray(table, jnp.float32)
    near(hw.analogize(model, [hw.Rule("embed", STORED)])(i), right)


# Loops, maps and other transforms


def scanned_by_hand(params, x, depth):
    """A stack of residual layers, each storing its own result."""
    y = np.asarray(x, np.float64)
    for layer in range(depth):
        kernel = np.asarray(params["kernel"], np.float64)[layer]
        y = levels(y + levels(np.tanh(y @ kernel), 5), 6)
    return y


class Step(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        y = jnp.tanh(nn.Dense(6, use_bias=False, name="dense")(x))
        return Kept(name="kept")(x, y), None


class Kept(nn.Module):
    """Stands for an activation and a residual sum with names of their own."""

    @nn.compact
    def __call__(self, x, y):
        return Sum(name="sum")(x, Activation(name="activation")(y))


class Activation(nn.Module):
    def __call__(self, y):
        return y


class Sum(nn.Module):
    def __call__(self, x, y):
        return x + y


IN_STACK = [
    hw.Rule("layers/kept/activation", hw.Hardware(outputs=hw.DigitalFormat(bits=5))),
    hw.Rule("layers", hw.Hardware(outputs=hw.DigitalFormat(bits=6))),
]


class Stack(nn.Module):
    remat: bool = False
    jit: bool = False

    @nn.compact
    def __call__(self, x):
        step = nn.remat(Step, prevent_cse=False) if self.remat else Step
        step = nn.jit(step) if self.jit else step
        scan = nn.scan(
            step,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
        )
        return scan(name="layers")(x, None)[0]


@pytest.mark.sampled
@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("jit", [False, True])
def test_layers_of_a_scanned_stack_store_their_own_results(remat, jit):
    analog = hw.analogize(Stack(remat, jit), IN_STACK)
    variables = analog.init(jax.random.key(1), X)
    right = scanned_by_hand(variables["params"]["layers"]["dense"], X, 3)
    near(jax.jit(analog.apply)(variables, X), right)

    def loss(params):
        return analog.apply({"params": params}, X).sum()

    slope = jax.grad(loss)(variables["params"])["layers"]["dense"]["kernel"]

    def plain(kernels):  # straight through: the slopes at the stored numbers
        y = X
        for kernel in kernels:
            a = y @ kernel
            t = jnp.tanh(a)
            t = t + jax.lax.stop_gradient(levels_of(t, 5) - t)
            y = y + t
            y = y + jax.lax.stop_gradient(levels_of(y, 6) - y)
        return y.sum()

    near(slope, jax.grad(plain)(variables["params"]["layers"]["dense"]["kernel"]), 1e-4)


def levels_of(y, bits):
    top = 2 ** (bits - 1) - 1
    step = jnp.abs(y).max(-1, keepdims=True) / top
    return step * jnp.round(y / step)


def test_layers_of_a_mapped_stack_store_their_own_results():
    class Heads(nn.Module):
        @nn.compact
        def __call__(self, x):
            dense = nn.vmap(
                nn.Dense,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=None,
                out_axes=1,
                axis_size=4,
            )
            return dense(5, name="heads")(x)

    analog = hw.analogize(Heads(), [hw.Rule("heads", STORED)])
    variables = analog.init(jax.random.key(1), X)
    near(analog.apply(variables, X), levels(Heads().apply(variables, X)))


def test_a_recurrent_cell_stores_its_carry_at_each_step():
    cell = nn.GRUCell(5)
    model = nn.RNN(cell)
    x = X[None]
    variables = model.init(jax.random.key(1), x)
    analog = hw.analogize(model, [hw.Rule("cell", STORED)])
    step = {"params": variables["params"]["cell"]}
    carry, right = np.zeros((1, 5)), []
    for t in range(3):
        carry, _ = cell.apply(step, jnp.asarray(carry, jnp.float32), x[:, t])
        carry = levels(carry)
        right.append(carry)
    near(analog.apply(variables, x), np.stack(right, axis=1))
    assert [o.path for o in hw.plan(analog, variables, x).outputs] == ["cell"]


def test_a_recurrent_nnx_cell_stores_its_carry_at_each_step():
    cell = nnx.GRUCell(6, 5, rngs=nnx.Rngs(0))
    x = X[None]
    carry, right = jnp.zeros((1, 5)), []
    for t in range(3):
        carry, _ = cell(carry, x[:, t])
        carry = jnp.asarray(levels(carry), jnp.float32)
        right.append(carry)
    analog = hw.analogize(nnx.RNN(cell), [hw.Rule("cell", STORED)])
    near(analog(x), np.stack(right, axis=1))


def test_a_model_inside_another_one_stores_its_own_results():
    rules = [hw.Rule("", STORED), hw.Rule("norm", hw.Hardware(outputs=FEW))]

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            inner = hw.analogize(Block(name="inner"), rules, name="inner")
            return inner(x), nn.LayerNorm(name="norm")(x)

    variables = Outer().init(jax.random.key(1), X)
    found, plain = Outer().apply(variables, X)
    near(found, levels(found))
    near(plain, nn.LayerNorm().apply({"params": variables["params"]["norm"]}, X))
    model = hw.analogize(NnxBlock(nnx.Rngs(0)), rules, name="inner")
    near(model(X), levels(model(X)))
    assert [x.path for x in hw.plan(model).outputs] == ["inner", "inner/norm"]
    layer = nnx.Linear(6, 5, rngs=nnx.Rngs(0))
    chip = hw.Hardware(forward=hw.IOParameters(), outputs=FEW)
    near(hw.analogize(layer, chip, name="layer")(X), levels(layer(X)))


def test_gates_without_calls_of_their_own_belong_to_their_cell():
    model, x = nn.RNN(nn.OptimizedLSTMCell(5)), X[None]
    chip = hw.Hardware(forward=hw.IOParameters(inp_bits=6, inp_bound=2.0))
    with_outputs = hw.Hardware(forward=chip.forward, outputs=FEW)
    with pytest.raises(ValueError, match=r"write Rule\('cell', Hardware\(outputs="):
        hw.analogize(model, with_outputs).init(jax.random.key(1), x)
    with pytest.raises(ValueError, match="whose __call__ is not called"):
        hw.analogize(model, [hw.Rule("cell/ii", STORED)]).init(jax.random.key(1), x)
    analog = hw.analogize(model, [hw.Rule("cell", STORED), chip])
    variables = analog.init(jax.random.key(1), x)
    plan = hw.plan(analog, variables, x)
    assert [output.path for output in plan.outputs] == ["cell"] and len(plan) == 8
    found = analog.apply(variables, x)
    near(found, levels(found))


class Own(nn.Module):
    @nn.compact
    def __call__(self, x):
        self.param("w", nn.initializers.lecun_normal(), (6, 5))
        return jnp.tanh(hw.analog_einsum(self, "w", "bi,io->bo", x))


class NnxOwn(nnx.Module):
    def __init__(self, rngs):
        self.w = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), (6, 5)))

    def __call__(self, x):
        return jnp.tanh(hw.analog_einsum(self, "w", "bi,io->bo", x))


hw.sockets.register(NnxOwn, "w", "bi,io->bo")


def test_a_layer_of_ones_own_stores_what_it_returns_and_not_its_products():
    analog = hw.analogize(Own(), hw.Hardware(forward=hw.IOParameters(), outputs=FEW))
    variables = analog.init(jax.random.key(1), X)
    near(analog.apply(variables, X), levels(Own().apply(variables, X)))
    model = NnxOwn(nnx.Rngs(0))
    found = hw.analogize(model, hw.Hardware(forward=hw.IOParameters(), outputs=FEW))(X)
    near(found, levels(model(X)))


class NnxStack(nnx.Module):
    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=(0,))
        def make(rngs):
            return NnxStep(rngs)

        self.layers = make(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def forward(x, layer):
            return layer(x)

        return forward(x, self.layers)

    def mapped(self, x):
        @nnx.vmap(in_axes=(None, 0))
        def forward(x, layer):
            return layer(x)

        return forward(x, self.layers)


class NnxStep(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(6, 6, use_bias=False, rngs=rngs)

    @nnx.remat
    def __call__(self, x):
        return x + jnp.tanh(self.dense(x))


def test_layers_of_a_scanned_or_mapped_nnx_stack_store_their_own_results():
    model = NnxStack(nnx.Rngs(0))
    kernels = np.asarray(model.layers.dense.kernel[...], np.float64)
    rules = [
        hw.Rule("layers/dense", hw.Hardware(outputs=hw.DigitalFormat(bits=5))),
        hw.Rule("layers", hw.Hardware(outputs=hw.DigitalFormat(bits=6))),
    ]
    analog = hw.analogize(model, rules)

    def layer(y, kernel):
        return levels(y + np.tanh(levels(y @ kernel, 5)), 6)

    right = np.asarray(X, np.float64)
    for kernel in kernels:
        right = layer(right, kernel)
    near(nnx.jit(lambda model, x: model(x))(analog, X), right)
    each = np.stack([layer(np.asarray(X, np.float64), kernel) for kernel in kernels])
    near(analog.mapped(X), each)
    slope = nnx.grad(lambda model: model(X).sum())(analog)
    assert np.abs(np.asarray(slope["layers"]["dense"]["kernel"][...])).min() > 0


def test_a_shared_module_stores_the_results_of_each_of_its_calls():
    class Shared(nn.Module):
        @nn.compact
        def __call__(self, x):
            dense = nn.Dense(6, use_bias=False, name="dense")
            return dense(dense(x))

    variables = Shared().init(jax.random.key(1), X)
    kernel = np.asarray(variables["params"]["dense"]["kernel"], np.float64)
    right = levels(levels(np.asarray(X) @ kernel) @ kernel)
    rule = [hw.Rule("dense", STORED)]
    near(hw.analogize(Shared(), rule).apply(variables, X), right)

    class NnxShared(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(6, 6, use_bias=False, rngs=rngs)
            self.again = self.dense

        def __call__(self, x):
            return self.again(self.dense(x))

    model = NnxShared(nnx.Rngs(0))
    model.dense.kernel[...] = jnp.asarray(kernel, jnp.float32)
    near(hw.analogize(model, [hw.Rule("again|dense", STORED)])(X), right)


def test_a_call_by_super_is_a_part_of_the_call():
    class Halved(nn.Dense):
        def __call__(self, x):
            return super().__call__(x) / 3 + 1

    variables = Halved(5).init(jax.random.key(1), X)
    analog = hw.analogize(Halved(5), [hw.Rule("", STORED)])
    near(analog.apply(variables, X), levels(Halved(5).apply(variables, X)))

    class NnxHalved(nnx.Linear):
        def __call__(self, x):
            return super().__call__(x) / 3 + 1

    model = NnxHalved(6, 5, rngs=nnx.Rngs(0))
    near(hw.analogize(model, [hw.Rule("", STORED)])(X), levels(model(X)))


def test_whole_numbers_stay_and_all_floats_of_a_tree_are_stored():
    class Several(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = nn.Dense(5, name="dense")(x).astype(jnp.bfloat16)
            return {"y": y, "x": (x, None)}, jnp.argmax(y, -1), y > 0

    variables = Several().init(jax.random.key(1), X)
    plain = Several().apply(variables, X)
    found = hw.analogize(Several(), [hw.Rule("", STORED)]).apply(variables, X)
    assert found[0]["y"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(found[1], plain[1])
    np.testing.assert_array_equal(found[2], plain[2])
    near(found[0]["x"][0], levels(X))
    wide = levels(plain[0]["y"].astype(jnp.float32))
    np.testing.assert_array_equal(found[0]["y"], wide.astype(jnp.bfloat16))


def test_noise_of_a_step_is_stored_with_the_result():
    noise = hw.WeightModifierParameter(type="add_normal", std_dev=0.1)
    both = [hw.Hardware(modifier=noise), hw.Hardware(modifier=noise, outputs=FEW)]
    rngs = {"mismatch": jax.random.key(3)}
    analogs = [hw.analogize(Block(), [hw.Rule("up", chip)]) for chip in both]
    variables = analogs[0].init(jax.random.key(1), X)

    def up(analog):
        found = analog.apply(
            variables, X, rngs=rngs, capture_intermediates=True, mutable=True
        )
        return found[1]["intermediates"]["up"]["__call__"][0]

    near(up(analogs[1]), levels(up(analogs[0])))
    found = []
    for chip in both:
        dense = nnx.Linear(6, 5, rngs=nnx.Rngs(0))
        found.append(hw.analogize(dense, chip, rngs=nnx.Rngs(mismatch=3))(X))
    near(found[1], levels(found[0]))


def test_nothing_is_compiled_again():
    analog, variables = linen()
    call = jax.jit(lambda variables, x: analog.apply(variables, x))
    for seed in range(3):
        call(variables, jax.random.normal(jax.random.key(seed), (3, 6)))
    assert call._cache_size() == 1
    model = nnx_model()
    traced = []

    @nnx.jit
    def run(model, x):
        traced.append(1)
        return model(x)

    for _ in range(3):
        run(model, X)
    assert len(traced) == 1


def test_a_pickled_model_stores_the_same():
    import cloudpickle

    model = nnx_model()
    again = pickle.loads(cloudpickle.dumps(model))
    np.testing.assert_array_equal(again(X), model(X))


# What is refused


def test_a_rule_for_what_is_never_called_is_refused():
    class Encoder(nn.Module):
        def setup(self):
            self.dense = nn.Dense(4)

        def encode(self, x):
            return self.dense(x)

    class Outer(nn.Module):
        def setup(self):
            self.encoder = Encoder()

        def __call__(self, x):
            return self.encoder.encode(x)

    analog = hw.analogize(Outer(), [hw.Rule("encoder", STORED)])
    with pytest.raises(ValueError, match="whose __call__ is not called"):
        analog.init(jax.random.key(0), X)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ([hw.Rule("nowhere", STORED)], "matches no called module"),
        ([hw.Rule(".*", STORED), hw.Rule("norm", STORED)], "wins nowhere"),
    ],
)
def test_a_rule_without_effect_is_refused(rules, said):
    with pytest.raises(ValueError, match=said):
        hw.analogize(Block(), rules).init(jax.random.key(0), X)
    with pytest.raises(ValueError, match=said):
        hw.analogize(NnxBlock(nnx.Rngs(0)), rules)


def test_parameters_and_frozen_weights_have_no_results():
    with pytest.raises(ValueError, match="a parameter returns nothing"):
        hw.Rule(params="w", hardware=STORED)
    with pytest.raises(ValueError, match="leave weights digital"):
        hw.Rule("dense", STORED, frozen=True)
    raw = hw.Hardware(mismatch=hw.MismatchParameter(type="mult_normal", std_dev=0.1))
    raw = hw.Rule(
        params=".*kernel", hardware=hw.Hardware(mismatch=raw.mismatch, outputs=FEW)
    )
    with pytest.raises(ValueError, match="outputs, which only a layer can have"):
        hw.analogize(Block(), [raw]).init(jax.random.key(0), X)


class Counting(nn.Module):
    @nn.compact
    def __call__(self, x):
        nn.Dense(2)(x)
        return jnp.argmax(x, -1)


class Complex(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x) * 1j


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Counting(), "returns no floating-point arrays"),
        (Complex(), "returns complex64"),
    ],
)
def test_results_that_cannot_be_stored_are_refused(model, said):
    variables = model.init(jax.random.key(0), X)
    with pytest.raises(ValueError, match=said):
        hw.analogize(model, [hw.Rule("", STORED)]).apply(variables, X)


def test_constants_of_digital_units_stay_static():
    analog = hw.analogize(
        nn.Dense(3),
        hw.Hardware(
            forward=hw.IOParameters(inp_bits=8, inp_bound=1.0),
            outputs=hw.DigitalFormat(full_scale=1.0),
        ),
    )
    variables = analog.init(jax.random.key(0), X)
    traced = hw.with_constants(analog, {"outputs.full_scale": 2.0})
    with pytest.raises(ValueError, match="outputs is not used here|stays static"):
        traced.apply(variables, X)


class Value(nn.Module):
    """Returns a number for each example."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(x)[..., 0]


class NnxValue(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(6, 1, rngs=rngs)

    def __call__(self, x):
        return self.dense(x)[..., 0]


def test_numbers_of_examples_need_a_full_scale():
    said = r"the model \((Nnx)?Value\) returns float32\[3\].*full_scale=\.\.\."
    analog = hw.analogize(Value(), [hw.Rule("", STORED)])
    variables = analog.init(jax.random.key(0), X)
    for refused in (analog.apply, functools.partial(hw.assert_active, analog)):
        with pytest.raises(InputError, match=said):
            refused(variables, X)
    with pytest.raises(InputError, match=said):
        hw.analogize(NnxValue(nnx.Rngs(0)), [hw.Rule("", STORED)])(X)
    rules = [hw.Rule("", hw.Hardware(outputs=hw.DigitalFormat(full_scale=2.0)))]
    analog = hw.analogize(Value(), rules)
    others = X.at[1:].mul(50.0)
    found = [analog.apply(variables, x)[0] for x in (X, others)]
    assert found[0] == found[1]


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_a_vector_of_a_single_example_has_its_full_scale(framework):
    if framework == "nnx":
        call = hw.analogize(nnx.Linear(6, 5, rngs=nnx.Rngs(0)), [hw.Rule("", STORED)])
    else:
        analog = hw.analogize(nn.Dense(5), [hw.Rule("", STORED)])
        variables = analog.init(jax.random.key(0), X)
        call = functools.partial(analog.apply, variables)
    right = call(X)
    near(call(X[1]), right[1])
    near(jax.vmap(call)(X), right)


# Proofs


def models():
    analog, variables = linen()
    return {"linen": (analog, variables, X), "nnx": (nnx_model(), None, X)}


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_results_are_proved(framework):
    found = hw.assert_active(*models()[framework])
    for path in ("the model", "norm", "up", "down"):
        assert [row[1] for row in found.rows if row[0] == path] == [
            "outputs",
            "outputs, levels",
        ]


def wrong_step(self, y):
    return hw.periphery.digital_format.to_integers(y, self.bits - 1, self.full_scale)


@pytest.mark.sampled
@pytest.mark.parametrize("framework", ["linen", "nnx"])
@pytest.mark.parametrize(
    ("store", "said"),
    [
        (lambda self, y: y, "norm: outputs: results are stored as they are"),
        (wrong_step, "norm: outputs, levels: they are off"),
        (lambda self, y: jnp.clip(y, -1, 1), "norm: outputs, levels: they are off"),
    ],
)
def test_a_format_that_does_nothing_or_something_else_is_found(
    framework, store, said, monkeypatch
):
    given = models()[framework]
    monkeypatch.setattr(hw.DigitalFormat, "store", store)
    with pytest.raises(ValueError, match=said):
        hw.assert_active(*given)


def test_a_module_that_is_never_seen_is_found(monkeypatch):
    given = models()["linen"]
    monkeypatch.setattr("hwtrain._flax.linen.root.returns", lambda *_: False)
    with pytest.raises(ValueError, match="norm: outputs: no call was seen"):
        hw.assert_active(*given)


def test_narrow_results_and_results_on_the_levels_are_proved():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = nn.LayerNorm(name="norm", dtype=jnp.bfloat16)(x)
            return Activation(name="again")(y)

    static = hw.Hardware(outputs=hw.DigitalFormat(full_scale=2.0))
    analog = hw.analogize(Twice(), [hw.Rule("norm|again", static)])
    variables = analog.init(jax.random.key(1), X)
    hw.assert_active(analog, variables, X)


def test_modules_that_are_alike_are_listed():
    analog = hw.analogize(NnxBlock(nnx.Rngs(0)), hw.Hardware(outputs=FEW))
    for text in (str(hw.inspect(analog)), str(hw.plan(analog))):
        assert "│ down   │ Linear" in text and "│ up     │ Linear" in text
        assert "the model's hardware has outputs alone" in text


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_results_have_rows_in_inspect(framework):
    analog, variables, x = models()[framework]
    found = hw.inspect(analog, variables, *([x] if framework == "linen" else []))
    rows = {row["module"]: row for row in found.results}
    assert rows["the model"]["stored as"] == "8 bits, full scale 4"
    assert rows["norm"] == {
        "module": "norm",
        "layer": "LayerNorm",
        "stored as": "4 bits, full scale of each vector",
        "by": "Rule('norm')",
    }
    assert "8 bits, full scale 4" in str(found)


# Meshes

ON_A_MESH = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from flax import linen as nn, nnx
import hwtrain as hw

class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.relu(nn.Dense(16, name="up")(nn.LayerNorm(name="norm")(x)))
        return x + nn.Dense(8, name="down")(y)

class NnxModel(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.up = nnx.Linear(8, 16, rngs=rngs)
        self.down = nnx.Linear(16, 8, rngs=rngs)
    def __call__(self, x):
        return x + self.down(nnx.relu(self.up(self.norm(x))))

few = hw.Hardware(outputs=hw.DigitalFormat(bits=5))
chip = hw.Hardware(
    mapping=hw.MappingParameter(max_input_size=4), outputs=few.outputs,
    forward=hw.IOParameters(inp_bits=8, inp_bound=2.0))
rules = [hw.Rule("norm|", few), hw.Rule("up|down", chip)]
analog = hw.analogize(Model(), rules)
x = jax.random.normal(jax.random.key(0), (16, 8))
params = analog.init(jax.random.key(1), x)["params"]
model = hw.analogize(NnxModel(nnx.Rngs(0)), rules)
graph, state = nnx.split(model)

def linen(params, x):
    return analog.apply({"params": params}, x)

def of_nnx(state, x):
    return nnx.merge(graph, state)(x)

for call, values in ((linen, params), (of_nnx, state)):
    step = jax.jit(jax.value_and_grad(lambda v, x: jnp.square(call(v, x)).mean()))
    expected, right = step(values, x), jax.jit(call)(values, x)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((4, 2), ("d", "m"), axis_types=(kind,) * 2)
        for spec in (P("d"), P(("d", "m"))):
            with jax.set_mesh(mesh):
                one = NamedSharding(mesh, P())
                spread = jax.device_put(values, one)
                given = jax.device_put(x, NamedSharding(mesh, spec))
                found, here = step(spread, given), jax.jit(call)(spread, given)
            np.testing.assert_allclose(here, right, rtol=1e-5, atol=1e-5)
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
few = hw.DigitalFormat(bits=5)
mesh = jax.make_mesh((4, 2), ("d", "m"), axis_types=(AxisType.Explicit,) * 2)
for spec in (P("d", "m"), P(None, ("d", "m"))):
    with jax.set_mesh(mesh):
        given = jax.device_put(x, NamedSharding(mesh, spec))
        np.testing.assert_array_equal(jax.jit(few.store)(given), jax.jit(few.store)(x))
print("equal")
"""


@pytest.mark.nightly
@pytest.mark.optimised
def test_results_on_a_mesh_are_those_on_one_device(on_devices):
    on_devices(8, ON_A_MESH)
