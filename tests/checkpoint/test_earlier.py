"""Checkpoints of earlier versions of the format keep their meaning."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen as nn
from safetensors.numpy import load_file

import hwtrain as hw
from hwtrain.checkpoint import HardwareCheckpointError, export, load, verify
from hwtrain.checkpoint import _manifest as manifests

EARLIER = Path(__file__).parents[1] / "golden/checkpoints"
VERSIONS = ("1.0", "1.1")


@pytest.fixture(params=VERSIONS)
def directory(request):
    return EARLIER / request.param


def test_it_is_read_and_verified(directory):
    assert verify(directory)["version"] == directory.name
    found = load(directory)
    assert found.plan.state == ()
    statistics = found.variables["batch_stats"]["norm"]
    np.testing.assert_array_equal(statistics["mean"], [0, 1, 2])
    np.testing.assert_array_equal(statistics["var"], [1, 2, 3])
    dense = found.params["dense"]
    np.testing.assert_array_equal(dense["bias"], [0.5, -0.25, 0])
    np.testing.assert_array_equal(dense["input_range"], np.full((2, 2), 3.0))
    stored = load_file(directory / "tensors/0000.safetensors")
    kernel = stored["nominal/params/dense/kernel"]
    np.testing.assert_array_equal(dense["kernel"], kernel)
    np.testing.assert_allclose(found.reconstruct("dense/kernel"), kernel, atol=2e-6)
    chip = load_file(directory / "chips/0007/0000.safetensors")["kernel"]
    np.testing.assert_array_equal(found.chip(7)["dense"]["kernel"], chip)


def test_it_is_exported_again_in_the_new_format(directory, tmp_path):
    found = load(directory)
    path = export(tmp_path / "new", found.variables, found.plan, chip_seed=7)
    assert verify(path)["version"] == manifests.Manifest.model_fields["version"].default
    for file in directory.rglob("*.safetensors"):
        new, old = load_file(path / file.relative_to(directory)), load_file(file)
        for name, array in old.items():
            if name.endswith("/scale_ratio"):
                # In other units of the crossbar: each tile has a scale of its own.
                scale = name.replace("scale_ratio", "mapping_scale")
                array, new[name] = array / old[scale], new[name] / new[scale]
            if not name.endswith("/mapping_scale"):
                np.testing.assert_allclose(new[name], array, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("change", "entry"),
    [
        (lambda m: m["rules"].update(chip="as you like"), "rules"),
        (lambda m: m["rules"].pop("chip"), "rules"),
        (lambda m: m["units"].update(conductance="S"), "rules and units"),
        (lambda m: m.update(state=["batch_stats/norm/mean"]), "state"),
        (lambda m: m["leaves"].append(m["leaves"][0]), "leaves"),
        (lambda m: m.update(version="1.2"), "accuracy|rules|state|units"),
    ],
)
def test_it_is_no_less_strict(directory, tmp_path, change, entry):
    path = shutil.copytree(directory, tmp_path / "forged")
    content = json.loads((path / "manifest.json").read_text("utf-8"))
    change(content)
    content["sha256"] = manifests._digest(content)
    (path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(HardwareCheckpointError, match=f"valid manifest: ({entry})"):
        load(path)


def test_the_same_format_in_fewer_words_is_read(tmp_path):
    directory = EARLIER / "1.2_words"
    assert verify(directory)["version"] == "1.2"
    kernel = [[0.5, -1], [0.25, 0], [-0.75, 0.125]]
    np.testing.assert_array_equal(load(directory).params["dense"]["kernel"], kernel)
    path = shutil.copytree(directory, tmp_path / "forged")
    content = json.loads((path / "manifest.json").read_text("utf-8"))
    assert "signal_path" not in content["rules"]
    content["rules"]["chip"] = "as you like"
    content["sha256"] = manifests._digest(content)
    (path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(HardwareCheckpointError, match="rules.chip: should be"):
        load(path)


def test_a_compensation_in_former_words_is_read(tmp_path):
    analog = hw.analogize(nn.Dense(3), hw.presets.pcm())
    variables = analog.init(jax.random.key(0), np.ones((1, 2), np.float32))
    plan = hw.plan(analog, variables, np.ones((1, 2), np.float32))
    path = export(tmp_path / "chip", variables, plan)
    content = json.loads((path / "manifest.json").read_text("utf-8"))
    content["rules"]["drift_compensation"] = (
        "factor on the weights of a tile: mean|w| of g_prog (global, per_column: of "
        "each column) or of the nominal weights (global_exact_reference), divided by "
        "that of g(t), both at least 1e-4; |w| as the tile's own DAC and ADC read it "
        "(hardware.forward), one row driven by 1 after the other, with their noise "
        "drawn anew; with readout 'exact', the weights themselves"
    )
    content["version"] = "1.2"
    for name in ("life", "flicker", "pulses"):
        del content["units"][name]
    content["sha256"] = manifests._digest(content)
    (path / "manifest.json").write_text(json.dumps(content))
    assert verify(path)["version"] == "1.2"


def test_column_tiles_share_a_scale_until_format_1_1():
    directory = EARLIER / "1.1_column_tiles"
    assert verify(directory)["version"] == "1.1"
    found = load(directory)
    chip = found.chip(7, t_s=86_400.0)
    # As the version that wrote it reads it: without noise of the read.
    expected = [
        [0.10209004580974579, -0.11396032571792603, -0.04933861270546913],
        [0.01715555600821972, -0.4276677668094635, 0.04672946408390999],
        [1.2909473180770874, 0.959850013256073, -0.17278799414634705],
        [-1.1443198919296265, -0.5841515064239502, -0.09551052749156952],
    ]
    np.testing.assert_allclose(chip["kernel"], expected, atol=2e-6)
    # Its ADCs have the full scale of the largest weight of a row of tiles.
    kernel = np.abs(found.params["kernel"])
    rows = np.split(kernel, [2])
    scale = [[row.max() / 0.5] for row in rows]
    shared = np.broadcast_to(scale, (2, 2))
    np.testing.assert_allclose(found.chip(7)["mapping_scale"], shared, rtol=1e-6)
