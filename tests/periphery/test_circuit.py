"""Currents through wires: Kirchhoff's laws in SciPy, a published solver, gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
from jax import test_util

from hwtrain.periphery import crossbar_currents


def by_kirchhoff(g, v, r_wire_ohm, r_source_ohm=0.0, r_sink_ohm=0.0):
    """Solves for the voltages of all nodes of both wires, in float64, directly."""
    rows, columns = g.shape
    above = np.arange(g.size).reshape(g.shape)  # nodes of the rows' wires
    below = above + g.size  # and of the columns'
    matrix = scipy.sparse.lil_matrix((2 * g.size, 2 * g.size))
    current = np.zeros((2 * g.size, len(v)))

    def connect(a, b, conductance):
        matrix[a, a] += conductance
        matrix[b, b] += conductance
        matrix[a, b] -= conductance
        matrix[b, a] -= conductance

    driver, sink = 1 / (r_source_ohm + r_wire_ohm), 1 / (r_sink_ohm + r_wire_ohm)
    for i, j in np.ndindex(g.shape):
        connect(above[i, j], below[i, j], g[i, j])
        if j:
            connect(above[i, j - 1], above[i, j], 1 / r_wire_ohm)
        if i:
            connect(below[i - 1, j], below[i, j], 1 / r_wire_ohm)
    for i in range(rows):
        matrix[above[i, 0], above[i, 0]] += driver
        current[above[i, 0]] += driver * v[:, i]
    for j in range(columns):
        matrix[below[-1, j], below[-1, j]] += sink
    nodes = scipy.sparse.linalg.splu(matrix.tocsc()).solve(current)
    return (sink * nodes[below[-1]]).T


CASES = {
    "one device": ((1, 1), 100.0, 1e-3, {}),
    "one row": ((1, 9), 10.0, 1e-3, {"r_source_ohm": 30.0}),
    "one column": ((9, 1), 10.0, 1e-3, {"r_sink_ohm": 30.0}),
    "drivers and sinks": ((5, 7), 3.0, 1e-3, {"r_source_ohm": 9.0, "r_sink_ohm": 20.0}),
    "almost ideal": ((33, 20), 1e-3, 25e-6, {}),
    "wires take most": ((40, 24), 50.0, 1e-4, {}),
    "a tile": ((128, 128), 1.0, 1e-4, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_currents_obey_kirchhoffs_laws(case):
    shape, wire, largest, ends = CASES[case]
    rng = np.random.default_rng(len(case))
    g = rng.uniform(0, largest, shape) * (rng.uniform(size=shape) < 0.7)
    v = rng.normal(size=(3, shape[0]))
    found = jax.jit(functools.partial(crossbar_currents, r_wire_ohm=wire, **ends))(g, v)
    expected = by_kirchhoff(g, v, wire, **ends)
    assert np.max(np.abs(found - expected)) < 1e-5 * np.max(np.abs(expected))


@pytest.mark.parametrize("number", range(3))
def test_currents_are_those_of_crosssim(number, golden):
    case = golden("crosssim_parasitics")["cases"][number]
    g, v, expected = (
        np.asarray(case[name])
        for name in ("conductances_us", "voltages_v", "currents_ua")
    )
    ends = {k: x for k, x in case.items() if k.startswith("r_")}
    found = 1e6 * crossbar_currents(1e-6 * g, v, **ends)
    assert np.max(np.abs(found - expected)) < 5e-6 * np.max(np.abs(expected))
    # Without wires, some are more than ten times as far from these as float32 is.
    assert np.max(np.abs(v @ g - expected)) > 1e-3 * np.max(np.abs(expected))


@pytest.mark.nightly
@pytest.mark.optimised
@pytest.mark.parametrize("wire", [0.35, 1.0, 5.0, 20.0])
def test_a_large_crossbar_obeys_them_too(wire):
    rng = np.random.default_rng(int(wire))
    g, v = rng.uniform(0, 1e-4, (256, 256)), rng.uniform(0, 0.2, (2, 256))
    found = crossbar_currents(g, v, r_wire_ohm=wire, r_source_ohm=50.0)
    expected = by_kirchhoff(g, v, wire, 50.0)
    assert np.max(np.abs(found - expected)) < 1e-4 * np.max(np.abs(expected))
    # In each column, whatever the wires have left of its current.
    np.testing.assert_allclose(found, expected, rtol=2e-4)


def test_a_published_solver_agrees(golden):
    cases = golden("badcrossbar")
    assert len(cases) == 2
    for case in cases.values():
        resistances = [[r or np.inf for r in row] for row in case["resistances_ohm"]]
        found = crossbar_currents(
            1 / np.array(resistances),
            np.array(case["voltages_v"]),
            r_wire_ohm=case["r_wire_ohm"],
        )
        expected = np.array(case["currents_a"])
        assert np.max(np.abs(found - expected)) < 2e-6 * np.max(np.abs(expected))


def test_one_device_is_a_row_of_resistors():
    found = crossbar_currents(
        np.array([[1e-3]]),
        np.array([2.0]),
        r_wire_ohm=10.0,
        r_source_ohm=100.0,
        r_sink_ohm=1000.0,
    )
    np.testing.assert_allclose(found, 2.0 / (1000 + 2 * 10 + 100 + 1000), rtol=1e-6)


def test_ideal_wires_multiply():
    rng = np.random.default_rng(0)
    g, v = rng.uniform(0, 1e-4, (8, 5)), rng.normal(size=(2, 3, 8))
    found = crossbar_currents(g, v, r_wire_ohm=0.0)
    np.testing.assert_allclose(found, v @ g, rtol=1e-5, atol=1e-10)


def test_a_batch_is_its_examples_and_crossbars_may_be_mapped():
    rng = np.random.default_rng(1)
    g, v = rng.uniform(0, 1e-3, (2, 6, 4)), rng.normal(size=(2, 3, 6))
    v[:, 0] *= 1e-6  # the accuracy is that of each example
    found = jax.vmap(lambda g, v: crossbar_currents(g, v, r_wire_ohm=20.0))(g, v)
    for one, inputs, outputs in zip(g, v, found, strict=True):
        for x, y in zip(inputs, outputs, strict=True):
            expected = by_kirchhoff(one, x[None], 20.0)[0]
            assert np.max(np.abs(y - expected)) < 1e-5 * np.max(np.abs(expected))


def test_no_current_flows_without_voltage_or_devices():
    zero = crossbar_currents(np.zeros((3, 2)), np.ones(3), r_wire_ohm=1.0)
    np.testing.assert_array_equal(zero, 0)
    zero = crossbar_currents(np.ones((3, 2)), np.zeros(3), r_wire_ohm=1.0)
    np.testing.assert_array_equal(zero, 0)


def test_gradients_are_those_of_the_solution():
    """In float64 against differences, and for devices that are open against a limit."""
    rng = np.random.default_rng(2)
    g, v = rng.uniform(0.1, 1, (4, 3)), rng.normal(size=(2, 4))
    with jax.enable_x64(True):

        def solve(g, v, wire, source, sink):
            return crossbar_currents(
                g, v, r_wire_ohm=wire, r_source_ohm=source, r_sink_ohm=sink
            )

        arguments = tuple(map(jnp.asarray, (g, v, 0.3, 0.2, 0.1)))
        test_util.check_grads(solve, arguments, order=1, modes=("fwd", "rev"))
        open_ = jnp.asarray(g).at[1, 2].set(0.0)
        slope = jax.grad(lambda g: solve(g, *arguments[1:]).sum())(open_)[1, 2]
        step = 1e-6
        closed = open_.at[1, 2].set(step)
        ends = [float(solve(g, *arguments[1:]).sum()) for g in (open_, closed)]
    np.testing.assert_allclose(slope, (ends[1] - ends[0]) / step, rtol=1e-4)


def test_gradients_are_finite_in_float32_with_open_devices():
    g = jnp.array([[0.0, 1e-4], [1e-4, 0.0]])
    slope = jax.grad(
        lambda g: crossbar_currents(g, jnp.ones(2), r_wire_ohm=100.0).sum()
    )(g)
    assert np.isfinite(slope).all() and np.all(slope > 0)


@pytest.mark.parametrize(
    "g, v, options, said",
    [
        ([1.0, 2.0], [1.0, 2.0], {}, r"expected \[rows, columns\]"),
        ([[1.0], [2.0]], [1.0], {}, r"expected \[\.\.\., 2\]"),
        ([[1.0]], 1.0, {}, "a voltage for each row"),
        ([[-1.0]], [1.0], {}, "conductances_s is -1"),
        ([[np.nan]], [1.0], {}, "not finite"),
        ([[1.0]], [1.0], {"r_sink_ohm": -1.0}, "r_sink_ohm is -1"),
        ([[1.0]], [1.0], {"r_source_ohm": np.ones(2)}, "expected a number"),
    ],
)
def test_what_no_circuit_has_is_refused(g, v, options, said):
    with pytest.raises(ValueError, match=said):
        crossbar_currents(np.array(g), np.array(v), r_wire_ohm=1.0, **options)
