"""A network converted to codes."""

import numpy as np
import pytest

from hwtrain.dynapse._biases import computed_table
from hwtrain.dynapse._connectivity import Limits
from hwtrain.dynapse._deployment import deploy

TABLE = computed_table()
CURRENTS = {"Itau_mem": 5.3e-12, "Igain_mem": 2.1e-11, "Ispkthr": 1e-7}


@pytest.fixture
def weights():
    rng = np.random.default_rng(0)
    return rng.normal(0, 1, (5, 6)), rng.normal(0, 0.5, (6, 6)) * (1 - np.eye(6))


def test_codes_and_what_they_amount_to(weights):
    limits = Limits(neurons_per_core=4)
    found = deploy(*weights, CURRENTS, table=TABLE, limits=limits)
    assert found.cores.tolist() == [0, 0, 0, 0, 1, 1]
    for core in (0, 1):
        codes = found.biases[core]
        assert set(codes) == {*CURRENTS, "Iw_0", "Iw_1", "Iw_2", "Iw_3"}
        for name, code in codes.items():
            assert code.achieved == TABLE[code.coarse, code.fine]
            if name in CURRENTS:
                assert code.wanted == CURRENTS[name]
                # 8 bits of fine code, at worst in the lowest eighth of their range.
                assert code.achieved == pytest.approx(code.wanted, rel=0.5 / 32)
        bases = [codes[f"Iw_{bit}"].achieved for bit in range(4)]
        for part, wanted in zip((found.weights_in, found.weights_rec), weights):
            here = found.cores == core
            bits = part.mask[:, here, None] >> np.arange(4) & 1
            expected = part.sign[:, here] * (bits @ bases) / 1e-8
            np.testing.assert_allclose(part.achieved[:, here], expected, rtol=1e-12)
            np.testing.assert_array_equal(part.wanted, wanted)
            np.testing.assert_array_equal(part.error, part.achieved - wanted)
            assert abs(part.error).max() < 0.2
            assert (part.mask[wanted == 0] == 0).all()
    assert found.currents["Ispkthr"].shape == (6,)


def test_cores_have_bases_of_their_own():
    # Together, eight different weights; in each core four, which bases express.
    weights = np.array([[1.0, 0.11], [0.5, 0.07], [0.3, 0.05], [0.13, 0.03]])
    two = deploy(weights, None, {}, table=TABLE, cores=[0, 1])
    one = deploy(weights, None, {}, table=TABLE, cores=[0, 0])
    assert abs(two.weights_in.error).max() < 0.005
    assert abs(one.weights_in.error).max() > abs(two.weights_in.error).max()


def test_a_lost_weight_is_counted():
    weights = np.array([[1.0, 2.0, 4.0, 8.0, 1e-4, 0.0]])
    found = deploy(weights, None, {}, table=TABLE)
    assert found.weights_in.lost == 1
    assert found.weights_in.error[0, 4] == -1e-4


def test_mismatch_is_stored_as_the_chips_and_never_averaged(weights):
    mismatched = {**CURRENTS, "Itau_mem": 5.3e-12 * np.linspace(0.9, 1.1, 6)}
    match = "6 neurons of core 0 have Itau_mem from 4.77e-12 to 5.83e-12 A, but a core"
    with pytest.raises(ValueError, match=match):
        deploy(*weights, mismatched, table=TABLE)
    plain = deploy(*weights, CURRENTS, table=TABLE)
    found = deploy(*weights, CURRENTS, table=TABLE, chips={7: mismatched})
    assert found.biases == plain.biases
    np.testing.assert_array_equal(found.chips[7]["Itau_mem"], mismatched["Itau_mem"])
    # Neurons of different currents fit if each core has one.
    apart = {"Itau_mem": np.array([5e-12, 5e-12, 5e-12, 8e-12, 8e-12, 8e-12])}
    found = deploy(*weights, apart, table=TABLE, cores=[0, 0, 0, 1, 1, 1])
    assert found.biases[1]["Itau_mem"].wanted == 8e-12


def test_a_table_for_each_bias(weights):
    tables = {name: TABLE for name in ("Iw_0", "Iw_1", "Iw_2", "Iw_3", "Itau_mem")}
    tables["Itau_mem"] = TABLE * 0.61
    currents = {"Itau_mem": 5.3e-12}
    code = deploy(*weights, currents, table=tables).biases[0]["Itau_mem"]
    assert code.achieved == 0.61 * TABLE[code.coarse, code.fine]
    with pytest.raises(ValueError, match="no table for Ispkthr; there are"):
        deploy(*weights, {"Ispkthr": 1e-7}, table=tables)
    tables["Iw_3"] = TABLE * 0.5
    with pytest.raises(ValueError, match="must have one table in common"):
        deploy(*weights, currents, table=tables)


def test_what_does_not_fit(weights):
    with pytest.raises(ValueError, match="more than 4 neurons: core 0"):
        deploy(
            *weights,
            CURRENTS,
            table=TABLE,
            cores=[0] * 6,
            limits=Limits(neurons_per_core=4),
        )
    with pytest.raises(ValueError, match="Ispkthr should be 1 A"):
        deploy(*weights, {"Ispkthr": 1.0}, table=TABLE)
    with pytest.raises(ValueError, match=r"weights_rec should be \[6\] \* 2"):
        deploy(weights[0], weights[0], CURRENTS, table=TABLE)
    with pytest.raises(ValueError, match="cores should be"):
        deploy(*weights, CURRENTS, table=TABLE, cores=[0, 1])
    with pytest.raises(ValueError, match="iscale must be a positive"):
        deploy(*weights, CURRENTS, table=TABLE, iscale=0.0)
    with pytest.raises(ValueError, match=r"Itau_mem should be one current or \[6\]"):
        deploy(*weights, {"Itau_mem": np.ones(5)}, table=TABLE)
    other = {7: {"weights_in": weights[0][1:]}}
    with pytest.raises(ValueError, match="weights_in of chip 7 should have the shape"):
        deploy(*weights, CURRENTS, table=TABLE, chips=other)
