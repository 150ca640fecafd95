"""The greedy search for a mapping against all mappings within the budget."""

import itertools

import numpy as np
import pytest

from hwtrain.evaluate._advice import Choice, greedy

LAYERS = ("a", "b", "c", "d")
KINDS = {"digital": "weights", "two pairs": "devices"}
CHIPS = np.random.default_rng(0).normal(80, 3, 30)


def problem(seed):
    """Gains and amounts of each choice, whose gains hardly add up in one layer."""
    random = np.random.default_rng(seed)
    choices = [
        Choice(layer, kind, budget, float(random.integers(1, 20)))
        for layer in LAYERS
        for kind, budget in KINDS.items()
    ]
    gains = {(c.layer, c.kind): random.uniform(0.2, 3) for c in choices}
    noise = {key: random.normal(0, 0.1, len(CHIPS)) for key in gains}

    def score(mapped):
        return CHIPS + sum(gains[key] + noise[key] for key in mapped)

    return choices, score


def every(choices, budgets):
    """All mappings within the budgets."""
    of_layer = [[None, *(c for c in choices if c.layer == x)] for x in LAYERS]
    for some in itertools.product(*of_layer):
        chosen = [c for c in some if c is not None]
        used = {name: 0.0 for name in budgets}
        for choice in chosen:
            used[choice.budget] += choice.amount
        if all(used[name] <= budgets[name] for name in budgets):
            yield frozenset((c.layer, c.kind) for c in chosen)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("size", [5, 15, 40])
def test_greedy_is_nearly_as_good_as_all_mappings(seed, size):
    choices, score = problem(seed)
    budgets = {"weights": float(size), "devices": float(size)}
    best = max(np.mean(score(mapped)) for mapped in every(choices, budgets))
    found = greedy(score, choices, budgets, better="higher")[-1].values.mean()
    start = CHIPS.mean()
    assert found - start >= 0.75 * (best - start)
    assert found <= best + 1e-9


def test_greedy_is_mostly_the_best():
    shares = []
    for seed in range(60):
        choices, score = problem(seed)
        budgets = {"weights": 15.0, "devices": 15.0}
        best = max(np.mean(score(mapped)) for mapped in every(choices, budgets))
        found = greedy(score, choices, budgets, better="higher")[-1].values.mean()
        shares.append((found - CHIPS.mean()) / (best - CHIPS.mean()))
    assert np.mean(shares) > 0.96 and np.mean(np.array(shares) > 1 - 1e-9) > 0.5


def test_steps_stay_within_the_budget_and_tell_their_gain():
    choices, score = problem(3)
    budgets = {"weights": 12.0, "devices": 12.0}
    steps = greedy(score, choices, budgets, better="higher")
    assert steps[0].choice is None and len(steps) > 2
    mapped = frozenset()
    for step in steps[1:]:
        before = score(mapped)
        mapped |= {(step.choice.layer, step.choice.kind)}
        np.testing.assert_allclose(step.values, score(mapped))
        np.testing.assert_allclose(step.gain, score(mapped) - before)
        assert step.interval[0] > 0
        assert all(step.used.get(name, 0) <= most for name, most in budgets.items())
    assert len({layer for layer, _ in mapped}) == len(mapped)


def test_lower_may_be_better():
    choices, score = problem(3)
    budgets = {"weights": 12.0, "devices": 12.0}
    steps = greedy(lambda m: -score(m), choices, budgets, better="lower")
    higher = greedy(score, choices, budgets, better="higher")
    assert [s.choice for s in steps] == [s.choice for s in higher]
    np.testing.assert_allclose(steps[-1].gain, higher[-1].gain)


def test_chance_is_no_gain_and_no_mapping_is_scored_twice():
    random, asked = np.random.default_rng(0), []

    def score(mapped):
        asked.append(mapped)
        return CHIPS + random.normal(0, 1, len(CHIPS)) * bool(mapped)

    choices = [Choice(x, "digital", "weights", 1.0) for x in LAYERS]
    steps = greedy(score, choices, {"weights": 4.0}, better="higher")
    assert len(asked) == len(set(asked)) == 5
    assert [step.choice for step in steps] == [None]


def test_a_choice_that_does_not_fit_is_not_scored():
    choices = [Choice("a", "digital", "weights", 5), Choice("b", "digital", "x", 1)]
    asked = []
    greedy(
        lambda m: asked.append(m) or CHIPS, choices, {"weights": 4.0}, better="higher"
    )
    assert asked == [frozenset()]
