"""The periphery of a tile of aihwkit as hwtrain's."""

import math

from hwtrain._errors import InputError
from hwtrain.checkpoint.importers._records import Data, is_positive, word
from hwtrain.checkpoint.importers._torch_file import Record

_LARGEST_WEIGHT = 0.6
"""What aihwkit assumes for scales from sums of inputs."""
_PLAIN_IO = "inp_noise inp_asymmetry out_noise out_asymmetry out_scale ir_drop".split()
_PLAIN_IO += "out_nonlinearity r_series v_offset_std".split()


def forward_of(io: Record, tile: str, rows: int, *, ranged: bool) -> Data | None:
    """Returns the periphery of a tile, `None` for an ideal one.

    Args:
      io: the record of its parameters.
      tile: the name of the class of the tiles.
      rows: the inputs of the largest tile.
      ranged: whether its inputs have a range.

    Raises:
      ValueError: for an option that changes results and that hwtrain does not have.
    """
    kind = word(io.get("mv_type")) if "mv_type" in io.fields else "one_pass"
    if io.get("is_perfect") or kind == "ideal" or not io.fields:
        return None
    found: Data = {}
    for side in ("inp", "out"):
        bound, res = io.get(f"{side}_bound", 0.0), io.get(f"{side}_res")
        if bound == math.inf:
            raise InputError(
                f"forward.{side}_bound=inf gives NaN in aihwkit's C++ tiles; take 0, "
                "which is no bound"
            )
        if is_positive(bound):
            found[f"{side}_bound"] = float(bound)
        if is_positive(res):
            if not is_positive(bound):
                raise InputError(
                    f"forward.{side}_res={res} has no {side}_bound that is positive, "
                    "so its steps have no size in hwtrain"
                )
            found[f"{side}_res"] = res
            if io.get(f"{side}_sto_round"):
                found[f"{side}_sto_round"] = True
    for name in _PLAIN_IO:
        if name in io.fields:
            found[name] = io.get(name)
    noise, bound = word(io.get("noise_management")), word(io.get("bound_management"))
    if ranged and noise not in ("none", "constant"):
        raise InputError(
            f"forward.noise_management={noise!r} beside an input range scales inputs "
            "twice, and hwtrain takes one of them; set one to none in aihwkit, and "
            "train or calibrate there"
        )
    torch = tile == "TorchInferenceTile"
    _check_noise(noise, io, torch=torch)
    if bound.startswith("iterative") and "out_bound" not in found:
        bound = "none"  # nothing is clipped
    if bound == "iterative_worst_case":
        # Without a scale of inputs, and always in torch, aihwkit only halves them.
        if torch or noise == "none":
            bound = "iterative"
        elif noise != "abs_max_np_sum":
            _check_sums(bound, io, rows)
    if noise == "abs_max_np_sum":
        _check_sums(noise, io, rows)
    found |= {"noise_management": noise, "bound_management": bound, "mv_type": kind}
    iterates = bound.startswith("iterative")
    if iterates and not io.get("bm_test_negative_bound", True):
        raise InputError(
            "forward.bm_test_negative_bound=False tests one side of the ADC alone, "
            "which hwtrain does not have"
        )
    weights = word(io.get("w_noise_type"))
    if is_positive(io.get("w_noise")) and weights != "none":
        found |= {"w_noise": io.get("w_noise"), "w_noise_type": weights}
    acts = {
        "nm_thres": noise in ("abs_max", "constant"),
        "max_bm_factor": iterates,
        "max_bm_res": iterates and "inp_res" in found,
        "out_noise_std": is_positive(io.get("out_noise")),
        "out_nonlinearity_std": is_positive(io.get("out_nonlinearity")),
        "slope_calibration": is_positive(io.get("out_nonlinearity"))
        or is_positive(io.get("r_series")),
        "v_offset_w_min": is_positive(io.get("v_offset_std"))
        or is_positive(io.get("r_series")),
        "ir_drop_g_ratio": is_positive(io.get("ir_drop")),
        "w_read_asymmetry_dtod": "separate" in kind,
        "split_mode_bit_shift": kind == "split_mode",
    }
    found |= {
        name: io.get(name) for name, on in acts.items() if on if name in io.fields
    }
    return found


def _check_noise(noise: str, io: Record, *, torch: bool) -> None:
    """Raises for a noise management whose outputs hwtrain does not compute."""
    if noise == "average_abs_max":
        raise InputError(
            "forward.noise_management='average_abs_max' moves its average with each "
            "input, in evaluation too, so outputs depend on what was read before; take "
            "constant in aihwkit, with the average as nm_thres"
        )
    if noise == "max" and not torch:
        raise InputError(
            "forward.noise_management='max': its C++ tiles give zeros for inputs of "
            "which none is positive, and hwtrain reads them at scale 1, as its torch "
            "tile does; take abs_max or TorchInferenceTile in aihwkit"
        )
    limit = io.get("nm_thres")
    if is_positive(limit) and noise in ("max", "abs_max_np_sum"):
        raise InputError(
            f"forward.nm_thres={limit} limits the scale of noise_management={noise!r}, "
            "and hwtrain limits that of abs_max alone; take 0 or abs_max in aihwkit"
        )


def _check_sums(name: str, io: Record, rows: int) -> None:
    """Raises where aihwkit's scale from sums of inputs has a limit."""
    limit, bound = io.get("nm_thres"), io.get("out_bound")
    if is_positive(limit):
        raise InputError(
            f"forward.nm_thres={limit} limits the scale of {name!r} too, and hwtrain "
            "limits that of abs_max alone; take 0 or bound_management=iterative"
        )
    res, most, full = (io.get(n) for n in ("inp_res", "max_bm_res", "inp_bound"))
    if not all(map(is_positive, (bound, res, most, full))):
        return
    largest = most / (2 * full * min(res, 1 / res))
    if rows * _LARGEST_WEIGHT / bound > largest:
        raise InputError(
            f"forward.max_bm_res={most} limits the scale of {name!r} to {largest:g} "
            f"times the largest input, which {rows} inputs may exceed at "
            f"out_bound={bound}, and hwtrain has no such limit; take a larger "
            "max_bm_res or out_bound in aihwkit"
        )
