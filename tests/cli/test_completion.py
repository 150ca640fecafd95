"""`hwtrain completion`, tried in a shell."""

import errno
import io
import shutil
import subprocess
import sys

import pytest

from hwtrain.cli import main
from hwtrain.cli._parser import _SHELLS

NEEDS_BASH = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@NEEDS_BASH
@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["ev"], ["evaluate"]),
        (["doctor", "--q"], ["--quick"]),
        (["config", "ch"], ["check"]),
        (["calibrate", "run", "out", "--method", "moving_s"], ["moving_std"]),
        (["verify", "chi"], ["chip.a", "chip.b"]),
        (["convert", "chip.a", "--to", "cr"], ["crosssim"]),
        (["convert", "chip.a", "--from", "li"], ["lightning"]),
        (["inspect", "run", "--technology", "is"], ["isaac"]),
        (["fit", "chip.a", "pcm"], ["pcm_like"]),
    ],
    ids=lambda words: " ".join(words),
)
def test_bash_completes(words, found, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("chip.a", "chip.b", "other"):
        (tmp_path / name).touch()
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    quoted = " ".join(f"'{word}'" for word in ("hwtrain", *words))
    ask = f"COMP_WORDS=({quoted}); COMP_CWORD={len(words)}; _shtab_hwtrain\n"
    ask += 'printf "%s\\n" "${COMPREPLY[@]}"'
    run = subprocess.run(
        ["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True
    )
    assert sorted(run.stdout.split()) == found


@pytest.mark.parametrize("shell", _SHELLS)
def test_every_shell_has_a_script_with_every_command(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("evaluate", "--sensitivity", "doctor"):
        assert word in script


def test_a_full_disk_behind_the_output_is_one_line(monkeypatch, capsys):
    class Full(io.StringIO):
        def flush(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sys.stdout", Full())
    assert main(["completion", "bash"]) == 2
    said = capsys.readouterr().err
    assert said == (
        "hwtrain: error: the output could not be written: No space left on device\n"
    )


@NEEDS_BASH
@pytest.mark.nightly
def test_a_closed_output_is_no_error(tmp_path):
    command = f"{sys.executable} -m hwtrain completion bash >&- 2> err"
    run = subprocess.run(["bash", "-c", command], cwd=tmp_path, check=False)
    assert run.returncode == 0 and not (tmp_path / "err").read_text()
