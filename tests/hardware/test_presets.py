import jax
import jax.numpy as jnp
import pytest

from hwtrain.hardware import (
    Hardware,
    HermesNoiseModel,
    PCMLikeNoiseModel,
    ReRamCMONoiseModel,
    ReRamWan2022NoiseModel,
    from_dict,
    presets,
    to_dict,
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


@pytest.mark.parametrize("chip", [presets.ideal()] + [chip for chip, _ in NOISE])
def test_presets_round_trip(chip):
    assert from_dict(Hardware, to_dict(chip)) == chip


def test_another_number_of_devices_is_an_error():
    with pytest.raises(ValueError, match="1 or 2 devices, got 3"):
        presets.hermes(num_devices=3)
