"""Fixtures of all tests."""

import functools
import gc
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent

# Most of the suite's time is XLA compiling programs that another test, worker or run
# compiled before. JAX keys a stored program by its text, flags and versions. The
# environment, not `jax.config`: the commands that tests start inherit it.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")

# As many tests run at once as there are cores: threads of NumPy's would wait for each
# other, and did so for a seventh of the time.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax  # noqa: E402
import pytest  # noqa: E402

# Small programs that run few times cost more to optimise than to run. It is an option
# of each compilation: tests marked `optimised` turn the optimisations on (see below),
# and the commands that tests start in processes of their own have them on as well.
jax.config.update("jax_disable_most_optimizations", True)

# XLA's newer emitters of kernels take twice as long to compile small ones as the older,
# which XLA still has in this version of JAX; later ones do not know the option. A
# program that is cut into parts for many threads takes a fifth longer than a whole one.
# And of what lowering a small program takes, half is to load MLIR's dialects anew.
forget_dialects = None
if jax.__version_info__[:2] == (0, 10):
    from jax._src import compiler
    from jax._src.interpreters import mlir

    CHEAPER = (
        ("xla_cpu_use_fusion_emitters", False),
        ("xla_cpu_parallel_codegen_split_count", 1),
    )
    _plain_options = compiler.get_compile_options

    def _cheap_options(*args, **kwargs):
        options = _plain_options(*args, **kwargs)
        if jax.config.values["jax_disable_most_optimizations"]:
            options.env_option_overrides = [*options.env_option_overrides, *CHEAPER]
        return options

    compiler.get_compile_options = _cheap_options
    _new_context = mlir.make_ir_context
    _shared_context = functools.cache(_new_context)
    forget_dialects = _shared_context.cache_clear

    def _context():
        try:
            inside = mlir.ir.InsertionPoint.current
        except ValueError:
            inside = None
        # Inside another lowering, its program is no part of that one's.
        return _shared_context() if inside is None else _new_context()

    mlir.make_ir_context = _context

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden():
    """Loads a file of golden numbers by name; `golden/README.md` says whose."""
    return lambda name: json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.fixture(scope="session")
def on_devices():
    """Runs a script with words in a process of some simulated devices.

    JAX counts its devices once in a process. The script says at its end `equal`.
    """

    def run(count, script, *words):
        flags = f"--xla_force_host_platform_device_count={count}"
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        done = subprocess.run(
            [sys.executable, "-c", script, *words],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.stdout.strip() == "equal", done.stderr

    return run


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs():
    # They would pile up to gigabytes over the suite.
    yield
    jax.clear_caches()
    if forget_dialects is not None:
        forget_dialects()


@pytest.fixture
def retraced(monkeypatch):
    """A monkeypatch for functions that JAX has traced: it forgets them around it."""
    jax.clear_caches()
    yield monkeypatch
    monkeypatch.undo()
    jax.clear_caches()


def _values(item):
    """Returns the values of a case by parameter, such that equal ones compare equal."""
    return {
        (name, value if isinstance(value, (str, int, float)) else id(value))
        for name, value in item.callspec.params.items()
    }


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Leaves of `sampled` tests the cases that show each value of each parameter.

    Of `sampled(most)` no more than that: the first that were chosen, which differ most;
    of one parameter alone, evenly from its first value to its last.
    """
    tests = {}
    for item in items:
        if "sampled" in item.keywords and "nightly" not in item.keywords:
            tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for cases in tests.values():
        values = [_values(case) for case in cases]
        shown = dict.fromkeys(set().union(*values), 0)
        left, chosen = list(range(len(cases))), []
        while 0 in shown.values():
            # Most that was not shown; then what was shown least, to take turns.
            best = max(
                left,
                key=lambda i: (
                    sum(shown[value] == 0 for value in values[i]),
                    -sum(shown[value] for value in values[i]),
                ),
            )
            left.remove(best)
            chosen.append(best)
            for value in values[best]:
                shown[value] += 1
        most = (*cases[0].get_closest_marker("sampled").args, len(chosen))[0]
        step = max(len(chosen) / most, 1) if len(values[0]) == 1 else 1
        chosen = {chosen[int(i * step)] for i in range(min(most, len(chosen)))}
        for index, case in enumerate(cases):
            if index not in chosen:
                case.add_marker(pytest.mark.nightly)


def pytest_collection_finish():
    # What is imported stays, and a trace makes thousands of objects that die at once or
    # stay: a tenth of the suite's time went to looking at them again and again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)


def _optimise(on):
    """Turns XLA's optimisations on or off, and forgets what the other compiled."""
    if jax.config.values["jax_disable_most_optimizations"] == on:
        jax.config.update("jax_disable_most_optimizations", not on)
        jax.clear_caches()


# Hooks and no fixture: fixtures of a module are made before those of a test.
@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    _optimise("optimised" in item.keywords)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem):
    # What follows may be an example in the package, which has no hook of its own.
    if nextitem is None or "optimised" not in nextitem.keywords:
        _optimise(False)
