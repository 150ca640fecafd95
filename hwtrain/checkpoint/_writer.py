"""Writes a hardware-ready checkpoint."""

import contextlib
import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from hwtrain._arrays.processes import require_same, together
from hwtrain._flax.materializing import materialize
from hwtrain._plan.plan import Plan
from hwtrain.checkpoint import _destination as destination
from hwtrain.checkpoint._contents import Contents
from hwtrain.checkpoint._description import Graph, Measurement
from hwtrain.checkpoint._errors import HardwareCheckpointError
from hwtrain.checkpoint._files import path_of
from hwtrain.checkpoint._progress import Report
from hwtrain.checkpoint._read_back import Conductances
from hwtrain.checkpoint._together import write_together
from hwtrain.checkpoint._variables import all_share


def export(
    path: str | os.PathLike[str],
    variables: Any,
    plan: Plan | None = None,
    *,
    chip_seed: int | None = None,
    chip_seeds: Iterable[int] = (),
    measured: Mapping[int, Conductances] | None = None,
    graph: Graph | None = None,
    accuracy: Iterable[Measurement] = (),
    report: Report | None = None,
    analog: Any = None,
    example: Sequence[Any] = (),
) -> Path:
    r"""Writes a model as a checkpoint from which a chip can be programmed.

    .. math:: g^\pm = g_\text{min} + \max(\pm k w, 0), \qquad w = W / s

    The directory is written atomically: under a hidden name beside `path`, and then
    renamed. `docs/checkpoint.md` describes the format. One layer is on the host at a
    time, whatever the devices that the arrays are spread over.

    In several processes whose arrays are spread over all of them, every process calls
    it with the same arguments. Each writes a part of the layers, if it sees the
    directory, and the first one the manifest. An error on one is raised on all.

    >>> import tempfile
    >>> import jax, jax.numpy as jnp
    >>> from flax import linen as nn
    >>> import hwtrain
    >>> pair = hwtrain.SinglePairConductanceConverter(g_max=25.0)
    >>> analog = hwtrain.analogize(nn.Dense(2), hwtrain.Hardware(converter=pair))
    >>> x = jnp.ones((1, 3))
    >>> variables = analog.init(jax.random.key(0), x)
    >>> plan = hwtrain.plan(analog, variables, x)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = hwtrain.export(f"{folder}/chip", variables, plan)
    ...     sorted(str(file.relative_to(path)) for file in path.rglob("*.*"))
    ['manifest.json', 'tensors/0000.safetensors']

    Args:
      path: the destination; must not exist.
      variables: nominal values: Linen collections, or only the tree of parameters; or
        an analog NNX model.
      plan: the plan of the model; optional for an NNX model, which holds it.
      chip_seed: seed of a chip whose frozen mismatch is drawn and stored beside the
        nominal values. `None` for none.
      chip_seeds: seeds of further chips.
      measured: chips that were programmed and read back: by the chip's number, the
        result of `read_conductances`. `None` for none.
      graph: the connections of the layers, stored for programs that need them.
      accuracy: measurements of the model, stored in the manifest.
      report: called with the number of written layers and the total, such as by
        `show_progress`. `None` for none.
      analog: the analog model, needed with an example if layers compute their weights
        from stored ones, as in a WeightNorm: the checkpoint then holds the weights that
        the layers multiply by; see `hwtrain.materialize`. Optional for an NNX model.
      example: a tuple with the arguments of a call of `analog`.

    Returns:
      `path`.

    Raises:
      HardwareCheckpointError: (a `ValueError`) if `path` exists, the plan does not fit
        the parameters, a weight is not finite, a chip has nothing frozen, the disk is
        full, or processes call it with different arguments. Nothing is left behind.
    """
    shared = all_share(variables if variables is not None else analog)
    on_all = functools.partial(together, shared, HardwareCheckpointError)
    with on_all():
        path = path_of(path, "expected where to write to, which must not exist")
        # A Measurement is itself iterable, over its fields.
        several = not isinstance(accuracy, Measurement) and isinstance(
            accuracy, Iterable
        )
        accuracy = tuple(accuracy) if several else accuracy
        _check_types(
            plan=plan,
            graph=graph,
            accuracy=accuracy,
            chip_seeds=chip_seeds,
            example=example,
        )
        plan, analog = _model(variables, plan, analog, example)
        seeds = [*chip_seeds] if chip_seed is None else [chip_seed, *chip_seeds]
    if shared:
        called = None if analog is None else len(example)
        what = "the number of arguments of a call"
        require_same(what, called, HardwareCheckpointError)
    if analog is not None:
        given = None if variables is analog else variables
        variables = materialize(analog, given, *example)
        plan = plan.effective
    with on_all():
        contents = Contents(
            variables, plan, seeds, measured=measured, graph=graph, accuracy=accuracy
        )
    if shared:
        write_together(path, contents, report)
        return path
    with _of_one(path), destination.new(path, folder=True) as partial:
        contents.write(partial, report=report)
    return path


@contextlib.contextmanager
def _of_one(path: str | os.PathLike[str]) -> Iterator[None]:
    """Explains why a path may exist when each process exports by itself."""
    try:
        yield
    except HardwareCheckpointError as error:
        if jax.process_count() == 1 or not Path(path).exists():
            raise
        raise HardwareCheckpointError(
            f"{error}. These arrays are not spread over processes: let one process "
            "export them, such as `if jax.process_index() == 0`"
        ) from error


def _model(
    variables: Any, plan: Plan | None, analog: Any, example: Sequence[Any]
) -> tuple[Plan, Any]:
    """Returns the plan, and the model to call for its derived weights, or `None`."""
    if plan is None:
        plan = getattr(variables, "analog_plan", None)
    if plan is None:
        raise HardwareCheckpointError(
            "export needs the plan of the model: export(path, variables, "
            "hwtrain.plan(analog, variables, *example)); only an analog NNX model "
            f"holds its own, and this is a {type(variables).__name__}"
        )
    if isinstance(variables, nnx.Module):
        analog = _itself(variables, analog, example)
    elif example and analog is None:
        raise HardwareCheckpointError(
            "example= holds the arguments of a call of the analog model; give "
            "analog=analog too, or neither"
        )
    return plan, analog


def _itself(model: nnx.Module, analog: Any, example: Sequence[Any]) -> Any:
    """Returns the analog model whose values are exported; an NNX model is its own.

    Raises:
      HardwareCheckpointError: if it is not analog, or another model is given as well.
    """
    if analog is None and not example:
        return None
    own = getattr(model, "analog_plan", None)
    if own is None:
        raise HardwareCheckpointError(
            f"export takes the analog NNX model, and this {type(model).__name__} is a "
            "plain one: export(path, analog, example=(x,)) of analog = "
            "hwtrain.analogize(model, hardware)"
        )
    if analog is not None and getattr(analog, "analog_plan", None) != own:
        raise HardwareCheckpointError(
            f"analog= is another model ({type(analog).__name__}) than the NNX model "
            f"whose values are exported ({type(model).__name__}), which is called "
            "itself: leave analog= out, export(path, model, example=(x,))"
        )
    return model


def _check_types(**given: Any) -> None:
    """Raises for an argument of a wrong type, naming it."""
    for name, value in given.items():
        kinds, what = _TYPES[name]
        right = isinstance(value, kinds)
        if name == "accuracy" and right:
            right = all(isinstance(entry, Measurement) for entry in value)
        if not right:
            text = " ".join(repr(value).split())
            raise HardwareCheckpointError(f"{name}= takes {what}; got {text[:200]}")


_TYPES: dict[str, tuple[Any, str]] = {
    "plan": (Plan | None, "hwtrain.plan(analog, variables, *example)"),
    "graph": (Graph | None, "hwtrain.checkpoint.trace_graph(model, variables, x)"),
    "accuracy": (
        tuple,
        "a list of hwtrain.checkpoint.Measurement(metric=..., mode=..., chips=..., "
        "mean=...)",
    ),
    "chip_seeds": (Iterable, "a list of seeds; of one, write chip_seed="),
    "example": (tuple | list, "the arguments of a call in a tuple, such as (x,)"),
}
