"""A configuration of aihwkit-lightning as hwtrain's hardware."""

import math

from hwtrain._errors import InputError
from hwtrain.checkpoint.importers._records import (
    RANGE_FIELDS,
    Data,
    add_part,
    hardware_of,
    is_positive,
    part_of,
    require,
    word,
)
from hwtrain.checkpoint.importers._torch_file import Record

_WHOLE = 1e-6
"""Up to which a number of steps is a whole one."""


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
    size = part_of(config, "mapping").get("max_input_size", -1)
    found["mapping"] = {
        "max_input_size": size if is_positive(size) else "none",
        "max_output_size": "none",
        "weight_scaling_omega": 1.0,
        "weight_scaling_columnwise": columnwise,
    }
    if kind == "learnable_per_channel":
        found["clip"] = {"type": kind}
    elif kind.startswith("layer_gaussian"):
        base = {"type": "layer_gaussian", "sigma": clip.get("sigma")}
        if columnwise:
            base["per_column"] = True
        # Listed, because lightning clips weights in training alone.
        add_part(found, "clip", base, {}, (), lost)
    _lightning_modifier(found, part_of(config, "modifier"), lost)
    _check_scale(config, forward, columnwise=columnwise)
    hardware_of(found)
    return found, lost


def _even(name: str, res: float, why: str) -> float:
    """Returns a resolution, if its levels end at the bound."""
    steps = (res if res > 1 else 1 / res) / 2
    if abs(steps - round(steps)) > _WHOLE:
        raise InputError(
            f"forward.{name}={res} is no even number of steps, and lightning {why}. "
            "Take 1 / (2**bits - 2)"
        )
    return res


def _check_scale(config: Record, forward: Data, *, columnwise: bool) -> None:
    """Raises if rounding moves the maxima of weights from which a bound follows.

    For the bounds of outputs, lightning takes the maxima of weights before it rounds
    them, hwtrain those of the rounded ones.
    """
    rounds = levels_of(config)
    if rounds is None or not (learns_bound(config) or "out_bound" in forward):
        return
    steps, per_column = rounds
    if abs(steps / 2 - round(steps / 2)) > _WHOLE:
        raise InputError(
            f"modifier.res={part_of(config, 'modifier').get('res')} is no even number "
            "of steps, so rounding moves the largest weight, from which the bound of "
            "the outputs or the learned clip follows: lightning takes it before it "
            "rounds, hwtrain after. Take 1 / (2**bits - 2)"
        )
    if columnwise and not per_column:
        raise InputError(
            "modifier.quantization_type=DISCRETIZE beside a clip of each channel: "
            "rounding to the levels of a tile moves the largest weight of a column, "
            "from which its bound follows: lightning takes it before it rounds, "
            "hwtrain after. Take DISCRETIZE_PER_CHANNEL"
        )


def _is_old(modifier: Record) -> bool:
    """Whether a version of lightning before 2 wrote a modifier."""
    return not {"noise_type", "quantization_type"} & modifier.fields.keys()


def _kinds(modifier: Record) -> tuple[str, str]:
    """Returns the kinds of noise and of levels.

    Versions before 2 have one `type` for both. Later ones keep it as a field that does
    nothing.
    """
    if not _is_old(modifier):
        return word(modifier.get("noise_type")), word(modifier.get("quantization_type"))
    kind = word(modifier.get("type"))
    each = "_per_channel" if kind.endswith("_per_channel") else ""
    noise = f"add_normal{each}" if "add_normal" in kind else "none"
    return noise, f"discretize{each}" if "discretize" in kind else "none"


def _lightning_modifier(found: Data, modifier: Record, lost: list[str]) -> None:
    noise, levels = _kinds(modifier)
    per_column = {kind.endswith("_per_channel") for kind in (noise, levels)}
    kinds = [kind.removesuffix("_per_channel") for kind in (levels, noise)]
    kinds = [kind for kind in kinds if kind != "none"]
    if _is_old(modifier) and modifier.get("enable_during_test") and kinds:
        raise InputError(
            "modifier.enable_during_test=True changes the weights in evaluation in "
            "versions of lightning before 2, and hwtrain's on chips alone; set it to "
            "False"
        )
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

    Versions before 2 round them in training alone.

    Returns:
      The steps, and whether each column has its own maximum; `None` for no rounding.
    """
    modifier = part_of(config, "modifier")
    _, kind = _kinds(modifier)
    if kind == "none" or _is_old(modifier):
        return None
    res = modifier.get("res")
    if not is_positive(res):
        raise InputError(
            f"modifier.res={res}: expected a number above 0 beside its "
            "quantization_type, as lightning does"
        )
    return max(res, 1 / res), kind.endswith("_per_channel")


def learns_bound(config: Record) -> bool:
    """Whether lightning clips weights to a learned bound."""
    return word(part_of(config, "clip").get("type")) == "learnable_per_channel"
