"""Energy, latency and area of a model, by layer, from counts and cited constants."""

import collections
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from rich.markup import escape
from rich.table import Table

from hwtrain._errors import InputError
from hwtrain._flax.calls import Forward, first_call, require_one_call
from hwtrain._flax.counting import Multiplications, multiplications
from hwtrain._flax.modes import plan as plan_of
from hwtrain._flax.weight_side import local
from hwtrain._parts.cost import Cost
from hwtrain._parts.cost_constants import CostParameter
from hwtrain._plan.plan import Plan
from hwtrain._plan.tables import LONGEST_NAME, as_text, table
from hwtrain._plan.weight import AnalogWeight
from hwtrain.evaluate._layer_costs import LayerCost, analog_layer, digital_layer

_NEVER = (
    "activations, normalisations, biases, memories and communication between tiles are "
    "not counted"
)
_UNWRITTEN = "writing is not counted: no noise model counts its pulses"


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Costs:
    """Energy, latency and area of a model; printed as tables.

    Attributes:
      constants: the constants of the technology.
      analog: the cost of each array of analog weights, in the plan's order.
      digital: the cost of each digital product.
      notes: what the numbers leave out.
    """

    constants: CostParameter
    analog: tuple[LayerCost, ...]
    digital: tuple[LayerCost, ...]
    notes: tuple[str, ...]

    @property
    def layers(self) -> tuple[LayerCost, ...]:
        """Analog layers, then digital ones."""
        return (*self.analog, *self.digital)

    @functools.cached_property
    def parts(self) -> dict[str, Cost]:
        """The cost of all layers by the name of the part."""
        found: dict[str, Cost] = collections.defaultdict(Cost)
        for layer in self.layers:
            for name, part in layer.parts.items():
                found[name] += part
        return dict(found)

    @property
    def total(self) -> Cost:
        """The cost of all layers."""
        return sum(self.parts.values(), Cost())

    @property
    def energy_nj(self) -> float | None:
        """Energy for one example, in nJ; `None` if no constant gives one."""
        return _given(self.total.energy_fj * 1e-6)

    @property
    def latency_us(self) -> float | None:
        """Time for one example, all layers one after the other, in µs; or `None`."""
        return _given(self.total.latency_ns * 1e-3)

    @property
    def area_mm2(self) -> float | None:
        """Area of all tiles, in mm²; or `None`."""
        return _given(self.total.area_um2 * 1e-6)

    @property
    def writing_pulses(self) -> float | None:
        """Pulses that write all devices, once; `None` if no noise model counts them."""
        return _given(self.total.writing_pulses)

    @property
    def writing_energy_uj(self) -> float | None:
        """Energy of writing all devices once, in µJ; or `None`."""
        return _given(self.total.writing_energy_fj * 1e-9)

    @property
    def writing_time_s(self) -> float | None:
        """Time of writing all devices, one after the other, in seconds; or `None`."""
        return _given(self.total.writing_time_ns * 1e-9)

    @property
    def devices(self) -> int | None:
        """Number of devices; `None` if an analog layer has no converter."""
        counts = [layer.devices for layer in self.analog]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    @property
    def operations(self) -> float:
        """Operations for one example: two for each multiplication and addition."""
        return 2 * sum(layer.macs for layer in self.layers)

    @property
    def tops_per_watt(self) -> float | None:
        """Tera-operations per second and watt: operations for each pJ; or `None`."""
        energy = self.total.energy_fj
        return self.operations / energy * 1e3 if energy else None

    def totals(self) -> dict[str, Any]:
        """Returns the totals as plain data; `None` where no constant gives one."""
        return {
            "energy_nj_per_example": self.energy_nj,
            "latency_us_per_example": self.latency_us,
            "area_mm2": self.area_mm2,
            "writing_pulses": self.writing_pulses,
            "writing_energy_uj": self.writing_energy_uj,
            "writing_time_s": self.writing_time_s,
            "devices": self.devices,
            "operations_per_example": self.operations,
            "tops_per_watt": self.tops_per_watt,
            "source": self.constants.source,
        }

    def as_data(self) -> dict[str, Any]:
        """Returns totals, layers and notes as plain data, for JSON."""
        return {
            **self.totals(),
            "layers": [
                {
                    "path": layer.path,
                    "macs": layer.macs,
                    "devices": layer.devices,
                    "counts": layer.counts and dataclasses.asdict(layer.counts),
                    "parts": {
                        name: _numbers(part) for name, part in layer.parts.items()
                    },
                    **_numbers(layer.total),
                }
                for layer in self.layers
            ],
            "notes": list(self.notes),
        }

    def tables(self) -> Iterator[Table | str]:
        """Yields the tables, the totals and the notes, for rich."""
        names = ("layer", "tiles", "devices", "MVMs", "MACs")
        found = _numeric(*names, *_UNITS, title="Cost of an example, by layer")
        for layer in self.layers:
            found.add_row(*_cells(layer), *_in_units(layer.total))
        longest = max((len(layer.path) for layer in self.layers), default=0)
        found.columns[0].no_wrap = longest <= LONGEST_NAME
        yield found
        found = _numeric("part", *_UNITS, title="Cost of an example, by part")
        for name, part in self.parts.items():
            found.add_row(escape(name), *_in_units(part, self.total))
        found.add_row("all", *_in_units(self.total))
        yield found
        if self.writing_pulses is not None:
            yield self._writing()
        if self.tops_per_watt is not None:
            yield (
                f"{_short(self.operations)} operations for each example, two for each "
                f"MAC: {_short(self.tops_per_watt)} TOPS/W"
            )
        yield f"constants: {escape(self.constants.source)}"
        for note in self.notes:
            yield f"note: {escape(note)}"

    def _writing(self) -> Table:
        """Returns the table of what writing the devices takes, by layer."""
        names = ("devices", "pulses", "energy µJ", "time s")
        found = _numeric("layer", *names, title="Cost of writing all devices, once")
        totals = [(layer.path, layer.devices, layer.total) for layer in self.analog]
        for path, devices, part in (*totals, ("all", self.devices, self.total)):
            numbers = (
                part.writing_pulses,
                part.writing_energy_fj * 1e-9,
                part.writing_time_ns * 1e-9,
            )
            if part.writing_pulses:
                cells = [_short(x) if x else "-" for x in numbers]
                count = "-" if devices is None else f"{devices:,}"
                found.add_row(escape(path), count, *cells)
        return found

    def __str__(self) -> str:
        """Returns the tables as text."""
        return as_text(self.tables())

    def __repr__(self) -> str:
        """Returns one line: the totals."""
        totals = self.totals().items()
        said = (f"{k}={v:.4g}" for k, v in totals if isinstance(v, int | float))
        return f"Costs({', '.join(said)})"


def cost(
    analog: Any,
    variables: Any = None,
    *example: Any,
    constants: CostParameter,
    examples: int | None = None,
    forward: Forward | None = None,
    **kwargs: Any,
) -> Costs:
    """Returns the energy, latency and area of an analog model on a chip.

    The call of the model is traced, not run, to count the products of every layer.
    Counts times constants are the cost; each part of the hardware states its own, by
    `Part.cost`. Layers work one after the other, and their tiles at once.

    >>> import hwtrain, jax.numpy as jnp
    >>> from flax import linen as nn
    >>> from hwtrain.evaluate import technologies
    >>> pair = hwtrain.SinglePairConductanceConverter(g_max=25.0)
    >>> analog = hwtrain.analogize(nn.Dense(256), hwtrain.Hardware(converter=pair))
    >>> x = jnp.ones((8, 256))
    >>> variables = analog.init(jax.random.key(0), x)
    >>> found = cost(analog, variables, x, constants=technologies.hermes_core())
    >>> f"{found.energy_nj:.2f} nJ, {found.latency_us:.3f} µs, {found.devices} devices"
    '12.48 nJ, 0.130 µs, 131072 devices'

    Args:
      analog: the analog model.
      variables: Linen: its variables, or their shapes. NNX: `None`, or its `params`.
      *example: arguments of a call, or their shapes; with `forward`, its inputs.
      constants: the constants of the technology.
      examples: examples in the call. `None`: the first size of its first array.
      forward: `(apply, inputs) -> outputs`, how the model is called; `None` for a call
        with the example and `kwargs`.
      **kwargs: keyword arguments of the call, such as `train=False`.

    Raises:
      ValueError: for a constant that needs bits or devices which the hardware of a
        layer does not state, and for products that cannot be counted.
    """
    require_one_call(forward, kwargs, "cost")
    if not example:
        raise InputError(
            "cost counts the products of a call: pass its arguments, or their shapes, "
            "such as cost(analog, variables, x, constants=constants)"
        )
    args = example
    if forward is not None:
        args, kwargs = first_call(forward, example[0])
    found = plan_of(analog, variables, *args, **kwargs)
    if forward is None:
        counted = multiplications(analog, variables, *args, **kwargs)
    else:
        counted = multiplications(analog, variables, example[0], forward=forward)
    size = _examples(example) if examples is None else examples
    if size < 1:
        raise InputError(f"cost: expected at least one example in the call, got {size}")
    return costs_of(found, counted, constants, size)


def costs_of(
    plan: Plan, counted: Multiplications, constants: CostParameter, examples: int
) -> Costs:
    """Returns the cost of a model with known counts.

    Args:
      plan: the plan.
      counted: the multiplications of a call.
      constants: the constants of the technology.
      examples: examples in the call.
    """
    left = dict(counted.digital)
    analog = tuple(
        analog_layer(
            weight, _products(plan, weight, counted, left) / examples, constants
        )
        for weight in plan.weights
    )
    digital = tuple(
        digital_layer(path, macs / examples, constants) for path, macs in left.items()
    )
    notes = [*_left_out(constants, digital), _NEVER]
    if not any(layer.total.writing_pulses for layer in analog):
        notes.append(_UNWRITTEN)
    for weight, layer in zip(plan.weights, analog):
        about = [*layer.total.notes]
        if weight.kind == "embed":
            about.append("look-ups are not counted")
        elif weight.kind == "raw" and layer.macs == 0:
            about.append("no product by it is found, and other uses are not counted")
        elif layer.macs == 0:
            about.append("the call does not reach it")
        notes += [f"{weight.path}: {text}" for text in about]
    return Costs(
        constants=constants, analog=analog, digital=digital, notes=tuple(notes)
    )


def _products(
    plan: Plan, weight: AnalogWeight, counted: Multiplications, left: dict[str, int]
) -> float:
    """Returns the products of a vector and a matrix of an array.

    Those of an array that a rule names look digital, and are taken out of `left`.
    """
    products = counted.products.get(weight.stored, 0)
    if weight.kind == "raw":
        size = sum(weight.row_sizes) * sum(weight.column_sizes)
        products += left.pop(local(plan, weight.path), 0) / size
    return products


def _left_out(
    constants: CostParameter, digital: tuple[LayerCost, ...]
) -> Iterator[str]:
    """Yields what has no constant, although the model has it."""
    if not digital:
        return
    if not constants.digital_mac_energy_fj:
        yield "the energy of digital products is not counted: digital_mac_energy_fj"
    if constants.digital_macs_per_ns is None:
        yield "the time of digital products is not counted: digital_macs_per_ns"


def _examples(example: tuple[Any, ...]) -> int:
    """Returns the number of examples in a call."""
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(example)]
    sizes = [shape[0] for shape in shapes if shape]
    if not sizes:
        raise InputError(
            "cost cannot tell how many examples are in the call, which has no array "
            "with axes: pass examples=1"
        )
    return sizes[0]


def _given(value: float) -> float | None:
    return value or None


def _numbers(part: Cost) -> dict[str, float]:
    return {
        "energy_fj": part.energy_fj,
        "latency_ns": part.latency_ns,
        "area_um2": part.area_um2,
        "writing_pulses": part.writing_pulses,
        "writing_energy_fj": part.writing_energy_fj,
        "writing_time_ns": part.writing_time_ns,
    }


_UNITS = ("energy nJ", "latency µs", "area mm²")


def _in_units(part: Cost, of: Cost | None = None) -> Iterator[str]:
    """Yields cells of a table, with shares of a total if there is one."""
    for name, factor in (
        ("energy_fj", 1e-6),
        ("latency_ns", 1e-3),
        ("area_um2", 1e-6),
    ):
        value = getattr(part, name)
        whole = getattr(of, name, 0.0)
        share = f" ({value / whole:.0%})" if whole and value else ""
        yield f"{_short(value * factor)}{share}" if value else "-"


def _cells(layer: LayerCost) -> Iterator[str]:
    yield escape(layer.path or "products of results")
    counts = layer.counts
    yield "digital" if counts is None else f"{counts.tiles:,}"
    yield "-" if layer.devices is None else f"{layer.devices:,}"
    yield "-" if counts is None else _short(counts.products)
    yield _short(layer.macs)


def _short(number: float) -> str:
    """Returns a number in at least four digits."""
    return f"{number:,.0f}" if number >= 1000 else f"{number:.4g}"


def _numeric(first: str, *names: str, title: str) -> Table:
    found = table(first, title=title)
    for name in names:
        found.add_column(name, justify="right")
    return found
