"""The table of sockets: Flax's layers are rows of it, like those of users."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain.sockets import _table as table
from hwtrain.sockets._kinds import KINDS

RULES = [hw.Rule(".*", hw.Hardware())]
TILES = hw.Hardware(forward=hw.IOParameters(out_bound=1e6))  # as good as ideal
RNGS = nnx.Rngs(0)
X = jnp.ones((2, 5, 3))

# Flax's layers that multiply, with the kind of each in a checkpoint.
BUILT_IN = {
    nn.Dense: ("dense", lambda: nn.Dense(4)),
    nn.DenseGeneral: ("dense", lambda: nn.DenseGeneral((4, 2))),
    nn.Einsum: ("einsum", lambda: nn.Einsum((3, 4), "...e,eh->...h")),
    nn.Conv: ("conv", lambda: nn.Conv(4, (3,))),
    nn.ConvTranspose: ("conv_transpose", lambda: nn.ConvTranspose(4, (3,))),
    nn.ConvLocal: ("conv_local", lambda: nn.ConvLocal(4, (3,))),
    nn.Embed: ("embed", lambda: nn.Embed(5, 3)),
    nnx.Linear: ("dense", lambda: nnx.Linear(3, 4, rngs=RNGS)),
    nnx.LinearGeneral: ("dense", lambda: nnx.LinearGeneral(3, (4, 2), rngs=RNGS)),
    nnx.LoRALinear: ("dense", lambda: nnx.LoRALinear(3, 4, lora_rank=2, rngs=RNGS)),
    nnx.LoRA: ("lora", lambda: nnx.LoRA(3, 2, 4, rngs=RNGS)),
    nnx.Einsum: ("einsum", lambda: nnx.Einsum("...e,eh->...h", (3, 4), rngs=RNGS)),
    nnx.Conv: ("conv", lambda: nnx.Conv(3, 4, (3,), rngs=RNGS)),
    nnx.ConvTranspose: (
        "conv_transpose",
        lambda: nnx.ConvTranspose(3, 4, (3,), rngs=RNGS),
    ),
    nnx.Embed: ("embed", lambda: nnx.Embed(5, 3, rngs=RNGS)),
}


def plan_of(layer):
    if isinstance(layer, nnx.Module):
        return hw.plan(hw.analogize(layer, RULES))
    named = {"method": "attend" if isinstance(layer, nn.Embed) else "__call__"}
    analog = hw.analogize(layer, RULES)
    variables = jax.jit(lambda x: layer.init(jax.random.key(0), x, **named))(X)
    return hw.plan(analog, hw.adopt(analog, variables, X, **named), X, **named)


@pytest.mark.parametrize("cls", BUILT_IN, ids=lambda c: f"{c.__module__}.{c.__name__}")
def test_a_row_says_the_kind_of_a_layer_of_flax(cls):
    kind, make = BUILT_IN[cls]
    (row, *_) = table.rows_of(cls, "__call__", built_in=True)
    assert row.kind == kind
    weights = [w for w in plan_of(make()).weights if w.layer == cls.__name__]
    assert weights
    assert {weight.kind for weight in weights} == {kind}


def test_every_kind_of_the_format_has_rows_and_every_row_its_kind():
    rows = [row for rows in table._rows.values() for row in rows if row.built_in]
    assert {row.kind for row in rows} | {"raw"} == set(KINDS)


def test_the_rows_of_flax_are_those_of_this_test():
    classes = {
        cls for cls, rows in table._rows.items() if any(row.built_in for row in rows)
    }
    cell = {nn.OptimizedLSTMCell}  # in test_written_again.py, with its gates
    public = {cls for cls in classes if cls.__name__ != "DenseParams"}
    assert public == set(BUILT_IN) | cell


class Doubled(nn.Dense):
    """A Dense that multiplies by twice its kernel, as a row says."""


class Halved(nn.Dense):
    """A Dense that overrides its call, without a row."""

    @nn.compact
    def __call__(self, inputs):
        return super().__call__(inputs) / 2


class Inheriting(nn.Dense):
    """A Dense that overrides nothing."""


def test_the_row_of_a_user_is_for_the_subclass_alone(monkeypatch):
    monkeypatch.setattr(table, "_rows", {k: [*v] for k, v in table._rows.items()})

    def twice(module, inputs):
        y = hw.analog_einsum(module, "kernel", "...i,io->...o", inputs)
        return 2 * y

    hw.sockets.register(Doubled, "kernel", "...i,io->...o", call=twice)
    params = {"kernel": jnp.arange(12.0).reshape(3, 4) / 12}
    kinds = {Doubled: "einsum", Inheriting: "dense", nn.Dense: "dense"}
    for cls, kind in kinds.items():
        analog = hw.eval_mode(hw.analogize(cls(4, use_bias=False), TILES))
        assert hw.plan(analog, {"params": params}, X)["kernel"].kind == kind
        factor = 2 if cls is Doubled else 1
        found = analog.apply({"params": params}, X)
        np.testing.assert_allclose(found, factor * X @ params["kernel"], rtol=1e-6)
    assert table.rows_of(nn.Dense, "__call__")[0].built_in


def test_a_user_may_register_a_class_of_flax_anew(monkeypatch):
    monkeypatch.setattr(table, "_rows", {k: [*v] for k, v in table._rows.items()})
    (own,) = table.rows_of(nn.Dense, "__call__")
    hw.sockets.register(nn.Dense, "kernel", "...i,io->...o", dot_general="dot_general")
    for cls in (nn.Dense, Inheriting):
        (row,) = table.rows_of(cls, "__call__")
        assert not row.built_in and row.dot_general == "dot_general"
        assert table.rows_of(cls, "__call__", built_in=True) == (own,)
    assert table.rows_of(nn.DenseGeneral, "__call__")[0].built_in


def overriding(base, method):
    return type("Mine", (base,), {method: lambda self, x: x})


@pytest.mark.parametrize(
    ("cls", "method", "why"),
    [
        (Halved, "__call__", "Dense.__call__"),
        (overriding(nnx.Linear, "__call__"), "__call__", "Linear.__call__"),
        (overriding(nnx.Embed, "attend"), "__call__", "a method of Embed"),
        (overriding(nnx.Embed, "__call__"), "attend", "a method of Embed"),
    ],
)
def test_a_class_that_overrides_a_method_has_no_row(cls, method, why):
    assert table.rows_of(cls, method) == ()
    assert table.overridden(cls, method) == (why, True)
    own = table.rows_of(nn.Dense, "__call__")
    assert table.rows_of(Inheriting, "__call__") == own != ()


def test_why_layers_stay_digital_is_in_the_table():
    class Mine(nn.LayerNorm):
        pass

    for cls in (nn.BatchNorm, nnx.BatchNorm, Mine):
        assert table.why_digital(cls) == "normalisation is digital"
    assert table.why_digital(nn.Dense) is None
    assert table.is_rewriting(nn.WeightNorm(nn.Dense(4)))
    assert not table.is_rewriting(nn.Dense(4))


def test_two_functions_in_place_of_one_method(monkeypatch):
    monkeypatch.setattr(table, "_rows", {})

    class Mine(nn.Module):
        def __call__(self, x):
            return x

    def first(self, x):
        return x

    def second(self, x):
        return x

    hw.sockets.register(Mine, "a", "...i,io->...o", call=first)
    with pytest.raises(ValueError, match="Mine.__call__ is already replaced; one func"):
        hw.sockets.register(Mine, "b", "...i,io->...o", call=second)
    hw.sockets.register(Mine, "a", "...i,io->...o", dot_general="dot")
    with pytest.raises(ValueError, match="Mine.dot multiplies by 'a'; an attribute"):
        hw.sockets.register(Mine, "b", "...i,io->...o", dot_general="dot")
