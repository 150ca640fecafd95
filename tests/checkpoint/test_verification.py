"""`verify` detects errors that hashes cannot: valid files with wrong physics."""

import json

import numpy as np
import pytest
import safetensors
from safetensors.numpy import save_file

from hwtrain.checkpoint import HardwareCheckpointError, export, verify
from hwtrain.checkpoint import _manifest as manifest


@pytest.fixture
def directory(tmp_path, variables, plan):
    return export(tmp_path / "model", variables, plan, chip_seeds=[7, 8])


def scale(directory, file, name, factor):
    """Multiplies a tensor as a foreign writer would, all hashes valid."""
    with safetensors.safe_open(directory / file, framework="np") as opened:
        content = {key: opened.get_tensor(key) for key in opened.keys()}
    content[name] = content[name] * np.float32(factor)
    save_file(content, directory / file)
    said = manifest.read(directory)
    said.files[file][name] = said.files[file][name].model_copy(
        update={"sha256": manifest.sha256(content[name].tobytes())}
    )
    manifest.write(directory, said.model_copy(update={"sha256": None}))


def test_certificate(directory, plan):
    certificate = verify(directory)
    assert json.loads(json.dumps(certificate)) == certificate
    assert list(certificate["weights"]) == list(plan)
    assert certificate["weights"]["cell/w_rec"]["conductances"] is None
    hidden = certificate["weights"]["hidden/kernel"]
    assert 0 < hidden["conductances"] < 1e-6
    assert hidden["chips"] == {"7": 0.0, "8": 0.0}


def test_a_tile_that_stands_for_other_weights(directory):
    scale(directory, "tensors/0000.safetensors", "tile/1/1/mapping_scale", 1.00001)
    with pytest.raises(
        HardwareCheckpointError, match=r"hidden/kernel, .* off by 9.[89]\de-06"
    ):
        verify(directory)


@pytest.mark.parametrize("name", ["kernel", "tile/0/1/g_neg"])
def test_a_chip_that_its_seed_does_not_give(directory, name):
    scale(directory, "chips/0008/0000.safetensors", name, 1.00001)
    with pytest.raises(HardwareCheckpointError, match="hidden/kernel, chip 8"):
        verify(directory)
