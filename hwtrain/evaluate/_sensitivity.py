"""Measures how much each layer of a model loses on a chip."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from rich.table import Table

from hwtrain._errors import InputError
from hwtrain._flax.calls import Forward
from hwtrain._plan.plan import Plan
from hwtrain._plan.tables import as_text, count, time_name
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
      better: `"higher"` or `"lower"`, which values of the metric are better.
    """

    layers: tuple[str, ...]
    nominal: np.ndarray
    whole: np.ndarray
    alone: np.ndarray
    others: np.ndarray
    seeds: tuple[int, ...]
    t_s: float | None = None
    better: str = "higher"

    def __post_init__(self) -> None:
        _check_better(self.better)

    @property
    def cost(self) -> np.ndarray:
        """`[layers]`, how much a layer alone worsens the metric's mean over chips."""
        return self._costs.mean(axis=1)

    @property
    def gain(self) -> np.ndarray:
        """`[layers]`, how much the mean improves with that layer alone nominal."""
        return self._gains.mean(axis=1)

    @property
    def order(self) -> np.ndarray:
        """`[layers]`, the layers' numbers, costliest first: the order of the table."""
        return np.argsort(-self.cost, kind="stable")

    @property
    def _costs(self) -> np.ndarray:
        """`[layers, chips]`."""
        return self._sign * (self.nominal - self.alone)

    @property
    def _gains(self) -> np.ndarray:
        """`[layers, chips]`."""
        return self._sign * (self.others - self.whole)

    @property
    def _sign(self) -> int:
        return 1 if self.better == "higher" else -1

    def table(self, form: str = ".4g") -> Table:
        """Returns a table of the metric, with a row for each layer, costliest first.

        Costs and gains are differences on the same chips, with the half width of their
        95 % interval by Student's t.

        Args:
          form: format of the numbers.
        """
        found = Table(caption=self._caption(form), caption_justify="left")
        found.add_column("on the chip", overflow="fold")
        for name in ("this alone", "costs", "all but this", "gain"):
            found.add_column(name, justify="right")
        costs, gains = self._costs, self._gains
        for n in self.order:
            found.add_row(
                self.layers[n],
                f"{self.alone[n].mean():{form}}",
                _with_half_width(costs[n], form),
                f"{self.others[n].mean():{form}}",
                _with_half_width(gains[n], form),
            )
        return found

    def _caption(self, form: str) -> str:
        when = "" if self.t_s is None else f", {time_name(self.t_s)} old"
        half = (
            "; ± half the width of the 95 % interval of the mean, by Student's t over "
            "differences on the same chips"
            if len(self.seeds) > 1
            else ""
        )
        return (
            f"no layer on the chip: {self.nominal.mean():{form}}; all: "
            f"{self.whole.mean():{form}}; means over {count(len(self.seeds), 'chip')}"
            f"{when}; {self.better} is better\n"
            f"costs: how much worse than no layer; gain: how much better than all{half}"
        )

    def __str__(self) -> str:
        """Returns the table as text."""
        when = "" if self.t_s is None else f", {time_name(self.t_s)} old"
        chips = count(len(self.seeds), "chip")
        about = f"{count(len(self.layers), 'layer')} on {chips}, chip_mode{when}"
        return as_text([about, self.table()])

    def __repr__(self) -> str:
        """Returns one line: numbers of layers and chips, and the costliest layer."""
        return (
            f"Sensitivity(layers={len(self.layers)}, chips={len(self.seeds)}, "
            f"nominal={self.nominal.mean():.4g}, whole={self.whole.mean():.4g}, "
            f"costliest={self.layers[self.order[0]]!r})"
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
    better: str = "higher",
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
      better: `"higher"` or `"lower"`, which values of the metric are better: a cost is
        a worsening.

    Raises:
      ValueError: as for `population`, if no layer differs between chips,
        or for another `better`.
    """
    _check_better(better)
    layers: dict[str, list[str]] = {}

    def subsets(plan: Plan) -> list[dict[str, bool]]:
        for weight in filter(_differs, plan.weights):
            layers.setdefault(_layer_of(weight), []).append(weight.path)
        if not layers:
            raise InputError(
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
        better=better,
    )


def _check_better(better: str) -> None:
    """Raises a `ValueError` for anything but the two directions of a metric."""
    if better not in ("higher", "lower"):
        raise InputError(f'better must be "higher" or "lower"; got {better!r}')


def _with_half_width(differences: np.ndarray, form: str) -> str:
    """Returns the mean of differences, and half the width of its 95 % interval."""
    chips = len(differences)
    if chips < 2:
        return f"{differences.mean():z{form}}"
    from scipy import stats

    # For equal differences, the rounding of the mean would look like a spread.
    spread = differences.std(ddof=1) if np.ptp(differences) else 0.0
    half = stats.t.ppf(0.975, chips - 1) * spread / np.sqrt(chips)
    return f"{differences.mean():z{form}} ± {half:{form}}"


def _differs(weight: AnalogWeight) -> bool:
    """Whether an array differs from the nominal one on a chip."""
    chip = weight.hardware
    return chip.frozen


def _layer_of(weight: AnalogWeight) -> str:
    """Returns the layer of an array; an array named by a rule is its own layer."""
    return weight.path if weight.kind == "raw" else weight.layer_path or weight.path
