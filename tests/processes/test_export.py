"""Exports of two processes: the bytes of one process, and errors on both."""

import filecmp
import json

import chex
import jax
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain
from hwtrain.checkpoint import load

# Bytes are compared with those of this process.
pytestmark = [pytest.mark.nightly, pytest.mark.optimised]

MODEL = """
CHIP = hwtrain.Hardware(
    mapping=hwtrain.MappingParameter(max_input_size=6, weight_scaling_omega=1.0),
    clip=hwtrain.WeightClipParameter(type="fixed_value", fixed_value=1.0),
    input_range=hwtrain.InputRangeParameter(),
    mismatch=hwtrain.MismatchParameter(type="add_normal", std_dev=0.1),
    converter=hwtrain.SinglePairConductanceConverter(),
    noise_model=hwtrain.PCMLikeNoiseModel(),
)

class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.relu(nn.Dense(16, name="dense")(x)), None

class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(16, name="columns")(x)
        x = nn.scan(Block, variable_axes={"params": 0},
                    split_rngs={"params": True}, length=4)(name="stack")(x, None)[0]
        x = nn.BatchNorm(use_running_average=True, name="norm")(x)
        return nn.Dense(8, name="rows")(x)

analog = hwtrain.analogize(Model(), CHIP)
x = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
variables = jax.device_get(analog.init(jax.random.key(1), x))
plan = hwtrain.plan(analog, variables, x)
"""

SPREAD = """
def axes_of(path):
    kind = {"columns": (None, "model"), "rows": ("model",), "dense": ("data", None)}
    keys = [key.key for key in path]
    return kind.get(keys[-2], ()) if keys[-1] == "kernel" else ()

def on(mesh):
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: spread(leaf, mesh, *axes_of(path)), variables)
"""


def of_one():
    names = {"hwtrain": hwtrain, "nn": nn, "np": np, "jax": jax}
    exec(MODEL, names)
    return names


def assert_same_files(one, other):
    names = sorted(str(path.relative_to(one)) for path in one.rglob("*.*"))
    assert names == sorted(str(path.relative_to(other)) for path in other.rglob("*.*"))
    same, differing, failed = filecmp.cmpfiles(one, other, names, shallow=False)
    assert same == names, (differing, failed)


def test_the_bytes_are_those_of_one_process(in_processes, tmp_path):
    one = of_one()
    hwtrain.export(tmp_path / "one", one["variables"], one["plan"], chip_seeds=[3, 7])
    in_processes(
        MODEL
        + SPREAD
        + """
        from pathlib import Path
        from hwtrain.checkpoint import load, _items as items
        folder = Path(sys.argv[3])
        usual, numbers = items.Writer.write, []
        def counted(self, item):
            numbers.append(item.number)
            return usual(self, item)
        items.Writer.write = counted
        done = []
        path = hwtrain.export(folder / "two", on(mesh_of(4, 2)), plan,
                              chip_seeds=[7, 3], report=lambda *n: done.append(n))
        assert path == folder / "two"
        assert 0 < len(numbers) < 6  # each process wrote a part of the files
        assert done[-1] == (3, 3)
        # Read back onto other meshes, by a tree and by one sharding for all leaves.
        target = on(mesh_of(2, 4, AxisType.Explicit))
        everywhere = NamedSharding(mesh_of(8, 1), P())
        for sharding in (target, everywhere):
            found = load(path, sharding=sharding).variables
            for leaf, old, value in zip(*map(
                    jax.tree.leaves, (found, target, variables)), strict=True):
                wanted = sharding if sharding is everywhere else old.sharding
                assert leaf.sharding == wanted
                for shard in leaf.addressable_shards:
                    np.testing.assert_array_equal(shard.data, value[shard.index])
        # A chip is the same on a mesh and on one device.
        spread_out = load(path, sharding=target)
        key = jax.random.key(0)
        ours, theirs = (found.chip(3, t_s=60.0, key=key)
                        for found in (spread_out, load(path)))
        kernel = ours["rows"]["kernel"]
        assert kernel.sharding == target["params"]["rows"]["kernel"].sharding
        for our, their in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
            np.testing.assert_array_equal(gathered([our])[0], np.asarray(their))
        """.replace("\n        ", "\n"),
        tmp_path,
    )
    assert_same_files(tmp_path / "one", tmp_path / "two")
    chex.assert_trees_all_equal(load(tmp_path / "two").variables, one["variables"])


def test_derived_weights(in_processes, tmp_path):
    program = """
CHIP = hwtrain.Hardware(converter=hwtrain.SinglePairConductanceConverter())

class Normed(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.WeightNorm(nn.Dense(8, name="dense"))(x)

analog = hwtrain.analogize(Normed(), CHIP)
x = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
variables = jax.device_get(analog.init(jax.random.key(1), x))
plan = hwtrain.plan(analog, variables, x)
"""
    in_processes(
        program
        + SPREAD
        + """
mesh = mesh_of(4, 2)
shared = jax.tree_util.tree_map_with_path(
    lambda path, leaf: spread(leaf, mesh, *(
        (None, "model") if path[-1].key == "kernel" else ())), variables)
made = hwtrain.materialize(analog, shared, spread(x, mesh, "data"))
kernel = made["params"]["dense"]["effective_kernel"]
assert kernel.sharding == shared["params"]["dense"]["kernel"].sharding
hwtrain.export(sys.argv[3] + "/two", shared, plan, analog=analog,
               example=(spread(x, mesh, "data"),))
""",
        tmp_path,
    )
    names = {"hwtrain": hwtrain, "nn": nn, "np": np, "jax": jax}
    exec(program, names)
    x = names["x"]
    one = hwtrain.materialize(names["analog"], names["variables"], x)
    two = load(tmp_path / "two").variables
    # The norm is a sum, which two meshes add up in another order.
    chex.assert_trees_all_close(one, two, rtol=1e-6)


def test_an_nnx_model(in_processes, tmp_path):
    program = """
from flax import nnx
CHIP = hwtrain.Hardware(
    input_range=hwtrain.InputRangeParameter(),
    mismatch=hwtrain.MismatchParameter(type="add_normal", std_dev=0.1),
    converter=hwtrain.SinglePairConductanceConverter())

class Model(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(12, 16, rngs=rngs)
        self.head = nnx.Linear(16, 8, rngs=rngs)
    def __call__(self, x):
        return self.head(nnx.relu(self.hidden(x)))

model = hwtrain.analogize(Model(nnx.Rngs(0)), CHIP, rngs=nnx.Rngs(mismatch=1))
"""
    in_processes(
        program
        + """
mesh = mesh_of(4, 2)
flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
axes = {"kernel": (None, "model")}
nnx.update(model, nnx.from_flat_state([
    (keys, leaf.replace(spread(leaf.get_raw_value(), mesh, *axes.get(keys[-1], ()))))
    for keys, leaf in flat]))
from hwtrain.checkpoint import load
path = hwtrain.export(sys.argv[3] + "/two", model, chip_seed=3)
checkpoint = load(path, sharding=nnx.state(model))
for chip in (None, 3):
    found = checkpoint.into(model, chip=chip).hidden.kernel.get_raw_value()
    assert found.sharding == model.hidden.kernel.get_raw_value().sharding
""",
        tmp_path,
    )
    names = {"hwtrain": hwtrain, "nnx": nnx}
    exec(program, names)
    hwtrain.export(tmp_path / "one", names["model"], chip_seed=3)
    assert_same_files(tmp_path / "one", tmp_path / "two")


def test_an_error_of_one_process_is_raised_on_all(in_processes, tmp_path):
    in_processes(
        MODEL
        + SPREAD
        + """
from pathlib import Path
from hwtrain.checkpoint import _tensors as tensors
folder = Path(sys.argv[3]) / "out"
mesh = mesh_of(4, 2)
shared = on(mesh)
export = hwtrain.export

# Arguments.
said = refused(lambda: export(folder / "a", shared, plan, chip_seeds=[me]))
assert "chip seeds should be the same on all processes" in said and "[0]" in said
said = refused(lambda: export(folder / f"a{me}", shared, plan))
assert "the path should be the same" in said
said = refused(lambda: export(folder / "a", shared, plan, graph=7 if me else None))
assert ("graph= takes" in said) and (me == 1 or "process 1 of 2" in said)

# A number, which only the process that writes it sees.
bad = jax.tree.map(lambda leaf: leaf, shared)
bad["params"]["rows"]["bias"] = spread(np.full(8, np.nan, np.float32), mesh)
said = refused(lambda: export(folder / "a", bad, plan))
assert "rows/bias: 8 of 8 numbers are NaN" in said, said
assert said.startswith("HardwareCheckpointError")

# The disk of one process.
usual = tensors.write
def full(path, content):
    if me == 1:
        raise OSError(28, "No space left on device")
    return usual(path, content)
tensors.write = full
said = refused(lambda: export(folder / "a", shared, plan))
assert "could not be written: No space left" in said, said
assert me == 1 or "process 1 of 2" in said
tensors.write = usual

# Ctrl-C on one.
def interrupted(path, content):
    if me == 1:
        raise KeyboardInterrupt
    return usual(path, content)
tensors.write = interrupted
try:
    export(folder / "a", shared, plan)
except (KeyboardInterrupt, ValueError) as error:
    assert (type(error) is KeyboardInterrupt) == (me == 1)
    assert me == 1 or "process 1 of 2: KeyboardInterrupt" in str(error)
tensors.write = usual
jax.experimental.multihost_utils.sync_global_devices("written")
assert not list(folder.iterdir()), list(folder.iterdir())

# What exists is kept.
export(folder / "a", shared, plan)
said = refused(lambda: export(folder / "a", shared, plan))
assert "exists and is never overwritten" in said

# Arrays of its own each process exports for itself.
if me == 0:
    export(folder / "b", variables, plan)
jax.experimental.multihost_utils.sync_global_devices("exported")
said = refused(lambda: export(folder / "b", variables, plan))
assert "let one process export them" in said
""",
        tmp_path,
    )


def test_without_a_common_file_system_the_first_process_writes(in_processes, tmp_path):
    one = of_one()
    hwtrain.export(tmp_path / "one", one["variables"], one["plan"], chip_seed=3)
    in_processes(
        MODEL
        + SPREAD
        + """
from pathlib import Path
folder = Path(sys.argv[3])
hwtrain.export(folder / "two", on(mesh_of(4, 2)), plan, chip_seed=3)
usual = Path.is_dir
Path.is_dir = lambda path: usual(path) and (me == 0 or ".partial" not in str(path))
hwtrain.export(folder / "first", on(mesh_of(4, 2)), plan, chip_seed=3)
""",
        tmp_path,
    )
    for name in ("two", "first"):
        assert_same_files(tmp_path / "one", tmp_path / name)


def test_no_process_holds_more_than_a_few_layers(in_processes, tmp_path):
    """The peak of the resident memory, of a model of 64 layers of 4 MB."""
    in_processes(
        """
        import json, threading, time
        from pathlib import Path
        LAYERS, SIZE = 64, 1024
        chip = hwtrain.Hardware(converter=hwtrain.SinglePairConductanceConverter())
        class Model(nn.Module):
            layers: int
            @nn.compact
            def __call__(self, x):
                for number in range(self.layers):
                    x = nn.Dense(SIZE, use_bias=False, name=f"layer_{number}")(x)
                return x

        mesh = mesh_of(4, 2)
        place = NamedSharding(mesh, P("data", "model"))
        x = jax.ShapeDtypeStruct((1, SIZE), jnp.float32)
        def made(layers):
            analog = hwtrain.analogize(Model(layers), chip)
            shapes = jax.eval_shape(analog.init, jax.random.key(0), x)
            drawn = np.random.default_rng(0).normal(size=(SIZE, SIZE))
            drawn = drawn.astype(np.float32)
            values = jax.tree.map(lambda leaf: jax.make_array_from_callback(
                leaf.shape, place, lambda index: np.array(drawn[index])), shapes)
            return values, hwtrain.plan(analog, shapes, x)

        def resident():
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

        folder = Path(sys.argv[3])
        hwtrain.export(folder / "small", *made(4))  # compiles
        values, plan = made(LAYERS)
        jax.block_until_ready(values)
        before, peak, over = resident(), [0.0], threading.Event()
        def watch():
            while not over.is_set():
                peak[0] = max(peak[0], resident())
                time.sleep(0.002)
        thread = threading.Thread(target=watch)
        thread.start()
        hwtrain.export(folder / "two", values, plan)
        over.set(); thread.join()
        grown = peak[0] - before
        (folder / f"grown-{me}.json").write_text(json.dumps(grown))
        """,
        tmp_path,
    )
    grown = [json.loads((tmp_path / f"grown-{me}.json").read_text()) for me in (0, 1)]
    # 64 layers have 256 MB, with their conductances 768 MB. A layer of 4 MB is on four
    # devices, and there with its conductances a few times more.
    assert max(grown) < 100, grown


def test_a_hook_keeps_an_export_of_the_same_model(in_processes, tmp_path):
    in_processes(
        MODEL
        + SPREAD
        + """
from hwtrain.checkpoint import ExportHook
hook = ExportHook(directory=sys.argv[3] + "/runs", plan=plan, every=2)
shared = on(mesh_of(4, 2))
assert [bool(hook(step, shared)) for step in range(3)] == [True, False, True]
assert hook(2, shared).name == "00000002"
said = refused(lambda: hook(2, jax.tree.map(lambda leaf: 2 * leaf, shared)))
assert "another model, plan or chips" in said, said
""",
        tmp_path,
    )
