"""The NumPy file, read with NumPy alone."""

import json

import numpy as np
import pytest

from hwtrain.checkpoint.adapters import to_npz


def weights(file, path, shape):
    """Reconstructs a weight from conductances, after the formulas of the docs."""
    manifest = json.loads(str(file["manifest"]))
    (layer,) = [x for x in manifest["layers"] if x["weight"]["path"] == path]
    converter = layer["weight"]["hardware"]["converter"]
    rows = []
    for i in range(len(layer["row_sizes"])):
        row = []
        for j in range(len(layer["column_sizes"])):
            name = f"conductances/{path}/tile/{i}/{j}/"
            if converter["type"] == "single_device":
                w = (
                    file[name + "min"]
                    + (file[name + "g"] - converter["g_min"])
                    / file[name + "scale_ratio"]
                )
            elif converter["type"] == "single_pair":
                w = file[name + "g_pos"] - file[name + "g_neg"]
                w = w / file[name + "scale_ratio"]
            else:
                w = sum(
                    f * (file[f"{name}g_pos_{n}"] - file[f"{name}g_neg_{n}"])
                    for n, f in enumerate(converter["f_lst"])
                )
                w = w / file[name + "scale_ratio"]
            row.append(w * file[name + "mapping_scale"])
        rows.append(np.concatenate(row, -1))
    return np.concatenate(rows, -2).reshape(shape)


@pytest.mark.parametrize(
    "names, stack", [(("first", "second", "pairs"), (2,)), (("device",), ())]
)
def test_weights_come_back(make, out, names, stack):
    checkpoint = make(*names, stack=stack, seed=None)
    to_npz(checkpoint, out)
    with np.load(out) as file:
        for name in names:
            expected = np.asarray(checkpoint.params[name]["kernel"])
            stored = file[f"variables/params/{name}/kernel"]
            np.testing.assert_array_equal(stored, expected)
            assert np.signbit(stored[..., 0, 1]).all()
            found = weights(file, f"{name}/kernel", expected.shape)
            # A single device spans twice the largest weight.
            tolerance = (2e-6 if name == "device" else 1e-6) * abs(expected).max()
            np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
        if "first" in names:
            np.testing.assert_array_equal(
                file["variables/params/first/input_range"],
                np.asarray(checkpoint.params["first"]["input_range"]),
            )
        scale = file["variables/params/norm/scale"]
        assert scale.dtype == np.float32 and scale.tolist() == [0, 1, 2, 3, 4]
        assert str(file["chip"]) == "nominal"
        assert "variables/params/first/probe" not in file


def test_a_chip_is_written_as_it_was_programmed(make, out):
    checkpoint = make("first", "second", "pairs", stack=(), seed=8)
    to_npz(checkpoint, out, chip=8)
    with np.load(out) as file:
        assert str(file["chip"]) == "8"
        for name in ("first", "second"):
            chip = np.asarray(checkpoint.chip(8)[name]["kernel"])
            np.testing.assert_array_equal(file[f"variables/params/{name}/kernel"], chip)
            found = weights(file, f"{name}/kernel", chip.shape)
            np.testing.assert_allclose(found, chip, rtol=0, atol=1e-6 * chip.max())
            assert (
                abs(chip - np.asarray(checkpoint.params[name]["kernel"])).max() > 0.01
            )


def test_scales_of_a_chip_include_its_drift_compensation(compensated, out):
    checkpoint, name, _ = compensated
    to_npz(checkpoint, out, chip=8)
    chip = np.asarray(checkpoint.chip(8)[name]["kernel"])
    with np.load(out) as file:
        np.testing.assert_array_equal(file[f"variables/params/{name}/kernel"], chip)
        found = weights(file, f"{name}/kernel", chip.shape)
    np.testing.assert_allclose(found, chip, rtol=0, atol=1e-6 * abs(chip).max())
