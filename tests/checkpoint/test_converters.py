"""Every converter in a checkpoint: tiled, stacked, per column, and for a chip."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain._plan.plan import Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.checkpoint import HardwareCheckpointError, verify

DOCS = Path(__file__).parents[2] / "docs/checkpoint.md"
CURVES = ((0.0, 0.0, 5.0, 25.0, 25.0), (25.0, 25.0, 5.0, 0.0, 0.0))
REST = ((0.0, 0.0, 0.0, 0.0, 25.0), (25.0, 0.0, 0.0, 0.0, 0.0))
MAKE = {
    "single_device": lambda **o: hw.SingleDeviceConductanceConverter(**o),
    "single_pair": lambda **o: hw.SinglePairConductanceConverter(g_min=1.0, **o),
    "n_pair": lambda **o: hw.NPairConductanceConverter(
        f_lst=(1.0, 2.0, 4.0), g_min=0.5, **o
    ),
    "dual_pair": lambda **o: hw.DualPairConductanceConverter(f_lst=(1.0, 3.0), **o),
    "custom_pair": lambda **o: hw.CustomPairConductanceConverter(
        f_lst=(1.0, 1.0), g_lst=CURVES + REST, **o
    ),
}
CLASSES = {
    "SingleDeviceConductanceConverter": hw.SingleDeviceConductanceConverter,
    "SinglePairConductanceConverter": hw.SinglePairConductanceConverter,
    "NPairConductanceConverter": hw.NPairConductanceConverter,
    "DualPairConductanceConverter": hw.DualPairConductanceConverter,
    "CustomPairConductanceConverter": hw.CustomPairConductanceConverter,
}
DEVICES = {
    "single_device": ["g"],
    "single_pair": ["g_pos", "g_neg"],
    "n_pair": [f"{g}_{n}" for n in range(3) for g in ("g_pos", "g_neg")],
    "dual_pair": ["g_pos_0", "g_neg_0", "g_pos_1", "g_neg_1"],
    "custom_pair": ["g_pos_0", "g_neg_0", "g_pos_1", "g_neg_1"],
}
MISMATCH = hw.MismatchParameter(type="mult_normal", std_dev=0.1)


@pytest.fixture(scope="module", params=[False, True], ids=["tensor", "column"])
def per_column(request):
    return request.param


@pytest.fixture(scope="module", params=MAKE)
def case(request, per_column, tmp_path_factory):
    """A tiled stack of two layers: its converter, plan, kernel and checkpoint."""
    converter = MAKE[request.param](per_column=per_column)
    weight = AnalogWeight(
        path="layers/kernel",
        kind="dense",
        layer="Dense",
        shape=(2, 10, 7),
        rows=(1,),
        columns=(2,),
        hardware=hw.Hardware(
            converter=converter,
            mismatch=MISMATCH,
            mapping=hw.MappingParameter(
                max_input_size=4, max_output_size=3, weight_scaling_omega=0.9
            ),
        ),
        rule="",
        ranged=False,
    )
    kernel = jax.random.normal(jax.random.key(3), (2, 10, 7))
    kernel = kernel.at[:, :4, 1].set(0)  # an all-zero column of a tile
    path = tmp_path_factory.mktemp("export") / "model"
    params = {"layers": {"kernel": kernel}}
    hw.export(path, params, Plan((weight,)), chip_seed=3)
    return converter, weight, np.asarray(kernel), path


def tiles(matrix):
    for rows in (slice(0, 4), slice(4, 7), slice(7, 10)):
        for columns in (slice(0, 3), slice(3, 5), slice(5, 7)):
            for layer in matrix:
                yield layer[rows, columns]


@pytest.mark.sampled
def test_weights_come_back(case):
    converter, _, kernel, path = case
    found = hw.load(path).reconstruct("layers/kernel")
    for a, b in zip(tiles(found), tiles(kernel)):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * np.abs(b).max())
    grid = hw.load(path).conductances("layers/kernel")
    for row in grid:
        for tile in row:
            assert list(tile.conductances) == DEVICES[converter.type]
            for g in tile.conductances.values():
                assert converter.g_min <= g.min() and g.max() <= converter.g_max
            width = g.shape[-1] if converter.per_column else 1
            assert tile.scale_ratio.shape == (2, 1, width)
            assert list(tile.params) == list(converter.scales)


@pytest.mark.sampled
def test_each_tile_converts_as_it_would_alone(case):
    converter, _, kernel, path = case
    checkpoint = hw.load(path)
    grid = checkpoint.conductances("layers/kernel")
    one_by_one = iter(tiles(kernel))
    for row in grid:
        for tile in row:
            for layer in range(2):
                w = next(one_by_one)
                scale = tile.mapping_scale[layer]
                alone, params = converter.convert_to_conductances(w / scale)
                for g, name in zip(alone, converter.devices):
                    np.testing.assert_allclose(
                        tile.conductances[name][layer], g, rtol=1e-5, atol=1e-5
                    )
                for name, value in params.items():
                    np.testing.assert_allclose(
                        np.squeeze(tile.params[name][layer]),
                        np.squeeze(value),
                        rtol=1e-5,
                    )


def test_a_chip_comes_back(case):
    converter, _, _, path = case
    checkpoint = hw.load(path)
    chip = np.asarray(checkpoint.chip(3)["layers"]["kernel"])
    found = checkpoint.reconstruct("layers/kernel", chip_seed=3)
    grid = checkpoint.conductances("layers/kernel", 3)
    if converter.type == "single_device":
        # It cannot have less than 0 µS: there the weight is cut off.
        empty = np.block(
            [[tile.conductances["g"] == 0 for tile in row] for row in grid]
        )
        assert 0 < empty.mean() < 0.05
        assert (found[empty] > chip[empty]).all()
        chip = np.where(empty, found, chip)
    np.testing.assert_allclose(found, chip, rtol=0, atol=4e-6 * np.abs(chip).max())
    largest = max(
        g.max() for row in grid for tile in row for g in tile.conductances.values()
    )
    assert largest > converter.g_max


def test_the_certificate(case):
    _, _, _, path = case
    report = verify(path)["weights"]["layers/kernel"]
    assert report["conductances"] < 1e-6
    assert report["chips"] == {"3": 0.0}


def test_the_reader_in_the_docs(case):
    _, _, kernel, path = case
    section = DOCS.read_text("utf-8").partition("## A reader without hwtrain")[2]
    namespace = {}
    exec(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1], namespace)
    found = namespace["read_weight"](path, "layers/kernel")
    for a, b in zip(tiles(found), tiles(kernel)):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * np.abs(b).max())


def test_conductances_in_the_export_are_those_of_the_reference(golden, tmp_path):
    # Not of a single device with constant weights, whose scale is infinite there.
    done = set()
    for name, case in golden("aihwkit_weights")["converters"].items():
        w = np.float32(case["weights"])
        if case["class"] not in CLASSES or w.max() == w.min():
            continue
        options = {
            key: case[key]
            for key in ("g_max", "g_min", "f_lst", "g_lst")
            if case[key] is not None
        }
        converter = CLASSES[case["class"]](**options)
        kernel = w.T  # the reference's matrices are [outputs, inputs]
        weight = AnalogWeight(
            path="dense/kernel",
            kind="dense",
            layer="Dense",
            shape=kernel.shape,
            rows=(0,),
            columns=(1,),
            hardware=hw.Hardware(converter=converter),
            rule="",
            ranged=False,
        )
        path = tmp_path / name.replace("/", "_")
        params = {"dense": {"kernel": kernel}}
        checkpoint = hw.load(hw.export(path, params, Plan((weight,))))
        ((tile,),) = checkpoint.conductances("dense/kernel")
        expected = np.float32(case["conductances"])
        if expected.ndim == 2:
            expected = expected[None]  # the reference gives a single device no list
        for g, reference in zip(tile.conductances.values(), expected, strict=True):
            atol = 1e-5 * converter.g_max
            np.testing.assert_allclose(g, reference.T, atol=atol, err_msg=name)
        done.add(converter.type)
    assert done == set(MAKE)


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="head")(x)


class Twin(nnx.Module):
    def __init__(self, rngs):
        self.head = nnx.Linear(9, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(x)


@pytest.mark.parametrize("kind", MAKE)
def test_linen_and_nnx_export_the_same_conductances(kind, tmp_path):
    chip, x = hw.Hardware(converter=MAKE[kind](), mismatch=MISMATCH), jnp.ones((1, 9))
    linen = hw.analogize(MLP(), chip)
    params = jax.jit(linen.init)(jax.random.key(0), x)["params"]
    twin = hw.analogize(Twin(nnx.Rngs(0)), chip)
    state = nnx.state(twin, nnx.Param)
    nnx.replace_by_pure_dict(state, params)
    hw.export(tmp_path / "a", params, hw.plan(linen, params, x), chip_seed=1)
    hw.export(tmp_path / "b", state, hw.plan(twin), chip_seed=1)
    for seed in (None, 1):
        ((a,),), ((b,),) = (
            hw.load(tmp_path / name).conductances("head/kernel", seed) for name in "ab"
        )
        for name, g in a.conductances.items():
            np.testing.assert_array_equal(g, b.conductances[name])
    (row,) = hw.inspect(linen, {"params": params}, x).rows
    assert row["conductances"].startswith(f"{kind}, ")


def test_a_pair_s_names_of_another_converter_are_an_error(case):
    converter, _, _, path = case
    tile = hw.load(path).conductances("layers/kernel")[0][0]
    if converter.type == "single_pair":
        assert tile.g_pos is tile.conductances["g_pos"]
        return
    with pytest.raises(HardwareCheckpointError, match=f"'{converter.type}', with g"):
        _ = tile.g_pos
