"""Counts of operations of tiles, against counts by hand and by loops in Python."""

import dataclasses
import itertools
import math

import pytest

import hwtrain as hw
from hwtrain._arrays.windows import Window
from hwtrain._plan.counts import counts_of
from hwtrain._plan.plan import ONE

SPLIT = hw.Hardware(mapping=hw.MappingParameter(max_input_size=128, max_output_size=64))


def dense(rows, columns, hardware=SPLIT, stack=()):
    axis = len(stack)
    return dataclasses.replace(
        ONE,
        shape=(*stack, rows, columns),
        rows=(axis,),
        columns=(axis + 1,),
        hardware=hardware,
    )


def counted_by_loops(weight, products, passes, columns_per_output):
    """Does every operation of every tile once, and counts it."""
    found = dict.fromkeys(("row_drives", "conversions", "weight_reads"), 0)
    found["tile_reads"] = 0
    tiles = itertools.product(weight.row_sizes, weight.column_sizes)
    for (rows, columns), _, _ in itertools.product(
        list(tiles), range(products), range(passes)
    ):
        found["tile_reads"] += 1
        for _ in range(rows):
            found["row_drives"] += 1
            for _ in range(columns):
                found["weight_reads"] += 1
        for _ in range(columns * columns_per_output):
            found["conversions"] += 1
    return found


def test_a_matrix_on_six_tiles_by_hand():
    # 300 rows on three tiles of 100, 100 columns on two tiles of 50.
    found = counts_of(dense(300, 100), 7.0)
    assert found.tiles == 6
    assert found.macs == 7 * 300 * 100
    assert found.tile_reads == 7 * 6
    assert found.row_drives == 7 * 300 * 2
    assert found.conversions == 7 * 100 * 3
    assert found.weight_reads == 7 * 300 * 100
    # Built for 128 rows and 64 columns each.
    assert found.drivers == 6 * 128
    assert found.adcs == 6 * 64
    assert found.places == 6 * 128 * 64
    assert found.columns_in_turn == 1


@pytest.mark.parametrize(("rows", "columns"), [(5, 3), (129, 65), (200, 64), (99, 130)])
@pytest.mark.parametrize(("passes", "share"), [(1, 1), (3, 2)])
def test_counts_are_those_of_loops(rows, columns, passes, share):
    weight = dense(rows, columns)
    found = counts_of(weight, 2.0, passes=passes, columns_per_output=share)
    expected = counted_by_loops(weight, 2, passes, share)
    assert {name: getattr(found, name) for name in expected} == expected


def test_a_stack_has_tiles_for_each_layer_and_steps_for_each_product():
    found = counts_of(dense(10, 20, stack=(4,)), 12.0)
    assert (found.tiles, found.steps, found.macs) == (4, 12.0, 12 * 200)


def test_groups_work_at_once():
    # Three groups of 4 channels with 5 taps each, 6 outputs in each group.
    weight = dataclasses.replace(
        ONE,
        kind="conv",
        shape=(5, 4, 18),
        rows=(1, 0),
        columns=(2,),
        window=Window.of((5,), groups=3),
        hardware=SPLIT,
    )
    found = counts_of(weight, 30.0)  # ten positions
    assert (found.tiles, found.steps) == (3, 10.0)
    assert found.macs == 30 * 20 * 6


@pytest.mark.parametrize(
    ("share", "adcs", "in_turn"), [(1, 64, 1), (8, 8, 8), (64, 1, 50), (1000, 1, 50)]
)
def test_columns_share_adcs(share, adcs, in_turn):
    found = counts_of(dense(10, 50), 1.0, columns_per_adc=share)
    assert (found.adcs, found.columns_in_turn) == (adcs, in_turn)


def test_the_tiles_of_a_technology_are_built_whole():
    found = counts_of(
        dense(10, 5, hw.Hardware()),
        1.0,
        tile_rows=256,
        tile_columns=256,
        columns_per_output=8,
        columns_per_adc=128,
    )
    assert found.drivers == 256
    assert found.adcs == 2
    assert found.places == 256 * 32
    assert found.row_drives == 10


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"tile_rows": 64},
            "needs tiles of 100 rows, .* have 64. Write max_inp",
        ),
        ({"tile_columns": 32}, "of 50 columns, .* Write max_output_size=32"),
        (
            {"tile_columns": 128, "columns_per_output": 8},
            r"of 400 columns \(8 for each output\), .* Write max_output_size=16",
        ),
    ],
)
def test_larger_tiles_than_there_are_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        counts_of(dense(300, 100), 1.0, **options)


def test_places_are_at_least_the_weights():
    for rows, columns in itertools.product((1, 127, 128, 129, 400), repeat=2):
        found = counts_of(dense(rows, columns), 1.0)
        assert found.places >= rows * columns
        assert found.tiles == math.ceil(rows / 128) * math.ceil(columns / 64)
