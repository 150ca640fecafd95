"""From nominal weights to a chip at a time: against NumPy, statistics, limits."""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain._arrays import paths
from hwtrain._plan.plan import Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.devices import (
    GlobalDriftCompensation,
    GlobalDriftCompensationWithExactReference,
    HermesNoiseModel,
    PCMLikeNoiseModel,
    PerColumnDriftCompensation,
    ReRamCMONoiseModel,
    StateIndependentNoiseModel,
)

DAY = 86_400.0
PATH = "dense/kernel"
COMPENSATIONS = {
    "none": None,
    "global": GlobalDriftCompensation(),
    "exact": GlobalDriftCompensationWithExactReference(),
    "column": PerColumnDriftCompensation(),
}
QUIET = {"prog_noise_scale": 0.0, "read_noise_scale": 0.0, "drift_scale": 0.0}
CONVERTERS = {
    "single_pair": hw.SinglePairConductanceConverter(),
    "n_pair": hw.NPairConductanceConverter(f_lst=(1.0, 2.0, 4.0)),
    "dual_pair": hw.DualPairConductanceConverter(f_lst=(1.0, 3.0), per_column=True),
    "custom_pair": hw.CustomPairConductanceConverter(
        f_lst=(1.0,), g_lst=((0.0, 0.0, 25.0), (25.0, 0.0, 0.0))
    ),
    "g_min": hw.SinglePairConductanceConverter(g_min=2.0),
    "single_device": hw.SingleDeviceConductanceConverter(g_max=25.0, g_min=1.0),
}


def planned(shape, rows=(0,), columns=(1,), **hardware):
    weight = AnalogWeight(
        path=PATH,
        kind="dense",
        layer="Dense",
        shape=shape,
        rows=rows,
        columns=columns,
        hardware=hw.Hardware(**hardware),
        rule="",
        ranged=False,
    )
    return Plan((weight,))


def pcm(**hardware):
    options = {
        "converter": hw.SinglePairConductanceConverter(),
        "noise_model": PCMLikeNoiseModel(),
    }
    return {**options, **hardware}


def chip_at(kernel, plan, seed, t_s, key=None):
    params = {"dense": {"kernel": kernel}}
    return hw.program_chip(params, plan, hw.chip_key(seed)).at(t_s, key)["dense"][
        "kernel"
    ]


def drawn(key, effect, part, shape, number=None):
    """Returns the numbers of one named draw, by JAX's own generator."""
    name = f"{PATH}#{effect}#{part}".encode()
    digest = hashlib.blake2s(name, digest_size=4).digest()
    key = jax.random.fold_in(key, int.from_bytes(digest, "little"))
    key = key if number is None else jax.random.fold_in(key, number)
    return np.asarray(jax.random.normal(key, shape), np.float64)


def by_hand(kernel, seed, t, read_key, *, tiles, omega, mismatch, compensation, g_min):
    """The whole way in NumPy, one tile after the other, for a PCM pair of 25 µS."""
    kernel = np.asarray(kernel, np.float64)
    frozen, shape, out = jax.random.key(seed), kernel.shape, np.zeros_like(kernel)
    xi_w = drawn(frozen, "mismatch", 0, shape)
    xi = [[drawn(frozen, "programming", p, shape, n) for n in (0, 1)] for p in (0, 1)]
    xi_read = [drawn(read_key, "read", part, shape) for part in (0, 1)]
    for rows in tiles[0]:
        for columns in tiles[1]:
            at = (rows, columns)
            s = np.abs(kernel[at]).max() / omega
            w, w_max = kernel[at] / s, omega
            k = (25 - g_min) / np.abs(w).max()
            chip = w + mismatch * w_max * xi_w[at]
            now, fresh = [], []
            for part, sign in enumerate((1, -1)):
                g = g_min + np.maximum(sign * k * chip, 0)
                a = g / 25
                sigma = np.maximum(0.26348 + 1.9650 * a - 1.1731 * a**2, 0)
                prog = np.maximum(g + sigma * xi[part][0][at], 0)
                log = np.log(np.maximum(a, 1e-7))
                mu = np.clip(-0.0155 * log + 0.0244, 0.049, 0.1)
                sd = np.clip(-0.0125 * log - 0.0059, 0.008, 0.045)
                nu = np.abs(mu + sd * xi[part][1][at])
                drifted = prog * ((t + 20) / 20) ** -nu
                level = 0.0088 / np.maximum(a, 1e-7) ** 0.65
                growth = np.sqrt(np.log((t + 20 + 250e-9) / (2 * 250e-9)))
                noise = drifted * np.minimum(level, 0.2) * growth
                now.append(np.maximum(drifted + noise * xi_read[part][at], 0))
                fresh.append(prog)
            then = (fresh[0] - fresh[1]) / k
            found = (now[0] - now[1]) / k
            if compensation == "global":
                found *= np.abs(then).mean() / np.abs(found).mean()
            if compensation == "exact":
                found *= np.abs(w).mean() / np.abs(found).mean()
            if compensation == "column":
                found *= np.abs(then).mean(0) / np.abs(found).mean(0)
            out[at] = found * s
    return out


@pytest.mark.parametrize("compensation", COMPENSATIONS)
@pytest.mark.parametrize(("t_s", "g_min"), [(0.0, 0.0), (DAY, 2.0)])
def test_the_pipeline_against_numpy(compensation, t_s, g_min):
    kernel = jax.random.normal(jax.random.key(5), (10, 7))
    plan = planned(
        (10, 7),
        **pcm(
            converter=hw.SinglePairConductanceConverter(g_min=g_min),
            drift_compensation=COMPENSATIONS[compensation],
            mismatch=hw.MismatchParameter(type="add_normal", std_dev=0.05),
            mapping=hw.MappingParameter(
                max_input_size=4, max_output_size=3, weight_scaling_omega=0.8
            ),
        ),
    )
    read = jax.random.key(77)
    tiles = (
        (slice(0, 4), slice(4, 7), slice(7, 10)),
        (slice(0, 3), slice(3, 5), slice(5, 7)),
    )
    expected = by_hand(
        kernel,
        3,
        t_s,
        read,
        tiles=tiles,
        omega=0.8,
        mismatch=0.05,
        compensation=compensation,
        g_min=g_min,
    )
    found = chip_at(kernel, plan, 3, t_s, read)
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
    assert np.abs(found - kernel).max() > 0.01


@pytest.mark.sampled
@pytest.mark.parametrize("converter", CONVERTERS.values(), ids=CONVERTERS)
@pytest.mark.parametrize("compensation", COMPENSATIONS)
def test_without_noise_every_chip_is_the_model(converter, compensation):
    kernel = jax.random.normal(jax.random.key(0), (2, 10, 7))
    plan = planned(
        (2, 10, 7),
        (1,),
        (2,),
        converter=converter,
        noise_model=PCMLikeNoiseModel(**QUIET),
        drift_compensation=COMPENSATIONS[compensation],
        mapping=hw.MappingParameter(max_input_size=4, max_output_size=3),
    )
    found = chip_at(kernel, plan, 0, DAY, jax.random.key(0))
    np.testing.assert_allclose(found, kernel, atol=2e-6)


@pytest.mark.parametrize("converter", CONVERTERS.values(), ids=CONVERTERS)
def test_noise_reaches_every_device_of_every_converter(converter):
    kernel = jax.random.normal(jax.random.key(0), (10, 7))
    plan = planned((10, 7), **pcm(converter=converter))
    chip = hw.program_chip({"dense": {"kernel": kernel}}, plan, hw.chip_key(1))
    devices = chip.weights[PATH].devices
    assert len(devices) == len(converter.devices)
    numbers = [np.ravel(d.g_prog - d.g_target) for d in devices]
    numbers += [np.ravel(d.nu) for d in devices]
    for number in numbers:
        assert number.std() > 0
    correlation = np.corrcoef([n for n in numbers]) - np.eye(len(numbers))
    assert np.abs(correlation).max() < 0.75  # of 70 numbers; equal ones give 1
    assert np.abs(chip.at(0.0)["dense"]["kernel"] - kernel).max() > 0.01


def test_programming_noise_over_chips_has_the_deviation_of_the_model():
    model = StateIndependentNoiseModel(
        read_noise_scale=0.0, drift_scale=0.0, prog_coeff=(0.5, 0.0, 0.0)
    )
    # One weight of 1 puts its pair at 25 and 0 µS; the others at 15 and 0 µS. The off
    # device cannot go below zero: it adds the moments of max(N(0, sigma), 0).
    kernel = jnp.full((32, 32), 0.6).at[0, 0].set(1.0)
    plan = planned((32, 32), **pcm(noise_model=model))
    chips = jax.jit(jax.vmap(lambda seed: chip_at(kernel, plan, seed, 0.0)))(
        jnp.arange(64, dtype=jnp.uint32)
    )
    w = np.asarray(chips)[:, 1:, 1:] * 25
    sigma, count = 0.5, w.size
    mean = 15 - sigma / np.sqrt(2 * np.pi)
    std = sigma * np.sqrt(1 + 0.5 - 1 / (2 * np.pi))
    assert abs(w.mean() - mean) < 5 * std / np.sqrt(count)
    assert abs(w.std() - std) < 5 * std / np.sqrt(2 * count)
    flat = w.reshape(64, -1)
    correlation = np.corrcoef(flat) - np.eye(64)
    assert np.abs(correlation).max() < 6 / np.sqrt(flat.shape[1])


def test_drift_exponents_over_chips_have_the_mean_of_the_model():
    model = StateIndependentNoiseModel(prog_noise_scale=0.0, read_noise_scale=0.0)
    kernel = jnp.full((64, 64), 1.0)
    plan = planned((64, 64), **pcm(noise_model=model))
    read = jax.vmap(lambda seed: chip_at(kernel, plan, seed, DAY))
    w = np.asarray(read(jnp.arange(16, dtype=jnp.uint32)))
    nu = -np.log(w) / np.log((DAY + 20) / 20)
    # |N(0.1, 0.05)|: folding at two deviations moves the mean by 0.00085.
    folded = 0.05 * np.sqrt(2 / np.pi) * np.exp(-2) + 0.1 * (1 - 2 * 0.02275013)
    assert abs(nu.mean() - folded) < 5 * 0.05 / np.sqrt(nu.size)


def test_drift_only_ever_lowers_and_compensation_restores_the_mean_output():
    kernel = jax.random.normal(jax.random.key(0), (64, 48))
    x = jnp.abs(jax.random.normal(jax.random.key(1), (64,)))
    model = PCMLikeNoiseModel(read_noise_scale=0.0)
    times = jnp.array([0.0, 1.0, 60.0, 3600.0, DAY, 3e7])
    outputs, weights = {}, {}
    for name, compensation in COMPENSATIONS.items():
        options = pcm(noise_model=model, drift_compensation=compensation)
        plan = planned((64, 48), **options)
        w = jax.vmap(lambda t, plan=plan: chip_at(kernel, plan, 0, t))(times)
        outputs[name], weights[name] = np.abs(x @ w).mean(-1), np.abs(w)
    # Of one input after another, the mean output is restored exactly; of any input,
    # half of what drift took, or better: exponents differ from device to device.
    fresh = weights["none"][0]
    assert (np.diff(weights["none"].mean((1, 2))) < 0).all()
    assert weights["none"][-1].mean() < 0.6 * fresh.mean()
    exact = weights["exact"].mean((1, 2))
    np.testing.assert_allclose(exact, np.abs(kernel).mean(), rtol=1e-5)
    np.testing.assert_allclose(weights["global"].mean((1, 2)), fresh.mean(), rtol=1e-5)
    columns = np.broadcast_to(fresh.mean(0), (6, 48))
    np.testing.assert_allclose(weights["column"].mean(1), columns, rtol=1e-5)
    ideal = np.abs(x @ kernel).mean()
    lost = ideal - outputs["none"][3:]
    for name in ("global", "exact", "column"):
        assert (np.abs(ideal - outputs[name][3:]) < lost / 2).all()


def test_time_zero_without_noise_of_programming_and_read_is_the_target():
    model = PCMLikeNoiseModel(prog_noise_scale=0.0, read_noise_scale=0.0)
    kernel = jax.random.normal(jax.random.key(0), (8, 5))
    plan = planned((8, 5), **pcm(noise_model=model))
    np.testing.assert_allclose(chip_at(kernel, plan, 0, 0.0), kernel, atol=1e-6)
    assert np.abs(chip_at(kernel, plan, 0, 1.0) - kernel).max() > 1e-4


def test_reads_differ_and_the_chip_does_not():
    kernel = jax.random.normal(jax.random.key(0), (8, 5))
    plan = planned((8, 5), **pcm())
    chip = hw.program_chip({"dense": {"kernel": kernel}}, plan, hw.chip_key(0))
    one, two, again = (chip.at(DAY, jax.random.key(k)) for k in (1, 2, 1))
    one, two, again = (r["dense"]["kernel"] for r in (one, two, again))
    assert (one != two).all()
    np.testing.assert_array_equal(one, again)


def test_the_pair_is_never_merged_and_its_scale_is_kept():
    # A merged pair would have one device at g_min, and its largest weight at g_max.
    kernel = jax.random.normal(jax.random.key(0), (40, 30))
    plan = planned((40, 30), **pcm())
    chip = hw.program_chip({"dense": {"kernel": kernel}}, plan, hw.chip_key(0))
    pos, neg = chip.weights[PATH].devices
    assert ((pos.g_prog > 0) & (neg.g_prog > 0)).mean() > 0.3
    k = chip.weights[PATH].params["scale_ratio"]
    np.testing.assert_allclose(k, 25 / np.abs(kernel).max(), rtol=1e-6)
    expected = (pos.g_prog - neg.g_prog) / k.item()
    still = dataclasses.replace(PCMLikeNoiseModel(), read_noise_scale=0.0)
    assert still.drift_scale == 1.0
    np.testing.assert_allclose(chip.at(0.0)["dense"]["kernel"], expected, atol=1e-6)


@pytest.mark.parametrize("compensation", COMPENSATIONS)
@pytest.mark.parametrize("g_min", [0.0, 3.0])
def test_zeros_are_finite(compensation, g_min):
    for kernel in (jnp.zeros((6, 4)), jnp.ones((6, 4)).at[:, 1].set(0.0)):
        plan = planned(
            (6, 4),
            converter=hw.SinglePairConductanceConverter(g_min=g_min, per_column=True),
            noise_model=PCMLikeNoiseModel(),
            drift_compensation=COMPENSATIONS[compensation],
        )
        found = chip_at(kernel, plan, 0, DAY, jax.random.key(0))
        assert np.isfinite(found).all()
        # A column of zeros has the scale of 1e-7: its noise is as small.
        assert np.abs(found[:, 1]).max() < 1e-4


def test_a_bfloat16_kernel_is_programmed_in_float32():
    kernel = jax.random.normal(jax.random.key(0), (8, 5), jnp.bfloat16)
    mismatch = hw.MismatchParameter(type="add_normal", std_dev=0.1)
    plan = planned((8, 5), **pcm(mismatch=mismatch))
    found = chip_at(kernel, plan, 0, DAY, jax.random.key(0))
    assert found.dtype == jnp.bfloat16
    exact = chip_at(kernel.astype(jnp.float32), plan, 0, DAY, jax.random.key(0))
    np.testing.assert_array_equal(found, exact.astype(jnp.bfloat16))


def test_chips_and_times_vectorise_without_changing_a_number():
    kernel = jax.random.normal(jax.random.key(0), (8, 5))
    plan = planned((8, 5), **pcm(drift_compensation=GlobalDriftCompensation()))
    seeds, times = jnp.arange(3, dtype=jnp.uint32), jnp.array([0.0, DAY])

    @jax.jit
    def everything(seeds, times):
        at = jax.vmap(chip_at, (None, None, None, 0))
        return jax.vmap(lambda seed: at(kernel, plan, seed, times))(seeds)

    found = everything(seeds, times)
    everything(seeds + 1, times + 1)
    assert everything._cache_size() == 1
    for i, seed in enumerate(seeds):
        for j, t_s in enumerate(times):
            one = chip_at(kernel, plan, seed, t_s)
            np.testing.assert_allclose(found[i, j], one, rtol=1e-5, atol=1e-6)


def test_relaxing_devices_stay_in_their_range():
    converter = hw.SingleDeviceConductanceConverter()
    plan = planned((40, 30), converter=converter, noise_model=ReRamCMONoiseModel())
    kernel = jax.random.normal(jax.random.key(0), (40, 30))
    found = chip_at(kernel, plan, 0, DAY, jax.random.key(0))
    # After a day: mean 1.0 µS lower, spread 0.89 µS, read noise 0.27 µS.
    k = 79.2 / float(kernel.max() - kernel.min())
    assert 0.5 / k < np.abs(found - kernel).max() < (1.0 + 5 * 0.93) / k
    assert found.min() >= kernel.min() - 1e-5
    assert found.max() <= kernel.max() + 1e-5


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="head")(nn.tanh(nn.Dense(7, name="hidden")(x)))


class Twin(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(10, 7, rngs=rngs)
        self.head = nnx.Linear(7, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.tanh(self.hidden(x)))


def test_linen_and_nnx_program_the_same_chip():
    hardware = dataclasses.replace(
        hw.presets.hermes(),
        drift_compensation=PerColumnDriftCompensation(),
        remap=hw.WeightRemapParameter(type="channelwise_symmetric"),
    )
    x = jnp.ones((1, 10))
    linen = hw.analogize(MLP(), hardware)
    params = jax.jit(linen.init)(jax.random.key(0), x)["params"]
    twin = hw.analogize(Twin(nnx.Rngs(0)), hardware)
    state = nnx.state(twin, nnx.Param)
    nnx.replace_by_pure_dict(state, params)
    ours, theirs = (
        hw.program_chip(p, plan, hw.chip_key(4)).at(DAY, jax.random.key(1))
        for p, plan in ((params, hw.plan(linen, params, x)), (state, hw.plan(twin)))
    )
    ours, theirs = paths.leaves(ours), paths.leaves(theirs)
    for path, value in ours.items():
        np.testing.assert_array_equal(value, theirs[path])
        if path.endswith("of_chip"):
            continue
        same = bool((value == paths.leaves(params)[path]).all())
        assert same == (not path.endswith("kernel")), path
    (row, _) = hw.inspect(linen, {"params": params}, x).rows
    assert row["programming"] == "hermes, per_column drift compensation"
    assert hw.inspect(twin).rows[0]["programming"] == row["programming"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_model": PCMLikeNoiseModel()}, "'pcm_like' needs a converter"),
        (
            {
                "noise_model": HermesNoiseModel(),
                "converter": hw.SinglePairConductanceConverter(g_max=25.0),
            },
            "g_max=25 µS and the noise model 'hermes' has 20.7 µS",
        ),
        (
            {
                "noise_model": ReRamCMONoiseModel(),
                "converter": hw.SingleDeviceConductanceConverter(g_min=5.0),
            },
            "Write g_min=9 in the converter",
        ),
        (
            {"drift_compensation": GlobalDriftCompensation()},
            "drift_compensation needs a noise_model",
        ),
    ],
)
def test_impossible_hardware_says_the_way_out(options, message):
    with pytest.raises(ValueError, match=message):
        hw.Hardware(**options)


def test_foreign_parameters_are_an_error():
    plan = planned((8, 5), **pcm())
    with pytest.raises(ValueError, match="Pass the parameters that the plan was made"):
        hw.program_chip({"other": {"kernel": jnp.ones((8, 5))}}, plan, hw.chip_key(0))


def adc(y, bound, res):
    step = 2 * bound * res
    return np.clip(np.round(y / step) * step, -bound, bound)


@pytest.mark.parametrize("compensation", ["global", "exact", "column"])
def test_a_chip_compensates_by_what_its_own_converters_read(compensation):
    # DAC and ADC without noise: by hand, one tile after the other.
    bound, res, gain, t_s = 0.8, 1 / 14, 0.5, DAY
    kernel = jax.random.normal(jax.random.key(2), (8, 5))
    options = pcm(
        drift_compensation=COMPENSATIONS[compensation],
        mapping=hw.MappingParameter(
            max_input_size=5, max_output_size=3, weight_scaling_omega=1.0
        ),
        forward=hw.IOParameters(
            inp_bits=6, out_bound=bound, out_res=res, out_scale=gain
        ),
    )
    plan = planned((8, 5), **options)
    free = planned((8, 5), **{**options, "drift_compensation": None})
    found = chip_at(kernel, plan, 3, t_s)
    fresh, later = (np.float64(chip_at(kernel, free, 3, t)) for t in (0.0, t_s))
    expected = np.zeros((8, 5))
    for rows in (slice(0, 4), slice(4, 8)):
        for columns in (slice(0, 3), slice(3, 5)):
            at = (rows, columns)
            s = np.abs(np.float64(kernel[at])).max()
            axis = 0 if compensation == "column" else None
            now = gain * np.abs(adc(later[at] / s, bound, res)).mean(axis)
            then = gain * np.abs(adc(fresh[at] / s, bound, res)).mean(axis)
            if compensation == "exact":
                then = np.abs(np.float64(kernel[at]) / s).mean()
            expected[at] = later[at] * then / now
    np.testing.assert_allclose(found, expected, rtol=2e-5)
    exact = dataclasses.replace(COMPENSATIONS[compensation], readout="exact")
    unlike = chip_at(
        kernel, planned((8, 5), **{**options, "drift_compensation": exact}), 3, t_s
    )
    assert np.abs(unlike - expected).max() > 0.01 * np.abs(expected).max()


def test_the_noise_of_the_periphery_is_in_the_compensation():
    # Columns of ones: the mean of 16 answers has a quarter of the deviation of each.
    sigma, chips = 0.2, 400
    kernel = jnp.ones((16, 1))
    options = pcm(
        noise_model=PCMLikeNoiseModel(
            prog_noise_scale=0.0, drift_scale=0.0, read_noise_scale=0.0
        ),
        drift_compensation=COMPENSATIONS["global"],
        forward=hw.IOParameters(out_noise=sigma),
    )
    plan = planned((16, 1), **options)

    def factor(seed):
        params = {"dense": {"kernel": kernel}}
        chip = hw.program_chip(params, plan, hw.chip_key(seed))
        return chip.at(DAY, jax.random.key(1))["dense"]["kernel"][0, 0]

    found = np.float64(jax.jit(jax.vmap(factor))(jnp.arange(chips, dtype=jnp.uint32)))
    # Another first read for each chip; the read of now is the same key for all of them.
    deviation = sigma / 4
    assert abs(found.std() / deviation - 1) < 4 / np.sqrt(2 * chips) + 0.05
    again = np.float64(factor(0))
    np.testing.assert_allclose(again, found[0], rtol=1e-6)
