"""Leaves of user-defined parts, with public names only, learned beside the weights."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain import checkpoint

KEY = jax.random.key(3)
FRAMEWORKS = ("linen", "nnx")
TILES = hw.MappingParameter(max_input_size=3, max_output_size=2)
SCALED = hw.MappingParameter(
    max_input_size=3, max_output_size=2, weight_scaling_omega=1.0
)


@hw.register("stage", "test_adc_bound", outside="read_noise", inside="adc")
class AdcBound(hw.Part):
    """A full scale of the ADC of each tile, which is learned."""

    start: float = 1.0

    def leaves(self, weight):
        return (
            hw.LeafSpec(
                name="adc_bound",
                initial=self.start,
                positive=True,
                unit="normalised units",
            ),
        )

    def around(self, inner, x, ctx):
        y = inner(x)
        bound = ctx.leaf("adc_bound")
        bound = bound.reshape((1,) * (y.ndim - 3) + (*bound.shape, 1))
        return jnp.clip(y, -bound, bound)

    def describe(self):
        return f"learned ADC bound from {self.start:g}"


@hw.register("stage", "test_whole_bound", outside="read_noise", inside="adc")
class WholeBound(AdcBound):
    """The same ADC, in a convolution that runs as a whole."""

    whole = True


@hw.register("stage", "test_offset", outside="read_noise", inside="adc")
class Offset(hw.Part):
    """A number added to the outputs of each tile, which is not learned."""

    where: str = "behind"
    name: str = "offset"
    trained: bool = False
    every: bool = True

    def leaves(self, weight):
        rule = "base" if self.trained else None
        if not self.every and weight.tiles == (1, 1):
            return ()
        return (hw.LeafSpec(name=self.name, initial=0.25, trained=rule, unit="1"),)

    def around(self, inner, x, ctx):
        if self.where == "undeclared":
            return inner(x) + ctx.leaf("other")
        y = inner(x)
        offset = ctx.leaf(self.name)
        return y + offset.reshape((1,) * (y.ndim - 3) + (*offset.shape, 1))


@hw.register("stage", "test_early", inside="management")
class Early(Offset):
    whole = True

    def around(self, inner, x, ctx):
        offset = ctx.leaf(self.name)
        y = inner(x)
        return y + offset.reshape((1,) * (y.ndim - 3) + (*offset.shape, 1))


@hw.register("stage", "test_peek", inside="range", outside="test_adc_bound")
class Peek(hw.Part):
    """Tries a read before another."""

    def around(self, inner, x, ctx):
        return inner(x) + inner.trial(x, 0).y


@hw.register("stage", "test_gain", outside="read_noise", inside="adc")
class Gain(hw.Part):
    """One number for all tiles of a matrix."""

    whole = True

    def leaves(self, weight):
        return (hw.LeafSpec(name="gain", shapes=lambda weight: ((),)),)

    def around(self, inner, x, ctx):
        return inner(x) * ctx.leaf("gain")


@hw.register("modifier", "test_fan")
class Fan(hw.WeightModifier):
    """Enlarges the weights of each column by a learned share."""

    each: str = "column"

    def leaves(self, weight):
        columns = sum(weight.column_sizes)
        last = {"column": columns, "tile": weight.tiles[1], "wrong": 7}[self.each]
        return (
            hw.LeafSpec(
                name="share",
                shapes=lambda weight: ((weight.tiles[0], last),),
                initial=lambda weight, matrix: jnp.full(
                    (*weight.stack, weight.tiles[0], last), 0.5
                ),
            ),
        )

    def on_weight(self, w, ctx):
        return w * (1 + ctx.leaf("share"))


@hw.register("clip", "test_leaf_clip")
class LeafClip(hw.WeightClip):
    def leaves(self, weight):
        return (hw.LeafSpec(name="limit"),)

    def largest(self, w, row_sizes):
        return jnp.ones((*w.shape[:-2], len(row_sizes), 1))


def hardware(*stages, mapping=TILES, **options):
    parts = {k: options.pop(k) for k in ("converter", "noise_model") if k in options}
    if "drift_compensation" in options:
        parts["drift_compensation"] = options.pop("drift_compensation")
    io = hw.IOParameters(stages=stages, **options)
    return hw.Hardware(forward=io, mapping=mapping, **parts)


def made(framework, chip, x, features=5):
    """Returns an analog layer, its parameters, its plan, and a call by parameters."""
    if framework == "linen":
        analog = hw.analogize(nn.Dense(features, use_bias=False), chip)
        params = analog.init(KEY, x)["params"]
        plan = hw.plan(analog, {"params": params}, x)
        return analog, params, plan, lambda p, x: analog.apply({"params": p}, x)
    plain = nnx.Linear(x.shape[-1], features, use_bias=False, rngs=nnx.Rngs(3))
    analog = hw.analogize(plain, chip)
    graph, state = nnx.split(analog)

    def call(params, x):
        given = jax.tree.map(lambda leaf: leaf, state)
        nnx.replace_by_pure_dict(given, params)
        return nnx.merge(graph, given)(x)

    return analog, nnx.to_pure_dict(state), hw.plan(analog), call


def on_tiles(x, kernel, bound, omega):
    """Returns the outputs, and of each tile its own, in NumPy and without hwtrain."""
    rows = np.split(np.arange(7), [3, 5])
    columns = np.split(np.arange(5), [2, 4])
    y, tiles = np.zeros((len(x), 5)), {}
    for (i, r), (j, c) in itertools.product(enumerate(rows), enumerate(columns)):
        w = kernel[np.ix_(r, c)]
        s = np.abs(w).max() / omega if omega else 1.0
        found = x[:, r] @ w / s
        tiles[i, j] = found, s, c
        y[:, c] += s * np.clip(found, -bound[i, j], bound[i, j])
    return y, tiles


@pytest.mark.parametrize("omega", [0.0, 1.0])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_leaf_of_tiles_acts_and_gets_its_gradient(framework, omega):
    x = jax.random.normal(jax.random.key(1), (6, 7))
    chip = hardware(AdcBound(start=0.4), mapping=SCALED if omega else TILES)
    _, params, plan, call = made(framework, chip, x)
    assert params["adc_bound"].shape == (3, 3) == plan["kernel"].tiles
    spread = np.linspace(0.2, 1.0, 9, dtype=np.float32).reshape(3, 3)
    params = {**params, "adc_bound": jnp.asarray(spread)}
    weights = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)

    def loss(params):
        return jnp.sum(call(params, x) * weights)

    kernel = np.asarray(params["kernel"], np.float64)
    y, tiles = on_tiles(np.asarray(x, np.float64), kernel, spread, omega)
    np.testing.assert_allclose(call(params, x), y, rtol=1e-4, atol=1e-5)
    expected = np.zeros((3, 3))
    for at, (found, s, c) in tiles.items():
        beyond = np.abs(found) > spread[at]
        expected[at] = np.sum(s * weights[:, c] * np.sign(found) * beyond)
    gradient = jax.grad(loss)(params)
    np.testing.assert_allclose(gradient["adc_bound"], expected, rtol=1e-4, atol=1e-4)
    assert np.count_nonzero(expected) >= 5


@pytest.mark.parametrize("mode", ["train", "chip", "eval"])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_at_one_value_it_is_the_bound_of_the_adc(framework, mode):
    """What is built in clips like that."""
    x = jax.random.normal(jax.random.key(1), (6, 7))
    learned = hardware(AdcBound(start=0.5), inp_bits=6)
    fixed = hardware(out_bound=0.5, inp_bits=6)
    y = {}
    for name, chip in (("learned", learned), ("fixed", fixed)):
        analog, params, _, _ = made(framework, chip, x)
        analog = getattr(hw, f"{mode}_mode")(analog)
        y[name] = (
            analog(x) if framework == "nnx" else analog.apply({"params": params}, x)
        )
    np.testing.assert_allclose(y["learned"], y["fixed"], rtol=1e-5)


LAYERS = {
    "dense": (lambda: nn.Dense(4, use_bias=False), (5, 7)),
    "conv": (lambda: nn.Conv(4, (3, 2)), (2, 5, 6, 4)),
    "groups": (lambda: nn.Conv(6, (3, 3), feature_group_count=2), (2, 5, 5, 4)),
    "local": (lambda: nn.ConvLocal(4, (3,)), (2, 6, 3)),
    "transposed": (lambda: nn.ConvTranspose(4, (3,), strides=(2,)), (2, 6, 3)),
}


@pytest.mark.parametrize("stage", [AdcBound, WholeBound])
@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_reads_its_leaves(layer, stage):
    """Of each group and each position its own: by layers with one bound after one."""
    make, shape = LAYERS[layer]
    x = jax.random.normal(jax.random.key(1), shape)
    analog = hw.analogize(make(), hardware(stage(start=0.4), mapping=None))
    params = analog.init(KEY, x)["params"]
    weight = hw.plan(analog, {"params": params}, x)["kernel"]
    assert params["adc_bound"].shape == (*weight.stack, 1, 1)
    count = params["adc_bound"].size
    some = jnp.linspace(0.1, 0.3, count).reshape(params["adc_bound"].shape)

    def call(bound, x=x):
        return analog.apply({"params": {**params, "adc_bound": bound}}, x)

    def fixed(bound):
        chip = hardware(out_bound=float(bound), mapping=None)
        given = {k: v for k, v in params.items() if k != "adc_bound"}
        return hw.analogize(make(), chip).apply({"params": given}, x)

    found = np.asarray(call(some))
    each = [np.asarray(fixed(bound)) for bound in some.ravel()]
    if layer == "groups":
        expected = np.concatenate([each[0][..., :3], each[1][..., 3:]], -1)
    elif layer == "local":
        expected = np.stack([y[:, i] for i, y in enumerate(each)], 1)
    else:
        (expected,) = each
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

    def loss(bound):
        return jnp.sum(jnp.square(call(bound)))

    # What is clipped is the bound, so that its square has the slope of twice that.
    for number, gradient in enumerate(jax.grad(loss)(some).ravel()):
        step = jnp.zeros(count).at[number].set(1e-3).reshape(some.shape)
        slope = (loss(some + step) - loss(some - step)) / 2e-3
        np.testing.assert_allclose(gradient, slope, rtol=0.05)
        assert gradient > 0


@pytest.mark.parametrize("layer", ["conv", "groups"])
def test_in_whole_convolutions_it_is_the_same_as_in_windows(layer):
    make, shape = LAYERS[layer]
    x = jax.random.normal(jax.random.key(1), shape)
    found = {}
    for stage in (AdcBound, WholeBound):
        chip = hardware(
            stage(start=0.3), mapping=None, inp_bits=8, out_bits=8, out_bound=4.0
        )
        analog = hw.analogize(make(), chip)
        params = analog.init(KEY, x)["params"]

        def loss(params, x, analog=analog):
            return jnp.sum(jnp.square(analog.apply({"params": params}, x)))

        found[stage.__name__] = jax.jit(jax.value_and_grad(loss, (0, 1)))(params, x)
        text = str(jax.make_jaxpr(loss)(params, x))
        found[stage.__name__, "windows"] = "conv_general_dilated_patches" in text or (
            text.count("dot_general") > 0
        )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
        found["AdcBound"],
        found["WholeBound"],
    )
    assert found["AdcBound", "windows"] and not found["WholeBound", "windows"]


@pytest.mark.parametrize("layer", ["conv", "groups"])
def test_what_is_of_no_tile_is_read_in_windows(layer):
    make, shape = LAYERS[layer]
    x = jax.random.normal(jax.random.key(1), shape)
    analog = hw.analogize(make(), hardware(Gain(), mapping=None))
    params = analog.init(KEY, x)["params"]
    groups = 2 if layer == "groups" else 1
    gains = jnp.array([2.0, 3.0])[:groups].reshape(params["gain"].shape)
    kernel = {"kernel": params["kernel"], "bias": params["bias"]}
    factors = np.repeat(gains.ravel(), params["bias"].size // groups)
    expected = make().apply({"params": kernel}, x) * factors
    found = analog.apply({"params": {**params, "gain": gains}}, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_scanned_stack_has_the_leaves_of_each_layer():
    class Step(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.Dense(4, use_bias=False)(x), None

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            axes, rngs = {"params": 0}, {"params": True, "mismatch": True}
            scan = nn.scan(Step, variable_axes=axes, split_rngs=rngs, length=3)
            return scan(name="steps")(x, None)[0]

    x = jax.random.normal(jax.random.key(1), (5, 4))
    chip = hardware(AdcBound(start=0.5))
    analog = hw.analogize(Stack(), chip)
    params = analog.init(KEY, x)["params"]
    layer = params["steps"]["Dense_0"]
    assert layer["adc_bound"].shape == (3, 2, 2)
    layer["adc_bound"] = jnp.linspace(0.2, 0.9, 12).reshape(3, 2, 2)
    found = analog.apply({"params": params}, x)
    one = hw.analogize(nn.Dense(4, use_bias=False), chip)
    for number in range(3):
        x = one.apply({"params": jax.tree.map(lambda a, i=number: a[i], layer)}, x)
    np.testing.assert_allclose(found, x, rtol=1e-5)


def test_vmapped_layers_of_nnx_have_their_own():
    @nnx.split_rngs(splits=3)
    @nnx.vmap
    def stacked(rngs):
        return nnx.Linear(4, 4, use_bias=False, rngs=rngs)

    class Stack(nnx.Module):
        def __init__(self):
            self.layers = stacked(nnx.Rngs(0))

        def __call__(self, x):
            @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
            def step(x, layer):
                return layer(x)

            return step(x, self.layers)

    x = jax.random.normal(jax.random.key(1), (5, 4))
    chip = hardware(AdcBound(start=0.5))
    analog = hw.analogize(Stack(), chip)
    bounds = jnp.linspace(0.2, 0.9, 12).reshape(3, 2, 2)
    assert analog.layers.adc_bound.shape == bounds.shape
    analog.layers.adc_bound[...] = bounds
    found, kernels = analog(x), analog.layers.kernel[...]
    one = hw.analogize(nn.Dense(4, use_bias=False), chip)
    for kernel, bound in zip(kernels, bounds):
        x = one.apply({"params": {"kernel": kernel, "adc_bound": bound}}, x)
    np.testing.assert_allclose(found, x, rtol=1e-5)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_base_optimiser_trains_it_and_keeps_it_positive(framework):
    x = jax.random.normal(jax.random.key(1), (6, 7))
    _, params, plan, call = made(framework, hardware(AdcBound(start=0.4)), x)
    gradients = jax.grad(lambda p: call(p, x).sum())(params)
    for rate in (1e-3, 1e3):
        tx = hw.optim.hardware_aware(optax.sgd(rate), plan)
        updates, _ = tx.update(gradients, tx.init(params), params)
        expected = np.maximum(-rate * gradients["adc_bound"], -0.2)
        np.testing.assert_allclose(updates["adc_bound"], expected, rtol=1e-5)
    assert np.any(expected == np.float32(-0.2)) and np.any(expected > 1)


def test_what_is_not_trained_stays_and_so_does_what_a_rule_freezes():
    x = jax.random.normal(jax.random.key(1), (6, 7))
    moves = {}
    for name, stage, frozen in (
        ("trained", Offset(trained=True), False),
        ("not trained", Offset(), False),
        ("frozen", Offset(trained=True), True),
    ):
        rule = hw.Rule(".*", hardware(stage), frozen=frozen)
        model = nn.Sequential([nn.Dense(5)])
        analog = hw.analogize(model, [rule])
        params = analog.init(KEY, x)["params"]
        plan = hw.plan(analog, {"params": params}, x)
        tx = hw.optim.hardware_aware(optax.adamw(1e-2, weight_decay=0.1), plan)
        state = tx.init(params)
        gradients = jax.tree.map(jnp.ones_like, params)
        updates, _ = tx.update(gradients, state, params)
        moves[name] = bool(jnp.any(updates["layers_0"]["offset"] != 0))
    assert moves == {"trained": True, "not trained": False, "frozen": False}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_it_is_exported_loaded_inspected_adopted_and_stripped(framework, tmp_path):
    x = jax.random.normal(jax.random.key(1), (6, 7))
    converter = hw.SinglePairConductanceConverter(g_max=25.0)
    chip = hardware(AdcBound(start=0.4), converter=converter)
    analog, params, plan, call = made(framework, chip, x)
    assert not plan.digital
    params = {**params, "adc_bound": params["adc_bound"] * jnp.linspace(1, 2, 3)}
    variables = {"params": params}
    if framework == "nnx":
        nnx.update(analog, params)
        variables = analog
    hw.export(tmp_path / "out", variables, plan)
    found = hw.load(tmp_path / "out")
    np.testing.assert_array_equal(found.params["adc_bound"], params["adc_bound"])
    assert found.plan == plan and not found.manifest.others
    name = "nominal/params/adc_bound"
    (unit,) = (x[name].unit for x in found.manifest.files.values() if name in x)
    assert unit == "normalised units"
    assert found.manifest.layers[0].beside["adc_bound"] == name
    checkpoint.verify(tmp_path / "out")
    text = str(hw.inspect(analog, *(() if framework == "nnx" else (variables, x))))
    assert "adc_bound 0.4 to 0.8 (normalised units)" in text
    assert "learned ADC bound from 0.4" in text
    plain = hw.strip(params, plan)
    assert {*plain} == {"kernel"}
    example = (x,) if framework == "linen" else ()
    assert {*hw.adopt(analog, plain, *example)} == {"kernel", "adc_bound"}
    adopted = hw.adopt(analog, plain, *example)
    np.testing.assert_array_equal(adopted["adc_bound"], np.full((3, 3), 0.4, "f4"))
    if framework == "nnx":
        fresh = hw.analogize(nnx.Linear(7, 5, use_bias=False, rngs=nnx.Rngs(9)), chip)
        loaded = found.into(fresh)
        np.testing.assert_array_equal(loaded.adc_bound[...], params["adc_bound"])
        np.testing.assert_allclose(loaded(x), call(params, x), rtol=1e-6)
        state = nnx.state(analog, nnx.Param)
        with pytest.raises(ValueError, match=r"adc_bound.*hwtrain.strip\(params, plan"):
            hw.strip(state)
        assert {*hw.strip(state, plan)} == {"kernel"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (jnp.zeros((3, 3)), "positive and finite"),
        (jnp.full((3, 3), jnp.nan), "positive and finite|not finite|NaN"),
        (jnp.ones((3, 1)), r"adc_bound.*shape \(3, 1\).*\(3, 3\)"),
        (None, "adc_bound"),
    ],
    ids=["zero", "nan", "shape", "missing"],
)
def test_what_it_cannot_be_is_refused(value, message, tmp_path):
    x = jnp.ones((1, 7))
    analog, params, plan, _ = made("linen", hardware(AdcBound()), x)
    params = {**params, "adc_bound": value}
    if value is None:
        del params["adc_bound"]
    with pytest.raises(checkpoint.HardwareCheckpointError, match=message):
        hw.export(tmp_path / "out", {"params": params}, plan)
    if value is None or value.shape != (3, 3):
        with pytest.raises(ValueError, match="adc_bound"):
            analog.apply({"params": params}, x)
        with pytest.raises(ValueError, match="adc_bound"):
            hw.optim.hardware_aware(optax.sgd(0.1), plan).init(params)


def test_a_compensation_reads_through_it():
    """As through an ADC with that bound, from a chip and from its checkpoint."""
    x = jax.random.normal(jax.random.key(1), (6, 7))
    options = {
        "converter": hw.SinglePairConductanceConverter(g_max=25.0),
        "noise_model": hw.PCMLikeNoiseModel(),
        "drift_compensation": hw.GlobalDriftCompensation(),
        "mapping": SCALED,
    }
    chips = {
        "learned": hardware(AdcBound(start=0.3), **options),
        "fixed": hardware(out_bound=0.3, **options),
        "open": hardware(out_bound=30.0, **options),
    }
    after = {}
    for name, chip in chips.items():
        _, params, plan, _ = made("linen", chip, x)
        programmed = hw.program_chip(params, plan, hw.chip_key(0))
        after[name] = programmed.at(1e6)["mapping_scale"]
    np.testing.assert_allclose(after["learned"], after["fixed"], rtol=1e-5)
    assert np.all(np.abs(after["open"] / after["fixed"] - 1) > 0.01)


def test_a_chip_of_a_checkpoint_is_compensated_through_it(tmp_path):
    x = jax.random.normal(jax.random.key(1), (6, 7))
    chip = hardware(
        AdcBound(start=0.3),
        converter=hw.SinglePairConductanceConverter(g_max=25.0),
        noise_model=hw.PCMLikeNoiseModel(),
        drift_compensation=hw.GlobalDriftCompensation(),
        mapping=SCALED,
    )
    _, params, plan, _ = made("linen", chip, x)
    hw.export(tmp_path / "out", {"params": params}, plan, chip_seeds=[4])
    stored = hw.load(tmp_path / "out").chip(4, t_s=1e6)
    drawn = hw.program_chip(params, plan, hw.chip_key(4)).at(1e6)
    for name in ("mapping_scale", "kernel", "adc_bound"):
        np.testing.assert_allclose(stored[name], drawn[name], rtol=1e-4)


def test_bound_management_searches_around_it():
    x = jax.random.normal(jax.random.key(1), (6, 7))
    chip = hardware(
        AdcBound(start=0.4),
        out_bound=0.5,
        noise_management="abs_max",
        bound_management="iterative",
    )
    _, params, _, call = made("linen", chip, x)
    gradient = jax.grad(lambda p: call(p, x).sum())(params)
    assert np.all(np.isfinite(gradient["adc_bound"]))


def test_a_read_that_is_tried_gives_it_no_gradient():
    x = jax.random.normal(jax.random.key(1), (6, 7))
    gradients = []
    for stages in ((AdcBound(start=0.4),), (AdcBound(start=0.4), Peek())):
        _, params, _, call = made("linen", hardware(*stages), x)
        gradients.append(jax.grad(lambda p, call=call: call(p, x).sum())(params))
    np.testing.assert_allclose(*(g["adc_bound"] for g in gradients), rtol=1e-6)


@hw.register("stage", "test_neutral", outside="read_noise", inside="adc")
class Neutral(hw.Part):
    """A factor and an offset that start where they do nothing."""

    gain: float = 1.0
    ignores: bool = False

    def leaves(self, weight):
        return (
            hw.LeafSpec(name=f"gain_from_{self.gain:.0f}", initial=self.gain),
            hw.LeafSpec(name=f"shift_of_{self.gain:.0f}", initial=0.0),
        )

    def around(self, inner, x, ctx):
        y = inner(x)
        gain, shift = (ctx.leaf(leaf.name) for leaf in self.leaves(None))
        if self.ignores:
            return y + 0 * gain.sum()
        return y * gain[..., None] + shift[..., None]


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("stages", [(1.0,), (1.0, 2.0), (2.0,)])
@pytest.mark.parametrize("options", [{}, {"out_bound": 9.0, "out_bits": 6}])
def test_a_stage_that_starts_neutral_is_told_from_nothing(framework, stages, options):
    x = jax.random.normal(jax.random.key(1), (6, 7))
    chip = hardware(*(Neutral(gain=gain) for gain in stages), **options)
    analog, params, _, _ = made(framework, chip, x)
    given = ({"params": params}, x) if framework == "linen" else (None, x)
    rows = [
        row.split(":")[1].strip()
        for row in str(hw.assert_active(analog, *given)).splitlines()
    ]
    assert [row for row in rows if "neutral" in row] == [
        f"test_neutral{f' #{i + 1}' if i else ''}" for i in range(len(stages))
    ]


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("others", [(), (Neutral(gain=2.0),)])
def test_a_stage_that_ignores_its_leaf_is_an_error(framework, others):
    x = jax.random.normal(jax.random.key(1), (6, 7))
    chip = hardware(Neutral(ignores=True), *others)
    analog, params, _, _ = made(framework, chip, x)
    given = ({"params": params}, x) if framework == "linen" else (None, x)
    message = "test_neutral.*: .*its leaves 'gain_from_1', 'shift_of_1' do nothing"
    with pytest.raises(ValueError, match=message):
        hw.assert_active(analog, *given)


@hw.register("modifier", "test_neutral_fan")
class NeutralFan(hw.WeightModifier):
    """A factor on the weights of each tile, which starts from 1."""

    ignores: bool = False

    def leaves(self, weight):
        return (hw.LeafSpec(name="factor", initial=1.0),)

    def on_weight(self, w, ctx):
        return w if self.ignores else w * ctx.leaf("factor")


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("ignores", [False, True])
def test_a_modifier_that_starts_neutral_is_told_from_nothing(framework, ignores):
    x = jax.random.normal(jax.random.key(1), (6, 7))
    chip = hw.Hardware(modifier=NeutralFan(ignores=ignores), mapping=TILES)
    analog, params, _, _ = made(framework, chip, x)
    given = ({"params": params}, x) if framework == "linen" else (None, x)
    if not ignores:
        assert "modifier: changes weights" in str(hw.assert_active(analog, *given))
        return
    with pytest.raises(ValueError, match="modifier: .*other values of 'factor'"):
        hw.assert_active(analog, *given)


@pytest.mark.parametrize("share", [0.9, 0.1, 2.0])
def test_a_bound_that_moves_beyond_the_outputs_acts_at_its_value(share):
    """Of the largest output of the test vectors."""
    x = jnp.ones((2, 7))
    chip = hardware(AdcBound(), mapping=None)
    analog = hw.analogize(nn.Dense(5, use_bias=False), chip)
    params = analog.init(KEY, x)["params"]
    sizes = np.array([0.3, 0.3, 1, 1, 3, 3])[:, None]
    vectors = sizes * np.random.default_rng(0).normal(size=(6, 7))
    bound = share * np.abs(vectors @ params["kernel"]).max()
    given = {"params": {**params, "adc_bound": jnp.full((1, 1), bound)}}
    if share < 1:
        hw.assert_active(analog, given, x)
    else:
        with pytest.raises(ValueError, match="its leaf 'adc_bound' does nothing"):
            hw.assert_active(analog, given, x)


@pytest.mark.parametrize("each", ["column", "tile"])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_modifier_reads_its_leaves_and_they_get_their_gradient(framework, each):
    x = jax.random.normal(jax.random.key(1), (6, 7))
    chip = hw.Hardware(modifier=Fan(each=each), mapping=TILES)
    _, params, _, call = made(framework, chip, x)
    width = 5 if each == "column" else 3
    share = jnp.linspace(0.1, 0.9, 3 * width).reshape(3, width)
    params = {**params, "share": share}
    rows = np.repeat(np.asarray(share), [3, 2, 2], axis=0)
    columns = rows if each == "column" else np.repeat(rows, [2, 2, 1], axis=1)
    kernel = np.asarray(params["kernel"])
    expected = np.asarray(x) @ (kernel * (1 + columns))
    np.testing.assert_allclose(call(params, x), expected, rtol=1e-5, atol=1e-6)
    gradient = jax.grad(lambda p: call(p, x).sum())(params)
    of_kernel = np.broadcast_to(np.asarray(x).sum(0)[:, None], kernel.shape)
    np.testing.assert_allclose(gradient["kernel"], of_kernel, rtol=1e-5)
    of_rows = np.add.reduceat(of_kernel * kernel, [0, 3, 5], axis=0)
    of_share = of_rows
    if each == "tile":
        of_share = np.add.reduceat(of_rows, [0, 2, 4], axis=1)
    np.testing.assert_allclose(gradient["share"], of_share, rtol=1e-4, atol=1e-5)


def test_a_modifier_of_a_derived_weight_reads_its_leaves_too():
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.WeightNorm(nn.Dense(5, use_bias=False, name="dense"))(x)

    x = jax.random.normal(jax.random.key(1), (6, 7))
    analog = hw.analogize(Normed(), hw.Hardware(modifier=Fan(), mapping=TILES))
    variables = analog.init(KEY, x)
    layer = variables["params"]["dense"]
    assert {*layer} == {"kernel", "share"}
    plain = {"params": {**variables["params"], "dense": {"kernel": layer["kernel"]}}}
    expected = Normed().apply(plain, x) * 1.5
    np.testing.assert_allclose(analog.apply(variables, x), expected, rtol=1e-5)


def test_a_leaf_of_a_weight_norm_is_not_normed():
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.Dense(5, use_bias=False, name="dense")
            return nn.WeightNorm(layer, variable_filter=None)(x)

    x = jax.random.normal(jax.random.key(1), (6, 7))
    analog = hw.analogize(Normed(), hardware(AdcBound(start=0.3), mapping=None))
    variables = analog.init(KEY, x)
    assert "adc_bound" in variables["params"]["dense"]
    plain = Normed().init(KEY, x)
    names = {"/".join(map(str, path)) for path in paths_of(plain)}
    assert names == {n for n in map("/".join, paths_of(variables)) if "adc" not in n}
    expected = np.clip(Normed().apply(plain, x), -0.3, 0.3)
    np.testing.assert_allclose(analog.apply(variables, x), expected, rtol=1e-5)


def paths_of(tree):
    found, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [tuple(str(key.key) for key in path) for path, _ in found]


def test_the_factors_of_a_lora_each_have_their_own():
    chip = hardware(AdcBound(start=0.5), mapping=None)
    model = hw.analogize(nnx.LoRA(4, 2, 3, rngs=nnx.Rngs(0)), chip)
    assert model.lora_a_adc_bound.shape == model.lora_b_adc_bound.shape == (1, 1)
    assert model(jnp.ones((1, 4))).shape == (1, 3)


class UsersLinen(nn.Module):
    @nn.compact
    def __call__(self, x):
        w = self.param("kernel", nn.initializers.ones, (7, 5))
        bound = self.param("adc_bound", nn.initializers.ones, ())
        return hw.analog_einsum(self, "kernel", "bi,io->bo", x) * bound + 0 * w.sum()


class UsersNnx(nnx.Linear):
    def __init__(self):
        super().__init__(7, 5, rngs=nnx.Rngs(0))
        self.adc_bound = nnx.Param(jnp.ones(()))


def test_the_name_of_a_users_parameter_is_an_error():
    x, chip = jnp.ones((1, 7)), hardware(AdcBound())
    with pytest.raises(ValueError, match="adc_bound is a name that the model itself"):
        hw.analogize(UsersLinen(), chip).init(KEY, x)
    with pytest.raises(ValueError, match="adc_bound is a name that the model itself"):
        hw.analogize(UsersNnx(), chip)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((AdcBound(), WholeBound()), "'adc_bound': another leaf has that name"),
        ((Offset(), Offset(trained=True)), "'offset': another leaf has that name"),
        ((Offset(name="probe"),), "'probe': another leaf has that name"),
        ((Offset(name="noise_key"),), "'noise_key': another leaf has that name"),
        ((Offset(name="kernel"),), "'kernel': this name is that of an array"),
        ((Offset(name="embedding"),), "'embedding': this name is that of an array"),
        ((Offset(name="lora_a"),), "'lora_a': this name is that of an array"),
        ((Offset(name="bias"),), "'bias': this name is that of the digital bias"),
        ((Offset(name="effective_x"),), "'effective_x': this name begins with"),
        ((Offset(name="weight_key"),), "'weight_key': this name .* drawn in the layer"),
        ((Offset(name="Offset"),), "lower case"),
        ((Offset(every=False),), "'offset'.*but not for every weight"),
        (
            (Offset(where="undeclared"),),
            "leaf 'other', which these weights do not have",
        ),
    ],
)
def test_a_name_that_cannot_be_is_an_error(stages, message):
    analog = hw.analogize(nn.Dense(5), hardware(*stages))
    with pytest.raises(ValueError, match=message):
        variables = analog.init(KEY, jnp.ones((1, 7)))
        analog.apply(variables, jnp.ones((1, 7)))


class TwoArraysLinen(nn.Module):
    first: str

    @nn.compact
    def __call__(self, x):
        for name in (self.first, "kernel"):
            self.param(name, nn.initializers.lecun_normal(), (7, 7))
            x = hw.analog_einsum(self, name, "bi,io->bo", x)
        return x


class TwoArraysNnx(nnx.Module):
    def __init__(self, first):
        self.first = first
        for name in (first, "kernel"):
            setattr(self, name, nnx.Param(jnp.eye(7)))

    def before(self, x):
        return hw.analog_einsum(self, self.first, "bi,io->bo", x)

    def __call__(self, x):
        return hw.analog_einsum(self, "kernel", "bi,io->bo", self.before(x))


NNX = {x: type(x, (TwoArraysNnx,), {}) for x in ("adc", "input", "noise", "mapping")}
for _first, _kind in NNX.items():
    _kind.before, _kind.__call__ = TwoArraysNnx.before, TwoArraysNnx.__call__
    hw.sockets.register(_kind, _first, "bi,io->bo", method="before")
    hw.sockets.register(_kind, "kernel", "bi,io->bo")


COLLISIONS = {
    "two own leaves": ("adc", ("bound", "adc_bound"), {}, "adc_bound"),
    "an own and a built-in one": (
        *("input", ("range",)),
        {"input_range": hw.InputRangeParameter()},
        "input_range",
    ),
    "an own one and one of a step": (
        "noise",
        ("key",),
        {"out_noise": 0.1},
        "noise_key",
    ),
    "an own one and one of a chip": (
        *("mapping", ("scale",)),
        {"out_bits": 8, "out_bound": 9.0},
        "mapping_scale",
    ),
    "an array": ("adc", ("x_bound", "bound"), {}, ""),
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("case", COLLISIONS)
def test_leaves_of_two_arrays_never_have_one_path(case, framework):
    first, names, options, path = COLLISIONS[case]
    ranged = {k: options[k] for k in options if k == "input_range"}
    options = {k: v for k, v in options.items() if k not in ranged}
    scaled = hw.MappingParameter(weight_scaling_omega=1.0)
    stages = tuple(Offset(name=name) for name in names)
    io = hw.IOParameters(stages=stages, **options)
    chip = hw.Hardware(forward=io, mapping=scaled, **ranged)

    def made():
        if framework == "nnx":
            return hw.plan(hw.analogize(NNX[first](first), chip))
        x, analog = jnp.ones((1, 7)), hw.analogize(TwoArraysLinen(first), chip)
        return hw.plan(analog, analog.init(KEY, x), x)

    if path:
        message = f"leaf '.*' of .* and the leaf '.*' of .* both be stored as {path}"
        with pytest.raises(ValueError, match=message):
            made()
    else:  # names that only end alike are apart
        plan = made()
        assert len(plan.leaves()) == 4


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_name_that_ends_like_another_is_a_leaf_too(framework):
    x = jnp.ones((1, 7))
    names = ("probe_bound", "bound", "my_probe", "my_probe_bound")
    chip = hardware(*(Offset(name=name) for name in names))
    _, params, plan, call = made(framework, chip, x)
    assert set(plan.leaves()) == set(names)
    assert not plan.digital
    plain = hw.strip(params, plan)
    assert set(plain) == {"kernel"}
    # Each of the 3 row tiles adds each offset.
    np.testing.assert_allclose(
        call(params, x), x @ plain["kernel"] + 4 * 3 * 0.25, rtol=1e-5
    )


def test_a_leaf_that_nothing_reads_is_an_error():
    with pytest.raises(ValueError, match="LeafClip declares leaves.*stages.*modifiers"):
        hw.Hardware(clip=LeafClip())


def test_a_parameter_that_a_rule_names_has_none():
    rule = hw.Rule(params="w", hardware=hw.Hardware(modifier=Fan()))

    class Raw(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x @ self.param("w", nn.initializers.ones, (7, 5))

    with pytest.raises(ValueError, match="'share'.*named by a rule"):
        hw.analogize(Raw(), [rule]).init(KEY, jnp.ones((1, 7)))


def test_in_a_whole_convolution_it_is_read_behind_the_product():
    analog = hw.analogize(nn.Conv(4, (3,)), hardware(Early(), mapping=None))
    x = jnp.ones((1, 6, 3))
    with pytest.raises(ValueError, match="Early asks for its leaf 'offset' before"):
        analog.apply(analog.init(KEY, x), x)


def test_a_modifiers_leaf_of_neither_tiles_nor_columns_is_an_error():
    chip = hw.Hardware(modifier=Fan(each="wrong"), mapping=TILES)
    expected = r"'share': Fan gives it the shape \(3, 7\).*\(3, 3\).*\(3, 5\)"
    with pytest.raises(ValueError, match=expected):
        hw.analogize(nn.Dense(5), chip).init(KEY, jnp.ones((1, 7)))
    with pytest.raises(ValueError, match=expected):
        hw.analogize(nnx.Linear(7, 5, rngs=nnx.Rngs(0)), chip)


def test_a_modifiers_leaf_may_fit_one_layer_only():
    """Its shape may be a constant that no other weight has."""
    chip = hw.Hardware(modifier=Fan(each="wrong"))
    analog = hw.analogize(nn.Dense(7), chip)
    x = jnp.ones((1, 7))
    params = analog.init(KEY, x)["params"]
    assert params["share"].shape == (1, 7)
    assert analog.apply({"params": params}, x).shape == (1, 7)


@hw.register("stage", "test_of_shapes", outside="read_noise", inside="adc")
class OfShapes(hw.Part):
    """Multiplies outputs by a leaf of any shape, broadcast as NumPy does."""

    shape: str

    def leaves(self, weight):
        columns = weight.shape[-1]
        shapes = {
            "columns": ((columns,),),
            "tiles by columns": ((*weight.tiles, columns),),
            "rows by columns": ((weight.tiles[0], columns),),
            "tiles": (weight.tiles,),
            "too many axes": ((5, 1, *weight.tiles, 1),),
            "outputs": ((*weight.tiles, max(weight.column_sizes)),),
            "one": ((),),
            "a table": ((16,),),
            "no tuple": (weight.tiles[0], weight.tiles[1], 2),
            "a list": [(1, 1)],
            "none": (),
            "empty": ((0, 1),),
            "words": (("tiles",),),
        }
        return (hw.LeafSpec(name="gain", shapes=lambda weight: shapes[self.shape]),)

    def around(self, inner, x, ctx):
        y, gain = inner(x), ctx.leaf("gain")
        if self.shape == "a table":
            return y * gain[jnp.zeros(y.shape, int)]
        return y * gain


def leaf_of(framework, shape):
    """Returns the leaf of shapes of a layer as it is made."""
    chip = hardware(OfShapes(shape=shape))
    if framework == "nnx":
        plain = nnx.Linear(7, 5, use_bias=False, rngs=nnx.Rngs(3))
        return hw.analogize(plain, chip).gain[...]
    analog = hw.analogize(nn.Dense(5, use_bias=False), chip)
    return analog.init(KEY, jnp.ones((1, 7)))["params"]["gain"]


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(
    "shape",
    ["columns", "tiles by columns", "rows by columns", "tiles", "too many axes"],
)
def test_a_shape_that_does_not_fit_is_an_error_as_it_is_made(framework, shape):
    with pytest.raises(ValueError) as error:
        leaf_of(framework, shape)
    text = str(error.value)
    assert "OfShapes does not fit its leaf 'gain' of the shape " in text
    assert "[..., 3, 3, 2], so give shapes= one of: (3, 3), " in text
    assert "ctx.leaf('gain')[..., None]; (3, 3, 2), one" in text
    assert "\n" not in text.partition("\n---")[0]


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(
    ("shape", "expected"), [("outputs", (3, 3, 2)), ("one", ()), ("a table", (16,))]
)
def test_any_shape_that_the_stage_computes_with_fits(framework, shape, expected):
    assert leaf_of(framework, shape).shape == expected


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(
    ("shape", "hint"),
    [
        ("no tuple", r"got \(3, 3, 2\); for this one alone, write \(\(3, 3, 2\),\)"),
        ("a list", r"got \[\(1, 1\)\]; such as \(weight.tiles,\)"),
        ("none", r"got \(\); a single number is \(\(\),\)"),
        ("empty", r"sizes above zero; got \(\(0, 1\),\)"),
        ("words", r"got \(\('tiles',\),\)"),
    ],
)
def test_shapes_that_are_none_are_an_error(framework, shape, hint):
    with pytest.raises(ValueError, match=f"'gain': shapes should return.*{hint}"):
        leaf_of(framework, shape)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"when": ("chip",)}, "when should be"),
        ({"trained": "range"}, "trained should be 'base' or None"),
        ({"exported": "zeros"}, "exported should be"),
        ({"dtype": "int32"}, "dtype should be"),
        ({"initial": lambda weight, matrix: jnp.ones(7)}, r"begin with the shape"),
    ],
)
def test_what_a_users_leaf_cannot_be_is_an_error(options, message):
    class Odd(hw.Part):
        def leaves(self, weight):
            return (hw.LeafSpec(name="odd", **options),)

    hw.register("stage", "test_odd")(Odd)
    try:
        with pytest.raises(ValueError, match=message):
            hw.analogize(nn.Dense(5), hardware(Odd())).init(KEY, jnp.ones((1, 7)))
    finally:
        hw._parts.registry.forget("stage", "test_odd")


def test_a_parameter_of_that_name_elsewhere_is_the_models():
    class Own(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = x @ self.param("kernel", nn.initializers.ones, (5, 5))
            return x * self.param("adc_bound", nn.initializers.ones, ())

    class Elsewhere(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Own(name="own")(nn.Dense(5, name="dense")(x))

    analog = hw.analogize(Elsewhere(), [hw.Rule("dense", hardware(AdcBound()))])
    x = jnp.ones((1, 7))
    params = analog.init(KEY, x)["params"]
    plan = hw.plan(analog, {"params": params}, x)
    assert "own/adc_bound" in {entry.path for entry in plan.digital}
    stripped = hw.strip(params, plan)
    assert "adc_bound" in stripped["own"] and "adc_bound" not in stripped["dense"]


def test_some_weights_only_have_it():
    class Wide(hw.Part):
        def leaves(self, weight):
            return (
                hw.LeafSpec(
                    name="wide", there=lambda weight, when: weight.tiles[0] > 1
                ),
            )

        def around(self, inner, x, ctx):
            return inner(x)

    hw.register("stage", "test_wide")(Wide)
    try:
        model = nn.Sequential([nn.Dense(2), nn.Dense(2)])
        analog = hw.analogize(model, hardware(Wide()))
        params = analog.init(KEY, jnp.ones((1, 7)))["params"]
        assert "wide" in params["layers_0"] and "wide" not in params["layers_1"]
    finally:
        hw._parts.registry.forget("stage", "test_wide")


MISSING = {
    "share": hw.Hardware(modifier=Fan()),
    "adc_bound": hardware(AdcBound()),
    "clip_bound": hw.Hardware(
        clip=hw.WeightClipParameter(type="learnable_per_channel")
    ),
    "mapping_scale": hw.Hardware(
        clip=hw.WeightClipParameter(type="fixed_value", fixed_value=0.5), mapping=SCALED
    ),
    "output_scale": hw.Hardware(mapping=hw.MappingParameter(learn_out_scaling=True)),
    "input_range": hw.Hardware(input_range=hw.InputRangeParameter()),
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("leaf", MISSING)
def test_a_missing_leaf_is_the_same_error_in_every_mode(framework, leaf):
    """Also in modes that do not read it, so that it is never silently off."""
    x, message = jnp.ones((2, 7)), f"the parameters have no '{leaf}'.*hwtrain.adopt"
    if framework == "linen":
        plain = nn.Dense(5)
        analog, variables = hw.analogize(plain, MISSING[leaf]), plain.init(KEY, x)
        calls = [
            lambda mode=mode: mode(analog).apply(variables, x)
            for mode in (hw.train_mode, hw.chip_mode, hw.eval_mode)
        ]
    else:
        analog = hw.analogize(nnx.Linear(7, 5, rngs=nnx.Rngs(0)), MISSING[leaf])
        delattr(analog, leaf)
        calls = [
            lambda mode=mode: mode(analog)(x)
            for mode in (hw.train_mode, hw.chip_mode, hw.eval_mode)
        ]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


def test_inspect_shows_a_leaf_without_its_padding():
    """Five columns on tiles of two: the last number of the last tile is none."""
    analog = hw.analogize(nn.Dense(5), hardware(OfShapes(shape="outputs")))
    x = jnp.ones((1, 7))
    params = analog.init(KEY, x)["params"]
    sizes = hw.plan(analog, params, x).weights[0].column_sizes
    assert sorted(sizes) == [1, 2, 2]
    real = np.arange(2) < np.array(sizes)[:, None]
    gain = np.where(real, np.linspace(2, 3, 18).reshape(3, 3, 2), 99.0)
    params = {**params, "gain": jnp.asarray(gain, jnp.float32)}
    shown = str(hw.inspect(analog, {"params": params}, x))
    low, high = gain[gain < 99].min(), gain[gain < 99].max()
    assert f"gain {low:.3g} to {high:.3g} (" in shown


def test_inspect_shows_ends_that_look_alike_once():
    input_range = hw.InputRangeParameter()
    chip = hw.Hardware(mapping=TILES, input_range=input_range)
    analog, x = hw.analogize(nn.Dense(5), chip), jnp.ones((1, 7))
    params = analog.init(KEY, x)["params"]
    near = jnp.linspace(4.4, 4.4001, 9).reshape(3, 3)
    shown = str(hw.inspect(analog, {"params": {**params, "input_range": near}}, x))
    assert "4.4" in shown and "4.4 to" not in shown
