"""Fixtures of all tests."""

import functools
import gc
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent

# Without a cache, the suite would mostly compile programs that another test, worker or
# run has compiled before. JAX keys a stored program by its text, flags and versions.
# The environment sets it, not `jax.config`, so that commands started by tests inherit
# it.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")

# As many tests run at once as there are cores, so NumPy's threads would wait for each
# other: this took a seventh of the time.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402

from hwtrain._parts import registry  # noqa: E402

# Small programs that run a few times cost more to optimise than to run. The option
# applies to each compilation: tests marked `optimised` turn the optimisations on (see
# below), and the commands that tests start in their own processes have them on too.
jax.config.update("jax_disable_most_optimizations", True)

# XLA's newer kernel emitters take twice as long to compile small kernels as the older
# ones, which this version of JAX still has; later versions do not know the option. A
# program that is split for many threads takes a fifth longer to compile than a whole
# one. Half of the time to lower a small program is spent on loading MLIR's dialects
# again.
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
    """Loads a file of golden numbers by name; their origin is in `golden/README.md`."""
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


@pytest.fixture
def tiny_cifar(tmp_path_factory, monkeypatch):
    """The folder of a CIFAR-10 of 160 images, which the environment names."""
    folder = tmp_path_factory.mktemp("cifar-10-batches-bin")
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    for seed, name in enumerate(names):
        records = np.random.default_rng(seed).integers(0, 256, (32, 3073), np.uint8)
        records[:, 0] %= 10
        records.tofile(folder / f"{name}.bin")
    monkeypatch.setenv("CIFAR10", str(folder))
    return folder


@pytest.fixture
def tiny_llama(tmp_path_factory, monkeypatch):
    """Writes a checkpoint as of Llama to a folder, which the environment names.

    The function takes changes of its `config.json` and the number of files, and returns
    the arrays and the configuration. It has written one before.
    """
    folder = tmp_path_factory.mktemp("llama")
    monkeypatch.setenv("LLAMA", str(folder))
    config = {
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": 23,
        "hidden_size": 12,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
    }

    def write(changes, files):
        given = config | changes
        width, hidden = given["hidden_size"], given["intermediate_size"]
        queries, keys = (
            given[f"num_{name}_heads"] * given["head_dim"]
            for name in ("attention", "key_value")
        )
        shapes = {"model.embed_tokens": (given["vocab_size"], width)}
        shapes |= {"model.norm": (width,)}
        for number in range(config["num_hidden_layers"]):
            at = f"model.layers.{number}"
            shapes |= {
                f"{at}.input_layernorm": (width,),
                f"{at}.self_attn.q_proj": (queries, width),
                f"{at}.self_attn.k_proj": (keys, width),
                f"{at}.self_attn.v_proj": (keys, width),
                f"{at}.self_attn.o_proj": (width, queries),
                f"{at}.post_attention_layernorm": (width,),
                f"{at}.mlp.gate_proj": (hidden, width),
                f"{at}.mlp.up_proj": (hidden, width),
                f"{at}.mlp.down_proj": (width, hidden),
            }
        if not given["tie_word_embeddings"]:
            shapes["lm_head"] = given["vocab_size"], width
        random = np.random.default_rng(0)
        arrays = {
            f"{name}.weight": (
                random.normal(scale=shape[-1] ** -0.5, size=shape)
                if len(shape) > 1
                else random.uniform(0.5, 1.5, shape)
            ).astype(np.float32)
            for name, shape in shapes.items()
        }
        for file in folder.iterdir():
            file.unlink()
        (folder / "config.json").write_text(json.dumps(given))
        np.save(folder / "tokens.npy", random.integers(0, given["vocab_size"], 400))
        if files == 1:
            save_file(arrays, folder / "model.safetensors")
            return arrays, given
        where = {}
        for number in range(files):
            name = f"model-{number + 1:05}-of-{files:05}.safetensors"
            part = {key: arrays[key] for key in [*arrays][number::files]}
            save_file(part, folder / name)
            where |= dict.fromkeys(part, name)
        index = {"metadata": {}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        return arrays, given

    write({}, 1)
    return write


@pytest.fixture
def forgotten_parts():
    """Parts that a recipe registers are forgotten, and its file may be loaded again."""
    yield
    loaded = {name for name in sys.modules if name.startswith("hwtrain_recipe_")}
    for kind in registry.KINDS:
        for name in [*registry.names(kind)]:
            if registry.named(kind, name).__module__ in loaded:
                registry.forget(kind, name)
    for name in loaded:
        del sys.modules[name]


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs():
    # They would accumulate to gigabytes over the suite.
    yield
    jax.clear_caches()
    if forget_dialects is not None:
        forget_dialects()


@pytest.fixture
def retraced(monkeypatch):
    """A monkeypatch for traced functions: JAX's traces are cleared before and after."""
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


_MOST = 10
"""Cases of a test that run by default."""


def pytest_addoption(parser):
    parser.addoption("--raises", help="a folder for the lines that raised (raises.py)")


def pytest_configure(config):
    folder = config.getoption("--raises")
    if folder:
        if sys.version_info < (3, 12):
            raise pytest.UsageError("--raises needs Python 3.12 or newer")
        sys.path.insert(0, str(ROOT / "tests"))
        from raises import Raises

        config.pluginmanager.register(Raises(folder))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Leaves cases of tests with many to the nightly run.

    Of `sampled` tests, those are kept that show each value of each parameter.
    `sampled(most)` keeps at most that many, and a test without the mark `_MOST`: the
    first ones chosen, which differ most, or with a single parameter an even selection
    from its first value to its last.
    """
    tests = {}
    for item in items:
        if "nightly" not in item.keywords and hasattr(item, "callspec"):
            tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for cases in tests.values():
        marked = cases[0].get_closest_marker("sampled")
        if marked is None and len(cases) <= _MOST:
            continue
        values = [_values(case) for case in cases]
        shown = dict.fromkeys(set().union(*values), 0)
        left, chosen = list(range(len(cases))), []
        while 0 in shown.values():
            # Prefer the most values not shown yet, then the values shown least.
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
        most = _MOST if marked is None else (*marked.args, len(chosen))[0]
        step = max(len(chosen) / most, 1) if len(values[0]) == 1 else 1
        chosen = {chosen[int(i * step)] for i in range(min(most, len(chosen)))}
        for index, case in enumerate(cases):
            if index not in chosen:
                case.add_marker(pytest.mark.nightly)


def pytest_collection_finish():
    # Imported objects stay, and a trace makes thousands of objects that die at once or
    # stay: scanning them repeatedly took a tenth of the suite's time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)


def _optimise(on):
    """Turns XLA's optimisations on or off, and clears the programs compiled before."""
    if jax.config.values["jax_disable_most_optimizations"] == on:
        jax.config.update("jax_disable_most_optimizations", not on)
        jax.clear_caches()


# Hooks, not a fixture, because module fixtures are made before a test's.
@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    _optimise("optimised" in item.keywords)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem):
    # The next test may be a doctest of the package, which has no hook of its own.
    if nextitem is None or "optimised" not in nextitem.keywords:
        _optimise(False)
