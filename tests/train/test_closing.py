"""The commands that a run ends with are commands, and fit the run."""

import shlex
from pathlib import Path

import pytest

import hwtrain as hw
from hwtrain.cli._parser import make_parser
from hwtrain.train import read_config
from hwtrain.train._chips import exports
from hwtrain.train._closing import closing

START = 'model = "m.py:f"\ndata = "m.py:d"\n[training]\nsteps = 30\n'
CONFIGS = {
    "ideal": "",
    "preset": '[hardware]\npreset = "pcm"\n',
    "modifier": '[hardware.modifier]\ntype = "add_normal"\nstd_dev = 0.15\n',
    "no deviation": '[hardware.modifier]\ntype = "drop_connect"\npdrop = 0.1\n',
}


@pytest.mark.parametrize("folder", ["runs/a", "runs/my run; ls"])
@pytest.mark.parametrize("case", CONFIGS)
def test_every_command_is_one_of_this_run(tmp_path, case, folder):
    path = tmp_path / "c.toml"
    path.write_text(START + CONFIGS[case])
    config = read_config(path)
    text = closing(config, Path(folder))
    commands = [
        shlex.split(line[line.index("hwtrain ") :])[1:]
        for line in text.splitlines()
        if ":  " in line and "hwtrain " in line
    ]
    expected = ["evaluate", "report", "compare"]
    expected += ["inspect", "convert"] if exports(config) else []
    assert [words[0] for words in commands] == expected
    for words in commands:
        make_parser().parse_args(words)
        assert Path(words[1]).is_relative_to(folder)
    override = text.partition("add --set ")[2].split()[0]
    other = read_config(path, [override])
    assert other != config
    if case == "modifier":
        assert isinstance(other.hardware.modifier, hw.WeightModifierParameter)
        assert other.hardware.modifier.std_dev == 0.3
    else:
        assert other.training.steps == 60 or case == "preset"
