"""Cases that the references refuse: refused here too, or supported."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwtrain.devices import (
    CustomPairConductanceConverter,
    DualPairConductanceConverter,
    NPairConductanceConverter,
    SinglePairConductanceConverter,
)
from hwtrain.weights import (
    WeightClipParameter,
    WeightModifierParameter,
    WeightRemapParameter,
)

LINE = ((0.0, 0.0, 0.0, 12.5, 25.0), (25.0, 12.5, 0.0, 0.0, 0.0))
PAIR = SinglePairConductanceConverter()
W = jax.random.normal(jax.random.key(0), (4, 3))

REFUSED = {
    "single_pair/g_min_ge_g_max": (
        lambda: SinglePairConductanceConverter(g_max=5.0, g_min=5.0),
        "must be below g_max",
    ),
    "single_pair/neg_g_max": (
        lambda: SinglePairConductanceConverter(g_max=-1.0),
        "greater than 0",
    ),
    "single_pair/neg_g_min": (
        lambda: SinglePairConductanceConverter(g_min=-1.0),
        "greater than or equal to 0",
    ),
    "single_pair/back_wrong_len": (
        lambda: PAIR.convert_back_to_weights([W], {"scale_ratio": jnp.ones(())}),
        "got 1",
    ),
    "single_pair/back_no_params": (
        lambda: PAIR.convert_back_to_weights([W, W], {}),
        "scale_ratio",
    ),
    "n_pair/f_not_list": (
        lambda: NPairConductanceConverter(f_lst=2.0),
        "expected a tuple, got 2.0",
    ),
    "n_pair/all_neg_f": (
        lambda: NPairConductanceConverter(f_lst=(-1.0, -2.0)),
        "greater than 0",
    ),
    "dual_pair/3_f": (
        lambda: DualPairConductanceConverter(f_lst=(1.0, 2.0, 3.0)),
        "two factors",
    ),
    "custom/odd_g": (
        lambda: CustomPairConductanceConverter(f_lst=(1.0,), g_lst=LINE[:1]),
        "got 1 curves and 1 factors",
    ),
    "custom/f_g_mismatch": (
        lambda: CustomPairConductanceConverter(f_lst=(1.0, 2.0), g_lst=LINE),
        "got 2 curves and 2 factors",
    ),
    "custom/not_invertible": (
        lambda: CustomPairConductanceConverter(f_lst=(1.0,), g_lst=(LINE[0], LINE[0])),
        "not invertible",
    ),
    "LayerGaussian/sigma-1.0/W_ASYM": (
        lambda: WeightClipParameter(type="layer_gaussian", sigma=-1.0),
        "greater than 0",
    ),
    "LayerGaussianPerChannel/sigma-1.0/W_ASYM": (
        lambda: WeightClipParameter(type="layer_gaussian", sigma=-1.0, per_column=True),
        "greater than 0",
    ),
    "channelwise_maxrange2_wmax0.5_error/W_ASYM/ones": (
        lambda: WeightRemapParameter(
            type="channelwise_symmetric", max_scale_range=2.0, remapped_wmax=0.5
        ),
        "needs remapped_wmax=1.0",
    ),
}

DONE = {
    # Draws for each example, and every type of modifier, on every engine.
    "per_batch_sample_error": lambda: modified(
        type="add_normal", std_dev=0.1, per_batch_sample=True
    ),
    "discretize_per_batch_sample_error": lambda: modified(
        type="discretize", res=0.25, sto_round=True, per_batch_sample=True
    ),
    "pcm_noise_not_on_cpu": lambda: modified(type="pcm_noise", std_dev=1.0),
    "support/DOREFA": lambda: modified(type="dorefa", res=0.1),
    "support/POLY": lambda: modified(type="poly", std_dev=1.0),
    "support/PROG_NOISE": lambda: modified(type="prog_noise", std_dev=1.0),
    "support/PCM_NOISE": lambda: modified(type="pcm_noise", std_dev=1.0),
    "support/DISCRETIZE_ADD_NORMAL": lambda: modified(
        type="discretize_add_normal", res=0.1, std_dev=0.1
    ),
    # The Fusion chip's pair takes any g_max; its export checks the chip's own limits.
    "fusion/gmax_out_of_range": lambda: SinglePairConductanceConverter(
        g_max=41.0, per_column=True
    ).convert_to_conductances(W)[0][0],
    # A clip by the columns' largest weights, on every engine.
    **{
        f"avg_channel_max{limit}/{matrix}": lambda: WeightClipParameter(
            type="average_channel_max"
        ).bound(W, (4,))
        for limit in ("", "_fixed0.5")
        for matrix in ("W45", "W_ASYM", "offset")
    },
}


def modified(**options):
    modifier = WeightModifierParameter(**options)
    return modifier(jax.random.key(1), W, jnp.abs(W).max())


def test_every_recorded_error_has_an_answer(golden):
    recorded = {
        name
        for section, cases in golden("aihwkit_weights").items()
        if section != "meta"
        for name, case in cases.items()
        if isinstance(case, dict) and "error_type" in case
    }
    assert recorded == REFUSED.keys() | DONE.keys()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_an_error_that_says_so(name):
    build, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("name", DONE)
def test_what_the_reference_lacks_is_done(name):
    result = np.asarray(DONE[name]())
    assert np.isfinite(result).all()
    assert result.shape != W.shape or (result != np.asarray(W)).any()
