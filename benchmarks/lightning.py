"""The same layers in aihwkit-lightning, where it and torch are installed.

    pip install torch aihwkit-lightning

No other benchmark needs them.
"""

import importlib.util
from collections.abc import Callable


def installed() -> bool:
    """Returns whether torch and aihwkit-lightning can be imported."""
    names = ("torch", "aihwkit_lightning")
    return all(importlib.util.find_spec(name) for name in names)


def training_steps(width: int, depth: int, batch: int) -> dict[str, Callable]:
    """Returns steps of square layers: forward, backward, SGD, as torch runs them.

    Args:
      width: inputs and outputs of each layer.
      depth: number of layers.
      batch: number of examples.
    """
    import torch
    from aihwkit_lightning.nn import AnalogLinear
    from aihwkit_lightning.optim import AnalogOptimizer
    from aihwkit_lightning.simulator.configs import TorchInferenceRPUConfig
    from aihwkit_lightning.simulator.parameters import (
        WeightClipType,
        WeightNoiseInjectionType,
    )

    def config(tile: int | None, everything: bool) -> TorchInferenceRPUConfig:
        rpu = TorchInferenceRPUConfig()
        rpu.modifier.noise_type = WeightNoiseInjectionType.ADD_NORMAL
        rpu.modifier.std_dev = 0.05
        rpu.mapping.max_input_size = -1 if tile is None else tile
        if everything:
            rpu.clip.type = WeightClipType.LAYER_GAUSSIAN
            rpu.clip.sigma = 2.5
            rpu.forward.inp_res = rpu.forward.out_res = 2**8 - 2
            rpu.forward.out_bound = 10.0
            rpu.pre_post.input_range.enable = True
        return rpu

    def step(layer: Callable) -> Callable:
        model = torch.nn.Sequential(*[layer() for _ in range(depth)])
        analog = [m for m in model if isinstance(m, AnalogLinear)]
        sgd = torch.optim.SGD
        optimizer = (
            AnalogOptimizer(sgd, lambda: analog, model.parameters(), lr=1e-4)
            if analog
            else sgd(model.parameters(), lr=1e-4)
        )
        x = torch.randn(batch, width)

        def run() -> None:
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

        return run

    def analog(tile: int | None, everything: bool) -> Callable:
        rpu = config(tile, everything)
        return step(lambda: AnalogLinear(width, width, rpu_config=rpu))

    return {
        "torch, plain": step(lambda: torch.nn.Linear(width, width)),
        "aihwkit-lightning, weight noise": analog(None, False),
        "aihwkit-lightning, all, untiled": analog(None, True),
        "aihwkit-lightning, all, tiles of 512": analog(512, True),
    }
