"""Hardware acts on the weights that a layer derives from its stored ones."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from flax.linen.dtypes import promote_dtype

import hwtrain

X = jnp.asarray(np.random.default_rng(0).normal(size=(5, 6)), jnp.float32)
NOISE = hwtrain.WeightModifierParameter(type="add_normal", std_dev=0.1)
NOISY = hwtrain.Hardware(modifier=NOISE)
ON = {"mismatch": jax.random.key(1)}
MODES = {
    "train": hwtrain.train_mode,
    "chip": hwtrain.chip_mode,
    "eval": hwtrain.eval_mode,
}


def standardised(w, xp=jnp):
    return (w - xp.mean(w, 0)) / xp.std(w, 0)


def normalised(w, xp=jnp):
    return w / xp.sqrt(xp.sum(w * w, 0))


class Standardised(nn.Dense):
    """Weight standardisation, as users write it."""

    def param(self, name, *args, **kwargs):
        value = super().param(name, *args, **kwargs)
        return standardised(value) if name == "kernel" else value


class Normalised(nn.Module):
    filtered: tuple[str, ...] | None = ("kernel",)

    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(4, use_bias=False, name="layer")
        return nn.WeightNorm(layer, variable_filter=self.filtered)(x)


class Held(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Standardised(4, use_bias=False, name="layer")(x)


LINEN = {"norm": (Normalised, normalised), "standard": (Held, standardised)}


def linen(kind, hardware, scale=1.0):
    """Returns an analog model, its variables with other weights, and these."""
    make, change = LINEN[kind]
    model = hwtrain.analogize(make(), hardware)
    variables = model.init(jax.random.key(0), X)
    kernel = np.float32(scale * np.random.default_rng(1).normal(1, 2, size=(6, 4)))
    layer = {**variables["params"]["layer"], "kernel": jnp.asarray(kernel)}
    variables = {**variables, "params": {**variables["params"], "layer": layer}}
    return model, variables, change(np.float64(kernel), np)


@pytest.mark.sampled
@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize("kind", LINEN)
def test_noise_is_as_strong_as_the_effective_weights_say(kind, per_column):
    noise = dataclasses.replace(NOISE, per_column=per_column)
    hardware = hwtrain.Hardware(modifier=noise)
    model, variables, w = linen(kind, hardware, scale=10.0)
    keys = jax.random.split(jax.random.key(3), 400)
    one = lambda key: model.apply(variables, jnp.eye(6), rngs={"mismatch": key})  # noqa: E731
    deviations = np.float64(jax.jit(jax.vmap(one))(keys)) - w
    expected = 0.1 * np.max(np.abs(w), axis=0 if per_column else None)
    found = deviations.std(axis=(0, 1))  # of 2400 draws each: 1.4 %
    np.testing.assert_allclose(found, np.broadcast_to(expected, 4), rtol=0.07)
    assert np.abs(deviations.mean(axis=0)).max() < 5 * expected.max() / 20


@pytest.mark.parametrize("kind", LINEN)
def test_tiles_are_scaled_and_converted_by_the_effective_weights(kind):
    hardware = hwtrain.Hardware(
        forward=hwtrain.IOParameters(out_bits=5, out_bound=2.0),
        mapping=hwtrain.MappingParameter(
            max_input_size=3, max_output_size=None, weight_scaling_omega=1.0
        ),
        modifier=NOISE,
    )
    model, variables, w = linen(kind, hardware, scale=10.0)
    step, expected = 2 * 2.0 / (2**5 - 2), 0
    for rows in (slice(0, 3), slice(3, 6)):
        s = np.abs(w[rows]).max()
        y = np.clip(np.float64(X)[:, rows] @ (w[rows] / s), -2, 2)
        expected = expected + s * step * np.round(y / step)
    found = hwtrain.eval_mode(model).apply(variables, X)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(np.float64(X) @ w - expected).max() > 0.02  # it does round
    noisy = model.apply(variables, X, rngs=ON)
    steps = (np.asarray(noisy) - expected) / step
    assert np.abs(steps).max() > 0.1  # and the noise comes before


@pytest.mark.parametrize("kind", LINEN)
def test_gradients_run_to_the_stored_weights(kind):
    hardware = dataclasses.replace(NOISY, input_range=hwtrain.InputRangeParameter())
    model, variables, w = linen(kind, hardware)
    target = np.random.default_rng(2).normal(size=(5, 4))

    def loss(model, kernel, **options):
        layer = {**variables["params"]["layer"], "kernel": kernel}
        params = {**variables["params"], "layer": layer}
        y = model.apply({"params": params}, X, **options)
        return jnp.sum(y * target)

    kernel = variables["params"]["layer"]["kernel"]
    change = {"norm": normalised, "standard": standardised}[kind]

    def exact(kernel):
        return np.sum((np.float64(X) @ change(kernel, np)) * target)

    expected, at = np.zeros((6, 4)), np.float64(kernel)
    for index in np.ndindex(6, 4):
        delta = np.zeros((6, 4))
        delta[index] = 1e-5
        expected[index] = (exact(at + delta) - exact(at - delta)) / 2e-5
    twin = hwtrain.eval_mode(model)
    found = jax.grad(functools.partial(loss, twin))(kernel)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    # Input gradients depend on the noisy weights; weight gradients pass straight
    # through.
    noisy = jax.grad(functools.partial(loss, model, rngs=ON))(kernel)
    np.testing.assert_allclose(noisy, expected, rtol=1e-3, atol=1e-4)


class Mapped(nn.Module):
    """A layer whose variables are transformed by a user's function."""

    make: object
    change: object

    @nn.compact
    def __call__(self, x):
        new = self.is_initializing()

        def changed(w):
            return self.change(w) if w.ndim > 1 and not new else w

        call = nn.map_variables(
            lambda layer, x: layer(x),
            "params",
            lambda tree: jax.tree.map(changed, tree),
            init=new,
            mutable=new,
        )
        return call(self.make(), x)


def halved(*arrays, dtype, inexact=True):
    x, kernel, *bias = promote_dtype(*arrays, dtype=dtype, inexact=inexact)
    return x, kernel * 0.5, *bias


class Spectral(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.SpectralNorm(nn.Dense(4, name="layer"))(x, update_stats=False)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.WeightNorm(nn.Dense(6, name="layer"))(x), None


class Stack(nn.Module):
    @nn.compact
    def __call__(self, x):
        blocks = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
        )
        return blocks()(x, None)[0]


def half(w):
    return 0.5 * w


IMAGE = jnp.asarray(np.random.default_rng(3).normal(size=(2, 5, 5, 6)), jnp.float32)
MASK = np.tri(6, 4, dtype=np.float32) * np.ones((3, 3, 1, 1), np.float32)
SEQUENCE = jnp.ones((1, 3, 6))
KINDS = {
    "weight norm": (Normalised, X),
    "weight norm of everything": (lambda: Normalised(None), X),
    "spectral norm": (Spectral, X),
    "standardisation": (Held, X),
    "mask": (lambda: Mapped(lambda: nn.Dense(4), lambda w: w * jnp.tri(*w.shape)), X),
    "promotion": (lambda: nn.Dense(4, promote_dtype=halved), X),
    "dense general": (lambda: Mapped(lambda: nn.DenseGeneral((2, 3)), half), X),
    "einsum": (lambda: Mapped(lambda: nn.Einsum((6, 4), "ab,bc->ac"), half), X),
    "lstm": (lambda: Mapped(lambda: nn.RNN(nn.OptimizedLSTMCell(4)), half), SEQUENCE),
    "conv": (lambda: Mapped(lambda: nn.Conv(4, (3, 3)), standardised), IMAGE),
    "masked conv": (lambda: Mapped(lambda: nn.Conv(4, (3, 3), mask=MASK), half), IMAGE),
    "groups": (
        lambda: Mapped(lambda: nn.Conv(4, (3, 3), feature_group_count=2), half),
        IMAGE,
    ),
    "transposed conv": (
        lambda: nn.ConvTranspose(4, (3, 3), promote_dtype=halved),
        IMAGE,
    ),
    "stack": (Stack, X),
}
ALL = hwtrain.Hardware(
    modifier=NOISE,
    input_range=hwtrain.InputRangeParameter(init_value=100.0),
    mapping=hwtrain.MappingParameter(max_input_size=4, weight_scaling_omega=1.0),
    mismatch=hwtrain.MismatchParameter(type="add_normal", std_dev=0.1),
)


class OfNnx(nnx.Module):
    """A layer to which its parent hands other weights."""

    def __init__(self, layer):
        self.layer = layer

    def __call__(self, x):
        graphdef, state = nnx.split(self.layer)
        state = jax.tree.map(lambda w: half(w) if w.ndim > 1 else w, state)
        return nnx.merge(graphdef, state)(x)


class Hooked(nnx.Param):
    def get_value(self, **options):
        value = super().get_value(**options)
        return value * 0.5 if isinstance(value, jax.Array) else value


def hooked(rngs):
    layer = nnx.Linear(6, 4, rngs=rngs)
    layer.kernel = Hooked(layer.kernel[...])
    return layer


def spectral(rngs):
    return nnx.SpectralNorm(nnx.Linear(6, 4, rngs=rngs), update_stats=False, rngs=rngs)


ONES = nnx.initializers.ones
NNX_KINDS = {
    "weight norm": (
        lambda rngs: nnx.WeightNorm(nnx.Linear(6, 4, rngs=rngs), rngs=rngs),
        X,
    ),
    "spectral norm": (spectral, X),
    "parent": (lambda rngs: OfNnx(nnx.Linear(6, 4, rngs=rngs)), X),
    "hook": (hooked, X),
    "lora": (lambda rngs: OfNnx(nnx.LoRA(6, 2, 4, b_initializer=ONES, rngs=rngs)), X),
    "groups": (
        lambda rngs: OfNnx(nnx.Conv(6, 4, (3, 3), feature_group_count=2, rngs=rngs)),
        IMAGE,
    ),
}


@functools.cache
def outputs(framework, kind):
    """Returns the plain model's outputs, and those of steps, a chip and the twin."""
    hardware = ALL
    if framework == "linen":
        make, x = KINDS[kind]
        model, keys = hwtrain.analogize(make(), hardware), (1, 2, 2)
        variables = model.init(jax.random.key(0), x)
        bare = {**variables, "params": hwtrain.strip(variables["params"])}
        plain = make().apply(bare, x)
        call = jax.jit(lambda v, key: model.apply(v, x, rngs={"mismatch": key}))
        train = [call(variables, jax.random.key(seed)) for seed in keys]
        nominal = hwtrain.materialize(model, variables, x)
        plan = hwtrain.plan(model, nominal, x)
        params = hwtrain.apply_mismatch(nominal["params"], plan, hwtrain.chip_key(7))
        chip = hwtrain.chip_mode(model).apply({**nominal, "params": params}, x)
        twins = [
            hwtrain.eval_mode(model).apply(found, x) for found in (variables, nominal)
        ]
        return plan, plain, train, chip, twins
    make, x = NNX_KINDS[kind]
    plain = make(nnx.Rngs(0))(x)
    model = hwtrain.analogize(make(nnx.Rngs(0)), hardware, rngs=nnx.Rngs(mismatch=1))
    call = nnx.jit(lambda model: model(x))
    first, second = call(model), call(model)
    nominal = hwtrain.materialize(hwtrain.eval_mode(model), None, x)
    plan = hwtrain.plan(nominal, None, x)
    params = nnx.to_pure_dict(nnx.state(nominal, nnx.Param))
    chip = nnx.clone(nominal)
    on_chip = hwtrain.apply_mismatch(params, plan, hwtrain.chip_key(7))
    nnx.update(chip, on_chip)
    twins = [hwtrain.eval_mode(found)(x) for found in (model, nominal)]
    return plan, plain, [first, second, second], hwtrain.chip_mode(chip)(x), twins


CASES = [
    pytest.param("linen", kind, marks=pytest.mark.nightly if kind == "lstm" else ())
    for kind in KINDS
] + [("nnx", kind) for kind in NNX_KINDS]


@pytest.mark.sampled(5)
@pytest.mark.parametrize(("framework", "kind"), CASES)
def test_every_kind_is_on_in_every_mode(framework, kind):
    plan, plain, train, chip, twins = outputs(framework, kind)
    assert all(weight.derived for weight in plan.weights) and len(plan)
    for twin in twins:
        np.testing.assert_allclose(twin, plain, rtol=1e-4, atol=1e-5)
    assert np.abs(train[0] - train[1]).max() > 1e-4
    np.testing.assert_array_equal(train[1], train[2])
    for noisy in (*train, chip):
        assert 1e-4 < np.abs(np.asarray(noisy) - plain).max() < 5


RANGED = hwtrain.Hardware(input_range=hwtrain.InputRangeParameter(init_value=0.5))
REACHING = [
    ("linen", "weight norm of everything"),
    ("linen", "spectral norm"),
    ("linen", "dense general"),
    ("linen", "stack"),
    ("nnx", "spectral norm"),
    ("nnx", "parent"),
]


@pytest.mark.sampled
@pytest.mark.parametrize(("framework", "kind"), REACHING)
def test_what_lies_beside_a_kernel_is_not_changed(framework, kind):
    if framework == "linen":
        make, x = KINDS[kind]
        model = hwtrain.analogize(make(), RANGED)
        variables = model.init(jax.random.key(0), x)
        names = [
            hwtrain._arrays.paths.path_of(k) for k, _ in _leaves(variables["params"])
        ]
        assert not [name for name in names if "probe/" in name or "range/" in name]

        def run(params):
            return model.apply({**variables, "params": params}, x)

        params = variables["params"]
        bare = {**variables, "params": hwtrain.strip(params)}
        plain = make().apply(bare, jnp.clip(x, -0.5, 0.5))
    else:
        make, x = NNX_KINDS[kind]
        plain = make(nnx.Rngs(0))(jnp.clip(x, -0.5, 0.5))
        model = hwtrain.analogize(make(nnx.Rngs(0)), RANGED)
        graphdef, state, rest = nnx.split(model, nnx.Param, ...)
        params = nnx.to_pure_dict(state)

        def run(params):
            # Copies, since the variables of a state belong to the trace that made them.
            own, others = jax.tree.map(lambda leaf: leaf, (state, rest))
            nnx.replace_by_pure_dict(own, params)
            return nnx.merge(graphdef, own, others)(x)

    y, back = jax.vjp(run, params)
    if kind != "stack":  # whose second range clips what the first layer gives
        np.testing.assert_allclose(y, plain, rtol=1e-5, atol=1e-6)
    found = {
        path.rpartition("/")[2]: np.asarray(leaf)
        for path, leaf in hwtrain._arrays.paths.leaves(
            back(jnp.ones_like(y))[0]
        ).items()
    }
    # A probe counts the inputs and those within the range, 2^40 times too small.
    counts = found["probe"].reshape(-1, found["probe"].shape[-1])[0, :2] * 2.0**40
    within = np.sum(np.abs(np.asarray(x)) <= 0.5)
    np.testing.assert_array_equal(counts, [x.size, within])
    assert (found["input_range"] != 0).all()


def _leaves(tree):
    return jax.tree_util.tree_leaves_with_path(tree)


def test_a_schedule_weakens_the_noise_of_derived_weights():
    model, variables, _ = linen("norm", NOISY)
    with hwtrain.noise_strength(0.0):
        found = model.apply(variables, X, rngs=ON)
    expected = hwtrain.eval_mode(model).apply(variables, X)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "option", [{"redraw": True}, {"per_batch_sample": True}, {"per_vector": True}]
)
def test_noise_that_a_layer_draws_itself_is_as_strong(option):
    noise = dataclasses.replace(NOISE, **option)
    model, variables, w = linen("norm", hwtrain.Hardware(modifier=noise), scale=10.0)
    keys = jax.random.split(jax.random.key(3), 200)
    one = lambda key: model.apply(variables, jnp.eye(6), rngs={"mismatch": key})  # noqa: E731
    deviations = np.float64(jax.jit(jax.vmap(one))(keys)) - w
    expected = 0.1 * np.abs(w).max()
    np.testing.assert_allclose(deviations.std(axis=(0, 1)), [expected] * 4, rtol=0.1)


class Layers(nnx.Module):
    def __init__(self, rngs):
        make = lambda rngs: nnx.Linear(6, 6, rngs=rngs)  # noqa: E731
        self.layer = nnx.split_rngs(splits=3)(nnx.vmap(make))(rngs)

    def __call__(self, x):
        graphdef, state = nnx.split(self.layer)
        layers = nnx.merge(graphdef, jax.tree.map(half, state))
        scan = nnx.scan(
            lambda layer, x: layer(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry
        )
        return scan(layers, x)


def test_stacked_layers_of_nnx_are_refused():
    model = hwtrain.analogize(Layers(nnx.Rngs(0)), RANGED)
    with pytest.raises(ValueError, match="layer/kernel: .* its layers are stacked"):
        model(X)


@pytest.mark.parametrize("hardware", [NOISY, ALL], ids=["noise", "all"])
def test_noise_stays_out_of_a_mask(hardware):
    model = hwtrain.analogize(KINDS["masked conv"][0](), hardware)
    variables = model.init(jax.random.key(0), IMAGE)
    x = IMAGE.at[..., 1:].set(0)  # the mask lets channel 0 into feature 0 alone
    y = model.apply(variables, x, rngs=ON)
    assert not np.any(y[..., 1:]) and np.any(y[..., 0])


def test_a_derived_layer_behind_the_back_of_its_model_is_an_error():
    make, x = NNX_KINDS["weight norm"]
    model = hwtrain.analogize(make(nnx.Rngs(0)), ALL, rngs=nnx.Rngs(mismatch=1))
    with pytest.raises(ValueError, match="layer_instance"):
        model.layer_instance(x)
    layer = hwtrain.eval_mode(model).layer_instance
    expected = x @ layer.kernel[...] + layer.bias[...]
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-6)


class Biased(nn.Module):
    """A layer whose variables are all transformed except its kernel."""

    @nn.compact
    def __call__(self, x):
        new = self.is_initializing()

        def change(path, w):
            return w if new or path[-1].key == "kernel" else 2 * w

        call = nn.map_variables(
            lambda layer, x: layer(x),
            "params",
            lambda tree: jax.tree_util.tree_map_with_path(change, tree),
            init=new,
            mutable=new,
        )
        return call(nn.Dense(4, name="layer"), x)


def test_what_lies_beside_a_stored_kernel_is_not_changed_either():
    model = hwtrain.analogize(Biased(), RANGED)
    variables = model.init(jax.random.key(0), X)
    assert not hwtrain.plan(model, variables, X)["layer/kernel"].derived
    layer = {**variables["params"]["layer"], "bias": jnp.ones(4)}
    found = model.apply({"params": {"layer": layer}}, X)
    expected = np.clip(X, -0.5, 0.5) @ np.asarray(layer["kernel"]) + 2
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
