"""User-defined stages that are easy to get wrong: correct, or refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import hwtrain as hw
from hwtrain.periphery._pipeline import Context

KEY = jax.random.key(5)
READS = 20_000


@hw.register("stage", "test_noise", inside="output_noise")
class Noise(hw.Part):
    sigma: float = 1.0
    effect: str = "noise"
    times: int = 1
    whole = True
    draws = "read"

    def around(self, inner, x, ctx):
        y = inner(x)
        for _ in range(self.times):
            y = y + self.sigma * ctx.normal(self.effect, y.shape)
        return y


@hw.register("stage", "test_other_noise", inside="output_noise")
class OtherNoise(hw.Part):
    draws = "read"

    def around(self, inner, x, ctx):
        y = inner(x)
        return y + ctx.normal("noise", y.shape)


@hw.register("stage", "test_frozen", inside="output_noise")
class Frozen(hw.Part):
    size: float = 1.0
    draws = "chip"

    def around(self, inner, x, ctx):
        return inner(x) + ctx.spread(self.size, "frozen")


@hw.register("stage", "test_mean", inside="input_asymmetry", outside="adc")
class Mean(hw.Part):
    """The mean of several reads."""

    reads: int = 4
    how: str = "calls"

    def around(self, inner, x, ctx):
        if self.how == "calls":
            return sum(inner(x) for _ in range(self.reads)) / self.reads
        if self.how == "loop":
            step = lambda total, _: (total + inner(x), None)  # noqa: E731
        else:
            step = lambda total, i: (total + inner(x, read=i), None)  # noqa: E731
        zeros = jnp.zeros_like(ctx.multiply(x))
        total, _ = jax.lax.scan(step, zeros, jnp.arange(self.reads))
        return total / self.reads


@hw.register("stage", "test_halves", inside="input_asymmetry", outside="adc")
class Halves(hw.Part):
    """Positive and negative inputs in reads of their own."""

    def around(self, inner, x, ctx):
        return inner(jnp.maximum(x, 0)) + inner(jnp.minimum(x, 0))


def output(*stages, x=None, kernel=None, layer=None, key=KEY, mode="train", **options):
    """Returns what a layer without bias gives with stages around its tile."""
    x = jnp.ones((READS, 1)) if x is None else x
    layer = layer or nn.Dense(1, use_bias=False)
    io = hw.IOParameters(stages=stages, **options)
    analog = hw.analogize(layer, hw.Hardware(forward=io))
    variables = analog.init(jax.random.key(0), x[:1])
    params = variables["params"]
    if kernel is not None:
        params = {**params, "kernel": jnp.full_like(params["kernel"], kernel)}
    if mode == "chip":
        analog = hw.chip_mode(analog)
        plan = hw.plan(analog, {"params": params}, x[:1])
        params = hw.apply_mismatch(params, plan, hw.chip_key(int(key)))
        key = KEY
    call = jax.jit(
        lambda x: analog.apply({"params": params}, x, rngs={"mismatch": key})
    )
    return np.float64(call(x))


SINGLE = {
    "two stages of one class": ((Noise(sigma=1.0), Noise(sigma=1.0001)), 2**0.5),
    "equal stages": ((Noise(), Noise()), 2**0.5),
    "stages of two classes": ((Noise(), OtherNoise()), 2**0.5),
    "one name drawn twice": ((Noise(times=2),), 2**0.5),
    "a name of ours": ((Noise(effect="output_noise"),), 2**0.5),
    "the mean of reads": ((Mean(reads=4), Noise()), 0.5),
    "the mean of means": ((Mean(reads=4), Mean(reads=3), Noise()), 12**-0.5),
    "the mean of numbered reads": ((Mean(how="numbers"), Noise()), 0.5),
    "means of both kinds": ((Mean(reads=4), Mean(how="numbers"), Noise()), 0.25),
}


@pytest.mark.parametrize("case", SINGLE)
def test_draws_of_stages_and_reads_are_independent(case):
    stages, expected = SINGLE[case]
    options = {"out_noise": 1.0} if case == "a name of ours" else {}
    y = output(*stages, kernel=0.0, **options)
    assert abs(y.std() / expected - 1) < 5 / np.sqrt(2 * READS)
    assert abs(y.mean()) < 5 * expected / np.sqrt(READS)


def test_what_is_frozen_differs_between_stages_and_chips():
    layer = nn.Dense(2000, use_bias=False)
    stages = Frozen(), Frozen(size=1.0001)
    arguments = {"x": jnp.ones((1, 1)), "kernel": 0.0, "layer": layer, "mode": "chip"}
    chips = [output(*stages, key=seed, **arguments)[0] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(chips[0], chips[1])
    assert abs(chips[0].std() / 2**0.5 - 1) < 5 / np.sqrt(2 * 2000)
    assert abs(np.corrcoef(chips[0], chips[2])[0, 1]) < 5 / np.sqrt(2000)


def test_bound_management_sees_what_any_of_several_reads_clips():
    x = jnp.array([[3.0, 0.5, -0.005]])
    y = output(
        Halves(),
        x=x,
        kernel=1.0,
        out_bound=1.0,
        bound_management="iterative",
        noise_management="abs_max",
    )
    np.testing.assert_allclose(y, [[3.495]], rtol=1e-5)


@pytest.mark.parametrize("layer", ["dense", "conv"])
def test_gradients_at_zeros_and_padding_are_finite(layer):
    from .devices import Telegraph

    module, x = {
        "dense": (nn.Dense(5), jnp.zeros((2, 7))),
        "conv": (nn.Conv(5, (3,)), jnp.zeros((1, 6, 2))),
    }[layer]
    hardware = hw.Hardware(
        forward=hw.IOParameters(stages=(Telegraph(sigma=0.1),)),
        mapping=hw.MappingParameter(max_output_size=3, max_input_size=4),
    )
    analog = hw.analogize(module, hardware)
    variables = analog.init(jax.random.key(0), x)
    loss = lambda v, x: analog.apply(v, x, rngs={"mismatch": KEY}).sum()  # noqa: E731
    for gradient in jax.tree.leaves(jax.jit(jax.grad(loss, (0, 1)))(variables, x)):
        assert np.isfinite(gradient).all()


class Around(hw.Part):
    """What a test lets a stage do."""

    which: str
    whole = False
    draws = "read"

    def around(self, inner, x, ctx):
        return CASES[self.which][0](inner, x, ctx)


class WholeAround(Around):
    whole = True


hw.register("stage", "test_around", inside="input_asymmetry", outside="adc")(Around)
hw.register("stage", "test_whole", inside="input_asymmetry", outside="adc")(WholeAround)


def looped(inner, x, ctx):
    return jax.lax.scan(lambda c, _: (c + inner(x), None), inner(x), None, 3)[0]


def drawn_in_a_loop(inner, x, ctx):
    step = lambda c, _: (c + ctx.normal("n", c.shape), None)  # noqa: E731
    return jax.lax.scan(step, inner(x), None, 3)[0]


CASES = {
    "reads in a loop": (looped, {}, r"Number the reads: inner\(x, read=i\)"),
    "draws in a loop": (drawn_in_a_loop, {}, "Draw all numbers before it"),
    "another shape": (
        lambda i, x, c: i(x)[:1],
        {},
        "should return outputs of the shape",
    ),
    "two reads whole": (lambda i, x, c: i(x) + i(x), {"whole": True}, "twice"),
    "noise of inputs whole": (
        lambda i, x, c: i(x + c.normal("n", x.shape)),
        {"whole": True},
        "inputs of a stage with whole = True get no noise",
    ),
    "a product first, whole": (
        lambda i, x, c: c.product(x, c.w) + i(x),
        {"whole": True},
        "before it calls inner",
    ),
    "never reads": (
        lambda i, x, c: 0 * c.multiply(x),
        {"bound_management": "iterative", "out_bound": 1.0},
        "no stage inside it reports clipping",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_stage_must_not_do_is_refused_by_name(case):
    _, options, message = CASES[case]
    options = dict(options)
    whole = options.pop("whole", False)
    stage = (WholeAround if whole else Around)(which=case)
    layer = nn.Conv(2, (3,), use_bias=False) if whole else None
    x = jnp.ones((2, 6, 2)) if whole else jnp.ones((4, 3))
    with pytest.raises(ValueError, match=message):
        output(stage, x=x, layer=layer, **options)


def test_a_draw_for_all_vectors_cannot_be_read_again_for_one():
    @hw.register("stage", "test_common", inside="adc")
    class Common(hw.Part):
        draws = "read"

        def around(self, inner, x, ctx):
            return inner(x) + ctx.normal("common", ())

    options = {"bound_management": "iterative", "out_bound": 1.0}
    with pytest.raises(ValueError, match="which reads single vectors again"):
        output(Common(), x=jnp.ones((4, 3)), **options)


@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR"])
def test_an_offset_of_inputs_reaches_the_border_of_a_convolution(padding):
    from .devices import InputOffset

    layer = nn.Conv(1, (3,), padding=padding, use_bias=False)
    y = output(InputOffset(offset=0.5), x=jnp.ones((1, 4, 1)), kernel=1.0, layer=layer)
    edges = [3.5, 4.5, 4.5, 3.5] if padding == "SAME" else [4.5] * 4
    expected = edges if padding != "VALID" else [4.5] * 2
    np.testing.assert_allclose(y.ravel(), expected, rtol=1e-6)


def test_a_mean_over_rows_can_leave_the_padding_out():
    @hw.register("stage", "test_centred", inside="input_asymmetry", outside="adc")
    class Centred(hw.Part):
        def around(self, inner, x, ctx):
            real = jnp.broadcast_to(ctx.valid_inputs(x), x.shape)
            mean = jnp.mean(x, axis=-1, keepdims=True, where=real)
            return inner(jnp.where(real, x - mean, 0))

    x = jax.random.normal(KEY, (3, 13))
    hardware = hw.Hardware(
        forward=hw.IOParameters(stages=(Centred(),)),
        mapping=hw.MappingParameter(max_input_size=7),
    )
    analog = hw.analogize(nn.Dense(4, use_bias=False), hardware)
    variables = analog.init(jax.random.key(0), x)
    w = np.asarray(variables["params"]["kernel"])
    parts = [np.asarray(x)[:, :7], np.asarray(x)[:, 7:]]
    parts = [part - part.mean(1, keepdims=True) for part in parts]
    expected = parts[0] @ w[:7] + parts[1] @ w[7:]
    np.testing.assert_allclose(analog.apply(variables, x), expected, atol=1e-5)


def mine(body, **members):
    return type("Mine", (hw.Part,), {"__annotations__": body, **members})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mine({"limit": float | None}, limit=0.1), "make None its default"),
        (lambda: mine({"describe": str}), "a field cannot be called describe"),
        (lambda: mine({}, draws="reads"), "draws should be one of none, step, chip"),
        (lambda: type("Mine", (), {}), "inherits from hwtrain.Part"),
        (lambda: Noise, "is already registered as the stage 'test_noise'"),
    ],
)
def test_a_class_that_cannot_be_a_part_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        hw.register("stage", "test_mine")(make())


@hw.register("stage", "test_common_mode", inside="output_noise")
class CommonMode(hw.Part):
    """Noise that the outputs of a tile share, from the shape that it asked for."""

    draws = "read"

    def around(self, inner, x, ctx):
        noise = ctx.normal("noise", (x.shape[0], 3))
        assert noise.shape == (x.shape[0], 3) and noise.dtype == jnp.float32
        total = jnp.sum(noise, axis=1)
        return inner(x) + total[:, None, None, None]


@pytest.mark.parametrize("mode", [hw.train_mode, hw.chip_mode, hw.eval_mode])
def test_noise_has_its_shape_where_nothing_is_drawn(mode):
    x = jnp.ones((READS, 4))
    io = hw.IOParameters(stages=(CommonMode(),))
    analog = hw.analogize(nn.Dense(2, use_bias=False), hw.Hardware(forward=io))
    variables = analog.init(KEY, x[:1])
    y = mode(analog).apply(variables, x, rngs={"mismatch": KEY})
    deviation = np.float64(y - x @ variables["params"]["kernel"])
    if mode is hw.eval_mode:
        np.testing.assert_allclose(deviation, 0, atol=1e-6)
    else:
        assert abs(deviation[:, 0].std() / 3**0.5 - 1) < 5 / np.sqrt(2 * READS)


@pytest.mark.parametrize("layer", [nn.Dense(3), nn.Conv(3, (2,))])
def test_no_built_in_stage_adds_zeros_where_nothing_is_drawn(layer, monkeypatch):
    def normal(self, effect, shape):
        raise AssertionError(f"{effect} is asked for")

    io = hw.IOParameters(
        **{"inp_bits": 6, "inp_noise": 0.1, "out_noise": 0.1, "out_noise_std": 0.1},
        **{"w_noise": 0.1, "w_noise_type": "pcm_read", "v_offset_std": 0.1},
        **{"out_bound": 9.0, "out_nonlinearity": 0.1, "out_nonlinearity_std": 0.1},
    )
    modifier = hw.WeightModifierParameter(
        type="add_normal", std_dev=0.1, per_vector=True
    )
    analog = hw.analogize(layer, hw.Hardware(forward=io, modifier=modifier))
    x = jnp.ones((2, 5, 4))
    variables = analog.init(KEY, x)
    monkeypatch.setattr(Context, "normal", normal)
    hw.eval_mode(analog).apply(variables, x)
    with pytest.raises(AssertionError, match="is asked for"):
        analog.apply(variables, x, rngs={"mismatch": KEY})


def test_fields_that_cannot_be_compared_are_refused():
    part = hw.register("stage", "test_lists")(mine({"values": list}))
    with pytest.raises(ValueError, match="tuples for lists"):
        hw.IOParameters(stages=(part(values=[1.0]),))


def test_none_goes_to_data_and_back():
    part = hw.register("stage", "test_none")(mine({"limit": float | None}, limit=None))
    for stage in (part(), part(limit=0.1)):
        hardware = hw.Hardware(forward=hw.IOParameters(stages=(stage,)))
        data = hw._parts.fields.to_dict(hardware)
        assert hw._parts.fields.from_dict(hw.Hardware, data) == hardware


@hw.register("stage", "test_others", inside="output_noise")
class Others(hw.Part):
    """A read of the tile with other weights."""

    whole = True

    def around(self, inner, x, ctx):
        return inner(x, weights=2 * ctx.w)


@hw.register("stage", "test_doubled", inside="output_noise")
class Doubled(hw.Part):
    def around(self, inner, x, ctx):
        return inner(x) + inner(x, weights=2 * ctx.w)


def test_a_read_may_have_other_weights():
    x = jax.random.normal(jax.random.key(0), (3, 8))
    plain = output(x=x, layer=nn.Dense(2, use_bias=False))
    found = output(Doubled(), x=x, layer=nn.Dense(2, use_bias=False))
    np.testing.assert_allclose(found, 3 * plain, rtol=1e-5)
    x, conv = x[..., None], nn.Conv(2, (3,), use_bias=False)
    np.testing.assert_allclose(
        output(Doubled(), x=x, layer=conv), 3 * output(x=x, layer=conv), rtol=1e-5
    )
    with pytest.raises(ValueError, match="leave whole out"):
        output(Others(), x=x, layer=conv)
