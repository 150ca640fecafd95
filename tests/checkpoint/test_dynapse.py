"""A deployed network, written to and read from a directory."""

import copy
import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from hwtrain._plan.plan import Plan
from hwtrain.checkpoint import HardwareCheckpointError, export, load
from hwtrain.checkpoint import _manifest as manifests
from hwtrain.checkpoint._dynapse import export_dynapse, load_dynapse
from hwtrain.dynapse._biases import computed_table
from hwtrain.dynapse._connectivity import Limits
from hwtrain.dynapse._deployment import deploy


@pytest.fixture(scope="module")
def deployed():
    rng = np.random.default_rng(0)
    return deploy(
        rng.normal(0, 1, (5, 6)),
        rng.normal(0, 1, (6, 6)),
        {"Itau_mem": 5.3e-12, "Ispkthr": 1e-7},
        table=computed_table(),
        chips={7: {"Itau_mem": rng.normal(5.3e-12, 5e-13, 6)}},
        limits=Limits(neurons_per_core=3),
    )


@pytest.fixture
def deployment(deployed):
    return copy.deepcopy(deployed)


def test_everything_comes_back(tmp_path, deployment):
    found = load_dynapse(export_dynapse(tmp_path / "net", deployment))
    for part in ("weights_in", "weights_rec"):
        for name, array in vars(getattr(deployment, part)).items():
            np.testing.assert_array_equal(vars(getattr(found, part))[name], array)
    assert found.biases == deployment.biases
    assert found.limits == deployment.limits and found.iscale == deployment.iscale
    np.testing.assert_array_equal(found.cores, deployment.cores)
    for name, current in deployment.currents.items():
        np.testing.assert_array_equal(found.currents[name], current)
    chip = deployment.chips[7]["Itau_mem"]
    np.testing.assert_array_equal(found.chips[7]["Itau_mem"], chip)


def test_a_reader_without_hwtrain(tmp_path, deployment):
    path = export_dynapse(tmp_path / "net", deployment)
    manifest = json.loads((path / "manifest.json").read_text())
    arrays = load_file(path / "tensors.safetensors")
    bases = [
        [manifest["biases"][str(core)][f"Iw_{bit}"]["achieved"] for bit in range(4)]
        for core in arrays["cores"]
    ]
    for part in ("weights_in", "weights_rec"):
        bits = arrays[f"{part}/mask"][..., None] >> np.arange(4) & 1
        total = arrays[f"{part}/sign"] * np.einsum("snb,nb->sn", bits, bases)
        achieved = arrays[f"{part}/achieved"]
        np.testing.assert_allclose(total / manifest["iscale"], achieved, rtol=1e-9)
        largest = abs(achieved - arrays[f"{part}/wanted"]).max()
        assert manifest["largest_error"][part] == pytest.approx(largest)


def test_equal_input_gives_equal_bytes_and_nothing_is_overwritten(tmp_path, deployment):
    first = export_dynapse(tmp_path / "a", deployment)
    again = export_dynapse(tmp_path / "b", load_dynapse(first))
    for name in ("manifest.json", "tensors.safetensors"):
        assert (first / name).read_bytes() == (again / name).read_bytes()
    with pytest.raises(HardwareCheckpointError, match="never overwritten"):
        export_dynapse(first, deployment)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "b"]


def test_a_flipped_bit(tmp_path, deployment):
    path = export_dynapse(tmp_path / "net", deployment)
    file = path / "tensors.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(HardwareCheckpointError, match="should have SHA-256"):
        load_dynapse(path)


def test_codes_that_do_not_amount_to_the_weights(tmp_path, deployment):
    part = deployment.weights_in
    part.achieved[0, 0] += 0.1
    path = export_dynapse(tmp_path / "net", deployment)
    with pytest.raises(HardwareCheckpointError, match="core 0 are not those of its"):
        load_dynapse(path)


def test_another_checkpoint(tmp_path, deployment):
    path = export_dynapse(tmp_path / "net", deployment)
    with pytest.raises(HardwareCheckpointError, match='not "hwtrain-checkpoint"'):
        load(path)
    with pytest.raises(HardwareCheckpointError, match='not "hwtrain-dynapse"'):
        load_dynapse(export(tmp_path / "model", {"scale": np.ones(2)}, Plan(())))


def test_a_file_that_is_not_listed(tmp_path, deployment):
    path = export_dynapse(tmp_path / "net", deployment)
    (path / "surplus.bin").write_bytes(b"")
    with pytest.raises(HardwareCheckpointError, match="surplus.bin is in the check"):
        load_dynapse(path)


def forge(path, change):
    """Changes the manifest as a foreign writer would, with a valid hash."""
    content = json.loads((path / "manifest.json").read_text())
    change(content)
    content["sha256"] = manifests._digest(content)
    (path / "manifest.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda m: m["biases"]["1"]["Ispkthr"].update(achieved=2e-7),
            r"biases.1.Ispkthr: the code \(4, 89\) has .* elsewhere",
        ),
        (
            lambda m: m["biases"]["1"].pop("Ispkthr"),
            "biases.1: every core must have the sam",
        ),
        (lambda m: m["biases"]["1"]["Ispkthr"].update(fine="89"), "biases.*fine"),
        (lambda m: m["biases"]["1"]["Ispkthr"].update(fine=-1), "biases.*codes"),
        (lambda m: m["biases"]["1"]["Ispkthr"].update(wanted=3.0), "biases.*current"),
        (lambda m: m["limits"].update(tags=True), "limits.tags"),
        (lambda m: m["limits"].update(tags=10**30), "limits.* tags is a number from 1"),
        (lambda m: m["limits"].update(surplus=1), "limits.surplus"),
        (lambda m: m["limits"].pop("tags"), "limits.tags: is missing"),
        (lambda m: m["limits"].update(neurons_per_core=2), "limits: the network does"),
        (
            lambda m: m["lost"].update(weights_in=60),
            "lost.weights_in: says 60, but it is",
        ),
        (lambda m: m["units"].update(biases="nA"), "units.biases: should be 'A'"),
        (lambda m: m["rules"].pop("weights"), "rules.weights: is missing"),
        (lambda m: m["chips"].append(7), "chips: one occurs twice"),
        (lambda m: m["chips"].insert(0, 9), "chips: should be sorted"),
        (lambda m: m["layers"].append(["more", 1]), "tensors.cores: dtype, shape"),
        (lambda m: m["tensors"].pop("cores"), "tensors.cores: is missing"),
        (
            lambda m: m["tensors"]["cores"].update(unit="A"),
            "tensors.cores: dtype, shape and unit",
        ),
    ],
)
def test_a_forged_manifest(tmp_path, deployment, change, match):
    path = export_dynapse(tmp_path / "net", deployment)
    forge(path, change)
    with pytest.raises(HardwareCheckpointError, match=match) as error:
        load_dynapse(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_currents_of_another_unit_are_not_written(tmp_path, deployment):
    codes = {
        core: {
            name: dataclasses.replace(code, achieved=code.achieved * 1e9)
            for name, code in found.items()
        }
        for core, found in deployment.biases.items()
    }
    other = dataclasses.replace(deployment, biases=codes)
    with pytest.raises(
        HardwareCheckpointError, match="biases.0.*: .* must be below 1.0 A"
    ):
        export_dynapse(tmp_path / "net", other)
    assert not list(tmp_path.iterdir())
