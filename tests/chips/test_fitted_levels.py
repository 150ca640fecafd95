"""Clips for levels, against a search in NumPy and an integral."""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats
from flax import linen as nn

import hwtrain as hw

KEY = jax.random.key(0)


def levels(res=1 / 14, **options):
    return hw.WeightModifierParameter(
        type="discretize", res=res, enable_during_test=True, **options
    )


def planned(layer, x, hardware):
    analog = hw.analogize(layer, hardware)
    params = jax.jit(analog.init)(KEY, x)["params"]
    return params, hw.plan(analog, params, x)


def searched(w, res, candidates=100):
    """Returns the clip of least error of a group of weights, and that error."""
    largest = np.abs(w).max()
    clips = largest * np.arange(1, candidates + 1) / candidates
    errors = []
    for clip in clips:
        step = 2 * clip * res
        errors.append(((np.rint(np.clip(w, -clip, clip) / step) * step - w) ** 2).sum())
    return clips[int(np.argmin(errors))], min(errors)


def rounded(w, res):
    step = 2 * np.abs(w).max() * res
    return np.rint(w / step) * step


SCALED = hw.MappingParameter(
    weight_scaling_omega=0.6, max_input_size=20, max_output_size=4
)
GROUPS = {
    "whole": (hw.Hardware(modifier=levels()), [(slice(0, 40), slice(0, 8))]),
    "columns": (
        hw.Hardware(modifier=levels(1 / 6, per_column=True)),
        [(slice(0, 40), slice(j, j + 1)) for j in range(8)],
    ),
    "tiles": (
        hw.Hardware(modifier=levels(), mapping=SCALED),
        [(slice(i, i + 20), slice(j, j + 4)) for i in range(0, 40, 20) for j in (0, 4)],
    ),
}


@pytest.mark.parametrize("name", GROUPS)
def test_each_group_gets_the_clip_that_numpy_finds(name):
    hardware, groups = GROUPS[name]
    params, plan = planned(nn.Dense(8), jnp.ones((1, 40)), hardware)
    w = np.random.default_rng(0).standard_t(3, (40, 8)).astype(np.float32)
    params["kernel"] = jnp.asarray(w)
    fitted = hw.fit_levels(params, plan)
    assert (fitted["bias"] == params["bias"]).all()
    chip = hw.apply_mismatch(fitted, plan, hw.chip_key(0))["kernel"]
    before = hw.apply_mismatch(params, plan, hw.chip_key(0))["kernel"]
    res = hardware.modifier.res
    for where in groups:
        _, least = searched(np.float64(w[where]), res)
        clip = np.abs(np.asarray(fitted["kernel"])[where]).max()
        np.testing.assert_array_equal(
            np.asarray(fitted["kernel"])[where], np.clip(w[where], -clip, clip)
        )
        # What a chip is programmed to, by the rule of its levels.
        found = np.asarray(chip)[where]
        expected = rounded(np.clip(np.float64(w[where]), -clip, clip), res)
        np.testing.assert_allclose(found, expected, atol=1e-5 * clip)
        error = ((found - w[where]) ** 2).sum()
        assert error <= least * (1 + 1e-4)
        assert error < ((np.asarray(before)[where] - w[where]) ** 2).sum()


def test_the_clip_of_normal_weights_is_that_of_the_integral():
    half = 7

    def error(clip):
        step = clip / half
        pdf = scipy.stats.norm.pdf

        def of(x):
            level = np.clip(np.rint(x / step), -half, half)
            return (x - step * level) ** 2 * pdf(x)

        cells = [(k + 0.5) * step for k in range(half)]
        ends = [0, *cells, cells[-1] + 8]
        parts = (scipy.integrate.quad(of, a, b)[0] for a, b in zip(ends[:-1], ends[1:]))
        return 2 * sum(parts)

    best = scipy.optimize.minimize_scalar(error, bounds=(1, 4), method="bounded")
    params, plan = planned(
        nn.Dense(400, use_bias=False), jnp.ones((1, 400)), GROUPS["whole"][0]
    )
    w = jax.random.normal(KEY, (400, 400))
    fitted = hw.fit_levels({"kernel": w}, plan)["kernel"]
    largest, clip = float(jnp.abs(w).max()), float(jnp.abs(fitted).max())
    # Candidates are a hundredth apart; the error is flat around its minimum.
    assert abs(clip - best.x) < 2 * largest / 100
    chip = hw.apply_mismatch({"kernel": fitted}, plan, hw.chip_key(0))["kernel"]
    found = float(jnp.mean((chip - w) ** 2))
    # The fourth moment of errors is below step^4, but for clipped tails.
    assert abs(found / best.fun - 1) < 0.05
    params["kernel"] = w
    whole = hw.apply_mismatch(params, plan, hw.chip_key(0))["kernel"]
    assert found < 0.7 * float(jnp.mean((whole - w) ** 2))
    assert math.isclose(largest, float(jnp.abs(whole).max()), rel_tol=1e-5)


SMALL = range(24)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("seed", SMALL)
def test_small_arrays_get_the_least_error_of_any_candidate(seed):
    rng = np.random.default_rng(seed)
    rows, columns = (int(n) for n in rng.integers(1, 6, 2))
    res, candidates = float(rng.choice([1 / 2, 1 / 6, 1 / 14])), int(rng.integers(1, 9))
    per_column = bool(rng.integers(2))
    w = rng.standard_t(2, (rows, columns)).astype(np.float32)
    w[:, 0] *= rng.integers(2)  # a column of zeros, sometimes
    hardware = hw.Hardware(modifier=levels(res, per_column=per_column))
    layer = nn.Dense(columns, use_bias=False)
    _, plan = planned(layer, jnp.ones((1, rows)), hardware)
    params = {"kernel": jnp.asarray(w)}
    fitted = hw.fit_levels(params, plan, candidates=candidates)
    chip = hw.apply_mismatch(fitted, plan, hw.chip_key(0))["kernel"]
    groups = [w[:, j : j + 1] for j in range(columns)] if per_column else [w]
    found = np.float64(chip)
    found = np.split(found, columns, axis=1) if per_column else [found]
    for group, on_chip in zip(groups, found, strict=True):
        group = np.float64(group)
        if not group.any():
            assert not on_chip.any()
            continue
        _, least = searched(group, res, candidates)
        size = np.abs(group).max() ** 2
        assert abs(((on_chip - group) ** 2).sum() - least) < 1e-5 * size * group.size


def test_the_export_writes_the_levels(tmp_path):
    hardware = hw.Hardware(
        modifier=levels(),
        converter=hw.SinglePairConductanceConverter(g_max=25.0),
    )
    params, plan = planned(nn.Dense(8), jnp.ones((1, 40)), hardware)
    fitted = hw.fit_levels(params, plan)
    hw.export(tmp_path / "out", {"params": fitted}, plan)
    checkpoint = hw.load(tmp_path / "out")
    np.testing.assert_array_equal(checkpoint.params["kernel"], fitted["kernel"])
    ((tile,),) = checkpoint.conductances("kernel")
    plus, minus = (np.float64(g) for g in tile.conductances.values())
    steps = (plus - minus) / 25 * 7
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-4)
    clip = float(jnp.abs(fitted["kernel"]).max())
    error = steps / 7 * clip - np.asarray(fitted["kernel"])
    assert np.abs(error).max() <= clip / 14 * (1 + 1e-4)


def test_channels_of_a_convolution_have_their_own_clips():
    x = jnp.ones((1, 8, 3))
    params, plan = planned(
        nn.Conv(4, (3,)), x, hw.Hardware(modifier=levels(per_column=True))
    )
    w = np.random.default_rng(1).standard_t(2, (3, 3, 4)).astype(np.float32)
    fitted = hw.fit_levels({**params, "kernel": jnp.asarray(w)}, plan)["kernel"]
    for channel in range(4):
        clip, _ = searched(np.float64(w[..., channel]), 1 / 14)
        found = float(jnp.abs(fitted[..., channel]).max())
        assert math.isclose(found, clip, rel_tol=1e-5)


def test_levels_of_a_converter():
    converter = hw.BitSlicedConductanceConverter(bits=(2, 2), g_max=25.0)
    layer = nn.Dense(8, use_bias=False)
    params, plan = planned(layer, jnp.ones((1, 64)), hw.Hardware(converter=converter))
    fitted = hw.fit_levels(params, plan)
    clip, least = searched(np.asarray(params["kernel"]), res=1 / 30)
    np.testing.assert_allclose(np.abs(fitted["kernel"]).max(), clip, rtol=1e-6)
    chip = hw.program_chip(fitted, plan, hw.chip_key(0)).at(0.0)["kernel"]
    error = np.sum((np.asarray(chip) - np.asarray(params["kernel"])) ** 2)
    np.testing.assert_allclose(error, least, rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"type": "add_normal", "std_dev": 0.1, "per_column": True},
        {"type": "dorefa", "res": 0.1},
    ],
)
def test_a_modifier_of_training_alone_is_no_matter(options):
    converter = hw.BitSlicedConductanceConverter(bits=(2, 2), g_max=25.0)
    chip = hw.Hardware(converter=converter)
    layer, x = nn.Dense(6, use_bias=False), jnp.ones((1, 12))
    params, plan = planned(layer, x, chip)
    alone = hw.fit_levels(params, plan)
    modifier = hw.WeightModifierParameter(**options)
    _, plan = planned(layer, x, dataclasses.replace(chip, modifier=modifier))
    chex.assert_trees_all_equal(hw.fit_levels(params, plan), alone)


def test_what_has_no_levels_to_fit_is_refused():
    x = jnp.ones((1, 4))
    for hardware, message in (
        (hw.Hardware(), "no hardware of this plan has levels"),
        (
            hw.Hardware(modifier=levels(rel_to_actual_wmax=False)),
            "kernel: fit_levels.*rel_to_actual_wmax=False: leave that out",
        ),
        (
            hw.Hardware(
                modifier=levels(),
                clip=hw.WeightClipParameter(type="fixed_value", fixed_value=1.0),
            ),
            "a stored mapping scale",
        ),
    ):
        params, plan = planned(nn.Dense(2), x, hardware)
        with pytest.raises(ValueError, match=message):
            hw.fit_levels(params, plan)
    params, plan = planned(nn.Dense(2), x, GROUPS["whole"][0])
    with pytest.raises(ValueError, match="candidates should be at least 1"):
        hw.fit_levels(params, plan, candidates=0)
