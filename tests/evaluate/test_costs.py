"""Costs of models, against the tables of published chips and sums by hand."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain.evaluate import cost, technologies

IO = hw.IOParameters(inp_bits=8, out_bits=6, out_bound=10.0)
PAIR = hw.SinglePairConductanceConverter(g_max=25.0)
OURS = hw.CostParameter(
    source="ours",
    row_energy_fj=2.0,
    row_area_um2=3.0,
    read_time_ns=5.0,
    cell_energy_fj=7.0,
    cell_area_um2=11.0,
    adc_energy_fj_per_step=13.0,
    conversion_energy_fj=17.0,
    conversion_time_ns=19.0,
    adc_area_um2=23.0,
    columns_per_adc=2,
    tile_energy_pj=29.0,
    tile_area_um2=31.0,
    digital_mac_energy_fj=37.0,
    digital_macs_per_ns=4.0,
)


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def found_for(model, x, hardware, constants, **kwargs):
    analog = hw.analogize(model, hardware)
    variables = jax.eval_shape(analog.init, jax.random.key(0), x)
    return cost(analog, variables, x, constants=constants, **kwargs)


# --- ISAAC, Table I of Shafiee et al., ISCA 2016 (version of October 5th, 2016) ---

ISAAC = hw.Hardware(
    forward=hw.IOParameters(inp_bits=16, out_bits=8, out_bound=10.0),
    mapping=hw.MappingParameter(max_input_size=128, max_output_size=16),
    # Eight cells for each weight.
    converter=hw.NPairConductanceConverter(f_lst=[1.0] * 4, g_max=25.0),
)
CYCLES, CYCLE_S = 16, 100e-9
UNITS, ARRAYS = 12, 8  # in a tile
# "IMA Total | number 12 | 289 mW | 0.157 mm²", "1 Tile Total | 330 mW | 0.372 mm²".
UNITS_W, UNITS_MM2, TILE_W, TILE_MM2 = 0.289, 0.157, 0.330, 0.372
# "Total | 40.9 mW" of the parts of a tile outside of its units, 168 tiles on a chip,
# "Hyper Tr | 10.4 W", and in Table IV a power efficiency of 627.5 GOPS/W.
REST_W, TILES, LINKS_W, GOPS_PER_W = 0.0409, 168, 10.4, 627.5


@pytest.fixture(scope="module")
def isaac():
    """A layer that fills the 96 arrays of one tile of ISAAC."""
    rows, outputs = 12 * 128, 8 * 16
    model = nn.Dense(outputs, use_bias=False)
    return found_for(model, shape(1, rows), ISAAC, technologies.isaac())


def test_isaac_takes_the_power_and_area_of_its_table(isaac):
    assert isaac.analog[0].counts.tiles == UNITS * ARRAYS
    time_s = isaac.latency_us * 1e-6
    assert time_s == pytest.approx(CYCLES * CYCLE_S)
    # The table's sums are rounded to three digits.
    assert isaac.energy_nj * 1e-9 / time_s == pytest.approx(UNITS_W, abs=5e-4)
    assert isaac.area_mm2 == pytest.approx(UNITS_MM2, abs=5e-4)


def test_the_adcs_of_isaac_take_the_shares_that_the_paper_states(isaac):
    # "the ADCs account for 58 % of tile power and 31 % of tile area", Section VIII-A.
    adcs = isaac.parts["adc"]
    # Of the table's rows, sample-and-holds, shift-and-add and output registers are
    # counted with the conversions here: 0.44 mW beside 16 mW.
    of_conversions = adcs.energy_fj * 16 / 16.44
    tile_fj = TILE_W * CYCLES * CYCLE_S * 1e15
    assert of_conversions / tile_fj == pytest.approx(0.58, abs=5e-3)
    assert adcs.area_um2 * 1e-6 / TILE_MM2 == pytest.approx(0.31, abs=5e-3)


def test_isaac_has_the_efficiency_of_its_table(isaac):
    tile_w = isaac.energy_nj / isaac.latency_us * 1e-3 + REST_W
    chip_w = TILES * tile_w + LINKS_W
    gops = TILES * isaac.operations / (isaac.latency_us * 1e-6) * 1e-9
    assert gops / chip_w == pytest.approx(GOPS_PER_W, rel=1e-3)


def test_isaac_converts_once_for_each_multiplication_of_16_bits(isaac):
    # 8 columns for each weight times 16 cycles over 128 rows.
    layer = isaac.analog[0]
    assert layer.counts.conversions == layer.macs


# --- HERMES, measured ---

FULL = hw.Hardware(mapping=hw.MappingParameter(max_input_size=256, max_output_size=256))


def test_a_product_of_the_hermes_core_takes_130_ns():
    found = found_for(
        nn.Dense(256, use_bias=False),
        shape(1, 256),
        FULL,
        technologies.hermes_core(),
    )
    # "we assume an MVM to be executed in 130 ns as reported in Khaddam et al.",
    # Bruschi et al., DATE 2023; 10.5 TOPS/W and 1.59 TOPS/mm², Khaddam-Aljameh et al.
    assert found.latency_us == pytest.approx(0.130, abs=5e-4)
    assert found.tops_per_watt == pytest.approx(10.5)
    tops = found.operations / found.latency_us * 1e-6
    assert tops / found.area_mm2 == pytest.approx(1.59)


def test_64_cores_have_the_efficiency_of_the_hermes_chip():
    found = found_for(
        nn.Dense(8 * 256, use_bias=False),
        shape(1, 8 * 256),
        FULL,
        technologies.hermes(),
    )
    assert found.analog[0].counts.tiles == 64
    # 0.86 µJ is rounded to half a percent; Le Gallo et al. state 9.76 TOPS/W.
    assert found.energy_nj == pytest.approx(860.0)
    assert found.tops_per_watt == pytest.approx(9.76, rel=0.005 / 0.86)
    assert found.operations / found.latency_us * 1e-6 == pytest.approx(63.1)


# --- Sums by hand ---


def test_a_small_model_by_hand():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(10, name="hidden")(x)
            return nn.Dense(3, name="head")(x)

    chip = hw.Hardware(
        forward=IO,
        converter=PAIR,
        mapping=hw.MappingParameter(max_input_size=4, max_output_size=8),
    )
    rules = [hw.Rule("hidden", chip)]
    found = found_for(Net(), shape(2, 5, 6), rules, OURS)
    # Five vectors in each of two examples; tiles of 3 rows and 5 columns, two by two.
    reads = 5 * 4
    rows, conversions, cells = 5 * 6 * 2, 5 * 10 * 2, 5 * 6 * 10 * 2
    parts = found.analog[0].parts
    assert parts["dac"].energy_fj == rows * 2.0
    assert parts["cells"].energy_fj == cells * 7.0
    assert parts["adc"].energy_fj == pytest.approx(conversions * (17 + 64 * 13))
    assert parts["tile"].energy_fj == reads * 29e3
    macs = 5 * 10 * 3
    assert found.digital[0].path == "head/kernel"
    assert found.digital[0].total.energy_fj == macs * 37.0
    # Vectors one after the other, tiles at once; each ADC converts two columns.
    time = 5 * (5.0 + 2 * 19.0) + macs / 4
    assert found.total.latency_ns == pytest.approx(time)
    # Built for 4 rows and 8 columns, which four ADCs share.
    each = 4 * 3.0 + 4 * 23.0 + 4 * 8 * 2 * 11.0 + 31.0
    assert found.total.area_um2 == 4 * each
    assert found.devices == 6 * 10 * 2
    assert found.operations == 2 * (5 * 60 + macs)
    energy = sum(layer.total.energy_fj for layer in found.layers)
    assert found.energy_nj == pytest.approx(energy * 1e-6)
    assert found.tops_per_watt == pytest.approx(found.operations / energy * 1e3)


@pytest.mark.parametrize(
    ("bits", "per_pass", "passes"), [(8, 1, 8), (8, 3, 3), (8, 8, 1), (8, None, 1)]
)
def test_inputs_of_more_bits_take_more_passes(bits, per_pass, passes):
    io = dataclasses.replace(IO, inp_bits=bits)
    chip = hw.Hardware(forward=io, converter=PAIR)
    constants = dataclasses.replace(OURS, input_bits_per_pass=per_pass)
    found = found_for(nn.Dense(4), shape(1, 3), chip, constants)
    assert found.analog[0].counts.passes == passes
    assert found.parts["cells"].energy_fj == passes * 3 * 4 * 2 * 7.0
    # Each reads, and converts two columns one after the other.
    assert found.total.latency_ns == passes * (5.0 + 2 * 19.0)


@pytest.mark.parametrize(("conversion", "expected"), [(1.0, 5.0), (19.0, 38.0)])
def test_overlapped_conversion_takes_the_longer_time(conversion, expected):
    constants = dataclasses.replace(
        OURS, overlapped=True, conversion_time_ns=conversion
    )
    chip = hw.Hardware(forward=IO, converter=PAIR)
    found = found_for(nn.Dense(4), shape(1, 3), chip, constants)
    assert found.total.latency_ns == expected


def test_another_bit_of_the_adc_doubles_its_energy_and_nothing_else():
    constants = dataclasses.replace(OURS, conversion_energy_fj=0.0)
    energies = []
    for bits in (6, 7):
        io = dataclasses.replace(IO, out_bits=bits)
        chip = hw.Hardware(forward=io, converter=PAIR)
        parts = found_for(nn.Dense(4), shape(1, 3), chip, constants).parts
        energies.append({name: part.energy_fj for name, part in parts.items()})
    assert energies[1].pop("adc") == pytest.approx(2 * energies[0].pop("adc"))
    assert energies[0] == energies[1]


def test_linen_and_nnx_cost_the_same():
    chip = hw.Hardware(forward=IO, converter=PAIR)
    x = shape(4, 9, 3)
    linen = found_for(nn.Conv(6, (3,)), x, chip, OURS)
    analog = hw.analogize(nnx.Conv(3, 6, (3,), rngs=nnx.Rngs(0)), chip)
    assert cost(analog, None, x, constants=OURS).totals() == linen.totals()


def test_an_example_costs_the_same_in_every_batch():
    chip = hw.Hardware(forward=IO, converter=PAIR)
    one, many = (
        found_for(nn.Dense(4), shape(n, 3), chip, OURS).totals() for n in (1, 32)
    )
    assert one == many
    three = found_for(nn.Dense(4), shape(3, 3), chip, OURS, examples=1)
    assert three.energy_nj == pytest.approx(3 * one["energy_nj_per_example"])


def test_a_forward_function_calls_the_model():
    analog = hw.analogize(nn.Dense(4), hw.Hardware(forward=IO, converter=PAIR))
    x = shape(2, 3)
    variables = jax.eval_shape(analog.init, jax.random.key(0), x)
    twice = cost(
        analog,
        variables,
        {"x": x},
        constants=OURS,
        forward=lambda apply, batch: apply(batch["x"]) + apply(batch["x"]),
    )
    once = cost(analog, variables, x, constants=OURS)
    assert twice.energy_nj == pytest.approx(2 * once.energy_nj)
    assert twice.area_mm2 == once.area_mm2


def test_totals_without_constants_are_none_and_not_zero():
    constants = hw.CostParameter(source="nobody")
    found = found_for(nn.Dense(4), shape(1, 3), hw.Hardware(), constants)
    totals = found.totals()
    for name in ("energy_nj_per_example", "latency_us_per_example", "area_mm2"):
        assert totals[name] is None
    assert totals["devices"] is None and totals["tops_per_watt"] is None
    json.dumps(found.as_data())


def test_bits_of_the_constants_stand_in_for_a_converter():
    chip = hw.Hardware(converter=PAIR)
    with pytest.raises(ValueError, match="^kernel: its hardware has no ADC with lev"):
        found_for(nn.Dense(4), shape(1, 3), chip, OURS)
    constants = dataclasses.replace(OURS, out_bits=6)
    ours = found_for(nn.Dense(4), shape(1, 3), chip, constants)
    theirs = found_for(
        nn.Dense(4), shape(1, 3), dataclasses.replace(chip, forward=IO), OURS
    )
    assert ours.totals() == theirs.totals()


CHIP = hw.Hardware(forward=IO, converter=PAIR)
BITWISE = dataclasses.replace(OURS, input_bits_per_pass=1)


@pytest.mark.parametrize(
    ("hardware", "constants", "said"),
    [
        (hw.Hardware(forward=IO), OURS, "kernel: its hardware has no converter of wei"),
        (
            dataclasses.replace(CHIP, forward=None),
            BITWISE,
            r"no DAC with levels, .* input_bits_per_pass. Write .* \(cost.inp_bits\)",
        ),
        (
            CHIP,
            dataclasses.replace(OURS, tile_rows=2),
            "kernel: it needs tiles of 3 rows, .* Write max_input_size=2",
        ),
    ],
)
def test_what_a_constant_needs_is_asked_for(hardware, constants, said):
    with pytest.raises(ValueError, match=said) as caught:
        found_for(nn.Dense(4), shape(1, 3), hardware, constants)
    assert "\n" not in str(caught.value)


def test_a_call_without_arguments_is_refused():
    analog = hw.analogize(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), CHIP)
    with pytest.raises(ValueError, match="pass its arguments"):
        cost(analog, constants=OURS)
    with pytest.raises(ValueError, match="at least one example in the call, got 0"):
        cost(analog, None, shape(2, 3), constants=OURS, examples=0)


class Tricky(nn.Module):
    """A look-up, a layer, and a parameter named by a rule."""

    @nn.compact
    def __call__(self, x, full=False):
        table = nn.Embed(6, 4, name="table")
        x = table(jnp.zeros(x.shape[:1], int)) + self.param("gain", nn.ones, (4, 4))[0]
        layer = nn.Dense(4, name="layer")
        if full or self.is_initializing():
            x = layer(x)
        return x


def test_notes_say_what_is_left_out():
    chip = dataclasses.replace(
        CHIP,
        forward=dataclasses.replace(IO, bound_management="iterative"),
    )
    rules = [hw.Rule(params="gain", hardware=hw.Hardware(converter=PAIR))]
    rules += [hw.Rule("table", CHIP), hw.Rule("layer", chip)]
    analog = hw.analogize(Tricky(), rules)
    x = shape(2, 4)
    variables = jax.eval_shape(analog.init, jax.random.key(0), x)
    found = cost(analog, variables, x, full=True, constants=OURS)
    notes = "\n".join(found.notes)
    assert "table/embedding: look-ups are not counted" in notes
    assert "gain: no product by it is found, and other uses are not counted" in notes
    assert "layer/kernel: repeated reads of bound management are not counted" in notes
    assert "activations, normalisations, biases" in notes
    text = str(found)
    assert "TOPS/W" in text and "constants: ours" in text
    for note in found.notes:
        assert note.split()[0] in text


@pytest.mark.parametrize("name", [None, "inner"])
def test_products_of_a_parameter_that_a_rule_names_are_analog(name):
    class Raw(nn.Module):
        @nn.compact
        def __call__(self, x):
            w = self.param("w", nn.initializers.lecun_normal(), (3, 4))
            return nn.Dense(2, name="head")(x @ w)

    rules = [hw.Rule(params=".*w", hardware=hw.Hardware(converter=PAIR))]
    analog = hw.analogize(Raw(), rules, name=name)
    x = shape(2, 7, 3)
    variables = jax.eval_shape(analog.init, jax.random.key(0), x)
    with pytest.raises(ValueError, match="Write out_bits in the CostPara"):
        cost(analog, variables, x, constants=OURS)
    constants = dataclasses.replace(OURS, out_bits=6)
    found = cost(analog, variables, x, constants=constants)
    assert found.analog[0].counts.products == 7
    assert found.analog[0].parts["cells"].energy_fj == 7 * 3 * 4 * 2 * 7.0
    assert [layer.path for layer in found.digital] == ["head/kernel"]


def test_digital_products_without_a_constant_are_named():
    model = nn.Sequential([nn.Dense(4), nn.Dense(3)])
    constants = dataclasses.replace(
        OURS, digital_mac_energy_fj=0.0, digital_macs_per_ns=None
    )
    found = found_for(model, shape(1, 3), [hw.Rule("layers_0", CHIP)], constants)
    assert found.digital[0].macs == 12
    notes = "\n".join(found.notes)
    assert "energy of digital products is not counted: digital_mac_energy_fj" in notes
    assert "time of digital products is not counted: digital_macs_per_ns" in notes


def test_constants_name_their_source():
    with pytest.raises(ValueError, match="source"):
        hw.CostParameter(row_energy_fj=1.0)
    with pytest.raises(ValueError, match="cell_energy_fj"):
        hw.CostParameter(source="ours", cell_energy_fj=-1.0)


def test_a_layer_that_the_call_does_not_reach_costs_area_only():
    class Half(nnx.Module):
        def __init__(self, rngs):
            self.used = nnx.Linear(3, 4, rngs=rngs)
            self.idle = nnx.Linear(3, 4, rngs=rngs)

        def __call__(self, x):
            return self.used(x)

    analog = hw.analogize(Half(nnx.Rngs(0)), hw.Hardware(forward=IO, converter=PAIR))
    found = cost(analog, None, shape(2, 3), constants=OURS)
    used, idle = sorted(found.analog, key=lambda layer: -layer.macs)
    assert idle.path == "idle/kernel"
    assert idle.total.energy_fj == idle.total.latency_ns == 0
    assert idle.total.area_um2 == used.total.area_um2 > 0
    assert "idle/kernel: the call does not reach it" in found.notes
