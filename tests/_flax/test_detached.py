"""Other models that run inside an analog model's call are not among its layers."""

import jax
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw

CONVERTERS = hw.Hardware(
    modifier=hw.WeightModifierParameter(type="add_normal", std_dev=0.1),
    forward=hw.IOParameters(inp_bits=2, out_noise=0.1),
)
X = jax.random.normal(jax.random.key(1), (6, 4))
MODES = {"train": hw.train_mode, "chip": hw.chip_mode, "eval": hw.eval_mode}


class Student(nn.Module):
    """A model whose layers have the same names as the teacher's."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="dense")(x)


TEACHER = Student()
HELD = TEACHER.init(jax.random.key(7), X)
BARE = nn.Dense(4)
BARE_HELD = BARE.init(jax.random.key(8), X)


class Applied(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="dense")(x), TEACHER.apply(HELD, x)


class Bare(nn.Module):
    """A model whose teacher has the path of the root itself."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="dense")(x), BARE.apply(BARE_HELD, x)


class Bound(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="dense")(x), TEACHER.bind(HELD)(x)


class InScan(nn.Module):
    """The root is lifted, so that its own scopes begin anew too."""

    @nn.compact
    def __call__(self, x):
        def step(module, carry, _):
            y = nn.Dense(4, name="dense")(carry)
            return y, TEACHER.apply(HELD, x)

        rngs, broadcast = {"params": False}, "params"
        scan = nn.scan(step, variable_broadcast=broadcast, split_rngs=rngs, length=1)
        y, taught = scan(self, x, None)
        return y, taught[0]


class InRemat(nn.Module):
    @nn.remat
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="dense")(x), TEACHER.apply(HELD, x)


class Initialised(nn.Module):
    """A model that is initialised inside, as a random projection."""

    @nn.compact
    def __call__(self, x):
        taught, _ = TEACHER.init_with_output(jax.random.key(7), x)
        return nn.Dense(4, name="dense")(x), taught


def taught_by(model):
    return BARE.apply(BARE_HELD, X) if model is Bare else TEACHER.apply(HELD, X)


MODELS = [Applied, Bare, Bound, InScan, InRemat, Initialised]


@pytest.mark.sampled
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("model", MODELS)
def test_a_linen_model_that_is_applied_inside_stays_plain(model, mode):
    analog = hw.analogize(model(), CONVERTERS)
    variables = analog.init(jax.random.key(0), X)
    assert {*variables["params"]["dense"]} == {"kernel", "bias"}
    assert list(hw.plan(analog, variables, X)) == ["dense/kernel"]
    rngs = {"mismatch": jax.random.key(0)}
    y, taught = MODES[mode](analog).apply(variables, X, rngs=rngs)
    np.testing.assert_allclose(taught, taught_by(model), rtol=1e-6)
    plain, _ = model().apply(variables, X)
    assert np.abs(y - plain).max() > 0.02


class OfNnx(nnx.Module):
    def __init__(self):
        self.dense = nnx.Linear(4, 4, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.dense(x), NNX_TEACHER(x)


NNX_TEACHER = nnx.Linear(4, 4, rngs=nnx.Rngs(7))


@pytest.mark.parametrize("mode", MODES)
def test_an_nnx_model_that_is_called_inside_stays_plain(mode):
    analog = hw.analogize(OfNnx(), CONVERTERS, rngs=nnx.Rngs(mismatch=0))
    y, taught = MODES[mode](analog)(X)
    np.testing.assert_allclose(taught, NNX_TEACHER(X), rtol=1e-6)
    assert np.abs(y - OfNnx()(X)[0]).max() > 0.02


@pytest.mark.parametrize("mode", MODES)
def test_an_analog_linen_model_that_is_applied_inside_is_its_own(mode):
    inner = MODES[mode](hw.analogize(Student(), CONVERTERS))
    held = inner.init(jax.random.key(7), X)

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            taught = inner.apply(held, x, rngs={"mismatch": jax.random.key(3)})
            return nn.Dense(4, name="dense")(x), taught

    ranged = hw.Hardware(input_range=hw.InputRangeParameter())
    analog = hw.analogize(Outer(), ranged)
    variables = analog.init(jax.random.key(0), X)
    _, taught = analog.apply(variables, X)
    alone = inner.apply(held, X, rngs={"mismatch": jax.random.key(3)})
    np.testing.assert_allclose(taught, alone, rtol=1e-6)


class Distilled(nn.Module):
    """A model whose teacher is an analog model of the same class, at the same path."""

    teaches: bool = False

    @nn.compact
    def __call__(self, x):
        y = nn.Dense(4, name="dense")(x)
        if self.teaches:
            return y
        return y, OLDER.apply(OLDER_HELD, x, rngs={"mismatch": jax.random.key(3)})


OLDER = hw.analogize(Distilled(teaches=True), CONVERTERS)
OLDER_HELD = OLDER.init(jax.random.key(7), X)


def test_an_analog_model_of_the_same_class_that_is_applied_inside_is_noisy():
    analog = hw.analogize(Distilled(), CONVERTERS)
    assert type(analog) is type(OLDER)
    variables = analog.init(jax.random.key(0), X)
    rngs = {"mismatch": jax.random.key(0)}
    _, taught = analog.apply(variables, X, rngs=rngs)
    # Not the numbers of a call of its own: this is the second layer of this path here.
    plain = Distilled(teaches=True).apply(OLDER_HELD, X)
    assert np.abs(taught - plain).max() > 0.02
