"""Studies: points, tables and plots of populations under several conditions."""

import numpy as np
import pytest

from hwtrain.evaluate import Population, Study
from hwtrain.evaluate._study import short_names, value_name
from hwtrain.evaluate._study_plot import axis_of, plot_study

VALUES = np.random.default_rng(0).normal(90, 2, size=(24, 2, 3))
TIMES = (0.0, 60.0, 86_400.0)


def population(values=VALUES, **options):
    return Population(values=values, seeds=tuple(range(len(values))), **options)


@pytest.fixture
def study():
    scales = {"noise_model.prog_noise_scale": (1.0, 4.0)}
    found = population(times_s=TIMES, constants=scales)
    other = population(VALUES + 5, times_s=TIMES, constants=scales)
    return Study(
        [({"drift_compensation": "none"}, found),
         ({"drift_compensation": "global"}, other)]
    )  # fmt: skip


def test_points_are_all_conditions_with_their_values(study):
    assert len(study.points) == 12
    conditions, chips = study.points[7]
    assert conditions == {
        "drift_compensation": "global",
        "noise_model.prog_noise_scale": 1.0,
        "t_s": 60.0,
    }
    np.testing.assert_array_equal(chips.values, VALUES[:, 0, 1] + 5)
    assert chips.seeds == tuple(range(24))


def test_the_table_has_the_numbers_of_each_point(study):
    table = study.table(".2f", required=90.0)
    names = [column.header for column in table.columns]
    assert names[:3] == ["drift compensation", "prog noise scale", "time"]
    rows = list(zip(*(column.cells for column in table.columns)))
    assert rows[7][:3] == ("global", "1", "1 min")
    values = VALUES[:, 0, 1] + 5
    assert rows[7][3] == f"{values.mean():.2f}"
    assert rows[7][names.index("5th percentile")] == f"{np.quantile(values, 0.05):.2f}"
    assert rows[7][-1].startswith(f"{100 * np.mean(values >= 90):.0f} % (")
    lower = study.table(".2f", better="lower")
    worst = next(c for c in lower.columns if c.header == "95th percentile")
    assert list(worst.cells)[7] == f"{np.quantile(values, 0.95):.2f}"


@pytest.mark.parametrize(
    "conditions, expected",
    [
        ([{"bits": 4}, {"bits": 8}], "bits"),
        ([{"bits": 4, "t_s": 0.0}, {"bits": 8, "t_s": 1.0}], "t_s"),
        ([{"bits": 4, "t_s": 0.0}, {"bits": 8, "t_s": 0.0}], "bits"),
        ([{"kind": "a"}, {"kind": "b"}], None),
        ([{"on": True}, {"on": False}], None),
        ([{"bits": 4}], None),
        ([{"bits": 4, "kind": "a"}, {"bits": "none", "kind": "b"}], None),
    ],
)
def test_the_axis_is_the_time_or_a_number(conditions, expected):
    assert axis_of(conditions) == expected


@pytest.mark.parametrize("chips", [1, 4, 24])
@pytest.mark.parametrize("kind", ["times", "numbers", "names", "many"])
def test_every_kind_of_study_can_be_drawn(tmp_path, chips, kind, study):
    points = {
        "times": study.points,
        "numbers": [({"bits": n}, population(VALUES[:, 0, 0] + n)) for n in (4, 6, 8)],
        "names": [({"kind": n}, population(VALUES[:, 0, 0])) for n in "ab"],
        "many": [
            ({"a": a, "b": str(b)}, population(VALUES[:, 0, 0]))
            for a in (1, 2)
            for b in range(40)
        ],
    }[kind]
    points = [
        (c, Population(values=p.values[:chips], seeds=p.seeds[:chips]))
        for c, p in points
    ]
    path = tmp_path / "plot.png"
    plot_study(points, path, metric="accuracy in %", title="title", required=90.0)
    assert path.read_bytes().startswith(b"\x89PNG")
    first = path.read_bytes()
    plot_study(points, path, metric="accuracy in %", title="title", required=90.0)
    assert path.read_bytes() == first


def test_names_are_short_where_they_stay_apart():
    names = ["forward.out_bits", "converter.g_max", "noise_model.g_max", "t_s"]
    assert list(short_names(names).values()) == [
        "out_bits",
        "converter.g_max",
        "noise_model.g_max",
        "time",
    ]
    assert value_name({"type": "hermes", "g_max": 25}) == "type hermes, g_max 25"


def test_unlike_conditions_leave_cells_empty(tmp_path):
    one = population(VALUES[:, 0, 0])
    timed = population(VALUES[:, 0], times_s=TIMES)
    study = Study([({"a": 4}, one), ({"b": 8}, timed)])
    rows = list(zip(*(column.cells for column in study.table().columns)))
    assert [row[:3] for row in rows][:2] == [("4", "", ""), ("", "8", "0")]
    plot_study(study.points, tmp_path / "plot.png", metric="m", title="t")
    assert (tmp_path / "plot.png").is_file()


@pytest.mark.parametrize(
    "populations, expected",
    [
        ([], "at least one population"),
        (
            [({"a.b": 1}, population(constants={"a.b": (1.0, 2.0)}))],
            "a.b is a condition",
        ),
        (
            [({"t_s": 1.0}, population(VALUES[:, 0], times_s=TIMES))],
            "t_s is a condition",
        ),
    ],
)
def test_a_study_without_meaning_is_refused(populations, expected):
    with pytest.raises(ValueError, match=expected):
        Study(populations)
