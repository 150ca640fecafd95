"""Wires of columns: aihwkit, Kirchhoff's laws, layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain.periphery.column_wires import ColumnWires, transmission
from hwtrain.periphery.mvm import analog_mvm


def test_outputs_are_those_of_aihwkit(golden):
    cases = golden("aihwkit_ir_drop_t")
    assert len(cases) == 7
    for name, case in cases.items():
        io = hw.IOParameters(
            inp_bits=8,
            mv_type=case["mv_type"],
            stages=(ColumnWires(**case["stage"]),),
        )
        w = jnp.asarray(case["w"], jnp.float32).T
        sizes = {"row_sizes": w.shape[:1], "column_sizes": w.shape[1:]}
        x = jnp.asarray(case["x"], jnp.float32)
        found = analog_mvm(x, w, io.parts, **sizes)
        largest = np.max(np.abs(case["y"]))
        np.testing.assert_allclose(found, case["y"], atol=5e-6 * largest, err_msg=name)
        plain = analog_mvm(x, w, hw.IOParameters(inp_bits=8).parts, **sizes)
        assert np.max(np.abs(plain - np.array(case["y"]))) > 0.01 * largest


@pytest.mark.parametrize("wire", [0.0, 0.3, 20.0])
def test_shares_obey_kirchhoffs_laws(wire):
    """The currents at the end, of a source in each segment, by nodal analysis."""
    rng = np.random.default_rng(0)
    g = rng.uniform(0, 2, (6, 3)) * (rng.uniform(size=(6, 3)) < 0.8)
    share, end = transmission(jnp.asarray(g, jnp.float32), wire)
    small = max(wire, 1e-7)
    for j in range(3):
        nodes = np.diag(g[:, j])
        for s in range(5):
            cut = np.ix_([s, s + 1], [s, s + 1])
            nodes[cut] += np.array([[1, -1], [-1, 1]]) / small
        nodes[-1, -1] += 2 / small
        # A device in segment s is a source of 1 V behind its conductance.
        voltages = np.linalg.solve(nodes, np.diag(g[:, j]))
        currents = voltages[-1] * 2 / small
        np.testing.assert_allclose(
            share[:, j] * g[:, j], currents, rtol=1e-4, atol=1e-6
        )
        np.testing.assert_allclose(end[j], currents.sum(), rtol=1e-4, atol=1e-6)


LAYERS = {
    "dense": (nn.Dense(7), (5, 12)),
    "convolution": (nn.Conv(4, (3,), feature_group_count=2), (2, 6, 4)),
}
WIRES = ColumnWires(r_wire_ohm=90.0, segments=4, rows=16, v_offset=0.001)
CHIP = hw.Hardware(
    forward=hw.IOParameters(stages=(WIRES,)),
    mapping=hw.MappingParameter(max_input_size=5, max_output_size=4),
)


@pytest.mark.parametrize("layer", LAYERS)
def test_wires_are_on_and_proved(layer, monkeypatch):
    module, shape = LAYERS[layer]
    x = jax.random.normal(jax.random.key(0), shape)
    analog = hw.analogize(module, CHIP)
    variables = analog.init(jax.random.key(1), x)
    hw.assert_active(analog, variables, x)
    assert "column wires of 90 ohm" in str(hw.inspect(analog, variables, x))
    monkeypatch.setattr(ColumnWires, "around", lambda self, inner, x, ctx: inner(x))
    jax.clear_caches()
    with pytest.raises(ValueError, match="column wires"):
        hw.assert_active(analog, variables, x)
    jax.clear_caches()


def test_wires_are_on_in_nnx():
    model = nnx.Linear(12, 7, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (5, 12))
    analog = hw.analogize(model, CHIP, rngs=nnx.Rngs(mismatch=1))
    assert jnp.max(jnp.abs(analog(x) - model(x))) > 1e-3


def test_the_gradient_is_the_true_one():
    rng = np.random.default_rng(5)
    x, w = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((3, 9), (9, 4)))
    along = jnp.asarray(rng.normal(size=(9, 4)), jnp.float32)

    @jax.jit
    def loss(step):
        stage = ColumnWires(r_wire_ohm=2000.0, segments=8, rows=16)
        y = analog_mvm(
            x, (w + step * along) / 3, (stage,), row_sizes=(5, 4), column_sizes=(2, 2)
        )
        return jnp.sum(y**2)

    difference = (loss(1e-2) - loss(-1e-2)) / 2e-2
    np.testing.assert_allclose(jax.grad(loss)(0.0), difference, rtol=5e-3)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"r_wire_ohm": 0.0}, "do nothing"),
        ({"segments": 7}, "does not divide"),
        ({"g_min_us": 25.0}, "must be below"),
    ],
)
def test_wires_that_cannot_be_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        ColumnWires(**options)


def test_a_tile_that_is_too_tall_is_refused():
    stage = ColumnWires(rows=8)
    with pytest.raises(ValueError, match="a tile has 9 rows"):
        analog_mvm(
            jnp.ones((1, 9)),
            jnp.ones((9, 2)),
            (stage,),
            row_sizes=(9,),
            column_sizes=(2,),
        )
