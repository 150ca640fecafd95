"""A configuration of aihwkit-lightning as hwtrain's hardware."""

import math

from hwtrain._errors import InputError
from hwtrain.checkpoint.importers._records import (
    RANGE_FIELDS,
    Data,
    add_part,
    check,
    is_positive,
    part_of,
    require,
    word,
)
from hwtrain.checkpoint.importers._torch_file import Record


def of_lightning(config: Record) -> tuple[Data, list[str]]:
    """Returns the hardware of a configuration of aihwkit-lightning, and what is lost.

    Args:
      config: the record of the configuration.

    Raises:
      ValueError: for an option that changes results and that hwtrain does not have.
    """
    found: Data = {}
    lost: list[str] = []
    io, clip = part_of(config, "forward"), part_of(config, "clip")
    ranges = part_of(part_of(config, "pre_post"), "input_range")
    forward: Data = {}
    if is_positive(io.get("inp_res")):
        forward["inp_res"] = _even(
            "inp_res",
            io.get("inp_res"),
            "clips inputs before it rounds them, half a step beyond the range; hwtrain "
            "stays inside of it",
        )
    if is_positive(io.get("out_bound")) and io.get("out_bound") != math.inf:
        forward["out_bound"] = io.get("out_bound")
    if is_positive(io.get("out_res")):
        forward["out_res"] = _even(
            "out_res",
            io.get("out_res"),
            "rounds before it clips; hwtrain clips before it rounds",
        )
    if is_positive(io.get("out_noise")):
        forward["out_noise"] = io.get("out_noise")
        if io.get("out_noise_per_channel"):
            forward["out_noise_per_channel"] = True
        lost.append(
            "forward.out_noise: lightning divides it by the square root of the number "
            "of row tiles, hwtrain does not"
        )
    if forward:
        found["forward"] = forward
    if ranges.get("enable"):
        dynamic = bool(ranges.get("dynamic"))
        base = {"dynamic": True} if dynamic else {}
        names = () if dynamic else RANGE_FIELDS
        add_part(found, "input_range", base, ranges.fields, names, lost)
        require(found, "input_range", lost)
    kind = word(clip.get("type"))
    columnwise = kind in ("layer_gaussian_per_channel", "learnable_per_channel")
    size = config.get("mapping")
    size = size.get("max_input_size", -1) if isinstance(size, Record) else -1
    found["mapping"] = {
        "max_input_size": size if is_positive(size) else "none",
        "max_output_size": "none",
        "weight_scaling_omega": 1.0,
        "weight_scaling_columnwise": columnwise,
    }
    if kind == "learnable_per_channel":
        found["clip"] = {"type": kind}
    elif kind.startswith("layer_gaussian"):
        found["clip"] = {"type": "layer_gaussian", "sigma": clip.get("sigma")}
        if columnwise:
            found["clip"]["per_column"] = True
    _lightning_modifier(found, part_of(config, "modifier"), lost)
    check(found, "forward")
    return found, lost


def _even(name: str, res: float, why: str) -> float:
    """Returns a resolution, if its levels end at the bound."""
    steps = (res if res > 1 else 1 / res) / 2
    if abs(steps - round(steps)) > 1e-6:
        raise InputError(
            f"forward.{name}={res} is no even number of steps, and lightning {why}. "
            "Take 1 / (2**bits - 2)"
        )
    return res


def _lightning_modifier(found: Data, modifier: Record, lost: list[str]) -> None:
    noise = word(modifier.get("noise_type"))
    levels = word(modifier.get("quantization_type"))
    per_column = {kind.endswith("_per_channel") for kind in (noise, levels)}
    kinds = [kind.removesuffix("_per_channel") for kind in (levels, noise)]
    kinds = [kind for kind in kinds if kind != "none"]
    if not kinds:
        return
    each = (noise if noise != "none" else levels).endswith("_per_channel")
    if len(kinds) == 2 and len(per_column) == 2:
        lost.append(
            "modifier: lightning takes noise and levels of different maxima, of the "
            "column and of the tile; hwtrain takes one for both"
        )
    data: Data = {"type": "_".join(kinds), "per_column": each}
    if levels != "none":
        data["res"] = modifier.get("res")
    if noise != "none":
        data["std_dev"] = modifier.get("std_dev")
    add_part(found, "modifier", data, {}, (), lost)


def levels_of(config: Record) -> tuple[float, bool] | None:
    """Returns the number of steps to which lightning rounds weights in all modes.

    Returns:
      The steps, and whether each column has its own maximum; `None` for no rounding.
    """
    modifier = part_of(config, "modifier")
    kind = word(modifier.get("quantization_type"))
    if kind == "none":
        return None
    res = float(modifier.get("res"))
    return max(res, 1 / res), kind.endswith("_per_channel")


def learns_bound(config: Record) -> bool:
    """Whether lightning clips weights to a learned bound."""
    return word(part_of(config, "clip").get("type")) == "learnable_per_channel"
