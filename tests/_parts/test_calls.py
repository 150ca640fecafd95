"""Tests of hwtrain._parts.calls: a wrong call of a configuration is told in words."""

import copy
import dataclasses
import enum
import importlib
import inspect
import json
import pickle
import pkgutil
import sys
import traceback
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import pytest
from flax import linen as nn

import hwtrain
from hwtrain import (
    Hardware,
    IOParameters,
    MappingParameter,
    PCMLikeNoiseModel,
    WeightClipParameter,
    WeightModifierParameter,
)
from hwtrain._errors import InputError
from hwtrain._parts import registry
from hwtrain._parts.reference_names import counterpart
from hwtrain.devices import AtTemperature, NPairConductanceConverter
from hwtrain.train import TrainingParameter

GOLDEN = Path(__file__).parents[1] / "golden" / "reference_fields.json"
MODIFIERS = (
    "'none', 'copy', 'add_normal', 'mult_normal', 'discretize', "
    "'discretize_add_normal', 'dorefa', 'poly', 'prog_noise', 'pcm_noise' or "
    "'drop_connect'"
)


class Kind(enum.Enum):
    """As the reference libraries name what is text here."""

    ADD_NORMAL = "AddNormal"


def is_built_in(part):
    return part.__module__.startswith("hwtrain.")


def noise_models():
    *first, last = sorted({x.__name__ for x in registry.parts_of("noise_model")})
    return f"{', '.join(first)} or {last}"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: WeightModifierParameter(type="ADD_NORMAL"),
            f"WeightModifierParameter(type=): expected {MODIFIERS}, got 'ADD_NORMAL'; "
            "did you mean 'add_normal'?",
        ),
        (
            lambda: WeightModifierParameter(type=Kind.ADD_NORMAL),
            f"WeightModifierParameter(type=): expected {MODIFIERS}, got "
            "<Kind.ADD_NORMAL: 'AddNormal'>; did you mean 'add_normal'?",
        ),
        (
            lambda: WeightModifierParameter(std_de=0.1),
            "WeightModifierParameter(std_de=): unknown field; did you mean std_dev?",
        ),
        (
            lambda: IOParameters(inp_res="7bit"),
            "IOParameters(inp_res=): expected a number, got '7bit'",
        ),
        (
            lambda: IOParameters(8, inp_noise=0.1),
            "IOParameters: expected fields by name only, such as "
            "IOParameters(inp_bound=...), got 8",
        ),
        (
            lambda: hwtrain.HermesNoiseModel(2),
            "HermesNoiseModel: expected fields by name only, such as "
            "HermesNoiseModel(g_max=...), got 2",
        ),
        (
            lambda: hwtrain.ReRamCMONoiseModel(2.0),
            "ReRamCMONoiseModel: expected fields by name only, such as "
            "ReRamCMONoiseModel(g_max=...), got 2.0",
        ),
        (
            lambda: IOParameters(inp_bits=2.5, inp_noise=-1, out_noise=float("nan")),
            "IOParameters(inp_bits=): expected a whole number, got 2.5\n"
            "IOParameters(inp_noise=): expected a number greater than or equal to 0, "
            "got -1\n"
            "IOParameters(out_noise=): expected a finite number, got nan",
        ),
        (
            lambda: IOParameters(inp_sto_round=1),
            "IOParameters(inp_sto_round=): expected True or False, got 1",
        ),
        (
            lambda: IOParameters(inp_bits=10**5000),
            "IOParameters(inp_bits=): expected a number less than or equal to 24, got "
            "a value of int",
        ),
        (
            lambda: IOParameters(out_bits=8),
            "IOParameters: an ADC needs a full scale: write out_bound=10.0 beside "
            "out_bits, in normalised units (largest input times largest weight)",
        ),
        (
            lambda: IOParameters(stages=["leak"]),
            "IOParameters(stages=): expected a tuple, got ['leak']",
        ),
        (
            lambda: MappingParameter(max_input_size=0),
            "MappingParameter(max_input_size=): a tile has at least one row and one "
            'column, got 0; write None for no limit ("none" in TOML)',
        ),
        (
            lambda: IOParameters(out_bits=np.int64(8)),
            "IOParameters(out_bits=): expected a whole number, got "
            f"{np.int64(8)!r}; make it a number of Python: int(...)",
        ),
        (
            lambda: IOParameters(out_noise=np.zeros(2)),
            "IOParameters(out_noise=): expected a number, got array([0., 0.])",
        ),
        (
            lambda: jax.jit(lambda x: WeightModifierParameter(std_dev=x))(0.5),
            "; traced numbers are given by hwtrain.with_constants",
        ),
        (
            lambda: PCMLikeNoiseModel(g_converter=None),
            "PCMLikeNoiseModel(g_converter=): unknown field; aihwkit's g_converter is "
            "Hardware(converter=)",
        ),
        (
            lambda: NPairConductanceConverter(f_lst=(1.0, "a")),
            "NPairConductanceConverter(f_lst[1]=): expected a number, got 'a'",
        ),
        (
            lambda: hwtrain.ReRamCMONoiseModel(drift_std_coeff=(1.0,)),
            "ReRamCMONoiseModel(drift_std_coeff=): expected at least 2 entries, got "
            "(1.0,)",
        ),
        (
            lambda: Hardware(modifer=None),
            "Hardware(modifer=): unknown field; did you mean modifier?",
        ),
        (
            lambda: Hardware(noise_model="pcm"),
            "Hardware(noise_model=): expected an object of {noise_models}, got "
            "'pcm'; did you mean PCMLikeNoiseModel()?",
        ),
        (
            lambda: Hardware(noise_model=PCMLikeNoiseModel),
            "Hardware(noise_model=): expected an object of {noise_models}, got the "
            "class PCMLikeNoiseModel; did you mean PCMLikeNoiseModel()?",
        ),
        (
            lambda: Hardware(clip="layer_gausian"),
            "Hardware(clip=): expected an object of WeightClipParameter, got "
            "'layer_gausian'; did you mean WeightClipParameter(type='layer_gaussian')?",
        ),
        (
            lambda: Hardware(forward={"inp_bits": 8}),
            "Hardware(forward=): expected an object of IOParameters, got "
            "{'inp_bits': 8}",
        ),
        (
            lambda: Hardware(drift=3),
            "Hardware(drift=): expected an object of DriftParameter or "
            "SimpleDriftParameter, got 3",
        ),
        (
            lambda: AtTemperature(noise_model=3),
            "AtTemperature(noise_model=): expected an object of {noise_models}, got "
            "3\n"
            "AtTemperature(temperature_k=): expected a value, because it has no "
            "default; got none",
        ),
        (
            lambda: TrainingParameter(
                steps=1, optimizer="adam", noise_schedule={"arguments": {"x": 1}}
            ),
            "TrainingParameter(optimizer=): expected "
            '"path/to/file.py:function" or "module:function", got \'adam\'\n'
            "TrainingParameter(noise_schedule=): expected an object of "
            "NoiseScheduleParameter, got {'arguments': {'x': 1}}",
        ),
    ],
)
def test_a_wrong_call_is_told_in_words(call, message, monkeypatch):
    # Other tests of this process may have registered more parts.
    for kind, entries in registry._known.items():
        own = {n: x for n, x in entries.items() if is_built_in(x.part)}
        monkeypatch.setitem(registry._known, kind, own)
    with pytest.raises(InputError) as error:
        call()
    said = str(error.value)
    message = message.replace("{noise_models}", noise_models())
    assert said.endswith(message) if message.startswith(";") else said == message
    assert error.value.__cause__ is None and error.value.__suppress_context__
    shown = "".join(traceback.format_exception(error.value))
    assert "pydantic" not in shown.replace("pydantic_core", "").partition("Error: ")[2]


def configurations():
    for module in pkgutil.walk_packages(hwtrain.__path__, "hwtrain."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found = {part for kind in registry.KINDS for part in registry.parts_of(kind)}
    for name, module in list(sys.modules.items()):
        if name.startswith("hwtrain."):
            found |= {x for x in vars(module).values() if inspect.isclass(x)}
    return sorted(
        (
            kind
            for kind in found
            if "__pydantic_fields__" in vars(kind) and dataclasses.is_dataclass(kind)
            if not inspect.isabstract(kind) and kind.__module__.startswith("hwtrain.")
        ),
        key=lambda kind: (kind.__module__, kind.__name__),
    )


def test_every_configuration_names_an_unknown_field():
    kinds = configurations()
    assert len(kinds) >= 80
    assert {Hardware, IOParameters, PCMLikeNoiseModel, TrainingParameter} <= {*kinds}
    for kind in kinds:
        with pytest.raises(ValueError) as error:
            kind(no_such_field=1)
        said = "".join(traceback.format_exception_only(error.value))
        assert f"{kind.__name__}(no_such_field=): unknown field; " in said, kind
        assert "pydantic.dev" not in said and "ArgsKwargs" not in said
        assert said.rstrip().splitlines()[-1].startswith("See docs/")


def test_names_of_the_reference_libraries_are_fields_or_explained():
    known = json.loads(GOLDEN.read_text("utf-8"))
    for library, classes in known.items():
        for name, names in classes.items():
            kind = getattr(hwtrain, name, None) or getattr(hwtrain.devices, name)
            fields = {field.name for field in dataclasses.fields(kind)}
            for field in names:
                explained = bool(counterpart(kind, field))
                assert explained != (field in fields), (library, name, field)


def test_copies_are_checked_in_the_same_words():
    io = IOParameters(inp_bits=8)
    assert pickle.loads(pickle.dumps(io)) == io
    assert dataclasses.replace(io, inp_bits=6).inp_bits == 6
    with pytest.raises(InputError, match=r"^IOParameters\(inp_bits=\): expected a who"):
        dataclasses.replace(io, inp_bits="6")
    if sys.version_info >= (3, 13):
        with pytest.raises(InputError, match=r"^IOParameters\(inp_bit=\): unknown"):
            copy.replace(io, inp_bit=6)


def test_an_error_survives_pickling():
    # As one of a process of a pool does.
    with pytest.raises(InputError) as error:
        IOParameters(inp_bit=8)
    again = pickle.loads(pickle.dumps(error.value))
    assert str(again) == str(error.value)


class Leak(hwtrain.Part):
    """A stage of a user."""

    share: float = 0.1

    @pydantic.model_validator(mode="after")
    def _check(self):
        if self.share == 7:
            raise AssertionError("seven is\nnot allowed")
        if self.share > 1:
            raise ValueError("a share is at most 1")
        return self


class Wide(Leak):
    """A stage that inherits."""

    width: int = 1


class Io(IOParameters):
    """A subclass without a decorator."""


@pytest.fixture
def leak():
    hwtrain.register("stage", "leak_of_test", inside="adc")(Leak)
    yield
    registry.forget("stage", "leak_of_test")


def test_parts_of_users_have_the_words_too(leak):
    for call, message in [
        (lambda: Leak(shar=1.0), "Leak(shar=): unknown field; did you mean share?"),
        (lambda: Leak(share=2.0), "Leak: a share is at most 1"),
        (lambda: Leak(share=7.0), "Leak: seven is\nLeak: not allowed"),
        (lambda: Wide(width=1.5), "Wide(width=): expected a whole number, got 1.5"),
        (lambda: Wide(g_converter=1), "Wide(g_converter=): unknown field; expected "),
        (lambda: Io(inp_bit=8), "Io(inp_bit=): unknown field; did you mean inp_bits?"),
        (
            lambda: IOParameters(stages=({"type": "leak_of_test", "shar": 1.0},)),
            "IOParameters(stages[0]=): Leak(shar=): unknown field; did you mean share?",
        ),
    ]:
        with pytest.raises(InputError) as error:
            call()
        assert str(error.value).startswith(message)
    assert IOParameters(stages=({"type": "leak_of_test", "share": 0.5},)).stages == (
        Leak(share=0.5),
    )


def test_a_traced_constant_still_takes_the_place_of_a_number():
    analog = hwtrain.analogize(
        nn.Dense(2), Hardware(forward=IOParameters(out_noise=0.1))
    )
    variables = analog.init(jax.random.key(0), x := jnp.ones((1, 3)))

    @jax.jit
    def outputs(std):
        model = hwtrain.with_constants(analog, {"forward.out_noise": std})
        return model.apply(variables, x, rngs={"mismatch": jax.random.key(1)})

    nominal = outputs(0.0)
    np.testing.assert_allclose(
        outputs(0.2) - nominal, 2 * (outputs(0.1) - nominal), rtol=1e-3, atol=1e-5
    )
    assert (outputs(0.1) != nominal).all()


def test_clips_keep_their_own_words():
    with pytest.raises(InputError, match="^WeightClipParameter: .*write fixed_value="):
        WeightClipParameter(type="fixed_value")
