"""The Fusion table, read with csv, json and NumPy alone, and by aihwkit."""

import csv
import json
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import hwtrain
from hwtrain import (
    Hardware,
    MappingParameter,
    SinglePairConductanceConverter,
    analogize,
)
from hwtrain.checkpoint import HardwareCheckpointError, export, load, trace_graph
from hwtrain.checkpoint.adapters import to_fusion_csv


def read(out):
    """Returns the header by name, and each layer's weights `[in, out]` and entry."""
    with open(out / "conductances.csv", newline="") as file:
        ids, classes, sizes, heights, widths, names, *rows = csv.reader(file)
    header = dict(zip(names, zip(ids, classes, sizes, heights, widths)))
    layers = {}
    side_car = json.loads((out / "side_car.json").read_text())
    for name, row, entry in zip(names, rows, side_car["layers"], strict=True):
        g = np.array(row, np.float32)
        assert entry["name"] == name and (g >= 0).all()
        matrix = np.zeros((int(header[name][3]), int(header[name][4])), np.float32)
        for tile in entry["tiles"]:
            height, width, start = tile["height"], tile["width"], tile["offset"]
            part = g[start : start + height * width].reshape(height, width)
            sign = [["-0+".index(c) - 1 for c in row] for row in tile["signs"]]
            scale = np.array(tile["scale"])[:, None]
            rows_ = slice(tile["first_output"], tile["first_output"] + height)
            columns = slice(tile["first_input"], tile["first_input"] + width)
            matrix[rows_, columns] = sign * part * scale
        layers[name] = matrix.T, entry
    return header, layers


@pytest.mark.parametrize("stack", [(), (2,)])
def test_weights_come_back(make, out, stack):
    checkpoint = make("first", "second", stack=stack)
    to_fusion_csv(checkpoint, out)
    header, layers = read(out)
    for name in ("first", "second"):
        params = checkpoint.params[name]
        kernel = np.asarray(params["kernel"])
        for number, index in enumerate(np.ndindex(*stack)):
            full = "/".join([name, *map(str, index)])
            found, entry = layers[full]
            atol = 1e-6 * abs(kernel).max()
            np.testing.assert_allclose(found, kernel[index], rtol=0, atol=atol)
            first = 1 if name == "first" else 1 + max(1, *stack, 1)
            expected = (str(first + number), "AnalogLinear", "30", "5", "6")
            assert header[full] == expected
            np.testing.assert_array_equal(
                np.float32(entry["bias"]), np.asarray(params["bias"])[index]
            )
    tiles = layers["/".join(["first", *map(str, [0] * len(stack))])][1]["tiles"]
    assert [(t["height"], t["width"]) for t in tiles] == [(3, 3), (2, 3)] * 2
    assert [t["input_range"] for t in tiles] == [1.0, 1.5, 2.0, 2.5]
    # The first two weights of the model are 0.0 and -0.0.
    assert [tiles[0]["signs"][column][0] for column in (0, 1)] == ["0", "0"]


@pytest.mark.parametrize("name", ["conv", "grouped"])
def test_convolutions(make, out, matrices, name):
    checkpoint = make("conv", "grouped")
    to_fusion_csv(checkpoint, out)
    header, layers = read(out)
    for full, (kernel, bias) in matrices(checkpoint.params, name).items():
        found, entry = layers[full]
        atol = 1e-6 * abs(kernel).max()
        np.testing.assert_allclose(found, kernel, rtol=0, atol=atol)
        np.testing.assert_array_equal(np.float32(entry["bias"]), bias)
        assert header[full][1] == "AnalogConv2d"


def test_learned_output_scales(make, out, scaled):
    checkpoint = make("scaled", norm=False)
    to_fusion_csv(checkpoint, out)
    found, kernel = read(out)[1]["scaled"][0], scaled(checkpoint)
    np.testing.assert_allclose(found, kernel, rtol=0, atol=1e-6 * abs(kernel).max())


def test_the_largest_conductance_is_full_scale(make, out):
    to_fusion_csv(make("first"), out)
    with open(out / "conductances.csv", newline="") as file:
        row = list(csv.reader(file))[6]
    g = np.array(row, float)[:9].reshape(3, 3)
    # per_column: the largest weight of each output of a tile has g_max.
    np.testing.assert_allclose(g.max(axis=1), 25.0, rtol=1e-6)


@pytest.mark.parametrize("name", ["pairs", "device"])
def test_other_devices_are_refused(make, out, name):
    with pytest.raises(HardwareCheckpointError, match=f"{name}/kernel: the Fusion"):
        to_fusion_csv(make("second", name), out)
    assert not out.parent.exists()


def test_a_drawn_chip_is_refused(make, out):
    with pytest.raises(HardwareCheckpointError, match="chip=7: .* its own mismatch"):
        to_fusion_csv(make("second"), out, chip=7)


class Net(nn.Module):
    """Its parameters are in another order than its layers."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(7, name="z_first")(x))
        x = nn.relu(nn.Dense(4, name="middle")(x))
        return nn.Dense(3, name="head")(x)


TILES = MappingParameter(max_input_size=4, max_output_size=5, weight_scaling_omega=1.0)
FUSION = Hardware(mapping=TILES, converter=SinglePairConductanceConverter(g_max=25.0))
SIZES = {"z_first": (7, 6), "act_0": (), "middle": (4, 7), "act_1": (), "head": (3, 4)}


def net(path, graph=True):
    x = jnp.ones((1, 6))
    model = analogize(Net(), FUSION)
    variables = model.init(jax.random.key(0), x)
    found = trace_graph(model, variables, x) if graph else None
    plan = hwtrain.plan(model, variables, x)
    return load(export(path, variables, plan, graph=found))


def tile_sizes(outputs, inputs):
    """Returns the sizes of aihwkit's tiles: as equal as can be, inputs outermost."""

    def split(size, largest):
        return [len(x) for x in np.array_split(np.arange(size), -(-size // largest))]

    return [(o, i) for i in split(inputs, 4) for o in split(outputs, 5)]


def imported(path, sizes, original):
    """Walks a table as aihwkit's `fusion_import` does, for a sequential model.

    Each module has a number, those without weights too. The header must be that of the
    model, to the letter. A layer's row is cut into its tiles, and each output of a tile
    is scaled by the slope of the original weights over signed conductances.
    """
    analog = {name: shape for name, shape in sizes.items() if shape}
    numbers = [n for n, name in enumerate(sizes, start=1) if name in analog]
    shapes = analog.values()
    header = [
        numbers,
        ["AnalogLinear"] * len(analog),
        [o * i for o, i in shapes],
        [o for o, _ in shapes],
        [i for _, i in shapes],
        list(analog),
    ]
    with open(path, newline="") as file:
        lines = list(csv.reader(file))
    assert lines[:6] == [[str(entry) for entry in row] for row in header]
    weights = {}
    for name, row in zip(analog, lines[6:], strict=True):
        g, weights[name] = [float(number) for number in row], []
        for shape, known in zip(tile_sizes(*analog[name]), original[name], strict=True):
            part, g = g[: shape[0] * shape[1]], g[shape[0] * shape[1] :]
            signed = np.reshape(part, shape) * np.sign(known)
            slopes = [
                np.cov(x, y, bias=True)[0, 1] / np.var(x)
                for x, y in zip(signed, np.asarray(known, float))
            ]
            weights[name].append(signed * np.array(slopes)[:, None])
        assert not g
    return weights


def test_it_is_what_aihwkit_walks(tmp_path):
    checkpoint = net(tmp_path / "c")
    to_fusion_csv(checkpoint, tmp_path / "out")
    loader = runpy.run_path(str(tmp_path / "out" / "load.py"))
    side_car = json.loads((tmp_path / "out" / "side_car.json").read_text())
    with open(tmp_path / "out" / "conductances.csv", newline="") as file:
        rows = list(csv.reader(file))[6:]
    original = {
        entry["name"]: loader["original_weights"](entry, np.array(row, np.float32))
        for entry, row in zip(side_car["layers"], rows)
    }
    found = imported(tmp_path / "out" / "conductances.csv", SIZES, original)
    for name, shape in SIZES.items():
        if shape:
            kernel = np.asarray(checkpoint.params[name]["kernel"])
            tiles = iter(found[name])
            outputs = len({o for o, _ in tile_sizes(*shape)}) if shape[0] <= 5 else 2
            count = len(found[name])
            columns = [
                np.concatenate([next(tiles) for _ in range(outputs)])
                for _ in range(count // outputs)
            ]
            weights = np.concatenate(columns, axis=1).T
            atol = 1e-5 * abs(kernel).max()
            np.testing.assert_allclose(weights, kernel, rtol=0, atol=atol)


def test_without_a_graph_the_layers_alone_have_numbers(tmp_path):
    to_fusion_csv(net(tmp_path / "c", graph=False), tmp_path / "out")
    header, _ = read(tmp_path / "out")
    assert {name: row[0] for name, row in header.items()} == {
        "head": "1",
        "middle": "2",
        "z_first": "3",
    }


@pytest.mark.parametrize("of_aihwkit", [True, False])
def test_aihwkit_reads_it(make, out, of_aihwkit):
    torch = pytest.importorskip("torch")
    pytest.importorskip("aihwkit")
    from aihwkit.nn import AnalogLinear, AnalogSequential
    from aihwkit.simulator.configs import InferenceRPUConfig

    checkpoint = make("second", norm=False)
    to_fusion_csv(checkpoint, out)
    model = AnalogSequential() if of_aihwkit else torch.nn.Sequential()
    model.add_module("act", torch.nn.ReLU())
    model.add_module("second", AnalogLinear(6, 5, rpu_config=InferenceRPUConfig()))
    loaded = runpy.run_path(str(out / "load.py"))["load"](model, out)
    assert loaded is model and not model.training
    found = model.second.get_weights()[0].numpy().T
    kernel = np.asarray(checkpoint.params["second"]["kernel"])
    np.testing.assert_allclose(found, kernel, rtol=0, atol=1e-5 * abs(kernel).max())
