"""No chip is ever drawn from a chip's weights; they are evaluated as they are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain._arrays import paths
from hwtrain.evaluate import population, sensitivity
from hwtrain.objectives import ObjectiveParameter, robust

MISMATCH = hw.MismatchParameter(type="add_normal", std_dev=0.3)
PAIR = hw.SinglePairConductanceConverter(g_max=25.0)
RANGE = hw.InputRangeParameter()
CHIPS = {
    "mismatch": hw.Hardware(mismatch=MISMATCH, input_range=RANGE),
    "programming": hw.Hardware(converter=PAIR, noise_model=hw.PCMLikeNoiseModel()),
    "stuck": hw.Hardware(converter=PAIR, stuck=hw.StuckParameter(at_g_min=0.3)),
    "scale": hw.Hardware(
        mismatch=MISMATCH,
        input_range=RANGE,
        forward=hw.IOParameters(inp_bits=8),
        mapping=hw.MappingParameter(weight_scaling_omega=1.0),
    ),
    "stored scale": hw.Hardware(
        mismatch=MISMATCH,
        forward=hw.IOParameters(inp_bits=8),
        clip=hw.WeightClipParameter(type="fixed_value", fixed_value=1.0),
        mapping=hw.MappingParameter(weight_scaling_omega=1.0),
    ),
    "periphery": hw.Hardware(
        mismatch=MISMATCH, forward=hw.IOParameters(v_offset_std=0.1)
    ),
    "levels": hw.Hardware(
        mismatch=MISMATCH,
        modifier=hw.WeightModifierParameter(
            type="discretize", res=0.1, enable_during_test=True
        ),
    ),
}
X = jax.random.normal(jax.random.key(0), (8, 6))


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="b")(nn.relu(nn.Dense(4, name="a")(x)))


class OfNnx(nnx.Module):
    def __init__(self):
        self.a = nnx.Linear(6, 4, rngs=nnx.Rngs(0))
        self.b = nnx.Linear(4, 3, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.b(nnx.relu(self.a(x)))


def of_nnx(hardware, name=None):
    return hw.analogize(OfNnx(), hardware, rngs=nnx.Rngs(mismatch=0), name=name)


def mean(y):
    return jnp.mean(y, axis=-1)


def loaded(hardware, framework, path, chip=0):
    """Returns a model, its plan, the checkpoint, and what has the weights of a chip."""
    if framework == "linen":
        analog = hw.analogize(Linen(), hardware)
        variables = analog.init(jax.random.key(0), X)
        plan = hw.plan(analog, variables, X)
        checkpoint = hw.load(hw.export(path, variables, plan, chip_seed=chip))
        return analog, plan, checkpoint, {"params": checkpoint.chip(chip)}
    analog = of_nnx(hardware)
    checkpoint = hw.load(hw.export(path, analog, chip_seed=chip))
    return analog, hw.plan(analog), checkpoint, checkpoint.into(analog, chip=chip)


def takers(analog, plan, checkpoint, chip, folder):
    """Returns by name what draws chips, of the weights of one."""
    whole = isinstance(chip, nnx.Module)
    params = checkpoint.chip(0)
    model, variables = (chip, None) if whole else (analog, chip)
    updated = nnx.clone(analog) if whole else None
    if whole:
        nnx.update(updated, params)  # by hand, as plain arrays
    study = {"chips": 2, "key": jax.random.key(0)}
    objective = ObjectiveParameter(type="mean_of_chips", chips=2)
    loss = robust(lambda params, key: jnp.zeros(()), plan, objective)
    optimizer = hw.optim.hardware_aware(
        optax.adam(1e-3), plan, input_range_learning_rate=0.0
    )
    zeros = jax.tree.map(jnp.zeros_like, params)
    state = optimizer.init(params)
    return {
        "export": lambda: hw.export(folder / "x", chip, plan, chip_seed=1),
        "export, no chip": lambda: hw.export(folder / "x", chip, plan),
        "export, updated": lambda: hw.export(folder / "x", updated or chip, plan),
        "population": lambda: population(model, variables, [(X,)], mean, **study),
        "population, updated": lambda: population(
            updated or model, variables, [(X,)], mean, **study
        ),
        "population, params": lambda: population(analog, params, [(X,)], mean, **study),
        "sensitivity": lambda: sensitivity(model, variables, [(X,)], mean, **study),
        "apply_mismatch": lambda: hw.apply_mismatch(params, plan, hw.chip_key(1)),
        "program_chip": lambda: hw.program_chip(params, plan, hw.chip_key(1)),
        "objective": lambda: loss(params, jax.random.key(0)),
        "hardware_aware": lambda: optimizer.update(zeros, state, params),
    }


@pytest.mark.sampled(2)
@pytest.mark.parametrize("framework", ["linen", "nnx"])
@pytest.mark.parametrize("kind", CHIPS)
def test_no_chip_is_drawn_of_a_chip(kind, framework, tmp_path):
    built = loaded(CHIPS[kind], framework, tmp_path / "chip")
    for name, draw in takers(*built, tmp_path).items():
        with pytest.raises(ValueError) as found:
            draw()
        taker = name.partition(",")[0]
        expected = rf"{taker}\b.* takes nominal weights, but these are a chip's: a/"
        if taker == "objective":
            expected = r"the objective of chips takes nominal weights"
        if taker == "hardware_aware":
            expected = r"trains nominal weights, but a/kernel belongs to a chip"
        assert found.match(expected), name
    assert not (tmp_path / "x").exists()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("framework", ["linen", "nnx"])
@pytest.mark.parametrize("kind", CHIPS)
def test_a_chip_itself_is_evaluated(kind, framework, tmp_path):
    analog, _, checkpoint, chip = loaded(CHIPS[kind], framework, tmp_path / "chip")
    if framework == "linen":
        rngs = {"mismatch": jax.random.key(0)}
        outputs = hw.chip_mode(analog).apply(chip, X, rngs=rngs)
    else:
        outputs = hw.chip_mode(chip)(X)
    found = population(
        analog, checkpoint, [(X,)], mean, chips=[0], key=jax.random.key(0)
    )
    if kind != "programming":  # whose reads have noise
        np.testing.assert_allclose(found.values, [outputs.mean()], rtol=1e-4)
    ideal = hw.eval_mode(analog)
    nominal = ideal(X) if framework == "nnx" else ideal.apply(checkpoint.variables, X)
    assert np.abs(outputs - nominal).max() > 1e-2


@pytest.mark.sampled(2)
@pytest.mark.parametrize("frozen", ["rule", "partition"])
@pytest.mark.parametrize("kind", ["mismatch", "programming", "scale", "stored scale"])
def test_what_stays_digital_is_tuned_on_a_chip(kind, frozen, tmp_path):
    hardware = CHIPS[kind]
    analog, plan, _, chip = loaded(hardware, "linen", tmp_path / "chip")
    base, params = optax.adamw(0.1, weight_decay=0.5), chip["params"]
    if frozen == "rule":
        rules = [hw.Rule(".*", hardware, frozen=True)]
        plan = hw.plan(hw.analogize(Linen(), rules), chip, X)
    else:
        tuned = lambda path, _: path.endswith("bias")  # noqa: E731
        labels = lambda params: paths.map_leaves(tuned, params)  # noqa: E731
        base = optax.partition({True: base, False: optax.set_to_zero()}, labels)
    optimizer = hw.optim.hardware_aware(base, plan, input_range_learning_rate=0.0)
    quiet = hw.eval_mode(analog)
    gradients = jax.grad(lambda p: jnp.sum(quiet.apply({"params": p}, X) ** 2))(params)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    moved = {path for path, leaf in paths.leaves(updates).items() if jnp.any(leaf != 0)}
    assert moved == {"a/bias", "b/bias"}


def test_ranges_are_calibrated_for_a_chip(tmp_path):
    analog, _, _, chip = loaded(CHIPS["mismatch"], "linen", tmp_path / "chip")
    found = hw.calibrate(analog, chip, [X], method="max")
    np.testing.assert_allclose(found["params"]["a"]["input_range"], jnp.abs(X).max())


@pytest.mark.parametrize("kind", CHIPS)
def test_a_chip_of_an_inner_model_is_told_by_its_prefix(kind):
    analog = of_nnx(CHIPS[kind], "inner")
    params = {"inner": nnx.to_pure_dict(nnx.state(analog, nnx.Param))}
    plan = hw.plan(analog)
    chip = hw.apply_mismatch(params, plan, hw.chip_key(0))
    with pytest.raises(ValueError, match="these are a chip's: inner/a/"):
        hw.apply_mismatch(chip, plan, hw.chip_key(1))
