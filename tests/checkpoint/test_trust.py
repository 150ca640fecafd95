"""Damaged, foreign and hostile checkpoints: each is an error that says what to do."""

import errno
import json
import os
import shutil

import numpy as np
import pytest
import safetensors
from safetensors.numpy import save_file

from hwtrain._plan.plan import Digital, Plan
from hwtrain.checkpoint import HardwareCheckpointError, export, load
from hwtrain.checkpoint import _manifest as manifests

KERNEL = "nominal/params/hidden/kernel"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return tmp_path_factory.mktemp("exported") / "model"


@pytest.fixture
def directory(tmp_path, variables, plan, exported):
    if not exported.exists():
        export(exported, variables, plan, chip_seed=7)
    return shutil.copytree(exported, tmp_path / "model")


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


@pytest.mark.parametrize("version", ["2.0", "0.9", "1.4"])
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
    match = r"should be float32\[10, 7\], but is float32\[7, 10\]"
    save_file(content | {KERNEL: content[KERNEL].reshape(7, 10)}, path)
    with pytest.raises(HardwareCheckpointError, match=match):
        load(directory)
    save_file(content | {KERNEL: content[KERNEL].view(np.int32)}, path)
    with pytest.raises(HardwareCheckpointError, match="but is int32"):
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
    with pytest.raises(HardwareCheckpointError, match="expected text that matches"):
        load(directory)


def test_link_out_of_the_checkpoint(directory, tmp_path):
    path = directory / "tensors/0000.safetensors"
    path.rename(tmp_path / "secret")
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(HardwareCheckpointError, match="leads out of the checkpoint"):
        load(directory)


def test_unknown_entry(directory):
    rewrite(directory, lambda m: m.update(surplus=1))
    with pytest.raises(
        HardwareCheckpointError, match="surplus: expected no such entry, got 1"
    ):
        load(directory)


def test_wrong_entries_are_told_in_words(directory):
    def change(manifest):
        manifest["layers"][0]["weight"]["hardware"]["converter"]["g_max"] = None
        manifest["chips"][0]["seed"] = "7"
        del manifest["prefix"]

    rewrite(directory, change)
    with pytest.raises(HardwareCheckpointError) as error:
        load(directory)
    for said in (
        "layers.0.weight.hardware.converter.g_max: expected a number, got null; ",
        'chips.0.seed: expected a whole number, got "7"; ',
        "prefix: expected a value, because it has no default; got none. Export",
    ):
        assert said in str(error.value)


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


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda text: text.encode("utf-16"), "not JSON .*utf-8"),
        (lambda text: text.encode("utf-32"), "not JSON"),
        (lambda text: text.encode("utf-8-sig"), "not JSON"),
        (lambda text: text.replace("µS", "\\ud800").encode(), "half of a surrogate"),
        (lambda text: text.replace("25.0", "NaN").encode(), "NaN is not a finite"),
        (lambda text: text.replace("25.0", "1e999").encode(), "1e999 is not a finite"),
        (lambda text: text.replace("25.0", "9" * 5000).encode(), "of 5000 digits"),
        (
            lambda text: text.replace(
                '"prefix"', '"version": "1.2", "prefix"'
            ).encode(),
            "key 'version' occurs twice",
        ),
        (lambda text: b"\xff" + text.encode(), "not JSON"),
        (lambda text: b"[" * 900 + b"]" * 900, "is not the manifest"),
        (lambda text: b'{"format": ' + b"[" * 980 + b"]" * 980 + b"}", "manifest|JSON"),
    ],
)
def test_json_that_readers_could_take_differently(directory, change, match):
    path = directory / "manifest.json"
    path.write_bytes(change(path.read_text("utf-8")))
    with pytest.raises(HardwareCheckpointError, match=match) as error:
        load(directory)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


FILES = ("manifest.json", "tensors/0000.safetensors", "chips/0007/0000.safetensors")


@pytest.mark.parametrize("name", FILES)
def test_only_regular_files_are_opened(directory, name):
    path = directory / name
    path.unlink()
    os.mkfifo(path)  # opened for reading, it waits for ever
    with pytest.raises(HardwareCheckpointError, match=f"{name} .*not a regular file"):
        load(directory)
    path.unlink()
    path.mkdir()
    with pytest.raises(HardwareCheckpointError, match=name):
        load(directory)


@pytest.mark.parametrize("name", FILES)
def test_links_that_lead_out_or_in_circles(directory, tmp_path, name):
    path = directory / name
    secret = tmp_path / "secret"
    path.rename(secret)
    path.symlink_to(secret)
    with pytest.raises(HardwareCheckpointError, match=f"{name} leads out of the"):
        load(directory)
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(HardwareCheckpointError, match=name):
        load(directory)


def test_a_folder_that_leads_out(directory, tmp_path):
    (directory / "tensors").rename(tmp_path / "elsewhere")
    (directory / "tensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HardwareCheckpointError, match="tensors"):
        load(directory)


def _file(path):
    path.write_bytes(b"")


def _link(path):
    path.symlink_to("/etc/hostname")


@pytest.mark.parametrize("make", [_file, _link, os.mkfifo])
@pytest.mark.parametrize(
    "name", ["notes.txt", "tensors/0099.safetensors", "chips/.hidden", "chips/x.pkl"]
)
def test_a_file_that_is_not_listed(directory, name, make):
    make(directory / name)
    with pytest.raises(HardwareCheckpointError, match=f"{name} is in the checkpoint"):
        load(directory)


def test_the_marks_of_orbax_are_no_part_of_it(directory):
    for name in ("_CHECKPOINT_METADATA", "commit_success.txt"):
        (directory / name).write_text("{}")
    load(directory)


def test_a_file_that_exceeds_the_memory(directory, monkeypatch):
    def exceeded(data):
        raise MemoryError

    monkeypatch.setattr(safetensors, "deserialize", exceeded)
    with pytest.raises(HardwareCheckpointError, match="bytes exceed the memory"):
        load(directory)


def test_a_file_of_another_size_is_refused_before_it_is_read(directory):
    path = directory / "tensors/0000.safetensors"
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.truncate(2**40)  # takes no disk, and would take a terabyte of memory
    with pytest.raises(HardwareCheckpointError, match=f"{size} bytes, but has {2**40}"):
        load(directory)


def _leaf(manifest, tail):
    keys = ["hidden", "norm"]
    return next(
        leaf
        for leaf in manifest["leaves"]
        if leaf["keys"][-1] == tail and leaf["keys"][-2] in keys
    )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda m: _leaf(m, "probe").update(shape=[2**31, 6]),
            r"leaves.\d+: shape of hidden/probe .* got \(2147483648, 6\)",
        ),
        (
            lambda m: m["leaves"].append(
                {
                    "keys": ["params", "x"],
                    "kind": "zeros",
                    "dtype": "float32",
                    "shape": [2**31],
                }
            ),
            "leaves.* zeros are for the probe of an analog weight",
        ),
        (
            lambda m: m["layers"][4]["weight"].update(shape=[10**15, 4]),
            "layers.4.*cell/w_rec",
        ),
        (
            lambda m: m["layers"][0]["weight"].update(shape=[10**15, 7]),
            "layers.0.* tiles",
        ),
        (
            lambda m: m["layers"][0].update(row_sizes=[1] * 10**5),
            "layers.0.* 100000 x 3",
        ),
        (lambda m: _leaf(m, "bias").update(shape=[2**63]), "leaves.*less than"),
        (lambda m: _leaf(m, "bias").update(shape=[1] * 65), "leaves.*at most 64"),
        (lambda m: _leaf(m, "bias").update(dtype="object"), "leaves.*dtype.*'object'"),
        (lambda m: _leaf(m, "bias").update(key_impl="bogus"), "leaves.*key_impl"),
        (
            lambda m: _leaf(m, "bias").update(key_impl="rbg"),
            "leaves.*a key of rbg must be uint32",
        ),
        (
            lambda m: m["leaves"].append({"keys": ["params", "norm"], "kind": "empty"}),
            "leaves.*inside of another leaf, nominal/params/norm",
        ),
        (
            lambda m: m["layers"].append(m["layers"][0]),
            "layers: hidden/kernel .* twice",
        ),
        (lambda m: m["chips"].append(m["chips"][0]), "chips: 7 occurs twice"),
        (lambda m: m["leaves"].append(m["leaves"][0]), "leaves: nominal.* twice"),
        (lambda m: m["layers"][0]["weight"].update(kind="conv"), "have a window"),
        (lambda m: m["layers"][0]["weight"].update(ranged=False), "input range"),
        (lambda m: m["layers"][0]["weight"].update(ranged="true"), "layers.0.*ranged"),
        (lambda m: m["layers"][3]["weight"].update(kind="dense"), "name embedding"),
        (lambda m: m["chips"][0].update(measured=0), "chips.0.measured"),
    ],
)
def test_entries_that_cannot_be(directory, change, match):
    rewrite(directory, change)
    with pytest.raises(HardwareCheckpointError, match=match) as error:
        load(directory)
    assert str(directory / "manifest.json") in str(error.value)
    assert "\n" not in str(error.value)


def _of_version(manifest, version, **entries):
    for entry in ("state", "others", "outputs"):
        manifest.pop(entry, None)
    manifest.update(version=version, **entries)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: _of_version(m, "1.0", state=["x"]), "state: .* 1.0 has none"),
        (lambda m: _of_version(m, "1.0", others=["x"]), "others: .* 1.0 has none"),
        (lambda m: _of_version(m, "1.2", outputs=[]), "outputs: .* 1.2 has none"),
        (lambda m: m.update(version="١.٠"), "its version is '١.٠', not one such as"),
    ],
)
def test_entries_of_no_export(directory, change, match):
    rewrite(directory, change)
    with pytest.raises(HardwareCheckpointError, match=match):
        load(directory)


def _leaf_of(directory, *keys):
    content = json.loads((directory / "manifest.json").read_text("utf-8"))
    return next(leaf for leaf in content["leaves"] if (*leaf["keys"],) == keys)


def _of_dtype(directory, leaf, dtype):
    def change(manifest):
        manifest["files"][leaf["file"]][leaf["tensor"]].update(dtype=dtype)
        for entry in manifest["leaves"]:
            if entry["keys"] == leaf["keys"]:
                entry.update(dtype=dtype)

    rewrite(directory, change)


def test_a_range_of_whole_numbers(directory):
    leaf = _leaf_of(directory, "params", "hidden", "input_range")
    array = np.ones(leaf["shape"], np.int32)
    replace_tensor(directory, leaf["file"], leaf["tensor"], array)
    _of_dtype(directory, leaf, "int32")
    match = "hidden/input_range should hold floating-point numbers, not int32"
    with pytest.raises(HardwareCheckpointError, match=match):
        load(directory)


def test_a_list_of_no_others(plan, tmp_path):
    dense = plan["heads/kernel"]
    params = {"heads": {"kernel": np.ones(dense.shape, np.float32)}}
    directory = export(tmp_path / "model", params, Plan((dense,)))
    rewrite(directory, lambda m: m.update(others=[]))
    match = "others: is empty; leave the entry out"
    with pytest.raises(HardwareCheckpointError, match=match):
        load(directory)


def test_bits_that_are_none(tmp_path):
    params = {"dense": {"mask": np.array([True, False, True])}}
    directory = export(
        tmp_path / "model",
        params,
        Plan((), (Digital(path="dense/mask", reason="a mask"),)),
    )
    (file,) = directory.glob("**/*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] = 2
    file.write_bytes(data)
    digest = manifests.sha256(bytes(data[-3:]))
    rewrite(
        directory,
        lambda m: [
            e.update(sha256=digest) for f in m["files"].values() for e in f.values()
        ],
    )
    with pytest.raises(HardwareCheckpointError, match="other bits than 0 and 1"):
        load(directory)


def test_a_manifest_that_no_reader_would_open(variables, plan, tmp_path, monkeypatch):
    monkeypatch.setattr(manifests, "LARGEST", 1000)
    with pytest.raises(HardwareCheckpointError, match="more than 1000; use larger"):
        export(tmp_path / "model", variables, plan)
    assert not [*tmp_path.iterdir()]


def test_a_folder_that_cannot_be_listed(directory, monkeypatch):
    walk = os.walk

    def refused(folder, onerror):
        onerror(PermissionError(errno.EACCES, "Permission denied", str(folder)))
        return walk(folder)

    monkeypatch.setattr(os, "walk", refused)
    match = "model cannot be read: Permission denied. Check its permissions"
    with pytest.raises(HardwareCheckpointError, match=match):
        load(directory)


def test_swapped_tensors_of_equal_shape(directory):
    """A batch-norm mean that becomes its variance has valid hashes."""

    def swap(manifest):
        scale, mean = _leaf(manifest, "scale"), _leaf(manifest, "mean")
        for field in ("file", "tensor"):
            scale[field], mean[field] = mean[field], scale[field]

    rewrite(directory, swap)
    with pytest.raises(HardwareCheckpointError, match=r"leaves.\d.file should be"):
        load(directory)


@pytest.mark.parametrize(
    ("dtype", "match"),
    [(np.float32, "70 of 70 weights are NaN or inf"), (np.int32, "floating-point")],
)
def test_weights_that_are_no_finite_numbers(directory, dtype, match):
    file = "tensors/0000.safetensors"
    array = np.full((10, 7), np.inf if dtype == np.float32 else 1, dtype)
    replace_tensor(directory, file, KERNEL, array)

    def say(manifest):
        name = array.dtype.name
        manifest["files"][file][KERNEL]["dtype"] = name
        manifest["layers"][0]["dtype"] = _leaf(manifest, "kernel")["dtype"] = name

    rewrite(directory, say)
    with pytest.raises(
        HardwareCheckpointError, match=f"{file}, hidden/kernel: .*{match}"
    ):
        load(directory)


@pytest.mark.parametrize("value", [0.0, -1.0, np.inf])
@pytest.mark.parametrize(
    ("file", "leaf", "shape"),
    [
        ("tensors/0000.safetensors", "hidden/input_range", (3, 3)),
        ("tensors/0003.safetensors", "tied/mapping_scale", (1, 1)),
    ],
)
def test_leaves_that_no_hardware_has(directory, file, leaf, shape, value):
    array = np.full(shape, value, np.float32)
    replace_tensor(directory, file, f"nominal/params/{leaf}", array)
    match = f"{file}, {leaf}: every number must be positive and finite, .* {value:g}"
    with pytest.raises(HardwareCheckpointError, match=match):
        load(directory)
