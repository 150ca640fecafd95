"""Conductances read back from a chip become a checkpoint: chip in the loop."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import hwtrain
from hwtrain._plan.plan import Plan
from hwtrain.checkpoint import (
    HardwareCheckpointError,
    export,
    load,
    read_conductances,
    verify,
)
from hwtrain.checkpoint import _read_back as read_back
from hwtrain.checkpoint.adapters import ADAPTERS
from hwtrain.evaluate import population


def mean_size(y):
    return jnp.mean(jnp.abs(y), axis=-1)


@pytest.fixture
def small(plan):
    """A tiled weight, a stack with scales of its own, and one without a converter."""
    names = ("hidden/kernel", "layers/kernel", "cell/w_rec")
    return Plan(tuple(plan[name] for name in names), plan.digital)


@pytest.fixture
def drawn(tmp_path, variables, small):
    """A checkpoint whose chip 7 plays the chip that is measured."""
    variables["params"]["hidden"]["input_range"] = jnp.full((3, 3), 2.5)
    return load(export(tmp_path / "drawn", variables, small, chip_seed=7))


@pytest.fixture
def conductances(drawn, small):
    return {
        f"{path}/tile/{i}/{j}/{device}": g
        for path in ("hidden/kernel", "layers/kernel")
        for i, row in enumerate(drawn.conductances(path, 7))
        for j, tile in enumerate(row)
        for device, g in tile.conductances.items()
    }


def write_csv(path, conductances, change=lambda lines: lines):
    lines = [read_back.COLUMNS]
    for name, array in conductances.items():
        *weight, _, i, j, device = name.split("/")
        layers = array.reshape(-1, *array.shape[-2:])
        for stack, row, column in np.ndindex(layers.shape):
            g = repr(float(layers[stack, row, column]))
            lines.append(("/".join(weight), i, j, device, stack, row, column, g))
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(change(lines))
    return path


def write_npz(path, conductances):
    np.savez(path, **{f"conductances/{k}": v for k, v in conductances.items()})
    return path


@pytest.mark.parametrize("write", [write_csv, write_npz])
def test_a_file_holds_what_was_measured(tmp_path, conductances, small, write):
    suffix = write.__name__.removeprefix("write_")
    path = write(tmp_path / f"chip.{suffix}", conductances)
    found = read_conductances(path, small)
    assert found.keys() == conductances.keys()
    for name, g in conductances.items():
        np.testing.assert_array_equal(found[name], g)


def test_the_adapter_s_file_is_read(tmp_path, drawn, small):
    ADAPTERS["npz"](drawn, tmp_path / "chip.npz", chip=7)
    found = read_conductances(tmp_path / "chip.npz", small)
    tile = drawn.conductances("hidden/kernel", 7)[1][2]
    np.testing.assert_array_equal(found["hidden/kernel/tile/1/2/g_pos"], tile.g_pos)


def test_a_measured_chip_is_what_its_conductances_stand_for(
    tmp_path, variables, small, drawn, conductances
):
    path = export(tmp_path / "m", variables, small, measured={7: conductances})
    checkpoint = load(path)
    assert checkpoint.chip_seeds == (7,)
    # By NumPy: each tile's weights from the drawn chip's scales, put together.
    for name in ("hidden/kernel", "layers/kernel"):
        blocks = [
            [
                (tile.g_pos - tile.g_neg) / tile.scale_ratio * tile.mapping_scale
                for tile in row
            ]
            for row in drawn.conductances(name, 7)
        ]
        layer, leaf = name.split("/")
        found = checkpoint.chip(7)[layer][leaf]
        np.testing.assert_allclose(found, np.block(blocks), rtol=1e-5, atol=1e-6)
    nominal = variables["params"]
    np.testing.assert_array_equal(
        checkpoint.chip(7)["cell"]["w_rec"], nominal["cell"]["w_rec"]
    )
    np.testing.assert_array_equal(
        checkpoint.params["hidden"]["kernel"], nominal["hidden"]["kernel"]
    )
    assert verify(path)["weights"]["hidden/kernel"]["chips"] == {"7": 0.0}
    again = export(
        tmp_path / "again",
        checkpoint.variables,
        checkpoint.plan,
        measured={7: conductances},
    )
    for file in path.rglob("*.*"):
        assert (again / file.relative_to(path)).read_bytes() == file.read_bytes()


def test_a_measured_chip_has_one_time(tmp_path, variables, small, conductances):
    checkpoint = load(
        export(tmp_path / "m", variables, small, measured={7: conductances})
    )
    with pytest.raises(HardwareCheckpointError, match="chip 7 was measured, at one"):
        checkpoint.chip(7, t_s=3600.0)
    with pytest.raises(HardwareCheckpointError, match="both drawn .* and measured"):
        export(
            tmp_path / "n", variables, small, chip_seed=7, measured={7: conductances}
        )
    with pytest.raises(HardwareCheckpointError, match="whole number from 0"):
        export(tmp_path / "n", variables, small, measured={-1: conductances})


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda c: c.pop("hidden/kernel/tile/0/1/g_neg"), "tile/0/1/g_neg is missing"),
        (
            lambda c: c.update({"hidden/kernel/tile/9/0/g_pos": np.ones((4, 3))}),
            "tile/9/0/g_pos is not a device of the plan",
        ),
        (
            lambda c: c.update({"hidden/kernel/tile/0/0/g_pos": np.ones((3, 4))}),
            r"tile/0/0/g_pos should have the shape \(4, 3\), got \(3, 4\)",
        ),
        (
            lambda c: c["hidden/kernel/tile/0/0/g_pos"].__setitem__((2, 1), np.nan),
            r"tile/0/0/g_pos: .* the one at \(2, 1\) is nan",
        ),
        (
            lambda c: c["hidden/kernel/tile/0/0/g_pos"].__setitem__((2, 1), -0.5),
            r"between 0 and 50 µS \(twice g_max\), the one at \(2, 1\) is -0.5",
        ),
        (
            lambda c: c["layers/kernel/tile/0/0/g_neg"].__setitem__((1, 0, 1), 81.0),
            r"between 0 and 80 µS .*, the one at \(1, 0, 1\) is 81",
        ),
        (
            lambda c: c.update({k: 1e-6 * v for k, v in c.items()}),
            "they look like siemens. Give them in µS",
        ),
        (
            lambda c: c.update({"hidden/kernel/tile/0/0/g_pos": np.full((4, 3), "a")}),
            "should hold numbers, got <U1",
        ),
    ],
)
def test_impossible_measurements(tmp_path, conductances, small, change, match):
    conductances = {name: g.copy() for name, g in conductances.items()}
    change(conductances)
    path = write_npz(tmp_path / "chip.npz", conductances)
    with pytest.raises(HardwareCheckpointError, match=match):
        read_conductances(path, small)


def edited(number, column, value):
    """Puts another value into a line of the file, counted from one."""

    def change(lines):
        line = list(lines[number - 1])
        line[read_back.COLUMNS.index(column)] = value
        return [*lines[: number - 1], line, *lines[number:]]

    return change


@pytest.mark.parametrize(
    "change, match",
    [
        (
            edited(5, "conductance_uS", "high"),
            "line 5: .* number in conductance_uS, got .*high",
        ),
        (edited(5, "conductance_uS", "nan"), "line 5: .* at least 0, got nan"),
        (edited(5, "conductance_uS", "-1"), "line 5: .* at least 0, got -1"),
        (edited(5, "row", "1.5"), "line 5: expected whole numbers"),
        (edited(5, "row", "-1"), "line 5: stack 0, row -1, .* 1 x 4 x 3"),
        (edited(5, "column", "3"), "line 5: .* column 3 lie outside"),
        (edited(5, "stack", "1"), "line 5: stack 1, row"),
        (edited(5, "weight", "hiden/kernel"), "line 5: hiden/kernel/tile/0/0/g_pos is"),
        (edited(5, "device", "g"), "line 5: hidden/kernel/tile/0/0/g is not a device"),
        (
            edited(5, "row", "0"),
            r"line 5: .* at \(0, 0\) occurs twice, first in line 2",
        ),
        (lambda lines: lines[:-1], r"1 of 24 devices .* missing, the first at \(1, 1"),
        (lambda lines: lines[1:], "line 1: expected the columns weight,row_tile"),
        (lambda lines: [], "line 1: expected the columns .* got nothing"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, conductances, small, change, match):
    path = write_csv(tmp_path / "chip.csv", conductances, change)
    with pytest.raises(HardwareCheckpointError, match=match):
        read_conductances(path, small)


def test_no_file_of_measurements(tmp_path, small):
    for name, content, match in (
        ("chip.txt", b"", "expected measured conductances in a file .npz or .csv"),
        ("chip.npz", b"PK\x03\x04 no archive", "not a .npz file of plain arrays"),
        ("chip.csv", b"\xff\xfe", "line 1: not CSV"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(HardwareCheckpointError, match=match):
            read_conductances(tmp_path / name, small)
    with pytest.raises(HardwareCheckpointError, match="No such file"):
        read_conductances(tmp_path / "none.csv", small)


def test_a_pickle_is_not_loaded(tmp_path, small):
    np.savez(tmp_path / "chip.npz", **{"conductances/w": np.array([{}], object)})
    with pytest.raises(
        HardwareCheckpointError, match="not a .npz file of plain arrays"
    ):
        read_conductances(tmp_path / "chip.npz", small)


@pytest.mark.parametrize("chips", [[8], 2, [7, 8], [3, 8]])
def test_a_population_holds_the_chips_of_the_checkpoint(tmp_path, chips):
    """No chip is drawn in place of a measured chip that does not exist."""
    hardware = hwtrain.Hardware(
        converter=hwtrain.SinglePairConductanceConverter(),
        mismatch=hwtrain.MismatchParameter(type="add_normal", std_dev=0.1),
    )
    x = jax.random.normal(jax.random.key(0), (8, 6))
    analog = hwtrain.analogize(nn.Dense(4), hardware)
    variables = analog.init(jax.random.key(1), x)
    plan = hwtrain.plan(analog, variables, x)
    drawn = load(export(tmp_path / "drawn", variables, plan, chip_seed=7))
    ADAPTERS["npz"](drawn, tmp_path / "chip.npz", chip=7)
    found = read_conductances(tmp_path / "chip.npz", plan)
    path = export(tmp_path / "m", variables, plan, chip_seed=3, measured={7: found})
    checkpoint = load(path)

    def values(variables, chips):
        batches, key = [(x,)], jax.random.key(0)
        return population(
            analog, variables, batches, mean_size, chips=chips, key=key
        ).values

    missing = min({*(range(chips) if chips == 2 else chips)} - {3, 7})
    holds = rf"holds no chip {missing}; it holds 3, 7, of which chip 7 was measured"
    with pytest.raises(ValueError, match=holds):
        values(checkpoint, chips)
    with pytest.raises(HardwareCheckpointError, match=f"holds no chip {missing}"):
        checkpoint.chip(missing)
    # Drawn from nominal weights, every seed is there.
    drawn_from = values(checkpoint.variables, [3, 7, missing])
    np.testing.assert_allclose(values(checkpoint, [3]), drawn_from[:1], rtol=1e-6)
    np.testing.assert_allclose(values(checkpoint, [7]), drawn_from[1:2], rtol=1e-5)


def test_fine_tuning_on_a_measured_chip(tmp_path):
    """The digital parameters are tuned to the measured chip, which is not
    reprogrammed."""
    chip_type = hwtrain.Hardware(
        converter=hwtrain.SinglePairConductanceConverter(),
        stuck=hwtrain.StuckParameter(at_g_min=0.2),
    )
    x = jax.random.normal(jax.random.key(0), (64, 12))
    analog = hwtrain.analogize(nn.Dense(4), chip_type)
    variables = jax.jit(analog.init)(jax.random.key(1), x)
    y = analog.apply(variables, x)
    plan = hwtrain.plan(analog, variables, x)
    drawn = load(export(tmp_path / "drawn", variables, plan, chip_seed=3))
    ADAPTERS["npz"](drawn, tmp_path / "read_back.npz", chip=3)

    conductances = read_conductances(tmp_path / "read_back.npz", plan)
    path = export(tmp_path / "chip", variables, plan, measured={3: conductances})
    checkpoint = load(path)
    params = checkpoint.chip(3)
    np.testing.assert_allclose(params["kernel"], drawn.chip(3)["kernel"], rtol=1e-5)

    def loss(bias):
        outputs = analog.apply({"params": {**params, "bias": bias}}, x)
        return jnp.mean((outputs - y) ** 2)

    optimizer = optax.adam(0.05)
    bias, state = params["bias"], optimizer.init(params["bias"])
    step = jax.jit(jax.value_and_grad(loss))
    before = loss(bias)
    for _ in range(60):
        updates, state = optimizer.update(step(bias)[1], state)
        bias = optax.apply_updates(bias, updates)
    # Closed form of the best bias: the mean residual.
    best = jnp.mean(y - x @ params["kernel"], 0)
    np.testing.assert_allclose(bias, best, atol=0.02)
    assert loss(bias) < before

    tuned = {"params": {**checkpoint.params, "bias": bias}}
    out = export(tmp_path / "tuned", tuned, plan, measured={3: conductances})
    values = hwtrain.evaluate.population(
        analog,
        load(out),
        [(x, y)],
        squared_error,
        chips=[3],
        key=jax.random.key(0),
    )
    np.testing.assert_allclose(values.mean, loss(bias), rtol=1e-4)
    with pytest.raises(ValueError, match="chip 3 was measured"):
        hwtrain.evaluate.population(
            analog,
            load(out),
            [(x, y)],
            squared_error,
            chips=[2, 3],
            key=jax.random.key(0),
        )


def squared_error(outputs, targets):
    return jnp.mean((outputs - targets) ** 2, -1)
