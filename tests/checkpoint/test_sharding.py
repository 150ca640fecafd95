"""Checkpoints of arrays on a mesh, read back onto any other."""

import textwrap

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from hwtrain.checkpoint import (
    HardwareCheckpointError,
    HardwareRestore,
    export,
    load,
)
from hwtrain.checkpoint._orbax import HardwareCheckpointHandler


@pytest.fixture
def path(tmp_path, variables, plan):
    return export(tmp_path / "model", variables, plan, chip_seed=7)


def one_device():
    mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, P())


def test_one_sharding_for_all_leaves(path, variables):
    where = one_device()
    found = load(path, sharding=where).variables
    chex.assert_trees_all_equal(found, variables)
    assert {leaf.sharding for leaf in jax.tree.leaves(found)} == {where}


@pytest.mark.parametrize("kind", ["shardings", "arrays", "shapes"])
def test_a_tree_of_shardings(path, variables, kind):
    where = one_device()
    tree = jax.tree.map(lambda leaf: where, variables)
    if kind == "arrays":
        tree = jax.device_put(variables, where)
    if kind == "shapes":
        tree = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), variables
        )
    found = load(path, sharding=tree).variables
    chex.assert_trees_all_equal(found, variables)
    assert {leaf.sharding for leaf in jax.tree.leaves(found)} == {where}


def test_parameters_alone_if_there_is_nothing_else(tmp_path, variables, plan):
    params, where = variables["params"], one_device()
    path = export(tmp_path / "params", params, plan)
    found = load(path, sharding=jax.device_put(params, where)).params
    assert {leaf.sharding for leaf in jax.tree.leaves(found)} == {where}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda tree: tree["params"], "it has none for batch_stats/norm/count"),
        (lambda tree: tree["params"].pop("norm") and tree, "none for params/norm/sca"),
        (
            lambda tree: tree["params"].update(own={"bias": jnp.ones(1)}) or tree,
            "the checkpoint has no params/own/bias",
        ),
        (
            lambda tree: tree["params"]["norm"].update(scale=jnp.ones(3)) or tree,
            r"params/norm/scale has the shape \(10,\) in the checkpoint, but \(3,\)",
        ),
        (
            lambda tree: jax.tree.map(lambda x: np.asarray(x), tree),
            "where .* is put, by .* got a ndarray",
        ),
        (lambda tree: 3, "one jax.sharding.Sharding, or a tree .* got a int"),
    ],
)
def test_shardings_that_do_not_fit(path, variables, change, message):
    with pytest.raises(HardwareCheckpointError, match=message):
        load(path, sharding=change(variables))


def test_a_sharding_of_more_axes_than_a_leaf(path, variables):
    mesh = jax.make_mesh((1, 1), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    wide = NamedSharding(mesh, P("x", "y"))
    said = r"params/norm/scale of shape \(10,\): it is for 2 axes"
    tree = jax.tree.map(lambda leaf: NamedSharding(mesh, P()), variables)
    tree["params"]["norm"]["scale"] = wide
    with pytest.raises(HardwareCheckpointError, match=said) as error:
        load(path, sharding=tree)
    assert "got NamedSharding" in str(error.value)
    with pytest.raises(HardwareCheckpointError, match="does not fit .* 2 axes"):
        load(path, sharding=wide)
    with pytest.raises(HardwareCheckpointError, match=said):
        HardwareCheckpointHandler().restore(path, HardwareRestore(tree))


UNEVEN = textwrap.dedent("""
    import sys
    import jax
    import numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    import hwtrain
    from hwtrain.checkpoint import load
    params = {"norm": {"scale": np.ones(10, np.float32), "wide": np.ones(3)},
              "key": jax.random.split(jax.random.key(0), 6)}
    path = hwtrain.export(sys.argv[1] + "/it", params, hwtrain.Plan(()))
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    def said(**specs):
        tree = {"norm": {"scale": P(), "wide": P()}, "key": P()} | specs
        where = jax.tree.map(lambda spec: NamedSharding(mesh, spec), tree)
        try:
            load(path, sharding=where)
        except ValueError as error:
            assert type(error) is hwtrain.checkpoint.HardwareCheckpointError
            return str(error)
        return "fits"
    for spec, fits in ((P("x"), False), (P("y"), True)):
        found = said(norm={"scale": spec, "wide": P("x")})
        # What JAX would narrow stays on the host, wherever it should go.
        assert (found == "fits") == fits, found
        assert fits or "params/norm/scale of shape (10,): it does not divide" in found
        found = said(key=spec)
        assert (found == "fits") == fits, found
        assert fits or "params/key of shape (6,): it does not divide" in found
    print("equal")
""")


def test_a_sharding_that_divides_unevenly(on_devices, tmp_path):
    on_devices(8, UNEVEN, str(tmp_path))


def test_a_flipped_bit_is_found(path):
    file = path / "tensors/0001.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(HardwareCheckpointError, match="should have SHA-256"):
        load(path, sharding=one_device())


def test_keys_and_wide_numbers(tmp_path, plan):
    key = jax.random.split(jax.random.key(3), 2)
    params = {"dropout": {"key": key, "count": np.int64(2**40)}}
    path = export(tmp_path / "keys", {"params": params}, type(plan)(()))
    for where in (one_device(), SingleDeviceSharding(jax.devices()[0])):
        found = load(path, sharding=where).params["dropout"]
        assert found["key"].sharding.is_equivalent_to(where, 1)
        assert (found["key"] == key).all()
        assert found["count"] == 2**40


MESHES = textwrap.dedent("""
    import sys
    import jax
    import numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    import hwtrain
    from flax import linen as nn
    from hwtrain.checkpoint import load

    everything = sys.argv[2] == "everything"
    read = {"t_s": 60.0, "key": jax.random.key(0)} if everything else {}
    chip = hwtrain.Hardware(
        mapping=hwtrain.MappingParameter(max_input_size=6, weight_scaling_omega=1.0),
        mismatch=hwtrain.MismatchParameter(type="add_normal", std_dev=0.1),
        converter=hwtrain.SinglePairConductanceConverter(),
        noise_model=hwtrain.PCMLikeNoiseModel() if everything else None)

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(8, name="head")(nn.relu(nn.Dense(16, name="hidden")(x)))

    x = np.ones((1, 8), np.float32)
    analog = hwtrain.analogize(Model(), chip)
    variables = analog.init(jax.random.key(0), x)
    plan = hwtrain.plan(analog, variables, x)
    one = hwtrain.export(sys.argv[1] + "/one", variables, plan, chip_seed=7)

    def on(kind, shape):
        mesh = jax.make_mesh(shape, ("x", "y"), axis_types=(kind,) * 2)
        def place(path, leaf):
            both = path[-1].key == "kernel"
            return NamedSharding(mesh, P("x", "y") if both else P())
        return jax.tree_util.tree_map_with_path(place, variables)

    kinds = (AxisType.Auto, AxisType.Explicit) if everything else (AxisType.Auto,)
    for number, kind in enumerate(kinds):
        where = on(kind, (4, 2))
        path = hwtrain.export(f"{sys.argv[1]}/{number}",
                              jax.device_put(variables, where), plan, chip_seed=7)
        for file in one.rglob("*.*"):
            assert (path / file.relative_to(one)).read_bytes() == file.read_bytes()
        # 8 devices, and back on others and on one.
        for other in (on(kind, (2, 2)), on(kind, (8, 1)), None):
            found = load(path, sharding=other)
            chip = found.chip(7, **read)
            wanted = load(one).chip(7, **read)
            for name, layer in variables["params"].items():
                kernel, on_chip = found.params[name]["kernel"], chip[name]["kernel"]
                if other is not None:
                    assert kernel.sharding == other["params"][name]["kernel"]
                    assert on_chip.sharding == kernel.sharding
                    assert kernel.addressable_shards[0].data.size < kernel.size
                np.testing.assert_array_equal(kernel, layer["kernel"])
                np.testing.assert_array_equal(on_chip, wanted[name]["kernel"])
    print("equal")
""")


def test_from_a_mesh_onto_others(on_devices, tmp_path):
    on_devices(8, MESHES, str(tmp_path), "little")


@pytest.mark.nightly
def test_chips_from_any_mesh_onto_any_other(on_devices, tmp_path):
    on_devices(8, MESHES, str(tmp_path), "everything")


MEMORY = textwrap.dedent("""
    import sys, threading, time, os
    from pathlib import Path
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import linen as nn
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
    import hwtrain
    from hwtrain.checkpoint import load

    LAYERS, SIZE = 96, 1024
    chip = hwtrain.Hardware(converter=hwtrain.SinglePairConductanceConverter())

    class Model(nn.Module):
        layers: int
        @nn.compact
        def __call__(self, x):
            for number in range(self.layers):
                x = nn.Dense(SIZE, use_bias=False, name=f"layer_{number}")(x)
            return x

    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    place = NamedSharding(mesh, P("x", "y"))
    def made(layers):
        analog = hwtrain.analogize(Model(layers), chip)
        x = jax.ShapeDtypeStruct((1, SIZE), jnp.float32)
        shapes = jax.eval_shape(analog.init, jax.random.key(0), x)
        drawn = np.random.default_rng(0).normal(size=(SIZE, SIZE)).astype(np.float32)
        values = jax.tree.map(lambda leaf: jax.make_array_from_callback(
            leaf.shape, place, lambda index: np.array(drawn[index])), shapes)
        return values, hwtrain.plan(analog, shapes, x)

    def resident():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def grown(call):
        before, peak, over = resident(), [0.0], threading.Event()
        def watch():
            while not over.is_set():
                peak[0] = max(peak[0], resident())
                time.sleep(0.002)
        thread = threading.Thread(target=watch)
        thread.start()
        found = call()
        over.set(); thread.join()
        return peak[0] - before, found

    folder = sys.argv[1]
    load(hwtrain.export(folder + "/small", *made(3)), sharding=place)  # compiles
    values, plan = made(LAYERS)
    jax.block_until_ready(values)
    # The model has 384 MB, with its conductances 1152 MB; a layer 12 MB, about ten
    # times that while it is converted and written, however many there are.
    written, path = grown(lambda: hwtrain.export(folder + "/large", values, plan))
    assert written < 180, written
    del values
    # Read, the model itself stays, and nothing of the files.
    read, found = grown(lambda: load(path, sharding=place))
    assert read < 384 + 90, read
    print("equal")
""")


@pytest.mark.nightly
def test_one_layer_is_on_the_host_at_a_time(on_devices, tmp_path):
    on_devices(8, MEMORY, str(tmp_path))
