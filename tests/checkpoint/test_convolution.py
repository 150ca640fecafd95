"""A convolution computed again from the files of a checkpoint, with NumPy alone."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen as nn
from safetensors.numpy import load_file

from hwtrain._arrays.windows import Window, pack, transposed
from hwtrain._plan.hardware import Hardware
from hwtrain._plan.plan import Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.checkpoint import HardwareCheckpointError, export, load, verify
from hwtrain.checkpoint import _manifest as manifests
from hwtrain.devices import PCMLikeNoiseModel, SinglePairConductanceConverter
from hwtrain.weights import MappingParameter

CHIP = Hardware(
    mapping=MappingParameter(
        max_input_size=5,
        max_output_size=2,
        weight_scaling_omega=0.9,
        weight_scaling_columnwise=True,
    ),
    converter=SinglePairConductanceConverter(),
    noise_model=PCMLikeNoiseModel(),
)
MASK = np.arange(3 * 2 * 6).reshape(3, 2, 6) % 5 > 0
KINDS = {"grouped": "conv", "flipped": "conv_transpose", "local": "conv_local"}
LAYERS = {
    "grouped": (
        nn.Conv(
            6, (3,), strides=2, padding="CIRCULAR", feature_group_count=2, mask=MASK
        ),
        (2, 7, 4),
        dataclasses.replace(
            Window.of((3,), strides=(2,), groups=2),
            border=((1, 1),),
            border_mode="wrap",
            mask=pack(MASK),
        ),
        ((1, 0), (2,)),
    ),
    "flipped": (
        nn.ConvTranspose(3, (2, 3), (1, 2), "SAME", transpose_kernel=True),
        (1, 3, 4, 2),
        transposed(
            (2, 3), strides=(1, 2), padding="SAME", kernel_dilation=(1, 1), flipped=True
        ),
        ((3, 0, 1), (2,)),
    ),
    "local": (
        nn.ConvLocal(3, (2,), padding="VALID"),
        (2, 5, 3),
        dataclasses.replace(Window.of((2,)), local=True),
        ((1,), (2,)),
    ),
}


def convolution_of(directory, x):
    """Reads a checkpoint of one layer, and convolves as its manifest says."""
    manifest = json.loads((directory / "manifest.json").read_text())
    (layer,) = manifest["layers"]
    tensors = load_file(directory / layer["file"])
    window = layer["weight"]["window"]
    sums = {}
    for r, _ in enumerate(layer["row_sizes"]):
        sums[r] = []
        for c, _ in enumerate(layer["column_sizes"]):
            tile = {
                name.rpartition("/")[2]: tensor
                for name, tensor in tensors.items()
                if name.startswith(f"tile/{r}/{c}/")
            }
            w = (tile["g_pos"] - tile["g_neg"]) / tile["scale_ratio"]
            sums[r].append(w * tile["mapping_scale"])
    matrix = np.concatenate([np.concatenate(row, -1) for row in sums.values()], -2)

    ends = [(0, 0), *map(tuple, window["border"]), (0, 0)]
    if window["border"]:
        x = np.pad(x, ends, mode=window["border_mode"])
    sizes = [(n - 1) * d + 1 for n, d in zip(x.shape[1:-1], window["input_dilation"])]
    dilated = np.zeros((len(x), *sizes, x.shape[-1]))
    dilated[
        (slice(None), *(slice(None, None, d) for d in window["input_dilation"]))
    ] = x
    padding = window["padding"]
    if padding == "VALID":
        padding = [(0, 0)] * len(sizes)
    low = [max(a, 0) for a, _ in padding]
    high = [max(b, 0) for _, b in padding]
    x = np.pad(dilated, [(0, 0), *zip(low, high), (0, 0)])
    x = x[
        (
            slice(None),
            *(
                slice(max(-a, 0), n if b >= 0 else b)
                for (a, b), n in zip(padding, x.shape[1:-1])
            ),
        )
    ]
    steps = window["kernel_dilation"]
    spans = [(k - 1) * d + 1 for k, d in zip(window["sizes"], steps)]
    out = [(n - k) // s + 1 for n, k, s in zip(x.shape[1:-1], spans, window["strides"])]
    groups = window["groups"]
    columns = sum(layer["column_sizes"])
    y = np.zeros((len(x), *out, groups * columns))
    for n, *at in np.ndindex(len(x), *out):
        box = tuple(
            slice(i * s, i * s + k, d)
            for i, s, k, d in zip(at, window["strides"], spans, steps)
        )
        seen = np.moveaxis(x[(n, *box)], -1, 0)  # channels, then taps
        if window["flipped"]:
            seen = np.flip(seen, tuple(range(1, seen.ndim)))
        for g, vector in enumerate(seen.reshape(groups, -1)):
            here = matrix
            if window["local"]:
                here = matrix[tuple(at)]
            elif groups > 1:
                here = matrix[g]
            y[(n, *at, slice(g * columns, (g + 1) * columns))] = vector @ here
    bias = tensors[layer["beside"]["bias"]]
    return y + bias


@pytest.mark.parametrize("name", LAYERS)
def test_the_files_alone_give_what_the_layer_computes(name, tmp_path):
    layer, shape, window, (rows, columns) = LAYERS[name]
    x = jax.random.normal(jax.random.key(0), shape)
    params = jax.jit(layer.init)(jax.random.key(1), x)["params"]
    params["bias"] = jax.random.normal(jax.random.key(2), params["bias"].shape)
    weight = AnalogWeight(
        path="layer/kernel",
        kind=KINDS[name],
        layer=type(layer).__name__,
        shape=params["kernel"].shape,
        rows=rows,
        columns=columns,
        hardware=CHIP,
        rule="",
        ranged=False,
        window=window,
    )
    path = export(
        tmp_path / "model", {"params": {"layer": params}}, Plan((weight,)), chip_seed=3
    )
    found = load(path)
    assert found.plan["layer/kernel"] == weight
    y = convolution_of(path, np.asarray(x))
    np.testing.assert_allclose(y, layer.apply({"params": params}, x), atol=1e-5)

    kernel = np.asarray(params["kernel"])
    held = kernel * MASK if name == "grouped" else kernel
    top = np.abs(kernel).max()
    np.testing.assert_allclose(found.reconstruct("layer/kernel"), held, atol=2e-6 * top)
    documented = {}
    text = (Path(__file__).parents[2] / "docs/checkpoint.md").read_text()
    exec(re.search(r"```python\n(import json.*?)```", text, re.S)[1], documented)
    read = documented["read_weight"](path, "layer/kernel")
    np.testing.assert_allclose(read, held, atol=2e-6 * top)
    assert verify(path)["weights"].keys() == {"layer/kernel"}
    chip = np.asarray(found.chip(3)["layer"]["kernel"])
    assert 1e-3 * top < np.abs(chip - held)[held != 0].mean() < 0.2 * top
    if name == "grouped":
        assert (chip[~MASK] == 0).all()  # there is no device
    later = np.asarray(found.chip(3, t_s=1e6)["layer"]["kernel"])
    assert np.abs(later).sum() < np.abs(chip).sum()


def test_a_mask_is_small_in_the_manifest():
    mask = np.ones((3, 3, 64, 64), bool)
    assert len(pack(mask)) < mask.size / 3


ONES = {"mask": "f" * 10}  # 36 bits and padding, which is zero


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("grouped", {"mask": "zz"}, "mask should be the 36 bits"),
        ("grouped", {"mask": "ff"}, "as 10 hexadecimal digits, got 2 characters"),
        ("grouped", ONES, "mask should be the 36 bits"),
        ("grouped", {"mask": "\u0661" * 10}, "mask should be the 36 bits"),
        ("grouped", {"sizes": [2]}, r"needs rows of channels and then the axes"),
        ("grouped", {"sizes": [3, 1]}, "strides of a window of 2 axes"),
        ("grouped", {"groups": 0}, "at least 1 group"),
        ("grouped", {"groups": 4}, "6 outputs cannot be divided into 4 groups"),
        ("grouped", {"groups": 3}, "row_sizes and column_sizes are"),
        ("grouped", {"strides": [0]}, "strides of a window of 1 axes"),
        ("grouped", {"strides": [2**31]}, "exceeds 2147483647"),
        ("grouped", {"strides": ["2"]}, "strides.0: expected a whole number"),
        ("grouped", {"flipped": True}, "only a transposed convolution"),
        ("grouped", {"flipped": 1}, "flipped: expected true or false"),
        ("grouped", {"local": True}, "should not have a local window"),
        ("grouped", {"border_mode": "edge"}, "border_mode.* 'constant', 'wrap'"),
        ("grouped", {"surplus": 1}, "surplus"),
        ("flipped", {"strides": [3, 1]}, "convolution of stride 1 that it equals"),
        ("flipped", {"sizes": [3, 2]}, "needs rows of channels"),
        ("local", {"sizes": [5]}, "a multiple of 5"),
        ("local", {"local": False}, "should have a local window"),
    ],
)
def test_a_forged_window(name, change, match, tmp_path):
    layer, shape, window, (rows, columns) = LAYERS[name]
    x = jax.random.normal(jax.random.key(0), shape)
    params = jax.jit(layer.init)(jax.random.key(1), x)["params"]
    weight = AnalogWeight(
        path="layer/kernel",
        kind=KINDS[name],
        layer=type(layer).__name__,
        shape=params["kernel"].shape,
        rows=rows,
        columns=columns,
        hardware=dataclasses.replace(CHIP, noise_model=None),
        rule="",
        ranged=False,
        window=window,
    )
    path = export(tmp_path / "m", {"params": {"layer": params}}, Plan((weight,)))
    content = json.loads((path / "manifest.json").read_text())
    content["layers"][0]["weight"]["window"].update(change)
    content["sha256"] = manifests._digest(content)
    (path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(HardwareCheckpointError, match=match) as error:
        load(path)
    assert "manifest.json" in str(error.value) and "\n" not in str(error.value)
