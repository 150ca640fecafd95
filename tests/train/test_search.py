"""Searches: ranges, proposals that follow from the scores, and their direction."""

import pytest

from hwtrain.train._search import Search, parse_space


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a.b=0.1:0.5", ("range", 0.1, 0.5, False)),
        ("a.b=1e-4:1e-1:log", ("range", 1e-4, 0.1, True)),
        ("a.b=2:8", ("range", 2, 8, False)),
        ("a.b=2.0:8", ("range", 2.0, 8.0, False)),
        ("a.b=-2:8", ("range", -2, 8, False)),
        ("a.b=x,y", ("choice", ("x", "y"))),
        ("a.b=4,6", ("choice", (4, 6))),
        ('a.b="u:v","w"', ("choice", ("u:v", "w"))),
    ],
)
def test_ranges_and_choices(text, expected):
    assert parse_space([text]) == {"a.b": expected}
    low = parse_space([text])["a.b"][1]
    assert type(low) is type(expected[1])


@pytest.mark.parametrize(
    "texts, expected",
    [
        (["a=5:4"], "LOW below HIGH"),
        (["a=1:2:exp"], "LOW:HIGH:log"),
        (["a=0:2:log"], "above 0"),
        (["a=x:y"], "LOW:HIGH"),
        (["a"], "KEY=VALUE"),
        (["a=1:2", "a=3:4"], "given twice"),
    ],
)
def test_other_texts_are_refused(texts, expected):
    with pytest.raises(ValueError, match=expected):
        parse_space(texts)


def run(space, score, trials, better="lower", jobs=1):
    search, asked = Search(space, better=better), []
    while len(asked) < trials:
        batch = [search.ask() for _ in range(min(jobs, trials - len(asked)))]
        for trial, values in batch:
            search.tell(trial, score(values))
            asked.append(values)
    return asked


SPACE = {"x": ("range", -10.0, 10.0, False), "n": ("range", 1, 9, False)}


@pytest.mark.parametrize("jobs", [1, 3])
def test_proposals_follow_from_the_scores(jobs):
    score = lambda values: (values["x"] - 3) ** 2 + values["n"]  # noqa: E731
    first = run(SPACE, score, 20, jobs=jobs)
    assert run(SPACE, score, 20, jobs=jobs) == first
    other = run(SPACE, lambda values: -score(values), 20, jobs=jobs)
    assert other != first
    assert all(isinstance(values["n"], int) for values in first)


@pytest.mark.parametrize("better, sign", [("lower", 1), ("higher", -1)])
def test_a_search_finds_what_is_better(better, sign):
    best = run(SPACE, lambda v: sign * (v["x"] - 3) ** 2, 60, better=better)
    early = min(abs(values["x"] - 3) for values in best[:10])
    late = min(abs(values["x"] - 3) for values in best[10:])
    assert late < max(early, 0.2)
    late = sorted(abs(values["x"] - 3) for values in best[30:])
    assert late[len(late) // 2] < 3  # at random, half of them would be within 5


def test_failed_trials_are_passed_over():
    score = lambda values: None if values["x"] > 0 else abs(values["x"])  # noqa: E731
    assert len(run(SPACE, score, 15)) == 15


def test_choices_keep_their_values():
    space = {"a": ("choice", ({"type": "x"}, "none", 4))}
    found = [values["a"] for values in run(space, lambda v: 0.0, 12)]
    assert {str(value) for value in found} <= {"{'type': 'x'}", "none", "4"}
    assert len({str(value) for value in found}) > 1
