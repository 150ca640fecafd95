"""Every layer under every Flax transform, in both frameworks.

A case builds a model from a layer, a structure (alone, a scanned stack, a vmapped
ensemble, one layer called twice), wrappers around it, a dtype and a way to run it. All
models map `[B, T, D]` to `[copies, B, T, D]`: the outputs of a stack's layers, of an
ensemble's members or of two calls, all for the same input. By default, a few cases pair
every layer with every transform; `pytest -m nightly` runs all cases.
"""

import dataclasses
import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import meta

import hwtrain as hw
from hwtrain._arrays import paths
from hwtrain._arrays.statistics import absolute_maximum
from hwtrain._flax.weight_side import step_weights

B, T, D, COPIES = 2, 3, 4, 2
CHIP = hw.Hardware(
    modifier=hw.WeightModifierParameter(type="add_normal", std_dev=0.05),
    forward=hw.IOParameters(out_noise=0.05),
    input_range=hw.InputRangeParameter(init_value=1.0, init_from_data=0),
    mapping=hw.MappingParameter(max_input_size=3, weight_scaling_omega=1.0),
)


ORTHOGONAL_FREE = {"recurrent_kernel_init": nn.initializers.lecun_normal()}
"""LAPACK, which makes orthogonal kernels, knows no bfloat16."""


def linen_rnn(cell):
    def make(dtype, **kw):
        options = {**ORTHOGONAL_FREE, **kw}
        if cell is nn.SimpleCell and dtype is not None:
            # Its carry starts in the dtype of the parameters, and ends in another.
            options["carry_init"] = lambda key, shape, _: jnp.zeros(shape, dtype)
        return nn.RNN(cell(D, dtype=dtype, **options))

    return make


LINEN = {
    "dense": lambda **kw: nn.Dense(D, **kw),
    "dense_general": lambda **kw: nn.DenseGeneral((D,), axis=(-1,), **kw),
    "einsum": lambda **kw: nn.Einsum((D, D), "bti,io->bto", **kw),
    "attention": lambda **kw: nn.MultiHeadDotProductAttention(2, **kw),
    "conv": lambda **kw: nn.Conv(D, (2,), **kw),
    "conv_depthwise": lambda **kw: nn.Conv(D, (2,), feature_group_count=D, **kw),
    "conv_transpose": lambda **kw: nn.ConvTranspose(D, (2,), **kw),
    "conv_local": lambda **kw: nn.ConvLocal(D, (2,), **kw),
    "simple": linen_rnn(nn.SimpleCell),
    "gru": linen_rnn(nn.GRUCell),
    "mgu": linen_rnn(nn.MGUCell),
    "lstm": linen_rnn(nn.LSTMCell),
    "optimized_lstm": linen_rnn(nn.OptimizedLSTMCell),
}


class Sequence(nnx.Module):
    """A recurrent layer that makes its carry inside the call.

    `nnx.RNN` would keep its own stream, which `nnx.remat` and `nnx.jit` refuse inside a
    trace, also without hardware.
    """

    def __init__(self, cell, rngs, **kw):
        cell = cell(D, D, rngs=rngs, **ORTHOGONAL_FREE, **kw)
        self.rnn = nnx.RNN(cell, rngs=False)

    def __call__(self, x):
        shape = (*x.shape[:-2], x.shape[-1])
        carry = self.rnn.cell.initialize_carry(shape, rngs=nnx.Rngs(0))
        if isinstance(self.rnn.cell, nnx.SimpleCell):
            # It starts in the dtype of the parameters, and ends in another.
            carry = carry.astype(self.rnn.cell.dtype or carry.dtype)
        return self.rnn(x, initial_carry=carry)


def nnx_rnn(cell):
    return functools.partial(Sequence, cell)


NNX = {
    "dense": lambda rngs, **kw: nnx.Linear(D, D, rngs=rngs, **kw),
    "dense_general": lambda rngs, **kw: nnx.LinearGeneral((D,), (D,), rngs=rngs, **kw),
    "einsum": lambda rngs, **kw: nnx.Einsum("bti,io->bto", (D, D), rngs=rngs, **kw),
    "attention": lambda rngs, **kw: nnx.MultiHeadAttention(
        2, D, decode=False, rngs=rngs, **kw
    ),
    "conv": lambda rngs, **kw: nnx.Conv(D, D, (2,), rngs=rngs, **kw),
    "conv_depthwise": lambda rngs, **kw: nnx.Conv(
        D, D, (2,), feature_group_count=D, rngs=rngs, **kw
    ),
    "conv_transpose": lambda rngs, **kw: nnx.ConvTranspose(D, D, (2,), rngs=rngs, **kw),
    "simple": nnx_rnn(nnx.SimpleCell),
    "gru": nnx_rnn(nnx.GRUCell),
    "lstm": nnx_rnn(nnx.LSTMCell),
    "optimized_lstm": nnx_rnn(nnx.OptimizedLSTMCell),
    "lora": lambda rngs, **kw: nnx.LoRALinear(D, D, lora_rank=2, rngs=rngs, **kw),
}
LAYERS = {"linen": LINEN, "nnx": NNX}

STRUCTURES = ("alone", "scan", "vmap", "twice")
WRAPPERS = ("inner_jit", "remat")
DTYPES = {
    "float32": (None, jnp.float32),
    "bfloat16": (jnp.bfloat16, jnp.bfloat16),
    "mixed": (jnp.bfloat16, jnp.float32),
}
RUNS = {
    "linen": ("apply", "method", "bind", "capture", "nested", "accumulate"),
    "nnx": ("apply", "method", "nested", "accumulate"),
}


@dataclasses.dataclass(frozen=True)
class Case:
    framework: str
    layer: str
    structure: str = "alone"
    wrappers: tuple[str, ...] = ()
    dtype: str = "float32"
    boxed: bool = False
    run: str = "apply"

    def __str__(self):
        names = (self.structure, *self.wrappers, self.dtype, self.run)
        boxed = ("partitioned",) if self.boxed else ()
        return "-".join((self.framework, self.layer, *names, *boxed))

    @property
    def axes(self):
        """Names of the kernel's axes, of which only the last is sharded."""
        return (*[None] * (2 if "conv" in self.layer else 1), "model")

    @property
    def options(self):
        dtype, param_dtype = DTYPES[self.dtype]
        options = {"dtype": dtype, "param_dtype": param_dtype}
        if self.boxed and self.framework == "linen":
            init = nn.initializers.lecun_normal()
            options["kernel_init"] = nn.with_partitioning(init, self.axes)
        elif self.boxed:
            init = nnx.initializers.lecun_normal()
            options["kernel_init"] = nnx.with_partitioning(init, self.axes)
        return options


class LinenBlock(nn.Module):
    case: Case

    @nn.compact
    def __call__(self, x):
        layer = LINEN[self.case.layer](**self.case.options)
        return layer(x, x) if self.case.layer == "attention" else layer(x)


@functools.cache
def jitted_block():
    return nn.jit(LinenBlock)  # one class: its cache of traces is what can go wrong


class LinenModel(nn.Module):
    case: Case

    @nn.compact
    def __call__(self, x):
        case = self.case
        block = LinenBlock
        for wrapper in case.wrappers:
            block = jitted_block() if wrapper == "inner_jit" else nn.remat(block)
        stacked = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        if case.structure == "scan":

            class Body(nn.Module):
                @nn.compact
                def __call__(self, x, _):
                    return x, block(case)(x)

            return nn.scan(Body, length=COPIES, **stacked)(name="layers")(x, None)[1]
        if case.structure == "vmap":
            ensemble = nn.vmap(block, in_axes=None, axis_size=COPIES, **stacked)
            return ensemble(case, name="members")(x)
        layer = block(case, name="layer")
        calls = COPIES if case.structure == "twice" else 1
        return jnp.stack([layer(x) for _ in range(calls)])

    def encode(self, x):
        return self(x)


class LinenOuter(nn.Module):
    case: Case
    hardware: hw.Hardware | None

    @nn.compact
    def __call__(self, x):
        inner = LinenModel(self.case, name="inner")
        if self.hardware is not None:
            inner = hw.analogize(inner, self.hardware)
        return inner(x)


class NnxModel(nnx.Module):
    def __init__(self, case, rngs):
        self.case = case
        make = functools.partial(NNX[case.layer], **case.options)
        if case.structure in ("scan", "vmap"):
            stack = nnx.vmap(make, in_axes=0, out_axes=0)
            self.layer = stack(rngs.split(COPIES))
        else:
            self.layer = make(rngs)

    def __call__(self, x):
        def call(layer, x):
            y = layer(x)
            return y

        for wrapper in self.case.wrappers:
            call = nnx.jit(call) if wrapper == "inner_jit" else nnx.remat(call)
        if self.case.structure == "vmap":
            return nnx.vmap(call, in_axes=(0, None), out_axes=0)(self.layer, x)
        if self.case.structure == "scan":

            def body(x, layer):
                return x, call(layer, x)

            carry = (nnx.Carry, 0)
            return nnx.scan(body, in_axes=carry, out_axes=carry)(x, self.layer)[1]
        calls = COPIES if self.case.structure == "twice" else 1
        return jnp.stack([call(self.layer, x) for _ in range(calls)])

    def encode(self, x):
        return self(x)


class NnxOuter(nnx.Module):
    def __init__(self, inner):
        self.inner = inner

    def __call__(self, x):
        return self.inner(x)


def inputs(case, seed=0):
    dtype = DTYPES[case.dtype][0] or jnp.float32
    return jax.random.normal(jax.random.key(seed), (B, T, D)).astype(dtype)


def linen_case(case):
    """Returns plain and analog params, and `f(params, x, key)` in a mode."""
    if case.run == "nested":
        plain, analog = LinenOuter(case, None), LinenOuter(case, CHIP)
    else:
        plain = LinenModel(case)
        analog = hw.analogize(plain, CHIP)
    x, key = inputs(case), jax.random.key(0)
    params = jax.jit(
        lambda key: {
            "plain": plain.init(key, x)["params"],
            "analog": analog.init(key, x)["params"],
        }
    )(key)
    if case.run == "apply":
        shapes = jax.eval_shape(analog.init, key, x)["params"]
        assert jax.tree.structure(shapes) == jax.tree.structure(params["analog"])
        assert shapes_of(shapes) == shapes_of(params["analog"])

    def function(mode):
        if case.run == "nested":
            assert mode == "train"
            model = analog
        else:
            model = hw.eval_mode(analog) if mode == "eval" else analog

        def call(params, x, key):
            variables, rngs = {"params": params}, {"mismatch": key}
            if case.run == "bind":
                return model.bind(variables, rngs=rngs)(x)
            if case.run == "capture":
                y, seen = model.apply(
                    variables, x, rngs=rngs, capture_intermediates=True
                )
                assert "intermediates" in seen
                return y
            method = "encode" if case.run == "method" else None
            return model.apply(variables, x, rngs=rngs, method=method)

        return call

    if case.run == "nested":
        return params, function, None
    adopted = hw.adopt(analog, params["plain"], x)
    assert shapes_of(adopted) == shapes_of(params["analog"])
    return params, function, hw.plan(analog, params["analog"], x)


def nnx_case(case):
    """The same for NNX."""
    plain = NnxModel(case, nnx.Rngs(0))
    params = {"plain": nnx.to_pure_dict(nnx.state(plain, nnx.Param))}
    if case.run == "apply":
        shapes = nnx.eval_shape(lambda: hw.analogize(NnxModel(case, nnx.Rngs(0)), CHIP))
        shapes = nnx.to_pure_dict(nnx.state(shapes, nnx.Param))
    analog = hw.analogize(plain, CHIP, rngs=nnx.Rngs(mismatch=0))
    plan = hw.plan(analog)
    model = NnxOuter(analog) if case.run == "nested" else analog
    state = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    params["analog"] = state
    if case.run == "apply":
        assert shapes_of(shapes) == shapes_of(state)

    def function(mode):
        if mode == "eval":
            hw.eval_mode(analog)
        graphdef, own, rest = nnx.split(model, nnx.Param, ...)
        hw.train_mode(analog)

        def call(params, x, key):
            filled = jax.tree.map(lambda leaf: leaf, own)
            nnx.replace_by_pure_dict(filled, params)
            called = nnx.merge(graphdef, filled, rest)
            inner = called.inner if case.run == "nested" else called
            inner.analog_stream = nnx.RngStream(key, tag="mismatch")
            return called.encode(x) if case.run == "method" else called(x)

        return call

    if case.run == "nested":
        params["plain"] = {"inner": params["plain"]}
        return params, function, None
    adopted = hw.adopt(analog, params["plain"])
    assert shapes_of(adopted) == shapes_of(state)
    return params, function, plan


def shapes_of(tree):
    return {
        p: (v.shape, v.dtype)
        for p, v in paths.leaves(jax.eval_shape(meta.unbox, tree)).items()
    }


def bits(tree):
    return {path: np.asarray(v) for path, v in paths.leaves(meta.unbox(tree)).items()}


def check(case):
    """Runs a case and checks what must hold in every one."""
    # NNX shards its variables at once, for which it asks for a mesh.
    auto = jax.sharding.AxisType.Auto
    with jax.set_mesh(jax.make_mesh((1,), ("model",), axis_types=(auto,))):
        check_on_mesh(case)


def check_on_mesh(case):
    params, function, plan = {"linen": linen_case, "nnx": nnx_case}[case.framework](
        case
    )
    x, call = inputs(case), function("train")

    # The user's parameters keep their initial values.
    own = bits(hw.strip(meta.unbox(params["analog"])))
    for path, value in bits(params["plain"]).items():
        np.testing.assert_array_equal(own.pop(path), value, err_msg=path)
    assert not own

    # Noise is on, fresh per key, and nothing recompiles at the second step.
    def loss(params, x, key):
        y = call(params, x, key).astype(jnp.float32)
        return jnp.mean(jnp.square(y)), y

    tx = optax.sgd(0.0)
    if case.run == "accumulate":
        tx = optax.MultiSteps(tx, 2)
    traces = []

    @jax.jit
    def step(params, state, x, key):
        traces.append(1)
        (_, y), gradient = jax.value_and_grad(loss, has_aux=True)(params, x, key)
        updates, state = tx.update(gradient, state, params)
        return y, gradient, optax.apply_updates(params, updates), state

    analog, state = meta.unbox(params["analog"]), tx.init(meta.unbox(params["analog"]))
    outputs = []
    for seed in (0, 1, 0):
        y, gradient, analog, state = step(analog, state, x, jax.random.key(seed))
        outputs.append(np.asarray(y))
    assert len(traces) == 1
    np.testing.assert_array_equal(outputs[0], outputs[2])
    copies = 1 if case.structure == "alone" else COPIES
    assert outputs[0].shape == (copies, B, T, D)
    fresh = np.abs(outputs[0] - outputs[1]).reshape(copies, -1).max(1)
    assert (fresh > 1e-4).all()

    # Gradients are finite, reach every kernel, and carry the statistics of each range.
    for path, leaf in bits(gradient).items():
        assert np.isfinite(leaf.astype(np.float32)).all(), path
        if path.endswith("probe"):
            assert (leaf[..., 0] > 0).all(), path
        elif path.endswith("kernel") and "lora" not in case.layer:
            assert np.abs(leaf.astype(np.float32)).max() > 0, path
    if case.structure != "alone":

        def draw(seed):
            return np.asarray(step(analog, state, x, jax.random.key(seed))[0])

        check_uncorrelated(case, draw)
    if plan is not None and case.structure == "scan":
        check_scales(plan, meta.unbox(params["analog"]))


def check_uncorrelated(case, draw):
    """Copies get the same input, so equal noise would give equal deviations."""
    count = 32
    deviation = np.stack([draw(10 + key) for key in range(count)]).astype(np.float32)
    deviation = deviation - deviation.mean(0)  # [keys, copies, B, T, D]
    first, second = deviation[:, 0], deviation[:, 1]
    if case.structure == "twice":
        # One layer has one weight noise a step; its periphery draws at each call.
        assert np.abs(first - second).max() > 1e-4
        return
    # Elements of one key share the weight noise, so count only keys times columns.
    correlation = np.corrcoef(first.ravel(), second.ravel())[0, 1]
    assert abs(correlation) < 5 / np.sqrt(count * D)


def check_scales(plan, params):
    """Each layer of a stack has the noise of its own largest weight."""
    values = paths.leaves(params)

    def scaled(path, leaf):
        if path not in plan:
            return leaf
        factor = np.array([1.0, 100.0]).reshape(-1, *[1] * (leaf.ndim - 1))
        return (leaf.astype(jnp.float32) * factor).astype(jnp.float32)

    large = paths.map_leaves(scaled, params)
    noisy = jax.jit(lambda p, key: step_weights(p, plan, "train", key)[0])
    noisy = paths.leaves(noisy(large, jax.random.key(3)))
    for path, weight in plan.items():
        kernel = paths.leaves(large)[path]
        off = np.abs(weight.to_matrix(noisy[path] - kernel))
        largest = absolute_maximum(
            weight.to_matrix(kernel), weight.row_sizes, per_column=False
        )
        if not np.any(largest):  # a factor of LoRA that starts at zero
            continue
        sigma = 0.05 * np.repeat(largest, weight.row_sizes, axis=-2)
        # A scale shared by the stack would be off by a factor of 100.
        unit = np.sqrt(np.square(off / sigma).reshape(COPIES, -1).mean(1))
        np.testing.assert_array_less(abs(np.log(unit)), np.log(4))
        assert values[path].shape[0] == COPIES


def singles():
    """Yields one case for every layer, transform and framework."""
    for framework, layers in LAYERS.items():
        for layer in layers:
            case = functools.partial(Case, framework, layer)
            yield from (case(structure=name) for name in STRUCTURES)
            for name in WRAPPERS:
                yield case(wrappers=(name,))
                yield case(structure="scan", wrappers=(name,))
            yield from (case(dtype=name) for name in ("bfloat16", "mixed"))
            yield from (case(run=name) for name in RUNS[framework][1:])
            if "attention" not in layer:
                yield case(boxed=True)


def cover():
    """Yields few cases that pair every layer with every transform in some framework."""
    bundles = (
        {"structure": "scan", "wrappers": ("inner_jit", "remat"), "dtype": "mixed"},
        {"structure": "vmap", "run": "method", "dtype": "bfloat16"},
        {"structure": "twice", "run": "accumulate", "boxed": True},
        {"run": "nested", "wrappers": ("inner_jit",)},
    )
    linen_only = ({"run": "bind"}, {"run": "capture"})
    for layer in sorted({*LINEN, *NNX}):
        for bundle in (*bundles, *linen_only):
            both = [name for name in LAYERS if layer in LAYERS[name]]
            if bundle in linen_only:
                both = [name for name in both if name == "linen"]
            if not both:
                continue
            # Either framework, by a number that no change of the order changes.
            number = zlib.crc32(f"{layer}{bundle}".encode())
            options = dict(bundle)
            if layer == "attention":
                options.pop("boxed", None)
            yield Case(both[number % len(both)], layer, **options)


SELDOM = (
    *("gru", "mgu", "lstm", "optimized_lstm"),
    *("conv_local", "conv_depthwise", "attention"),
)
"""Layers that multiply as others do, the cells as `simple`: not in the default run."""
GATED = (
    ("optimized_lstm", "scan", "apply"),
    ("gru", "vmap", "method"),
    ("optimized_lstm", "twice", "accumulate"),
    ("lstm", "alone", "nested"),
    ("gru", "alone", "capture"),
    ("gru", "alone", "bind"),
)
"""But of each transform one cell with gates is, those whose programs are smallest."""
STOOD_FOR = (("simple", "scan", "apply"),)
"""Has two arrays and one carry, as the optimised LSTM there has two."""


def remats(case):
    return "remat" in case.wrappers


def marks(case):
    # Optimised, XLA may merge what is computed again with what was computed before: for
    # one layer by default; gradients under remat are in test_places.py.
    merges = remats(case) and case.layer == "dense"
    found = [pytest.mark.optimised] if merges else []
    place = (case.layer, case.structure, case.run)
    if place in STOOD_FOR or (case.layer in SELDOM and place not in GATED):
        found.append(pytest.mark.nightly)
    return found


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=marks(case))
        for case in sorted(cover(), key=lambda case: (remats(case), case.layer))
    ],
    ids=str,
)
def test_a_layer_under_transforms(case):
    check(case)


@pytest.mark.nightly
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[pytest.mark.optimised] if remats(case) else [])
        for case in sorted(singles(), key=remats)
    ],
    ids=str,
)
def test_a_layer_under_a_transform(case):
    check(case)


def test_the_cover_pairs_every_layer_with_every_transform():
    seen = set()
    for case in cover():
        names = (case.structure, *case.wrappers, case.dtype, case.run)
        seen |= {(case.layer, name) for name in names}
        seen |= {(case.layer, "boxed")} if case.boxed else set()
    transforms = {*STRUCTURES, *WRAPPERS, *DTYPES, *RUNS["nnx"], "boxed"}
    for layer in {*LINEN, *NNX}:
        for name in transforms:
            if (layer, name) != ("attention", "boxed"):
                assert (layer, name) in seen
        for name in ("bind", "capture"):
            assert layer not in LINEN or (layer, name) in seen


def test_each_transform_meets_a_cell_with_gates_by_default():
    default = [case for case in cover() if pytest.mark.nightly not in marks(case)]
    met = {(case.layer, case.structure, case.run) for case in default}
    assert met >= set(GATED)
    gated = [case for case in default if case.layer in {layer for layer, *_ in GATED}]
    gated = {(case.structure, case.wrappers, case.dtype, case.run) for case in gated}
    assert gated == {(c.structure, c.wrappers, c.dtype, c.run) for c in cover()}
    assert any(case.boxed for case in default if case.layer == "optimized_lstm")
