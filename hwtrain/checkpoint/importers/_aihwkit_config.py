"""A configuration of aihwkit as hwtrain's hardware.

Fields have aihwkit's names, and mostly hwtrain's too. What changes the result of a tile
without noise is translated or refused; anything else that has no equivalent is listed
as lost.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hwtrain._errors import InputError
from hwtrain.checkpoint.importers._aihwkit_forward import forward_of
from hwtrain.checkpoint.importers._records import (
    RANGE_FIELDS,
    Data,
    add_part,
    as_data,
    hardware_of,
    is_positive,
    part_of,
    require,
    word,
)
from hwtrain.checkpoint.importers._torch_file import Record

_TILES = ("InferenceTile", "TorchInferenceTile")
_PULSED = ("AnalogTile", "AnalogTileWithoutPeriphery")
_IDEAL = ("FloatingPointTile", "FloatingPointTileWithoutPeriphery")
_MODIFIER = (
    "std_dev rel_to_actual_wmax assumed_wmax res sto_round dorefa_clip pdrop coeffs "
    "g_max pcm_zero_thres pcm_t_inference pcm_t0 pcm_prob_at_reset pcm_prob_at_gmax "
    "pcm_prob_at_random enable_during_test per_batch_sample copy_last_column"
).split()
_CONVERTERS = {
    "SinglePairConductanceConverter": "single_pair",
    "NPairConductanceConverter": "n_pair",
    "DualPairConductanceConverter": "dual_pair",
    "CustomPairConductanceConverter": "custom_pair",
    "SingleDeviceConductanceConverter": "single_device",
}
_NOISE_MODELS = {
    "PCMLikeNoiseModel": "pcm_like",
    "CustomDriftPCMLikeNoiseModel": "custom_drift_pcm_like",
    "HermesNoiseModel": "hermes",
    "StateIndependentNoiseModel": "state_independent",
    "ReRamWan2022NoiseModel": "reram_wan2022",
    "ReRamCMONoiseModel": "reram_cmo",
}
_NOISE_FIELDS = (
    "g_max g_min num_devices prog_coeff prog_coeff_g_max_reference drift_nu_mean "
    "drift_nu_std noise_scale coeff_g_max_reference acceptance_range "
    "prog_noise_scale read_noise_scale drift_scale t_0 t_read"
).split()
_COMPENSATIONS = {
    "GlobalDriftCompensation": "global",
    "PerColumnDriftCompensation": "per_column",
    "GlobalDriftCompensationWithExactReference": "global_exact_reference",
}


def of_aihwkit(config: Record, tile: str, rows: int = 1) -> tuple[Data, list[str]]:
    """Returns the hardware of an `rpu_config` of aihwkit, and what is lost.

    Args:
      config: the record of the configuration.
      tile: the name of the class of its tiles.
      rows: the inputs of its largest tile.

    Raises:
      ValueError: for a tile or an option that changes results and that hwtrain does
        not have.
    """
    found: Data = {}
    lost: list[str] = []
    if tile not in (*_TILES, *_PULSED, *_IDEAL):
        raise InputError(
            f"its tiles are of the class {tile}, which computes what hwtrain does "
            f"not have; expected {', '.join(_TILES)}"
        )
    ranges = part_of(part_of(config, "pre_post"), "input_range")
    ranged = bool(ranges.get("enable")) and tile not in _IDEAL
    if tile not in _IDEAL:
        _check_steps(config.get("forward"))
        forward = forward_of(part_of(config, "forward"), tile, rows, ranged=ranged)
        if forward is not None:
            found["forward"] = forward
            hardware_of(found)
            iterates = forward["bound_management"].startswith("iterative")
            if tile == "TorchInferenceTile" and iterates:
                lost.append(
                    "forward.bound_management: its torch tile halves the inputs of all "
                    "vectors of a batch together, hwtrain and its C++ each by itself"
                )
    if ranged:
        add_part(found, "input_range", {}, ranges.fields, RANGE_FIELDS, lost)
        require(found, "input_range", lost)
    mapping = part_of(config, "mapping")
    if mapping.get("digital_bias") is False and tile != "TorchInferenceTile":
        raise InputError(
            "mapping.digital_bias=False keeps a bias as one more column of its C++ "
            "tiles, which hwtrain does not have; take True in aihwkit, also for layers "
            "without a bias"
        )
    found["mapping"] = _mapping(mapping, lost)
    if tile in _PULSED:
        for name in ("device", "update", "backward"):
            given = config.get(name)
            kind = getattr(given, "name", type(given).__name__)
            lost.append(f"{name}: {kind}; weights are trained by an optimiser")
    _training(found, config, lost)
    _devices(found, config, lost)
    hardware_of(found)
    return found, lost


def _check_steps(io: Any) -> None:
    """Raises for tensors in place of numbers of steps."""
    given = io.fields if isinstance(io, Record) else {}
    for name in ("inp_res", "out_res"):
        if isinstance(given.get(name), np.ndarray):
            raise InputError(
                f"forward.{name}: expected a number, got a tensor, which aihwkit "
                "changes in every call; write a number into the rpu_config"
            )


def _mapping(mapping: Record, lost: list[str]) -> Data:
    sizes = {n: mapping.get(n, 512) for n in ("max_input_size", "max_output_size")}
    found: Data = {n: x if is_positive(x) else "none" for n, x in sizes.items()}
    # As in aihwkit, which scales weights for a positive one alone.
    omega = max(0.0, float(mapping.get("weight_scaling_omega") or 0.0))
    found["weight_scaling_omega"] = omega
    if omega and mapping.get("weight_scaling_columnwise"):
        found["weight_scaling_columnwise"] = True
    if mapping.get("learn_out_scaling"):
        found["learn_out_scaling"] = True
        if mapping.get("out_scaling_columnwise"):
            found["out_scaling_columnwise"] = True
    if mapping.get("weight_scaling_lr_compensation"):
        lost.append("mapping.weight_scaling_lr_compensation: scale the learning rate")
    return found


def _training(found: Data, config: Record, lost: list[str]) -> None:
    modifier, clip, remap = (part_of(config, n) for n in ("modifier", "clip", "remap"))
    kind = word(modifier.get("type"))
    if kind != "none":
        fields = modifier.fields
        if fields.get("enable_during_test"):
            lost.append(
                "modifier.enable_during_test: it changes aihwkit's outputs in "
                "evaluation, hwtrain's on chips alone, not in eval_mode"
            )
        add_part(found, "modifier", {"type": kind}, fields, _MODIFIER, lost)
    kind = word(clip.get("type"))
    if kind != "none":
        fields = {
            n: x for n, x in clip.fields.items() if n == "sigma" or is_positive(x)
        }
        names = ("sigma", "fixed_value")
        add_part(found, "clip", {"type": kind}, fields, names, lost, at_once=True)
    kind = word(remap.get("type"))
    if kind != "none":
        names = ("remapped_wmax", "max_scale_range", "max_scale_ref")
        add_part(found, "remap", {"type": kind}, remap.fields, names, lost)


def _devices(found: Data, config: Record, lost: list[str]) -> None:
    model = config.get("noise_model")
    if not isinstance(model, Record):
        return
    converter = model.get("g_converter")
    kind = _CONVERTERS.get(getattr(converter, "name", ""))
    if kind is None:
        lost.append(f"converter: {getattr(converter, 'name', converter)}")
        lost.append(f"noise_model: {model.name}, because it has no converter here")
        return
    given = {n: x for n, x in converter.fields.items() if x is not None}
    names = ("g_max", "g_min", "f_lst", "g_lst")
    add_part(found, "converter", {"type": kind}, given, names, lost, at_once=True)
    name = _NOISE_MODELS.get(model.name)
    if name is None or "converter" not in found:
        lost.append(f"noise_model: {model.name}")
        return
    fields = {n: x for n, x in model.fields.items() if x is not None}
    if name == "reram_wan2022" and "prog_coeff_g_max_reference" in fields:
        fields["coeff_g_max_reference"] = fields.pop("prog_coeff_g_max_reference")
    base: Data = {"type": name}
    custom = model.get("custom_drift_model")
    if isinstance(custom, Mapping):
        base |= {n: as_data(x) for n, x in custom.items()}
    if "g_max" in given:
        base |= {"g_max": as_data(given["g_max"])}
    add_part(found, "noise_model", base, fields, _NOISE_FIELDS, lost)
    compensation = getattr(config.get("drift_compensation"), "name", None)
    if compensation is None or "noise_model" not in found:
        return
    if compensation not in _COMPENSATIONS:
        lost.append(f"drift_compensation: {compensation}")
        return
    base = {"type": _COMPENSATIONS[compensation]}
    add_part(found, "drift_compensation", base, {}, (), lost)
