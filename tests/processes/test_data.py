"""The share of the data that docs/meshes.md gives to each process."""

import itertools

import numpy as np
import pytest


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_shares_of_grain_are_the_batches_of_one_process(processes):
    grain = pytest.importorskip("grain")
    size, examples = 8, np.arange(48)

    def batches(process, count):
        data = grain.MapDataset.source(examples).seed(0).shuffle().repeat()
        share = data[process::count].batch(size // count)
        return iter(share.to_iter_dataset())

    whole = batches(0, 1)
    shares = [batches(process, processes) for process in range(processes)]
    # Over two epochs, each in another order.
    for batch, *parts in itertools.islice(zip(whole, *shares), 12):
        np.testing.assert_array_equal(np.sort(batch), np.sort(np.concatenate(parts)))
    state = shares[0].get_state()
    following = next(shares[0])
    shares[0].set_state(state)
    np.testing.assert_array_equal(next(shares[0]), following)
