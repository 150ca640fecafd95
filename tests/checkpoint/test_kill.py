"""A killed or failed export leaves a complete checkpoint or none, and no debris."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from hwtrain._plan.plan import Plan
from hwtrain.checkpoint import HardwareCheckpointError, export, load
from hwtrain.checkpoint import _destination as destination

PARAMS = {str(i): {"scale": np.arange(3.0)} for i in range(2)}


def abandoned(folder):
    """Leaves the files of a killed writer, made by hand."""
    with destination.new(folder / "model", folder=True) as partial:
        (partial / "half").write_text("of it")
        kept = shutil.copytree(partial, folder / "kept")
    (folder / "model").rename(folder / "gone")
    shutil.rmtree(folder / "gone")
    return kept.rename(partial)


def killed(folder):
    """Leaves the files of a writer that is really killed."""
    script = textwrap.dedent("""
        import os, signal, sys
        from hwtrain.checkpoint import _destination as destination
        with destination.new(sys.argv[1], folder=True) as partial:
            (partial / "half").write_text("of it")
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    words = [sys.executable, "-c", script, str(folder / "model")]
    assert subprocess.run(words).returncode == -signal.SIGKILL
    (left,) = folder.iterdir()
    assert left.name.endswith(".partial")
    return left


@pytest.mark.parametrize(
    "leave", [abandoned, pytest.param(killed, marks=pytest.mark.nightly)]
)
def test_the_next_export_removes_what_a_killed_one_left(tmp_path, leave):
    left = leave(tmp_path)
    export(tmp_path / "other", PARAMS, Plan(()))
    assert left.exists(), "another destination is none of its business"
    path = export(tmp_path / "model", PARAMS, Plan(()))
    assert set(tmp_path.iterdir()) == {path, tmp_path / "other"}
    assert load(path).params.keys() == {"0", "1"}


def test_an_export_that_still_runs_is_left_alone(tmp_path):
    with destination.new(tmp_path / "model", folder=True) as partial:
        (partial / "half").write_text("of it")
        destination._remove_abandoned(tmp_path / "model")
        assert (partial / "half").exists()
    assert (tmp_path / "model" / "half").exists()


def test_a_foreign_file_of_that_kind_is_left_alone(tmp_path):
    names = [".model.partial", ".model.12345678.partial", ".model.zzzzzzzz.partial"]
    for name in names:
        (tmp_path / name).write_text("mine")
    export(tmp_path / "model", PARAMS, Plan(()))
    assert all((tmp_path / name).exists() for name in names)


@pytest.mark.nightly
def test_a_disk_that_is_full_at_any_byte(tmp_path):
    """A limit of the kernel on the size of a file stands for the end of the disk."""
    script = textwrap.dedent("""
        import resource, signal, sys
        from pathlib import Path
        import numpy as np
        from hwtrain.checkpoint import HardwareCheckpointError, export, load
        from hwtrain import Plan
        # Without the signal, a write beyond the limit is an error, as on a full disk.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        folder = Path(sys.argv[1])
        params = {str(i): {"scale": np.zeros(10_000 * i, np.float32)} for i in (1, 2)}
        for size in (0, 500, 39_000, 79_000, 10**6):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            try:
                export(folder / "model", params, Plan(()))
            except HardwareCheckpointError as error:
                assert "Nothing was left behind; make room" in str(error), error
                assert not list(folder.iterdir())
                print(size, "refused")
        assert load(folder / "model").params.keys() == {"1", "2"}
    """)
    # JAX would store what it compiles, cut off.
    env = {k: v for k, v in os.environ.items() if "CACHE" not in k}
    words = [sys.executable, "-c", script, str(tmp_path)]
    found = subprocess.run(words, env=env, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    refused = [line.split()[0] for line in found.stdout.splitlines()]
    assert refused == ["0", "500", "39000", "79000"]


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_must_not_be_written_to(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(HardwareCheckpointError, match="Permission denied"):
        export(tmp_path / "model", PARAMS, Plan(()))
    tmp_path.chmod(0o700)
    assert not list(tmp_path.iterdir())
