"""Hardware in files: presets with changes, rules, and what of them is wrong."""

import dataclasses
import json
import tomllib

import jsonschema
import pytest
import tomli_w

import hwtrain as hw
from hwtrain import presets
from hwtrain._parts.fields import to_dict
from hwtrain.train import read_config
from hwtrain.train._hardware import preset_names
from hwtrain.train._schema import schema

START = 'model = "m.py:f"\ndata = "m.py:d"\n[training]\nsteps = 1\n'


def read(folder, text, *overrides):
    (folder / "c.toml").write_text(START + text)
    return read_config(folder / "c.toml", overrides)


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_what_its_function_returns(tmp_path, name):
    config = read(tmp_path, f'[hardware]\npreset = "{name}"')
    assert config.hardware == getattr(presets, name)()
    assert config.assigned == config.hardware


def test_no_hardware_is_ideal(tmp_path):
    assert read(tmp_path, "").hardware == hw.Hardware()


def test_entries_change_a_preset(tmp_path):
    text = """
        [hardware]
        preset = "standard_hwa_training"
        remap = "none"
        [hardware.forward]
        out_noise = 0.1
        [hardware.clip]
        type = "layer_gaussian"
    """
    base = presets.standard_hwa_training()
    assert base.remap is not None and base.clip.fixed_value == 1.0
    found = read(tmp_path, text).hardware
    expected = dataclasses.replace(
        base,
        remap=None,
        forward=dataclasses.replace(base.forward, out_noise=0.1),
        clip=hw.WeightClipParameter(type="layer_gaussian"),
    )
    assert found == expected


def test_a_preset_may_be_a_function_of_ones_own(tmp_path):
    (tmp_path / "chip.py").write_text(
        "import hwtrain\n\n\ndef mine():\n    return hwtrain.presets.hermes()\n"
    )
    config = read(tmp_path, '[hardware]\npreset = "chip.py:mine"')
    assert config.hardware == presets.hermes()


def test_rules_have_what_they_leave_out_from_the_hardware(tmp_path):
    text = """
        [hardware]
        preset = "pcm"
        modifier = { type = "add_normal", std_dev = 0.1 }

        [[rules]]
        pattern = "first"
        digital = true

        [[rules]]
        pattern = "head"
        frozen = true
        modifier = { std_dev = 0.3 }

        [[rules]]
        params = "table"
        rows = 1
        columns = 0
        preset = "hermes"
        modifier = { type = "mult_normal", std_dev = 0.2 }
    """
    config = read(tmp_path, text)
    base = config.hardware
    noise = hw.WeightModifierParameter
    expected = (
        hw.Rule("first", None),
        hw.Rule(
            "head",
            dataclasses.replace(base, modifier=noise(type="add_normal", std_dev=0.3)),
            frozen=True,
        ),
        hw.Rule(
            params="table",
            rows=1,
            columns=0,
            hardware=dataclasses.replace(
                presets.hermes(), modifier=noise(type="mult_normal", std_dev=0.2)
            ),
        ),
        base,
    )
    assert config.assigned == expected
    assert config.chips == (expected[1].hardware, expected[2].hardware, base)


def test_what_is_shown_reads_back(tmp_path):
    text = '[hardware]\npreset = "pcm"\n[[rules]]\npattern = "a"\ndigital = true\n'
    text += '[[rules]]\npattern = "b"\nclip = { type = "layer_gaussian" }\n'
    text += '[task.metrics.hits]\nfunction = "m.py:hits"\nbetter = "higher"\n'
    config = read(tmp_path, text)
    shown = tomli_w.dumps(to_dict(config))
    (tmp_path / "shown.toml").write_text(shown)
    assert read_config(tmp_path / "shown.toml") == config
    for written in (START + text, shown):
        jsonschema.validate(tomllib.loads(written), schema())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[hardware]\npreset = "pmc"', "hardware.preset: expected one of .*pcm"),
        ('[hardware]\npreset = "math:sqrt"', "hardware.preset: math:sqrt raised"),
        ('[hardware]\nclip = "none"', 'hardware.clip: "none" leaves out what is there'),
        ("[hardware]\nclipp = 3", "unknown key hardware.clipp; did you mean .*clip?"),
        (
            '[[rules]]\npattern = "a"\ndigital = true\nclip = {}',
            "rules.0: expected nothing beside digital = true, got clip",
        ),
        (
            '[[rules]]\npattern = "a"\nmodifer = {}',
            "unknown key rules.0.modifer; did you mean rules.0.modifier?",
        ),
        (
            '[[rules]]\npattern = "a"\nmodifier = {type="add_normal", std_dev=-1}',
            "rules.0.modifier.std_dev: expected a number greater than or equal to 0",
        ),
        (
            '[[rules]]\npattern = "("\ndigital = true',
            "rules.0.pattern: expected a patt",
        ),
        ("[[rules]]\ndigital = true", "rules.0: a Rule takes either a pattern"),
        ("rules = 3", "rules: expected a list, got 3"),
        (
            '[[rules]]\npattern = "a"\nfrozen = true\ndigital = true',
            "frozen=True has no effect on a digital layer",
        ),
    ],
)
def test_what_is_wrong_is_one_line_that_names_it(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path, text) if not text.startswith("rules") else read_config(
            write(tmp_path, text + "\n" + START)
        )
    assert str(error.value).startswith(str(tmp_path / "c.toml"))
    assert "\n" not in str(error.value)


def write(folder, text):
    (folder / "c.toml").write_text(text)
    return folder / "c.toml"


def test_overrides_reach_presets_and_rules(tmp_path):
    text = '[[rules]]\npattern = "a"\ndigital = true\n'
    config = read(tmp_path, text, 'hardware.preset="pcm"')
    assert config.hardware == presets.pcm()
    config = read(tmp_path, text, 'hardware.preset="pcm"', 'hardware.clip.type="none"')
    assert config.hardware.clip.type == "none"


@pytest.mark.parametrize("preset", ["", 'preset = "pcm"\n'])
@pytest.mark.parametrize("part", ["clip", "noise_model", "converter"])
def test_an_override_leaves_out_a_table_of_the_file(tmp_path, part, preset):
    tables = {
        "clip": "clip = { type = 'layer_gaussian', sigma = 2.0 }\n",
        "noise_model": "noise_model = { type = 'pcm_like' }\n",
        "converter": "converter = { type = 'single_pair' }\n",
    }
    # Without a converter, there is no noise of devices either.
    off = [part, "noise_model"] if part == "converter" else [part]
    text = f"[hardware]\n{preset}{''.join(tables.values())}"
    config = read(tmp_path, text, *(f'hardware.{name}="none"' for name in off))
    assert all(getattr(config.hardware, name) is None for name in off)
    for name in tables.keys() - {*off}:
        assert getattr(config.hardware, name) is not None


def test_an_override_of_none_needs_something_to_leave_out(tmp_path):
    with pytest.raises(ValueError, match='clip: "none" leaves out what is there'):
        read(tmp_path, "", 'hardware.clip="none"')


@pytest.mark.parametrize("preset", ["", 'preset = "hermes"\n'])
@pytest.mark.parametrize("in_file", [False, True])
def test_none_leaves_out_a_table_of_file_preset_or_both(tmp_path, preset, in_file):
    table = "converter = { type = 'single_pair', g_max = 20.0 }\n" if in_file else ""
    off = ('hardware.noise_model="none"',) if preset else ()
    again = (*off, 'hardware.converter="none"') * 2
    for overrides in ((*off, 'hardware.converter="none"'), again):
        if not preset and not in_file:
            with pytest.raises(ValueError, match='converter: "none" leaves out what'):
                read(tmp_path, f"[hardware]\n{preset}{table}", *overrides)
            continue
        config = read(tmp_path, f"[hardware]\n{preset}{table}", *overrides)
        assert config.hardware.converter is None


def test_text_in_the_place_of_a_table_is_its_type(tmp_path):
    text = '[hardware]\npreset = "pcm"\n[[rules]]\npattern = "a"\n'
    override = 'drift_compensation="per_column"'
    config = read(tmp_path, text, f"hardware.{override}", f"rules.0.{override}")
    expected = hw.PerColumnDriftCompensation()
    assert [chip.drift_compensation for chip in config.chips] == [expected] * 2
    text = '[hardware.clip]\ntype = "layer_gaussian"\nsigma = 3.5\n'
    for kind, sigma in (("layer_gaussian", 3.5), ("average_channel_max", 2.5)):
        found = read(tmp_path, text, f'hardware.clip="{kind}"').hardware.clip
        assert (found.type, found.sigma) == (kind, sigma)
    found = read(tmp_path, text, 'training.objective="adversarial"')
    assert found.training.objective is not None


def test_an_index_reaches_an_entry_of_a_presets_list(tmp_path):
    (tmp_path / "chip.py").write_text(
        "import hwtrain as hw\n\n\ndef mine():\n"
        "    noise = hw.WeightModifierParameter(type='poly', std_dev=0.1, "
        "coeffs=(1.0, 2.0))\n"
        "    return hw.Hardware(modifier=noise)\n"
    )
    text = '[hardware]\npreset = "chip.py:mine"\n'
    config = read(tmp_path, text, "hardware.modifier.coeffs.1=3.0")
    assert config.hardware.modifier.coeffs == (1.0, 3.0)
    with pytest.raises(ValueError, match=r"modifier.coeffs: expected a list, got"):
        read(tmp_path, text, "hardware.modifier.coeffs.2=3.0")


def test_the_schema_refuses_what_is_unknown():
    found = schema()
    jsonschema.Draft202012Validator.check_schema(found)
    data = tomllib.loads(START + "[hardware]\nclipp = 3")
    with pytest.raises(jsonschema.ValidationError, match="clipp"):
        jsonschema.validate(data, found)
    assert json.dumps(found)


def test_rules_store_results_alone_by_a_table_of_their_own(tmp_path):
    text = """
        [hardware.outputs]
        bits = 6
        [hardware.forward]
        inp_bits = 8
        inp_bound = 1.0
        [[rules]]
        pattern = ".*norm.*"
        [rules.hardware.outputs]
        full_scale = 4.0
        [[rules]]
        pattern = "head"
        outputs = { bits = 12 }
        [[rules]]
        pattern = "body"
        outputs = "none"
    """
    found = read(tmp_path, text)
    norm, head, body, rest = found.assigned
    assert norm.hardware == hw.Hardware(outputs=hw.DigitalFormat(full_scale=4.0))
    assert norm.hardware.digital and not head.hardware.digital
    assert head.hardware.outputs == hw.DigitalFormat(bits=12)
    assert body.hardware == hw.Hardware(forward=rest.forward)
    assert rest.outputs == hw.DigitalFormat(bits=6)
    over = read(tmp_path, text, "hardware.outputs.bits=5").hardware
    assert over.outputs == hw.DigitalFormat(bits=5)
