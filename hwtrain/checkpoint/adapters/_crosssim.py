"""Exports a checkpoint to CrossSim: matrices and the parameters of its cores."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hwtrain._plan.weight import AnalogWeight
from hwtrain.checkpoint import _destination as destination
from hwtrain.checkpoint._errors import HardwareCheckpointError
from hwtrain.checkpoint._reader import HardwareCheckpoint
from hwtrain.checkpoint._tiles import Place, Tile
from hwtrain.checkpoint.adapters._arrays import (
    Layer,
    as_json,
    devices,
    digital_of,
    layers,
    outputs_of,
    plan_of,
    save_npz,
    stack_index,
)
from hwtrain.chips._conductances import converter_of
from hwtrain.devices import SinglePairConductanceConverter
from hwtrain.periphery import IOParameters
from hwtrain.periphery._converter import from_bits
from hwtrain.weights import Mismatch

MATRICES, PARAMETERS = "matrices.npz", "crosssim.json"


def to_crosssim(
    checkpoint: HardwareCheckpoint, out: Path, *, chip: int | None = None
) -> None:
    r"""Writes `matrices.npz` and `crosssim.json`, one CrossSim core for each pair.

    .. math::
        m = \frac{g^+ - g^-}{g_\text{max} - g_\text{min}}, \qquad
        y_j = \sum_\text{cores} o_j\, \mathrm{core}(m, \mathrm{clip}(x / r, -1, 1))_j
        + b_j

    A core's matrix `[outputs, inputs]` is in units of the full conductance range, so
    that CrossSim with `Rmin` = 1 / g_max and `Rmax` = 1 / g_min programs the
    conductances of the checkpoint. `crosssim.json` holds for each layer its cores: the
    name of the `matrix`, `parameters` for `CrossSimParameters(**parameters)`, the
    `input_scale` r (`None`: no range, no clipping), the `output_scale` o and the
    positions of inputs and outputs; the `bias` b; and `lost`: the properties of the
    hardware that CrossSim's parameters cannot express. Beside the layers, `lost` names
    the digital parameters and statistics of other modules, and `outputs` the modules
    whose results digital units store in few bits.

    Args:
      checkpoint: from `hwtrain.load`.
      out: the directory to write; must not exist.
      chip: the seed of a frozen chip, whose conductance differences just after
        programming are written; `None` for the targets.

    Raises:
      HardwareCheckpointError: if a weight's devices are not pairs, the chip is not in
        the checkpoint, or it cannot be written.

    References:
      CrossSim 3.2, `simulator.parameters` (Sandia National Laboratories).
    """
    for weight in checkpoint.plan.weights:
        converter = weight.hardware.converter
        pairs = converter is not None and converter.type != "single_device"
        if converter is None or not pairs or "scale_ratio" not in converter.scales:
            came = "no converter" if converter is None else repr(converter.type)
            raise HardwareCheckpointError(
                f"{weight.path}: a balanced core of CrossSim holds pairs of devices; "
                f"the checkpoint has {came}. Export the model with Hardware(converter="
                "SinglePairConductanceConverter(...))"
            )
    found = []
    with destination.new(out, folder=True) as partial:
        save_npz(partial / MATRICES, _matrices(checkpoint, chip, found))
        content = {
            "format": "hwtrain-crosssim",
            "chip": chip,
            "units": {
                "Rmin": "ohm",
                "Rmax": "ohm",
                "output_scale": "unit of the output",
            },
            "layers": found,
            "lost": digital_of(checkpoint),
            "outputs": outputs_of(checkpoint),
        }
        (partial / PARAMETERS).write_text(as_json(content), encoding="utf-8")


def _matrices(
    checkpoint: HardwareCheckpoint, chip: int | None, found: list[dict[str, Any]]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the matrices by name, and appends their descriptions to `found`."""
    for layer in layers(checkpoint, chip):
        for index, name in stack_index(layer.weight):
            cores = []
            for place, tile in layer.crossbars:
                for matrix, core in _cores(layer, index, place, tile):
                    core = {"matrix": f"{name}/{place.name}/{core['pair']}", **core}
                    yield core["matrix"], matrix
                    cores.append(core)
            entry = {"name": name, "weight": plan_of(layer.weight), "cores": cores}
            entry["lost"] = _lost(layer.weight, chip)
            bias = layer.bias_of(index)
            if bias is not None:
                entry["bias"] = bias
            found.append(entry)


def _cores(
    layer: Layer, index: tuple[int, ...], place: Place, tile: Tile
) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """Yields the matrix and the description of each pair of a tile."""
    converter = converter_of(layer.weight)
    bound = layer.range_of(index, place)
    span = converter.g_max - converter.g_min
    k, s = tile.params["scale_ratio"][index], tile.mapping_scale[index]
    width = place.columns.stop - place.columns.start
    names = list(converter.devices)
    held = devices(tile)
    for pair, factor in enumerate(getattr(converter, "f_lst", (1.0,))):
        positive, negative = (held[names[2 * pair + side]][index] for side in (0, 1))
        matrix = ((positive - negative) / span).T
        scale = factor * s * span / k * (1.0 if bound is None else bound)
        yield (
            matrix,
            {
                "pair": pair,
                "first_input": place.rows.start,
                "first_output": place.columns.start,
                "input_scale": bound,
                "output_scale": np.broadcast_to(scale, (1, width))[0],
                "parameters": _parameters(layer.weight, matrix, k),
            },
        )


def _parameters(
    weight: AnalogWeight, matrix: np.ndarray, k: np.ndarray
) -> dict[str, Any]:
    """Returns the arguments of `CrossSimParameters` for one core."""
    converter = converter_of(weight)
    dac, adc = _converters(weight)
    # A chip's devices may exceed g_max, and must not be clipped to it.
    limit = max(1.0, float(abs(matrix).max(initial=0)))
    xbar: dict[str, Any] = {
        "device": {
            "Rmin": 1e6 / converter.g_max,
            # Without a minimum conductance, CrossSim does not read Rmax.
            "Rmax": 1e6 / (converter.g_min or converter.g_max * 1e-9),
            "infinite_on_off_ratio": converter.g_min == 0,
        }
    }
    if dac is not None:
        model = {"model": "SignMagnitudeDAC", "bits": dac, "signed": True}
        xbar["dac"] = {"mvm": model, "vmm": model}
    if adc is not None:
        # A core's currents are in units of the largest input and of g_max.
        io = weight.hardware.forward or IOParameters()
        bound = (io.adc.bound or 0.0) / limit
        largest = bound * float(k.ravel()[0]) / converter.g_max
        model = {
            "model": "SignMagnitudeADC",
            "bits": adc,
            "signed": True,
            "adc_range_option": "CALIBRATED",
            "calibrated_range": [-largest, largest],
        }
        xbar["adc"] = {"mvm": model, "vmm": model}
    limits = {"clipping": True, "min": -limit, "max": limit, "percentile": None}
    return {
        "core": {
            "style": "BALANCED",
            "balanced": {"style": "ONE_SIDED"},
            "rows_max": matrix.shape[1],
            "cols_max": matrix.shape[0],
            "mapping": {"weights": limits},
        },
        "xbar": xbar,
    }


def _converters(weight: AnalogWeight) -> tuple[int | None, int | None]:
    """Returns the bits of the DAC and the ADC if CrossSim can express them."""
    converter, io = converter_of(weight), weight.hardware.forward
    if io is None:
        return None, None
    dac, adc = io.dac, io.adc
    # Its ADC comes after each core, and has one range for all outputs.
    pair = isinstance(converter, SinglePairConductanceConverter)
    one_scale = pair and not converter.per_column
    return (
        _bits(dac.res) if dac.bound == 1 else None,
        _bits(adc.res) if one_scale else None,
    )


def _bits(res: float | None) -> int | None:
    """Returns the bits b of a converter with 2^b - 1 levels; `None` for others."""
    bits = 0 if res is None else round(math.log2(1 / res + 2))
    same = bits >= 2 and math.isclose(from_bits(bits), res or 0, rel_tol=1e-6)
    return bits if same else None


_CONVERTERS = {"inp_bits", "inp_res", "inp_bound", "out_bits", "out_res", "out_bound"}


def _lost(weight: AnalogWeight, chip: int | None) -> list[str]:
    """Returns as text the properties that CrossSim's parameters cannot express."""
    hardware, io = weight.hardware, weight.hardware.forward or IOParameters()
    default = vars(IOParameters())
    lost = [
        f"forward.{name}={value}"
        for name, value in vars(io).items()
        if name in default and name not in _CONVERTERS and value != default[name]
    ]
    dac, adc = _converters(weight)
    if dac is None and io.dac.bound is not None:
        lost.append("the DAC: CrossSim's has a full scale of 1 and 2^bits - 1 levels")
    if adc is None and io.adc.bound is not None:
        lost.append(
            "the ADC: CrossSim's follows every core, with one range for all outputs "
            "and 2^bits - 1 levels"
        )
    lost += [f"{stage.describe()} around each tile" for stage in io.stages]
    if hardware.outputs is not None:
        lost.append(f"outputs: {hardware.outputs.describe()}, behind the bias")
    if hardware.dynamic:
        lost.append(
            "input_range.dynamic: divide each vector of inputs by its largest absolute "
            "value, and multiply the outputs by it"
        )
    model = hardware.noise_model
    if model is not None:
        advice = _advice(weight, model)
        lost.append(f"noise_model {model.type!r}: {advice}")
    if hardware.mismatch is not None and chip is None:
        mismatch = hardware.mismatch
        kind = "Proportional" if mismatch.type == "mult_normal" else "Independent"
        lost.append(
            f"mismatch of each weight, {_said(mismatch)}: "
            "convert a chip (chip=, --chip), or let CrossSim draw one of each device: "
            f"{_setting('programming_error', f'Normal{kind}Device')}, its magnitude "
            "that of a device"
        )
    if hardware.stuck is not None and chip is None:
        lost.append("stuck devices: convert a chip (chip=, --chip)")
    return lost


def _said(mismatch: Any) -> str:
    if isinstance(mismatch, Mismatch):
        return mismatch.describe()
    return f"{mismatch.type}, std_dev={mismatch.std_dev:g}"


def _setting(effect: str, model: str) -> str:
    values = f"{{'enable': True, 'model': {model!r}, 'magnitude': 0.05}}"
    if model in ("PCMJoshi", "RRAMWan", "RRAMMilo", "SONOS"):
        values = f"{{'enable': True, 'model': {model!r}}}"
    return f"parameters['xbar']['device'][{effect!r}] = {values}"


_GENERIC = (
    f"{_setting('programming_error', 'NormalIndependentDevice')} and the same of "
    "'read_noise', magnitudes in units of g_max"
)
_DEVICES = {
    "pcm_like": (
        f"{_setting('programming_error', 'PCMJoshi')}; of 'read_noise', "
        f"{_setting('read_noise', 'NormalIndependentDevice')}",
        ("prog_coeff", "prog_coeff_g_max_reference", "prog_noise_scale"),
        (25.0, 25.0, 0.0),
    ),
    "reram_wan2022": (
        f"{_setting('programming_error', 'RRAMWan')}",
        ("coeff_g_max_reference", "times_s", "spread_coeff", "noise_scale"),
        (39.0, 39.26, 0.0),
    ),
    "reram_milo": (
        f"{_setting('programming_error', 'RRAMMilo')}",
        ("prog_coeff", "prog_noise_scale"),
        (50.0, 225.0, 50.0),
    ),
    "sonos": (
        f"{_setting('drift_error', 'SONOS')}; of 'read_noise', "
        f"{_setting('read_noise', 'SONOS')}",
        ("v_read", "times_s", "drift_mean_coeff", "spread_coeff", "read_coeff")
        + ("prog_noise_scale", "drift_scale", "read_noise_scale"),
        (0.0, 32.0, 0.0),
    ),
}
"""CrossSim's own models of the same devices: how to set one before a core is made, the
fields that must be as published, and the least and largest g_max and the least g_min in
µS for which it is the same, or accepted."""


def _advice(weight: AnalogWeight, model: Any) -> str:
    """Returns which of CrossSim's models to take for a noise model."""
    known = _DEVICES.get(model.type)
    if known is None:
        return _GENERIC
    advice, names, (least, most, least_g_min) = known
    converter = converter_of(weight)
    if not (least <= converter.g_max <= most and least_g_min <= converter.g_min):
        return (
            f"CrossSim has this device of other conductances than "
            f"{converter.g_min:g} to {converter.g_max:g} µS; {_GENERIC}"
        )
    published = dataclasses.replace(type(model)(), g_max=model.g_max)
    model, published = (x.with_fixed_units() for x in (model, published))
    own = [n for n in names if getattr(model, n) != getattr(published, n)]
    if own:
        return f"CrossSim has this device with other {', '.join(own)}; {_GENERIC}"
    return advice
