"""The units and formulas that every manifest states."""

import hashlib
import json
from collections.abc import Mapping

from hwtrain._errors import InputError
from hwtrain.checkpoint._earlier import UNNAMED
from hwtrain.periphery.input_range import RANGE
from hwtrain.weights.clip import CLIP_BOUND
from hwtrain.weights.mapping import MAPPING_SCALE, OUTPUT_SCALE

UNITS = {
    "conductance": "µS",
    "scale_ratio": "µS per unit of crossbar weight",
    "min": "crossbar weight",
    "nu": "1",
    "xi": "1",
    "life": "1",
    "flicker": "1",
    "pulses": "1",
    "stuck": "0 healthy, 1 stuck at g_min, 2 stuck at g_max",
    MAPPING_SCALE.name: MAPPING_SCALE.unit,
    "nominal": "unit of the model",
    OUTPUT_SCALE.name: OUTPUT_SCALE.unit,
    RANGE.name: RANGE.unit,
}
RULES = {
    "weights": (
        "per tile, all shaped [*stack, rows, columns] or broadcastable against it: "
        "crossbar weight w as 'crossbar_weights' says for the converter's type, "
        "nominal weight W = w * mapping_scale; "
        "tiles in row-major order; W = transpose(array, [*stack axes, *rows, "
        "*columns]); with groups > 1 of a window the columns are [groups, columns], "
        "and the groups go to the end of the stack"
    ),
    "window": (
        "of a convolution: the input [batch, *spatial, channels] gets its border "
        "(border_mode as numpy.pad), then input_dilation - 1 zeros between neighbours, "
        "then padding zeros; at each position a window of sizes taps, kernel_dilation "
        "apart, moving by strides, is the vector of rows: channels, then taps in "
        "row-major order, reversed if flipped; groups are equal parts of channels and "
        "columns; local: a matrix for each position; mask: its bits in hexadecimal, in "
        "the order of the array, weights without are zero"
    ),
    "crossbar_weights": (
        "single_pair: (g_pos - g_neg) / scale_ratio; "
        "n_pair, dual_pair and custom_pair: sum over i of "
        "f_lst[i] * (g_pos_i - g_neg_i) / scale_ratio; "
        "single_device: min + (g - g_min) / scale_ratio"
    ),
    OUTPUT_SCALE.name: (
        "where a layer has one beside: [*stack, row tiles, columns or 1], a learned "
        "factor on the outputs of each row of tiles, after the ADC and mapping_scale "
        "and before the bias; the weights do not contain it"
    ),
    CLIP_BOUND.name: (
        "where a layer has one beside: [*stack, row tiles, columns], a learned bound "
        "in the unit of the nominal weights, which are stored as they are within it"
    ),
    "chip": (
        "w_chip = w + std_dev * A * xi (add_normal) or w * (1 + std_dev * xi) "
        "(mult_normal); w what is written (see 'levels'), A = max|w| of the nominal "
        "weights of its row tile or column; "
        "xi = sqrt(2) * erfinv(u), standard normal in float32 on CPU, u from "
        "threefry2x32 with the key fold_in([0, chip_seed], h) and the counter = "
        "row-major index in the stored array; h = little-endian blake2s-32 of "
        "'<path>#mismatch#0'"
    ),
    "levels": (
        "with a modifier that has enable_during_test and levels, weights are rounded "
        "to them before they are written, half to even, with A = max|w| of the nominal "
        "weights of their row tile or column, or assumed_wmax, and step = 2 * A * res "
        "(res > 1: 2 * A / res): w = step * round(w / step) (discretize, "
        "discretize_add_normal); w = res * round(dorefa_clip * tanh(w) / "
        "(res * tanh(A))) (dorefa). 'conductances' of the nominal tile, and all chips, "
        "are of these weights; the nominal tensor is not rounded"
    ),
    "chip_conductances": (
        "of w_chip with the scale_ratio (and min) of the nominal tile; a mismatched "
        "device may exceed g_max, a target never does. Of several pairs, those of the "
        "weight's sign share equally what exceeds; a single device is never negative"
    ),
    "programming": (
        "of each device of a chip, by the noise model of its hardware: its target is "
        "the tensor of its own name, g_prog what programming reached, nu its drift "
        "exponent, xi the number that its relaxation follows; drawn as xi of 'chip', "
        "with the key fold_in(fold_in([0, chip_seed], h), n), h of "
        "'<path>#programming#<number of the device>', n = 0 for the programming noise "
        "and 1 for nu or xi (reram_wan2022: one number, without the outer fold_in). "
        "At a time t >= 0 in s after programming: power-law models "
        "g(t) = g_prog * ((t + t_0) / t_0) ** -nu; reram_wan2022 "
        "g(t) = max(target + sigma(target, t) * xi, 0), sigma = noise_scale * g_max / "
        "coeff_g_max_reference times a polynomial in target / g_max, in ascending "
        "powers 0.348, 16.030, -43.853, 45.393, -16.815 at 1 s, 0.701, 22.086, "
        "-50.773, 47.095, -16.458 at 86400 s, 0.782, 20.274, -43.507, 37.062, -11.934 "
        "at 172800 s, each at least 0, linear in ln t between and constant outside; "
        "reram_cmo g(t) = clip(g_prog + drift_scale * (-0.08900206 * l + "
        "(0.04201137 * l + 0.41183342) * xi), g_min, g_max), l = ln(max(t, 1)). "
        "Weights follow by 'weights' with the scale_ratio of the nominal tile"
    ),
    "signal_path": (
        "of a layer: y = sum over row tiles of output_scale * mapping_scale * r * "
        "out_scale * ADC(w . DAC(u)), u = clip(x, -r, r) / r, plus bias; r is "
        "input_range [*stack, row tiles, column tiles], without one 1 and no clip. "
        "DAC: clip(step * round(u / step), -bound, bound), half to even, bound = "
        "inp_bound or 1, step = 2 * bound * res, res = 1 / (2**inp_bits - 2) or "
        "inp_res (above 1 its inverse); without levels the clip alone, if there is an "
        "inp_bound. ADC alike, of out_*. In normalised units, in this order: scale of "
        "the management, DAC, inp_noise (std per input), inp_asymmetry, product, IR "
        "drop, voltage offset and series resistance, w_noise (std per output: times "
        "the root of sum u**2, additive_constant, or of sum |w| * u**2, pcm_read), "
        "saturation, out_asymmetry, out_noise (std per output), ADC. All formulas: "
        "'What a tile computes' in docs/checkpoint.md of hwtrain"
    ),
    "stuck": (
        "of each device of a chip, with p0 = stuck.at_g_min and p1 = stuck.at_g_max of "
        "its hardware: 1 (stuck at g_min) if u < p0, 2 (stuck at g_max) if "
        "u >= 1 - p1, else 0; u uniform in [0, 1), drawn as that of 'chip' from its "
        "23 upper bits, h of '<path>#stuck#<number of the device>'. Its g_prog, and "
        "its conductance at every time and read, is g_min or g_max"
    ),
    "drift_compensation": (
        "factor on the output of a tile, behind its ADC: mean|w| of g_prog (global, "
        "per_column: of each column) or of the nominal weights "
        "(global_exact_reference), divided by that of g(t), both at least 1e-4; |w| as "
        "the tile's own DAC and ADC read it (hardware.forward), one row driven by 1 "
        "after the other, with their noise drawn anew; with readout 'exact', the "
        "weights themselves"
    ),
    "sha256": (
        "of a tensor: its bytes, row-major, little-endian. Of the manifest: of this "
        "object without its sha256, as JSON with sorted keys, no spaces, UTF-8"
    ),
}

_SINCE_1_3 = ("life", "flicker", "pulses")
"""Units that format 1.2 does not state."""

_EARLIER = frozenset(
    {
        "1a3a0ec1caef77ce2fb7b1ca4348135d2a3d74f5769039dd512a3ab70fbff14b",
        "0705be934c969bde9ea24abc938346e2ede86b88b51293e49828be21919cdec3",
        "993d1cae18535dcb530d2df107c3c8d5f5d004ec5a6dd89eb64a8deab3d38e64",
        "73ec84a40a7f7249c3c4b1eda902cd4399889ae18693f3b1d69a1ca855139755",
        "ba81e34be0d651507f73a5bef99761f42b109bd855aeaaa8d636554398c77b0e",
        "97718599f1d86c3dbea6444fc05783026455e9a7e268a4759d8824074d93913f",
        "0ae469d021b9e69eae26ccecdacfe9c654a9982f868a4f3fcb0fb23d3a452b7b",
        "d892fd45ab65dda3bf3307187805847142f07728a48686834a8ff974b7b15cbf",
        "2a4099ae105b3c627600f564af4374bf3e5e365ebc5608dba8c55751c7455650",
        "aba0fd19114a3c6f79c9bb55122c0c0248dd9d864f19884ce40533225514880d",
        "4b5c8885eca30ff12126afc00c53520d206b4a1fa09a5b6a295211fbf09984cb",
    }
)
"""SHA-256 of the units and rules of formats 1.0 and 1.1."""

_OTHER_WORDS = frozenset(
    {
        "84dc64b61b8b4b6c5c1cd5c0fe2fdc25578f19a7884ffc597db21cf75c8832c7",
        "4bcf16c72f7b1e49ce9c08312234a72f108da3689f4b995b8d818cf438c5ca2e",
    }
)
"""SHA-256 of the units and rules of format 1.2, in earlier wording."""


def check_words(
    units: Mapping[str, str], rules: Mapping[str, str], version: str
) -> None:
    """Raises unless a manifest states the units and rules of its version.

    Args:
      units: the manifest's units.
      rules: the manifest's rules.
      version: the manifest's version of the format.

    Raises:
      ValueError: naming the first that differs.
    """
    if version in UNNAMED:
        if _digest(units, rules) not in _EARLIER | {_digest(UNITS, RULES)}:
            raise InputError(
                "rules and units do not match those of any hwtrain version"
            )
        return
    stated = UNITS
    if version == "1.2":
        if _digest(units, rules) in _OTHER_WORDS:
            return
        stated = {name: unit for name, unit in UNITS.items() if name not in _SINCE_1_3}
    pairs = (("units", units, stated), ("rules", rules, RULES))
    for name, found, expected in pairs:
        for key in sorted(expected.keys() | found.keys()):
            if found.get(key) != expected.get(key):
                raise InputError(
                    f"{name}.{key[:80]}: should be {expected.get(key)!r}, got "
                    f"{found.get(key)!r}"[:600]
                )


def _digest(units: Mapping[str, str], rules: Mapping[str, str]) -> str:
    text = json.dumps([dict(units), dict(rules)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
