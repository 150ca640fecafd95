"""Layers that are easily overlooked: analog in every mode, digital or refused by name.

Subclasses that call `super()`, stacks on other axes, raw parameters, shared kernels,
and layers that are called from outside.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw

CONVERTED = hw.Hardware(
    modifier=hw.WeightModifierParameter(type="add_normal", std_dev=0.1),
    forward=hw.IOParameters(inp_bits=2, out_noise=0.1),
)
X = jax.random.normal(jax.random.key(1), (6, 4))
MODES = {"train": hw.train_mode, "chip": hw.chip_mode, "eval": hw.eval_mode}


def linen(model, rules, x=X):
    """Returns the plan, and by mode the outputs of two calls, and the plain ones."""
    analog = hw.analogize(model, rules)
    variables = analog.init(jax.random.key(0), x)
    plan = hw.plan(analog, variables, x)
    outputs = {
        name: [
            mode(analog).apply(variables, x, rngs={"mismatch": jax.random.key(seed)})
            for seed in (1, 2)
        ]
        for name, mode in MODES.items()
    }
    plain = model.apply({"params": hw.strip(variables["params"], plan)}, x)
    return plan, outputs, plain


def of_nnx(model, rules, x=X):
    plain = model(x)
    analog = hw.analogize(model, rules, rngs=nnx.Rngs(mismatch=0))
    outputs = {n: [mode(analog)(x) for _ in range(2)] for n, mode in MODES.items()}
    return hw.plan(analog), outputs, plain


def check_analog(outputs, plain):
    """In every mode the converters act, and noise is drawn in those that draw."""
    for mode, (first, second) in outputs.items():
        assert np.abs(first - plain).max() > 0.05, mode
        assert (np.abs(first - second).max() > 1e-3) == (mode != "eval"), mode


class Added(nn.Dense):
    def __call__(self, x):
        return super().__call__(2 * x) + 1


class Twice(Added):
    def __call__(self, x):
        return super().__call__(x) - super().__call__(2 * x)


class WithOwn(nn.Dense):
    @nn.compact
    def __call__(self, x):
        y = super().__call__(x)
        return y * self.param("gain", nn.initializers.ones, (4,))


class Convolved(nn.Conv):
    def __call__(self, x):
        return super().__call__(x) + 1


class Summed(nn.Einsum):
    def __call__(self, x):
        return super().__call__(x) + 1


class Holder(nn.Module):
    layer: nn.Module

    @nn.compact
    def __call__(self, x):
        return self.layer(x)


LAYERS = {
    "dense": (lambda: Added(4), X),
    "twice": (lambda: Twice(4), X),
    "own parameter": (lambda: WithOwn(4), X),
    "remat": (lambda: nn.remat(Added)(4), X),
    "convolution": (lambda: Convolved(4, (2,)), X[None]),
    "einsum": (lambda: Summed((4, 3), "bi,io->bo"), X),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_linen_layer_that_calls_super_is_analog(kind, held):
    layer, x = LAYERS[kind]
    plan, *results = linen(Holder(layer()) if held else layer(), CONVERTED, x)
    assert list(plan) == ["layer/kernel" if held else "kernel"]
    check_analog(*results)


class NnxAdded(nnx.Linear):
    def __call__(self, x):
        return super().__call__(2 * x) + 1


class NnxTwice(NnxAdded):
    def __call__(self, x):
        return super().__call__(x) - super().__call__(2 * x)


class NnxConvolved(nnx.Conv):
    def __call__(self, x):
        return super().__call__(x) + 1


class NnxHolder(nnx.Module):
    def __init__(self, layer):
        self.layer = layer

    def __call__(self, x):
        return self.layer(x)


NNX_LAYERS = {
    "dense": (lambda: NnxAdded(4, 4, rngs=nnx.Rngs(0)), X),
    "twice": (lambda: NnxTwice(4, 4, rngs=nnx.Rngs(0)), X),
    "convolution": (lambda: NnxConvolved(4, 4, (2,), rngs=nnx.Rngs(0)), X[None]),
}


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("kind", NNX_LAYERS)
def test_an_nnx_layer_that_calls_super_is_analog(kind, held):
    layer, x = NNX_LAYERS[kind]
    plan, *results = of_nnx(NnxHolder(layer()) if held else layer(), CONVERTED, x)
    assert list(plan) == ["layer/kernel" if held else "kernel"]
    check_analog(*results)


class Own(nn.Dense):
    @nn.compact
    def __call__(self, x):
        return x @ self.param("kernel", self.kernel_init, (4, 4))


class NnxOwn(nnx.Linear):
    def __call__(self, x):
        return x @ self.kernel[...]


class NnxDirect(nnx.Linear):
    """Calls `nnx.Linear` by name, not by `super()`, so no analog class comes first."""

    def __call__(self, x):
        return nnx.Linear.__call__(self, x)


@pytest.mark.parametrize("layer", [Own, NnxOwn, NnxDirect])
def test_a_layer_that_multiplies_in_its_own_way_is_named_as_digital(layer):
    with pytest.raises(ValueError, match=f"{layer.__name__}: it overrides"):
        if layer is Own:
            linen(Holder(Own(4)), CONVERTED)
        else:
            of_nnx(NnxHolder(layer(4, 4, rngs=nnx.Rngs(0))), CONVERTED)


class Raw(nn.Module):
    @nn.compact
    def __call__(self, x):
        w = self.param("kernel", nn.initializers.lecun_normal(), (4, 3))
        return jnp.einsum("bi,io->bo", nn.Dense(4, name="dense")(x), w)


class NnxRaw(nnx.Module):
    def __init__(self):
        self.dense = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
        self.kernel = nnx.Param(jax.random.normal(jax.random.key(2), (4, 3)))

    def __call__(self, x):
        return jnp.einsum("bi,io->bo", self.dense(x), self.kernel[...])


@pytest.mark.parametrize(("run", "model"), [(linen, Raw), (of_nnx, NnxRaw)])
def test_a_layer_of_raw_parameters_is_named_as_digital_and_has_noise_by_a_rule(
    run, model
):
    plan, *results = run(model(), CONVERTED)
    assert list(plan) == ["dense/kernel"]
    assert "kernel" in {entry.path for entry in plan.digital}
    check_analog(*results)
    with pytest.raises(ValueError, match="forward, which only a layer can have"):
        run(model(), hw.Rule(params="kernel", hardware=CONVERTED))
    noisy = hw.Hardware(modifier=CONVERTED.modifier)
    plan, outputs, plain = run(model(), hw.Rule(params="kernel", hardware=noisy))
    assert list(plan) == ["kernel"]
    assert np.abs(outputs["train"][0] - plain).max() > 0.02
    np.testing.assert_allclose(outputs["chip"][0], plain, rtol=1e-5, atol=1e-6)


class Step(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.Dense(4, name="dense", use_bias=False)(x), None


class Stack(nn.Module):
    """The stack is as large as inputs and outputs, so shapes do not tell the axis."""

    lift: str
    axis: int

    @nn.compact
    def __call__(self, x):
        options = {"variable_axes": {"params": self.axis}, "split_rngs": {"params": 1}}
        if self.lift == "scan":
            return nn.scan(Step, length=4, **options)(name="steps")(x, None)[0]
        lifted = nn.vmap(Step, axis_size=4, in_axes=(None, None), **options)
        return lifted(name="steps")(x, None)[0]


class NnxStack(nnx.Module):
    def __init__(self, lift, axis, of=...):
        self.lift = lift
        self.axes = nnx.StateAxes({of: axis, **({} if of is ... else {...: None})})

        @nnx.vmap(in_axes=0, out_axes=self.axes, axis_size=4)
        def make(key):
            return nnx.Linear(4, 4, use_bias=False, rngs=nnx.Rngs(key))

        self.steps = make(jax.random.split(jax.random.key(0), 4))

    def __call__(self, x):
        if self.lift == "scan":
            axes = (nnx.Carry, self.axes)
            scan = nnx.scan(lambda x, f: f(x), in_axes=axes, out_axes=nnx.Carry)
            return scan(x, self.steps)
        return nnx.vmap(lambda f, x: f(x), in_axes=(self.axes, None))(self.steps, x)


@pytest.mark.sampled
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("lift", ["scan", "vmap"])
@pytest.mark.parametrize(("run", "model"), [(linen, Stack), (of_nnx, NnxStack)])
def test_a_stack_on_another_axis_than_the_first_is_refused(run, model, lift, axis):
    if axis == 0:
        check_analog(*run(model(lift, 0), CONVERTED)[1:])
        return
    match = "'transpose' stands between the two, as where layers are stacked on"
    with pytest.raises(ValueError, match=match):
        run(model(lift, axis), CONVERTED)


@pytest.mark.parametrize("mode", ["train", "chip"])
@pytest.mark.parametrize("lift", ["scan", "vmap"])
def test_an_nnx_stack_whose_noise_keys_are_not_mapped_is_refused(lift, mode):
    model = NnxStack(lift, 0, nnx.Param)
    analog = hw.analogize(model, CONVERTED, rngs=nnx.Rngs(mismatch=0))
    assert np.abs(hw.eval_mode(analog)(X) - model(X)).max() > 0.05
    with pytest.raises(ValueError, match=r"nnx.StateAxes\({nnx.RngState: None, ...: 0"):
        MODES[mode](analog)(X)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("hardware", ["noisy", "still"])
def test_an_nnx_layer_called_from_outside_is_an_error_where_it_would_draw(
    hardware, mode
):
    still = hw.Hardware(forward=hw.IOParameters(inp_bits=2))
    model = NnxHolder(NnxHolder(nnx.Linear(4, 4, rngs=nnx.Rngs(0))))
    plain = model(X)
    chip = CONVERTED if hardware == "noisy" else still
    analog = MODES[mode](hw.analogize(model, chip, rngs=nnx.Rngs(mismatch=0)))
    for call in (analog.layer, analog.layer.layer):
        if hardware == "noisy" and mode != "eval":
            with pytest.raises(ValueError, match="called without its analog model"):
                call(X)
        else:
            assert np.abs(call(X) - plain).max() > 0.05


class Shared(nnx.Module):
    """A kernel of two layers, or of a layer and a name that comes before it."""

    def __init__(self, how):
        self.first = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
        self.second = nnx.Linear(4, 4, rngs=nnx.Rngs(1))
        if how == "layers":
            self.second.kernel = self.first.kernel
        else:
            self.alias = self.first.kernel

    def __call__(self, x):
        return self.second(self.first(x))


@pytest.mark.parametrize(
    ("how", "match"), [("layers", "share one kernel"), ("alias", "share one kernel")]
)
def test_a_kernel_that_an_nnx_model_holds_twice_is_refused(how, match):
    with pytest.raises(ValueError, match=match):
        of_nnx(Shared(how), CONVERTED)


class Passed(nn.Module):
    @nn.compact
    def __call__(self, x):
        first = nn.Dense(4, name="first")
        y = first(x)
        kernel = first.variables["params"]["kernel"]
        return Multiplied(name="second")(y, kernel)


class Multiplied(nn.Module):
    @nn.compact
    def __call__(self, x, kernel):
        return x @ kernel


def test_a_kernel_that_a_linen_layer_passes_to_another_is_refused():
    with pytest.raises(ValueError, match="multiplies by first/kernel itself"):
        linen(Passed(), CONVERTED)
