"""The plan: matrices, statistics in the stored layout, collisions."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hwtrain as hw
from hwtrain._arrays.random import stable_hash
from hwtrain._arrays.windows import Window
from hwtrain._plan.plan import Digital, Plan
from hwtrain._plan.weight import AnalogWeight


def weight(shape, rows, columns, groups=1, **mapping):
    return AnalogWeight(
        window=Window.of((1,), groups=groups),
        path="layer/kernel",
        kind="dense",
        layer="Dense",
        shape=shape,
        rows=rows,
        columns=columns,
        hardware=hw.Hardware(mapping=hw.MappingParameter(**mapping)),
        rule="",
        ranged=False,
    )


LAYOUTS = [
    ((6, 4), (0,), (1,)),
    ((3, 6, 4), (1,), (2,)),
    ((2, 4, 6), (2,), (1,)),  # the output axis first
    ((2, 3, 4, 5), (1, 3), (2,)),  # two input axes around the output
    ((5,), (), (0,)),
]


GROUPED = [
    ((3, 2, 6), (1, 0), (2,), 3),  # of a convolution: channels, then taps
    ((2, 3, 1, 4), (2, 1), (3,), 4),  # depthwise, in a stack of two layers
    ((5, 2, 6, 3), (3, 1), (2,), 2),  # the output axis inside
]


def test_rows_are_channels_and_their_taps_and_groups_lead():
    w = weight((2, 2, 4), (1, 0), (2,), groups=2)
    kernel = np.arange(16).reshape(2, 2, 4)  # [tap, channel, output]
    matrix = w.to_matrix(jnp.asarray(kernel))
    assert matrix.shape == (2, 4, 2) and w.stack == (2,)
    for group, channel, tap, output in np.ndindex(2, 2, 2, 2):
        held = matrix[group, 2 * channel + tap, output]
        assert held == kernel[tap, channel, 2 * group + output]


@pytest.mark.parametrize(
    ("shape", "rows", "columns", "groups"),
    [*((*case, 1) for case in LAYOUTS), *GROUPED],
)
def test_matrix_and_back(shape, rows, columns, groups):
    w = weight(shape, rows, columns, groups)
    array = jax.random.normal(jax.random.key(0), shape)
    matrix = w.to_matrix(array)
    assert matrix.shape[:-2] == w.stack
    np.testing.assert_array_equal(w.from_matrix(matrix), array)


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("shape", "rows", "columns", "groups"),
    [*((*case, 1) for case in LAYOUTS), *GROUPED],
)
@pytest.mark.parametrize("columnwise", [False, True])
def test_scale_in_the_stored_layout_against_numpy(
    shape, rows, columns, groups, columnwise
):
    w = weight(
        shape,
        rows,
        columns,
        groups,
        max_input_size=4,
        weight_scaling_omega=0.5,
        weight_scaling_columnwise=columnwise,
    )
    array = np.array(jax.random.normal(jax.random.key(0), shape))
    matrix = np.array(w.to_matrix(jnp.asarray(array)))
    expected = np.zeros_like(matrix)
    start = 0
    for size in w.row_sizes:
        tile = matrix[..., start : start + size, :]
        axes = (-2,) if columnwise else (-2, -1)
        expected[..., start : start + size, :] = (
            np.abs(tile).max(axes, keepdims=True) / 0.5
        )
        start += size
    scale = w.spread(w.derived_scale(w.to_matrix(jnp.asarray(array))))
    np.testing.assert_allclose(
        np.broadcast_to(scale, shape), w.from_matrix(jnp.asarray(expected)), rtol=1e-6
    )


def test_an_all_zero_weight_has_scale_one():
    w = weight((3, 2), (0,), (1,), weight_scaling_omega=1.0)
    np.testing.assert_array_equal(w.derived_scale(jnp.zeros((3, 2))), [[1.0]])


def test_a_stack_that_does_not_lead_is_an_error():
    with pytest.raises(ValueError, match="must lead"):
        weight((3, 6, 4), (0,), (2,))


def test_paths_whose_hashes_collide_are_an_error(monkeypatch):
    # The package's attribute `plan` is the function, so the module comes by name.
    by_effect = lambda name: stable_hash(name.partition("#")[2])  # noqa: E731
    monkeypatch.setattr(sys.modules["hwtrain._plan.plan"], "stable_hash", by_effect)
    first = weight((3, 2), (0,), (1,))
    Plan((first, first))
    with pytest.raises(ValueError, match="would share their noise"):
        Plan((first, dataclasses.replace(first, path="b")))


def test_a_plan_is_a_mapping_and_hashable():
    first = weight((3, 2), (0,), (1,))
    plan = Plan((first,))
    assert list(plan) == ["layer/kernel"]
    assert plan["layer/kernel"] is first
    assert hash(plan) == hash(Plan((first,)))
    with pytest.raises(KeyError):
        plan["other"]


def test_a_printed_plan_is_a_table_and_its_repr_the_plan():
    entry = dataclasses.replace(weight((7, 5), (0,), (1,)), path="a/kernel")
    other = dataclasses.replace(entry, path="b/kernel", shape=(5, 600), rule="b")
    quiet = dataclasses.replace(entry, path="c/kernel", hardware=hw.presets.pcm())
    digital = Digital(path="norm/scale", reason="normalisation is digital")
    plan = Plan((entry, other, quiet), (digital,), prefix="outer")
    lines = [line for line in str(plan).splitlines() if line]
    assert max(map(len, lines)) <= 120 and len(lines) < 30
    cells = {
        line.split("│")[1].strip(): [cell.strip() for cell in line.split("│")[2:-1]]
        for line in lines
        if "│" in line
    }
    assert cells["layer"] == ["Dense"] and cells["row axes"] == ["0"]
    assert cells["a/kernel"] == ["7x5", "1x1", "mapping", ""]
    assert cells["b/kernel"] == ["5x600", "1x2", "mapping", "b"]
    assert cells["c/kernel"][2] == "converter single_pair, noise_model pcm_like"
    assert cells["norm/scale"] == ["normalisation is digital"]
    assert (
        lines[-1].rstrip() == "analog weights: 3, digital parameters: 1, prefix: outer"
    )
    assert "WeightModifierParameter" not in str(plan)
    # The plan is what its repr says, and its hash has nothing to do with the table.
    names = (
        vars(hw)
        | vars(hw.devices)
        | vars(hw.weights)
        | {
            "AnalogWeight": AnalogWeight,
            "Digital": Digital,
            "Plan": Plan,
        }
    )
    again = eval(repr(plan), names | {"Window": Window})
    assert again == plan and hash(again) == hash(plan)
    assert str(Plan(())).strip() == "analog weights: 0, digital parameters: 0"
