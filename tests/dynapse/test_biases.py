"""Coarse and fine codes of bias currents."""

import numpy as np
import pytest

from hwtrain.dynapse._biases import checked_table, computed_table, nearest_code


def test_computed_table_by_hand():
    table = computed_table()
    # Full scale 2.3 µA; each coarse step is a factor 8; the fine code is linear.
    assert table[5, 51] == pytest.approx(2.3e-6 / 5)
    assert table[3, 255] == pytest.approx(2.3e-6 / 64)
    assert table[0, 1] == 4e-13  # 2.75e-13 A is below what a switched-off one leaks
    assert table[0, 255] == pytest.approx(2.3e-6 / 32768)
    assert table.min() == 4e-13 and table.max() == pytest.approx(2.3e-6)


def test_nearest_of_all_codes():
    table = np.random.default_rng(0).uniform(1e-12, 1e-6, (6, 256))
    for wanted in np.random.default_rng(1).uniform(1e-9, 9e-7, 20):
        code = nearest_code(table, wanted)
        distances = [
            (abs(current - wanted), coarse, fine)
            for coarse, row in enumerate(table)
            for fine, current in enumerate(row)
        ]
        assert (code.coarse, code.fine) == min(distances)[1:]
        assert code.achieved == table[code.coarse, code.fine]
        assert code.wanted == wanted


def test_equally_near_codes_give_the_smallest():
    code = nearest_code(np.array([[1.0, 3.0], [3.0, 1.0]]), 2.0)
    assert (code.coarse, code.fine) == (0, 0)


@pytest.mark.parametrize("current", [0.0, -1e-9, 1e-13, 2.4e-6, np.nan])
def test_a_current_beyond_the_table(current):
    with pytest.raises(ValueError, match="Ispkthr should be .* gives 4e-13 to 2.3e-06"):
        nearest_code(computed_table(), current, "Ispkthr")


@pytest.mark.parametrize("table", [[1.0, 2.0], [[1.0, 0.0]], [[np.nan]], [[]]])
def test_a_table_that_is_none(table):
    with pytest.raises(ValueError, match=r"matrix \[coarse, fine\] of positive"):
        checked_table(table)
