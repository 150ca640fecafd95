"""A deployed network as a directory."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from hwtrain.checkpoint import HardwareCheckpointError, export, load
from hwtrain.checkpoint.dynapse import export_dynapse, load_dynapse
from hwtrain.dynapse.biases import computed_table
from hwtrain.dynapse.connectivity import Limits
from hwtrain.dynapse.deployment import deploy
from hwtrain.plan import Plan


@pytest.fixture
def deployment():
    rng = np.random.default_rng(0)
    return deploy(
        rng.normal(0, 1, (5, 6)),
        rng.normal(0, 1, (6, 6)),
        {"Itau_mem": 5.3e-12, "Ispkthr": 1e-7},
        table=computed_table(),
        chips={7: {"Itau_mem": rng.normal(5.3e-12, 5e-13, 6)}},
        limits=Limits(neurons_per_core=3),
    )


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
