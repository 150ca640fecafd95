"""Tests of hwtrain.train._reading: every mistake is reported in one clear line."""

from pathlib import Path

import pytest

from hwtrain._parts.fields import to_dict
from hwtrain.train import read_config
from hwtrain.train._folder import read_run

CONFIG = Path(__file__).parents[2] / "configs" / "digits_mlp.toml"


def test_overrides_are_laid_over_the_file():
    config = read_config(
        CONFIG,
        [
            "training.steps=7",
            "hardware.mapping.max_input_size=32",
            "training.seeds=[4]",
        ],
    )
    assert config.training.steps == 7
    assert config.training.seeds == (4,)
    assert config.hardware.mapping is not None
    assert config.hardware.mapping.max_input_size == 32
    assert config.training.batch_size == 64


@pytest.mark.parametrize(
    "override, message",
    [
        (
            "training.stpes=3",
            "unknown key training.stpes; did you mean training.steps?",
        ),
        ("hardwar.x=2", "unknown key hardwar; did you mean hardware?"),
        (
            "hardware.modifier={std_dv=2}",
            "unknown key hardware.modifier.std_dv; did you mean "
            "hardware.modifier.std_dev?",
        ),
        (
            "training.zzz=2",
            "unknown key training.zzz; expected one of: accumulate, batch_size",
        ),
        (
            "training.steps.x=2",
            "unknown key training.steps.x; training.steps is a value and",
        ),
        (
            'training.steps="a"',
            'training.steps: expected a whole number, got "a"',
        ),
        ("training.steps=1.5", "training.steps: expected a whole number, got 1.5"),
        ("training.steps=0", "training.steps: expected a number greater than 0, got 0"),
        ("training.seeds=[]", "training.seeds: expected at least one entry, got []"),
        ("training.seeds=[1, 1]", "training.seeds: expected seeds that differ"),
        (
            "hardware.modifier.std_dev=-0.1",
            "hardware.modifier.std_dev: expected a number greater than or equal to 0, "
            "got -0.1",
        ),
        (
            "hardware.mapping.max_input_size=0",
            "hardware.mapping.max_input_size: a tile has at least one row and one "
            "column, got 0; write None for no limit",
        ),
        (
            'hardware.modifier.type="add_norml"',
            "hardware.modifier.type: expected one of 'none', ",
        ),
        (
            'hardware.modifier.type="add_norml"',
            "'binary', got \"add_norml\"",
        ),
        (
            'hardware.converter.type="pair"',
            "hardware.converter.type: expected one of 'bit_sliced', 'custom_pair', ",
        ),
        (
            "hardware.converter.g_max=-1",
            "hardware.converter.g_max: expected a number greater than 0, got -1",
        ),
        (
            'hardware.noise_model={type="reram_cmo", acceptance_range=[]}',
            "hardware.noise_model.acceptance_range: expected a number, got []",
        ),
        ("hardware.modifier=3", "hardware.modifier: expected a table, got 3"),
        ("training.learning_rate=nan", "expected a finite number, got NaN"),
        ('data="x"', 'data: expected "path/to/file.py:function" or "module:function"'),
        ("model=2020-01-01", 'got "2020-01-01"'),
        ("data=x", "expected a value as TOML writes it, got x; text needs quotes"),
        ("training.steps", "expected key=value, such as training.steps=100"),
        (
            'task.metrics.hits={function="accuracy", better="more"}',
            "task.metrics.hits.better: expected 'higher' or 'lower', got \"more\"",
        ),
        (
            "task.metrics.hits.bettr=1",
            "unknown key task.metrics.hits.bettr; did you mean "
            "task.metrics.hits.better?",
        ),
        (
            'task.metrics."mse a"={function="accuracy", better="lower"}',
            "task.metrics.mse a: expected a name of letters, digits and _ that begins "
            'with a letter, got "mse a"',
        ),
        ("rules.first.rows=1", "unknown key rules.first; rules is a list, and the fi"),
        ("rules.0.rows=1", "index of an entry of rules, but it has none; got 0; a ne"),
        ("training.seeds.3=9", "index of an entry of training.seeds, 0 to 2; got 3;"),
    ],
)
def test_a_wrong_override_is_one_line_that_names_it(override, message):
    with pytest.raises(ValueError) as error:
        read_config(CONFIG, [override])
    assert str(error.value).startswith(f"--set {override}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("steps = 2000", "stpes = 2000", "unknown key training.stpes; did you mean"),
        ("steps = 2000", "", "training.steps: expected a value, because it has no"),
        ("chips = 128", "chips = -1", "evaluation.chips: expected a number greater"),
        (
            "std_dev = 0.3",
            'std_dev = "a"',
            "hardware.modifier.std_dev: expected a numb",
        ),
        (
            "g_max = 25.0",
            "g_max = 0.5\ng_min = 1.0",
            "hardware.converter: g_min must be",
        ),
        ("steps = 2000", "steps =", "expected valid TOML, got: Invalid value"),
        ("[hardware.mismatch]", "[hardware.mapping]", "unknown key hardware.mapping."),
        (
            "[hardware.mismatch]",
            '[task.metrics."mse a"]\nfunction = "accuracy"\nbetter = "lower"\n'
            "[hardware.mismatch]",
            "task.metrics.mse a: expected a name of letters, digits and _ that begins",
        ),
        (
            "[hardware.mismatch]",
            '[task.metrics.mse]\nfunction = "accuracy"\nbetter = "lowe"\n'
            "[hardware.mismatch]",
            "task.metrics.mse.better: expected 'higher' or 'lower', got \"lowe\"",
        ),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(tmp_path, old, new, message):
    path = tmp_path / "wrong.toml"
    path.write_text(CONFIG.read_text().replace(old, new))
    with pytest.raises(ValueError) as error:
        read_config(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_all_mistakes_of_a_file_are_in_the_line(tmp_path):
    path = tmp_path / "wrong.toml"
    text = CONFIG.read_text().replace("chips = 128", "chips = -1")
    path.write_text(text.replace("steps = 2000", "stpes = 2000"))
    with pytest.raises(ValueError) as error:
        read_config(path, ["hardware.modifier.std_dev=-0.1", "export.chip_seed=-1"])
    said = str(error.value)
    for mistake in (
        f"{path}: unknown key training.stpes; did you mean training.steps?",
        "evaluation.chips: expected a number greater than 0, got -1",
        "--set hardware.modifier.std_dev=-0.1: hardware.modifier.std_dev: expected",
        "--set export.chip_seed=-1: export.chip_seed: expected a number",
        "training.steps: expected a value",
    ):
        assert said.count(mistake) == 1
    assert said.count("; also: ") == 4 and "\n" not in said
    # The place is named again only where it is another one.
    assert said.count(str(path)) <= 3


NOISE = "hardware.noise_model"


@pytest.mark.parametrize(
    ("values", "said", "left"),
    [
        (
            [-2.0, -1.0],
            ["g_lst.0", "g_lst.1", "g_max", "sigma_lst"],
            "3 more errors",
        ),
        ([-1.0], ["g_lst.0", "g_lst", "g_max", "sigma_lst"], "3 more"),
    ],
)
def test_the_last_of_many_mistakes_are_counted(values, said, left):
    # Pydantic says of two wrong entries that the list of two has fewer than two.
    part = f'{NOISE}={{type="measured", g_lst={values}}}'
    with pytest.raises(ValueError) as error:
        read_config(CONFIG, [part])
    line = str(error.value).removeprefix(f"--set {part}: ")
    *first, last = line.split("; also: ")
    assert [x.partition(": ")[0] for x in first] == [f"{NOISE}.{x}" for x in said]
    assert last.startswith(left) and len(line) < 500


def test_the_last_mistake_of_a_long_line_is_counted():
    values = [1e30] * 4
    part = f'{NOISE}={{type="pcm_like", drift_mean_coeff={values}}}'
    with pytest.raises(ValueError) as error:
        read_config(CONFIG, [part, "hardware.modifier.std_dev=-1"])
    assert str(error.value).endswith("; also: one more error")


def test_one_mistake_is_said_once():
    # Pydantic reports a value for each member of a union.
    with pytest.raises(ValueError) as error:
        read_config(CONFIG, ["hardware.mapping.max_input_size=-2"])
    assert "; also" not in str(error.value)


def test_times_of_an_evaluation_are_an_option_of_the_command():
    with pytest.raises(ValueError, match="hwtrain evaluate RUN --times") as error:
        read_config(CONFIG, ["evaluation.times_s=[0.0, 3600.0]"])
    assert "unknown key evaluation.times_s" in str(error.value)


def test_levels_of_a_mismatch_ask_for_one(tmp_path):
    path = tmp_path / "wrong.toml"
    start, _, rest = CONFIG.read_text().partition("[hardware.mismatch]")
    path.write_text(start + rest[rest.index("\n[") :])
    with pytest.raises(ValueError, match=r"expected a table \[hardware.mismatch\]"):
        read_config(path)


def test_a_missing_file_suggests_its_neighbour():
    with pytest.raises(ValueError, match=r"no such file; did you mean .*digits_mlp\.t"):
        read_config(CONFIG.with_name("digit_mlp.toml"))


FREE = """
[training.init_from]
path = "a"
[training.init_from.rename]
"h/(.*)" = "x"
[training.noise_schedule]
function = "optax:linear_schedule"
[training.noise_schedule.arguments]
end_value = 1.0
[training.noise_schedule.layers]
"h.0/.*" = 2.0
[task.metrics.hits]
function = "m.py:hits"
better = "higher"
[[rules]]
pattern = "a"
digital = true
[[rules]]
pattern = "b"
modifier = { std_dev = 0.2 }
"""


@pytest.mark.parametrize(
    "override, path, value",
    [
        (
            'task.metrics.hits.better="lower"',
            ("task", "metrics", "hits", "better"),
            "lower",
        ),
        (
            'task.metrics.new={function="accuracy", better="higher"}',
            ("task", "metrics", "new", "function"),
            "accuracy",
        ),
        (
            "training.noise_schedule.arguments.end_value=3.0",
            ("training", "noise_schedule", "arguments", "end_value"),
            3.0,
        ),
        (
            "training.noise_schedule.arguments.init_value=0.5",
            ("training", "noise_schedule", "arguments", "init_value"),
            0.5,
        ),
        (
            'training.noise_schedule.layers."h.0/.*"=4.0',
            ("training", "noise_schedule", "layers", "h.0/.*"),
            4.0,
        ),
        (
            'training.noise_schedule . layers . "a=[=]"=4.0',
            ("training", "noise_schedule", "layers", "a=[=]"),
            4.0,
        ),
        (
            "training.init_from.rename.'h/(.*)'='y=1'",
            ("training", "init_from", "rename", "h/(.*)"),
            "y=1",
        ),
        ('rules.0.pattern="c"', ("rules", 0, "pattern"), "c"),
        (
            "rules.1.modifier.std_dev=0.4",
            ("rules", 1, "hardware", "modifier", "std_dev"),
            0.4,
        ),
        ("training.seeds.0=7", ("training", "seeds", 0), 7),
    ],
)
def test_overrides_reach_tables_with_free_names_and_lists(
    tmp_path, override, path, value
):
    file = tmp_path / "free.toml"
    file.write_text(CONFIG.read_text() + FREE)
    before, found = (to_dict(read_config(file, given)) for given in ([], [override]))
    inner = found
    for key in path:
        inner = inner[key]
    assert inner == value
    changed = [key for key in found if found[key] != before.get(key)]
    assert changed == [path[0]]


SCHEDULE = (
    'training.noise_schedule={{function="optax:constant_schedule", '
    "arguments={{value={}}}, layers={{{}}}}}"
)


@pytest.mark.parametrize(
    "override, message",
    [
        (
            "training.steps=1000000000000000000",
            "training.steps: expected a number less",
        ),
        ("evaluation.chips=1000000000000", "evaluation.chips: expected a number less"),
        ("hardware.modifier.std_dev=1e300", "less than or equal to 1000, got 1e+300"),
        ("hardware.converter.g_max=1e308", "less than or equal to 1e+12, got 1e+308"),
        (
            "hardware.clip.sigma=1e-40",
            "hardware.clip.sigma: expected a number of at le",
        ),
        (
            "hardware.clip.sigma=-1.0",
            "sigma: expected a number greater than 0, got -1.0",
        ),
        (
            "hardware.input_range.decay=1e10",
            "hardware.input_range.decay: expected a nu",
        ),
        ("hardware.modifier.std_dev=1e-40", "expected 0 or at least 1.18e-38 in size"),
        ("training.learning_rate=1e30", "training.learning_rate: expected a number l"),
        (
            'training.objective={type="adversarial", attack_steps=1000000000}',
            "10000, g",
        ),
        ("training.steps=" + "[" * 5000 + "]" * 5000, "are nested too deeply"),
        ("training.steps=" + "[" * 200 + "]" * 200, "are nested too deeply"),
        ("training.steps=" + "1" * 5000, "a number has thousands of digits"),
        ("training.steps=" + "1" * 4000, "less than or equal to 2147483647, got 111"),
        ("training.steps=1" + "0" * 400, "training.steps: expected a number less"),
        ("hardware.clip.sigma=1" + "0" * 400, "hardware.clip.sigma: expected a finite"),
        (SCHEDULE.format("1e300", ""), "training.noise_schedule.arguments.value: expe"),
        (SCHEDULE.format("1" * 30, ""), "training.noise_schedule.arguments.value: exp"),
        (
            SCHEDULE.format(1, "'a('=1.0"),
            "training.noise_schedule.layers.a(: expected a",
        ),
        (
            SCHEDULE.format(1, "a=-1.0"),
            "training.noise_schedule.layers.a: expected a nu",
        ),
        (
            SCHEDULE.format(1, "a=nan"),
            "training.noise_schedule.layers.a: expected a fi",
        ),
    ],
)
def test_what_no_run_could_mean_is_one_line(override, message):
    with pytest.raises(ValueError) as error:
        read_config(CONFIG, [override])
    text = str(error.value)
    key = override.partition("=")[0]
    assert text.startswith(f"--set {key}=") and key in text.partition(": ")[2]
    assert message in text
    assert "\n" not in text and len(text) < 400 and "sys." not in text


@pytest.mark.parametrize(
    "line, message",
    [
        ("x = " + "[" * 5000 + "]" * 5000, "are nested too deeply"),
        ("x = " + "[" * 200 + "]" * 200, "are nested too deeply"),
        ("x = " + "1" * 5000, "a number has thousands of digits"),
    ],
)
def test_a_file_that_python_cannot_hold_is_one_line(tmp_path, line, message):
    path = tmp_path / "deep.toml"
    path.write_text(f"{line}\n{CONFIG.read_text()}")
    with pytest.raises(ValueError) as error:
        read_config(path)
    text = str(error.value)
    assert text.startswith(f"{path}: expected valid TOML, got: ")
    assert text.endswith(message)
    # The same, as a run has stored it.
    value = line.partition("= ")[2]
    (tmp_path / "config.json").write_text(f'{{"x": {value}}}')
    with pytest.raises(ValueError) as error:
        read_run(tmp_path)
    assert f"{tmp_path / 'config.json'}: expected the configuration" in str(error.value)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_bad_pattern_of_what_is_digital_names_its_key():
    with pytest.raises(ValueError, match=r"digital=\[.*mismatch.digital.0: .*pattern"):
        read_config(
            CONFIG.with_name("digits_dynapse.toml"), ['mismatch.digital=["a("]']
        )
