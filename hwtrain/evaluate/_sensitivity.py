"""Measures how much each layer of a model loses on a chip."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from rich.table import Table

from hwtrain._flax.calls import Forward
from hwtrain._plan.plan import Plan
from hwtrain._plan.tables import as_text, count, mean_and_spread, time_name
from hwtrain._plan.weight import AnalogWeight
from hwtrain.evaluate._on_chips import values_on_chips


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Sensitivity:
    """A metric with only some layers from a chip, and the others nominal.

    `print` shows it as a table.

    >>> found = Sensitivity(
    ...     layers=("hidden", "head"), nominal=np.array([0.9, 0.9]),
    ...     whole=np.array([0.6, 0.7]), alone=np.array([[0.7, 0.7], [0.8, 0.9]]),
    ...     others=np.array([[0.8, 0.8], [0.7, 0.7]]), seeds=(0, 1))
    >>> [f"{cost:.2f}" for cost in found.cost]
    ['0.20', '0.05']

    Attributes:
      layers: paths of the layers, in the plan's order.
      nominal: `[chips]`, the metric with all layers nominal; chips differ only by the
        draws at a read.
      whole: `[chips]`, with all layers from the chip, as from `population`.
      alone: `[layers, chips]`, with one layer alone from the chip.
      others: `[layers, chips]`, with all layers but one from the chip.
      seeds: the chips' seeds.
      t_s: seconds since programming; `None` if none were given.
    """

    layers: tuple[str, ...]
    nominal: np.ndarray
    whole: np.ndarray
    alone: np.ndarray
    others: np.ndarray
    seeds: tuple[int, ...]
    t_s: float | None = None

    @property
    def cost(self) -> np.ndarray:
        """`[layers]`, how much a layer alone lowers the metric's mean over chips."""
        return self.nominal.mean() - self.alone.mean(axis=1)

    @property
    def gain(self) -> np.ndarray:
        """`[layers]`, how much the mean would rise with that layer alone nominal."""
        return self.others.mean(axis=1) - self.whole.mean()

    def table(self, form: str = ".4g") -> Table:
        """Returns a table of the metric, with a row for each layer.

        Args:
          form: format of the numbers.
        """
        none, every = (
            mean_and_spread(values, form) for values in (self.nominal, self.whole)
        )
        found = Table(caption=f"no layer: {none}; all: {every}", caption_justify="left")
        found.add_column("on the chip", overflow="fold")
        for name in ("this alone", "all but this"):
            found.add_column(name, justify="right")
        for name, alone, others in zip(self.layers, self.alone, self.others):
            cells = (mean_and_spread(values, form) for values in (alone, others))
            found.add_row(name, *cells)
        return found

    def __str__(self) -> str:
        """Returns the table as text."""
        when = "" if self.t_s is None else f", {time_name(self.t_s)} old"
        chips = count(len(self.seeds), "chip")
        about = f"{count(len(self.layers), 'layer')} on {chips}, chip_mode{when}"
        return as_text([about, self.table()])

    def __repr__(self) -> str:
        """Returns one line: numbers of layers and chips, and the costliest layer."""
        costliest = int(np.argmax(self.cost))
        return (
            f"Sensitivity(layers={len(self.layers)}, chips={len(self.seeds)}, "
            f"nominal={self.nominal.mean():.4g}, whole={self.whole.mean():.4g}, "
            f"costliest={self.layers[costliest]!r})"
        )


def sensitivity(
    analog: Any,
    variables: Any,
    batches: Iterable[tuple[Any, ...]],
    metric: Callable[..., jax.Array],
    *,
    chips: int | Sequence[int],
    key: jax.Array,
    t_s: float | None = None,
    chunk: int | None = None,
    call_kwargs: Mapping[str, Any] | None = None,
    forward: Forward | None = None,
) -> Sensitivity:
    """Evaluates a model with one layer, or all but one, from a chip.

    The other layers are nominal: the chip's mismatch, conductance noise and drift and
    stuck devices act only in the selected layers. They are the same draws in all cases,
    those of `population` for these seeds. The periphery is on everywhere. All cases,
    two for each layer and two more, share one compiled program.

    >>> import hwtrain, jax.numpy as jnp
    >>> from flax import linen as nn
    >>> mismatch = hwtrain.MismatchParameter(type="mult_normal", std_dev=0.1)
    >>> model = nn.Sequential([nn.Dense(8), nn.Dense(4)])
    >>> analog = hwtrain.analogize(model, hwtrain.Hardware(mismatch=mismatch))
    >>> x = jnp.ones((8, 3))
    >>> variables = analog.init(jax.random.key(0), x)
    >>> found = sensitivity(analog, variables, [(x,)], lambda y: y.mean(-1), chips=16,
    ...                     key=jax.random.key(1))
    >>> found.layers, found.alone.shape
    (('layers_0', 'layers_1'), (2, 16))

    Args:
      analog: the analog model.
      variables: as for `hwtrain.evaluate.population`, including checkpoints and their
        measured chips.
      batches: as for `population`.
      metric: as for `population`.
      chips: as for `population`.
      key: as for `population`.
      t_s: seconds since programming, for hardware with a noise model. `None`: just
        after programming.
      chunk: as for `population`.
      call_kwargs: as for `population`.
      forward: as for `population`.

    Raises:
      ValueError: as for `population`, or if no layer differs between chips.
    """
    layers: dict[str, list[str]] = {}

    def subsets(plan: Plan) -> list[dict[str, bool]]:
        for weight in filter(_differs, plan.weights):
            layers.setdefault(_layer_of(weight), []).append(weight.path)
        if not layers:
            raise ValueError(
                "no layer of this model differs between chips, so that nothing would "
                "change: give its Hardware a mismatch, a noise_model or stuck devices"
            )
        of_path = {path: name for name, paths in layers.items() for path in paths}
        return [
            dict.fromkeys(of_path, False),
            dict.fromkeys(of_path, True),
            *({p: own == name for p, own in of_path.items()} for name in layers),
            *({p: own != name for p, own in of_path.items()} for name in layers),
        ]

    seeds, _, values = values_on_chips(
        analog,
        variables,
        batches,
        metric,
        chips=chips,
        key=key,
        times_s=None if t_s is None else (t_s,),
        chunk=chunk,
        call_kwargs=call_kwargs,
        forward=forward,
        subsets=subsets,
        caller="sensitivity",
    )
    values, ends = values[..., 0, 0], 2 + len(layers)
    return Sensitivity(
        layers=tuple(layers),
        nominal=values[0],
        whole=values[1],
        alone=values[2:ends],
        others=values[ends:],
        seeds=seeds,
        t_s=t_s,
    )


def _differs(weight: AnalogWeight) -> bool:
    """Whether an array differs from the nominal one on a chip."""
    chip = weight.hardware
    return chip.frozen


def _layer_of(weight: AnalogWeight) -> str:
    """Returns the layer of an array; an array named by a rule is its own layer."""
    return weight.path if weight.kind == "raw" else weight.layer_path or weight.path
