"""The models of `peers.py` in torch, and on the chips of aihwkit and its successor.

Used where torch, aihwkit-lightning and aihwkit are installed: `peers.py` makes an
environment with them. Each chip is described by its library's own configuration, with
the same effects and constants as the chips of `models.py`.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

NOISE, SIGMA, OUT_NOISE, OUT_BOUND = 0.05, 2.5, 0.04, 10.0
STEPS_OF_8_BITS = 2**8 - 2
LEARNING_RATE = 1e-4
DAY_S = 86400.0


class Residual(nn.Module):
    """Adds its input to the output of a block."""

    def __init__(self, *block: nn.Module):
        super().__init__()
        self.block = nn.Sequential(*block)

    def forward(self, x):
        return x + self.block(x)


class Attention(nn.Module):
    """Self-attention, with four dense layers as Flax has them."""

    def __init__(self, width: int, heads: int, linear: Callable):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (linear(width, width) for _ in range(4))

    def forward(self, x):
        batch, tokens, width = x.shape
        shape = (batch, tokens, self.heads, width // self.heads)
        q, k, v = (
            layer(x).reshape(shape).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(batch, tokens, width))


def mlp(size: dict, linear: Callable, conv: Callable) -> nn.Module:
    """`models.Squares`."""
    width = size["width"]
    return nn.Sequential(*(linear(width, width) for _ in range(size["depth"])))


def cnn(size: dict, linear: Callable, conv: Callable) -> nn.Module:
    """`models.Cnn`."""
    channels, pixels = size["channels"], size["pixels"]
    return nn.Sequential(
        *(conv(1, channels), nn.ReLU(), nn.AvgPool2d(2)),
        *(conv(channels, 2 * channels), nn.ReLU(), nn.AvgPool2d(2)),
        nn.Flatten(),
        linear(2 * channels * (pixels // 4) ** 2, size["hidden"]),
        nn.ReLU(),
        linear(size["hidden"], 10),
    )


def transformer(size: dict, linear: Callable, conv: Callable) -> nn.Module:
    """`models.TransformerBlock`."""
    width = size["width"]
    feed_forward = (linear(width, 4 * width), nn.GELU("tanh"), linear(4 * width, width))
    return nn.Sequential(
        Residual(nn.LayerNorm(width), Attention(width, size["heads"], linear)),
        Residual(nn.LayerNorm(width), *feed_forward),
    )


MODELS = {"mlp": mlp, "cnn": cnn, "transformer": transformer}
CASES = {
    "weight noise": (None, False),
    "all effects": (None, True),
    "all effects, tiles of 512": (512, True),
}
"""The tile and whether all effects are on, beside weight noise."""


def lightning(tile: int | None, everything: bool) -> Any:
    """Returns a chip of aihwkit-lightning."""
    from aihwkit_lightning.simulator.configs import TorchInferenceRPUConfig
    from aihwkit_lightning.simulator.parameters import (
        WeightClipType,
        WeightNoiseInjectionType,
    )

    rpu = TorchInferenceRPUConfig()
    rpu.modifier.noise_type = WeightNoiseInjectionType.ADD_NORMAL
    rpu.modifier.std_dev = NOISE
    rpu.mapping.max_input_size = -1 if tile is None else tile
    if everything:
        rpu.clip.type = WeightClipType.LAYER_GAUSSIAN
        rpu.clip.sigma = SIGMA
        rpu.forward.inp_res = rpu.forward.out_res = STEPS_OF_8_BITS
        rpu.forward.out_bound = OUT_BOUND
        rpu.forward.out_noise = OUT_NOISE
        rpu.pre_post.input_range.enable = True
        rpu.pre_post.input_range.init_from_data = 0
    return rpu


def aihwkit(config: str) -> Callable[[int | None, bool], Any]:
    """Returns the function that makes a chip of a configuration class of aihwkit."""

    def chip(tile: int | None, everything: bool) -> Any:
        from aihwkit.simulator import configs, parameters

        rpu = getattr(configs, config)()
        rpu.modifier.type = configs.WeightModifierType.ADD_NORMAL
        rpu.modifier.std_dev = NOISE
        rpu.mapping.max_input_size = rpu.mapping.max_output_size = tile or 0
        rpu.forward.is_perfect = not everything
        if everything:
            rpu.mapping.weight_scaling_omega = 1.0
            rpu.clip.type = configs.WeightClipType.LAYER_GAUSSIAN
            rpu.clip.sigma = SIGMA
            rpu.forward.inp_res = rpu.forward.out_res = 1 / STEPS_OF_8_BITS
            rpu.forward.out_bound = OUT_BOUND
            rpu.forward.out_noise = OUT_NOISE
            rpu.forward.noise_management = parameters.NoiseManagementType.NONE
            rpu.forward.bound_management = parameters.BoundManagementType.NONE
            rpu.pre_post.input_range.enable = True
            rpu.pre_post.input_range.init_from_data = 0
        return rpu

    return chip


PEERS = {
    "aihwkit-lightning": ("aihwkit_lightning", lightning),
    "aihwkit, torch tile": ("aihwkit", aihwkit("TorchInferenceRPUConfig")),
    "aihwkit, C++ tile": ("aihwkit", aihwkit("InferenceRPUConfig")),
}
"""The package of a peer, and the function that makes its chip."""


def plain_model(name: str, size: dict) -> nn.Module:
    """Returns a model in torch."""
    return MODELS[name](size, nn.Linear, _conv(nn.Conv2d))


def plain_step(name: str, size: dict, x) -> Callable[[], float]:
    """Returns a function that runs one step of a model in torch."""
    model = plain_model(name, size)
    return _step(
        model, torch.optim.SGD(model.parameters(), lr=LEARNING_RATE), _tensor(x)
    )


def analog_steps(name: str, size: dict, x) -> dict[str, Callable[[], float]]:
    """Returns functions that run one step on the chips of the installed peers.

    They return the loss.

    Args:
      name: of the model.
      size: its sizes.
      x: a batch as Flax takes it, of channels last.
    """
    steps = {}
    for peer, (package, chip) in PEERS.items():
        if importlib.util.find_spec(package) is None:
            continue
        for case, given in CASES.items():
            model, optimizer = _analog(package, MODELS[name], size, chip(*given))
            steps[f"{peer}, {case}"] = _step(model, optimizer, _tensor(x))
    return steps


def evaluations(size: dict, x) -> dict[str, Callable[[], torch.Tensor]]:
    """Returns functions that evaluate a model: plain, and on chips of aihwkit.

    They return how often the largest output is the first.

    Args:
      size: its sizes, with a number of chips.
      x: a batch as Flax takes it, of channels last.
    """
    images, chips = _tensor(x), range(size["chips"])

    def hits(model: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return (model(images).argmax(-1) == 0).sum()

    plain = plain_model("cnn", size).eval()
    runs = {"torch, plain": lambda: torch.stack([hits(plain) for _ in chips])}
    if importlib.util.find_spec("aihwkit") is None:
        return runs

    def on_chips(model: nn.Module) -> Callable[[], torch.Tensor]:
        def on_a_chip() -> torch.Tensor:
            model.program_analog_weights()
            model.drift_analog_weights(DAY_S)
            return hits(model)

        return lambda: torch.stack([on_a_chip() for _ in chips])

    from aihwkit.inference import GlobalDriftCompensation, PCMLikeNoiseModel
    from aihwkit.nn import AnalogSequential

    for peer, (package, chip) in PEERS.items():
        if package == "aihwkit":
            rpu = chip(None, True)
            rpu.noise_model = PCMLikeNoiseModel(g_max=25.0)
            rpu.drift_compensation = GlobalDriftCompensation()
            model, _ = _analog(package, cnn, size, rpu)
            runs[f"{peer}, a loop"] = on_chips(AnalogSequential(*model).eval())
    return runs


def _analog(package: str, build: Callable, size: dict, rpu: Any):
    layers = importlib.import_module(f"{package}.nn")
    optim = importlib.import_module(f"{package}.optim")
    kinds = (layers.AnalogLinear, layers.AnalogConv2d)

    def linear(inputs: int, outputs: int) -> nn.Module:
        return layers.AnalogLinear(inputs, outputs, rpu_config=rpu)

    model = build(size, linear, _conv(layers.AnalogConv2d, rpu_config=rpu))
    if package == "aihwkit":
        optimizer = optim.AnalogSGD(model.parameters(), lr=LEARNING_RATE)
        optimizer.regroup_param_groups(model)
        return model, optimizer
    analog = [layer for layer in model.modules() if isinstance(layer, kinds)]
    return model, optim.AnalogOptimizer(
        torch.optim.SGD, lambda: analog, model.parameters(), lr=LEARNING_RATE
    )


def _conv(layer: Callable, **given) -> Callable:
    return lambda inputs, outputs: layer(inputs, outputs, 3, padding=1, **given)


def _tensor(x) -> torch.Tensor:
    """Returns a batch as torch takes it: images have their channels first."""
    tensor = torch.tensor(x)
    return tensor.permute(0, 3, 1, 2).contiguous() if tensor.ndim == 4 else tensor


def _step(model: nn.Module, optimizer: Any, x: torch.Tensor) -> Callable[[], float]:
    model.train()

    def run() -> float:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    return run
