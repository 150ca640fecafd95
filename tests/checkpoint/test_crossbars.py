"""Weights to conductances and back, against aihwkit, and with mismatch."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from hwtrain._plan.hardware import Hardware
from hwtrain._plan.plan import Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.checkpoint import HardwareCheckpointError, export, load
from hwtrain.devices import SinglePairConductanceConverter
from hwtrain.weights import MismatchParameter

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((ROOT / "tests/golden/aihwkit_single_pair.json").read_text())
CONVERTED = ("hidden/kernel", "layers/kernel", "heads/kernel", "tied/embedding")


def matrix_of(shape, hardware, path="dense/kernel"):
    return AnalogWeight(
        path=path,
        kind="dense",
        layer="Dense",
        shape=shape,
        rows=(0,),
        columns=(1,),
        hardware=hardware,
        rule="",
        ranged=False,
    )


def assert_equal_per_tile(weight, found, kernel):
    """Within 1e-6 of the largest weight of each tile."""
    found, kernel = (
        np.asarray(weight.to_matrix(np.asarray(a, np.float32))) for a in (found, kernel)
    )
    rows = np.split(np.arange(kernel.shape[-2]), np.cumsum(weight.row_sizes)[:-1])
    columns = np.split(np.arange(kernel.shape[-1]), np.cumsum(weight.column_sizes)[:-1])
    for r in rows:
        for c in columns:
            tile = (..., r[:, None], c)
            for a, b in zip(
                found[tile].reshape(-1, len(r), len(c)),
                kernel[tile].reshape(-1, len(r), len(c)),
            ):
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * abs(b).max())


@pytest.fixture
def directory(tmp_path, variables, plan):
    return export(tmp_path / "model", variables, plan, chip_seed=7)


@pytest.mark.parametrize("path", CONVERTED)
def test_weights_come_back_from_conductances(directory, variables, plan, path):
    layer, _, name = path.partition("/")
    found = load(directory).reconstruct(path)
    assert found.shape == plan[path].shape
    assert_equal_per_tile(plan[path], found, variables["params"][layer][name])


@pytest.mark.parametrize("path", CONVERTED)
def test_a_chip_comes_back_from_its_conductances(directory, plan, path):
    layer, _, name = path.partition("/")
    checkpoint = load(directory)
    chip = checkpoint.chip(7)[layer][name]
    found = checkpoint.reconstruct(path, chip_seed=7)
    # Its largest weight may exceed that of the nominal tile by a few sigma, and so may
    # the rounding; it does not by a factor of two here.
    np.testing.assert_allclose(
        found, np.asarray(chip, np.float32), rtol=0, atol=4e-6 * np.abs(chip).max()
    )


def test_the_reader_in_the_docs(directory, variables, plan):
    text = (ROOT / "docs/checkpoint.md").read_text("utf-8")
    section = text.partition("## A reader without hwtrain")[2]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    namespace = {}
    exec(code[1], namespace)
    for path in CONVERTED:
        layer, _, name = path.partition("/")
        found = namespace["read_weight"](directory, path)
        assert_equal_per_tile(plan[path], found, variables["params"][layer][name])


def test_targets_use_the_whole_range_and_no_more(directory, plan):
    checkpoint = load(directory)
    for path in CONVERTED:
        converter = plan[path].hardware.converter
        low, high = np.float32(converter.g_min), np.float32(converter.g_max)
        for row in checkpoint.conductances(path):
            for tile in row:
                pair = np.stack([tile.g_pos, tile.g_neg])
                assert pair.min() == low
                np.testing.assert_allclose(pair.max(), high, rtol=1e-6)
                assert pair.max() <= high
                # One device of each pair is off.
                assert (pair.min(axis=0) == low).all()


def test_every_layer_of_a_stack_is_a_crossbar_of_its_own(directory):
    (first, second), *_ = zip(*load(directory).conductances("layers/kernel"))
    for tile in (first, second):
        pair = np.maximum(tile.g_pos, tile.g_neg)
        # A scale for each column: its largest weight has g_max.
        np.testing.assert_allclose(pair.max(axis=-2), 40.0, rtol=1e-6)
        assert tile.scale_ratio.shape == (2, 1, 6)


def test_a_mismatched_device_may_exceed_g_max(tmp_path):
    mismatch = MismatchParameter(type="mult_normal", std_dev=0.3)
    converter = SinglePairConductanceConverter()
    weight = matrix_of((64, 64), Hardware(converter=converter, mismatch=mismatch))
    params = {"dense": {"kernel": np.ones((64, 64), np.float32)}}
    checkpoint = load(export(tmp_path / "m", params, Plan((weight,)), chip_seed=0))
    ((nominal,),) = checkpoint.conductances("dense/kernel")
    ((chip,),) = checkpoint.conductances("dense/kernel", chip_seed=0)
    assert nominal.g_pos.max() == 25.0
    assert chip.g_pos.max() > 25.0
    np.testing.assert_array_equal(chip.scale_ratio, nominal.scale_ratio)


@pytest.mark.parametrize("kind", ["add_normal", "mult_normal"])
def test_mismatch_has_the_configured_deviation(tmp_path, kind):
    sigma, size = 0.2, 256
    mismatch = MismatchParameter(type=kind, std_dev=sigma)
    weight = matrix_of((size, size), Hardware(mismatch=mismatch))
    kernel = np.full((size, size), 0.5, np.float32)
    directory = export(
        tmp_path / "m", {"dense": {"kernel": kernel}}, Plan((weight,)), chip_seed=3
    )
    # |w| = max|w|, so both kinds deviate by sigma * 0.5.
    deviation = (load(directory).chip(3)["dense"]["kernel"] - kernel) / 0.5
    n = size * size
    assert abs(deviation.mean()) < 4 * sigma / np.sqrt(n)
    assert abs(deviation.std() - sigma) < 4 * sigma / np.sqrt(2 * n)


@pytest.mark.parametrize("case", GOLDEN.values(), ids=GOLDEN)
def test_conductances_are_those_of_aihwkit(tmp_path, case):
    converter = SinglePairConductanceConverter(g_max=case["g_max"], g_min=case["g_min"])
    kernel = np.asarray(case["weights"], np.float32)
    weight = matrix_of(kernel.shape, Hardware(converter=converter))
    directory = export(tmp_path / "m", {"dense": {"kernel": kernel}}, Plan((weight,)))
    ((tile,),) = load(directory).conductances("dense/kernel")
    for found, expected in zip((tile.g_pos, tile.g_neg), case["conductances"]):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(tile.scale_ratio.item(), case["scale_ratio"], rtol=1e-6)
    np.testing.assert_allclose(tile.weights(), case["back"], atol=3e-7)


def test_without_a_converter_there_are_no_conductances(directory):
    with pytest.raises(HardwareCheckpointError, match="had no converter"):
        load(directory).conductances("cell/w_rec")


def test_an_unknown_weight(directory):
    with pytest.raises(HardwareCheckpointError, match="no analog weight 'norm/scale'"):
        load(directory).conductances("norm/scale")
