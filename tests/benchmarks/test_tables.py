"""Tables as text and as files."""

import json

import pytest

ABOUT = {"date": "2026-12-01", "cores": 2}


def test_columns_are_those_of_the_first_row(script):
    rows = [
        {"case": "plain", "ms": 1.2345, "quartiles_ms": [1.0, 2.0], "ratio": 1.0},
        {"case": "noise", "ms": 12.345, "quartiles_ms": [1.0, 2.0], "ratio": 10.0},
    ]
    assert script("tables").markdown("Title", rows) == "\n".join(
        [
            "### Title",
            "",
            "| | median, ms | ratio |",
            "|---|---|---|",
            "| plain | 1.23 | 1 |",
            "| noise | 12.3 | 10 |",
        ]
    )


@pytest.mark.parametrize(
    "value, text",
    [(None, ""), ("none", "none"), (0.012345, "0.0123"), (1234567, "1230000")],
)
def test_values_have_three_digits(script, value, text):
    table = script("tables").markdown("Title", [{"case": "plain", "it": value}])
    assert table.splitlines()[-1] == f"| plain | {text} |"


def test_a_row_is_of_one_step(script):
    timing = script("interleaved").Timing(0.02, (0.01, 0.04), 0.01, 1.5)
    assert script("tables").row("noise", timing, steps=10) == {
        "case": "noise",
        "ms": pytest.approx(2.0),
        "fastest_ms": pytest.approx(1.0),
        "quartiles_ms": [pytest.approx(1.0), pytest.approx(4.0)],
        "ratio": 1.5,
    }


def test_a_run_replaces_its_sections_alone(script, tmp_path):
    tables = script("tables")

    def keep(name, ms):
        rows = {"One step": [{"case": "plain", "ms": ms}]}
        tables.keep(tmp_path / "out" / "speed", name, f"Of {name}.", rows, ABOUT)

    keep("layers", 1.0)
    keep("blocks", 2.0)
    keep("layers", 3.0)
    kept = json.loads((tmp_path / "out" / "speed.json").read_text())
    values = {
        name: section["tables"]["One step"][0]["ms"] for name, section in kept.items()
    }
    assert values == {"layers": 3.0, "blocks": 2.0}
    assert kept["blocks"]["about"] == ABOUT
    text = (tmp_path / "out" / "speed.md").read_text()
    assert text.count("## Of layers.") == text.count("## Of blocks.") == 1
    assert "| plain | 3 |" in text and "| plain | 1 |" not in text
    assert text.count("date 2026-12-01, cores 2") == 2


def test_the_machine_is_told_without_its_name(script):
    import platform

    about = script("tables").machine(["numpy", "no-such-package"])
    assert {"date", "device", "processor", "cores", "python", "jax", "numpy"} <= {
        *about
    }
    assert platform.node() not in map(str, about.values())
