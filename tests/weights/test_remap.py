import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hwtrain._arrays import statistics, tiling
from hwtrain._parts.fields import from_dict, to_dict
from hwtrain.weights import WeightRemapParameter, remap

TYPES = {
    "LayerwiseSymmetric": "layerwise_symmetric",
    "ChannelwiseSymmetric": "channelwise_symmetric",
}


def golden_cases(golden, section):
    for name, case in golden("aihwkit_weights")[section].items():
        if "out_scales" in case and "pars" in case:
            yield name, case


def as_parameter(pars):
    options = {key: value for key, value in pars.items() if key != "type"}
    return WeightRemapParameter(type=TYPES[pars["type"]], **options)


def test_remapping_agrees_with_the_c_engine(golden):
    done = 0
    for name, case in golden_cases(golden, "remap_cpp"):
        parameter = as_parameter(case["pars"])
        w, scale = jnp.float32(case["w"]).T, jnp.float32(case["scales"])[None]
        rows = (w.shape[0],)
        new = parameter.scale(w, scale, rows, w.shape[-1:])
        np.testing.assert_allclose(new[0], case["out_scales"], rtol=1e-5, err_msg=name)
        out = remap.rescaled(w, scale, new, rows)
        expected = np.float32(case["out_w"]).T
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6, err_msg=name)
        done += 1
    assert done == 24


def test_channelwise_agrees_with_the_torch_tile_but_for_its_zero_rows(golden):
    # There a row of zeros gets the scale zero, and its weights become NaN.
    done = 0
    for name, case in golden_cases(golden, "remap_torch_tile"):
        if not name.startswith("channelwise"):
            continue
        parameter = as_parameter(case["pars"])
        w, scale = jnp.float32(case["w"]).T, jnp.float32(case["scales"])[None]
        new = parameter.scale(w, scale, (w.shape[0],), w.shape[-1:])
        zero = ~np.asarray(w).any(0)
        theirs = np.float32(np.ravel(case["out_scales"]))
        np.testing.assert_allclose(new[0][~zero], theirs[~zero], rtol=1e-5)
        np.testing.assert_array_equal(new[0][zero], scale[0][zero])
        done += 1
    assert done == 4


@pytest.mark.parametrize("type", TYPES.values())
@pytest.mark.parametrize("scale_columns", [1, 6])
def test_the_logical_weight_never_changes(type, scale_columns):
    key, sizes = jax.random.key(0), tiling.split_sizes(10, 4)
    w = jax.random.normal(key, (2, 10, 6))
    scale = jnp.exp(jax.random.normal(jax.random.key(1), (2, 3, scale_columns)))
    parameter = WeightRemapParameter(type=type, remapped_wmax=0.8)
    new = parameter.scale(w, scale, sizes, w.shape[-1:])
    columns = 6 if parameter.per_column else scale_columns
    assert new.shape == (2, 3, columns)
    out = remap.rescaled(w, scale, new, sizes)
    logical = w * tiling.expand_rows(scale, sizes)
    np.testing.assert_allclose(out * tiling.expand_rows(new, sizes), logical, rtol=1e-5)
    largest = statistics.absolute_maximum(out, sizes, per_column=parameter.per_column)
    np.testing.assert_allclose(largest, jnp.full_like(largest, 0.8), rtol=1e-5)


def test_zeros_keep_their_scale():
    scale = jnp.full((1, 2), 3.0)
    for type in TYPES.values():
        remap = WeightRemapParameter(type=type)
        new = remap.scale(jnp.zeros((4, 2)), scale, (4,), (2,))
        np.testing.assert_array_equal(new, scale)


def test_the_range_of_scales_is_limited_within_a_tile():
    w = jnp.float32([[0.1, 1.0, 1.0], [1.0, 1.0, 1.0]])
    scale = jnp.float32([[1.0, 5.0, 1.0], [2.0, 2.0, 9.0]])
    parameter = WeightRemapParameter(type="channelwise_symmetric", max_scale_range=3.0)
    new = parameter.scale(w, scale, (1, 1), w.shape[-1:])
    np.testing.assert_allclose(new, [[0.1, 3.0, 1.0], [2.0, 2.0, 6.0]], rtol=1e-6)


def test_none_does_nothing():
    scale = jnp.ones((1, 1))
    assert WeightRemapParameter().scale(jnp.zeros((2, 2)), scale, (2,), (2,)) is scale


def test_round_trip():
    parameter = WeightRemapParameter(type="channelwise_symmetric", max_scale_range=2.0)
    assert from_dict(WeightRemapParameter, to_dict(parameter)) == parameter


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"type": "layerwise_symmetric", "max_scale_range": 2.0},
            'write type="channelwise_symmetric"',
        ),
        (
            # The C++ engine stops with "expect wrmpar.remapped_wmax to be 1".
            {
                "type": "channelwise_symmetric",
                "max_scale_range": 2.0,
                "remapped_wmax": 0.5,
            },
            "needs remapped_wmax=1.0; got 0.5",
        ),
        ({"type": "channelwise_symmetric", "max_scale_ref": 1.5}, "does nothing with"),
        ({"type": "channelwise_symmetric", "remapped_wmax": 0.0}, "greater than 0"),
    ],
)
def test_impossible_configurations_say_the_way_out(options, message):
    with pytest.raises(ValueError, match=message):
        WeightRemapParameter(**options)
