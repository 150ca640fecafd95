"""`assert_active` on layers with few weights or zeros: no correct model fails."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain._flax import weight_side
from hwtrain._flax.functional import as_function
from hwtrain.evaluate import _active as active
from hwtrain.evaluate import _exported as exported
from hwtrain.evaluate import _updates as updates
from hwtrain.evaluate._judgement import ENOUGH, ZEROS, repeated, strength_of
from hwtrain.periphery import _pipeline as pipeline
from hwtrain.periphery import dac

X = jax.random.normal(jax.random.key(0), (4, 1))
CHIP = hw.Hardware(
    modifier=hw.WeightModifierParameter(type="add_normal", std_dev=0.1),
    clip=hw.WeightClipParameter(type="layer_gaussian"),
    remap=hw.WeightRemapParameter(type="channelwise_symmetric"),
    input_range=hw.InputRangeParameter(),
    forward=hw.IOParameters(
        **{"inp_bits": 6, "inp_noise": 0.05, "out_noise": 0.05, "ir_drop": 1.0},
        **{"w_noise": 0.05, "w_noise_type": "pcm_read", "ir_drop_g_ratio": 1000.0},
    ),
    mapping=hw.MappingParameter(weight_scaling_omega=1.0),
    mismatch=hw.MismatchParameter(type="mult_normal", std_dev=0.1),
)
DRAWN = dataclasses.replace(
    CHIP,
    modifier=hw.WeightModifierParameter(type="drop_connect", pdrop=0.2),
    forward=hw.IOParameters(
        out_bits=8, out_bound=3.0, out_sto_round=True, v_offset_std=0.1
    ),
)
"""What is drawn, and may for once do nothing to one output."""

SIZES = {"a": 1, "b": 3}


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        for name, size in SIZES.items():
            x = nn.Dense(size, name=name)(x)
        return x


class NnxNet(nnx.Module):
    def __init__(self):
        sizes, rngs = [1, *SIZES.values()], nnx.Rngs(0)
        for name, *shape in zip(SIZES, sizes, sizes[1:]):
            setattr(self, name, nnx.Linear(*shape, rngs=rngs))

    def __call__(self, x):
        return self.b(self.a(x))


def build(framework, chip):
    """Returns the function of a model, its tree and its plan."""
    if framework == "nnx":
        analog = hw.analogize(NnxNet(), chip, rngs=nnx.Rngs(mismatch=0))
        return *as_function(analog, "train"), hw.plan(analog)
    analog = hw.analogize(LinenNet(), chip)
    variables = jax.jit(analog.init)(jax.random.key(0), X)
    return *as_function(analog, "train", variables), hw.plan(analog, variables, X)


def of_seed(params, plan, seed):
    params = jax.tree.map(np.asarray, params)
    rng = np.random.default_rng(seed)
    for name in SIZES:
        kernel = rng.normal(size=params[name]["kernel"].shape).astype(np.float32)
        scale = np.asarray(plan[f"{name}/kernel"].initial_scale(jnp.asarray(kernel)))
        params[name] = {**params[name], "kernel": kernel, "mapping_scale": scale}
    return params


def steps_of(framework, chip, seeds):
    """Yields what is judged of models with other weights and keys, by one program."""
    function, tree, plan = build(framework, chip)
    with active.watching(function, {}) as watched:
        for seed in seeds:
            params = of_seed(tree["params"], plan, seed)
            base = jax.random.key(1000 + seed)
            count = active._steps(plan)
            keys = list(jax.random.split(base, count))
            steps = watched({**tree, "params": params}, keys, X)
            yield active.judged(plan, params, keys, steps)


@pytest.mark.nightly
@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_no_random_model_fails(framework):
    for log in steps_of(framework, CHIP, range(25)):
        assert not log.wrong
        found = {(path, effect) for path, effect, _ in log.rows}
        for effect in ("modifier", "w_noise", "inp_noise", "out_noise", "DAC levels"):
            assert {("a/kernel", effect), ("b/kernel", effect)} <= found


@pytest.mark.nightly
def test_a_draw_that_does_nothing_for_once_is_no_failure():
    for log in steps_of("linen", DRAWN, range(5)):
        assert not log.wrong


def half(modified):
    def weaker(w, kernel, *rest):
        return kernel + (modified(w, kernel, *rest) - kernel) / 2

    return weaker


@pytest.mark.parametrize(
    "framework", ["linen", pytest.param("nnx", marks=pytest.mark.nightly)]
)
def test_what_is_weak_or_off_is_found_on_small_layers(framework, retraced):
    normal = pipeline.normal
    retraced.setattr(weight_side, "_modified", half(weight_side._modified))
    retraced.setattr(pipeline, "normal", lambda key, shape: normal(key, shape) / 2)
    retraced.setattr(dac, "convert", lambda x, *args, **kwargs: x)
    for module in ("periphery.input_range", "periphery._range_gradient"):
        target = f"hwtrain.{module}.clip_to_range"
        retraced.setattr(target, lambda x, *_: x)
    for log in steps_of(framework, CHIP, range(5)):
        wrong = {tuple(line.split(": ")[:2]) for line in log.wrong}
        for path in ("a/kernel", "b/kernel"):
            for effect in ("modifier", "inp_noise", "out_noise", "w_noise", "DAC"):
                assert (path, effect) in wrong
            assert (path, "input_range clips") in wrong
        assert "noise has 0.5" in str(log.wrong)


def one_weight(chip, kernel=0.5, shape=(1, 1)):
    analog = hw.analogize(nn.Dense(shape[1], use_bias=False), chip)
    x = jnp.ones((2, shape[0]))
    variables = jax.jit(analog.init)(jax.random.key(0), x)
    params = {**variables["params"], "kernel": jnp.full(shape, kernel)}
    return analog, {"params": params}, x


@pytest.mark.parametrize("strength", [1.0, 0.5, 0.0])
def test_the_mismatch_of_one_weight_is_measured_on_many_chips(strength, monkeypatch):
    chip = hw.Hardware(mismatch=CHIP.mismatch)
    usual = hw.MismatchParameter.__call__

    def weaker(self, key, w, w_max):
        return w + strength * (usual(self, key, w, w_max) - w)

    monkeypatch.setattr(hw.MismatchParameter, "__call__", weaker)
    jax.clear_caches()
    analog, variables, x = one_weight(chip)
    plan = hw.plan(analog, variables, x)
    found = list(exported.deployed_effects(plan, variables["params"]))
    jax.clear_caches()
    assert [effect for _, effect, _, _ in found] == ["mismatch"]
    assert (found[0][2] is None) == (strength == 1)


@pytest.mark.sampled
@pytest.mark.parametrize("kind", ["layer_gaussian", "average_channel_max"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_a_clip_that_cannot_bound_is_no_failure(kind, shape, monkeypatch):
    chip = hw.Hardware(
        clip=hw.WeightClipParameter(type=kind),
        remap=hw.WeightRemapParameter(type="channelwise_symmetric"),
        mapping=CHIP.mapping,
    )
    analog, variables, x = one_weight(chip, shape=shape)
    plan = hw.plan(analog, variables, x)

    def found():
        jax.clear_caches()
        each = updates.updated_effects(plan, variables["params"])
        return {effect: (wrong, amount) for _, effect, wrong, amount in each}

    assert not any(wrong for wrong, _ in found().values())
    acts = shape[1] > 1 or (kind == "layer_gaussian" and shape != (1, 1))
    assert ("bounds an update" == found()["clip"][1]) == acts
    monkeypatch.setattr("hwtrain.optim._clip.bounded_update", lambda p, u, b: u)
    monkeypatch.setattr("hwtrain.optim._remap._new_scale", lambda w, k, s: s)
    off = found()
    jax.clear_caches()
    assert bool(off["clip"][0]) == acts and off["remap"][0]


@pytest.mark.parametrize(
    "chip", [CHIP, hw.Hardware(modifier=CHIP.modifier, mismatch=CHIP.mismatch)]
)
def test_a_kernel_of_zeros_is_told_as_such(chip):
    with pytest.raises(ValueError) as error:
        hw.assert_active(*one_weight(chip, kernel=0.0, shape=(3, 2)))
    causes = str(error.value).splitlines()[1:]
    assert all(line.endswith(ZEROS) for line in causes)
    told = {line.split(": ")[1] for line in causes}
    assert {"modifier", "mismatch"} <= told
    assert not {"clip", "remap", "input_range moves", "out_noise"} & told


def test_the_level_of_one_weight_is_itself():
    levels = hw.WeightModifierParameter(type="discretize", res=0.1)
    found = hw.assert_active(*one_weight(hw.Hardware(modifier=levels)))
    assert "weights like these stay as they are" in str(found)


def test_bounds_follow_from_the_number_of_draws():
    rng = np.random.default_rng(0)
    for _ in range(1000):
        draws = rng.normal(size=ENOUGH)
        assert strength_of(draws, ENOUGH)[1] is None
        assert strength_of(draws / 2, ENOUGH)[1]
        assert strength_of(draws * 2, ENOUGH)[1]
        # A narrow dtype has few numbers, of which some come twice.
        assert not repeated(np.round(draws[:, None] * 4))
    assert repeated(np.zeros((8, 1))) and repeated(np.zeros((8, 20)))
    assert repeated(np.stack([rng.normal(size=20)] * 2 + [rng.normal(size=20)] * 2))
