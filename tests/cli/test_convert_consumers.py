"""Models that the packages make afresh, converted, compute the same in hwtrain.

Run by `.ci/consumers`, where the packages are installed.
"""

import json
import runpy
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from safetensors.numpy import load_file

import hwtrain
from hwtrain import cli
from hwtrain.checkpoint import export, load
from hwtrain.checkpoint.adapters import to_aihwkit
from hwtrain.dynapse import DynapSim
from hwtrain.train import initialised, read_arrays

pytestmark = pytest.mark.nightly


def _digital(torch, kind):
    """Returns a model of PyTorch for that of `trained_models.py`."""
    layers = torch.nn
    if kind == "mlp":
        return layers.Sequential(
            layers.Linear(11, 7), layers.ReLU(), layers.Linear(7, 3)
        )
    model = layers.Sequential(
        layers.Conv2d(2, 4, 3, padding=1),
        layers.BatchNorm2d(4),
        layers.ReLU(),
        layers.Conv2d(4, 3, (3, 2), stride=2),
        layers.BatchNorm2d(3),
        layers.ReLU(),
        layers.Flatten(),
        layers.Linear(18, 5),
    )
    for norm in (model[1], model[4]):
        norm.running_mean.copy_(0.3 * torch.randn(norm.num_features))
        norm.running_var.copy_(0.5 + torch.rand(norm.num_features))
        norm.weight.data.copy_(0.5 + torch.rand(norm.num_features))
        norm.bias.data.copy_(0.3 * torch.randn(norm.num_features))
    return model


def _compare(torch, conversions, model, kind, package, folder):
    model.eval()
    x = torch.randn(*((5, 11) if kind == "mlp" else (3, 2, 6, 7)))
    with torch.no_grad():
        y = model(x).numpy()
    torch.save(model.state_dict(), folder / "model.th")
    x = x.numpy() if kind == "mlp" else np.moveaxis(x.numpy(), 1, -1)
    out = folder / "out"
    assert conversions.convert(folder / "model.th", out, package, kind, x) == 0
    found = conversions.outputs(out, kind, x)
    np.testing.assert_allclose(found, y, rtol=0, atol=1e-5 * max(1, abs(y).max()))
    return load_file(out / "plain.safetensors")


_CLASSES = ("InferenceRPUConfig", "TorchInferenceRPUConfig")
_SCALES = ("tiles", "columns", "learned", "learned columns", "none", "remapped")
_INPUTS = ("ranges", "maxima", "neither")


_CASES = [
    (name, scales, inputs, kind)
    for name in _CLASSES
    for scales in _SCALES
    for inputs in _INPUTS
    for kind in ("mlp", "cnn")
    # Of convolutions, those with input ranges.
    if kind == "mlp" or inputs == "ranges"
] + [("SingleRPUConfig", scales, "maxima", "mlp") for scales in ("none", "columns")]


@pytest.mark.parametrize("name, scales, inputs, kind", _CASES)
def test_aihwkit(name, scales, inputs, kind, conversions, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("aihwkit", reason="aihwkit is not installed")
    from aihwkit.nn.conversion import convert_to_analog
    from aihwkit.simulator import configs
    from aihwkit.simulator.parameters import enums

    torch.manual_seed(7)
    config = getattr(configs, name)()
    forward, mapping = config.forward, config.mapping
    forward.inp_res = forward.out_res = 1 / (2**8 - 2)
    forward.out_bound, forward.out_noise = 10.0, 0.0
    forward.bound_management = enums.BoundManagementType.NONE
    forward.noise_management = enums.NoiseManagementType.NONE
    if inputs == "maxima":
        forward.noise_management = enums.NoiseManagementType.ABS_MAX
    config.pre_post.input_range.enable = inputs == "ranges"
    mapping.max_input_size, mapping.max_output_size = 6, 4
    mapping.weight_scaling_omega = 0.0 if scales == "none" else 1.0
    mapping.weight_scaling_columnwise = "columns" in scales
    mapping.learn_out_scaling = "learned" in scales
    mapping.out_scaling_columnwise = "learned columns" == scales
    if scales == "remapped":
        config.remap.type = enums.WeightRemapType.CHANNELWISE_SYMMETRIC
    model = convert_to_analog(_digital(torch, kind), config)
    for layer in model.analog_layers():
        for tile in layer.analog_tiles():
            weight = tile.tile.get_weights()
            # As after a training: off the scales that they began with.
            tile.tile.set_weights(weight * (0.6 + 0.6 * torch.rand_like(weight)))
            if inputs == "ranges":
                tile.set_input_range(0.4 + 1.6 * torch.rand(1))
            if "learned" in scales:
                learned = tile.out_scaling_alpha
                learned.data.copy_(0.5 + torch.rand_like(learned))
            if scales == "remapped":
                tile.set_mapping_scales(0.2 + torch.rand(weight.shape[0]))
    plain = _compare(torch, conversions, model, kind, "aihwkit", tmp_path)
    first = next(iter(model.analog_layers()))
    weight = first.get_weights()[0].detach().numpy()
    kernel = plain[f"params/{'fc_0' if kind == 'mlp' else 'Conv_0'}/kernel"]
    kernel = np.moveaxis(kernel, (-1, -2), (0, 1))  # outputs, inputs, window
    np.testing.assert_allclose(
        kernel, weight.reshape(kernel.shape), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize(
    "clip", ["NONE", "LAYER_GAUSSIAN_PER_CHANNEL", "LEARNABLE_PER_CHANNEL"]
)
@pytest.mark.parametrize("levels", ["NONE", "DISCRETIZE_PER_CHANNEL"])
@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_lightning(clip, levels, kind, conversions, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("aihwkit_lightning", reason="lightning is not installed")
    from aihwkit_lightning.nn.conversion import convert_to_analog
    from aihwkit_lightning.simulator.configs import TorchInferenceRPUConfig
    from aihwkit_lightning.simulator.parameters import enums

    torch.manual_seed(7)
    config = TorchInferenceRPUConfig()
    config.pre_post.input_range.enable = True
    config.mapping.max_input_size = 7
    config.forward.inp_res = config.forward.out_res = 1 / (2**8 - 2)
    # Not 2: the product of one input with a column's largest weight would often lie
    # halfway between two levels, where the last bit decides.
    config.forward.out_bound = 2.3
    config.clip.type, config.clip.sigma = enums.WeightClipType[clip], 2.5
    config.modifier.quantization_type = enums.WeightQuantizationType[levels]
    config.modifier.res = 1 / (2**5 - 2)
    model = convert_to_analog(_digital(torch, kind), config)
    for layer in model.analog_layers():
        layer.input_range.data = 0.4 + 1.6 * torch.rand_like(layer.input_range)
        if clip.startswith("LEARN"):
            layer.learnable_weight_clip.data *= 0.7
    _compare(torch, conversions, model, kind, "lightning", tmp_path)


def test_aihwkit_and_back(conversions, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    kit = pytest.importorskip("aihwkit.nn", reason="aihwkit is not installed")
    model = conversions.load_models().mlp()
    chip = hwtrain.Hardware(
        mapping=hwtrain.MappingParameter(
            max_input_size=6, max_output_size=4, weight_scaling_omega=1.0
        ),
        input_range=hwtrain.InputRangeParameter(init_value=1.3),
        forward=hwtrain.IOParameters(inp_bits=8, out_bits=8, out_bound=10.0),
        converter=hwtrain.SinglePairConductanceConverter(g_max=25.0),
    )
    analog, x = hwtrain.analogize(model, chip), jnp.ones((2, 11))
    variables = analog.init(jax.random.key(0), x)
    plan = hwtrain.plan(analog, variables, x)
    checkpoint = load(export(tmp_path / "chip", variables, plan))
    to_aihwkit(checkpoint, tmp_path / "kit")
    made = runpy.run_path(str(tmp_path / "kit" / "rpu_config.py"))["RPU_CONFIGS"]
    there = kit.AnalogSequential(
        kit.AnalogLinear(11, 7, rpu_config=made["fc_0"]()),
        torch.nn.ReLU(),
        kit.AnalogLinear(7, 3, rpu_config=made["fc_1"]()),
    )
    names = {"0": "fc_0", "2": "fc_1"}
    load_into = runpy.run_path(str(tmp_path / "kit" / "load.py"))["load"]
    load_into(there, tmp_path / "kit", names)
    torch.save(there.state_dict(), tmp_path / "model.th")
    out = tmp_path / "out"
    assert conversions.convert(tmp_path / "model.th", out, "aihwkit", "mlp", x) == 0
    found = load_file(out / "analog.safetensors")
    for name in ("fc_0", "fc_1"):
        ours = variables["params"][name]
        for leaf in ("kernel", "bias", "input_range"):
            came = found[f"params/{name}/{leaf}"]
            np.testing.assert_allclose(came, ours[leaf], rtol=1e-6, atol=1e-8)
    back = conversions.hardware_of(out)
    assert back.mapping == chip.mapping and back.converter == chip.converter
    assert (back.forward.dac, back.forward.adc) == (chip.forward.dac, chip.forward.adc)
    assert back.input_range == chip.input_range
    y = conversions.outputs(out, "mlp", x)
    wanted = hwtrain.eval_mode(analog).apply(variables, x)
    np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-6)


class Neurons(nn.Module):
    @nn.compact
    def __call__(self, x):
        cell = DynapSim(features=4, reference=True)
        return nn.RNN(cell)(nn.Dense(4, use_bias=False)(x))


@pytest.mark.parametrize("seed", [0, 1])
def test_rockpool(seed, tmp_path):
    pytest.importorskip("rockpool", reason="Rockpool is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from rockpool.devices.dynapse import DynapSim as Theirs
        from rockpool.nn.combinators import Sequential
        from rockpool.nn.modules import LinearJax

    draw = np.random.default_rng(seed)
    net = Sequential(
        LinearJax((3, 4), weight=6 * draw.normal(size=(3, 4)), has_bias=False),
        Theirs(
            (4, 4),
            w_rec=2 * draw.normal(size=(4, 4)),
            has_rec=True,
            percent_mismatch=0.2,
            rng_key=jax.random.PRNGKey(seed),
        ),
    )

    def tree(values):
        return {
            name: tree(x) if hasattr(x, "items") else np.asarray(x, float).tolist()
            for name, x in values.items()
            if not callable(x)
        }

    trained, fixed = tree(net.parameters()), tree(net.simulation_parameters())
    saved = {name: {**fixed[name], **trained[name]} for name in trained}
    (tmp_path / "net.json").write_text(json.dumps(saved))
    x = (draw.random((1, 100, 3)) < 0.5).astype(np.float32)
    spikes = np.asarray(net(x)[0])
    words = ["convert", str(tmp_path / "net.json"), "--from", "rockpool"]
    assert cli.main([*words, "--out", str(tmp_path / "out")]) == 0
    variables = Neurons().init(jax.random.key(0), jnp.asarray(x))
    rename = {"0_LinearJax/(.*)": r"Dense_0/\1", "1_DynapSim/(.*)": r"DynapSim_0/\1"}
    arrays = read_arrays(tmp_path / "out" / "plain.safetensors")
    variables, report = initialised(variables, arrays, rename=rename)
    assert not report.missing and not report.unused
    np.testing.assert_array_equal(Neurons().apply(variables, jnp.asarray(x)), spikes)
    assert spikes.sum() > 10
