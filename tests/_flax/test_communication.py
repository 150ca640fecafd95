"""What a compiled training step sends between eight devices, beside a plain one's."""

import pytest

SCRIPT = r'''
import collections, math, re
import jax, jax.numpy as jnp, optax
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import hwtrain as hw

WIDTH, LAYERS, BATCH = 128, 2, 64
KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
SENT = re.compile(rf"= (?P<result>.+?) (?P<kind>{KINDS})(?:-start)?\(")
SIZES = {"pred": 1, "bf16": 2, "s64": 8, "u64": 8}

class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        for number in range(LAYERS):
            x = nn.relu(nn.Dense(WIDTH, name=f"layer_{number}")(x))
        return nn.Dense(16, name="head")(x)

noise = hw.WeightModifierParameter(type="add_normal", std_dev=0.1)
clip = hw.WeightClipParameter(type="layer_gaussian", sigma=2.0)
CHIPS = {
    "noise": hw.Hardware(modifier=noise),
    "noise, clip": hw.Hardware(modifier=noise, clip=clip),
}
MESHES = {
    "data": ((8,), ("data",)),
    "rows": ((8,), ("data",)),
    "columns and rows": ((1, 8), ("data", "model")),
    "mixed": ((4, 2), ("data", "model")),
}

def spec(kind, number):
    if kind == "data":
        return P()
    if kind == "rows":
        return P("data", None)
    inner = "data" if kind == "mixed" else None
    return P(inner, "model") if number % 2 == 0 else P("model", inner)

def sent(kind, chip):
    """The number of collectives and their bytes, by kind."""
    shape, names = MESHES[kind]
    mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape))
    on = lambda *axes: NamedSharding(mesh, P(*axes))
    model, x = Net(), jnp.ones((BATCH, WIDTH))
    model = model if chip is None else hw.analogize(model, chip)
    params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    optimizer = optax.sgd(0.1)
    if chip is not None:
        optimizer = hw.optim.hardware_aware(optimizer, hw.plan(model, params, x))
    numbers = {name: number for number, name in enumerate(sorted(params))}

    def place(path, leaf):
        here = leaf.ndim == 2 and leaf.shape[1] == WIDTH
        layout = spec(kind, numbers[path[0].key]) if here else P()
        return jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, layout)
        )

    placed = jax.tree_util.tree_map_with_path(place, params)
    state = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=on()),
        jax.eval_shape(optimizer.init, params),
    )

    def step(params, state, x, y, key):
        def loss(params):
            streams = {} if chip is None else {"rngs": {"mismatch": key}}
            logits = model.apply({"params": params}, x, **streams)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    inputs = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on("data"))
    labels = jax.ShapeDtypeStruct((BATCH,), jnp.int32, sharding=on("data"))
    key = jax.eval_shape(lambda: jax.random.key(0))
    outputs = (jax.tree.map(lambda leaf: leaf.sharding, placed), None)
    program = jax.jit(step, out_shardings=outputs).lower(
        placed, state, inputs, labels, key
    )
    number, size = collections.Counter(), collections.Counter()
    for line in program.compile().as_text().splitlines():
        if found := SENT.search(line):
            number[found["kind"]] += 1
            for dtype, dims in re.findall(r"([a-z]+\d*)\[([\d,]*)\]", found["result"]):
                elements = math.prod(int(n) for n in dims.split(",") if n)
                size[found["kind"]] += SIZES.get(dtype, 4) * elements
    return number, size

for kind in MESHES:
    plain, bytes_of_plain = sent(kind, None)
    assert sum(plain.values()) > 0, kind
    for name, chip in CHIPS.items():
        number, size = sent(kind, chip)
        for other in ("all-gather", "all-to-all", "collective-permute"):
            assert number[other] <= plain[other], (kind, name, other)
            assert size[other] <= bytes_of_plain[other], (kind, name, other)
        # Sums and maxima of weights: a few numbers for each layer.
        few = 64 * (LAYERS + 1)
        assert size["all-reduce"] <= bytes_of_plain["all-reduce"] + few, (kind, name)
print("equal")
'''


@pytest.mark.nightly
def test_noise_and_clips_send_no_array_beside_those_of_a_plain_step(
    on_devices,
):
    on_devices(8, SCRIPT)
