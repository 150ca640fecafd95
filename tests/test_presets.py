import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain import presets
from hwtrain._parts.fields import from_dict, to_dict
from hwtrain._plan.hardware import Hardware
from hwtrain.devices import (
    HermesNoiseModel,
    PCMLikeNoiseModel,
    ReRamCMONoiseModel,
    ReRamWan2022NoiseModel,
)

W = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)
NOISE = [
    (presets.pcm(), PCMLikeNoiseModel()),
    (presets.hermes(), HermesNoiseModel()),
    (presets.hermes(num_devices=1), HermesNoiseModel(num_devices=1)),
    (presets.reram_wan2022(), ReRamWan2022NoiseModel()),
    (presets.reram_cmo(), ReRamCMONoiseModel()),
]


@pytest.mark.parametrize(("chip", "noise"), NOISE)
def test_a_preset_s_conductances_are_those_of_its_noise_model(chip, noise):
    assert chip.converter.g_max == noise.g_max
    assert getattr(noise, "g_min", 0.0) == chip.converter.g_min
    conductances, params = chip.converter.convert_to_conductances(W)
    devices = [
        noise.program(jax.random.fold_in(jax.random.key(0), part), g)
        for part, g in enumerate(conductances)
    ]
    noisy = chip.converter.convert_back_to_weights([d.g_prog for d in devices], params)
    # The noisiest chip here has 2.5 of 40 µS; five standard deviations of a pair.
    assert 0 < float(jnp.abs(noisy - W).max()) < 5 * 2**0.5 * 2.5 / 40


WHOLE = [presets.standard_hwa_training(), presets.aihwkit_default()]
SRAM = presets.sram_c3()


@pytest.mark.parametrize(
    "chip", [presets.ideal(), SRAM, *WHOLE] + [chip for chip, _ in NOISE]
)
def test_presets_round_trip(chip):
    assert from_dict(Hardware, to_dict(chip)) == chip


def test_another_number_of_devices_is_an_error():
    with pytest.raises(ValueError, match="1 or 2 devices, got 3"):
        presets.hermes(num_devices=3)


def test_the_standard_training_preset_is_that_of_the_toolkit():
    # The numbers of aihwkit's StandardHWATrainingPreset.
    chip = presets.standard_hwa_training()
    io = chip.forward
    assert (io.dac.bound, io.dac.res, io.adc.bound, io.adc.res) == pytest.approx(
        (1.0, 1 / 254, 10.0, 1 / 254)
    )
    assert (io.out_noise, io.w_noise, io.w_noise_type) == (0.04, 0.0175, "pcm_read")
    assert (io.ir_drop, io.ir_drop_g_ratio) == pytest.approx((1.0, 1 / 0.35 / 5e-6))
    # The toolkit's is constant at one, which changes nothing.
    assert (io.noise_management, io.bound_management) == ("none", "none")
    assert chip.modifier is None
    assert chip.stores_scale and chip.remaps and chip.scales_outputs and chip.ranged


def test_the_default_preset_is_that_of_the_toolkit():
    io = presets.aihwkit_default().forward
    assert (io.dac.bound, io.dac.res, io.adc.bound, io.adc.res) == pytest.approx(
        (1.0, 1 / 126, 12.0, 1 / 510)
    )
    assert io.out_noise == 0.06
    assert (io.noise_management, io.bound_management) == ("abs_max", "iterative")
    assert (io.max_bm_factor, io.max_bm_res) == (1000.0, 0.25)


@pytest.mark.parametrize("chip", WHOLE, ids=["standard", "default"])
def test_a_whole_preset_acts_in_both_frameworks(chip):
    x = jax.random.normal(jax.random.key(0), (16, 6))
    linen = hw.analogize(nn.Dense(3, use_bias=False), chip)
    plain = nnx.Linear(6, 3, use_bias=False, rngs=nnx.Rngs(0))
    model = hw.analogize(plain, chip, rngs=nnx.Rngs(mismatch=1))
    params = hw.adopt(linen, {"kernel": plain.kernel[...]}, x)
    noisy = linen.apply({"params": params}, x, rngs={"mismatch": jax.random.key(1)})
    for y in (noisy, model(x)):
        error = jnp.abs(y - plain(x)).mean() / jnp.abs(plain(x)).mean()
        assert 0.005 < float(error) < 0.3
    (row,) = hw.inspect(model).rows
    assert "out_noise" in row["periphery"]
    assert row["programming"] == "pcm_like, global drift compensation"
