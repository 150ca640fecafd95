"""The Fusion table, read with csv, json and NumPy alone, and by aihwkit."""

import csv
import json

import numpy as np
import pytest

from hwtrain.checkpoint import HardwareCheckpointError
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


def test_aihwkit_reads_it(make, out):
    torch = pytest.importorskip("torch")
    pytest.importorskip("aihwkit")
    from aihwkit.nn import AnalogLinear, AnalogSequential
    from aihwkit.simulator.configs import InferenceRPUConfig
    from aihwkit.utils.export import fusion_import

    checkpoint = make("second")
    to_fusion_csv(checkpoint, out)
    _, layers = read(out)
    model = AnalogSequential()
    model.add_module("second", AnalogLinear(6, 5, rpu_config=InferenceRPUConfig()))
    # aihwkit keeps signs and scales as the original weights.
    original = torch.tensor(layers["second"][0].T.copy())
    params = {"second": [{"original_weights": original}]}
    fusion_import(str(out / "conductances.csv"), model, params)
    found = model.second.get_weights()[0].numpy().T
    kernel = np.asarray(checkpoint.params["second"]["kernel"])
    np.testing.assert_allclose(found, kernel, rtol=0, atol=1e-5 * abs(kernel).max())
