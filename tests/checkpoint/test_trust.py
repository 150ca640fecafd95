"""Damaged, foreign and hostile checkpoints: each an error that says what to do."""

import json
import shutil

import numpy as np
import pytest
import safetensors
from safetensors.numpy import save_file

from hwtrain.checkpoint import HardwareCheckpointError, export, load
from hwtrain.checkpoint import manifest as manifests

KERNEL = "nominal/params/hidden/kernel"


@pytest.fixture
def directory(tmp_path, variables, plan):
    return export(tmp_path / "model", variables, plan, chip_seed=7)


def rewrite(directory, change, *, digest=True):
    """Changes the manifest as a foreign writer would, with a valid hash."""
    path = directory / "manifest.json"
    content = json.loads(path.read_text("utf-8"))
    change(content)
    if digest:
        content["sha256"] = manifests._digest(content)
    path.write_text(json.dumps(content), "utf-8")


def replace_tensor(directory, file, name, array):
    """Puts another tensor into a file, and its shape and hash into the manifest."""
    with safetensors.safe_open(directory / file, framework="np") as opened:
        content = {key: opened.get_tensor(key) for key in opened.keys()}
    content[name] = array
    save_file(content, directory / file)
    entry = {"shape": list(array.shape), "sha256": manifests.sha256(array.tobytes())}
    rewrite(directory, lambda m: m["files"][file][name].update(entry))


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("content", [None, "[]", '{"format": "other"}', "\x00"])
def test_not_a_checkpoint(tmp_path, content):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(HardwareCheckpointError, match=r"not (a hwtrain|the man|JSON)"):
        load(tmp_path)


@pytest.mark.parametrize("version", ["2.0", "0.9", "1.3"])
def test_another_version(directory, version):
    rewrite(directory, lambda m: m.update(version=version))
    with pytest.raises(ValueError, match=rf"version {version}; this hwtrain reads 1.0"):
        load(directory)


@pytest.mark.parametrize(
    "version",
    [None, "one", "1", 1.0, "1.0.0", ["1", "0"], "1." + "0" * 5000, "١.٠", "1.-1"],
)
def test_no_version(directory, version):
    rewrite(directory, lambda m: m.update(version=version))
    with pytest.raises(HardwareCheckpointError, match="version|1.0"):
        load(directory)


def test_oversized_manifest_is_refused_before_it_is_read(directory):
    with open(directory / "manifest.json", "r+b") as file:
        file.truncate(10 * 2**30)
    with pytest.raises(HardwareCheckpointError, match="10737418240 bytes.*not read"):
        load(directory)


def test_deeply_nested_manifest(directory):
    (directory / "manifest.json").write_text("[" * 10**6)
    with pytest.raises(HardwareCheckpointError, match="not JSON"):
        load(directory)


def test_edited_manifest(directory):
    def raise_g_max(manifest):
        hardware = manifest["layers"][0]["weight"]["hardware"]
        hardware["converter"]["g_max"] = 26.0

    rewrite(directory, raise_g_max, digest=False)
    with pytest.raises(HardwareCheckpointError, match="edited: its SHA-256 is"):
        load(directory)


def test_every_flipped_bit_of_a_file_is_found(directory):
    files = ["tensors/0000.safetensors", "chips/0007/0001.safetensors"]
    for name in [*files, "manifest.json"]:
        path = directory / name
        original = path.read_bytes()
        rng = np.random.default_rng(0)
        for position in rng.integers(8, len(original), 40):
            # Spaces pad a safetensors header and indent the manifest.
            if original[position] in b" \n":
                continue
            flip(path, position)
            with pytest.raises(HardwareCheckpointError, match=path.name):
                load(directory)
            path.write_bytes(original)
    load(directory)


@pytest.mark.parametrize("size", [0, 4, 100, -1])
@pytest.mark.parametrize("name", ["tensors/0003.safetensors", "manifest.json"])
def test_truncated_file(directory, name, size):
    data = (directory / name).read_bytes()
    (directory / name).write_bytes(data[:size] if size >= 0 else data[:-2])
    with pytest.raises(HardwareCheckpointError, match=f"{name} is damaged"):
        load(directory)


@pytest.mark.parametrize("name", ["tensors/0003.safetensors", "manifest.json"])
def test_missing_file(directory, name):
    (directory / name).unlink()
    with pytest.raises(HardwareCheckpointError, match=name):
        load(directory)


def test_chip_that_vanished_after_loading(directory):
    checkpoint = load(directory)
    shutil.rmtree(directory / "chips")
    with pytest.raises(HardwareCheckpointError, match="chips.*No such file"):
        checkpoint.chip(7)


def test_missing_and_extra_tensors(directory):
    path = directory / "tensors/0000.safetensors"
    with safetensors.safe_open(path, framework="np") as file:
        content = {key: file.get_tensor(key) for key in file.keys()}
    save_file({k: v for k, v in content.items() if k != KERNEL}, path)
    with pytest.raises(HardwareCheckpointError, match=f"'{KERNEL}' is missing"):
        load(directory)
    save_file(content | {"surplus": np.zeros(3)}, path)
    with pytest.raises(HardwareCheckpointError, match="'surplus' is not in the man"):
        load(directory)


def test_wrong_shape_and_dtype(directory):
    path = directory / "tensors/0000.safetensors"
    with safetensors.safe_open(path, framework="np") as file:
        content = {key: file.get_tensor(key) for key in file.keys()}
    match = r"should be float32\[10, 7\], it is float32\[7, 10\]"
    save_file(content | {KERNEL: content[KERNEL].reshape(7, 10)}, path)
    with pytest.raises(HardwareCheckpointError, match=match):
        load(directory)
    save_file(content | {KERNEL: content[KERNEL].view(np.int32)}, path)
    with pytest.raises(HardwareCheckpointError, match="it is int32"):
        load(directory)


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "tensors/../../secret.safetensors",
        "/etc/passwd",
        "tensors/0000.safetensors\n",
        "C:\\0000.safetensors",
    ],
)
def test_path_traversal(directory, name):
    def point_elsewhere(manifest):
        manifest["files"][name] = manifest["files"].pop("tensors/0000.safetensors")

    rewrite(directory, point_elsewhere)
    with pytest.raises(HardwareCheckpointError, match="should match pattern"):
        load(directory)


def test_link_out_of_the_checkpoint(directory, tmp_path):
    path = directory / "tensors/0000.safetensors"
    path.rename(tmp_path / "secret")
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(HardwareCheckpointError, match="leads out of the checkpoint"):
        load(directory)


def test_unknown_entry(directory):
    rewrite(directory, lambda m: m.update(surplus=1))
    with pytest.raises(HardwareCheckpointError, match="surplus: Extra inputs"):
        load(directory)


def test_tile_grid_that_the_hardware_does_not_give(directory):
    rewrite(directory, lambda m: m["layers"][0].update(row_sizes=[5, 5]))
    with pytest.raises(HardwareCheckpointError, match="shape and mapping give"):
        load(directory)


def test_entry_without_its_tensor(directory):
    def forget(manifest):
        del manifest["files"]["chips/0007/0000.safetensors"]["tile/0/1/g_pos"]

    rewrite(directory, forget)
    with pytest.raises(HardwareCheckpointError, match="'tile/0/1/g_pos' is not listed"):
        load(directory)


@pytest.mark.parametrize("value", [np.nan, 25.1, 0.0, np.inf])
def test_impossible_target(directory, value):
    array = np.full((4, 3), 1.0, np.float32)
    array[2, 1] = value
    replace_tensor(directory, "tensors/0000.safetensors", "tile/0/0/g_pos", array)
    match = r"tile/0/0/g_pos: conductances must lie in \[0.1, 25.0\] µS"
    with pytest.raises(HardwareCheckpointError, match=match):
        load(directory)


def test_nan_in_a_chip(directory):
    array = np.full((4, 3), np.nan, np.float32)
    replace_tensor(directory, "chips/0007/0000.safetensors", "tile/0/0/g_pos", array)
    with pytest.raises(HardwareCheckpointError, match="tile/0/0/g_pos: holds NaN"):
        load(directory)


def test_tile_of_another_shape(directory):
    array = np.full((3, 4), 1.0, np.float32)
    replace_tensor(directory, "tensors/0000.safetensors", "tile/0/0/g_pos", array)
    with pytest.raises(HardwareCheckpointError, match=r"should have shape \(4, 3\)"):
        load(directory)
