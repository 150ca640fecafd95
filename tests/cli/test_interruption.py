"""Ctrl-C: the first saves and says how to continue, the second stops at once."""

import contextlib
import importlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from pathlib import Path

import chex
import pytest

from hwtrain import checkpoint, cli
from hwtrain.cli import _command_line as command_line
from hwtrain.cli._interruption import interruptible
from hwtrain.train import _training as training

ROOT = Path(__file__).parents[2]


def press():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(autouse=True)
def usual_handler():
    """The signal handler is restored afterwards."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.set_wakeup_fd(-1) == -1
    assert "_watch" not in [thread.name for thread in threading.enumerate()]
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def pressed(monkeypatch):
    """Presses Ctrl-C after an update of a model, inside of a library's callback."""

    def after(title, update):
        usual = training.show_progress

        class Reports:
            def __init__(self, *args, **kwargs):
                self.inner, self.title = usual(*args, **kwargs), args[1]

            def __enter__(self):
                progress = self.inner.__enter__()
                report = progress.report

                def tell(step, loss):
                    if self.title == title and step == update:
                        try:
                            press()
                        except KeyboardInterrupt:
                            pass  # as libraries do
                    return report(step, loss)

                progress.report = tell
                return progress

            def __exit__(self, *error):
                return self.inner.__exit__(*error)

        monkeypatch.setattr(training, "show_progress", Reports)

    return after


@pytest.mark.nightly
def test_training_saves_where_it_is_and_goes_on_to_the_same_end(
    run, train_words, tmp_path, capsys, pressed, monkeypatch
):
    halted = tmp_path / "halted"
    pressed("hardware-aware, seed 3", 13)
    assert cli.main([*train_words, str(halted)]) == 130
    seed = halted / "hardware-aware" / "seed_3"
    assert (seed / "13").is_dir()
    assert not (halted / "export").exists()
    error = capsys.readouterr().err
    assert "stopping after this step" in error
    assert error.endswith(f"--out {halted} --resume\n")
    assert "Traceback" not in error
    monkeypatch.undo()
    assert cli.main([*train_words, str(halted), "--resume"]) == 0
    assert "seed 3: continuing from step 13" in capsys.readouterr().out
    for name in ("seed_3", "seed_4"):
        ours, theirs = (checkpoint.load(r / "export" / name) for r in (halted, run))
        chex.assert_trees_all_equal(ours.params, theirs.params)
    shutil.rmtree(halted)


def test_sigterm_asks_to_stop_however_often_it_comes(capfd):
    with interruptible(gently=True) as asked:
        assert not asked()
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert asked()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    said = capfd.readouterr().err
    assert said.count("stopping as SIGTERM asks; in training, after this step") == 1
    # A command that does not check ends at once, as usual.
    with interruptible(gently=False):
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_sigterm_where_a_shell_has_turned_ctrl_c_off(capfd):
    """As behind `&` in a script."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible(gently=True) as asked:
            press()
            assert not asked()
            os.kill(os.getpid(), signal.SIGTERM)
            assert asked()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        with interruptible(gently=False):
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)
    said = capfd.readouterr().err
    assert "SIGTERM" in said and "Ctrl-C" not in said


def test_a_handler_of_sigterm_stays():
    def theirs(*_):
        pass

    before = signal.signal(signal.SIGTERM, theirs)
    try:
        with interruptible(gently=True):
            assert signal.getsignal(signal.SIGTERM) is theirs
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.nightly
def test_sigterm_saves_and_the_resumed_run_ends_the_same(
    run, train_words, tmp_path, capsys, pressed, monkeypatch
):
    halted = tmp_path / "halted"
    monkeypatch.setattr(
        sys.modules[__name__], "press", lambda: os.kill(os.getpid(), signal.SIGTERM)
    )
    pressed("hardware-aware, seed 3", 13)
    assert cli.main([*train_words, str(halted)]) == 130
    assert (halted / "hardware-aware" / "seed_3" / "13").is_dir()
    assert capsys.readouterr().err.endswith(f"--out {halted} --resume\n")
    monkeypatch.undo()
    assert cli.main([*train_words, str(halted), "--resume"]) == 0
    ours, theirs = (checkpoint.load(r / "export" / "seed_3") for r in (halted, run))
    chex.assert_trees_all_equal(ours.params, theirs.params)
    shutil.rmtree(halted)


@pytest.mark.parametrize("stage", ["read_config", "job_of"])
def test_before_the_training_nothing_is_written(
    train_words, tmp_path, capsys, monkeypatch, stage
):
    """As while JAX is imported, or the model is traced."""
    from hwtrain import train

    usual = getattr(train, stage)
    monkeypatch.setattr(train, stage, lambda *a: press() or usual(*a))
    assert cli.main([*train_words, str(tmp_path / "run")]) == 130
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().err.endswith("--resume\n")


class Swallows:
    """An object whose finaliser cannot raise an exception."""

    def __del__(self):
        press()


def swallowed(*_):
    Swallows()
    for _ in range(1000):
        time.sleep(0.01)
    raise AssertionError("the interrupt was lost")


def importing(_):
    def opened(*_):
        # It waits for the end of an import, in which libraries would print it.
        importlib.import_module("presses")
        for _ in range(1000):
            time.sleep(0.01)
        raise AssertionError("the interrupt was lost")

    return opened


def before(usual):
    pressed = []

    def call(*args, **kwargs):
        if not pressed:
            pressed.append(1)
            press()
        return usual(*args, **kwargs)

    return call


def in_the_callback(usual):
    once = before(lambda: None)

    def callback(function, *args):
        return usual(lambda *values: once() or function(*values), *args)

    return callback


# The words after a run or a checkpoint, what presses, and where.
PRESSES = {
    "evaluate": (["--json", "OUT"], before, "hwtrain.cli._evaluate.open_model"),
    "evaluate, writing": (["--json", "OUT"], before, "pathlib.Path.replace"),
    "evaluate, importing": ([], importing, "hwtrain.cli._evaluate.open_model"),
    "evaluate, in an end": (
        [],
        lambda _: swallowed,
        "hwtrain.cli._evaluate.open_model",
    ),
    "calibrate": (["OUT"], in_the_callback, "jax.debug.callback"),
    "calibrate, writing": (["OUT"], before, "hwtrain.checkpoint._destination.sync"),
    "inspect": (["--active"], in_the_callback, "jax.debug.callback"),
    "export": (["OUT"], before, "hwtrain.checkpoint._destination.sync"),
    "convert": (
        ["--to", "npz", "--out", "OUT"],
        before,
        "hwtrain.checkpoint._destination.sync",
    ),
    "convert, of files": (
        ["--to", "fusion-csv", "--out", "OUT"],
        before,
        "hwtrain.checkpoint._destination.sync",
    ),
    "verify": ([], before, "hwtrain.checkpoint.verify"),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", PRESSES)
def test_an_interrupted_command_is_one_line_and_leaves_nothing(
    run, tmp_path, tmp_path_factory, capfd, caplog, monkeypatch, name
):
    more, pressing, target = PRESSES[name]
    module = tmp_path_factory.mktemp("modules") / "presses.py"
    module.write_text(
        "import os, signal, time\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "time.sleep(0.05)\n"
        "imported = True\n"
    )
    monkeypatch.syspath_prepend(module.parent)
    command = name.partition(",")[0]
    of_run = command in ("evaluate", "calibrate", "inspect", "export")
    given = run if of_run else run / "export" / "seed_3"
    module, _, attribute = target.rpartition(".")
    owner = Path if target == "pathlib.Path.replace" else sys.modules.get(module)
    owner = owner or importlib.import_module(module)
    monkeypatch.setattr(owner, attribute, pressing(getattr(owner, attribute)))
    words = [str(tmp_path / "out") if word == "OUT" else word for word in more]
    assert cli.main([command, str(given), *words]) == 130
    if "presses" in sys.modules:
        assert sys.modules.pop("presses").imported
    error = capfd.readouterr().err
    assert error == "hwtrain: interrupted; nothing half-written was left behind\n"
    assert not caplog.records and not list(tmp_path.iterdir())
    assert logging.root.manager.disable == logging.NOTSET


def test_the_first_only_sets_the_flag(capsys):
    with interruptible(gently=True) as asked:
        assert not asked()
        press()
        assert asked()
    assert "once more Ctrl-C stops at once" in capsys.readouterr().err


def test_a_handler_of_a_program_around_is_left_alone():
    calls = []
    signal.signal(signal.SIGINT, lambda *_: calls.append(1))
    try:
        with interruptible(gently=True) as asked:
            press()
            assert calls == [1] and not asked()
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=lambda: interruptible(gently=True).__enter__())
    thread.start()
    thread.join()


@pytest.mark.parametrize("raised", [None, SystemExit(0)])
def test_a_program_that_ends_is_ended_by_the_next(monkeypatch, raised):
    """Not by an error that comes up while Python takes itself down."""

    def status(words, interrupted, failed):
        if raised is not None:
            raise raised
        return 0

    monkeypatch.setattr(command_line, "_status", status)
    monkeypatch.setattr(os, "_exit", lambda status: pytest.fail("left"))
    with contextlib.suppress(SystemExit):
        assert cli.run() == 0
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    signal.signal(signal.SIGINT, signal.default_int_handler)


class UnderWay:
    """What a command holds, and threads of a library work with."""


@pytest.mark.parametrize("ends", [cli.run, cli.main])
@pytest.mark.parametrize("as_error", [False, True])
def test_an_interrupted_program_leaves_before_anything_is_taken_down(
    monkeypatch, capsys, ends, as_error
):
    alive, left = [], []

    def command(options):
        held = UnderWay()
        alive.append(weakref.ref(held))
        try:
            press()
        except KeyboardInterrupt as error:
            if as_error:  # as a library makes of one in its callback
                raise RuntimeError("callback failed") from error
            raise

    def leave(status):
        print("after the line")
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
        left.append((status, alive[0]() is not None))
        sys.exit(status)

    monkeypatch.setattr("hwtrain.cli._verify.main", command)
    monkeypatch.setattr(sys, "argv", ["hwtrain", "verify", "there"])
    monkeypatch.setattr(os, "_exit", leave)
    try:
        status = ends()
    except SystemExit as end:
        status = end.code
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # One that is called by a program goes on in it.
    assert left == ([(130, True)] if ends is cli.run else [])
    assert status == 130
    assert capsys.readouterr().err.startswith("hwtrain: interrupted; nothing half-")


@pytest.mark.nightly
@pytest.mark.parametrize(
    "words", [["evaluate", "RUN", "--chips", "100000"], ["inspect", "RUN", "--active"]]
)
def test_a_real_signal_at_any_time_is_one_line(run, tmp_path, words):
    """While Python imports, JAX traces, XLA compiles and computes."""
    words = [str(run) if word == "RUN" else word for word in words]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    # Whoever is killed while it writes to the cache leaves half an entry to the others.
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    for tenths in range(20, 160, 13):
        process = subprocess.Popen(
            # A shell in the background has it ignored.
            [sys.executable, "-c", FORWARDED, *words],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            process.wait(tenths / 10)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=120)
        if process.returncode in (0, -signal.SIGINT) and not error:
            break  # it was done before; Python may still have been ending
        assert process.returncode == 130, (tenths, error)
        assert error == "hwtrain: interrupted; nothing half-written was left behind\n"
    assert tenths > 20 and not list(tmp_path.iterdir())


FORWARDED = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv[0] = "hwtrain"
runpy.run_module("hwtrain", run_name="__main__")
"""


def test_the_second_stops_at_once_also_in_compiled_code():
    """The main thread is in a C call that no Python signal handler interrupts."""
    script = """
        import ctypes, os, signal, threading, time
        from hwtrain.cli._interruption import interruptible

        def press():
            for _ in range(2):
                time.sleep(0.3)
                os.kill(os.getpid(), signal.SIGINT)

        libc = ctypes.CDLL(None)
        with interruptible(gently=True):
            threading.Thread(target=press, daemon=True).start()
            end = time.monotonic() + 60
            while time.monotonic() < end:
                libc.poll(None, 0, 60_000)
        print("not stopped")
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert found.returncode == 130, found.stderr
    assert found.stdout == ""
    assert found.stderr.endswith("hwtrain: stopped at once\n")
