"""User-defined layers, with public names only, have all that built-in layers have."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw

# User-defined layers, in both frameworks.


class LinenHeads(nn.Module):
    """Projects to heads, by an einsum."""

    @nn.compact
    def __call__(self, x):
        self.param("w", nn.initializers.lecun_normal(), (6, 2, 4))
        return hw.analog_einsum(self, "w", "...e,ehd->...hd", x)


class NnxHeads(nnx.Module):
    """The same."""

    def __init__(self, rngs):
        self.w = nnx.Param(nn.initializers.lecun_normal()(rngs.params(), (6, 2, 4)))

    def __call__(self, x):
        return hw.analog_einsum(self, "w", "...e,ehd->...hd", x)


hw.sockets.register(NnxHeads, "w", "...e,ehd->...hd")


class LinenExperts(nn.Module):
    """Three matrices side by side, each `[out, in]`, by a dot_general; by `setup`."""

    def setup(self):
        self.w = self.param("w", nn.initializers.lecun_normal(), (3, 4, 6))

    def __call__(self, x):
        axes = ((2,), (2,)), ((1,), (0,))
        return hw.analog_dot_general(self, "w", x, axes)


class NnxExperts(nnx.Module):
    """The same."""

    def __init__(self, rngs):
        self.w = nnx.Param(nn.initializers.lecun_normal()(rngs.params(), (3, 4, 6)))

    def __call__(self, x):
        axes = ((2,), (2,)), ((1,), (0,))
        return hw.analog_dot_general(self, "w", x, axes)


hw.sockets.register(NnxExperts, "w", "bgi,goi->gbo")


# Layers of another package, without any reference to hwtrain.


class LinenField(nn.Module):
    """Has an attribute that multiplies."""

    dot_general: object = None

    @nn.compact
    def __call__(self, x):
        w = self.param("w", nn.initializers.lecun_normal(), (6, 4))
        multiply = self.dot_general or jax.lax.dot_general
        return multiply(x, w, (((x.ndim - 1,), (0,)), ((), ())))


class NnxField(nnx.Module):
    """The same, with an einsum."""

    def __init__(self, rngs):
        self.w = nnx.Param(nn.initializers.lecun_normal()(rngs.params(), (6, 4)))
        self.multiply = jnp.einsum

    def __call__(self, x):
        return self.multiply("...i,io->...o", x, self.w[...])


hw.sockets.register(LinenField, "w", "...i,io->...o", dot_general="dot_general")
hw.sockets.register(NnxField, "w", "...i,io->...o", einsum="multiply")


class LinenTheirs(nn.Module):
    """Multiplies by an operator, by a weight whose shape a field says."""

    features: int = 4
    use_bias: bool = False

    @nn.compact
    def __call__(self, x):
        w = self.param("w", nn.initializers.lecun_normal(), (6, self.features))
        if not self.use_bias:
            return x @ w
        return x @ w + self.param("bias", nn.initializers.ones, (self.features,))


class NnxTheirs(nnx.Module):
    """The same."""

    def __init__(self, rngs):
        self.w = nnx.Param(nn.initializers.lecun_normal()(rngs.params(), (6, 4)))

    def __call__(self, x):
        return x @ self.w[...]


def rewritten(module, x):
    y = hw.analog_einsum(module, "w", "...i,io->...o", x)
    if not getattr(module, "use_bias", False):
        return y
    return y + module.get_variable("params", "bias")


for theirs in (LinenTheirs, NnxTheirs):
    hw.sockets.register(theirs, "w", lambda module: "...i,io->...o", call=rewritten)

LAYERS = {
    "einsum": (LinenHeads, NnxHeads, "bse,ehd->bshd", (2, 3, 6)),
    "dot_general": (LinenExperts, NnxExperts, "bgi,goi->gbo", (5, 3, 6)),
    "field": (LinenField, NnxField, "bi,io->bo", (5, 6)),
    "call": (LinenTheirs, NnxTheirs, "bi,io->bo", (5, 6)),
}


class LinenNet(nn.Module):
    """A user's layer among others."""

    layer: nn.Module

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="head")(jnp.tanh(self.layer(x)))


class NnxNet(nnx.Module):
    """The same."""

    def __init__(self, layer, features, rngs):
        self.layer, self.head = layer, nnx.Linear(features, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(jnp.tanh(self.layer(x)))


class Model:
    """An analog model of either framework, with its parameters."""

    def __init__(self, framework, name, hardware, *, root=False):
        linen, of_nnx, self.equation, shape = LAYERS[name]
        self.x = jax.random.normal(jax.random.key(3), shape)
        self.layer = "" if root else "layer/"
        self.nnx = framework == "nnx"
        if self.nnx:
            plain = of_nnx(nnx.Rngs(0))
            features = plain(self.x).shape[-1]
            plain = plain if root else NnxNet(plain, features, nnx.Rngs(1))
            streams = nnx.Rngs(mismatch=0)
            self.analog = hw.analogize(plain, hardware, rngs=streams)
            self.variables = None
            self.plan = hw.plan(self.analog, self.x)
        else:
            plain = linen() if root else LinenNet(linen())
            self.analog = hw.analogize(plain, hardware)
            self.variables = self.analog.init(jax.random.key(0), self.x)
            self.plan = hw.plan(self.analog, self.variables, self.x)
        self.plain = plain

    @property
    def params(self):
        if self.nnx:
            return nnx.to_pure_dict(nnx.state(self.analog, nnx.Param))
        return self.variables["params"]

    def __call__(self, seed=0, mode="train"):
        set_mode = {
            "train": hw.train_mode,
            "chip": hw.chip_mode,
            "eval": hw.eval_mode,
        }[mode]
        if self.nnx:
            model = nnx.clone(set_mode(self.analog))
            model.analog_stream = nnx.RngStream(jax.random.key(seed), tag="mismatch")
            return model(self.x)
        rngs = {"mismatch": jax.random.key(seed)}
        return set_mode(self.analog).apply(self.variables, self.x, rngs=rngs)

    @property
    def given(self):
        return (self.variables, self.x) if not self.nnx else (None, self.x)


BOTH = pytest.mark.parametrize("framework", ["linen", "nnx"])
ALL = pytest.mark.parametrize("name", LAYERS)
CONVERTERS = hw.Hardware(
    input_range=hw.InputRangeParameter(init_value=1.5),
    forward=hw.IOParameters(inp_bits=5, out_bits=6, out_bound=3.0),
    mapping=hw.MappingParameter(weight_scaling_omega=1.0),
)


def in_numpy(x, w, equation):
    """Returns what one tile for each matrix computes, in float64."""
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    inputs, kernel, _ = equation.replace("->", ",").split(",")
    each = tuple(i for i, c in enumerate(kernel) if c not in inputs or c != "g")
    scale = np.abs(w).max(axis=each, keepdims=True)
    step = 2 / (2**5 - 2)
    x = np.clip(np.round(x / 1.5 / step) * step, -1, 1)
    y = np.einsum(equation, x, w / scale)
    step = 2 * 3.0 / (2**6 - 2)
    y = np.clip(np.round(y / step) * step, -3.0, 3.0)
    # The axes of the stack lead in array and result.
    return y * 1.5 * scale.reshape(-1, *[1] * (y.ndim - 1)), step * 1.5 * scale.max()


@BOTH
@ALL
def test_without_hardware_it_is_the_plain_product(framework, name):
    model = Model(framework, name, hw.Hardware(), root=True)
    expected = np.einsum(model.equation, model.x, model.params["w"])
    plain = model.plain(model.x) if model.nnx else None
    if plain is None:
        plain = model.plain.apply({"params": model.params}, model.x)
    np.testing.assert_allclose(plain, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model(mode="eval"), expected, rtol=1e-5, atol=1e-6)


@BOTH
@ALL
def test_with_converters_it_computes_what_numpy_does(framework, name):
    model = Model(framework, name, CONVERTERS, root=True)
    expected, step = in_numpy(model.x, model.params["w"], model.equation)
    found = np.asarray(model(mode="eval"))
    # A sum that lies between two levels may be rounded either way by float32.
    off = np.abs(found - expected)
    assert off.max() < 1.01 * step and np.mean(off > 1e-4) < 0.05
    plain = np.einsum(model.equation, model.x, model.params["w"])
    assert np.abs(found - plain).max() > 0.1


@pytest.mark.sampled(4)
@BOTH
@ALL
@pytest.mark.parametrize(
    ("part", "mode"),
    [
        ({"modifier": hw.WeightModifierParameter(type="add_normal", std_dev=0.1)}, 0),
        ({"forward": hw.IOParameters(out_noise=0.2)}, 1),
    ],
)
def test_its_noise_has_the_configured_deviation(framework, name, part, mode):
    mapping = hw.MappingParameter(weight_scaling_omega=1.0)
    hardware = hw.Hardware(mapping=mapping, **part)
    model = Model(framework, name, hardware, root=True)
    w, x = np.asarray(model.params["w"]), np.asarray(model.x)
    clean = np.einsum(model.equation, x, w)
    mode = ("train", "chip")[mode]
    draws = np.stack([model(seed, mode) for seed in range(40)]) - clean
    kernel = model.equation.split(",")[1].split("->")[0]
    each = tuple(i for i, c in enumerate(kernel) if c != "g")
    scale = np.abs(w).max(axis=each, keepdims=True)
    if mode == "train":  # noise of each weight, relative to the largest of its matrix
        spread = np.broadcast_to((0.1 * scale) ** 2, w.shape)
        expected = np.sqrt(np.einsum(model.equation, x**2, spread))
    else:
        expected = 0.2 * scale.reshape(-1, *[1] * (clean.ndim - 1))
    ratio = np.mean((draws / expected) ** 2)
    # From 40 draws. All inputs of a draw share the weights, so there are at least 40
    # times as many independent numbers as outputs.
    columns = w.size // 6
    assert abs(ratio - 1) < 5 * np.sqrt(2 / (40 * columns))
    assert (np.abs(draws[0] - draws[1]) > 1e-6).mean() > 0.9


@BOTH
@ALL
def test_both_frameworks_draw_the_same_weights(framework, name):
    noise = hw.WeightModifierParameter(type="add_normal", std_dev=0.1)
    models = [
        Model(each, name, hw.Hardware(modifier=noise), root=True)
        for each in ("linen", "nnx")
    ]
    w = models[0].params["w"]
    models[1].analog.w[...] = w
    ours = [model(7) for model in models]
    # NNX takes the first key of its stream.
    key = nnx.RngStream(jax.random.key(7), tag="mismatch")()
    linen = models[0].analog.apply(
        models[0].variables, models[0].x, rngs={"mismatch": key}
    )
    np.testing.assert_allclose(linen, ours[1], rtol=1e-5, atol=1e-6)


FULL = hw.Hardware(
    modifier=hw.WeightModifierParameter(type="add_normal", std_dev=0.05),
    clip=hw.WeightClipParameter(type="fixed_value", fixed_value=1.0),
    input_range=hw.InputRangeParameter(),
    forward=hw.IOParameters(inp_bits=8, out_bits=8, out_bound=10.0, out_noise=0.05),
    mapping=hw.MappingParameter(max_input_size=4, weight_scaling_omega=1.0),
    mismatch=hw.MismatchParameter(type="mult_normal", std_dev=0.1),
    converter=hw.SinglePairConductanceConverter(g_max=25.0),
)


@BOTH
@ALL
def test_it_is_planned_inspected_adopted_and_stripped(framework, name):
    model = Model(framework, name, FULL)
    weight = model.plan["layer/w"]
    inputs, kernel, output = model.equation.replace("->", ",").split(",")
    assert {kernel[axis] for axis in weight.rows} == {*inputs} & {*kernel} - {*output}
    assert {kernel[axis] for axis in weight.columns} == {*kernel} - {*inputs}
    table = hw.inspect(model.analog, *model.given)
    (row,) = (row for row in table.rows if row["weight"] == "layer/w")
    assert "add_normal 0.05" in row["weight noise"] and row["bits"] == "DAC 8, ADC 8"
    leaves = {"w_input_range", "w_probe", "w_mapping_scale"}
    assert {*model.params["layer"]} == {"w", *leaves}
    stripped = hw.strip(model.params, model.plan)
    assert {*stripped["layer"]} == {"w"}
    if not model.nnx:
        adopted = hw.adopt(model.analog, stripped, model.x)
        assert jax.tree.structure(adopted) == jax.tree.structure(model.params)
        equal = jax.tree.map(lambda a, b: bool((a == b).all()), adopted, model.params)
        assert all(jax.tree.leaves(equal))


@pytest.mark.sampled(2)
@BOTH
@ALL
def test_every_effect_is_active_and_its_chips_vary(framework, name):
    model = Model(framework, name, FULL)
    found = str(hw.assert_active(model.analog, *model.given))
    for effect in ("modifier", "input_range", "mismatch", "out_noise"):
        assert f"layer/w: {effect}" in found, found
    batch = model.equation.split("->")[1].index("b")
    chips = hw.evaluate.population(
        model.analog,
        model.variables,
        [(model.x,)],
        lambda y: y.mean([i for i in range(y.ndim) if i != batch]),
        chips=6,
        key=jax.random.key(0),
    )
    assert chips.values.std() > 1e-3


@pytest.mark.sampled(4)
@BOTH
@ALL
def test_it_is_exported_and_loaded(framework, name, tmp_path):
    model = Model(framework, name, FULL)
    what = model.analog if model.nnx else model.variables
    path = hw.export(tmp_path / "chip", what, model.plan, chip_seed=2)
    checkpoint = hw.load(path)
    # The first three rows are a tile; its largest weight is at 25 microsiemens.
    inputs, kernel, output = model.equation.replace("->", ",").split(",")
    columns = "".join(c for c in kernel if c not in inputs)
    stack = "".join(c for c in kernel if c in inputs and c in output)
    (row,) = {*kernel} - {*columns, *stack}
    w = np.einsum(f"{kernel}->{stack}{row}{columns}", model.params["layer"]["w"])
    w = w.reshape(*w.shape[: len(stack)], 6, -1)[..., :3, :]
    tile = checkpoint.conductances("layer/w")[0][0]
    assert tile.g_pos.shape == w.shape
    largest = np.abs(w).max(axis=(-1, -2), keepdims=True)
    found = (tile.g_pos - tile.g_neg) * tile.mapping_scale / tile.params["scale_ratio"]
    np.testing.assert_allclose(found, w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(tile.g_pos - tile.g_neg, 25 * w / largest, atol=1e-3)
    if model.nnx:
        again = checkpoint.into(model.analog)
        chip = checkpoint.into(model.analog, chip=2)
        ours, loaded, of_chip = (
            hw.eval_mode(nnx.clone(each))(model.x)
            for each in (model.analog, again, chip)
        )
    else:
        ours, loaded, of_chip = (
            hw.eval_mode(model.analog).apply({"params": params}, model.x)
            for params in (model.params, checkpoint.params, checkpoint.chip(2))
        )
    np.testing.assert_array_equal(ours, loaded)
    assert np.abs(ours - of_chip).max() > 1e-3


@pytest.mark.sampled(3)
@BOTH
@ALL
def test_it_learns_with_its_ranges_and_stays_clipped(framework, name):
    model = Model(framework, name, FULL)
    target = jnp.ones(model(mode="eval").shape)
    optimizer = hw.optim.hardware_aware(optax.adam(3e-2), model.plan)

    def loss_of(y):
        return ((y - target) ** 2).mean()

    before, losses = model.params["layer"], []
    if model.nnx:
        analog = hw.train_mode(model.analog)
        state = nnx.Optimizer(analog, optimizer, wrt=nnx.Param)

        @nnx.jit
        def step(analog, state):
            loss, grads = nnx.value_and_grad(lambda m: loss_of(m(model.x)))(analog)
            state.update(analog, grads)
            return loss

        losses = [float(step(analog, state)) for _ in range(15)]
    else:
        state = optimizer.init(model.params)

        @jax.jit
        def step(params, state, key):
            def loss(params):
                rngs = {"mismatch": key}
                return loss_of(
                    model.analog.apply({"params": params}, model.x, rngs=rngs)
                )

            value, grads = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state, value

        for i in range(15):
            params, state, value = step(model.params, state, jax.random.key(i))
            model.variables = {"params": params}
            losses.append(float(value))
    assert losses[-1] < 0.7 * losses[0]
    after = model.params["layer"]
    assert (np.asarray(after["w_input_range"]) != before["w_input_range"]).all()
    weight = model.plan["layer/w"]
    matrix = np.asarray(weight.to_matrix(after["w"]))
    scale = np.repeat(after["w_mapping_scale"], weight.row_sizes, axis=-2)
    assert (np.abs(matrix) <= scale * (1 + 1e-6)).all()


NOISY = hw.Hardware(forward=hw.IOParameters(out_noise=0.2))


class Square(nn.Module):
    """Maps a vector to one of the same size."""

    @nn.compact
    def __call__(self, carry, _=None):
        self.param("w", nn.initializers.orthogonal(), (6, 6))
        y = hw.analog_einsum(self, "w", "...i,io->...o", carry)
        return y, y


class NnxSquare(nnx.Module):
    """The same."""

    def __init__(self, rngs):
        self.w = nnx.Param(nn.initializers.orthogonal()(rngs.params(), (6, 6)))

    def __call__(self, x):
        return hw.analog_einsum(self, "w", "...i,io->...o", x)


hw.sockets.register(NnxSquare, "w", "...i,io->...o")
X = jax.random.normal(jax.random.key(5), (6,))


class OverSteps(nn.Module):
    """One layer at each step of a loop, or a layer of its own for each."""

    own: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, x):
        variables = {"params": 0} if self.own else {}
        scan = nn.scan(
            nn.remat(Square) if self.remat else Square,
            variable_axes=variables,
            variable_broadcast=False if self.own else "params",
            split_rngs={"params": self.own},
            length=4,
        )
        return scan(name="steps")(x, None)[1]


@pytest.mark.parametrize("own", [False, True])
def test_each_step_of_a_linen_loop_draws_its_own_noise(own):
    analog = hw.analogize(OverSteps(own), NOISY)
    variables = analog.init(jax.random.key(0), X)
    shape = variables["params"]["steps"]["w"].shape
    assert shape == ((4, 6, 6) if own else (6, 6))
    noisy = analog.apply(variables, X, rngs={"mismatch": jax.random.key(1)})
    w = jnp.broadcast_to(variables["params"]["steps"]["w"], (4, 6, 6))
    inputs = jnp.concatenate([X[None], noisy[:-1]])
    noise = noisy - jnp.einsum("si,sio->so", inputs, w)
    each = np.corrcoef(noise)[np.triu_indices(4, 1)]
    assert np.abs(noise).min(axis=1).max() > 0
    assert np.abs(each).max() < 0.99


def test_remat_computes_the_same_noise_again():
    def gradient(remat):
        analog = hw.analogize(OverSteps(remat=remat), NOISY)
        variables = analog.init(jax.random.key(0), X)

        def loss(variables):
            y = analog.apply(variables, X, rngs={"mismatch": jax.random.key(1)})
            return (y**3).sum()

        return jax.jit(jax.grad(loss))(variables)["params"]["steps"]["w"]

    np.testing.assert_allclose(gradient(True), gradient(False), rtol=1e-5, atol=1e-5)


class NnxOverSteps(nnx.Module):
    """A layer of its own for each step."""

    def __init__(self, rngs):
        self.steps = nnx.split_rngs(splits=4)(nnx.vmap(NnxSquare))(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
        def run(x, layer):
            y = layer(x)
            return y, y

        return run(x, self.steps)[1]


def test_each_layer_of_an_nnx_loop_draws_its_own_noise():
    analog = hw.analogize(NnxOverSteps(nnx.Rngs(0)), NOISY, rngs=nnx.Rngs(mismatch=1))
    weight = hw.plan(analog)["steps/w"]
    assert weight.stack == (4,) and weight.rows == (1,)
    noisy = nnx.jit(lambda model, x: model(x))(analog, X)
    inputs = jnp.concatenate([X[None], noisy[:-1]])
    noise = noisy - jnp.einsum("si,sio->so", inputs, analog.steps.w[...])
    assert np.abs(np.corrcoef(noise)[np.triu_indices(4, 1)]).max() < 0.99
    assert np.abs(noise).min(axis=1).max() > 0


@pytest.mark.sampled(3)
@pytest.mark.parametrize("inside", ["jit", "vmap", "remat"])
@BOTH
def test_inside_transformations_of_the_root(framework, inside):
    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x):
            if inside == "vmap":
                mapped = nn.vmap(
                    Square, variable_axes={"params": None}, split_rngs={"params": False}
                )
                return mapped(name="layer")(x)[0]
            lifted = {"jit": nn.jit, "remat": nn.remat}[inside]
            return lifted(Square)(name="layer")(x)[0]

    class OfNnx(nnx.Module):
        def __init__(self, rngs):
            self.layer = NnxSquare(rngs)

        def __call__(self, x):
            if inside == "vmap":
                return nnx.vmap(lambda m, x: m(x), in_axes=(None, 0))(self.layer, x)
            lifted = {"jit": nnx.jit, "remat": nnx.remat}[inside]
            return lifted(lambda m, x: m(x))(self.layer, x)

    x = jnp.stack([X, X])
    if framework == "linen":
        analog = hw.analogize(Linen(), NOISY)
        variables = analog.init(jax.random.key(0), x)
        call = functools.partial(analog.apply, variables, x)
        first, second, again = (
            call(rngs={"mismatch": jax.random.key(i)}) for i in (0, 1, 0)
        )
        np.testing.assert_array_equal(first, again)
    else:
        analog = hw.analogize(OfNnx(nnx.Rngs(0)), NOISY, rngs=nnx.Rngs(mismatch=0))
        first, second = analog(x), analog(x)
    assert (np.abs(first - second) > 1e-6).all()
    assert (np.abs(first[0] - first[1]) > 1e-6).all()  # each row is a read of its own


def test_two_calls_of_one_layer_are_two_reads():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = Square(name="layer")
            return jnp.stack([layer(x)[0], layer(x)[0]])

    analog = hw.analogize(Twice(), NOISY)
    variables = analog.init(jax.random.key(0), X)
    first, second = analog.apply(variables, X, rngs={"mismatch": jax.random.key(1)})
    assert (np.abs(first - second) > 1e-6).all()


# Refused products, and layers that stay digital.


def stating(equation, shape):
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.param("w", nn.initializers.ones, shape)
            return hw.analog_einsum(self, "w", equation, x)

    return Layer()


def of_nnx(equation, shape):
    class Layer(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.ones(shape))

        def __call__(self, x):
            return hw.analog_einsum(self, "w", equation, x)

    hw.sockets.register(Layer, "w", equation)
    return Layer()


@BOTH
@pytest.mark.parametrize(
    ("equation", "shapes", "why"),
    [
        ("bi,ij->b", ((2, 3), (3, 4)), "sums the kernel alone over 'j'"),
        ("bi,i...->b...", ((2, 3), (3, 4)), "an ellipsis in the kernel"),
        ("bi,ii->b", ((2, 3), (3, 3)), "repeats an index in one operand"),
        ("gi,ig->g", ((2, 3), (3, 2)), "over 'g', which must lead"),
        ("bi,i->bi", ((2, 3), (3,)), "sums over no axis"),
    ],
)
def test_what_no_crossbar_computes_is_refused_by_name(framework, equation, shapes, why):
    x, shape = jnp.ones(shapes[0]), shapes[1]
    linen = framework == "linen"
    plain = stating(equation, shape) if linen else of_nnx(equation, shape)
    expected = np.einsum(equation, np.ones(shapes[0]), np.ones(shape))

    def called(hardware):
        analog = hw.analogize(plain, hardware)
        if not linen:
            return hw.eval_mode(analog)(x)
        return hw.eval_mode(analog).init_with_output(jax.random.key(0), x)[0]

    with pytest.raises(ValueError, match=rf"w cannot lie on a crossbar.*{why}.*Rule"):
        called(CONVERTERS)
    np.testing.assert_allclose(called([hw.Rule("", None)]), expected)


def test_a_root_that_a_rule_keeps_digital_is_called():
    plain = nnx.Linear(6, 4, rngs=nnx.Rngs(0))
    analog = hw.analogize(plain, [hw.Rule("", None)])
    np.testing.assert_array_equal(analog(X), plain(X))


@pytest.mark.parametrize(
    ("axes", "why"),
    [
        ((((1,), (1,)), ((0,), (2,))), "batch axes that do not lead"),
        ((((), ()), ((), ())), "sums over no axis"),
    ],
)
def test_a_dot_general_that_no_crossbar_computes_is_refused(axes, why):
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.param("w", nn.initializers.ones, (4, 3, 2))
            return hw.analog_dot_general(self, "w", x, axes)

    x = jnp.ones((2, 3))
    assert Layer().init_with_output(jax.random.key(0), x)[0].shape
    with pytest.raises(ValueError, match=why):
        hw.analogize(Layer(), CONVERTERS).init(jax.random.key(0), x)


def test_axes_of_a_dot_general_are_paired_in_any_order():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.param("w", nn.initializers.normal(), (2, 4, 5, 3))
            numbers = ((1, 3), (3, 1)), ((2,), (0,))
            return hw.analog_dot_general(self, "w", x, numbers)

    x = jax.random.normal(jax.random.key(1), (6, 3, 2, 4))
    tiled = hw.MappingParameter(max_input_size=5, max_output_size=2)
    ideal = hw.Hardware(forward=hw.IOParameters(out_bound=1e6), mapping=tiled)
    y, variables = hw.analogize(Layer(), ideal).init_with_output(jax.random.key(0), x)
    analog = hw.eval_mode(hw.analogize(Layer(), ideal))
    w = variables["params"]["w"]
    for found in (y, analog.apply(variables, x)):
        expected = np.einsum("aigj,gjoi->gao", x, w)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_an_array_that_is_used_in_two_ways_is_refused():
    class Tied(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.param("w", nn.initializers.ones, (6, 6))
            y = hw.analog_einsum(self, "w", "...i,io->...o", x)
            return hw.analog_einsum(self, "w", "...o,io->...i", y)

    with pytest.raises(ValueError, match="w cannot lie on.*multiplied by in two ways"):
        hw.analogize(Tied(), CONVERTERS).init(jax.random.key(0), X)


def test_inputs_of_several_ranks_are_one_way():
    class Ranks(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.param("w", nn.initializers.ones, (6, 6))
            y = hw.analog_einsum(self, "w", "i,io->o", x)
            return hw.analog_einsum(self, "w", "bi,io->bo", y[None])

    analog = hw.eval_mode(hw.analogize(Ranks(), CONVERTERS))
    y, variables = analog.init_with_output(jax.random.key(0), X)
    assert list(hw.plan(analog, variables, X)) == ["w"] and y.shape == (1, 6)


def test_an_nnx_class_that_is_not_registered_is_refused_at_its_call():
    class Unknown(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.ones((6, 6)))

        def __call__(self, x):
            return hw.analog_einsum(self, "w", "...i,io->...o", x)

    def made(hardware):
        plain = NnxNet(Unknown(), 6, nnx.Rngs(0))
        return hw.analogize(plain, hardware, rngs=nnx.Rngs(mismatch=0))

    for set_mode in (hw.train_mode, hw.chip_mode, hw.eval_mode):
        with pytest.raises(ValueError, match=r"sockets\.register\(Unknown, 'w'"):
            set_mode(made(NOISY))(X)
    digital = made(hw.Rule("head", NOISY))
    assert list(hw.plan(digital)) == ["head/kernel"]
    assert digital(X).shape == (2,)
    # Registered afterwards, though the class was analogized before.
    hw.sockets.register(Unknown, "w", "...i,io->...o")
    assert list(hw.plan(made(NOISY))) == ["head/kernel", "layer/w"]


def test_a_linen_class_may_be_registered_after_it_was_planned():
    class Late(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x @ self.param("w", nn.initializers.ones, (6, 6))

    model = LinenNet(Late())
    variables = model.init(jax.random.key(0), X)

    def planned():
        return list(hw.plan(hw.analogize(model, NOISY), variables, X))

    assert planned() == ["head/kernel"]
    hw.sockets.register(Late, "w", "...i,io->...o", call=rewritten)
    assert planned() == ["head/kernel", "layer/w"]


def test_an_nnx_method_may_be_registered_after_the_class_was_analogized():
    class Late(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.linspace(-1, 1, 36).reshape(6, 6))

        def __call__(self, x):
            return hw.analog_einsum(self, "w", "...i,io->...o", x)

        def encode(self, x):
            return x @ self.w[...]

    hw.sockets.register(Late, "w", "...i,io->...o")
    before = hw.eval_mode(hw.analogize(Late(), CONVERTERS))
    with pytest.raises(ValueError, match="multiplies by w itself, around its Late"):
        before.encode(X)
    hw.sockets.register(Late, "w", "...i,io->...o", method="encode", call=rewritten)
    after = hw.eval_mode(hw.analogize(Late(), CONVERTERS))
    np.testing.assert_array_equal(after(X), after.encode(X))
    np.testing.assert_array_equal(after(X), before(X))


@BOTH
def test_a_registered_class_that_multiplies_otherwise_is_refused(framework):
    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x @ self.param("w", nn.initializers.ones, (6, 6))

    class OfNnx(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.ones((6, 6)))

        def __call__(self, x):
            return x @ self.w[...]

    hw.sockets.register(Linen, "w", "...i,io->...o")
    hw.sockets.register(OfNnx, "w", "...i,io->...o")
    with pytest.raises(ValueError, match="does not multiply by it as registered"):
        if framework == "linen":
            analog = hw.eval_mode(hw.analogize(Linen(), CONVERTERS))
            variables = analog.init(jax.random.key(0), X)
            analog.apply(variables, X)
        else:
            hw.eval_mode(hw.analogize(OfNnx(), CONVERTERS))(X)


def test_a_row_with_another_equation_than_the_call_is_refused():
    class Other(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.ones((6, 6)))

        def __call__(self, x):
            return hw.analog_einsum(self, "w", "...i,io->...o", x)

    hw.sockets.register(Other, "w", "...i,oi->...o")
    with pytest.raises(ValueError, match=r"the axes \(1,\).*sums over \(0,\)"):
        hw.eval_mode(hw.analogize(Other(), CONVERTERS))(X)


@BOTH
def test_subclasses_are_what_their_parent_is_unless_they_override(framework):
    parent = LinenField if framework == "linen" else NnxField

    class Same(parent):
        def other(self, x):
            return x

    class Super(parent):
        def __call__(self, x):
            return super().__call__(x) + 1.0

    class Otherwise(parent):
        def __call__(self, x):
            return x

    def planned(cls):
        if framework == "linen":
            analog = hw.analogize(LinenNet(cls()), CONVERTERS)
            variables = analog.init(jax.random.key(0), X)
            plan = hw.plan(analog, variables, X)
            y = hw.eval_mode(analog).apply(variables, X)
        else:
            features = 6 if cls is Otherwise else 4
            plain = NnxNet(cls(nnx.Rngs(0)), features, nnx.Rngs(1))
            analog = hw.analogize(plain, CONVERTERS, rngs=nnx.Rngs(mismatch=0))
            plan, y = hw.plan(analog), hw.eval_mode(analog)(X)
        return [path for path in plan if path.startswith("layer")], plan, y

    assert planned(Same)[0] == planned(Super)[0] == ["layer/w"]
    assert (planned(Same)[2] != planned(Super)[2]).any()
    found, plan, _ = planned(Otherwise)
    assert not found
    if framework == "nnx":  # in Linen, it makes no parameter
        (why,) = (entry.reason for entry in plan.digital if entry.path == "layer/w")
        assert "overrides NnxField.__call__" in why


def initialised(model, hardware=CONVERTERS):
    analog = hw.analogize(model, hardware)
    variables = analog.init(jax.random.key(0), X)
    return analog, variables, hw.plan(analog, variables, X)


def test_a_linen_layer_may_be_one_of_flax_with_an_array_more():
    class More(nn.Dense):
        @nn.compact
        def __call__(self, x):
            y = super().__call__(x)
            self.param("v", nn.initializers.normal(), (self.features, 3))
            return hw.analog_einsum(self, "v", "...i,io->...o", y)

    analog, variables, plan = initialised(More(4))
    assert [(w.path, w.kind) for w in plan.weights] == [
        ("kernel", "dense"),
        ("v", "einsum"),
    ]
    leaves = {"input_range", "probe", "v_input_range", "v_probe"}
    assert {*variables["params"]} == {"kernel", "bias", "v", *leaves}
    assert {*hw.strip(variables["params"])} == {"kernel", "bias", "v"}


@BOTH
def test_a_layer_of_flax_that_is_written_again_multiplies_by_its_kernel(framework):
    class Again(nn.Dense):
        @nn.compact
        def __call__(self, x):
            self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
            return hw.analog_einsum(self, "kernel", "...i,io->...o", x)

    class NnxAgain(nnx.Linear):
        def __call__(self, x):
            return hw.analog_einsum(self, "kernel", "...i,io->...o", x)

    hw.sockets.register(NnxAgain, "kernel", "...i,io->...o")
    if framework == "linen":
        analog, variables, plan = initialised(Again(4))
        y = hw.eval_mode(analog).apply(variables, X[None])
        kernel = variables["params"]["kernel"]
    else:
        analog = hw.analogize(NnxAgain(6, 4, rngs=nnx.Rngs(0)), CONVERTERS)
        plan, kernel = hw.plan(analog), analog.kernel[...]
        y = hw.eval_mode(analog)(X[None])
    assert {*plan["kernel"].leaf_shapes} == {"input_range", "probe"}
    expected, step = in_numpy(X[None], kernel, "bi,io->bo")
    assert np.abs(y - expected).max() < 1.01 * step


def test_an_nnx_layer_does_not_lose_what_super_multiplies_by():
    class More(nnx.Linear):
        def __init__(self, rngs):
            super().__init__(6, 4, rngs=rngs)
            self.v = nnx.Param(jnp.ones((4, 3)))

        def __call__(self, x):
            y = super().__call__(x)
            return hw.analog_einsum(self, "v", "...i,io->...o", y)

    with pytest.raises(ValueError, match=r"register\(More, 'v'"):
        hw.eval_mode(hw.analogize(More(nnx.Rngs(0)), CONVERTERS))(X)
    hw.sockets.register(More, "v", "...i,io->...o")
    with pytest.raises(ValueError, match="kernel cannot lie.*Hold the Linear in an"):
        hw.analogize(More(nnx.Rngs(0)), CONVERTERS)


def test_names_of_linen_parameters_may_be_any():
    class Slash(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.param("a/b~", nn.initializers.normal(), (6, 4))
            return hw.analog_einsum(self, "a/b~", "...i,io->...o", x)

    noise = hw.WeightModifierParameter(type="add_normal", std_dev=0.1)
    ranges = hw.InputRangeParameter()
    hardware = hw.Hardware(modifier=noise, input_range=ranges)
    analog, variables, _ = initialised(Slash(), hardware)
    assert {*variables["params"]} == {"a/b~", "a/b~_input_range", "a/b~_probe"}
    first, second = (
        analog.apply(variables, X, rngs={"mismatch": jax.random.key(i)}) for i in (0, 1)
    )
    assert (first != second).any()


@BOTH
@pytest.mark.parametrize("shape", [(), (1, 1)])
def test_a_parameter_of_the_name_of_a_leaf_is_refused(framework, shape):
    class Clash(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.param("w", nn.initializers.ones, (6, 4))
            y = hw.analog_einsum(self, "w", "...i,io->...o", x)
            return y * self.param("w_input_range", nn.initializers.ones, shape)

    class NnxClash(NnxSquare):
        def __init__(self, rngs):
            super().__init__(rngs)
            self.w_input_range = nnx.Param(jnp.ones(shape))

    with pytest.raises(ValueError, match="w_input_range is a name that the model"):
        if framework == "linen":
            initialised(Clash())
        else:
            hw.analogize(NnxClash(nnx.Rngs(0)), CONVERTERS)


def test_a_parent_may_multiply_by_the_array_of_what_it_holds():
    class Holder(nn.Module):
        def setup(self):
            boxed = nn.with_partitioning(nn.initializers.normal(), (None, None))
            self.w = self.param("w", boxed, (6, 4))

        def __call__(self):
            return None

    class Parent(nn.Module):
        def setup(self):
            self.holder = Holder()

        def __call__(self, x):
            self.holder()
            return hw.analog_einsum(self.holder, "w", "...i,io->...o", x)

    analog, variables, plan = initialised(Parent())
    assert list(plan) == ["holder/w"]
    assert {*variables["params"]["holder"]} == {"w", "w_input_range", "w_probe"}
    assert hw.eval_mode(analog).apply(variables, X).shape == (4,)


@pytest.mark.nightly
def test_what_it_multiplies_by_may_be_made_of_what_it_stores():
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.WeightNorm(LinenTheirs(), variable_filter=None)(x)

    noise = hw.WeightModifierParameter(type="add_normal", std_dev=0.1)
    analog, variables, plan = initialised(Normed(), hw.Hardware(modifier=noise))
    (weight,) = plan.weights
    assert "WeightNorm computes" in weight.derived
    clean = Normed().apply(hw.strip(variables), X)
    draws = [
        analog.apply(variables, X, rngs={"mismatch": jax.random.key(i)}) - clean
        for i in range(200)
    ]
    w = np.asarray(variables["params"]["LinenTheirs_0"]["w"])
    scale = variables["params"]["WeightNorm_0"]["LinenTheirs_0/w/scale"]
    effective = w / np.sqrt((w**2).sum(0)) * np.asarray(scale)
    expected = 0.1 * np.abs(effective).max() * np.sqrt((np.asarray(X) ** 2).sum())
    ratio = np.mean(np.square(draws)) / expected**2
    assert abs(ratio - 1) < 5 * np.sqrt(2 / 800)


def test_a_method_that_is_written_again_reads_other_parameters():
    analog, variables, plan = initialised(LinenTheirs(use_bias=True))
    assert [entry.path for entry in plan.digital] == ["bias"]
    expected, step = in_numpy(X[None], variables["params"]["w"], "bi,io->bo")
    y = hw.eval_mode(analog).apply(variables, X[None])
    assert np.abs(y - expected - 1.0).max() < 1.01 * step


def test_calibrate_sets_its_range():
    analog, variables, _ = initialised(LinenHeads())
    found = hw.calibrate(analog, variables, [(X[None],)], method="max")
    np.testing.assert_allclose(
        found["params"]["w_input_range"], np.abs(X).max(), rtol=1e-6
    )


def test_a_rule_may_keep_one_of_two_arrays_digital():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.param("w", nn.initializers.ones, (6, 6))
            self.param("v", nn.initializers.ones, (6, 6))
            y = hw.analog_einsum(self, "w", "...i,io->...o", x)
            return hw.analog_einsum(self, "v", "...i,io->...o", y)

    rules = [hw.Rule(params="v", hardware=None), hw.Rule("", CONVERTERS)]
    analog, variables, plan = initialised(Two(), rules)
    assert list(plan) == ["w"]
    middle, step = in_numpy(X[None], np.ones((6, 6)), "bi,io->bo")
    y = hw.eval_mode(analog).apply(variables, X[None])
    assert np.abs(y - middle @ np.ones((6, 6))).max() < 6 * 1.01 * step


def test_dtype_is_that_of_flax_layers():
    class Half(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.param("w", nn.initializers.ones, (6, 4))
            return hw.analog_einsum(self, "w", "i,io->o", x, dtype=jnp.bfloat16)

    for model in (Half(), hw.eval_mode(hw.analogize(Half(), CONVERTERS))):
        y, variables = model.init_with_output(jax.random.key(0), X)
        assert y.dtype == jnp.bfloat16
        assert variables["params"]["w"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hw.sockets.register(int, "w", "i,io->o"), "takes a class of"),
        (
            lambda: hw.sockets.register(NnxHeads, "w", "i,io->o", method="nothing"),
            "NnxHeads has no method 'nothing'",
        ),
        (
            lambda: hw.sockets.register(
                NnxField, "w", "i,io->o", einsum="multiply", call=rewritten
            ),
            "give one of dot_general=, einsum= and call=",
        ),
        (
            lambda: hw.sockets.register(NnxField, "v", "i,io->o", einsum="multiply"),
            "NnxField.multiply multiplies by 'w'",
        ),
        (lambda: hw.sockets.register(NnxHeads, "w", "i,io"), "expected an equation"),
        (
            lambda: hw.analog_einsum(jnp.ones(3), "w", "i,io->o", X),
            "takes a flax.linen.Module or a flax.nnx.Module first",
        ),
        (
            lambda: hw.analog_einsum(NnxHeads(nnx.Rngs(0)), "v", "i,io->o", X),
            r"NnxHeads has no nnx.Param 'v'; it has \['w'\]",
        ),
        (
            lambda: hw.analogize(of_nnx("i,io->o", (6,)), CONVERTERS),
            "names 2 axes of w, which has the shape",
        ),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_array_that_a_linen_layer_does_not_have_is_named():
    class Misspelt(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.param("weight", nn.initializers.ones, (6, 4))
            return hw.analog_einsum(self, "w", "i,io->o", x)

    with pytest.raises(ValueError, match=r"no array parameter 'w'.*\['weight'\]"):
        Misspelt().init(jax.random.key(0), X)
