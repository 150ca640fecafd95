"""Checkpoints of real writers start a model, and those of other models are refused."""

import json
import re

import chex
import flax.training.train_state
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import safetensors.flax
import safetensors.numpy
from flax import linen as nn
from flax import nnx, serialization
from flax.traverse_util import flatten_dict

import hwtrain
from hwtrain._arrays import paths
from hwtrain.train import initialised, read_arrays
from hwtrain.train._checkpoints import open_checkpoints, save
from hwtrain.train._loop import TrainState


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(5, name="hidden")(x)
        x = nn.BatchNorm(use_running_average=True, name="norm")(x)
        return nn.Dense(3, name="head")(x)


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(4, 5, rngs=rngs)
        self.norm = nnx.BatchNorm(5, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(5, 3, rngs=rngs)


def filled(tree, start=0.5):
    """A tree of the same shapes, in which no two numbers are the same."""
    leaves, structure = jax.tree.flatten(tree)
    found = []
    for leaf in leaves:
        found.append(
            start + jnp.arange(leaf.size, dtype=leaf.dtype).reshape(leaf.shape)
        )
        start += leaf.size
    return jax.tree.unflatten(structure, found)


X = jnp.ones((1, 4))
FRESH = jax.jit(Net().init)(jax.random.key(0), jnp.ones((1, 4)))
GIVEN = filled(FRESH)
BY_PATH = {
    **paths.leaves(GIVEN["params"]),
    **paths.leaves({"batch_stats": GIVEN["batch_stats"]}),
}


def write_standard(folder):
    with ocp.StandardCheckpointer() as writer:
        writer.save(folder / "it", GIVEN)
    return "it"


def write_pytree(folder):
    """A state of Flax's, whose optimizer has as many arrays again."""
    state = flax.training.train_state.TrainState.create(
        apply_fn=None, params=GIVEN["params"], tx=optax.adam(1e-3)
    )
    tree = {
        "params": state.params,
        "batch_stats": GIVEN["batch_stats"],
        "opt_state": state.opt_state,
        "step": state.step,
    }
    with ocp.PyTreeCheckpointer() as writer:
        writer.save(folder / "it", tree)
    return "it"


def write_manager(folder, **options):
    options = ocp.CheckpointManagerOptions(**options)
    with ocp.CheckpointManager(folder / "it", options=options) as manager:
        manager.save(2, args=ocp.args.StandardSave(filled(GIVEN, 1000.5)))
        manager.save(10, args=ocp.args.StandardSave(GIVEN))
    return "it"


def write_step(folder):
    return f"{write_manager(folder)}/10"


def write_prefixed(folder):
    return write_manager(folder, step_prefix="ckpt", step_format_fixed_length=4)


def of_run(where, params, average=None):
    state = {"batch_stats": jax.tree.map(jnp.copy, GIVEN["batch_stats"])}
    saved = TrainState(
        jnp.int32(7), params, state, optax.adam(1.0).init(params), average
    )
    with open_checkpoints(where) as manager:
        save(manager, saved)


def write_run(folder):
    of_run(folder / "run/plain/seed_0", GIVEN["params"])
    return "run/plain/seed_0"


def write_averaged_run(folder):
    other = filled(GIVEN["params"], 1000.5)
    of_run(folder / "run/plain/seed_0", other, GIVEN["params"])
    return "run/plain/seed_0"


def write_best_of_a_run(folder):
    of_run(folder / "run/plain/seed_0", filled(GIVEN["params"], 1000.5))
    of_run(folder / "run/plain/best/seed_0", GIVEN["params"])
    return "run/plain/seed_0"


def write_nnx(folder):
    model = NnxNet(nnx.Rngs(0))
    state = nnx.state(model)
    values = {**BY_PATH, "norm/mean": BY_PATH["batch_stats/norm/mean"]}
    values["norm/var"] = BY_PATH["batch_stats/norm/var"]
    for keys, variable in nnx.to_flat_state(state):
        path = "/".join(keys)
        if path in values:
            variable.set_value(values[path])
    with ocp.StandardCheckpointer() as writer:
        writer.save(folder / "it", state)
    return "it"


def dotted():
    return {path.replace("/", "."): array for path, array in BY_PATH.items()}


def write_safetensors(folder):
    arrays = {name: np.asarray(array) for name, array in dotted().items()}
    safetensors.numpy.save_file(arrays, folder / "it.safetensors")
    return "it.safetensors"


def write_safetensors_of_flax(folder):
    arrays = flatten_dict(GIVEN, sep="/")
    safetensors.flax.save_file(arrays, folder / "it.safetensors")
    return "it.safetensors"


def write_shards(folder):
    """Two files and their index, as Hugging Face writes them."""
    (folder / "it").mkdir()
    names, where = sorted(dotted()), {}
    for number, part in enumerate((names[:3], names[3:])):
        file = f"model-0000{number + 1}-of-00002.safetensors"
        safetensors.flax.save_file({x: dotted()[x] for x in part}, folder / "it" / file)
        where |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / "it/model.safetensors.index.json").write_text(json.dumps(index))
    return "it"


def write_msgpack(folder):
    (folder / "it.msgpack").write_bytes(serialization.to_bytes(GIVEN))
    return "it.msgpack"


def write_msgpack_of_parameters(folder):
    tree = {**GIVEN["params"], "batch_stats": GIVEN["batch_stats"]}
    (folder / "it.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    return "it.msgpack"


def write_hardware_ready(folder):
    """Of an analog model, whose learned bound clips the weights."""
    hardware = hwtrain.Hardware(
        input_range=hwtrain.InputRangeParameter(),
        converter=hwtrain.SinglePairConductanceConverter(g_max=25.0),
    )
    analog, x = hwtrain.analogize(Net(), hardware), jnp.ones((1, 4))
    variables = hwtrain.adopt(analog, GIVEN, x)
    hwtrain.export(folder / "it", variables, hwtrain.plan(analog, variables, x))
    return "it"


def write_function(folder):
    arrays = {name: np.asarray(array) for name, array in BY_PATH.items()}
    np.savez(folder / "it.npz", **arrays)
    (folder / "own.py").write_text(
        "import numpy as np\n"
        "def arrays():\n"
        f"    with np.load({str(folder / 'it.npz')!r}) as file:\n"
        "        return dict(file)\n"
    )
    return "own.py:arrays"


WRITERS = [value for name, value in list(globals().items()) if name[:6] == "write_"]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__[6:])
def test_a_checkpoint_of_each_writer_starts_the_model(write, tmp_path):
    arrays = read_arrays(write(tmp_path), tmp_path)
    found, report = initialised(FRESH, arrays)
    chex.assert_trees_all_equal(found, GIVEN)
    assert set(report.loaded) == set(BY_PATH) and len(BY_PATH) == 8
    assert not report.missing and not report.skipped
    # The stream of the dropout, in an NNX state, has no counterpart in Linen.
    assert {path.partition("/")[0] for path in report.unused} <= {"dropout"}
    assert set(report.aside) <= {"step"}


def test_an_nnx_model_starts_from_a_linen_checkpoint():
    graph, given, rest = nnx.split(NnxNet(nnx.Rngs(0)), (nnx.Param, nnx.BatchStat), ...)
    fresh = nnx.to_pure_dict(given)
    found, report = initialised(fresh, flatten_dict(GIVEN, sep="/"))
    assert set(report.loaded) == set(paths.leaves(fresh))
    np.testing.assert_array_equal(
        found["norm"]["mean"], GIVEN["batch_stats"]["norm"]["mean"]
    )
    np.testing.assert_array_equal(
        found["head"]["kernel"], GIVEN["params"]["head"]["kernel"]
    )


def test_a_report_names_what_did_not_fit():
    arrays = {"params/hidden/kernel": np.ones((4, 5)), "params/tail/bias": np.ones(3)}
    arrays |= {"params/head/bias": np.ones(7), "epoch": np.int64(3)}
    arrays |= {"params/hidden/input_range": np.ones((1, 1))}
    arrays |= {"opt/count_0": np.int64(3), "opt/count_1": np.int64(3)}
    found, report = initialised(FRESH, arrays, skip=["head/.*"], source="a.safetensors")
    assert report.loaded == ("hidden/kernel",)
    assert report.unused == ("tail/bias",)
    counts = ("opt/count_0", "opt/count_1")
    assert report.aside == ("epoch", "hidden/input_range", *counts)
    assert report.skipped == ("head/bias",)
    # What was to be skipped is not missed.
    assert "head/kernel" not in report.missing and "hidden/bias" in report.missing
    chex.assert_trees_all_equal(found["params"]["head"], FRESH["params"]["head"])
    assert report.describe().splitlines() == [
        "started from a.safetensors: 1 array loaded",
        "  missing there, kept at their initial values: batch_stats/norm/mean, "
        "batch_stats/norm/var, hidden/bias, norm/bias, norm/scale",
        "  skipped: head/bias",
        "  unused, because the model has no such array: tail/bias",
        "  no arrays of a plain model: epoch, hidden/input_range, opt/count_0, "
        "opt/count_1",
    ]
    assert type(report).of_data(json.loads(json.dumps(report.as_data()))) == report


def test_lists_of_numbers_are_arrays():
    variables = {"params": {"head": {"bias": np.zeros(2, np.float32)}}}
    found, report = initialised(variables, {"head/bias": [1.0, 2.0], "note": "mine"})
    np.testing.assert_array_equal(found["params"]["head"]["bias"], [1.0, 2.0])
    assert report.unused == ("note",)


def test_a_number_that_is_unused_is_no_stack_of_layers():
    variables = {"params": {**STRAIGHT["params"], "head": {"bias": np.zeros(3)}}}
    arrays = {"head/bias": np.ones(3), "layers/kernel": np.float32(3)}
    assert initialised(variables, arrays)[1].unused == ("layers/kernel",)


def test_names_are_replaced_in_order():
    arrays = {"model.encoder.weight": np.ones((4, 5)), "model.head.bias": np.ones(3)}
    arrays = {name.replace(".", "/"): array for name, array in arrays.items()}
    rename = {
        r"model/(.*)": r"\1",
        r"encoder/(.*)": r"hidden/\1",
        r"(.*)/weight": r"\1/kernel",
    }
    assert initialised(FRESH, arrays, rename=rename)[1].loaded == (
        "head/bias",
        "hidden/kernel",
    )


@pytest.mark.parametrize(
    "dtype", [jnp.float16, jnp.bfloat16, np.float64, ml_dtypes.float8_e4m3fn]
)
def test_numbers_keep_the_dtype_of_the_model(dtype):
    arrays = {"head/bias": np.array([0.5, -1.0, 2.0]).astype(dtype)}
    bias = initialised(FRESH, arrays)[0]["params"]["head"]["bias"]
    assert bias.dtype == jnp.float32
    np.testing.assert_array_equal(bias, [0.5, -1.0, 2.0])
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), FRESH["params"])
    assert initialised(half, arrays)[0]["head"]["bias"].dtype == jnp.bfloat16


def test_names_with_slashes_fit_written_out_or_not():
    variables = {"params": {"norm": {"dense/kernel/scale": np.zeros(2, np.float32)}}}
    for name in ("norm/dense/kernel/scale", "norm/dense~1kernel~1scale"):
        found, _ = initialised(variables, {name: np.ones(2)})
        np.testing.assert_array_equal(
            found["params"]["norm"]["dense/kernel/scale"], [1, 1]
        )


ONE = {"head/bias": np.ones(3)}
SCANNED = {"params": {"layers": {"kernel": np.zeros((3, 4, 4), np.float32)}}}
STRAIGHT = {
    "params": {
        f"layers_{i}": {"kernel": np.zeros((4, 4), np.float32)} for i in range(3)
    }
}
BAD = {
    "nothing": (
        FRESH,
        {"enc/a": np.ones(3), "enc/b": np.ones(2)},
        {},
        r"no array has the path of a parameter: it has enc/a, enc/b; the model has "
        r"head/bias.*rename = \{ \"enc/\(\.\*\)\" = '\\1' \}",
    ),
    "names of PyTorch": (
        FRESH,
        {"fc/weight": np.ones((5, 4))},
        {},
        "PyTorch's weights",
    ),
    "a shape": (
        FRESH,
        {"head/bias": np.ones(4)},
        {},
        r"expected head/bias of shape \(3,\), as the model has it, got \(4,\); for a "
        r'new layer, skip = \["head/\.\*"\]',
    ),
    "a transposed shape": (
        FRESH,
        {"head/kernel": np.ones((3, 5))},
        {},
        "if it is transposed, as PyTorch's weights are",
    ),
    "a rename of nothing": (
        FRESH,
        ONE,
        {"rename": {"tail/.*": "head"}},
        "rename: expected a pattern that matches .*'tail/.*', which matches none; it "
        "has head/bias",
    ),
    "a pattern of a part of a path": (
        FRESH,
        ONE,
        {"skip": ["head"]},
        "skip: expected a pattern that matches the whole path .*'head'",
    ),
    "a replacement of no group": (
        FRESH,
        ONE,
        {"rename": {"(.*)": r"\2"}},
        "rename: expected a replacement for .* got .*invalid group reference",
    ),
    "two of one name": (
        FRESH,
        ONE | {"tail/bias": np.ones(3)},
        {"rename": {"tail/(.*)": r"head/\1"}},
        "head/bias and tail/bias are both named head/bias",
    ),
    "two for one array": (
        FRESH,
        {"norm/mean": np.ones(5), "batch_stats/norm/mean": np.ones(5)} | ONE,
        {},
        "are both meant for batch_stats/norm/mean",
    ),
    "whole numbers": (
        FRESH,
        {"head/bias": np.ones(3, np.int8)},
        {},
        "dtype that can be converted to the model's float32, got int8",
    ),
    "complex numbers": (FRESH, {"head/bias": np.ones(3, complex)}, {}, "complex128"),
    "NaN": (
        FRESH,
        {"head/bias": np.array([0, np.nan, np.inf])},
        {},
        "2 of 3 numbers in head/bias are NaN or infinite, as after a training",
    ),
    "too large": (
        {"params": {"head": {"bias": np.zeros(3, np.float16)}}},
        {"head/bias": np.full(3, 1e6)},
        {},
        "3 of 3 numbers in head/bias are NaN or infinite, as float16",
    ),
    "too large a count": (
        {"params": {"a": np.zeros(1, np.float32)}, "cache": {"n": np.int8(0)}},
        {"a": np.ones(1), "cache/n": np.int64(300)},
        {},
        "expected whole numbers in cache/n that fit the model's int8",
    ),
    "a bad pattern of what is skipped": (
        FRESH,
        {"head/kernel": np.ones((5, 3))},
        {"skip": ["(h/.*"]},
        r"skip: expected a pattern as Python's re takes it, got '\(h/\.\*'",
    ),
    "a bad pattern of what is renamed": (
        FRESH,
        {"head/kernel": np.ones((5, 3))},
        {"rename": {"(h/.*": "a"}},
        r"rename: expected a pattern as Python's re takes it, got '\(h/\.\*'",
    ),
    "one pattern instead of a list": (
        FRESH,
        {"head/kernel": np.ones((5, 3))},
        {"skip": "head/.*"},
        "skip: expected a list of patterns, got 'head/",
    ),
    "text": (
        FRESH,
        {"head/bias": ["a", "b", "c"]},
        {},
        "head/bias of a dtype that can be converted to the model's float32, got <U1",
    ),
    "lists of different lengths": (
        FRESH,
        {"head/bias": [[1.0], [2.0], [3.0, 4.0]]},
        {},
        "head/bias of a dtype that can be converted to the model's float32, got object",
    ),
    "statistics only": (
        FRESH,
        {"batch_stats/norm/mean": np.ones(5), "norm/var": np.ones(5)},
        {},
        "expected the parameters of this model, got only batch_stats/norm/mean, "
        "batch_stats/norm/var; give a checkpoint that",
    ),
    "scanned along the last axis": (
        STRAIGHT,
        {"layers/kernel": np.ones((4, 4, 3))},
        {},
        r"holds its layers scanned \(layers/kernel\), and the model one by one "
        r"\(layers_0/kernel\): 3 arrays of shape \(4, 4\) against one of \(4, 4, 3\)",
    ),
    "scanned": (
        STRAIGHT,
        {"layers/kernel": np.ones((3, 4, 4))},
        {},
        r"holds its layers scanned \(layers/kernel\), and the model one by one "
        r"\(layers_0/kernel\): 3 arrays of shape \(4, 4\)",
    ),
    "one by one": (
        SCANNED,
        {f"layers/{i}/kernel": np.ones((4, 4)) for i in range(3)},
        {},
        r"one by one \(layers/0/kernel\), and the model scanned \(layers/kernel\)",
    ),
    "learned beside the weights": (
        FRESH,
        {"head/kernel": np.ones((5, 3)), "head/output_scale": np.ones(3)},
        {},
        "head/output_scale is learned beside the weights.*RUN/export/seed_0",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_one_line(case):
    variables, arrays, words, text = BAD[case]
    with pytest.raises(ValueError, match=text) as error:
        initialised(variables, arrays, source="it.msgpack", **words)
    assert "\n" not in str(error.value)
    assert re.match("it.msgpack: |rename: |skip: ", str(error.value))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return nn.Dense(4)(nn.Dense(4)(x)), None


class Deep(nn.Module):
    scanned: bool
    name_of_layers: str | None = None
    axis: int = 0

    @nn.compact
    def __call__(self, x):
        name = self.name_of_layers
        if self.scanned:
            axes, rngs = {"params": self.axis}, {"params": True}
            layers = nn.scan(Block, variable_axes=axes, split_rngs=rngs, length=3)
            return layers(name=name)(x, None)[0]
        for number in range(3):
            x = Block(name=name and f"{name}_{number}")(x)[0]
        return x


@pytest.mark.parametrize("name", [None, "layers"])
@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_layers_of_flax_under_scan_and_one_by_one_are_told_apart(name, scanned, axis):
    init = (Deep(kind, name, axis).init for kind in (scanned, not scanned))
    model, there = (jax.eval_shape(i, jax.random.key(0), X)["params"] for i in init)
    arrays = {path: np.ones(x.shape) for path, x in paths.leaves(there).items()}
    words = ("one by one", "scanned") if scanned else ("scanned", "one by one")
    text = rf"holds its layers {words[0]} \(.*\), and the model {words[1]} \("
    with pytest.raises(ValueError, match=text):
        initialised({"params": model}, arrays)


def test_parameters_of_other_kinds_keep_theirs():
    """The state of an NNX model, and parameters of Linen that are boxed."""
    state = nnx.state(NnxNet(nnx.Rngs(0)), nnx.Param)
    arrays = {"head/bias": np.arange(3.0)}
    found, _ = initialised(state, arrays)
    assert isinstance(found, nnx.State)
    np.testing.assert_array_equal(found["head"]["bias"].get_value(), [0, 1, 2])
    boxed = nn.Dense(
        3, bias_init=nn.with_partitioning(nn.initializers.zeros, ("model",))
    )
    variables = boxed.init(jax.random.key(0), X)
    found, report = initialised(variables, {"bias": np.arange(3.0)})
    assert isinstance(found["params"]["bias"], nn.Partitioned)
    np.testing.assert_array_equal(found["params"]["bias"].value, [0, 1, 2])
    assert report.missing == ("kernel",)


@pytest.mark.parametrize("later", [False, True])
def test_an_array_is_that_of_the_file_that_the_index_names(tmp_path, later):
    folder = tmp_path / write_shards(tmp_path)
    # Of another value in the other file, and in one that the index does not name.
    file = folder / f"model-0000{1 + later}-of-00002.safetensors"
    other = folder / f"model-0000{2 - later}-of-00002.safetensors"
    own, held = (safetensors.numpy.load_file(x) for x in (file, other))
    stale = {name: array + 1 for name, array in own.items()}
    safetensors.numpy.save_file({**held, **stale}, other)
    (folder / "zz.safetensors").write_bytes(b"unread")
    found = read_arrays("it", tmp_path)
    assert found.keys() == BY_PATH.keys()
    for path, array in found.items():
        np.testing.assert_array_equal(array, BY_PATH[path], err_msg=path)


def test_files_that_cannot_be_read_are_one_line(tmp_path):
    (tmp_path / "a.msgpack").write_bytes(b"no")
    (tmp_path / "a.safetensors").write_bytes(b"\x10" * 20)
    (tmp_path / "a.h5").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.msgpack").write_bytes(serialization.msgpack_serialize([1]))
    (tmp_path / "own.py").write_text("def none():\n    return 3\n")
    write_standard(tmp_path)
    (tmp_path / "it/_METADATA").write_text("no")
    folder = write_shards_of(tmp_path / "gone")
    (folder / "it/model-00002-of-00002.safetensors").unlink()
    lacking = write_shards_of(tmp_path / "lacking") / "it"
    file = lacking / "model-00002-of-00002.safetensors"
    held = safetensors.numpy.load_file(file)
    lost = sorted(held)[0]
    del held[lost]
    safetensors.numpy.save_file(held, file)
    several = tmp_path / "several"
    several.mkdir()
    for name in "ab":
        safetensors.numpy.save_file(ONE, several / f"{name}.safetensors")
    for source, text in {
        "a.msgpack": "damaged or unfinished",
        "a.safetensors": "damaged or unfinished",
        "a.h5": "a file of another kind",
        "empty": "a folder of another kind",
        "list.msgpack": "not a tree of arrays",
        "it": "damaged or unfinished",
        "gone/it": "model-00002-of-00002.safetensors, named by .*, is gone",
        "lacking/it": f"names {lost} in model-00002-of-00002.safetensors, which lacks",
        "several": "2 files .safetensors without an index; name one",
        "none.msgpack": f"got no such file or folder, {tmp_path}/none.msgpack",
        "own.py:none": "returns a tree of arrays by name, got one that returns int",
        "own.py:nane": "did you mean none",
    }.items():
        with pytest.raises(ValueError, match=text) as error:
            read_arrays(source, tmp_path)
        assert str(error.value).startswith(f"{source}: ")
        assert "\n" not in str(error.value)


def write_shards_of(folder):
    folder.mkdir()
    write_shards(folder)
    return folder


def test_a_checkpoint_without_arrays_starts_nothing(tmp_path):
    safetensors.numpy.save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(ValueError, match="expected arrays, got a checkpoint without"):
        read_arrays(tmp_path / "empty.safetensors")


def test_a_step_of_several_items_needs_a_name(tmp_path):
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        items = {name: ocp.args.StandardSave({"w": X}) for name in ("actor", "critic")}
        manager.save(3, args=ocp.args.Composite(**items))
    with pytest.raises(ValueError, match="step 3 has the items actor, critic; name"):
        read_arrays(tmp_path / "run")
    assert [*read_arrays(tmp_path / "run" / "3" / "actor")] == ["w"]
