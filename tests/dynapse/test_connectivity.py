"""The limits of a chip's connectivity."""

import numpy as np
import pytest

from hwtrain.dynapse._connectivity import Limits, check_connectivity, fill_cores


def test_cores_fill_one_after_the_other():
    for neurons, cores in ((1, 1), (256, 1), (257, 2), (512, 2), (513, 3)):
        sizes = np.bincount(fill_cores(neurons))
        assert len(sizes) == cores and sizes.sum() == neurons and sizes.max() <= 256


def test_what_just_fits():
    weights_in, weights_rec = np.zeros((60, 257)), np.zeros((257, 257))
    weights_in[:, 3] = 1.0
    weights_rec[:4, 3] = -1.0
    check_connectivity(weights_in, weights_rec, fill_cores(257))


def test_offenders_are_listed():
    weights_in, weights_rec = np.zeros((60, 9)), np.zeros((9, 9))
    weights_in[:, [3, 5]] = 1.0
    weights_rec[:5, 3] = -1.0
    weights_rec[:6, 5] = 1.0
    with pytest.raises(ValueError) as caught:
        check_connectivity(weights_in, weights_rec, np.zeros(9, int))
    message = "more than 64 synapses: neuron 3 (65), 5 (66). Prune"
    assert message in str(caught.value)
    check_connectivity(
        weights_in, weights_rec, np.zeros(9, int), Limits(synapses_per_neuron=66)
    )


def test_too_many_neurons_and_destinations():
    # Neuron 0 reaches a neuron on each of five chips.
    cores = np.array([0, 4, 8, 12, 16, 17, 17, 17])
    weights_rec = np.zeros((8, 8))
    weights_rec[0, :6] = 1.0
    weights_rec[1, :4] = 1.0
    limits = Limits(neurons_per_core=2)
    with pytest.raises(ValueError) as caught:
        check_connectivity(np.zeros((1, 8)), weights_rec, cores, limits)
    message = str(caught.value)
    assert "more than 2 neurons: core 17 (3)" in message
    assert "more than 4 destinations: neuron 0 (5)" in message
    assert "neuron 1" not in message


def test_too_many_sources():
    weights_in = np.ones((5, 2))
    with pytest.raises(ValueError, match="6 inputs and neurons send spikes, .* 5 tags"):
        check_connectivity(
            weights_in, np.array([[0, 1], [0, 0]]), np.zeros(2, int), Limits(tags=5)
        )
