"""What fails in one process only: all raise, and none waits for the others."""

import pytest

pytestmark = [pytest.mark.nightly, pytest.mark.optimised]

MODEL = """
import optax
import orbax.checkpoint as ocp
from pathlib import Path
from hwtrain.checkpoint import ExportHook, HardwareRestore, HardwareSave, load
from hwtrain.checkpoint import _items as items
from hwtrain.evaluate import assert_active

CHIP = hwtrain.Hardware(
    modifier=hwtrain.WeightModifierParameter(type="add_normal", std_dev=0.1),
    mapping=hwtrain.MappingParameter(max_input_size=8, weight_scaling_omega=1.0),
    input_range=hwtrain.InputRangeParameter(),
    mismatch=hwtrain.MismatchParameter(type="add_normal", std_dev=0.1),
    converter=hwtrain.SinglePairConductanceConverter())

class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.WeightNorm(nn.Dense(16, name="hidden"))(x)
        return nn.Dense(8, name="head")(nn.relu(x))

class Plain(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(8, name="head")(nn.relu(nn.Dense(16, name="hidden")(x)))

folder = Path(sys.argv[3])
mesh = mesh_of(4, 2)
x = np.random.default_rng(0).normal(size=(8, 12)).astype(np.float32)
split = spread(x, mesh, "data")
narrow = spread(x[:, :11], mesh, "data")

def made(model):
    analog = hwtrain.analogize(model, CHIP)
    variables = jax.device_get(analog.init(jax.random.key(1), x))
    shared = jax.tree_util.tree_map_with_path(lambda path, leaf: spread(
        leaf, mesh, *((None, "model") if leaf.ndim == 2 and path[-1].key == "kernel"
                      else ())), variables)
    return analog, variables, shared, hwtrain.plan(analog, variables, x)

def one(mine, others):
    return mine if me == 1 else others

def failed(text, call):
    try:
        call()
    except Exception as error:
        said = str(error) or type(error).__name__
    else:
        raise AssertionError(f"nothing was raised instead of {text!r}")
    assert text in said, said
    assert me == 1 or "process 1" in said, said
    print("both:", text, flush=True)

def fails(*args):
    if me == 1:
        raise MemoryError("no room")

def broken(value, after):
    if not after:
        fails()
    yield value
    fails()

def failing(usual):
    def call(*args, **kwargs):
        found = usual(*args, **kwargs)
        fails()
        return found
    return call
"""
"""Process 1 fails in what follows."""


def test_export(in_processes, tmp_path):
    in_processes(
        MODEL
        + """
analog, variables, shared, plan = made(Plain())
def export(variables=shared, plan=plan, path=folder / "a", **kwargs):
    return hwtrain.export(path, variables, plan, **kwargs)

failed("no room", lambda: export(chip_seeds=broken(3, after=True)))
failed("no room", lambda: export(report=fails))
failed("expected where to write to", lambda: export(path=one(None, folder / "a")))
usual = items.Item.on_host
items.Item.on_host = failing(usual)
failed("no room", export)
items.Item.on_host = usual

# One process has a shape, or an array of its own, in place of the shared one.
def changed(leaf):
    found = jax.tree.map(lambda leaf: leaf, shared)
    layer = found["params"]["hidden"]
    layer["kernel"] = one(leaf, layer["kernel"])
    return found
kernel = variables["params"]["hidden"]["kernel"]
failed("shardings of the variables should be the same", lambda: export(changed(kernel)))
shape = jax.ShapeDtypeStruct(kernel.shape, kernel.dtype)
failed("shardings of the variables should be the same", lambda: export(changed(shape)))

assert not folder.joinpath("a").exists()
export()

# The folder of a hook, and a file that one process reads otherwise.
hook = ExportHook(directory=folder / "runs", plan=plan)
hook(0, shared)
usual = Path.exists
Path.exists = failing(usual)
failed("no room", lambda: hook(0, shared))
Path.exists = usual
moved = jax.tree.map(lambda leaf: leaf, shared)
moved["params"]["head"]["bias"] = spread(np.ones(8, np.float32), mesh)
if me == 1:
    load_as, other = ExportHook._check_same.__globals__["load"], folder / "other"
    ExportHook._check_same.__globals__["load"] = lambda path: load_as(other)
hwtrain.export(folder / "other", moved, plan)
failed("another model", lambda: hook(0, shared))
""",
        tmp_path,
    )


def test_derived_weights(in_processes, tmp_path):
    in_processes(
        MODEL
        + """
from hwtrain._flax import materializing
analog, variables, shared, plan = made(Model())
export = lambda **kwargs: hwtrain.export(folder / "a", shared, plan, **kwargs)
failed("call should be the same", lambda: export(
    analog=one(None, analog), example=one((), (split,))))
failed("number of arguments", lambda: export(analog=analog, example=one((), (split,))))
failed("(12, 16)", lambda: export(analog=analog, example=(one(narrow, split),)))
materialize = hwtrain.materialize
failed("(12, 16)", lambda: materialize(analog, shared, one(narrow, split)))
failed("known only by a call", lambda: materialize(analog, shared, *one((), (split,))))
short = spread(x[:4], mesh, "data")
failed("float32[4, 12]", lambda: materialize(analog, shared, one(short, split)))
done = hwtrain.materialize(analog, shared, split)
failed("the plan should be the same", lambda: materialize(
    analog, one(done, shared), split))
other = hwtrain.analogize(Model(), hwtrain.Hardware(converter=CHIP.converter))
failed("the plan should be the same", lambda: materialize(
    one(other, analog), shared, split))
usual = materializing.placed_as
materializing.placed_as = failing(usual)
failed("no room", lambda: materialize(analog, shared, split))
materializing.placed_as = usual
export(analog=analog, example=(split,))
""",
        tmp_path,
    )


def test_ranges_and_leaves(in_processes, tmp_path):
    in_processes(
        MODEL
        + """
analog, variables, shared, plan = made(Plain())
calibrate = hwtrain.calibrate
failed("no room", lambda: calibrate(analog, shared, broken(split, after=False)))
failed("no room", lambda: calibrate(analog, shared, broken(split, after=True)))
failed("at least one batch", lambda: calibrate(analog, shared, one([], [split])))
failed("method must be", lambda: calibrate(analog, shared, [split],
                                           method=one("most", "max")))
failed("11", lambda: calibrate(analog, shared, [one(narrow, split)]))
failed("11", lambda: calibrate(analog, shared, [split, one(narrow, split)]))
short = spread(x[:4], mesh, "data")
failed("float32[4, 12]", lambda: calibrate(analog, shared, [split, one(short, split)]))
def forward(apply, batch):
    fails()
    return apply(batch)
failed("no room", lambda: calibrate(analog, shared, [split], forward=forward))
# A leaf of each process's own, which is not a number on one.
own = jax.tree.map(lambda leaf: leaf, shared)
own["params"]["head"]["bias"] = np.full(8, one(np.nan, 0.0), np.float32)
failed("head/bias: 8 of 8", lambda: calibrate(analog, own, [split]))

plain = hwtrain.strip(shared["params"], plan)
adopt = hwtrain.adopt
failed("11", lambda: adopt(analog, plain, one(narrow, split)))
other = hwtrain.analogize(Plain(), hwtrain.Hardware())
failed("the plan should be the same", lambda: adopt(one(other, analog), plain, split))
own = hwtrain.strip(variables["params"], plan)
failed("head/bias: float32[8]", lambda: adopt(analog, {
    **plain, "head": one(own["head"], plain["head"])}, split))
adopt(analog, plain, split)
""",
        tmp_path,
    )


def test_assert_active(in_processes, tmp_path):
    in_processes(
        MODEL
        + """
from hwtrain.evaluate import _watching as watching
analog, variables, shared, plan = made(Plain())
failed("11", lambda: assert_active(analog, shared, one(narrow, split)))
failed("known only by", lambda: assert_active(analog, shared, *one((), (split,))))
short = spread(x[:4], mesh, "data")
failed("float32[4, 12]", lambda: assert_active(analog, shared, one(short, split)))
usual = watching.gathered
watching.gathered = failing(usual)
failed("no room", lambda: assert_active(analog, shared, split))
watching.gathered = usual
assert_active(analog, shared, split)
""",
        tmp_path,
    )


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_orbax(in_processes, tmp_path, kind):
    in_processes(
        MODEL
        + """
analog, variables, shared, plan = made(Plain())
options = ocp.CheckpointManagerOptions(
    enable_async_checkpointing=sys.argv[4] == "async")
hardware = lambda **kwargs: HardwareSave(shared, plan, **kwargs)
failed("a chip seed is a whole", lambda: hardware(chip_seeds=[one("a", 1)]))
def save(manager):
    manager.save(0, args=ocp.args.Composite(hardware=hardware()))
    manager.wait_until_finished()
usual = items.Item.on_host
items.Item.on_host = failing(usual)
manager = ocp.CheckpointManager(folder / "failed", options=options)
failed("no room", lambda: save(manager))
manager.close()
items.Item.on_host = usual

with ocp.CheckpointManager(folder / "run", options=options) as manager:
    save(manager)
    from hwtrain.checkpoint import _orbax
    usual = _orbax.load
    _orbax.load = failing(usual)
    everywhere = NamedSharding(mesh, P())
    for sharding in (everywhere, jax.tree.map(lambda leaf: everywhere, shared), shared):
        args = ocp.args.Composite(hardware=HardwareRestore(sharding))
        failed("no room", lambda: manager.restore(0, args=args))
    _orbax.load = usual
    manager.restore(0, args=args)
""",
        tmp_path,
        kind,
    )


def test_arrays_of_one_process(in_processes, tmp_path):
    """The process that has them calls by itself; the others refuse at once."""
    in_processes(
        MODEL
        + """
analog, variables, shared, plan = made(Plain())
own = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("model",))
def on_own(array):
    array = np.asarray(array)
    return jax.make_array_from_callback(
        array.shape, NamedSharding(own, P()), lambda index: array[index],
        dtype=array.dtype)
there = jax.tree.map(on_own, variables)
said = "is on devices of the processes [0] only, of 2, and this is process 1"
for number, call in enumerate([
        lambda: hwtrain.export(folder / "a", there, plan),
        lambda: hwtrain.calibrate(analog, there, [on_own(x)]),
        lambda: hwtrain.adopt(analog, there["params"], on_own(x)),
        lambda: hwtrain.materialize(analog, there, on_own(x)),
        lambda: assert_active(analog, there, on_own(x))]):
    if me == 0:
        call()
    else:
        assert said in refused(call), number
# Beside arrays of both, all raise.
mixed = jax.tree.map(lambda leaf: leaf, shared)
mixed["params"]["head"]["bias"] = there["params"]["head"]["bias"]
failed("params/head/bias " + said, lambda: hwtrain.export(
    folder / "b", mixed, plan))
failed("params/head/bias is on devices", lambda: hwtrain.calibrate(
    analog, mixed, [split]))
""",
        tmp_path,
    )
