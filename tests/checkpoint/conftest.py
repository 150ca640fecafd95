"""A model with every kind of analog weight, planned by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from hwtrain._plan.hardware import Hardware
from hwtrain._plan.plan import Digital, Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.devices import SinglePairConductanceConverter
from hwtrain.periphery import InputRangeParameter
from hwtrain.weights import MappingParameter, MismatchParameter, WeightClipParameter

TILED = Hardware(
    mapping=MappingParameter(
        max_input_size=4,
        max_output_size=3,
        weight_scaling_omega=0.8,
        weight_scaling_columnwise=True,
    ),
    input_range=InputRangeParameter(),
    converter=SinglePairConductanceConverter(g_min=0.1),
    mismatch=MismatchParameter(type="add_normal", std_dev=0.1),
)
STACKED = Hardware(
    mapping=MappingParameter(max_input_size=3, weight_scaling_omega=1.0),
    converter=SinglePairConductanceConverter(g_max=40.0, g_min=5.0, per_column=True),
    mismatch=MismatchParameter(type="mult_normal", std_dev=0.2),
)
STORED_SCALE = Hardware(
    mapping=MappingParameter(max_output_size=3, weight_scaling_omega=1.0),
    clip=WeightClipParameter(type="fixed_value", fixed_value=1.0),
    converter=SinglePairConductanceConverter(),
)
PLAIN = Hardware(converter=SinglePairConductanceConverter())
NO_CONVERTER = Hardware(mismatch=MismatchParameter(type="mult_normal", std_dev=0.1))


def analog(path, shape, rows, columns, hardware, layer="Dense"):
    return AnalogWeight(
        path=path,
        kind={"": "raw", "Embed": "embed"}.get(layer, "dense"),
        layer=layer,
        shape=shape,
        rows=rows,
        columns=columns,
        hardware=hardware,
        rule="Rule('.*')",
        ranged=hardware.ranged,
    )


@pytest.fixture
def plan():
    return Plan(
        (
            analog("hidden/kernel", (10, 7), (0,), (1,), TILED),
            analog("layers/kernel", (2, 5, 6), (1,), (2,), STACKED),
            analog("heads/kernel", (6, 2, 4), (0,), (1, 2), PLAIN, "DenseGeneral"),
            analog("tied/embedding", (7, 6), (1,), (0,), STORED_SCALE, "Embed"),
            analog("cell/w_rec", (4, 4), (0,), (1,), NO_CONVERTER, ""),
        ),
        (Digital(path="norm/scale", reason="normalisation is digital"),),
    )


@pytest.fixture
def variables():
    rng = np.random.default_rng(0)

    def draw(*shape, dtype=jnp.float32):
        return jnp.asarray(rng.normal(size=shape).astype(dtype))

    params = {
        "hidden": {
            "kernel": draw(10, 7),
            "bias": draw(7),
            "input_range": jnp.full((3, 3), 2.5),
            "probe": jnp.zeros((3, 3, 6)),
        },
        "layers": {"kernel": draw(2, 5, 6), "bias": draw(2, 6)},
        "heads": {"kernel": draw(6, 2, 4, dtype=jnp.bfloat16), "bias": draw(2, 4)},
        "tied": {"embedding": draw(7, 6), "mapping_scale": jnp.full((1, 1), 3.5)},
        "cell": {"w_rec": draw(4, 4), "threshold": jnp.asarray(1.0)},
        "norm": {"scale": draw(10)},
    }
    return {
        "params": params,
        "batch_stats": {"norm": {"mean": draw(10), "count": jnp.asarray(3)}},
        "cache": {},
    }
