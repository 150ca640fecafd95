"""Agreement between processes, as far as one process shows it; see tests/processes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwtrain._arrays import processes
from hwtrain._arrays.processes import in_step, require_same, together
from hwtrain._arrays.shared import gathered, is_shared


def test_what_one_process_holds_is_not_shared():
    assert not is_shared({"a": jnp.ones(2), "b": np.ones(2), "c": 3.0})
    jax.jit(lambda x: x + is_shared([x]))(jnp.ones(2))


def test_values_on_the_host_are_copies():
    array = np.arange(3.0)
    (copy,) = gathered([array])
    array[:] = 0
    np.testing.assert_array_equal(copy, [0, 1, 2])
    # What is read from a JAX array would stay with it.
    x = jnp.arange(4.0)
    (copy,) = gathered([x])
    np.testing.assert_array_equal(copy, x)
    assert not np.shares_memory(copy, np.asarray(x))
    assert gathered([x], reader=5) == []


def test_a_block_raises_its_own_error():
    for shared in (False, True):
        with pytest.raises(KeyError, match="mine"), together(shared):
            raise KeyError("mine")


@pytest.mark.parametrize(
    "said",
    [[None, "no room"], ["", None]],
)
def test_the_error_of_another_process_is_raised(monkeypatch, said):
    monkeypatch.setattr(processes, "exchanged", lambda value: said)
    with pytest.raises(OSError, match=r"process \d of 2: "), together(True, OSError):
        pass


def test_an_error_without_text_is_one(monkeypatch):
    told = []
    monkeypatch.setattr(processes, "exchanged", lambda x: told.append(x) or [x])
    with pytest.raises(AssertionError), together(True):
        raise AssertionError
    assert told == ["AssertionError"]


def test_values_that_differ_are_named(monkeypatch):
    monkeypatch.setattr(processes, "exchanged", lambda value: [value, [8]])
    with pytest.raises(ValueError, match=r"seeds .* 0 has \[7\], process 1 has \[8\]"):
        require_same("the seeds", [7])


def test_a_process_with_fewer_batches_stops_all(monkeypatch):
    assert list(in_step(iter("ab"), shared=True)) == ["a", "b"]
    usual = processes.exchanged

    def other_ends(value):
        return [value, False] if isinstance(value, bool) else usual(value)

    monkeypatch.setattr(processes, "exchanged", other_ends)
    with pytest.raises(ValueError, match="process 1 has 0 batches, and process 0 has"):
        list(in_step(iter("ab"), shared=True))


def test_of_one_is_the_same_in_bits():
    values = {"a": np.float32([-0.0, 1.5]), "b": np.arange(6).reshape(2, 3)}
    for shared in (False, True):
        found = processes.of_one(lambda: values, True, shared)
        for name, array in values.items():
            assert found[name].tobytes() == array.tobytes()
            assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
