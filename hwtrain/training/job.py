"""What a configuration asks for."""

from collections.abc import Callable
from typing import Any

from hwtrain.training.comparison import compare
from hwtrain.training.config import Config
from hwtrain.training.mismatch_config import MismatchConfig
from hwtrain.training.preparation import prepare
from hwtrain.training.robustness import contest, prepare_contest


def job_of(
    config: Config | MismatchConfig,
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns the functions that prepare and run a configuration's job.

    They are called as `prepare` and `compare`.
    """
    if isinstance(config, MismatchConfig):
        return prepare_contest, contest
    return prepare, compare
