"""Flash ADCs with offsets: the macro C3SRAM in NumPy, statistics, proofs, refusals."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain.periphery.adc import Adc
from hwtrain.periphery.adc_thresholds import AdcThresholds
from hwtrain.periphery.column_errors import ColumnErrors
from hwtrain.periphery.comparator_offsets import ComparatorOffsets, counted
from hwtrain.periphery.mvm import analog_mvm

# The table quant_256_11_13.mat of the authors' simulation, and its two deviations.
EDGES = np.array([-58.5, -45.5, -32.5, -19.5, -6.5, 6.5, 19.5, 32.5, 45.5, 58.5])
LEVELS = np.array([-65, -52, -39, -26, -13, 0, 13, 26, 39, 52, 65])
NOISE, OFFSET = 0.97, 0.89
DEPTH = 256

C3SRAM = (
    Adc(bound=65.0, res=1 / 10),
    ComparatorOffsets(bound=65.0, steps=10, offset_std=OFFSET),
)


def macro(y, edges=EDGES):
    """The levels of partial sums; each has its own edges along the last axis."""
    return LEVELS[(y[..., None] > edges).sum(-1)]


def multiply(x, w, *stages, **options):
    sizes = {"row_sizes": (len(w),), "column_sizes": (w.shape[1],)}
    x, w = jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32)
    return np.asarray(analog_mvm(x, w, stages, **{**sizes, **options}))


def bits(*shape, seed=0):
    return np.random.default_rng(seed).choice([-1.0, 1.0], shape)


def test_without_offsets_the_levels_are_those_of_the_macro():
    x, w = bits(400, DEPTH), bits(DEPTH, 64, seed=1)
    # A share of equal signs makes sums that reach, and leave, the full scale.
    x = np.where(np.random.default_rng(2).random(x.shape) < 0.2, w[:, 0], x)
    y = x @ w
    assert np.abs(y).max() > 65 > np.percentile(np.abs(y), 99)
    np.testing.assert_array_equal(multiply(x, w, *C3SRAM), macro(y))
    # The ADC alone is the same converter, unless offsets are drawn.
    np.testing.assert_array_equal(multiply(x, w, C3SRAM[0]), macro(y))


def probability(y, edge):
    """The probability that a threshold with an offset is below a sum."""
    return 0.5 * (1 + math.erf((y - edge) / (OFFSET * math.sqrt(2))))


@pytest.mark.parametrize("y", [4, 6, 7, 8, -20, 58, -61])
def test_codes_are_as_frequent_as_normal_offsets_make_them(y):
    columns = 20_000
    x, w = np.full((1, 1), float(y)), np.ones((1, columns))
    found = multiply(x, w, *C3SRAM, chip_key=jax.random.key(0))[0]
    passed = np.array([probability(y, edge) for edge in EDGES])
    mean, variance = passed.sum(), (passed * (1 - passed)).sum()
    codes = found / 13 + 5
    assert abs(codes.mean() - mean) <= 5 * math.sqrt(variance / columns) + 1e-6
    # Two edges are never in doubt at once, so a code is another one by one or not.
    wrong = np.mean(found != macro(np.float64(y)))
    expected = 1 - max(np.prod(passed[:k]) * np.prod(1 - passed[k:]) for k in range(11))
    assert abs(wrong - expected) <= 5 * math.sqrt(expected / columns) + 1e-6


def offsets_of(column_count, key):
    """The offsets of a chip as the page of the format has them, `[columns, 10]`."""
    from hwtrain._arrays.random import stable_hash

    each = []
    for k in range(10):
        name = stable_hash(f"#comparator_offset_{k}#0")
        own = jax.random.fold_in(key, np.uint32(name))
        each.append(jax.random.normal(own, (1, 1, column_count)))
    return OFFSET * np.stack(each, -1)[0, 0]


def test_a_chip_is_the_macro_with_its_own_edges():
    """By offsets of `jax.random.normal`, with the keys that the format states."""
    x, w = bits(300, DEPTH), bits(DEPTH, 64, seed=1)
    y = x @ w
    key = jax.random.key(7)
    found = multiply(x, w, *C3SRAM, chip_key=key)
    edges = EDGES + offsets_of(64, key)
    expected = macro(y, edges)
    near = np.abs(y[..., None] - edges).min(-1) < 1e-4
    np.testing.assert_array_equal(found[~near], expected[~near])
    assert near.mean() < 1e-3 and np.mean(found != macro(y)) > 0.01
    np.testing.assert_array_equal(found, multiply(x, w, *C3SRAM, chip_key=key))
    other = multiply(x, w, *C3SRAM, chip_key=jax.random.key(8))
    assert np.mean(found != other) > 0.01


def test_thresholds_that_pass_each_other_are_counted():
    y = jnp.array([-0.9, -0.2, 0.1, 0.6])
    # Thresholds -0.75, 0.35, -0.05, 0.75: the second is past the third.
    found = counted(y, jnp.array([0.0, 0.6, -0.3, 0.0]), 1.0, 4)
    np.testing.assert_allclose(found, [-1.0, -0.5, 0.0, 0.5])


def test_the_gradient_is_one_within_the_full_scale_and_zero_beyond():
    sizes = {"row_sizes": (1,), "column_sizes": (1,), "chip_key": jax.random.key(0)}

    def output(x):
        return analog_mvm(x[:, None], jnp.ones((1, 1)), C3SRAM, **sizes).sum()

    x = jnp.array([-90.0, -64.0, -3.0, 0.0, 30.0, 64.0, 80.0])
    np.testing.assert_array_equal(jax.grad(output)(x), [0, 1, 1, 1, 1, 1, 0])


def test_clipped_outputs_are_seen_by_management_and_range():
    """An ADC of the same levels reads again as often."""
    x = np.array([[200.0], [39.0], [100.0]])
    io = {"out_res": 10.0, "out_bound": 65.0, "bound_management": "iterative"}
    tiny = dataclasses.replace(C3SRAM[1], offset_std=1e-6)
    found = []
    for stages in ((), (tiny,)):
        parts = hw.IOParameters(**io, stages=stages).parts
        found.append(multiply(x, np.ones((1, 1)), *parts, chip_key=jax.random.key(0)))
    np.testing.assert_array_equal(found[0], found[1])
    assert found[0][0] > 65  # read again with halved inputs


def test_all_passes_of_an_input_meet_the_same_offsets():
    io = hw.IOParameters(
        inp_res=6.0, out_res=10.0, out_bound=65.0, mv_type="bit_wise", stages=C3SRAM[1:]
    )
    x = np.array([[1.0], [2.0], [3.0]]) / 3
    w = np.full((1, 64), 3 * 19.5)
    found = multiply(x, w, *io.parts, chip_key=jax.random.key(0))
    # The bits of 1, 2 and 3 are the same read, so 3 is the sum of 1 and 2.
    np.testing.assert_allclose(found[2], found[0] + found[1], rtol=1e-6)
    assert len(np.unique(found[0])) > 1


LAYERS = {
    "dense": (nn.Dense(12), (4, 40)),
    "convolution": (nn.Conv(8, (3,), feature_group_count=2), (2, 6, 16)),
    "window": (nn.ConvLocal(6, (3,)), (2, 6, 8)),
}
LONG = pytest.param("window", marks=pytest.mark.nightly)


def hardware(**options):
    stage = ComparatorOffsets(bound=4.0, steps=10, offset_std=0.1)
    io = {"out_bound": 4.0, "out_res": 10.0, "stages": (stage,)}
    tiles = hw.MappingParameter(max_input_size=16, max_output_size=5)
    return hw.Hardware(forward=hw.IOParameters(**{**io, **options}), mapping=tiles)


@pytest.mark.parametrize("layer", ["dense", "convolution", LONG])
def test_it_is_on_and_proved(layer, monkeypatch):
    module, shape = LAYERS[layer]
    x = jax.random.normal(jax.random.key(0), shape)
    analog = hw.analogize(module, hardware())
    variables = analog.init(jax.random.key(1), x)
    assert "comparator_offsets" in str(hw.assert_active(analog, variables, x))
    assert "comparator offsets 0.1" in str(hw.inspect(analog, variables, x))

    def even(self, inner, x, ctx):
        y = inner(x)
        return counted(y, 0.0, self.bound, self.steps) if self.offset_std else y

    broken = {"nothing": lambda self, inner, x, ctx: inner(x), "no offsets": even}
    for around in broken.values() if layer == "dense" else [even]:
        monkeypatch.setattr(ComparatorOffsets, "around", around)
        jax.clear_caches()
        with pytest.raises(ValueError, match="comparator_offsets"):
            hw.assert_active(analog, variables, x)
    jax.clear_caches()


def test_half_of_the_offsets_are_found(monkeypatch):
    module, shape = LAYERS["dense"]
    x = jax.random.normal(jax.random.key(0), shape)
    analog = hw.analogize(module, hardware())
    variables = analog.init(jax.random.key(1), x)
    whole = ComparatorOffsets.around

    def half(self, inner, x, ctx):
        if self.offset_std == 0:
            return inner(x)
        less = dataclasses.replace(self, offset_std=self.offset_std / 2)
        return whole(less, inner, x, ctx)

    monkeypatch.setattr(ComparatorOffsets, "around", half)
    jax.clear_caches()
    with pytest.raises(ValueError, match="comparator_offsets: the noise has 0"):
        hw.assert_active(analog, variables, x)
    jax.clear_caches()


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_it_is_on_in_nnx(kind):
    x = jax.random.normal(jax.random.key(0), (4, 40))
    made = {
        "linear": lambda: nnx.Linear(40, 12, rngs=nnx.Rngs(0)),
        "convolution": lambda: nnx.Conv(40, 12, (3,), rngs=nnx.Rngs(0)),
    }
    outputs = []
    for chip in (hardware(), hardware(stages=())):
        model = hw.analogize(made[kind](), chip, rngs=nnx.Rngs(mismatch=1))
        outputs.append(model(x))
        ideal = hw.eval_mode(model)(x)
        np.testing.assert_array_equal(ideal, hw.eval_mode(model)(x))
    assert jnp.mean(outputs[0] != outputs[1]) > 0.03


@pytest.mark.parametrize(
    ("io", "said"),
    [
        ({"out_res": None, "out_bound": None}, "no ADC with levels"),
        ({"out_res": None}, "write out_bound=4 and out_res=10"),
        ({"out_bound": 5.0}, "has out_bound=5"),
        ({"out_res": 12.0}, "has 12 steps: write out_res=10"),
        ({"out_res": None, "out_bits": 4}, "has 14 steps"),
        ({"out_sto_round": True}, "leave out_sto_round out"),
    ],
)
def test_another_adc_is_refused(io, said):
    with pytest.raises(ValueError, match=said):
        hardware(**io)


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"steps": 9}, "such as 10"), ({"steps": 0}, "steps"), ({"bound": 0.0}, "bound")],
)
def test_thresholds_that_no_adc_has_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        ComparatorOffsets(**{"bound": 1.0, "steps": 4, "offset_std": 0.1, **fields})


def test_a_table_of_another_adc_is_refused():
    table = AdcThresholds(bound=1.0, dnl_lsb=(0.2, -0.2) * 7)
    for io, said in (
        ({"out_bits": 4, "out_bound": 2.0}, "has out_bound=2"),
        ({"out_bits": 6, "out_bound": 1.0}, "has 62 steps"),
    ):
        with pytest.raises(ValueError, match=said):
            hw.Hardware(forward=hw.IOParameters(**io, stages=(table,)))
    right = {"out_bits": 4, "out_bound": 1.0}
    hw.Hardware(forward=hw.IOParameters(**right, stages=(table,)))


def test_zero_offsets_are_off():
    stage = ComparatorOffsets(bound=4.0, steps=10, offset_std=0.0)
    off = hardware(stages=(stage,))
    assert not off.forward.draws
    x = jax.random.normal(jax.random.key(0), (4, 40))
    outputs = []
    for chip in (off, hardware(stages=())):
        analog = hw.analogize(nn.Dense(12), chip)
        outputs.append(analog.apply(analog.init(jax.random.key(1), x), x))
    np.testing.assert_array_equal(*outputs)


def test_its_constant_is_traced_and_has_no_slope():
    x = jax.random.normal(jax.random.key(0), (4, 40))
    analog = hw.analogize(nn.Dense(12), hardware())
    variables = analog.init(jax.random.key(1), x)

    @jax.jit
    def output(std):
        varied = hw.with_constants(analog, {"forward.stages.0.offset_std": std})
        return varied.apply(variables, x, rngs={"mismatch": jax.random.key(2)})

    y = analog.apply(variables, x, rngs={"mismatch": jax.random.key(2)})
    np.testing.assert_allclose(output(0.1), y, rtol=1e-6)
    assert jnp.mean(output(0.8) != y) > 0.1
    with pytest.raises(ValueError, match="no gradient"):
        jax.grad(lambda std: output(std).sum())(0.1)
    for name in ("forward.stages.0.bound", "forward.out_bound"):
        with pytest.raises(ValueError, match="stays static"):
            varied = hw.with_constants(analog, {name: 4.0})
            varied.apply(variables, x, rngs={"mismatch": jax.random.key(2)})


def test_it_stands_inside_the_adc_and_outside_of_its_table():
    stages = (
        ColumnErrors(gain_std=0.1),
        AdcThresholds(bound=4.0, dnl_lsb=(0.2, -0.2) * 5),
        hardware().forward.stages[0],
    )
    types = [stage.type for stage in hardware(stages=stages).stages]
    assert types == ["adc", "comparator_offsets", "adc_thresholds", "column_errors"]


@pytest.mark.parametrize("groups", [2, 6])
def test_groups_of_a_convolution_have_columns_of_their_own(groups):
    x = jax.random.normal(jax.random.key(0), (2, 9, 6))
    layer = nn.Conv(6, (3,), feature_group_count=groups)
    chip = dataclasses.replace(hw.presets.sram_c3(), input_range=None)
    stage = ComparatorOffsets(bound=4.0, steps=8, offset_std=0.5)
    io = hw.IOParameters(out_bound=4.0, out_res=8.0, stages=(stage,))
    chip = dataclasses.replace(chip, forward=io)
    analog = hw.analogize(layer, chip)
    variables = analog.init(jax.random.key(1), x)
    rngs = {"mismatch": jax.random.key(2)}
    found = analog.apply(variables, x, rngs=rngs)
    ideal = hw.analogize(layer, dataclasses.replace(chip, forward=io_without(io)))
    differ = jnp.abs(found - ideal.apply(variables, x)) > 1e-4
    assert found.shape == (2, 9, 6) and differ.any((0, 1)).all()


def io_without(io):
    return dataclasses.replace(io, stages=())


def test_nan_stays_nan_and_a_column_has_one_adc():
    y = counted(jnp.array([jnp.nan, 0.2, -9.0]), 0.0, 1.0, 2)
    np.testing.assert_array_equal(y, [np.nan, 0.0, -9.0])
    stage = ComparatorOffsets(bound=4.0, steps=8, offset_std=0.5)
    io = hw.IOParameters(out_bound=4.0, out_res=8.0, stages=(stage, stage))
    with pytest.raises(ValueError, match="there twice, and a column has one ADC"):
        hw.Hardware(forward=io)
