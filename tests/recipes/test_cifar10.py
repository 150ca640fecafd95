"""Tests of the CIFAR-10 recipe: its reader, its batches and its network."""

import itertools
from pathlib import Path

import jax
import numpy as np
import pytest

from hwtrain import cli
from hwtrain._parts.source import resolve

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs/cifar10.toml"
RECIPE = ROOT / "recipes/cifar10.py"


def test_a_record_is_a_label_and_then_red_green_and_blue_by_rows(tiny_cifar):
    record = np.zeros(3073, np.uint8)
    record[0] = 7
    record[1 + 2] = 11  # red, first row, third column
    record[1 + 1024 + 32] = 22  # green, second row, first column
    record[1 + 2048 + 1023] = 33  # blue, the last pixel
    record.tofile(tiny_cifar / "test_batch.bin")
    images, labels = resolve(f"{RECIPE}:load")(["test_batch.bin"])
    assert images.shape == (1, 32, 32, 3) and labels.tolist() == [7]
    assert images[0, 0, 2, 0] == 11
    assert images[0, 1, 0, 1] == 22
    assert images[0, 31, 31, 2] == 33
    assert images.astype(int).sum() == 66


def test_all_files_are_read_in_their_order(tiny_cifar):
    (_, labels), (_, test_labels) = map(
        resolve(f"{RECIPE}:load"),
        ([f"data_batch_{number}.bin" for number in range(1, 6)], ["test_batch.bin"]),
    )
    files = [tiny_cifar / f"data_batch_{number}.bin" for number in range(1, 6)]
    expected = [np.fromfile(file, np.uint8)[::3073] for file in files]
    np.testing.assert_array_equal(labels, np.concatenate(expected))
    assert len(test_labels) == 32


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("unset", "the environment variable CIFAR10 to name the folder cifar-10-bat"),
        ("absent", "expected the file data_batch_3.bin in the folder"),
        ("cut", "data_batch_3.bin: expected records of 3073 bytes, as in the bin"),
        ("empty", "data_batch_3.bin: expected records of 3073 bytes, as in the bin"),
        ("other", "data_batch_3.bin: expected labels from 0 to 9 at the start of"),
        ("few", "expected 128 training images or more, got 5"),
    ],
)
def test_what_is_wrong_with_the_files_is_one_line(
    tiny_cifar, monkeypatch, capsys, damage, message
):
    file = tiny_cifar / "data_batch_3.bin"
    content = file.read_bytes()
    if damage == "unset":
        monkeypatch.delenv("CIFAR10")
    elif damage == "absent":
        file.unlink()
    elif damage == "few":
        for each in tiny_cifar.glob("data_batch_*"):
            each.write_bytes(content[:3073])
    else:
        other = {"cut": content[:-1], "empty": b"", "other": b"\x0a" + content[1:]}
        file.write_bytes(other[damage])
    assert cli.main(["config", "check", str(CONFIG)]) == 2
    told = capsys.readouterr().err
    assert message in told and "cifar10.py" in told
    assert told.count("\n") == 1
    if damage in ("unset", "absent"):
        assert "https://www.cs.toronto.edu/~kriz/cifar.html" in told


def test_a_training_goes_on_with_the_batches_that_it_would_have_had(tiny_cifar):
    train, _ = resolve(f"{RECIPE}:data")()
    # 160 images are one batch of 128 in each epoch.
    whole = list(itertools.islice(train(3, 0), 5))
    for start in range(1, 5):
        for expected, found in zip(whole[start:], train(3, start)):
            np.testing.assert_array_equal(found[0], expected[0])
            np.testing.assert_array_equal(found[1], expected[1])
    assert not np.array_equal(whole[0][1], whole[1][1])
    other = next(train(4, 0))
    assert not np.array_equal(other[1], whole[0][1])


def test_an_epoch_shows_each_image_at_most_once(tiny_cifar, monkeypatch):
    load = resolve(f"{RECIPE}:load")
    monkeypatch.setitem(load.__globals__, "BATCH", 40)
    monkeypatch.setitem(load.__globals__, "augmented", lambda images, random: images)
    train, _ = resolve(f"{RECIPE}:data")()
    batches = list(itertools.islice(train(0, 0), 8))
    for epoch in (batches[:4], batches[4:]):
        shown = np.concatenate([batch[0] for batch in epoch])
        assert len(np.unique(shown.reshape(160, -1), axis=0)) == 160
    assert not np.array_equal(batches[0][1], batches[4][1])


def test_images_are_flipped_and_shifted_and_nothing_else():
    augmented = resolve(f"{RECIPE}:augmented")
    image = np.arange(1, 32 * 32 * 3 + 1, dtype=np.int32).reshape(32, 32, 3)
    found = augmented(np.stack([image] * 300), np.random.default_rng(0))
    seen = set()
    for each in found:
        # The value of a pixel tells where it was.
        y, x = np.argwhere(each[..., 0] > 0)[0]
        flipped = each[y, x + 1, 0] < each[y, x, 0]
        source = image[:, ::-1] if flipped else image
        ((sy, sx),) = np.argwhere(source[..., 0] == each[y, x, 0])
        down, right = y - sy, x - sx
        padded = np.pad(source, ((4, 4), (4, 4), (0, 0)))
        expected = padded[4 - down : 36 - down, 4 - right : 36 - right]
        np.testing.assert_array_equal(each, expected)
        seen.add((down, right, flipped))
    assert {abs(down) for down, _, _ in seen} == {0, 1, 2, 3, 4}
    assert {right for _, right, _ in seen} == {*range(-4, 5)}
    assert len({flipped for _, _, flipped in seen}) == 2


@pytest.mark.parametrize(
    ("model", "layers", "millions"), [("resnet20", 20, 0.27), ("resnet32", 32, 0.46)]
)
def test_the_network_has_the_layers_and_the_weights_of_the_paper(
    model, layers, millions
):
    # A first convolution, 3 stages of n blocks of two, and a dense layer: 6n + 2.
    network = resolve(f"{RECIPE}:{model}")()
    x = np.zeros((1, 32, 32, 3), np.float32)

    def all_shapes():
        variables = network.init(jax.random.key(0), x, train=False)
        _, seen = network.apply(
            variables,
            x,
            train=False,
            capture_intermediates=lambda layer, _: type(layer).__name__ == "Block",
        )
        return variables["params"], seen["intermediates"]

    shapes, outputs = jax.eval_shape(all_shapes)
    kernels = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
        if path[-1].key == "kernel"
    ]
    n = (layers - 2) // 6
    expected = 9 * (3 * 16 + 2 * n * 16 * 16)
    for narrow, wide in ((16, 32), (32, 64)):
        expected += 9 * (narrow * wide + (2 * n - 1) * wide * wide)
    assert len(kernels) == layers
    weights = sum(kernel.size for kernel in kernels)
    assert weights == expected + 640
    assert round(weights / 1e6, 2) == millions
    # Each stage has half the height and width of the one before.
    sizes = [leaf.shape[1:] for leaf in jax.tree.leaves(outputs)]
    stages = [(32, 32, 16), (16, 16, 32), (8, 8, 64)]
    assert sorted(sizes) == sorted(stages * n)
