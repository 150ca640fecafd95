"""Chips, exports and evaluations hold the weights that layers multiply by."""

import dataclasses

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from safetensors.numpy import load_file

import hwtrain
from hwtrain import objectives
from hwtrain.checkpoint.adapters import ADAPTERS

X = jnp.asarray(np.random.default_rng(0).normal(size=(5, 6)), jnp.float32)
MISMATCH = hwtrain.MismatchParameter(type="add_normal", std_dev=0.1)
HARDWARE = hwtrain.Hardware(
    modifier=hwtrain.WeightModifierParameter(type="add_normal", std_dev=0.1),
    mapping=hwtrain.MappingParameter(weight_scaling_omega=1.0),
    forward=hwtrain.IOParameters(inp_bits=8),
    mismatch=MISMATCH,
    converter=hwtrain.SinglePairConductanceConverter(g_max=25.0),
)
KERNEL = np.float32(np.random.default_rng(1).normal(1, 20, size=(6, 4)))
EFFECTIVE = KERNEL / np.sqrt(np.sum(np.float64(KERNEL) ** 2, axis=0))


class Linen(nn.Module):
    dtype: object = jnp.float32

    @nn.compact
    def __call__(self, x):
        return nn.WeightNorm(nn.Dense(4, name="layer", dtype=self.dtype))(x)


class OfNnx(nnx.Module):
    def __init__(self, dtype=jnp.float32):
        layer = nnx.Linear(6, 4, dtype=dtype, rngs=nnx.Rngs(0))
        self.norm = nnx.WeightNorm(layer, rngs=nnx.Rngs(0))
        layer.kernel[...] = jnp.asarray(KERNEL)

    def __call__(self, x):
        return self.norm(x)


def model_of(framework, hardware=HARDWARE, dtype=jnp.float32):
    """Returns an analog model, its variables or `None`, and the path of its layer."""
    if framework == "nnx":
        model = hwtrain.analogize(OfNnx(dtype), hardware, rngs=nnx.Rngs(mismatch=1))
        return model, None, "norm/layer_instance"
    model = hwtrain.analogize(Linen(dtype), hardware)
    variables = model.init(jax.random.key(0), X)
    layer = {**variables["params"]["layer"], "kernel": jnp.asarray(KERNEL)}
    variables = {"params": {**variables["params"], "layer": layer}}
    return model, variables, "layer"


def params_of(model, variables):
    if variables is not None:
        return variables["params"]
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def leaf_of(params, path):
    for name in path.split("/"):
        params = params[name]
    return np.asarray(params)


def first(y, *_):
    return y[:, 0]


@pytest.fixture(scope="module", params=["linen", "nnx"])
def exported(request, tmp_path_factory):
    model, variables, layer = model_of(request.param)
    path = tmp_path_factory.mktemp(request.param) / "chip"
    given = model if variables is None else variables
    plan = hwtrain.plan(model, variables, X)
    hwtrain.export(path, given, plan, analog=model, example=(X,), chip_seeds=[3])
    return model, variables, layer, path


def test_an_export_holds_the_effective_weights(exported):
    _, _, layer, path = exported
    checkpoint = hwtrain.load(path)
    assert hwtrain.checkpoint.verify(path)["passed"]
    assert list(checkpoint.plan) == [f"{layer}/effective_kernel"]
    # NumPy alone, by the page on the format.
    (entry,) = checkpoint.manifest.layers
    file = load_file(path / entry.file)
    tile = {name: file[f"tile/0/0/{name}"] for name in ("g_pos", "g_neg")}
    scale = file["tile/0/0/mapping_scale"] / file["tile/0/0/scale_ratio"]
    found = (tile["g_pos"] - tile["g_neg"]) * scale
    np.testing.assert_allclose(found, EFFECTIVE, atol=1e-6)
    s = np.abs(EFFECTIVE).max()
    np.testing.assert_allclose(file["tile/0/0/mapping_scale"], [[s]], rtol=1e-6)
    np.testing.assert_array_equal(file[f"nominal/params/{layer}/kernel"], KERNEL)


def test_a_population_an_export_and_the_memory_have_the_same_chip(exported):
    model, variables, layer, path = exported
    checkpoint = hwtrain.load(path)
    nominal = hwtrain.materialize(model, variables, X)
    given = None if variables is None else nominal
    plan = hwtrain.plan(nominal if given is None else model, given, X)
    params = params_of(nominal, given)
    key = f"{layer}/effective_kernel"
    memory = hwtrain.apply_mismatch(params, plan, hwtrain.chip_key(3))
    loaded = checkpoint.chip(3)
    np.testing.assert_allclose(leaf_of(loaded, key), leaf_of(memory, key), atol=1e-6)
    drawn = leaf_of(memory, key) - EFFECTIVE
    assert 0.05 < drawn.std() / np.abs(EFFECTIVE).max() < 0.2
    if variables is None:
        y = hwtrain.chip_mode(checkpoint.into(model, chip=3))(X)
    else:
        y = hwtrain.chip_mode(model).apply({"params": loaded}, X)
    bias = leaf_of(params, f"{layer}/bias")
    step = 2 / 254  # of a DAC of 8 bits, for inputs from -1 to 1
    x = step * np.round(np.clip(np.float64(X), -1, 1) / step)
    expected = x @ leaf_of(memory, key) + bias
    np.testing.assert_allclose(y, expected, atol=1e-5)
    for source in (variables, checkpoint):
        found = hwtrain.evaluate.population(
            model, source, [(X,)], first, chips=[3], key=jax.random.key(0)
        )
        np.testing.assert_allclose(found.values, [expected[:, 0].mean()], atol=1e-5)


def test_a_loaded_model_goes_on_training(exported):
    model, variables, layer, path = exported
    checkpoint = hwtrain.load(path)
    if variables is None:
        hwtrain.train_mode(checkpoint.into(model))(X)
        held = hwtrain.train_mode(checkpoint.into(model, chip=3))
        run = lambda: held(X)  # noqa: E731
    else:
        rngs = {"mismatch": jax.random.key(0)}
        run = lambda: model.apply(checkpoint.variables, X, rngs=rngs)  # noqa: E731
    with pytest.raises(
        ValueError, match=f"{layer}/effective_kernel holds the derived weights of"
    ):
        run()


def test_every_effect_proves_that_it_is_on(exported):
    model, variables, layer, _ = exported
    found = str(hwtrain.assert_active(model, variables, X))
    for effect in (f"{layer}/kernel: modifier: ", "effective_kernel: mismatch: "):
        assert effect in found
    at = hwtrain.evaluate.sensitivity(
        model, variables, [(X,)], first, chips=2, key=jax.random.key(0)
    )
    assert at.layers == (layer,) and (at.alone != at.nominal).all()
    table = hwtrain.inspect(model, variables, X)
    assert (
        table.rows[0]["derived"] == "a WeightNorm computes that from it at every call"
    )


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_chips_of_stored_weights_are_refused(framework, tmp_path):
    model, variables, layer = model_of(framework)
    plan, params = hwtrain.plan(model, variables, X), params_of(model, variables)
    key = hwtrain.chip_key(0)

    def loss(params, key):
        return 0.0

    for make in (
        lambda: hwtrain.apply_mismatch(params, plan, key),
        lambda: hwtrain.program_chip(params, plan, key),
        lambda: hwtrain.export(tmp_path / "chip", variables or model, plan),
        lambda: objectives.of_chips(loss, plan, chips=2, share=1.0)(params, key),
    ):
        way = r"(materialize|export\(path, .*example=)"
        why = "does not multiply by this array itself: a WeightNorm"
        match = f"{layer}/kernel: its .* {why} .*{way}"
        with pytest.raises(ValueError, match=match):
            make()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_weights_of_a_chip_lie_on_levels(framework):
    levels = hwtrain.WeightModifierParameter(
        type="discretize", res=0.125, enable_during_test=True
    )
    hardware = hwtrain.Hardware(modifier=levels, mismatch=MISMATCH)
    model, variables, layer = model_of(framework, hardware)
    step = 0.125 * 2 * np.abs(EFFECTIVE).max()  # a share of the range of weights
    on_levels = step * np.round(EFFECTIVE / step)
    bias = leaf_of(params_of(model, variables), f"{layer}/bias")

    def run(mode, variables):
        if variables is None or isinstance(variables, nnx.Module):
            return mode(nnx.clone(variables or model))(jnp.eye(6)) - bias
        rngs = {"mismatch": jax.random.key(0)}
        return mode(model).apply(variables, jnp.eye(6), rngs=rngs) - bias

    for mode in (hwtrain.train_mode, hwtrain.chip_mode):
        np.testing.assert_allclose(run(mode, variables), on_levels, atol=1e-6)
    nominal = hwtrain.materialize(model, variables, X)
    np.testing.assert_allclose(run(hwtrain.chip_mode, nominal), on_levels, atol=1e-6)
    given = None if variables is None else nominal
    plan = hwtrain.plan(nominal if given is None else model, given, X)
    memory = hwtrain.apply_mismatch(
        params_of(nominal, given), plan, hwtrain.chip_key(0)
    )
    chip = leaf_of(memory, f"{layer}/effective_kernel")
    assert np.abs(chip - on_levels).max() > 0.01  # mismatch comes after, and stays
    if given is None:
        given = nnx.clone(nominal)
        nnx.update(given, memory)
    else:
        given = {"params": memory}
    np.testing.assert_allclose(run(hwtrain.chip_mode, given), chip, atol=1e-6)


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_statistics_stay_in_float32(framework):
    levels = hwtrain.WeightModifierParameter(type="discretize", res=1 / 62)
    hardware = hwtrain.Hardware(modifier=levels, mismatch=MISMATCH)
    model, variables, layer = model_of(framework, hardware, jnp.bfloat16)
    nominal = hwtrain.materialize(model, variables, X)
    params = params_of(nominal, None if variables is None else nominal)
    found = leaf_of(params, f"{layer}/effective_kernel")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, EFFECTIVE, rtol=2**-8)
    if variables is None:
        y = model(jnp.eye(6))
    else:
        y = model.apply(variables, jnp.eye(6), rngs={"mismatch": jax.random.key(3)})
    # The weights are those of bfloat16, their levels are not.
    step = np.float32(2 / 62) * np.abs(found).max()
    expected = jnp.asarray(step * np.round(found / step), jnp.bfloat16)
    bias = jnp.asarray(leaf_of(params, f"{layer}/bias"), jnp.bfloat16)
    np.testing.assert_array_equal(np.float32(y), np.float32(expected + bias))


def test_what_a_call_does_to_stored_weights_is_what_plain_flax_does():
    plain = OfNnx()
    quiet = hwtrain.Hardware(mismatch=MISMATCH)
    model = hwtrain.analogize(OfNnx(), quiet, rngs=nnx.Rngs(mismatch=1))

    @nnx.jit
    def step(model, optimizer):
        gradients = nnx.grad(lambda model: jnp.mean(model(X) ** 2))(model)
        optimizer.update(model, gradients)

    for trained in (plain, model):
        optimizer = nnx.Optimizer(trained, optax.sgd(0.1), wrt=nnx.Param)
        for _ in range(2):
            step(trained, optimizer)
        trained(X)
    for found, expected in zip(
        jax.tree.leaves(nnx.state(model, nnx.Param)),
        jax.tree.leaves(nnx.state(plain, nnx.Param)),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    columns = np.linalg.norm(plain.norm.layer_instance.kernel[...], axis=0)
    # Flax wrote the normalised weights back until 0.12.12.
    version = tuple(map(int, flax.__version__.split(".")[:3]))
    assert np.allclose(columns, 1, rtol=1e-5) == (version < (0, 12, 12))


class Varying(nn.Module):
    """One layer that is called with other factors, or only where its input says so."""

    factors: tuple[float, ...]

    @nn.compact
    def __call__(self, x, skip=False):
        layer, new = nn.Dense(6, name="layer"), self.is_initializing()
        for factor in self.factors:
            call = nn.map_variables(
                lambda layer, x: layer(x),
                "params",
                lambda tree, by=factor: jax.tree.map(
                    lambda w: w if new else by * w, tree
                ),
                init=new,
                mutable=new,
            )
            x = call(layer, x) if not skip else x
        return x


def test_a_crossbar_holds_one_array_of_weights():
    model = hwtrain.analogize(Varying((0.5, 2.0)), hwtrain.Hardware(mismatch=MISMATCH))
    variables = model.init(jax.random.key(0), X)
    with pytest.raises(
        ValueError, match="one array of weights in one call and by anot"
    ):
        hwtrain.materialize(model, variables, X)
    model = hwtrain.analogize(Varying((0.5, 0.5)), hwtrain.Hardware(mismatch=MISMATCH))
    found = hwtrain.materialize(model, variables, X)["params"]["layer"]
    np.testing.assert_array_equal(found["effective_kernel"], 0.5 * found["kernel"])
    again = hwtrain.materialize(model, {"params": {"layer": found}}, X)
    assert again == {"params": {"layer": found}}


def test_an_output_scale_does_not_become_part_of_stored_weights():
    mapping = hwtrain.MappingParameter(learn_out_scaling=True)
    model, variables, _ = model_of("linen", hwtrain.Hardware(mapping=mapping))
    plan = hwtrain.plan(model, variables, X)
    with pytest.raises(
        ValueError, match="output_scale cannot become part of layer/ker"
    ):
        hwtrain.strip(variables["params"], plan)


def test_strip_takes_the_effective_weights_away():
    model, variables, _ = model_of("linen")
    nominal = hwtrain.materialize(model, variables, X)
    for given in (variables, nominal):
        plan = hwtrain.plan(model, given, X)
        found = hwtrain.strip(nominal["params"], plan)
        assert sorted(found["layer"]) == ["bias", "kernel"]


class Standardised(nn.Dense):
    def param(self, name, *args, **kwargs):
        value = super().param(name, *args, **kwargs)
        return (value - value.mean(0)) / value.std(0) if name == "kernel" else value


def test_other_programs_get_the_effective_weights(tmp_path):
    nir = pytest.importorskip("nir")
    converter = hwtrain.SinglePairConductanceConverter(g_max=25.0)
    model = hwtrain.analogize(
        nn.Sequential([Standardised(4)]), hwtrain.Hardware(converter=converter)
    )
    variables = model.init(jax.random.key(0), X)
    checkpoint = hwtrain.load(
        hwtrain.export(
            tmp_path / "chip",
            variables,
            hwtrain.plan(model, variables, X),
            analog=model,
            example=(X,),
            graph=hwtrain.checkpoint.trace_graph(model, variables, X),
        )
    )
    stored = np.float64(variables["params"]["layers_0"]["kernel"])
    expected = (stored - stored.mean(0)) / stored.std(0)
    for name in ("nir", "npz"):
        ADAPTERS[name](checkpoint, tmp_path / name)
    (node,) = (
        node
        for node in nir.read(tmp_path / "nir").nodes.values()
        if hasattr(node, "weight")
    )
    np.testing.assert_allclose(node.weight.T, expected, rtol=1e-5, atol=1e-6)
    arrays = dict(np.load(tmp_path / "npz"))
    found = arrays["variables/params/layers_0/effective_kernel"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_manifest_names_what_a_derived_weight_is_made_of(tmp_path):
    model, variables, _ = model_of("linen")
    nominal = hwtrain.materialize(model, variables, X)
    plan = hwtrain.plan(model, nominal, X)
    made_of = [entry for entry in plan.digital if entry.path != "layer/kernel"]
    forged = dataclasses.replace(plan, digital=tuple(made_of))
    with pytest.raises(ValueError, match="effective_kernel is made of layer/kernel"):
        hwtrain.export(tmp_path / "chip", nominal, forged)
