"""Inputs that `export` refuses, and the directory after a failed export."""

import errno
import os
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwtrain._plan.hardware import Hardware
from hwtrain._plan.plan import Plan
from hwtrain.checkpoint import (
    HardwareCheckpointError,
    Measurement,
    export,
    load,
    read_conductances,
    verify,
)
from hwtrain.checkpoint import _items as items
from hwtrain.checkpoint import _manifest as manifest
from hwtrain.checkpoint import _tensors as tensors
from hwtrain.checkpoint._dynapse import load_dynapse

MEASURED = Measurement(metric="loss", mode="chip_mode", chips=1, mean=0.5)


@pytest.mark.parametrize("kind", ["folder", "file", "broken link"])
def test_existing_destination(tmp_path, variables, plan, kind):
    path = tmp_path / "model"
    if kind == "folder":
        path.mkdir()
    elif kind == "file":
        path.touch()
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(HardwareCheckpointError, match="never overwritten"):
        export(path, variables, plan)
    assert list(tmp_path.iterdir()) == [path]


def test_plan_of_another_model(tmp_path, variables, plan):
    del variables["params"]["layers"]
    match = "names layers/kernel, which .* they have cell/threshold, cell/w_rec"
    with pytest.raises(HardwareCheckpointError, match=match):
        export(tmp_path / "model", variables, plan)
    variables["params"]["layers"] = {"kernel": jnp.ones((2, 6, 5))}
    match = r"layers/kernel: the plan says shape \(2, 5, 6\), .* has \(2, 6, 5\)"
    with pytest.raises(HardwareCheckpointError, match=match):
        export(tmp_path / "model", variables, plan)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_digital_parameters_that_are_not_finite(tmp_path, variables, plan, value):
    hidden = variables["params"]["hidden"]
    hidden["bias"] = hidden["bias"].at[2].set(value)
    match = r"params/hidden/bias: 1 of \d+ numbers are NaN"
    with pytest.raises(HardwareCheckpointError, match=match):
        export(tmp_path / "model", variables, plan)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, True, "7"])
def test_impossible_seed(tmp_path, variables, plan, seed):
    with pytest.raises(HardwareCheckpointError, match="whole number from 0 to 42949"):
        export(tmp_path / "model", variables, plan, chip_seed=seed)


def test_largest_seed(tmp_path, variables, plan):
    path = export(tmp_path / "m", variables, plan, chip_seeds=[np.int64(2**32 - 1), 0])
    assert load(path).chip_seeds == (0, 2**32 - 1)


def test_chip_without_mismatch(tmp_path, variables):
    with pytest.raises(HardwareCheckpointError, match="chip 7 would be the nominal"):
        export(tmp_path / "model", variables, Plan(()), chip_seed=7)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(tmp_path, variables, plan, value):
    hidden = variables["params"]["hidden"]
    hidden["kernel"] = hidden["kernel"].at[4, 2].set(value)
    match = r"hidden/kernel: 1 of 70 weights are NaN or infinite, the first at \(4, 2\)"
    with pytest.raises(HardwareCheckpointError, match=match):
        export(tmp_path / "model", variables, plan)
    assert not list(tmp_path.iterdir())


def test_digital_nan(tmp_path, variables, plan):
    variables["params"]["norm"]["scale"] = jnp.full((10,), jnp.nan)
    with pytest.raises(HardwareCheckpointError, match="params/norm/scale: 10 of 10"):
        export(tmp_path / "model", variables, plan)


def test_scale_of_another_shape(tmp_path, variables, plan):
    variables["params"]["tied"]["mapping_scale"] = jnp.ones((2, 6))
    match = r"tied/mapping_scale has the shape \(2, 6\), .* \(1, 3\) or \(1, 7\)"
    with pytest.raises(HardwareCheckpointError, match=match):
        export(tmp_path / "model", variables, plan)


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ([1.0], "variables must be a nested mapping"),
        ({"a": {"b": [jnp.ones(2)]}}, "params/a/b/0: .* turn lists and tuples"),
        ({"a": np.array(["text"])}, "params/a: .* cannot be stored"),
    ],
)
def test_variables_that_no_file_can_hold(tmp_path, params, match):
    with pytest.raises(HardwareCheckpointError, match=match):
        export(tmp_path / "model", params, Plan(()))


def test_integer_weight(tmp_path, variables, plan):
    variables["params"]["cell"]["w_rec"] = jnp.ones((4, 4), jnp.int8)
    with pytest.raises(HardwareCheckpointError, match="real floating-point .* int8"):
        export(tmp_path / "model", variables, plan)


def test_parent_directories_are_made(tmp_path, variables, plan):
    path = export(tmp_path / "a/b/model", variables, plan)
    assert load(path).plan == plan


@pytest.mark.parametrize("after", [0, 1, 3, 6, 12])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_exception_in_the_middle_leaves_nothing(
    tmp_path, variables, plan, monkeypatch, after, error
):
    write, calls = tensors.write, []

    def interrupted(path, content):
        calls.append(path)
        if len(calls) > after:
            raise error
        return write(path, content)

    monkeypatch.setattr(items.tensors, "write", interrupted)
    with pytest.raises(error):
        export(tmp_path / "model", variables, plan, chip_seeds=[1, 2])
    assert not list(tmp_path.iterdir())


def test_full_disk(tmp_path, variables, plan, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(manifest, "sync", full)
    match = "No space left on device.*Nothing was left behind"
    with pytest.raises(HardwareCheckpointError, match=match):
        export(tmp_path / "model", variables, plan)
    assert not list(tmp_path.iterdir())


@pytest.mark.nightly
def test_a_killed_process_leaves_no_checkpoint(tmp_path):
    """Killed at every write to the disk in turn; the last one finds it complete."""
    script = textwrap.dedent("""
        import os, signal, sys
        import numpy as np
        from hwtrain.checkpoint import export
        from hwtrain import Plan
        params = {str(i): {"scale": np.arange(3.0)} for i in range(2)}
        sync, calls = os.fsync, 0
        def counted(descriptor):
            global calls
            calls += 1
            if calls > allowed:
                os.kill(os.getpid(), signal.SIGKILL)
            sync(descriptor)
        os.fsync = counted
        for allowed in range(30):
            calls = 0
            child = os.fork()
            if child == 0:
                export(f"{sys.argv[1]}/{allowed}", params, Plan(()))
                os._exit(0)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """)
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    codes = [int(code) for code in found.stdout.split()]
    assert set(codes) == {0, -signal.SIGKILL}
    for allowed, code in enumerate(codes):
        path = tmp_path / str(allowed)
        # The last write is that of the parent, after the rename.
        assert path.exists() == (code == 0) or allowed == codes.index(0) - 1
        if path.exists():
            assert set(load(path).params) == {"0", "1"}


def test_weights_of_zero(tmp_path, plan):
    weight = plan["heads/kernel"]
    params = {"heads": {"kernel": jnp.zeros(weight.shape)}}
    path = export(tmp_path / "model", params, Plan((weight,)))
    ((tile,),) = load(path).conductances("heads/kernel")
    np.testing.assert_array_equal(tile.weights(), np.zeros((6, 8)))


def test_ideal_hardware(tmp_path, plan):
    weight = plan["heads/kernel"]
    ideal = type(weight)(**{**vars(weight), "hardware": Hardware()})
    params = {"heads": {"kernel": jnp.ones(weight.shape)}}
    checkpoint = load(export(tmp_path / "model", params, Plan((ideal,))))
    assert list(checkpoint.manifest.files["tensors/0000.safetensors"]) == [
        "nominal/params/heads/kernel"
    ]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"plan": 3}, r"plan= takes hwtrain.plan\(.*got 3"),
        ({"graph": {"nodes": {}}}, "graph= takes .*trace_graph.*got {'nodes': {}}"),
        ({"accuracy": [("acc", 0.5)]}, r"accuracy= takes .*Measurement\(.*'acc', 0.5"),
        ({"accuracy": 0.5}, "accuracy= takes a list .*got 0.5"),
        ({"accuracy": MEASURED}, "accuracy= takes a list .*got Measurement"),
        ({"chip_seeds": 7}, "chip_seeds= takes a list .*chip_seed=; got 7"),
        ({"example": jnp.ones(2)}, r"example= takes .* in a tuple, such as \(x,\)"),
        ({"example": (jnp.ones(2),)}, "give analog=analog too, or neither"),
    ],
)
def test_an_argument_of_another_type_is_named(
    tmp_path, variables, plan, arguments, match
):
    arguments = {"plan": plan, **arguments}
    with pytest.raises(HardwareCheckpointError, match=match) as raised:
        export(tmp_path / "model", variables, **arguments)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_measurements_may_come_from_a_generator(tmp_path, variables, plan):
    path = export(tmp_path / "c", variables, plan, accuracy=iter([MEASURED]))
    assert load(path).manifest.accuracy == (MEASURED,)


def traced(function):
    jax.jit(lambda x: function({"dense": {"kernel": x}}))(jnp.ones(2))


def deleted(function):
    x = jnp.ones(2)
    x.delete()
    function({"dense": {"kernel": x}})


def shapes(function):
    function(jax.eval_shape(lambda: {"dense": {"kernel": jnp.ones(2)}}))


@pytest.mark.parametrize(
    ("give", "match"),
    [
        (shapes, "a shape without values, as of jax.eval_shape"),
        (traced, "traced, as inside of jax.jit; export outside"),
        (deleted, "deleted, as what a step takes with donate_argnums"),
    ],
)
def test_what_has_no_values_is_named(tmp_path, give, match):
    match = f"params/dense/kernel is {match}"
    with pytest.raises(HardwareCheckpointError, match=match):
        give(lambda params: export(tmp_path / "model", params, Plan(())))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "call",
    [
        load,
        verify,
        load_dynapse,
        lambda path: read_conductances(path, Plan(())),
        lambda path: export(path, {"a": jnp.ones(2)}, Plan(())),
    ],
)
@pytest.mark.parametrize("path", [None, 3])
def test_a_path_that_is_none(call, path):
    said = "None" if path is None else "one of type int"
    match = f"as a str or a Path; got {said}"
    with pytest.raises(HardwareCheckpointError, match=match):
        call(path)
