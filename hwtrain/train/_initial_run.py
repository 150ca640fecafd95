"""A run that starts from a checkpoint, and keeps what it started from."""

import dataclasses
import json
from collections.abc import Container
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from rich.console import Console
from safetensors.numpy import save_file

from hwtrain._arrays import paths
from hwtrain._flax.signal_side import initial_leaves
from hwtrain._flax.weight_side import local
from hwtrain._parts.source import reason
from hwtrain._plan.plan import Plan
from hwtrain.checkpoint._disk import RESUME, complete
from hwtrain.train._config import InitialParameter
from hwtrain.train._entries import EntryError, named
from hwtrain.train._functional import Functional, ModelState, Params
from hwtrain.train._initial import Loaded, matched
from hwtrain.train._initial_files import Arrays, read_arrays, read_safetensors
from hwtrain.train._initial_leaves import in_kernels, leaves_of

_FILE = "initial.safetensors"
_ROOT, _AWARE = "initial/", "hardware-aware/"
_KEY = "training.init_from"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Initial:
    """What the models of a run start from.

    Attributes:
      values: arrays of the plain model by name.
      report: what of the checkpoint they are.
      aware: leaves of the hardware-aware model, and its weights where these include
        none of their leaves, by name; the others are those of `values`.
    """

    values: Arrays
    report: Loaded
    aware: Arrays = dataclasses.field(default_factory=dict)

    def begin(self, run: Path, console: Console) -> None:
        """Keeps the values in the run's folder, and says what was loaded.

        The run then needs the checkpoint no more, and continues with the same bits
        whatever becomes of it.

        Args:
          run: the run's folder.
          console: where the report is shown.
        """
        path = run / _FILE
        if not path.exists():
            about = {"report": json.dumps(self.report.as_data())}
            kept = {
                f"{root}{name}": np.require(value, requirements="C")
                for root, held in ((_ROOT, self.values), (_AWARE, self.aware))
                for name, value in held.items()
            }
            with complete(path, RESUME) as partial:
                save_file(kept, partial, metadata=about)
        console.print(
            self.report.describe(), soft_wrap=True, highlight=False, markup=False
        )


def initial_of(
    parameter: InitialParameter | None,
    plain: Functional,
    folder: Path,
    run: Path | None = None,
    *,
    aware: tuple[Functional, Plan] | None = None,
) -> Initial | None:
    """Returns what the models of a configuration start from; `None` for nothing.

    If the checkpoint holds leaves of hardware that the hardware-aware model has, such
    as input ranges, that model starts with them too. The plain model starts from
    weights that include the effect of those that are learned, such as output scales.

    Args:
      parameter: the entry `training.init_from`.
      plain: the plain model.
      folder: the folder that relative paths refer to.
      run: the folder of a run to continue, which keeps what it started from.
      aware: the hardware-aware model and its plan; `None` if there is none.

    Raises:
      EntryError: (a `ValueError`) one line that names the checkpoint and the array.
    """
    if parameter is None:
        return None
    params, state = map(paths.leaves, jax.eval_shape(plain.init, 0))
    kept = None if run is None else run / _FILE
    with named(_KEY, parameter.path):
        if kept is not None and kept.is_file():
            arrays, of_aware, report = _read_kept(kept)
            values, _ = matched(params, state, arrays, source=str(kept))
            return Initial(values=values, report=report, aware=of_aware)
        leaves = {} if aware is None else leaves_of(*aware)
        arrays = read_arrays(parameter.path, folder)
        values, report = matched(
            params,
            state,
            arrays,
            rename=parameter.rename,
            skip=parameter.skip,
            source=parameter.path,
            beside=leaves,
        )
        of_aware = {name: values.pop(name) for name in report.hardware}
        for name, kernel in in_kernels(values, of_aware, leaves).items():
            values[name], of_aware[name] = kernel, values[name]
        return Initial(values=values, report=report, aware=of_aware)


def _read_kept(path: Path) -> tuple[Arrays, Arrays, Loaded]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            about = json.loads(file.metadata()["report"])
        held = read_safetensors(path)
        values, of_aware = (
            {
                name.removeprefix(root): x
                for name, x in held.items()
                if name.startswith(root)
            }
            for root in (_ROOT, _AWARE)
        )
        return values, of_aware, Loaded.of_data(about)
    # safetensors raises errors of several types for a damaged file.
    except Exception as error:
        raise EntryError(
            _KEY,
            f"{path}: expected the arrays that the run started from, got a damaged "
            f"file ({reason(error)}); delete it, and they are read from the checkpoint "
            "again",
        ) from error


def starting_from(
    initial: Initial | None, model: Functional, plan: Plan | None = None
) -> Functional:
    """Returns a model whose initial variables are those of a checkpoint.

    Args:
      initial: from `initial_of`.
      model: the model.
      plan: the plan of a hardware-aware model, whose leaves follow from the weights
        unless the checkpoint holds them.
    """
    if initial is None:
        return model
    of_aware = initial.aware if plan is not None else {}
    values = {**initial.values, **of_aware}

    def init(seed: jax.typing.ArrayLike) -> tuple[Params, ModelState]:
        params, state = paths.map_leaves(_value, model.init(seed))
        if plan is not None:
            params = _with_leaves(plan, params, of_aware.keys())
        return params, state

    def _value(path: str, leaf: Any) -> Any:
        # The first part of the path says which of both trees it is.
        name = path.partition("/")[2]
        # A copy, because the training donates its arrays.
        return jnp.array(values[name], copy=True) if name in values else leaf

    return model._replace(init=init)


def _with_leaves(plan: Plan, params: Params, but: Container[str]) -> Params:
    """Returns parameters whose leaves of hardware follow from their weights.

    Args:
      plan: the plan.
      params: the parameters.
      but: the paths of leaves that stay as they are.
    """
    present, found = paths.leaves(params), {}
    for weight in plan.weights:
        if weight.kind != "raw":
            kernel = present[local(plan, weight.path)]
            for name, value in initial_leaves(weight, kernel).items():
                path = local(plan, weight.leaf(name))
                if path not in but:
                    found[path] = value
    return paths.map_leaves(lambda path, leaf: found.get(path, leaf), params)
