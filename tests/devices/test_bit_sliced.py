"""Weights in slices of bits: CrossSim, checkpoints, chips, proofs, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain.checkpoint import verify
from hwtrain.devices import BitSlicedConductanceConverter as BitSliced

W = jax.random.normal(jax.random.key(0), (6, 4))
X = jax.random.normal(jax.random.key(1), (3, 6))


def test_devices_hold_the_levels_of_crosssim(golden):
    cases = golden("crosssim_bit_slices")
    assert len(cases) == 4
    for name, case in cases.items():
        converter = BitSliced(bits=case["bits"], g_min=2.0, g_max=12.0)
        w = jnp.asarray(case["w"], jnp.float32).T
        g, params = converter.convert_to_conductances(w)
        # [slices, positive and negative, outputs, inputs], of levels from 0 to 1.
        levels = np.moveaxis(np.asarray(case["levels"]), -1, -2)
        expected = 2.0 + 10.0 * levels.reshape(-1, *w.shape)
        np.testing.assert_allclose(g, expected, atol=1e-5, err_msg=name)
        back = converter.convert_back_to_weights(g, params)
        np.testing.assert_allclose(back, np.transpose(case["read_back"]), atol=1e-6)


def test_slices_of_several_sizes_are_the_bits_of_an_integer():
    converter = BitSliced(bits=(1, 3, 2), g_max=21.0)
    w = jnp.asarray(np.arange(-63, 64)[:, None] / 63, jnp.float32)
    g, params = converter.convert_to_conductances(w)
    found = np.rint(np.asarray(g)[:, :, 0] / (21 / np.repeat([1, 7, 3], 2))[:, None])
    for column, number in zip(found.T.astype(int), range(-63, 64)):
        own, other = (column[0::2], column[1::2])[:: 1 if number >= 0 else -1]
        assert list(own) == [abs(number) & 1, abs(number) >> 1 & 7, abs(number) >> 4]
        assert not other.any()
    assert converter.f_lst == (1, 14, 48)
    np.testing.assert_allclose(converter.convert_back_to_weights(g, params), w)


def test_noise_of_a_slice_weighs_by_its_factor():
    converter, n = BitSliced(bits=(2, 2, 2), g_max=30.0), 20_000
    w = jnp.ones((n, 1))
    g, params = converter.convert_to_conductances(w)
    for part, factor in enumerate((1, 4, 16)):
        noise = jax.random.normal(jax.random.key(part), (n, 1))
        noisy = [x + noise * (2 * part == i) for i, x in enumerate(g)]
        error = converter.convert_back_to_weights(noisy, params) - w
        expected = factor / (21 * 30)
        assert abs(error.std() / expected - 1) < 4 / np.sqrt(2 * n)


@pytest.mark.parametrize("per_column", [False, True])
def test_weights_between_levels_and_beyond_the_scale_come_back(per_column):
    converter = BitSliced(bits=(2, 2), per_column=per_column)
    _, params = converter.convert_to_conductances(W)
    others = 1.3 * W + 0.01
    back = converter.convert_back_to_weights(
        converter.convert_by_scale(others, params), params
    )
    np.testing.assert_allclose(back, others, atol=2e-6)


def test_the_gradient_passes_straight_through_the_rounding():
    converter = BitSliced(bits=(2, 2))

    def held(w):
        g, params = converter.convert_to_conductances(w)
        params = jax.lax.stop_gradient(params)
        return jnp.sum(X[:, :6] @ converter.convert_back_to_weights(g, params))

    # The largest weight is the scale, and not held.
    found = jax.grad(held)(W)
    expected = np.broadcast_to(np.asarray(X.sum(0))[:, None], W.shape)
    inside = np.abs(W) < np.abs(W).max()
    np.testing.assert_allclose(found[inside], expected[inside], rtol=1e-5)


def hardware(**parts):
    converter = BitSliced(bits=(2, 2), g_max=25.0)
    mapping = hw.MappingParameter(max_input_size=4, weight_scaling_omega=1.0)
    return hw.Hardware(converter=converter, mapping=mapping, **parts)


def rounded(w):
    """Weights of two row tiles, each rounded to 15 levels by NumPy."""
    tiles = np.split(np.asarray(w, np.float64), [3])
    scales = [np.abs(tile).max() / 15 for tile in tiles]
    return np.concatenate([np.rint(t / s) * s for t, s in zip(tiles, scales)])


def test_checkpoints_and_chips_hold_the_rounded_weights(tmp_path):
    for number, parts in enumerate(({}, {"noise_model": hw.PCMLikeNoiseModel()})):
        analog = hw.analogize(nn.Dense(4, use_bias=False), hardware(**parts))
        variables = analog.init(jax.random.key(0), X)
        plan = hw.plan(analog, variables, X)
        seeds = {"chip_seeds": (0, 1)} if parts else {}
        path = hw.export(tmp_path / str(number), variables, plan, **seeds)
        assert verify(path)["passed"]
        kernel = variables["params"]["kernel"]
        back = hw.load(path).reconstruct("kernel")
        np.testing.assert_allclose(back, rounded(kernel), atol=2e-6)
        assert np.abs(back - kernel).max() > 0.01
        if parts:
            same = hw.program_chip(variables["params"], plan, hw.chip_key(0)).at(60.0)
            stored = hw.load(path).chip(0, t_s=60.0)
            np.testing.assert_allclose(
                stored["kernel"], same["kernel"], rtol=1e-5, atol=1e-6
            )


def test_chip_mode_rounds_in_linen_and_in_nnx():
    analog = hw.analogize(nn.Dense(4, use_bias=False), hardware())
    variables = analog.init(jax.random.key(0), X)
    kernel = variables["params"]["kernel"]
    found = hw.chip_mode(analog).apply(variables, X)
    np.testing.assert_allclose(found, X @ rounded(kernel), atol=1e-5)
    np.testing.assert_allclose(analog.apply(variables, X), X @ kernel, atol=1e-5)
    model = nnx.Linear(6, 4, use_bias=False, rngs=nnx.Rngs(0))
    model.kernel[...] = kernel
    chip = hw.chip_mode(hw.analogize(model, hardware()))
    np.testing.assert_allclose(chip(X), X @ rounded(kernel), atol=1e-5)


def test_convolutions_round_as_they_are_exported(tmp_path):
    module = nn.Conv(4, (3,), feature_group_count=2, use_bias=False)
    x = jax.random.normal(jax.random.key(4), (2, 6, 4))
    analog = hw.analogize(module, hardware())
    variables = analog.init(jax.random.key(0), x)
    path = hw.export(tmp_path / "model", variables, hw.plan(analog, variables, x))
    held = {"params": {"kernel": hw.load(path).reconstruct("kernel")}}
    found = hw.chip_mode(analog).apply(variables, x)
    np.testing.assert_allclose(found, module.apply(held, x), atol=1e-5)
    assert np.abs(found - module.apply(variables, x)).max() > 0.01


def test_a_modifier_keeps_its_noise_beside_rounding_devices():
    noisy = hw.WeightModifierParameter(
        type="add_normal", std_dev=0.1, enable_during_test=True
    )
    analog = hw.analogize(nn.Dense(4, use_bias=False), hardware(modifier=noisy))
    variables = analog.init(jax.random.key(0), X)
    rngs = {"mismatch": jax.random.key(2)}
    found = hw.chip_mode(analog).apply(variables, X, rngs=rngs)
    kernel = variables["params"]["kernel"]
    assert np.abs(found - X @ rounded(kernel)).max() > 0.02


def test_the_levels_are_proved(monkeypatch):
    analog = hw.analogize(nn.Dense(20), hardware(noise_model=hw.PCMLikeNoiseModel()))
    x = jnp.ones((2, 12))
    variables = analog.init(jax.random.key(0), x)
    assert "levels" in str(hw.assert_active(analog, variables, x))

    def not_rounded(self, weights):
        scale = self.full_scale / jnp.max(jnp.abs(weights))
        params = {"scale_ratio": scale}
        return self.convert_by_scale(weights, params), params

    monkeypatch.setattr(BitSliced, "convert_to_conductances", not_rounded)
    jax.clear_caches()
    with pytest.raises(ValueError, match="levels: .* have another conductance"):
        hw.assert_active(analog, variables, x)
    jax.clear_caches()


def test_inspection_shows_the_slices():
    analog = hw.analogize(nn.Dense(4), hardware())
    variables = analog.init(jax.random.key(0), X)
    assert "bit_sliced 2+2 bits" in str(hw.inspect(analog, variables, X))


@pytest.mark.parametrize(
    "options, said",
    [
        ({"bits": ()}, "at least one entry"),
        ({"bits": (0, 2)}, "greater than or equal to 1"),
        ({"bits": (8, 9)}, "at most 16"),
        ({"bits": (2,), "g_min": 30.0}, "g_min must be below g_max"),
    ],
)
def test_slices_that_cannot_be_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        BitSliced(**options)
