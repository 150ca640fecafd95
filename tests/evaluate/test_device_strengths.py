"""`assert_active` tells devices and updates that are off, or half as strong."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

import hwtrain as hw
from hwtrain import devices
from hwtrain.devices import _programmed, bases, drifting, pcm, reram_cmo
from hwtrain.evaluate import _exported as exported
from hwtrain.evaluate import _updates as updates
from hwtrain.evaluate._device_proof import behaved

MEASURED = {
    "g_max": 20.0,
    "g_lst": (0.0, 20.0),
    "sigma_lst": (0.5, 1.0),
    "nu_mean_lst": (0.1, 0.02),
    "nu_std_lst": (0.02, 0.01),
    "read_level_lst": (0.02, 0.01),
}
MODELS = {
    "pcm": devices.PCMLikeNoiseModel(),
    "pcm of other numbers": devices.PCMLikeNoiseModel(
        g_max=10.0, prog_noise_scale=0.5, read_noise_scale=2.0, drift_scale=0.3
    ),
    "pcm of other coefficients": devices.PCMLikeNoiseModel(
        prog_coeff=(0.1, 0.2), prog_coeff_g_max_reference=12.0
    ),
    "custom drift": devices.CustomDriftPCMLikeNoiseModel(
        g_lst=(0.0, 25.0), nu_mean_lst=(0.1, 0.05), nu_std_lst=(0.04, 0.01)
    ),
    "hermes": devices.HermesNoiseModel(),
    "hermes of one": devices.HermesNoiseModel(num_devices=1, g_max=5.0),
    "state independent": devices.StateIndependentNoiseModel(),
    "cmo": devices.ReRamCMONoiseModel(),
    "cmo of 2 %": devices.ReRamCMONoiseModel(acceptance_range=2.0),
    "wan": devices.ReRamWan2022NoiseModel(g_max=30.0),
    "measured": devices.MeasuredNoiseModel(**MEASURED),
}
HOT = {"temperature_k": 350.0, "conduction_ev": (0.2, -0.1), "retention_ev": 0.3}
FAILING = {"law": "weibull", "scale_s": 1e5, "shape": 0.8}
for _name in ("pcm", "cmo", "wan"):
    _model = MODELS[_name]
    MODELS[f"hot {_name}"] = devices.AtTemperature(noise_model=_model, **HOT)
    _failing = devices.RetentionFailures(noise_model=_model, **FAILING)
    MODELS[f"failing {_name}"] = _failing


def wrong_of(model):
    return {effect for _, effect, wrong, _ in behaved("w", model, (), {}) if wrong}


def effects_of(model):
    return {effect for _, effect, _, _ in behaved("w", model, (), {})}


ALL = {"programming noise", "drift", "read noise"}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", MODELS)
def test_a_noise_model_behaves_as_configured(name):
    assert wrong_of(MODELS[name]) == set()
    assert effects_of(MODELS[name]) == ALL - (
        {"read noise"} if "wan" in name else set()
    )


def weaker_program(program, share):
    """Returns a programming of devices with a share of its noise."""

    def weaker(self, key, g_target):
        device = program(self, key, g_target)
        g = g_target + share * (device.g_prog - g_target)
        fields = {name: getattr(device, name) for name in ("nu", "xi", "life")}
        return _programmed.Programmed(g_target=g_target, g_prog=g, **fields)

    return weaker


def weaker_drift(mean_at, share):
    def weaker(self, device, t_s):
        first = mean_at(self, device, 0.0)
        return first + share * (mean_at(self, device, t_s) - first)

    return weaker


def weaker_read(at, share):
    def weaker(self, key, device, t_s):
        mean = self.mean_at(device, t_s)
        return mean + share * (at(self, key, device, t_s) - mean)

    return weaker


WEAKER = {
    "programming noise": ("program", weaker_program),
    "drift": ("mean_at", weaker_drift),
    "read noise": ("at", weaker_read),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 2.0])
@pytest.mark.parametrize("effect", WEAKER)
@pytest.mark.parametrize("name", MODELS)
def test_a_noise_model_of_another_strength_is_told(name, effect, share, monkeypatch):
    model = MODELS[name]
    if effect not in effects_of(model):
        pytest.skip("this model has no read noise of its own")
    target, change = WEAKER[effect]
    monkeypatch.setattr(
        type(model), target, change(getattr(type(model), target), share)
    )
    assert effect in wrong_of(model)


def half(function):
    return lambda *args, **options: function(*args, **options) / 2


def weak_noise(function):
    return lambda g, sigma, xi: function(g, sigma / 2, xi)


def still(exponent):
    return lambda mean, std, xi: exponent(mean, 0 * jnp.asarray(std), xi)


INSIDE = {
    "sigma": ("pcm", pcm._PCMNoiseModel, "programming_sigma", half),
    "noise": ("pcm", drifting, "noisy", weak_noise),
    "mean exponent": ("pcm", pcm.PCMLikeNoiseModel, "drift_mean", half),
    "no spread of exponents": (
        "measured",
        devices.MeasuredNoiseModel,
        "drift_std",
        half,
    ),
    "read noise": ("pcm", pcm._PCMNoiseModel, "read_sigma", half),
    "read noise of all": ("pcm", bases, "noisy", weak_noise),
    "relaxation": ("cmo", reram_cmo, "cmo_relaxation", half),
    "growth": ("pcm", pcm, "noise_growth", half),
    "power law": (
        "pcm",
        drifting,
        "power_law",
        lambda f: lambda g, nu, **k: (g + f(g, nu, **k)) / 2,
    ),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", INSIDE)
def test_half_of_what_a_noise_model_is_made_of_is_told(name, monkeypatch):
    model, module, target, change = INSIDE[name]
    monkeypatch.setattr(module, target, change(getattr(module, target)))
    assert wrong_of(MODELS[model])


def findings(chip, features=30, rows=20):
    analog = hw.analogize(nn.Dense(features, use_bias=False), chip)
    x = jnp.ones((1, rows))
    variables = jax.jit(analog.init)(jax.random.key(0), x)
    plan = hw.plan(analog, variables, x)
    jax.clear_caches()
    found = [
        *updates.updated_effects(plan, variables["params"]),
        *exported.deployed_effects(plan, variables["params"]),
    ]
    jax.clear_caches()
    return {effect for _, effect, wrong, _ in found if wrong}


PCM = {
    "converter": devices.SinglePairConductanceConverter(),
    "noise_model": devices.PCMLikeNoiseModel(),
}


@pytest.mark.parametrize("size", [(30, 20), (1, 1)], ids=["a layer", "one weight"])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_programming_noise_of_an_export_is_measured(share, size, monkeypatch):
    if share < 1:
        weaker = weaker_program(devices.PCMLikeNoiseModel.program, share)
        monkeypatch.setattr(devices.PCMLikeNoiseModel, "program", weaker)
    assert ("programming noise" in findings(hw.Hardware(**PCM), *size)) == (share < 1)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_programming_noise_is_measured_on_the_devices_of_the_export(share, monkeypatch):
    if share < 1:
        weaker = weaker_program(devices.PCMLikeNoiseModel.program, share)
        monkeypatch.setattr(
            "hwtrain.chips._programming.programmed_by",
            lambda model, key, g: weaker(model, key, g),
        )
    assert ("programming noise" in findings(hw.Hardware(**PCM))) == (share < 1)


class Flash(devices.NoiseModel):
    """A noise model of a user that declares nothing."""

    g_max: float = 20.0

    def programming_sigma(self, g):
        return 0.05 * g


class Drifting(devices.DriftingNoiseModel):
    """Another one that drifts."""

    g_max: float = 25.0

    def programming_sigma(self, g):
        return 0.02 * g

    def drift_mean(self, g):
        return 0.05 + 0 * g

    def drift_std(self, g):
        return 0.02 + 0 * g

    def read_sigma(self, programmed, t_s):
        return 0.03 * self.mean_at(programmed, t_s)


class Special(Flash):
    """One with a programming of its own, of which nothing is known."""

    def program(self, key, g_target):
        return _programmed.Programmed(g_target=g_target, g_prog=0.9 * g_target)


def test_noise_models_of_a_user_are_measured_by_what_they_say(monkeypatch):
    assert effects_of(Flash()) == {"programming noise"} and not wrong_of(Flash())
    assert effects_of(Drifting()) == ALL and not wrong_of(Drifting())
    assert effects_of(Special()) == set()
    monkeypatch.setattr(bases, "noisy", weak_noise(bases.noisy))
    assert wrong_of(Flash()) == {"programming noise"}
    assert wrong_of(Drifting()) == {"read noise"}


REMAPS = {
    "layers": {"type": "layerwise_symmetric"},
    "channels": {"type": "channelwise_symmetric"},
    "limited": {"type": "channelwise_symmetric", "max_scale_range": 1.2},
    "smaller": {"type": "layerwise_symmetric", "remapped_wmax": 0.5},
}


def mappings():
    for name, options in {
        "one tile": {},
        "tiles": {"max_input_size": 13, "max_output_size": 11},
        "scaled tiles": {
            "max_input_size": 13,
            "max_output_size": 11,
            "weight_scaling_omega": 1.0,
        },
        "scaled columns": {
            "max_input_size": 13,
            "weight_scaling_omega": 1.0,
            "weight_scaling_columnwise": True,
        },
    }.items():
        yield pytest.param(hw.MappingParameter(**options), id=name)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("mapping", list(mappings()))
@pytest.mark.parametrize("name", REMAPS)
def test_a_remapping_has_its_scales(name, mapping, share, monkeypatch):
    part = hw.WeightRemapParameter(**REMAPS[name])
    if share < 1:
        scale = hw.WeightRemapParameter.scale
        monkeypatch.setattr(
            hw.WeightRemapParameter,
            "scale",
            lambda self, w, s, *rest: (s + scale(self, w, s, *rest)) / 2,
        )
    chip = hw.Hardware(remap=part, mapping=mapping)
    assert findings(chip) == ({"remap"} if share < 1 else set())


DRIFTS = {
    "simple": hw.SimpleDriftParameter(nu=0.1),
    "device": hw.DriftParameter(
        nu=0.1, nu_dtod=0.2, nu_std=0.1, w_noise_std=0.02, nu_k=0.01, log_g0=-1.0
    ),
    "offset": hw.DriftParameter(nu=0.1, g_offset=0.3, w_offset=0.1, wg_ratio=2.0),
    "noise": hw.DriftParameter(w_noise_std=0.02),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("name", DRIFTS)
def test_a_drift_of_training_has_its_strength(name, share, monkeypatch):
    part = DRIFTS[name]
    step = type(part).step

    def weaker(self, state, w, *args, **options):
        now, state = step(self, state, w, *args, **options)
        return w + share * (now - w), state

    if share < 1:
        monkeypatch.setattr(type(part), "step", weaker)
    scaled = hw.MappingParameter(weight_scaling_omega=1.0)
    chip = hw.Hardware(drift=part, mapping=scaled)
    assert findings(chip) == ({"drift"} if share < 1 else set())


def test_the_smallest_layers_behave_as_configured():
    chip = hw.Hardware(
        **PCM,
        clip=hw.WeightClipParameter(type="layer_gaussian"),
        drift=DRIFTS["device"],
        remap=hw.WeightRemapParameter(type="channelwise_symmetric"),
    )
    for size in ((1, 1), (1, 2), (2, 1), (3, 2)):
        assert findings(chip, *size) == set()


@pytest.mark.parametrize(
    "model",
    [
        devices.PCMLikeNoiseModel(drift_scale=0.0),
        devices.SonosNoiseModel(drift_scale=0.0, prog_noise_scale=0.0),
        devices.ReRamCMONoiseModel(drift_scale=0.0),
    ],
    ids=lambda model: model.type,
)
def test_drift_that_is_turned_off_is_not_missed(model):
    assert not model.must_drift(1e5)
    written = model.program(jax.random.key(0), jnp.full(8, 0.5 * model.g_max))
    assert (model.mean_at(written, 1e5) == model.mean_at(written, 0.0)).all()


def test_a_model_without_drift_is_active():
    chip = hw.Hardware(
        converter=hw.SinglePairConductanceConverter(g_max=25.0),
        noise_model=devices.PCMLikeNoiseModel(drift_scale=0.0),
    )
    x = jnp.ones((2, 8))
    analog = hw.analogize(nn.Dense(4), chip)
    hw.assert_active(analog, analog.init(jax.random.key(0), x), x)
