"""Kernels that are transformed between storage and use are followed.

They are derived weights, or are refused by name if they cannot be followed.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from flax.linen.dtypes import promote_dtype

import hwtrain

HARDWARE = hwtrain.Hardware(
    modifier=hwtrain.WeightModifierParameter(type="add_normal", std_dev=0.1)
)
X = jnp.ones((2, 6))
IMAGE = jnp.ones((1, 5, 5, 6))
MASK = np.tri(6, 4, dtype=np.float32) * np.ones((3, 3, 1, 1), np.float32)
NORMS = ("WeightNorm", "SpectralNorm")


class Linen(nn.Module):
    norm: str

    @nn.compact
    def __call__(self, x):
        more = {"update_stats": False} if self.norm == "SpectralNorm" else {}
        x = getattr(nn, self.norm)(nn.Dense(4, name="inner"), name="norm")(x, **more)
        return nn.Dense(3, name="head")(x)


class OfNnx(nnx.Module):
    def __init__(self, norm, rngs):
        self.norm = getattr(nnx, norm)(nnx.Linear(6, 4, rngs=rngs), rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.norm(x))


def analog(framework, norm, hardware):
    if framework == "linen":
        model = hwtrain.analogize(Linen(norm), hardware)
        variables = model.init(jax.random.key(0), X)
        return hwtrain.plan(model, variables, X)
    rngs = nnx.Rngs(0, mismatch=1)
    return hwtrain.plan(hwtrain.analogize(OfNnx(norm, rngs), hardware, rngs=rngs))


@pytest.mark.sampled
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_a_kernel_that_is_normalised_at_each_call_is_derived(framework, norm):
    plan = analog(framework, norm, HARDWARE)
    inner = "inner" if framework == "linen" else "norm/layer_instance"
    why = f"a {norm} computes that from it at every call"
    derived = {path: weight.derived for path, weight in plan.items()}
    assert derived == {"head/kernel": None, f"{inner}/kernel": why}
    assert why in str(plan)


CLIP = hwtrain.WeightClipParameter(type="layer_gaussian", sigma=2.0)
STORED_ALONE = {
    "clip": {"clip": CLIP},
    "a fixed clip": {
        "clip": hwtrain.WeightClipParameter(type="fixed_value", fixed_value=1.0)
    },
    "a learned clip": {
        "clip": hwtrain.WeightClipParameter(type="learnable_per_channel")
    },
    "remap": {"remap": hwtrain.WeightRemapParameter(type="layerwise_symmetric")},
    "clip and remap": {
        "clip": CLIP,
        "remap": hwtrain.WeightRemapParameter(type="layerwise_symmetric"),
    },
    "drift": {"drift": hwtrain.SimpleDriftParameter(nu=0.1, dt_s=1.0)},
}


@pytest.mark.sampled
@pytest.mark.parametrize("framework", ["linen", "nnx"])
@pytest.mark.parametrize("what", STORED_ALONE)
def test_what_acts_on_stored_weights_alone_is_refused(what, framework):
    hardware = hwtrain.Hardware(**STORED_ALONE[what])
    parts = " and ".join(STORED_ALONE[what])
    with pytest.raises(ValueError, match=f"gives it {parts}, which would act") as error:
        analog(framework, "WeightNorm", hardware)
    # The ways out that the message names.
    inner = "inner" if framework == "linen" else "norm/layer_instance"
    off = {name: None for name in STORED_ALONE[what]}
    given = ", ".join(f"{name}=None" for name in off)
    assert f"Rule({inner!r}, dataclasses.replace(hardware, {given}))" in str(
        error.value
    )
    for other, found in ((dataclasses.replace(hardware, **off), 2), (None, 1)):
        rules = [hwtrain.Rule(inner, other), hwtrain.Rule(".*", hardware)]
        assert len(analog(framework, "WeightNorm", rules)) == found


def linen_plan(model, *example, hardware=HARDWARE):
    variables = jax.eval_shape(model.init, jax.random.key(0), *example)
    return hwtrain.plan(hwtrain.analogize(model, hardware), variables, *example)


# What stands between the stored array and the layer, in every way that Linen offers.


def standardised(w):
    return (w - jnp.mean(w, 0)) / jnp.std(w, 0)


CHANGES = {
    "scaled": lambda w: 0.5 * w,
    "standardised": standardised,
    "masked": lambda w: jnp.where(jnp.arange(w.shape[-1]) > 1, w, 0),
    "turned": lambda w: w[::-1],
    "transposed": lambda w: w.T,
    "permuted": lambda w: w[jnp.array([*range(1, w.shape[0]), 0])],
    "rolled": lambda w: jnp.roll(w, 1, 0),
    "rotated": lambda w: w @ jnp.eye(w.shape[-1]),
    "padded": lambda w: jnp.pad(w[:-1], [(0, 1)] + [(0, 0)] * (w.ndim - 1)),
    "truncated": lambda w: w.astype(jnp.int8).astype(w.dtype),
    "in eight bits": lambda w: w.astype(jnp.float8_e4m3fn).astype(w.dtype),
    "straight through": lambda w: w + jax.lax.stop_gradient(jnp.round(w) - w),
    "in a jit": jax.jit(standardised),
    "in a loop": lambda w: jax.lax.fori_loop(0, 3, lambda _, w: w * 0.9, w),
    "in a scan": lambda w: jax.lax.scan(lambda w, _: (w * 2, None), w, length=3)[0],
    "in a while": lambda w: jax.lax.while_loop(
        lambda carry: carry[0] < 3, lambda carry: (carry[0] + 1, carry[1] * 2), (0, w)
    )[1],
    "in a choice": lambda w: jax.lax.cond(w[(0,) * w.ndim] > 0, lambda w: w, abs, w),
    "in a callback": lambda w: jax.pure_callback(
        lambda w: w, jax.ShapeDtypeStruct(w.shape, w.dtype), w
    ),
    "replaced": jnp.ones_like,
}


class Cell(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.RNN(nn.OptimizedLSTMCell(4), name="rnn")(x)


class Attend(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Embed(9, 6, name="embed").attend(x)


class LookUp(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Embed(9, 6, name="embed")(x.astype(jnp.int32))


class Stack(nn.Module):
    @nn.compact
    def __call__(self, x):
        def body(layer, x, _):
            return layer(x), None

        return nn.scan(
            body, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )(nn.Dense(6, name="layer"), x, None)


LAYERS = {
    "dense": (lambda: nn.Dense(4), X),
    "dense general": (lambda: nn.DenseGeneral((2, 3)), X),
    "einsum": (lambda: nn.Einsum((6, 4), "ab,bc->ac"), X),
    "conv": (lambda: nn.Conv(4, (3, 3)), IMAGE),
    "masked conv": (
        lambda: nn.Conv(4, (3, 3), mask=MASK),
        IMAGE,
    ),
    "transposed conv": (lambda: nn.ConvTranspose(4, (3, 3)), IMAGE),
    "flipped conv": (
        lambda: nn.ConvTranspose(4, (3, 3), transpose_kernel=True),
        IMAGE,
    ),
    "local conv": (lambda: nn.ConvLocal(4, (3, 3)), IMAGE),
    "attend": (Attend, X),
    "look-up": (LookUp, X),
    "lstm": (Cell, jnp.ones((1, 3, 6))),
    "stack": (Stack, X),
}


def around(make, change):
    """Returns a model whose every array is changed on its way into a layer."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            def trans_in(variables):
                return jax.tree.map(lambda w: change(w) if w.ndim > 1 else w, variables)

            new = self.is_initializing()
            call = nn.map_variables(
                lambda layer, x: layer(x),
                "params",
                (lambda variables: variables) if new else trans_in,
                init=new,
                mutable=new,
            )
            return call(make(), x)

    return Model()


RULES = [hwtrain.Rule(".*", HARDWARE)]


@pytest.mark.parametrize("layer", LAYERS)
def test_arrays_of_every_layer_are_followed(layer):
    make, x = LAYERS[layer]
    found = linen_plan(around(make, lambda w: w), x, hardware=RULES)
    assert len(found) == (8 if layer == "lstm" else 1)
    assert not any(weight.derived for weight in found.weights)
    changed = around(make, CHANGES["scaled"])
    if layer in ("attend", "look-up"):
        with pytest.raises(ValueError, match="a look-up multiplies by nothing"):
            linen_plan(changed, x, hardware=RULES)
        return
    plan = linen_plan(changed, x, hardware=RULES)
    assert {w.derived for w in plan.weights} == {MUL} and list(plan) == list(found)


def test_an_array_that_a_rule_names_is_what_its_layer_multiplies_by():
    rule = hwtrain.Rule(params=".*kernel", hardware=HARDWARE)
    model = around(lambda: nn.Dense(6), CHANGES["scaled"])
    with pytest.raises(
        ValueError, match="does not multiply by this array itself: the o"
    ):
        linen_plan(model, X, hardware=[rule])


MUL = "the operation 'mul' stands between the two"


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_noticed(change):
    model = around(lambda: nn.Dense(6), CHANGES[change])
    if change in LOST:
        with pytest.raises(ValueError, match="its layer does not multiply by this"):
            linen_plan(model, X)
        return
    (weight,) = linen_plan(model, X).weights
    assert "stands between the two" in weight.derived


LOST = ("permuted", "rotated", "replaced")
"""A product or a gather makes new numbers: from there, nothing is followed."""


class OfInputs(nn.Module):
    """A layer whose kernel depends on the inputs of a call."""

    way: str

    @nn.compact
    def __call__(self, x):
        def change(w):
            if self.way == "factor":
                return w * jnp.mean(x)
            if self.way == "choice":
                return jax.lax.cond(x[0, 0] > 0, lambda w: 2 * w, lambda w: w, w)
            if self.way == "loop":
                return jax.lax.while_loop(
                    lambda carry: carry[0] < x[0, 0],
                    lambda carry: (carry[0] + 1, 2 * carry[1]),
                    (0.0, w),
                )[1]
            return w * jax.random.bernoulli(key, shape=w.shape)

        new = self.is_initializing()
        key = self.make_rng("drop") if self.way == "random" and not new else None
        call = nn.map_variables(
            lambda layer, x: layer(x),
            "params",
            lambda tree: tree if new else jax.tree.map(kernels(change), tree),
            init=new,
            mutable=new,
        )
        return call(nn.Dense(6), x)


@pytest.mark.parametrize("way", ["factor", "choice", "loop", "random"])
def test_weights_that_depend_on_the_call_are_refused(way):
    model = OfInputs(way)
    variables = jax.eval_shape(model.init, jax.random.key(0), X)
    analog = hwtrain.analogize(model, HARDWARE)
    with pytest.raises(ValueError, match="made of inputs or random numbers"):
        hwtrain.plan(analog, variables, X, rngs={"drop": jax.random.key(1)})


class Twice(nn.Module):
    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(6)
        y = layer(x)
        if self.is_initializing():
            return y
        return y + nn.map_variables(
            lambda layer, x: layer(x),
            "params",
            lambda tree: jax.tree.map(lambda w: 0.5 * w, tree),
        )(layer, x)


def test_a_kernel_and_what_is_made_of_it_do_not_share_a_crossbar():
    with pytest.raises(ValueError, match="in one call, and by what is made of it in"):
        linen_plan(Twice(), X)


class Overrides(nn.Dense):
    def param(self, name, *args, **kwargs):
        value = super().param(name, *args, **kwargs)
        return standardised(value) if name == "kernel" else value


class OtherParameter(nn.Dense):
    def param(self, name, *args, **kwargs):
        value = super().param(name, *args, **kwargs)
        if name != "kernel":
            return value
        return super().param("own", *args, **kwargs)


def scaled_promotion(*arrays, dtype, inexact=True):
    x, kernel, *bias = promote_dtype(*arrays, dtype=dtype, inexact=inexact)
    return x, kernel * 0.5, *bias


def scaled_product(x, w, *args, **kwargs):
    return jax.lax.dot_general(x, w * 0.5, *args, **kwargs)


def no_product(x, w, *args, **kwargs):
    return jnp.sum(x[:, :, None] * w, 1)


DERIVING = {
    "param": (lambda: Overrides(4), X),
    "promote_dtype": (lambda: nn.Dense(4, promote_dtype=scaled_promotion), X),
    "promote_dtype of a transposed convolution": (
        lambda: nn.ConvTranspose(4, (3, 3), promote_dtype=scaled_promotion),
        IMAGE,
    ),
    "promote_dtype of an einsum": (
        lambda: nn.Einsum((6, 4), "ab,bc->ac", promote_dtype=scaled_promotion),
        X,
    ),
}
REWRITING = {
    "another parameter": (lambda: OtherParameter(4), X, "cannot be followed"),
    "dot_general": (lambda: nn.Dense(4, dot_general=scaled_product), X, "'mul'"),
    "dot_general_cls": (
        lambda: nn.Dense(4, dot_general_cls=lambda: scaled_product),
        X,
        "'mul'",
    ),
    "no product": (
        lambda: nn.Dense(4, dot_general=no_product),
        X,
        "cannot be follow",
    ),
}


@pytest.mark.parametrize("way", DERIVING)
def test_a_layer_that_derives_its_own_kernel_is_planned(way):
    make, x = DERIVING[way]
    (weight,) = linen_plan(make(), x).weights
    assert "stands between the two" in weight.derived


@pytest.mark.parametrize("way", REWRITING)
def test_a_layer_that_rewrites_its_own_kernel_is_refused(way):
    make, x, match = REWRITING[way]
    with pytest.raises(ValueError, match=match) as raised:
        linen_plan(make(), x)
    assert "kernel: its layer does not multiply by this" in str(raised.value)


@jax.custom_jvp
def through(w):
    return w


through.defjvp(lambda primals, tangents: (primals[0], tangents[0]))


def rows(x, w, *args, **kwargs):
    return jax.lax.dot_general(x, w, *args, **kwargs)


@jax.custom_vjp
def unseen(w):
    return w


unseen.defvjp(lambda w: (w, None), lambda _, cotangent: (cotangent,))


def rows_on_a_mesh(x, w, numbers, **kwargs):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    whole, split = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("data")
    product = jax.shard_map(
        lambda x, w: jax.lax.dot_general(x, w, numbers, **kwargs),
        mesh=mesh,
        in_specs=(split, whole),
        out_specs=split,
    )
    return product(x, w)


class Chosen(nn.Module):
    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(4, name="layer")
        if self.is_initializing():
            return layer(x)
        return nn.cond(
            x[0, 0] > 0,
            lambda module, layer, x: layer(x),
            lambda module, layer, x: layer(2 * x),
            self,
            layer,
            x,
        )


class Repeated(nn.Module):
    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(6, name="layer")
        if self.is_initializing():
            return layer(x)
        _, x = nn.while_loop(
            lambda layer, carry: carry[0] < 3,
            lambda layer, carry: (carry[0] + 1, layer(carry[1])),
            layer,
            (0, x),
        )
        return x


class Mapped(nn.Module):
    @nn.compact
    def __call__(self, x):
        layers = nn.vmap(
            nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True}
        )
        return layers(3)(jnp.stack([x, x]))


class Penalised(nn.Module):
    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(4)
        y = layer(x)
        return y, jnp.sum(layer.variables["params"]["kernel"] ** 2)


TRANSPARENT = {
    "narrow computation": lambda: nn.Dense(4, dtype=jnp.bfloat16),
    "narrow storage": lambda: nn.Dense(4, param_dtype=jnp.bfloat16),
    "a cast": lambda: around(lambda: nn.Dense(4), lambda w: w.astype(jnp.bfloat16)),
    "an axis more": lambda: around(
        lambda: nn.Dense(4), lambda w: jnp.moveaxis(w[None], 0, 1)[:, 0]
    ),
    "an entry that the weights choose": lambda: around(
        lambda: nn.Dense(4),
        lambda w: jax.lax.dynamic_index_in_dim(
            w[None], jnp.int32(w[0, 0] > 9), keepdims=False
        ),
    ),
    "through loops": lambda: around(
        lambda: nn.Dense(4),
        lambda w: jax.lax.while_loop(
            lambda carry: carry[0] < 3, lambda carry: (carry[0] + 1, carry[1]), (0, w)
        )[1],
    ),
    "a rule of differentiation": lambda: around(lambda: nn.Dense(4), through),
    "jit": lambda: nn.jit(nn.Dense)(4),
    "remat": lambda: nn.remat(nn.Dense)(4),
    "a product of one's own": lambda: nn.Dense(4, dot_general=rows),
    "a backward rule": lambda: around(lambda: nn.Dense(4), unseen),
    "a product on a mesh": lambda: nn.Dense(4, dot_general=rows_on_a_mesh),
    "a choice": Chosen,
    "a while loop": Repeated,
    "vmap": Mapped,
    "scan": Stack,
    "remat in a scan": lambda: nn.remat(Stack)(),
    "boxes": lambda: nn.Dense(
        4, kernel_init=nn.with_partitioning(nn.initializers.ones, (None, "m"))
    ),
    "a penalty": Penalised,
    "twice": lambda: nn.Sequential([shared := nn.Dense(6), nn.tanh, shared]),
}


@pytest.mark.parametrize("way", TRANSPARENT)
def test_what_changes_no_weight_is_planned_as_ever(way):
    assert len(linen_plan(TRANSPARENT[way](), X)) == 1


# The same for NNX, where a call reveals the transformation.


class Hooked(nnx.Param):
    def get_value(self, **options):
        value = super().get_value(**options)
        return value * 0.5 if isinstance(value, jax.Array) else value


def hooked(rngs):
    layer = nnx.Linear(6, 4, rngs=rngs)
    layer.kernel = Hooked(layer.kernel[...])
    return layer


class Parent(nnx.Module):
    def __init__(self, change, layer):
        self.change, self.layer = change, layer

    def __call__(self, x):
        graphdef, state = nnx.split(self.layer)
        return nnx.merge(graphdef, jax.tree.map(self.change, state))(x)


class Assigning(Parent):
    def __call__(self, x):
        before = self.layer.kernel
        self.layer.kernel = nnx.Param(self.change(before[...]))
        y = self.layer(x)
        self.layer.kernel = before
        return y


def nnx_promotion(arrays, **options):
    x, kernel, *bias = nnx.nn.dtypes.promote_dtype(arrays, **options)
    return x, kernel * 0.5, *bias


def kernels(change):
    return lambda w: change(w) if w.ndim > 1 else w


NNX_DERIVING = {
    "hook": hooked,
    "functional": lambda rngs: Parent(
        kernels(standardised), nnx.Linear(6, 4, rngs=rngs)
    ),
    "assigned": lambda rngs: Assigning(standardised, nnx.Linear(6, 4, rngs=rngs)),
    "promote_dtype": lambda rngs: nnx.Linear(
        6, 4, promote_dtype=nnx_promotion, rngs=rngs
    ),
}
NNX_REWRITING = {
    "dot_general": lambda rngs: nnx.Linear(6, 4, dot_general=scaled_product, rngs=rngs),
    "no product": lambda rngs: nnx.Linear(6, 4, dot_general=no_product, rngs=rngs),
}
NNX_LAYERS = {
    "linear": (lambda rngs: nnx.Linear(6, 4, rngs=rngs), X),
    "linear general": (lambda rngs: nnx.LinearGeneral(6, (2, 3), rngs=rngs), X),
    "einsum": (lambda rngs: nnx.Einsum("ab,bc->ac", (6, 4), (4,), rngs=rngs), X),
    "conv": (lambda rngs: nnx.Conv(6, 4, (3, 3), rngs=rngs), IMAGE),
    "masked conv": (
        lambda rngs: nnx.Conv(6, 4, (3, 3), mask=MASK, rngs=rngs),
        IMAGE,
    ),
    "transposed conv": (lambda rngs: nnx.ConvTranspose(6, 4, (3, 3), rngs=rngs), IMAGE),
    "lora": (lambda rngs: nnx.LoRA(6, 2, 4, rngs=rngs), X),
    "remat": (lambda rngs: Remat(nnx.Linear(6, 4, rngs=rngs)), X),
    "lstm": (
        lambda rngs: nnx.RNN(nnx.OptimizedLSTMCell(6, 4, rngs=rngs)),
        jnp.ones((1, 3, 6)),
    ),
}


class Remat(nnx.Module):
    def __init__(self, layer):
        self.layer = layer

    @nnx.remat
    def __call__(self, x):
        return self.layer(x)


class Lifted(nnx.Module):
    def __init__(self, way, rngs):
        self.way = way

        def make(rngs):
            return nnx.Linear(6, 6, rngs=rngs)

        stack = nnx.split_rngs(splits=3)(nnx.vmap(make))
        self.layer = stack(rngs) if way in ("scan", "vmap") else make(rngs)

    def __call__(self, x):
        def call(layer, x):
            return layer(x)

        if self.way == "scan":
            return nnx.scan(call, in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(
                self.layer, x
            )
        if self.way == "vmap":
            return nnx.vmap(call, in_axes=(0, None))(self.layer, x)
        if self.way == "jit":
            return nnx.jit(call)(self.layer, x)
        if self.way == "choice":
            return nnx.cond(
                x[0, 0] > 0, call, lambda layer, x: layer(2 * x), self.layer, x
            )
        _, x = nnx.fori_loop(
            0, 3, lambda _, carry: (carry[0], carry[0](carry[1])), (self.layer, x)
        )
        return x


@pytest.mark.parametrize("way", ["scan", "vmap", "jit", "choice", "loop"])
def test_what_changes_no_weight_of_nnx_is_analog_as_ever(way):
    plain = Lifted(way, nnx.Rngs(0))
    model = nnx_model(lambda rngs: plain, "eval")
    assert list(hwtrain.plan(model, None, X)) == ["layer/kernel"]
    np.testing.assert_allclose(model(X), plain(X), atol=1e-6)


MODES = {
    "train": hwtrain.train_mode,
    "chip": hwtrain.chip_mode,
    "eval": hwtrain.eval_mode,
}


def nnx_model(make, mode="train"):
    rngs = nnx.Rngs(0, mismatch=1)
    analog = hwtrain.analogize(make(rngs), HARDWARE, rngs=rngs)
    return MODES[mode](analog)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("way", NNX_REWRITING)
def test_an_nnx_layer_that_multiplies_by_other_weights_is_refused(way, mode):
    model = nnx_model(NNX_REWRITING[way], mode)
    with pytest.raises(ValueError, match="kernel: its layer does not multiply by this"):
        hwtrain.plan(model, None, X)
    with pytest.raises(ValueError, match="kernel: its layer does not multiply by this"):
        model(X)
    with pytest.raises(ValueError, match="kernel: its layer does not multiply by this"):
        nnx.jit(lambda model, x: model(x))(model, X)


@pytest.mark.parametrize("way", NNX_DERIVING)
def test_an_nnx_layer_that_multiplies_by_what_is_made_is_derived(way):
    model = nnx_model(NNX_DERIVING[way])
    (weight,) = hwtrain.plan(model, None, X).weights
    assert "stands between the two" in weight.derived


@pytest.mark.parametrize("layer", NNX_LAYERS)
def test_arrays_of_every_nnx_layer_are_followed(layer):
    make, x = NNX_LAYERS[layer]

    def of(change):
        return nnx_model(lambda rngs: Parent(kernels(change), make(rngs)), "eval")

    same = of(lambda w: w)
    np.testing.assert_allclose(same(x), same.layer(x), atol=1e-6)
    halved = of(CHANGES["scaled"])
    plan = hwtrain.plan(halved, None, x)
    assert {weight.derived for weight in plan.weights} == {MUL}
    plain = Parent(kernels(CHANGES["scaled"]), make(nnx.Rngs(0, mismatch=1)))
    np.testing.assert_allclose(halved(x), plain(x), atol=1e-6)


class Property(nnx.Linear):
    @property
    def kernel(self):
        return nnx.Param(standardised(self.stored[...]))

    @kernel.setter
    def kernel(self, value):
        self.stored = value


def no_parameter(rngs):
    layer = nnx.Linear(6, 4, rngs=rngs)
    layer.kernel = nnx.Variable(layer.kernel[...])
    return layer


@pytest.mark.parametrize(
    "make", [lambda rngs: Property(6, 4, rngs=rngs), no_parameter], ids=["own", "other"]
)
def test_an_nnx_kernel_that_is_no_parameter_is_refused(make):
    def model(rngs):
        return nnx.Sequential(make(rngs), nnx.Linear(4, 3, rngs=rngs))

    with pytest.raises(
        ValueError, match="layers/0/kernel is not stored as a parameter"
    ):
        nnx_model(model)
    rngs = nnx.Rngs(0, mismatch=1)
    rules = [hwtrain.Rule("layers/0", None), hwtrain.Rule(".*", HARDWARE)]
    analog = hwtrain.analogize(model(rngs), rules, rngs=rngs)
    assert list(hwtrain.plan(analog)) == ["layers/1/kernel"]


class Renamed(nn.Dense):
    def param(self, name, *args, **kwargs):
        name = "stored" if name == "kernel" else name
        return super().param(name, *args, **kwargs)


def test_a_kernel_that_is_no_parameter_is_refused():
    model = nn.Sequential((Renamed(4), nn.Dense(3)))
    with pytest.raises(
        ValueError, match="layers_0/kernel is not stored as a parameter"
    ):
        linen_plan(model, X)
    rules = [hwtrain.Rule("layers_0", None), hwtrain.Rule(".*", HARDWARE)]
    assert list(linen_plan(model, X, hardware=rules)) == ["layers_1/kernel"]


def test_a_model_that_cannot_be_traced_is_refused():
    class Choosing(Parent):
        def __call__(self, x):
            return self.layer(x) if x[0, 0] > 0 else x

    model = nnx_model(lambda rngs: Choosing(None, nnx.Linear(6, 4, rngs=rngs)))
    with pytest.raises(ValueError, match="__call__ needs the values of arrays"):
        model(X)


def test_a_model_is_followed_once():
    calls = []

    class Counting(Parent):
        def __call__(self, x):
            calls.append(x)
            return self.layer(x)

    model = nnx_model(lambda rngs: Counting(None, nnx.Linear(6, 4, rngs=rngs)))
    for _ in range(3):
        model(X)
    assert len(calls) == 4
    step = nnx.jit(lambda model, x: model(x))
    for _ in range(2):
        step(model, X)
    assert len(calls) == 5
