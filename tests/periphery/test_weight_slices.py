"""Weights whose slices are read alone: CrossSim, noise, gradients, proofs, costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain._parts.cost_constants import CostParameter
from hwtrain.devices import BitSlicedConductanceConverter
from hwtrain.evaluate import cost
from hwtrain.periphery import WeightSlices
from hwtrain.periphery._read_keys import read_keys
from hwtrain.periphery.mvm import analog_mvm

KEY = jax.random.key(0)


def outputs(x, w, stages, **options):
    sizes = {"row_sizes": (w.shape[0],), "column_sizes": (w.shape[1],)}
    return analog_mvm(x, w, stages, **{**sizes, **options})


def test_slices_are_read_and_converted_as_in_crosssim(golden):
    for name, case in golden("crosssim_bit_slices").items():
        w = jnp.asarray(case["w"], jnp.float32).T
        x = jnp.asarray(case["x"], jnp.float32).T
        converter = BitSlicedConductanceConverter(bits=case["bits"])
        held = converter.convert_back_to_weights(*converter.convert_to_conductances(w))
        largest = jnp.abs(w).max()
        adc = {}
        if case["adc_bits"]:
            adc = {"out_bits": case["adc_bits"], "out_bound": case["limit"]}
        slices = WeightSlices(bits=tuple(case["bits"]))
        io = hw.IOParameters(stages=(slices,), **adc)
        found = largest * outputs(x, held / largest, io.parts)
        expected = np.transpose(case["y"])
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5, err_msg=name)
        if adc:
            at_once = hw.IOParameters(**adc)
            other = largest * outputs(x, held / largest, at_once.parts)
            assert np.abs(other - expected).max() > 0.01


@pytest.mark.parametrize("row_sizes", [(9,), (5, 4)])
def test_slices_without_an_adc_give_the_product(row_sizes):
    x, w = jax.random.normal(KEY, (4, 9)), jax.random.uniform(KEY, (9, 5)) - 0.5
    stage = WeightSlices(bits=(3, 1, 2), largest=0.4)
    found = outputs(x, w, (stage,), row_sizes=row_sizes)
    np.testing.assert_allclose(found, x @ w, atol=1e-5)


def test_every_slice_has_noise_of_its_own():
    n, sigma = 4000, 0.3
    stage = WeightSlices(bits=(2, 3), largest=2.0)
    io = hw.IOParameters(out_noise=sigma, stages=(stage,))
    x, w = jnp.ones((n, 6)), jnp.full((6, 5), 0.7)
    found = outputs(x, w, io.parts, keys=read_keys(KEY)) - x @ w
    expected = sigma * 2.0 / 31 * np.hypot(3, 4 * 7)
    assert abs(np.std(found) / expected - 1) < 4 / np.sqrt(2 * found.size)


def test_gradients_are_those_of_the_product():
    x, w = jax.random.normal(KEY, (4, 9)), jax.random.uniform(KEY, (9, 5)) - 0.5
    stage = WeightSlices(bits=(2, 2))

    def loss(x, w):
        return jnp.sum(jnp.square(outputs(x, w, (stage,))))

    found = jax.grad(loss, (0, 1))(x, w)
    expected = jax.grad(lambda x, w: jnp.sum(jnp.square(x @ w)), (0, 1))(x, w)
    for ours, theirs in zip(found, expected):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


LAYERS = {
    "dense": (nn.Dense(7), (5, 12)),
    "convolution": (nn.Conv(4, (3,), feature_group_count=2), (2, 6, 4)),
}
HARDWARE = hw.Hardware(
    forward=hw.IOParameters(
        out_bits=6, out_bound=3.0, stages=(WeightSlices(bits=(2, 2)),)
    ),
    mapping=hw.MappingParameter(weight_scaling_omega=1.0),
)


@pytest.mark.parametrize("layer", LAYERS)
def test_slices_are_proved_in_layers(layer, monkeypatch):
    module, shape = LAYERS[layer]
    x = jax.random.normal(KEY, shape)
    analog = hw.analogize(module, HARDWARE)
    variables = analog.init(jax.random.key(1), x)
    assert "weight slices" in str(hw.assert_active(analog, variables, x))
    assert "weight slices 2+2" in str(hw.inspect(analog, variables, x))
    monkeypatch.setattr(WeightSlices, "around", lambda self, inner, x, ctx: inner(x))
    jax.clear_caches()
    with pytest.raises(ValueError, match="weight slices"):
        hw.assert_active(analog, variables, x)
    jax.clear_caches()


def test_slices_are_on_in_nnx_and_in_every_mode():
    x = jax.random.normal(KEY, (5, 12))
    model = nnx.Linear(12, 7, rngs=nnx.Rngs(0))
    plain = hw.Hardware(
        forward=hw.IOParameters(out_bits=6, out_bound=3.0), mapping=HARDWARE.mapping
    )
    for mode in (hw.train_mode, hw.chip_mode, hw.eval_mode):
        sliced, whole = (
            mode(hw.analogize(model, chip))(x) for chip in (HARDWARE, plain)
        )
        assert jnp.max(jnp.abs(sliced - whole)) > 1e-3


def test_slices_are_counted_as_energy():
    x = jnp.ones((1, 10))
    converter = BitSlicedConductanceConverter(bits=(2, 2))
    constants = CostParameter(
        source="ours", conversion_energy_fj=1000.0, cell_energy_fj=1.0
    )
    found = {}
    for name, stages in {"sliced": (WeightSlices(bits=(2, 2)),), "whole": ()}.items():
        io = hw.IOParameters(out_bits=6, out_bound=3.0, stages=stages)
        mapping = hw.MappingParameter(weight_scaling_omega=1.0)
        chip = hw.Hardware(forward=io, converter=converter, mapping=mapping)
        analog = hw.analogize(nn.Dense(5, use_bias=False), chip)
        variables = analog.init(KEY, x)
        found[name] = cost(analog, variables, x, constants=constants).total.energy_fj
    # Each of the 4 devices of a weight is read once, by one of two passes or by one.
    assert found == {"sliced": 2 * 5 * 1000 + 200, "whole": 5 * 1000 + 200}


@pytest.mark.parametrize(
    "options, said",
    [
        ({"bits": (3,)}, "at least 2 entries"),
        ({"bits": (0, 2)}, "greater than or equal to 1"),
        ({"bits": (8, 9)}, "at most 16"),
        ({"bits": (2, 2), "largest": 0.0}, "greater than 0"),
    ],
)
def test_slices_that_cannot_be_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        WeightSlices(**options)
