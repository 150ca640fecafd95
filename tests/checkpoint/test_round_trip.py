"""Export, load, and export again."""

import dataclasses
import hashlib
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain._arrays import paths
from hwtrain._plan.hardware import Hardware
from hwtrain._plan.plan import Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.checkpoint import HardwareCheckpointError, export, load
from hwtrain.chips import apply_mismatch, chip_key
from hwtrain.devices import SinglePairConductanceConverter

SEEDS = (7, 12345)


def contents(directory):
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def linear_plan(path, shape):
    return Plan(
        (
            AnalogWeight(
                path=path,
                kind="dense",
                layer="Dense",
                shape=shape,
                rows=(0,),
                columns=(1,),
                hardware=Hardware(converter=SinglePairConductanceConverter()),
                rule="",
                ranged=False,
            ),
        )
    )


@pytest.fixture
def checkpoint(tmp_path, variables, plan):
    return load(export(tmp_path / "model", variables, plan, chip_seeds=SEEDS))


def test_variables_come_back_bit_for_bit(checkpoint, variables):
    chex.assert_trees_all_equal(checkpoint.variables, variables, strict=True)
    chex.assert_trees_all_equal_dtypes(checkpoint.variables, variables)
    assert checkpoint.params["heads"]["kernel"].dtype == jnp.bfloat16


def test_plan_comes_back_equal(checkpoint, plan):
    assert checkpoint.plan == plan
    assert hash(checkpoint.plan) == hash(plan)


def test_prefix_comes_back(tmp_path, plan, variables):
    within = [
        dataclasses.replace(weight, path=f"encoder/{weight.path}")
        for weight in plan.weights
    ]
    named = Plan(tuple(within), (), "encoder")
    params = {"encoder": variables["params"]}
    assert load(export(tmp_path / "model", {"params": params}, named)).plan == named


def test_exporting_again_gives_identical_bytes(checkpoint, tmp_path):
    again = export(
        tmp_path / "again",
        checkpoint.variables,
        checkpoint.plan,
        chip_seed=SEEDS[1],
        chip_seeds=SEEDS[:1],
    )
    assert contents(again) == contents(tmp_path / "model")


def test_another_chip_is_drawn_from_the_nominal_model(
    checkpoint, tmp_path, variables, plan
):
    eighth = export(tmp_path / "8", checkpoint.variables, checkpoint.plan, chip_seed=8)
    direct = export(tmp_path / "direct", variables, plan, chip_seed=8)
    assert contents(eighth) == contents(direct)


def test_files(tmp_path, checkpoint):
    names = list(contents(tmp_path / "model"))
    # Five analog weights, batch statistics and a norm; the empty cache has no file.
    assert names == [
        *(f"chips/0007/{number:04d}.safetensors" for number in range(5)),
        *(f"chips/12345/{number:04d}.safetensors" for number in range(5)),
        "manifest.json",
        *(f"tensors/{number:04d}.safetensors" for number in range(7)),
    ]
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_probes_are_not_written_and_come_back_as_zeros(tmp_path, variables, plan):
    variables["params"]["hidden"]["probe"] = jnp.full((3, 3, 6), 9.0)
    directory = export(tmp_path / "model", variables, plan)
    assert b"probe" not in (directory / "tensors/0000.safetensors").read_bytes()
    loaded = load(directory).params["hidden"]["probe"]
    chex.assert_trees_all_equal(loaded, jnp.zeros((3, 3, 6)))


def test_a_parameter_of_the_model_may_be_called_probe(tmp_path, variables, plan):
    variables["params"]["norm"]["probe"] = jnp.ones(3)
    loaded = load(export(tmp_path / "model", variables, plan))
    chex.assert_trees_all_equal(loaded.params["norm"]["probe"], jnp.ones(3))


def test_a_parameter_tree_alone_is_the_collection_params(tmp_path, variables, plan):
    checkpoint = load(export(tmp_path / "model", variables["params"], plan))
    chex.assert_trees_all_equal(checkpoint.variables, {"params": variables["params"]})


def test_an_nnx_state_and_its_pure_dict_give_the_same_bytes(tmp_path):
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(3, 2, rngs=rngs)])
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

    state = nnx.state(Model(nnx.Rngs(0)))
    pure = nnx.to_pure_dict(nnx.filter_state(state, nnx.Param))
    plan = linear_plan("layers/0/kernel", (3, 2))
    first = export(tmp_path / "state", state, plan)
    second = export(tmp_path / "pure", pure, plan)
    assert contents(first) == contents(second)
    # The keys of the dropout are no values of the model.
    chex.assert_trees_all_equal(load(first).variables, {"params": pure})


def test_a_key_among_the_parameters_comes_back(tmp_path):
    pure = {
        "layers": {0: {"kernel": jnp.ones((3, 2))}},
        "key": jax.random.key(3),
    }
    plan = linear_plan("layers/0/kernel", (3, 2))
    key = load(export(tmp_path / "pure", pure, plan)).params["key"]
    assert key.dtype == pure["key"].dtype
    chex.assert_trees_all_equal(
        jax.random.key_data(key), jax.random.key_data(pure["key"])
    )


def test_a_linen_model_computes_the_same(tmp_path):
    model = nn.Sequential([nn.Dense(4), nn.BatchNorm(use_running_average=True)])
    x = jax.random.normal(jax.random.key(1), (5, 3))
    variables = jax.jit(model.init)(jax.random.key(0), x)
    plan = linear_plan("layers_0/kernel", (3, 4))
    loaded = load(export(tmp_path / "model", variables, plan))
    chex.assert_trees_all_equal(
        model.apply(loaded.variables, x), model.apply(variables, x)
    )


def test_more_tiles_than_axes(tmp_path):
    limit = hw.MappingParameter(max_input_size=1, max_output_size=None)
    (weight,) = linear_plan("dense/kernel", (70, 2)).weights
    weight = dataclasses.replace(
        weight, hardware=dataclasses.replace(weight.hardware, mapping=limit)
    )
    kernel = jax.random.normal(jax.random.key(0), (70, 2))
    path = export(tmp_path / "m", {"dense": {"kernel": kernel}}, Plan((weight,)))
    found = load(path)
    np.testing.assert_allclose(found.reconstruct("dense/kernel"), kernel, atol=1e-5)
    # No limit comes back as none, not as the default.
    assert found.plan["dense/kernel"].hardware.mapping == limit


def test_boxed_parameters_are_unboxed(tmp_path):
    boxed = {"dense": {"kernel": nn.Partitioned(jnp.ones((3, 2)), (None, "model"))}}
    checkpoint = load(
        export(tmp_path / "m", boxed, linear_plan("dense/kernel", (3, 2)))
    )
    chex.assert_trees_all_equal(
        checkpoint.params, {"dense": {"kernel": jnp.ones((3, 2))}}
    )


@pytest.mark.parametrize(
    "dtype", ["float64", "int64", "uint8", "bool", "float8_e4m3fn"]
)
def test_dtypes_are_kept(tmp_path, dtype):
    table = np.arange(6).reshape(2, 3).astype(jnp.dtype(dtype))
    loaded = load(export(tmp_path / "model", {"table": table}, Plan(()))).params[
        "table"
    ]
    assert loaded.dtype == table.dtype
    np.testing.assert_array_equal(np.asarray(loaded), table)


def test_hashes_are_of_the_bytes(checkpoint, variables):
    entry = checkpoint.manifest.files["tensors/0000.safetensors"]
    kernel = np.asarray(variables["params"]["hidden"]["kernel"])
    expected = hashlib.sha256(kernel.tobytes()).hexdigest()
    assert entry["nominal/params/hidden/kernel"].sha256 == expected


def test_manifest_says_what_the_hardware_is(tmp_path, checkpoint):
    manifest = json.loads((tmp_path / "model/manifest.json").read_text("utf-8"))
    hidden, cell = manifest["layers"][0], manifest["layers"][4]
    assert hidden["weight"]["hardware"]["mismatch"] == {
        "type": "add_normal",
        "std_dev": 0.1,
        "per_column": False,
        "rel_to_actual_wmax": True,
    }
    assert hidden["weight"]["hardware"]["converter"]["g_min"] == 0.1
    assert (hidden["row_sizes"], hidden["column_sizes"]) == ([4, 3, 3], [3, 2, 2])
    assert sorted(hidden["beside"]) == ["bias", "input_range"]
    assert "converter" not in cell["weight"]["hardware"]
    assert [chip["seed"] for chip in manifest["chips"]] == list(SEEDS)


class TestChip:
    def test_is_apply_mismatch(self, checkpoint, variables, plan):
        expected = apply_mismatch(variables["params"], plan, chip_key(7))
        # Fused and unfused float32 differ in the last place.
        chex.assert_trees_all_close(checkpoint.chip(7), expected, atol=2e-6)
        chex.assert_trees_all_equal_dtypes(checkpoint.chip(7), expected)

    def test_is_a_function_of_its_seed(self, checkpoint, tmp_path, variables, plan):
        again = load(export(tmp_path / "again", variables, plan, chip_seed=7))
        chex.assert_trees_all_equal(again.chip(7), checkpoint.chip(7))
        first, second = (paths.leaves(checkpoint.chip(seed)) for seed in SEEDS)
        for path in ("hidden/kernel", "layers/kernel", "cell/w_rec"):
            assert not np.allclose(first[path], second[path])
        for path in ("hidden/bias", "heads/kernel", "norm/scale"):
            chex.assert_trees_all_equal(first[path], second[path])

    def test_follows_the_rule_in_the_manifest(self, checkpoint, variables):
        """`rules.chip`, by hashlib and jax.random alone."""
        kernel = np.asarray(variables["params"]["hidden"]["kernel"])
        digest = hashlib.blake2s(b"hidden/kernel#mismatch#0", digest_size=4).digest()
        key = jax.random.fold_in(jax.random.key(7), int.from_bytes(digest, "little"))
        xi = np.asarray(jax.random.normal(key, kernel.shape))
        expected = kernel.copy()
        for rows in (slice(0, 4), slice(4, 7), slice(7, 10)):
            scale = np.abs(kernel[rows]).max(axis=0) / 0.8
            w = kernel[rows] / scale
            expected[rows] = (w + 0.1 * np.abs(w).max() * xi[rows]) * scale
        found = checkpoint.chip(7)["hidden"]["kernel"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)

    def test_of_a_large_seed(self, tmp_path, variables, plan):
        seed = 2**32 - 1
        checkpoint = load(export(tmp_path / "m", variables, plan, chip_seed=seed))
        expected = apply_mismatch(variables["params"], plan, chip_key(seed))
        chex.assert_trees_all_close(checkpoint.chip(seed), expected, atol=2e-6)

    def test_leaves_the_nominal_parameters_alone(self, checkpoint, variables):
        checkpoint.chip(7)
        chex.assert_trees_all_equal(checkpoint.variables, variables)

    def test_that_is_not_there(self, checkpoint):
        with pytest.raises(HardwareCheckpointError, match="no chip 8; it holds 7, 123"):
            checkpoint.chip(8)
