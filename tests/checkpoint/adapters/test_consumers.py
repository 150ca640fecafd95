"""NIR graphs of hwtrain, read and run by the packages that docs/deployment.md names.

Each cell of the page's table is a case. For a tick, a network that meets the cell's
conditions is read and run; for a dash, it must cause an error, or lose a node.
"""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import nir
import numpy as np
import pytest
from flax import linen as nn

import hwtrain
from hwtrain.checkpoint import export, load, trace_graph
from hwtrain.checkpoint.adapters import to_nir

ROOT = Path(__file__).parents[3]
BATCH, STEPS = 4, 150


class Neurons(nn.Module):
    """Neurons with NIR's parameters; their dynamics do not matter."""

    names: tuple

    @nn.compact
    def __call__(self, x):
        found = [
            self.param(name, nn.initializers.ones, x.shape[1:]) for name in self.names
        ]
        return x * sum(found)


class Scale(nn.Module):
    """Multiplies each input."""

    @nn.compact
    def __call__(self, x):
        return x * self.param("scale", nn.initializers.ones, x.shape[1:])


class Network(nn.Module):
    """Functions that may make layers, one after the other."""

    layers: tuple

    @nn.compact
    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def made(kind, *args, **kwargs):
    return lambda x: kind(*args, **kwargs)(x)


KINDS = {
    "LIF": ("tau", "r", "v_leak", "v_threshold", "v_reset"),
    "CubaLIF": ("tau_syn", "tau_mem", "r", "v_leak", "v_threshold", "v_reset", "w_in"),
    "IF": ("r", "v_threshold", "v_reset"),
    "LI": ("tau", "r", "v_leak"),
    "CubaLI": ("tau_syn", "tau_mem", "r", "v_leak", "w_in"),
}
VECTOR, PICTURE = (4,), (6, 4, 3)


def network(row, phrases):
    """Returns the shape of an input, channels last, and the layers of a row."""
    # In front of NIR's "input" in the alphabet, or behind it.
    name = "layer" if "names behind `input`" in phrases else "first"
    first, second = made(nn.Dense, 4, name=name), made(nn.Dense, 4, name="second")
    before = made(nn.Conv, 4, (3, 3), name="before")
    after = made(nn.Conv, 2, (2, 2), padding="VALID", name="after")
    padding = (0, 0) if "padding 0" in phrases else (1, 1)

    def pooled(x, average):
        if average:
            return nn.avg_pool(x, (2, 2), (2, 1), (padding, padding))
        return nn.pooling.pool(x, 0.0, jax.lax.add, (2, 2), (2, 1), (padding,) * 2)

    match row.split():
        case ["Linear"]:
            return VECTOR, (first, made(nn.Dense, 4, name="second", use_bias=False))
        case ["Affine"]:
            return VECTOR, (first, second)
        case ["Conv1d"]:
            return (6, 3), (made(nn.Conv, 4, (3,), name="before"),)
        case ["Conv2d"]:
            return PICTURE, (before, after)
        case ["SumPool2d" | "AvgPool2d" as kind]:
            pool = functools.partial(pooled, average=kind == "AvgPool2d")
            return PICTURE, (before, pool, after)
        case ["Flatten"]:
            return PICTURE, (before, lambda x: x.reshape(len(x), -1), second)
        case ["recurrent", kind]:
            bias = "no bias in the loop" not in phrases
            loop = made(nn.Dense, 4, name="loop", use_bias=bias)
            return VECTOR, (first, neurons(kind), loop, second)
        case [kind, "behind", *_]:
            return PICTURE, (before, neurons(kind), after)
        case [kind]:
            return VECTOR, (first, neurons(kind), second)
    raise ValueError(f"the table's row {row!r} has no network here")


def neurons(kind):
    if kind == "Scale":
        return made(Scale, name="neurons")
    return made(Neurons, KINDS[kind], name="neurons")


@functools.cache
def planned(row, phrases):
    """Returns an analog model, its variables, plan and graph, and its input's shape."""
    shape, layers = network(row, phrases)
    analog = hwtrain.analogize(Network(layers), hwtrain.Hardware())
    x = jnp.zeros((1, *shape))
    variables = analog.init(jax.random.key(0), x)
    graph = None if "recurrent" in row else trace_graph(analog, variables, x)
    return analog, variables, hwtrain.plan(analog, variables, x), graph, shape


# The length of a step in seconds, as each package interprets it.
DT = {
    "snntorch": 1e-4,
    "norse": 1e-3,
    "rockpool": 1e-3,
    "sinabs": 1.0,
    "spikingjelly": 1e-4,
    "spyx": 1.0,
}


def to(name, value):
    def change(found, dt):
        found[name] = np.full_like(found[name], value(found, dt))

    return change


def equal(*names):
    def change(found, dt):
        for name in names or found:
            found[name] = np.full_like(found[name], found[name].flat[0])

    return change


def whole(found, dt):
    found["tau"] = np.round(found["tau"] / dt / 5)


def unchanged(found, dt):
    pass


OTHER_R = "r of neurons has no effect|neurons (fire|come to)"
# Conditions of the table: how parameters are made to meet each one, and the fault of a
# graph that does not meet it.
PHRASES = {
    "equal neurons": (equal(), "must be uniform"),
    "equal thresholds": (
        equal("v_threshold"),
        "thr must be same|threshold must be same",
    ),
    "v_leak 0": (to("v_leak", lambda found, dt: 0.0), "v_leak|neurons fire"),
    "v_reset 0": (to("v_reset", lambda found, dt: 0.0), "v_reset of"),
    "v_leak = v_reset": (to("v_leak", lambda found, dt: found["v_reset"]), "v_leak"),
    "r 1": (to("r", lambda found, dt: 1.0), r"\br\b"),
    "r = 1 / dt": (to("r", lambda found, dt: 1 / dt), r"\br\b"),
    "r = tau / dt": (to("r", lambda found, dt: found["tau"] / dt), r"\br\b"),
    "r = tau_mem / dt": (to("r", lambda found, dt: found["tau_mem"] / dt), r"\br\b"),
    "w_in = tau_syn / dt": (
        to("w_in", lambda found, dt: found["tau_syn"] / dt),
        "w_in|thr must be same",
    ),
    "r = tau_mem / dt - 1": (
        to("r", lambda found, dt: found["tau_mem"] / dt - 1),
        OTHER_R,
    ),
    "r = tau / dt - 1": (
        to("r", lambda found, dt: found["tau"] / dt - 1),
        OTHER_R,
    ),
    "tau in whole seconds": (whole, "tau of neurons has no effect"),
    # Of the network and its inputs.
    "padding 0": (unchanged, "others than those of the model"),
    "no bias in the loop": (unchanged, "the bias of loop is not"),
    "names behind `input`": (unchanged, ""),
    "one example at a time": (unchanged, "shapes cannot be multiplied"),
}
RANGES = {
    "tau": (10, 20),
    "tau_syn": (4, 8),
    "tau_mem": (10, 20),
    "r": (2, 3),
    "w_in": (2, 3),
    "v_leak": (0.2, 0.4),
    "v_threshold": (0.8, 1.2),
    "v_reset": (-0.4, -0.2),
    "scale": (0.5, 2),
}


def drawn(row, dt, phrases, change=None):
    """Returns parameters of a row's network that meet conditions of the table.

    Args:
      row: of the table.
      dt: the step that the package takes.
      phrases: the conditions to meet.
      change: a layer, one of its parameters, which of its elements to change before.
    """
    rng = np.random.default_rng(7)

    def draw(path, array):
        name = path[-1].key
        low, high = RANGES.get(name, (-1, 1))
        if path[0].key == "loop":
            # Feedback that adds to itself grows without bound where a neuron may fire
            # several times in a step.
            low, high = -0.3, -0.1
        unit = dt if name.startswith("tau") else 1.0
        return (unit * rng.uniform(low, high, array.shape)).astype(np.float32)

    params = planned(row, phrases)[1]["params"]
    params = jax.tree_util.tree_map_with_path(draw, params)
    if change:
        layer, name, index = change
        params[layer][name].flat[index] *= 3
    for phrase in phrases:
        PHRASES[phrase][0](params.get("neurons"), dt)
    return params


def written(path, row, phrases, params):
    """Writes a network by the public way; returns the file and its input's shape."""
    _, _, plan, graph, shape = planned(row, phrases)
    checkpoint = load(
        export(path / "checkpoint", {"params": params}, plan, graph=graph)
    )
    edges = None
    if "recurrent" in row:
        first = next(name for name in params if name in ("first", "layer"))
        loop = [("neurons", "loop"), ("loop", "neurons")]
        edges = [(first, "neurons"), *loop, ("neurons", "second")]
    shape = (shape[-1], *shape[:-1])
    size = shape if len(shape) > 1 else None
    to_nir(checkpoint, path / "graph.nir", edges=edges, input_shape=size)
    return path / "graph.nir", shape


def torch_arrays(model):
    return [p.detach().numpy() for p in model.parameters()]


def step_by_step(model, x):
    import torch

    state, found = None, []
    with torch.no_grad():
        for part in x:
            y, state = model(torch.tensor(part), state)
            found.append(y.numpy().copy())
    return np.stack(found)


def in_torch(model):
    """Returns how many nodes a model has modules for, its arrays and how it runs."""
    children = {name for name, _ in model.named_children()} - {"input", "output"}
    return len(children), torch_arrays(model), functools.partial(step_by_step, model)


def snntorch(path):
    from snntorch.import_nir import import_from_nir

    return in_torch(import_from_nir(nir.read(path)))


def norse(path):
    import norse.torch

    return in_torch(norse.torch.from_nir(nir.read(path), dt=DT["norse"]))


def rockpool(path):
    from rockpool.nn.modules.torch.nir import from_nir

    def run(x):
        # From call to call it keeps the state of the first example alone, and has an
        # axis of time behind that of the batch.
        examples = np.split(x[:, :, None], x.shape[1], 1)
        found = [step_by_step(from_nir(path), example)[:, 0] for example in examples]
        return np.concatenate(found, 1)

    # Its weights have inputs before outputs.
    count, arrays, _ = in_torch(from_nir(path))
    return count, [array.T for array in arrays], run


def sinabs(path):
    from sinabs.nir import from_nir

    return in_torch(from_nir(nir.read(path), batch_size=BATCH))


def spikingjelly(path):
    from spikingjelly.activation_based.nir_exchange import import_from_nir

    return in_torch(import_from_nir(path, dt=DT["spikingjelly"]))


def spyx(path):
    from flax import nnx
    from spyx.nir import from_nir

    def read(x):
        # It has channels last.
        x = jnp.asarray(np.moveaxis(x, 2, -1))
        model, y = from_nir(nir.read(path), x, dt=DT["spyx"])
        return model, np.moveaxis(np.asarray(y), -1, 2)

    shape = nir.read(path).nodes["input"].input_type["input"]
    model, _ = read(np.zeros((1, BATCH, *shape), np.float32))
    arrays = map(np.asarray, jax.tree.leaves(nnx.state(model, nnx.Param)))
    # Flax has inputs before outputs, and taps before both.
    outward = [
        a.transpose(-1, -2, *range(a.ndim - 2)) if a.ndim > 1 else a for a in arrays
    ]
    return len(model.layers), outward, lambda x: read(x)[1]


READERS = {
    f.__name__: f for f in (snntorch, norse, rockpool, sinabs, spikingjelly, spyx)
}


class Fault(Exception):
    """A graph that was read incorrectly."""


def inputs(shape):
    """Returns inputs `[steps, batch, ...]`, small ones and large ones."""
    rng = np.random.default_rng(1)
    size = 10 ** rng.uniform(-1, 1.5, (STEPS, BATCH, *(1 for _ in shape)))
    return (size * rng.normal(size=(STEPS, BATCH, *shape))).astype(np.float32)


def ours(row, phrases, params, x):
    """Returns what the model computes of inputs, channels first like them."""
    model = hwtrain.eval_mode(planned(row, phrases)[0])
    y = model.apply({"params": params}, np.moveaxis(x, 1, -1))
    return np.moveaxis(np.asarray(y), -1, 1)


def read(path, package, row, phrases, change=None):
    """Reads and runs a network: returns its parameters, graph, arrays and outputs.

    Raises:
      Fault: if a node, a weight or a bias is not in what the package has read.
    """
    params = drawn(row, DT[package], phrases, change)
    file, shape = written(path, row, phrases, params)
    nodes = nir.read(file).nodes
    count, arrays, run = READERS[package](file)
    # Packages that know loops make one module of neurons and their feedback.
    loops = 1 if "recurrent" in row and package in ("snntorch", "spyx") else 0
    if count != len(nodes) - len(["input", "output"]) - loops:
        raise Fault(f"{count} modules for the nodes {', '.join(nodes)}")
    for name, node in nodes.items():
        for leaf in {"weight", "bias"} & vars(node).keys():
            wanted = getattr(node, leaf)
            if not any(np.array_equal(wanted, array) for array in arrays):
                raise Fault(f"the {leaf} of {name} is not in what was read")
    x = inputs(shape)
    alone = "one example at a time" in phrases
    y = run(x[:, 0] if alone else x)
    if not np.isfinite(y).all():
        raise Fault("the outputs are not finite")
    if "neurons" not in params or row == "Scale":
        expected = np.stack([ours(row, phrases, params, part) for part in x])
        expected = expected[:, 0] if alone else expected
        if y.shape != expected.shape or not np.allclose(y, expected, 1e-4, 1e-3):
            raise Fault("the outputs are others than those of the model")
    return params, y


def check(tmp_path, package, row, phrases):
    """Raises what a package raises, or a `Fault`, if it reads a network badly."""
    numbers = iter(range(1000))

    def again(change=None):
        return read(tmp_path / str(next(numbers)), package, row, phrases, change)

    params, y = again()
    changes = [
        (layer, name, index)
        for layer, indices in (("neurons", (1, -1)), ("loop", (slice(None),)))
        for name in params.get(layer, {})
        for index in indices
    ]
    for change in changes:
        changed, other = again(change)
        same = jax.tree.map(np.array_equal, changed, params)
        if np.array_equal(y, other) and not jax.tree.all(same):
            raise Fault(f"{change[1]} of {change[0]} has no effect")
    if row.split()[-1] in ("LIF", "CubaLIF", "IF", "LI"):
        check_equations(tmp_path, package, row, phrases, params)


# NIR does not say at which voltage neurons begin.
START = {"norse": "v_leak", "spikingjelly": "v_reset"}


def voltage(kind, found, start, current, t):
    """Returns the voltage of neurons below their thresholds, in closed form.

    Args:
      kind: of NIR's neurons.
      found: their parameters, in units of the step.
      start: their voltage at time 0.
      current: what comes in from time 0 on, constant.
      t: the time, in steps.
    """
    drive = found["r"] * current
    if kind == "IF":
        return start + drive * t
    decay = np.exp(-t / found["tau_mem" if kind == "CubaLIF" else "tau"])
    if kind == "CubaLIF":
        synapse, membrane = found["tau_syn"], found["tau_mem"]
        rise = membrane * np.expm1(-t / membrane) - synapse * np.expm1(-t / synapse)
        driven = drive * found["w_in"] * rise / (synapse - membrane)
    else:
        driven = drive * (1 - decay)
    return driven + found["v_leak"] + (start - found["v_leak"]) * decay


def check_equations(tmp_path, package, row, phrases, params):
    """Raises a `Fault` if neurons do not do what NIR's equations say.

    Without feedback, they get a constant current. What the layer behind them adds up is
    taken apart again, into the first spike of each neuron or the voltages.
    """
    kind, dt = row.split()[-1], DT[package]
    if "loop" in params:
        params = params | {"loop": jax.tree.map(np.zeros_like, params["loop"])}
    file, _ = written(tmp_path / "equations", row, phrases, params)
    found = {
        name: value / dt if name.startswith("tau") else value
        for name, value in params["neurons"].items()
    }
    if kind == "IF":
        found["r"] = found["r"] * dt
    # The threshold current, and currents with which each neuron fires after some steps.
    needed = found.get("v_threshold", 1.0) / found["r"] / found.get("w_in", 1.0)
    current = np.linspace(1.5, 3, BATCH)[:, None] * needed
    current = current / 20 if kind == "IF" else current
    first = params["layer" if "layer" in params else "first"]
    x = np.linalg.solve(first["kernel"].T, (current - first["bias"]).T).T
    y = READERS[package](file)[2](np.repeat(x[None].astype(np.float32), STEPS, 0))
    second = params["second"]
    y = (y - second["bias"]) @ np.linalg.inv(second["kernel"])
    start = found[START[package]] if START.get(package) in found else 0.0
    if kind == "LI":
        steps = np.array([30, 60, STEPS])
        wanted = voltage(kind, found, start, current, steps[:, None, None])
        if not np.allclose(y[steps - 1], wanted, rtol=0.15):
            raise Fault(f"neurons come to {y[-1].tolist()}, not {wanted[-1].tolist()}")
        return
    fired = np.where((y > 0.5).any(0), (y > 0.5).argmax(0), np.inf)
    t = np.linspace(0, STEPS, 20 * STEPS)[:, None, None]
    reached = voltage(kind, found, start, current, t) >= found["v_threshold"]
    wanted = np.where(reached.any(0), t[reached.argmax(0), 0, 0], np.inf)
    # Each package has its own discretisation.
    if not np.allclose(fired, wanted, rtol=0.15, atol=2.5):
        raise Fault(
            f"neurons fire first after {fired.tolist()} steps, not {wanted.tolist()}"
        )


def table():
    """Returns the cells of the page by row and package, and the packages' versions."""
    page = (ROOT / "docs" / "deployment.md").read_text("utf-8")
    (lines,) = re.findall(r"^\| \| snntorch .*\n\|[-|]*\n((?:\|.*\n)+)", page, re.M)
    (header,) = re.findall(r"^\| \|( snntorch .*)\|$", page, re.M)
    versions = dict(package.split() for package in header.split("|"))
    versions = {name.lower(): version for name, version in versions.items()}
    cells = {}
    for line in lines.splitlines():
        row, *found = (cell.strip() for cell in line.strip("|").split("|"))
        if row != "step":
            cells |= {(row, name): cell for name, cell in zip(versions, found)}
    return cells, versions


CELLS, VERSIONS = table()
ROWS = (
    *("Affine", "Linear", "Scale", "Conv1d", "Conv2d"),
    *("SumPool2d", "AvgPool2d", "Flatten"),
    *("LIF", "LIF behind a convolution", "CubaLIF", "IF", "LI", "CubaLI"),
    *("recurrent LIF", "recurrent CubaLIF"),
)
# Why a package does not read a network, in its own words if it has any.
UNKNOWN = "Unknown node type"
LEFT_OUT = "modules for the nodes"
OTHERS = "the outputs are others than those of the model"
OTHER_TIMES = "neurons fire first after"
OTHER_VOLTAGES = "neurons come to"
REFUSALS = {
    "snntorch": {
        "IF": "not tuple",
        "recurrent LIF": OTHER_TIMES,
        "recurrent CubaLIF": OTHER_TIMES,
        None: UNKNOWN,
    },
    "norse": {"Conv1d": "input of an empty graph", None: LEFT_OUT},
    "rockpool": {
        "LIF": "no attribute 'tau_mem'",
        "recurrent LIF": "no attribute 'tau_mem'",
        None: "Cannot convert",
    },
    "sinabs": {
        "LIF behind a convolution": "truth value of an array .* is ambiguous",
        "Conv1d": "no attribute 'detach'",
        "LI": OTHER_VOLTAGES,
        None: LEFT_OUT,
    },
    "spikingjelly": {None: UNKNOWN},
    "spyx": {
        "LI": "nir.LI without a following nir.Threshold",
        "Flatten": OTHERS,
        None: LEFT_OUT,
    },
}
NOTES = {LEFT_OUT: "(1)", OTHERS: "(2)", OTHER_TIMES: "(3)", OTHER_VOLTAGES: "(3)"}
# Conditions under which a package reads a graph, but with another meaning than NIR's.
ALMOST = {
    ("snntorch", "IF"): ("equal thresholds", "r 1"),
    ("sinabs", "LI"): ("v_leak 0", "r 1"),
    ("snntorch", "recurrent LIF"): (
        *(
            "equal thresholds",
            "v_leak 0",
            "v_reset 0",
            "r = tau / dt",
            "names behind `input`",
        ),
    ),
    ("snntorch", "recurrent CubaLIF"): (
        *("equal thresholds", "v_leak 0", "r = tau_mem / dt", "w_in = tau_syn / dt"),
        *("v_reset 0", "names behind `input`"),
    ),
}


def phrases_of(cell):
    """Returns how a graph must be, of a cell with a tick."""
    return tuple(filter(None, cell.removeprefix("✓").strip().split(", ")))


def refusal_of(row, package):
    return REFUSALS[package].get(row, REFUSALS[package][None])


def test_the_table_has_a_case_for_every_cell():
    assert {row for row, _ in CELLS} == set(ROWS)
    assert {package for _, package in CELLS} == set(READERS) == set(DT) == set(REFUSALS)
    assert len(CELLS) == len(ROWS) * len(READERS)
    for (row, package), cell in CELLS.items():
        if cell.startswith("✓"):
            assert set(phrases_of(cell)) <= set(PHRASES), (row, package, cell)
        else:
            note = NOTES.get(refusal_of(row, package), "")
            assert cell == f"– {note}".strip(), (row, package)


def test_the_script_installs_the_versions_of_the_table():
    script = (ROOT / ".ci" / "consumers").read_text("utf-8")
    for name, version in VERSIONS.items():
        pin = rf"^reader {name} {version} .*\b{name}(\[nir\])?=={version}\b"
        assert re.search(pin, script, re.MULTILINE), (name, version)


def fault(*args):
    """Returns what is wrong with a network that a package has read, or refuses."""
    try:
        check(*args)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def ticked():
    return [(key, cell) for key, cell in CELLS.items() if cell.startswith("✓")]


@pytest.fixture
def package(request):
    pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    return request.param


others = pytest.mark.filterwarnings("ignore")  # Warnings of other packages are theirs.


@others
@pytest.mark.nightly
@pytest.mark.parametrize("row, package", CELLS, indirect=["package"])
def test_a_cell(tmp_path, row, package):
    cell = CELLS[row, package]
    if cell.startswith("✓"):
        check(tmp_path, package, row, phrases_of(cell))
        return
    found = fault(tmp_path, package, row, ALMOST.get((package, row), ()))
    assert found, f"{package} reads {row} now; docs/deployment.md says that it does not"
    assert re.search(refusal_of(row, package), found), found


@others
@pytest.mark.nightly
@pytest.mark.parametrize(
    "row, package, phrase",
    [(*key, phrase) for key, cell in ticked() for phrase in phrases_of(cell)],
    indirect=["package"],
)
def test_a_graph_must_be_as_the_cell_says(tmp_path, row, package, phrase):
    phrases = [other for other in phrases_of(CELLS[row, package]) if other != phrase]
    found = fault(tmp_path, package, row, tuple(phrases))
    assert found, f"{package} reads {row} without {phrase!r}, which the page asks for"
    assert re.search(PHRASES[phrase][1], found), found
