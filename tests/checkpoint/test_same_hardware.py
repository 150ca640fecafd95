"""A checkpoint's chip is only used with its own hardware."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain.checkpoint import HardwareCheckpointError, export, load

X = jnp.ones((2, 3))
CHIP = hw.Hardware(
    modifier=hw.WeightModifierParameter(type="add_normal", std_dev=0.1),
    clip=hw.WeightClipParameter(type="layer_gaussian", sigma=2.5),
    input_range=hw.InputRangeParameter(),
    forward=hw.IOParameters(inp_bits=8, out_bits=8, out_bound=10.0),
    mapping=hw.MappingParameter(weight_scaling_omega=1.0),
    mismatch=hw.MismatchParameter(type="mult_normal", std_dev=0.1),
    converter=hw.SinglePairConductanceConverter(g_max=25.0),
    noise_model=hw.PCMLikeNoiseModel(),
    drift_compensation=hw.GlobalDriftCompensation(),
)
OTHERS = {
    "forward.inp_bits": {"forward": dataclasses.replace(CHIP.forward, inp_bits=4)},
    "mapping.weight_scaling_omega": {
        "mapping": hw.MappingParameter(weight_scaling_omega=0.5)
    },
    "mismatch.std_dev": {
        "mismatch": hw.MismatchParameter(type="mult_normal", std_dev=0.3)
    },
    "mismatch=": {"mismatch": None},
    "converter=": {
        "converter": hw.NPairConductanceConverter(f_lst=(1.0, 3.0), g_max=25.0)
    },
    "noise_model.drift_scale": {"noise_model": hw.PCMLikeNoiseModel(drift_scale=2.0)},
    "noise_model=": {"noise_model": hw.StateIndependentNoiseModel(g_max=25.0)},
    "drift_compensation=": {"drift_compensation": hw.PerColumnDriftCompensation()},
    "drift_compensation.readout": {
        "drift_compensation": hw.GlobalDriftCompensation(readout="exact")
    },
    "stuck=": {"stuck": hw.StuckParameter(at_g_min=0.1)},
    "modifier=": {
        "modifier": hw.WeightModifierParameter(
            type="add_normal", std_dev=0.1, enable_during_test=True
        )
    },
    "input_range.dynamic": {"input_range": hw.InputRangeParameter(dynamic=True)},
}
TRAINING = {
    "modifier": hw.WeightModifierParameter(type="mult_normal", std_dev=0.7),
    "clip": hw.WeightClipParameter(type="layer_gaussian", sigma=1.5),
    "input_range": hw.InputRangeParameter(decay=0.5),
}


def linen(hardware):
    analog = hw.analogize(nn.Dense(4), hardware)
    return analog, analog.init(jax.random.key(0), X)


def of_nnx(hardware):
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    return hw.analogize(model, hardware, rngs=nnx.Rngs(mismatch=1))


@pytest.fixture(scope="module")
def linen_checkpoint(tmp_path_factory):
    analog, variables = linen(CHIP)
    plan = hw.plan(analog, variables, X)
    path = tmp_path_factory.mktemp("linen") / "chip"
    return load(export(path, variables, plan, chip_seed=7))


@pytest.fixture(scope="module")
def nnx_checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("nnx") / "chip"
    return load(export(path, of_nnx(CHIP), chip_seed=7))


def evaluated(analog, variables):
    return hw.evaluate.population(
        analog,
        variables,
        [(X,)],
        lambda y: y.mean(-1),
        chips=[7],
        key=jax.random.key(1),
    ).values


@pytest.mark.sampled(3)
@pytest.mark.parametrize("difference", OTHERS)
def test_other_hardware_is_refused(difference, linen_checkpoint, nnx_checkpoint):
    other = dataclasses.replace(CHIP, **OTHERS[difference])
    analog, _ = linen(other)
    model = of_nnx(other)
    expected = f"(?s){difference}.*in the model.*analogize the model with checkpoint"
    with pytest.raises(HardwareCheckpointError, match=expected):
        evaluated(analog, linen_checkpoint)
    with pytest.raises(HardwareCheckpointError, match=expected):
        evaluated(model, nnx_checkpoint)
    with pytest.raises(HardwareCheckpointError, match=f"{expected}.*into"):
        nnx_checkpoint.into(model, chip=7)
    if difference != "input_range.dynamic":  # which has other leaves
        nnx_checkpoint.into(model)


def test_chips_of_other_hardware_are_drawn_from_nominal_weights(linen_checkpoint):
    found = []
    for mismatch in (CHIP.mismatch, OTHERS["mismatch.std_dev"]["mismatch"]):
        analog, _ = linen(dataclasses.replace(CHIP, mismatch=mismatch))
        found.append(evaluated(analog, linen_checkpoint.variables))
    np.testing.assert_array_equal(found[0], evaluated(linen(CHIP)[0], linen_checkpoint))
    assert (found[0] != found[1]).all()


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", TRAINING)
def test_what_acts_in_training_alone_may_differ(name, linen_checkpoint, nnx_checkpoint):
    other = dataclasses.replace(CHIP, **{name: TRAINING[name]})
    for make, checkpoint in (
        (lambda chip: linen(chip)[0], linen_checkpoint),
        (of_nnx, nnx_checkpoint),
    ):
        found, expected = (evaluated(make(chip), checkpoint) for chip in (other, CHIP))
        np.testing.assert_array_equal(found, expected)
    nnx_checkpoint.into(of_nnx(other), chip=7)


def test_other_layers_are_refused(nnx_checkpoint):
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    digital = hw.analogize(
        model, [hw.Rule(params="kernel", hardware=None)], rngs=nnx.Rngs(mismatch=1)
    )
    with pytest.raises(HardwareCheckpointError, match="kernel"):
        nnx_checkpoint.into(digital, chip=7)
