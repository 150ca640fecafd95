"""`hwtrain report`: every part of a run on one page."""

import base64
import html
import json
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


def texts(page):
    """Returns the paragraphs and tables of each section, by its title."""
    parts = re.split(r"<h2[^>]*>([^<]*)</h2>", page.read_text())[1:]
    plain = [html.unescape(re.sub("<[^>]*>", "\n", part)) for part in parts]
    return {title: text for title, text in zip(plain[::2], plain[1::2])}


def with_another_metric(run, folder):
    """Returns a copy of a run whose results also have a loss."""
    copy = folder / "copy"
    shutil.copytree(run, copy)
    data = json.loads((copy / "results.json").read_text())
    rows = data["values_by_seed_and_chip"]
    losses = [row | {"values": [[0.125, 0.375], [0.25, 0.25]]} for row in rows]
    other = {"metric": "loss in nat", "values_by_seed_and_chip": losses}
    (copy / "results.json").write_text(json.dumps(data | {"other_metrics": [other]}))
    return copy


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
    said = texts(out)
    fresh = "just after programming"
    for title, expected in {
        "Plain and hardware-aware": f"training seed 0, run on the same chips, {fresh}",
        "Over time": "Training seed 0, at the ages in the table",
        "Sensitivity": f"Training seed 0, chips {fresh}",
        "Hardware": "Training seed 0, nominal, not yet programmed",
        "Conductances": "Training seed 0; targets, not yet programmed",
        "Training": "Training seed 0, one batch",
        "Energy, latency and area": "every training seed and age",
        "Configuration": "training seed 0",
    }.items():
        assert expected in said[title], title
    assert "34,048 devices" in said["Summary"]
    energy = json.loads((run / "results.json").read_text())["cost"]
    energy = energy["energy_nj_per_example"]
    assert f"{energy:.4g} nJ for an example" in said["Summary"]
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
    run = with_another_metric(run, tmp_path)
    words = ["--chips", 2, "--seed", 4]
    status, _, error = hwtrain("report", run, out, *words)
    assert status == 0, error
    said = texts(out)
    known = {
        row["model"]: (row["mean"], row["std_over_chips"])
        for row in json.loads((run / "results.json").read_text())["results"]
    }
    line = ", ".join(f"{k} {mean:.2f} ± {std:.2f}" for k, (mean, std) in known.items())
    assert f"mismatch σ 0.05, 2 chips: {line}" in said["Summary"]
    # Pairs of devices for weights from 64 to 128, 128 to 64 and 64 to 10.
    assert "34,048 devices" in said["Summary"] and " nJ " not in said["Summary"]
    both = said["Plain and hardware-aware"]
    assert "of training seeds 3, 4, run on the same chips, which do not age" in both
    # Pooled over seeds: chips differ by 0.25 with one of them, and not with the other.
    assert "Loss in nat" in both and both.count("0.25 ± 0.12") == len(known) == 2
    assert "Training seed 4, chips which do not age" in said["Sensitivity"]
    for title in ("Hardware", "Conductances"):
        assert "Training seed 4" in said[title]
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
