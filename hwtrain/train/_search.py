"""Searches for the best values of a configuration's entries, with Optuna."""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from hwtrain._errors import InputError
from hwtrain.train._variants import parse_varied

Space = Mapping[str, Any]
"""By key: `("range", low, high, logarithmic)`, or `("choice", values)`."""


def parse_space(texts: Sequence[str]) -> dict[str, Any]:
    """Returns what is searched, given as `KEY=LOW:HIGH`, `KEY=LOW:HIGH:log` or values.

    >>> parse_space(["training.learning_rate=1e-4:1e-1:log", "forward.out_bits=4,6"])
    {'training.learning_rate': ('range', 0.0001, 0.1, True), \
    'forward.out_bits': ('choice', (4, 6))}

    Args:
      texts: a range of two whole numbers holds whole numbers only.

    Raises:
      ValueError: for a text of another form.
    """
    space: dict[str, Any] = {}
    for text in texts:
        key, _, values = text.partition("=")
        parts = [part.strip() for part in values.split(":")]
        if len(parts) not in (2, 3) or "," in values or "{" in values:
            space |= {
                key: ("choice", its)
                for key, its in parse_varied([text], "--search").items()
            }
            continue
        try:
            low, high = (float(part) for part in parts[:2])
        except ValueError:
            low = high = 0.0
        if parts[2:] not in ([], ["log"]) or not low < high:
            raise InputError(
                f"--search {text}: expected KEY=LOW:HIGH or KEY=LOW:HIGH:log, with LOW "
                "below HIGH, or KEY=VALUE,VALUE"
            )
        whole = all(part.lstrip("+-").isdigit() for part in parts[:2])
        logarithmic = parts[2:] == ["log"]
        if logarithmic and low <= 0:
            raise InputError(f"--search {text}: a range with log begins above 0")
        bounds = (int(low), int(high)) if whole else (low, high)
        space[key.strip()] = ("range", *bounds, logarithmic)
    if len(space) < len(texts):
        raise InputError("--search: a key is given twice")
    return space


def bounds(space: Space) -> list[dict[str, Any]]:
    """Returns the ends of each range, and each choice, alone by its key.

    >>> bounds({"a": ("range", 1, 9, False), "b": ("choice", ("x",))})
    [{'a': 1}, {'a': 9}, {'b': 'x'}]
    """
    return [
        {key: value}
        for key, its in space.items()
        for value in (its[1] if its[0] == "choice" else its[1:3])
    ]


class Search:
    """Proposes values by Optuna's tree-structured Parzen estimator.

    The proposals follow from the seed and the scores so far, so that a search that was
    killed is repeated by telling the same scores again.
    """

    def __init__(self, space: Space, *, better: str, seed: int = 0):
        """Begins a search.

        Args:
          space: what is searched.
          better: `"higher"` or `"lower"`, which scores are better.
          seed: the seed of the proposals.
        """
        require_optuna()
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = space
        self._study = optuna.create_study(
            sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=True),
            direction="maximize" if better == "higher" else "minimize",
        )

    def ask(self) -> tuple[Any, dict[str, Any]]:
        """Returns a trial, and its values by key."""
        trial = self._study.ask()
        return trial, {key: _value(trial, key, its) for key, its in self._space.items()}

    def tell(self, trial: Any, score: float | None) -> None:
        """Tells the score of a trial; `None` for one that failed."""
        if score is None:
            from optuna.trial import TrialState

            self._study.tell(trial, state=TrialState.FAIL)
        else:
            self._study.tell(trial, score)


def _value(trial: Any, key: str, its: tuple[Any, ...]) -> Any:
    if its[0] == "choice":
        # Optuna's choices are numbers and text; tables are not.
        place = trial.suggest_categorical(key, list(range(len(its[1]))))
        return its[1][place]
    _, low, high, logarithmic = its
    whole = isinstance(low, int)
    suggest = trial.suggest_int if whole else trial.suggest_float
    value = suggest(key, low, high, log=logarithmic)
    return value if whole else float(f"{value:.6g}")


def require_optuna() -> None:
    """Raises a `ValueError` with the way out if Optuna is missing."""
    if importlib.util.find_spec("optuna") is None:
        raise InputError("--search needs Optuna: pip install 'hwtrain[search]'")
