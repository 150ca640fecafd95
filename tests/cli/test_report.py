"""`hwtrain report`: every part of a run on one page."""

import base64
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from hwtrain import cli

ROOT = Path(__file__).parents[2]
CONFIG = """
model = "{root}/recipes/digits.py:mlp"
data = "{root}/recipes/digits.py:data"

[training]
steps = 20
log = {{ every = 10 }}

[hardware]
preset = "pcm"
modifier = {{ type = "add_normal", std_dev = 0.1 }}
input_range = {{}}

[evaluation]
chips = 2
{more}
"""


@pytest.fixture
def hwtrain(capsys):
    """Runs the command; returns its exit status, stdout and stderr."""

    def call(*words):
        status = cli.main([str(word) for word in words])
        return status, *capsys.readouterr()

    return call


def trained(folder, more=""):
    config = folder / "small.toml"
    config.write_text(CONFIG.format(root=ROOT, more=more))
    assert cli.main(["train", str(config), "--out", str(folder / "run")]) == 0
    return folder / "run"


def titles(page):
    return re.findall(r"<h2[^>]*>([^<]*)</h2>", page.read_text())


@pytest.mark.nightly
def test_a_page_has_all_that_is_known_of_a_run(tmp_path, hwtrain):
    run = trained(tmp_path, '[cost]\npreset = "hermes_core"')
    out = tmp_path / "report.html"
    status, said, error = hwtrain("report", run, out, "--times", 0, 3600)
    assert status == 0, error
    assert f"{out} written" in said
    assert titles(out) == [
        "Summary",
        "Plain and hardware-aware",
        "Over time",
        "Sensitivity",
        "Hardware",
        "Conductances",
        "Training",
        "Energy, latency and area",
        "Configuration",
    ]
    text = out.read_text()
    for expected in ("hidden_0/kernel", "1 h", "prog_noise_scale = 1.0", "pcm_like"):
        assert expected in text
    assert len(re.findall("data:image/svg", text)) == 7
    before = out.read_bytes()
    status, _, error = hwtrain("report", run, out)
    assert status == 2 and "already such a file" in error
    assert out.read_bytes() == before
    chromium = shutil.which("chromium")
    if chromium is None:
        return
    shot = tmp_path / "page.png"
    words = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--screenshot={shot}"]
    subprocess.run([chromium, *words, out.as_uri()], check=True, capture_output=True)
    assert shot.read_bytes().startswith(b"\x89PNG")


def test_a_page_of_a_run_without_drift_and_log(run, tmp_path, hwtrain):
    out = tmp_path / "report.html"
    status, _, error = hwtrain("report", run, out, "--chips", 2)
    assert status == 0, error
    assert titles(out) == [
        "Summary",
        "Plain and hardware-aware",
        "Sensitivity",
        "Hardware",
        "Conductances",
        "Training",
        "Configuration",
    ]
    assert "[training.log] writes one" in out.read_text()
    drawn = re.findall(r"svg\+xml;base64,([^\"]+)", out.read_text())
    assert all(base64.b64decode(one).startswith(b"<?xml") for one in drawn)


def test_what_is_no_run_is_one_line(run, tmp_path, hwtrain):
    out = tmp_path / "report.html"
    status, _, error = hwtrain("report", run / "export" / "seed_3", out)
    assert status == 2 and "a report is of a run" in error
    status, _, error = hwtrain("report", run, tmp_path / "no" / "report.html")
    assert status == 2 and "no folder" in error
    status, _, error = hwtrain("report", run, out, "--times", 0)
    assert not out.exists()
