"""Arguments of the reference libraries' classes that have another name here."""

_ON_THE_CHIP = (
    "hwtrain trains off chip; the devices of a chip are noise_model= and converter="
)
_OF_TORCH = "it has no counterpart in JAX; leave it out"

_NAMES = {
    "Hardware": {
        "pre_post": "aihwkit's pre_post.input_range is input_range=",
        "device": _ON_THE_CHIP,
        "update": _ON_THE_CHIP,
        "backward": "gradients pass through the effects of forward=; leave it out",
        "runtime": _OF_TORCH,
        "tile_class": _OF_TORCH,
        "tile_array_class": _OF_TORCH,
        "simulator_tile_class": _OF_TORCH,
    },
    "IOParameters": {
        "is_perfect": "a perfect tile is Hardware(forward=None)",
        "bm_test_negative_bound": "both bounds of the ADC are tested; leave it out",
    },
    "InputRangeParameter": {
        "calibration_info": "it is a note, not an effect; leave it out",
    },
    "MappingParameter": {
        "digital_bias": (
            "biases are digital; docs/periphery.md has a layer whose bias is on rows"
        ),
        "weight_scaling_lr_compensation": (
            "updates are those of the weights themselves, whatever the scaling; leave "
            "it out"
        ),
    },
    "WeightModifierParameter": {
        "noise_type": (
            "aihwkit-lightning's noise_type and quantization_type are one type= here"
        ),
        "quantization_type": (
            "aihwkit-lightning's noise_type and quantization_type are one type= here"
        ),
    },
    "CustomPairConductanceConverter": {
        "invertibility_test": "it is always tested; leave it out",
    },
    "NoiseModel": {
        "g_converter": "aihwkit's g_converter is Hardware(converter=)",
        "custom_drift_model": (
            "aihwkit's custom_drift_model is g_lst=, nu_mean_lst= and nu_std_lst= of "
            "CustomDriftPCMLikeNoiseModel"
        ),
        "coeff_dic": "aihwkit's coeff_dic is times_s= and spread_coeff=",
        "coeff_dict": "aihwkit's coeff_dict is prog_coeff=",
        "decay_dict": "aihwkit's decay_dict is drift_mean_coeff= and drift_std_coeff=",
        "read_dict": "aihwkit's read_dict is read_coeff=",
    },
}
"""By class, or the base of several, then by name: what to write here."""


def counterpart(kind: type, name: str) -> str:
    """Returns what an argument of a reference library is here; empty if unknown.

    >>> from hwtrain import PCMLikeNoiseModel
    >>> counterpart(PCMLikeNoiseModel, "g_converter")
    "aihwkit's g_converter is Hardware(converter=)"

    Args:
      kind: the class whose argument it is.
      name: its name.
    """
    known = (_NAMES.get(base.__name__, {}) for base in kind.__mro__)
    return next((names[name] for names in known if name in names), "")
