"""A chip is the same, with one scale, whether drawn, exported, loaded or evaluated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from safetensors.numpy import load_file

import hwtrain
from hwtrain._arrays import paths
from hwtrain._arrays.random import draw_key
from hwtrain.checkpoint import verify
from hwtrain.evaluate import population

SEED, BOUND, BITS = 3, 4.0, 4
X = np.random.default_rng(0).uniform(-1, 1, (64, 16)).astype(np.float32)


def chip_type(columnwise=False, **forward):
    return hwtrain.Hardware(
        forward=hwtrain.IOParameters(
            inp_bound=1.0, out_bits=BITS, out_bound=BOUND, **forward
        ),
        mapping=hwtrain.MappingParameter(
            weight_scaling_omega=1.0, weight_scaling_columnwise=columnwise
        ),
        mismatch=hwtrain.MismatchParameter(type="add_normal", std_dev=0.2),
        converter=hwtrain.SinglePairConductanceConverter(g_max=25.0),
    )


def linen(hardware):
    analog = hwtrain.analogize(nn.Dense(8), hardware)
    variables = analog.init(jax.random.key(0), X)
    chip = hwtrain.chip_mode(analog)

    def outputs(params):
        return chip.apply({"params": params}, X, rngs={"mismatch": jax.random.key(9)})

    return analog, variables, hwtrain.plan(analog, variables, X), outputs


def of_nnx(hardware, plain=None):
    plain = nnx.Linear(16, 8, rngs=nnx.Rngs(0)) if plain is None else plain
    analog = hwtrain.analogize(plain, hardware, rngs=nnx.Rngs(mismatch=1))
    params = nnx.to_pure_dict(nnx.state(analog, nnx.Param))

    def outputs(params):
        chip = hwtrain.chip_mode(nnx.clone(analog))
        nnx.update(chip, params)
        return chip(X)

    return analog, {"params": params}, hwtrain.plan(analog), outputs


class Nested(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(16, 8, rngs=rngs)])

    def __call__(self, x):
        return self.layers[0](x)


def nested(hardware):
    return of_nnx(hardware, Nested(nnx.Rngs(0)))


def population_of(analog, variables):
    """Returns mean |y| of the chip as a population of one, `[1]`."""
    return population(
        analog,
        variables,
        [(X,)],
        lambda y: jnp.mean(jnp.abs(y), axis=-1),
        chips=[SEED],
        key=jax.random.key(0),
    ).values


def read_by_numpy(directory):
    """Returns outputs of the chip, of its files alone: x W / s, the ADC, times s."""
    nominal = load_file(directory / "tensors" / "0000.safetensors")
    chip = load_file(directory / "chips" / f"{SEED:04d}" / "0000.safetensors")
    scale = nominal["tile/0/0/mapping_scale"].astype(np.float64)
    y = X.astype(np.float64) @ (chip["kernel"] / scale)
    step = 2 * BOUND / (2**BITS - 2)
    return np.clip(np.round(y / step) * step, -BOUND, BOUND) * scale


@pytest.mark.sampled
@pytest.mark.parametrize("columnwise", [False, True])
@pytest.mark.parametrize("model", [linen, of_nnx, nested])
def test_every_road_to_a_chip_leads_to_the_same(model, columnwise, tmp_path):
    hardware = chip_type(columnwise)
    analog, variables, plan, outputs = model(hardware)
    path = tmp_path / "chip"
    checkpoint = hwtrain.load(hwtrain.export(path, variables, plan, chip_seeds=[SEED]))
    key = hwtrain.chip_key(SEED)
    drawn = hwtrain.apply_mismatch(variables["params"], plan, key)
    programmed = hwtrain.program_chip(variables["params"], plan, key).at(0.0)

    expected = read_by_numpy(path)
    # The ADC's step of the nominal scale is not the one of the chip's largest weight.
    without = paths.drop(drawn, lambda path: not path.endswith("mapping_scale"))
    assert np.abs(outputs(without) - expected).max() > 0.05
    for params in (checkpoint.chip(SEED), drawn, programmed):
        np.testing.assert_allclose(outputs(params), expected, atol=1e-5)
    found = population_of(analog, variables)
    np.testing.assert_allclose(found, [np.abs(expected).mean()], rtol=1e-5)


@pytest.mark.parametrize("model", [linen, of_nnx, nested])
def test_a_loaded_chip_has_its_own_periphery(model, tmp_path):
    analog, variables, plan, outputs = model(chip_type(v_offset_std=0.2, r_series=0.01))
    path = hwtrain.export(tmp_path / "two", variables, plan, chip_seeds=[SEED, 4])
    checkpoint = hwtrain.load(path)
    own, other = checkpoint.chip(SEED), checkpoint.chip(4)
    # The weights of one chip behind the periphery of the other.
    key = {p: v for p, v in paths.leaves(other).items() if p.endswith("chip_key")}
    mixed = paths.insert(own, key)
    assert np.abs(outputs(own) - outputs(mixed)).max() > 0.01
    found = population_of(analog, variables)
    expected = np.abs(outputs(own)).mean()
    np.testing.assert_allclose(found, [expected], rtol=1e-5)


STEPS = 6  # levels from -A to A are A / 3 apart


def rounded(w):
    """Rounds to levels of the largest weight, in NumPy."""
    step = 2 * np.abs(w).max() / STEPS
    return np.round(w / step) * step


def levels(kind="discretize", **hardware):
    return hwtrain.Hardware(
        modifier=hwtrain.WeightModifierParameter(
            type=kind, res=STEPS, enable_during_test=True
        ),
        mismatch=hwtrain.MismatchParameter(type="mult_normal", std_dev=0.1),
        converter=hwtrain.SinglePairConductanceConverter(g_max=25.0),
        **hardware,
    )


@pytest.mark.sampled
@pytest.mark.parametrize("programmed", [False, True])
@pytest.mark.parametrize("model", [linen, of_nnx, nested])
def test_a_chip_is_rounded_before_its_mismatch(model, programmed, tmp_path):
    noise = hwtrain.PCMLikeNoiseModel(prog_noise_scale=0.0, drift_scale=0.0)
    hardware = levels(noise_model=noise) if programmed else levels()
    analog, variables, plan, outputs = model(hardware)
    (weight,) = plan.weights
    params = variables["params"]
    nominal = np.float64(paths.leaves(params)[weight.path])
    np.testing.assert_allclose(outputs(params), X @ rounded(nominal), atol=1e-5)

    path = hwtrain.export(tmp_path / "chip", variables, plan, chip_seeds=[SEED])
    verify(path)
    checkpoint = hwtrain.load(path)
    # The targets lie on the levels; a chip deviates from them.
    np.testing.assert_allclose(
        checkpoint.reconstruct(weight.path), rounded(nominal), atol=1e-6
    )
    key = hwtrain.chip_key(SEED)
    name = draw_key(key, weight.path, "mismatch")
    xi = np.float64(jax.random.normal(name, nominal.shape))
    chip = rounded(nominal) * (1 + 0.1 * xi)
    roads = [
        checkpoint.chip(SEED),
        hwtrain.program_chip(params, plan, key).at(0.0),
        *([] if programmed else [hwtrain.apply_mismatch(params, plan, key)]),
    ]
    for params in roads:
        kernel = paths.leaves(params)[weight.path]
        np.testing.assert_allclose(kernel, chip, atol=1e-5)
        np.testing.assert_allclose(outputs(params), X @ chip, atol=1e-4)
    found = population_of(analog, variables)
    reads = outputs(roads[0])
    if not programmed:  # a read of a noise model has noise
        np.testing.assert_allclose(found, [np.abs(reads).mean()], rtol=1e-5)


def test_noise_of_a_chip_is_not_rounded_to_its_levels():
    hardware = hwtrain.Hardware(
        modifier=hwtrain.WeightModifierParameter(
            type="discretize_add_normal",
            res=STEPS,
            std_dev=0.02,
            enable_during_test=True,
            redraw=True,
        ),
        mismatch=hwtrain.MismatchParameter(type="mult_normal", std_dev=0.1),
    )
    _, variables, plan, outputs = linen(hardware)
    chip = hwtrain.apply_mismatch(variables["params"], plan, hwtrain.chip_key(SEED))
    kernel = np.float64(chip["kernel"])
    # X has full column rank: the weights of the read follow from its outputs.
    read = np.linalg.lstsq(X, np.float64(outputs(chip)), rcond=None)[0]
    deviation = (read - kernel) / (0.02 * np.abs(kernel).max())
    assert abs(deviation.std() - 1) < 4 / np.sqrt(2 * deviation.size)
    nominal = np.linalg.lstsq(X, np.float64(outputs(variables["params"])), rcond=None)
    written = rounded(np.float64(variables["params"]["kernel"]))
    deviation = (nominal[0] - written) / (0.02 * np.abs(written).max())
    assert abs(deviation.std() - 1) < 4 / np.sqrt(2 * deviation.size)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("model", [linen, of_nnx])
def test_drift_is_compensated_through_the_periphery_unless_asked_otherwise(model):
    def after_a_day(readout):
        hardware = hwtrain.Hardware(
            forward=hwtrain.IOParameters(out_bits=3, out_bound=0.5, out_noise=0.1),
            mapping=hwtrain.MappingParameter(weight_scaling_omega=1.0),
            converter=hwtrain.SinglePairConductanceConverter(g_max=25.0),
            noise_model=hwtrain.PCMLikeNoiseModel(),
            drift_compensation=hwtrain.GlobalDriftCompensation(**readout),
        )
        analog, variables, *_ = model(hardware)
        return population(
            analog,
            variables,
            [(X,)],
            lambda y: jnp.mean(jnp.abs(y), axis=-1),
            chips=4,
            times_s=[86_400.0],
            key=jax.random.key(0),
        ).values

    default = after_a_day({})
    np.testing.assert_array_equal(default, after_a_day({"readout": "periphery"}))
    difference = default - after_a_day({"readout": "exact"})
    assert (np.abs(difference) > 1e-3).all() and difference.std() > 1e-3


@pytest.mark.parametrize("model", [linen, of_nnx])
def test_a_measured_chip_is_not_rounded_to_its_levels(model, tmp_path):
    analog, variables, plan, outputs = model(levels())
    drawn = hwtrain.load(
        hwtrain.export(tmp_path / "drawn", variables, plan, chip_seeds=[SEED])
    )
    (tile,) = drawn.conductances(plan.weights[0].path, SEED)[0]
    name = f"{plan.weights[0].path}/tile/0/0"
    conductances = {f"{name}/{g}": array for g, array in tile.conductances.items()}
    path = hwtrain.export(
        tmp_path / "read", variables, plan, measured={SEED: conductances}
    )
    checkpoint = hwtrain.load(path)
    expected = np.abs(outputs(drawn.chip(SEED))).mean()
    by_hand = np.abs(outputs(checkpoint.chip(SEED))).mean()
    np.testing.assert_allclose(by_hand, expected, rtol=1e-5)
    np.testing.assert_allclose(population_of(analog, checkpoint), [expected], rtol=1e-5)
