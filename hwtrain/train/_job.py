"""Selects the job of a configuration."""

from collections.abc import Callable
from typing import Any

from hwtrain.train._comparison import compare
from hwtrain.train._config import Config
from hwtrain.train._mismatch_config import MismatchConfig
from hwtrain.train._preparation import prepare
from hwtrain.train._robustness import contest, prepare_contest


def job_of(
    config: Config | MismatchConfig,
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns the functions that prepare and run a configuration's job.

    Their signatures are those of `prepare` and `compare`.
    """
    if isinstance(config, MismatchConfig):
        return prepare_contest, contest
    return prepare, compare
