"""What a compiled training step does on eight devices, beside a plain one."""

import pytest

SCRIPT = r"""
import math, re, sys
from typing import NamedTuple
import jax, jax.numpy as jnp, optax
from flax import linen as nn
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import hwtrain as hw

WIDTH, LAYERS, BATCH = 256, 2, int(sys.argv[2])
KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
SENT = re.compile(rf"= (?P<result>.+?) (?:{KINDS})(?:-start)?\(")
PRODUCT = re.compile(r" dot\(|custom_call_target=\"[^\"]*matmul")
SIZES = {"pred": 1, "bf16": 2, "s64": 8, "u64": 8, "c64": 8}
# Sums of tiles, maxima of weights, ranges: beside them, collectives are those of plain.
STATISTICS = 4096

class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        # With a gradient of the first layer's inputs, as behind an embedding.
        x = x * self.param("first", nn.initializers.ones, (WIDTH,))
        for number in range(LAYERS):
            x = nn.relu(nn.Dense(WIDTH, name=f"layer_{number}")(x))
        return x

class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Param(jnp.ones(WIDTH))
        for number in range(LAYERS):
            setattr(self, f"layer_{number}", nnx.Linear(WIDTH, WIDTH, rngs=rngs))

    def __call__(self, x):
        x = x * self.first[...]
        for number in range(LAYERS):
            x = nnx.relu(getattr(self, f"layer_{number}")(x))
        return x

noise = hw.WeightModifierParameter(type="add_normal", std_dev=0.1)
clip = hw.WeightClipParameter(type="layer_gaussian", sigma=2.0)
range_ = hw.InputRangeParameter()
converters = hw.IOParameters(inp_bits=8, out_bits=8, out_bound=10.0, out_noise=0.02)
tiles = hw.MappingParameter(max_input_size=WIDTH // 8, max_output_size=WIDTH // 8)
all_ = dict(modifier=noise, clip=clip, input_range=range_, forward=converters)
# Of each chip, the temporaries allowed beside plain ones. Converters keep inputs and
# masks of their own; tiles do so for each tile of a row or a column. Where a device
# holds as many activations as weights, plain keeps four such arrays; a noisy copy of
# each of the two weights and a quantised input of each layer are as many again.
CHIPS = {
    "noise": (hw.Hardware(modifier=noise), 1.3),
    "noise, clip": (hw.Hardware(modifier=noise, clip=clip), 1.3),
    "range": (hw.Hardware(input_range=range_), 1.1),
    "converters": (hw.Hardware(forward=converters), 2.3),
    "all": (hw.Hardware(**all_), 1.8 if BATCH // 8 < WIDTH else 2.1),
    "tiles": (hw.Hardware(**all_, mapping=tiles), 2.7),
}
MESHES = {
    "data": ((8,), ("data",)),
    "rows": ((8,), ("data",)),
    "columns and rows": ((1, 8), ("data", "model")),
    "mixed": ((4, 2), ("data", "model")),
}

class Found(NamedTuple):
    large: int
    bytes: int
    temporaries: int
    products: int

def layout(kind, path, leaf):
    if leaf.ndim != 2 or "kernel" not in path:
        return P()
    inner = "data" if kind == "mixed" else None
    even = "layer_0" in path
    kernels = P(inner, "model") if even else P("model", inner)
    return {"data": P(), "rows": P("data", None)}.get(kind, kernels)

def linen(chip, x):
    model = Net() if chip is None else hw.analogize(Net(), chip)
    params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    def apply(params, x, key):
        return model.apply({"params": params}, x, rngs={"mismatch": key})
    return apply, params, None if chip is None else hw.plan(model, params, x)

def of_nnx(chip, x):
    model = NnxNet(nnx.Rngs(0))
    if chip is not None:
        model = hw.analogize(model, chip, rngs=nnx.Rngs(mismatch=1))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    def apply(params, x, key):
        del key
        return nnx.merge(graph, params, rest, copy=True)(x)
    return apply, params, None if chip is None else hw.plan(model)

def measured(build, kind, chip):
    shape, names = MESHES[kind]
    mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape))
    def placed(leaf, spec):
        on = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=on)
    apply, params, plan = build(chip, jnp.ones((BATCH, WIDTH)))
    optimizer = optax.sgd(0.1)
    if plan is not None:
        optimizer = hw.optim.hardware_aware(optimizer, plan)
    state = jax.eval_shape(optimizer.init, params)
    state = jax.tree.map(lambda leaf: placed(leaf, P()), state)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: placed(leaf, layout(kind, jax.tree_util.keystr(path), leaf)),
        params,
    )
    def step(params, state, x, y, key):
        def loss(params):
            return jnp.mean(jnp.square(apply(params, x, key) - y))
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    batch = placed(jnp.ones((BATCH, WIDTH)), P("data"))
    key = jax.eval_shape(lambda: jax.random.key(0))
    outputs = (jax.tree.map(lambda leaf: leaf.sharding, params), None)
    program = jax.jit(step, out_shardings=outputs)
    program = program.lower(params, state, batch, batch, key).compile()
    large, size, text = 0, 0, program.as_text()
    for result in SENT.findall(text):
        here = 0
        for dtype, dims in re.findall(r"([a-z]+\d*)\[([\d,]*)\]", result):
            elements = math.prod(int(n) for n in dims.split(",") if n)
            here += SIZES.get(dtype, 4) * elements
        large, size = large + (here > STATISTICS), size + here
    temporaries = program.memory_analysis().temp_size_in_bytes
    return Found(large, size, temporaries, len(PRODUCT.findall(text)))

build = {"linen": linen, "nnx": of_nnx}[sys.argv[1]]
for kind in MESHES:
    plain = measured(build, kind, None)
    assert plain.large > 0 and plain.products > 0, kind
    for name, (chip, temporaries) in CHIPS.items():
        found = measured(build, kind, chip)
        here = (sys.argv[1], kind, name, plain, found)
        assert found.products == plain.products, here
        assert found.bytes <= 1.02 * plain.bytes + STATISTICS * LAYERS, here
        # One for a statistic of weights spread over rows. Tiles may share work that
        # plain layers repeat, and send a part each.
        if name != "tiles":
            assert found.large <= plain.large + 1, here
        # Of more examples than weights, tiles keep as many inputs and outputs.
        if name != "tiles" or BATCH < WIDTH:
            assert found.temporaries <= temporaries * plain.temporaries, here
print("equal")
"""


@pytest.mark.nightly
@pytest.mark.parametrize("framework", ["linen", "nnx"])
@pytest.mark.parametrize("batch", [64, 2048])
def test_a_step_sends_what_a_plain_one_does_and_a_few_statistics(
    on_devices, framework, batch
):
    on_devices(8, SCRIPT, framework, str(batch))
