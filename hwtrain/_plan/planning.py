"""Makes the plan from rules: the hardware of each layer and parameter."""

import functools
import re
from collections.abc import Callable, Container, Iterable
from typing import Any

import jax.numpy as jnp

from hwtrain._arrays import paths
from hwtrain._errors import InputError
from hwtrain._parts.leaf import When
from hwtrain._plan.hardware import Hardware
from hwtrain._plan.layer import Layer, analog_weight
from hwtrain._plan.leaf_names import may_be_leaf, named_as_leaf
from hwtrain._plan.outputs import outputs_of
from hwtrain._plan.plan import Digital, Plan
from hwtrain._plan.rules import Assignment, Rule
from hwtrain._plan.weight import AnalogWeight, acts_in_product


def hardware_of(
    assigned: Assignment, layer: Layer, leaf: str
) -> tuple[Hardware | None, str]:
    """Returns the hardware of a layer's array (`None`: digital), and its origin."""
    path = f"{layer.path}/{leaf}" if layer.path else leaf
    rule, hardware = _decide(assigned, path, layer)
    if rule is not None and rule.params is not None:
        return None, str(rule)
    return hardware, str(rule or "the model's hardware")


def on_hardware(assigned: Assignment, layer: Layer, leaf: str) -> bool:
    """Whether a layer's array lies on hardware, by a rule for either of the two."""
    return _decide(assigned, layer.leaf_path(leaf), layer)[1] is not None


def make_plan(
    assigned: Assignment,
    layers: list[Layer],
    shapes: dict[str, tuple[int, ...]],
    users: Container[str] = (),
    *,
    check: bool = True,
) -> Plan:
    """Returns the plan of a model.

    Args:
      assigned: the assignment.
      layers: the modules that a call reaches.
      shapes: shapes of all parameters by path, including leaves of hardware.
      users: paths of parameters that the model itself reads although their names are
        those of such leaves.
      check: whether to raise for a rule that wins nowhere.

    Raises:
      ValueError: for a rule that wins nowhere, hardware on layers that cannot be seen,
        or a parameter of the model in the place of a leaf of its hardware.
    """
    own = assigned.own_leaves
    leaves = [x for x in shapes if may_be_leaf(x, shapes, own) and x not in users]
    shapes = {path: shape for path, shape in shapes.items() if path not in leaves}
    decide = functools.partial(_decide, assigned)
    winners: set[Rule | None] = {*check_opaque(layers, shapes, decide)}
    by_path = {layer.path: layer for layer in layers}
    winners |= _check_stored(assigned, layers, shapes)
    weights, digital = [], []
    beside_raw: set[str] = set()
    # Leaf names come last: by then, the chip leaves of raw parameters are known.
    for path, shape in sorted(shapes.items(), key=lambda x: named_as_leaf(x[0], own)):
        if path not in users and _join(assigned.name, path) in beside_raw:
            continue
        layer_path, _, leaf = path.rpartition("/")
        layer = by_path.get(layer_path)
        array = layer.weight(leaf) if layer else None
        rule, hardware = _decide(assigned, path, layer if array else None)
        winners.add(rule)
        full = _join(assigned.name, path)
        if hardware is None:
            reason = _reason(assigned, rule, layer, leaf, array is not None)
            if rule is None and layer and layer.unknown and len(shape) > 1:
                reason += "; Rule(params=...) puts the array itself on hardware"
            digital.append(Digital(path=full, reason=reason))
            continue
        by = str(rule or "the model's hardware")
        raw = rule is not None and rule.params is not None
        lost = dict(layer.lost + (layer.derived if raw else ())) if layer else {}
        if layer and array and leaf in lost:
            raise lost_weight(path, layer.path, lost[leaf], by)
        if layer and array and not raw:
            check_refused(layer, leaf, by)
        if layer and array and not raw:
            if leaf in dict(layer.nonlinear):
                why = dict(layer.nonlinear)[leaf]
                raise nonlinear_product(path, layer.path, why, by)
            weight = analog_weight(
                layer, array, path=full, shape=shape, hardware=hardware, rule=by
            )
            check_derived(weight)
        else:
            _check_raw(rule, path, hardware)
            rows, columns = _axes(rule, path, shape)
            weight = AnalogWeight(
                path=full,
                kind="raw",
                layer="",
                shape=shape,
                rows=rows,
                columns=columns,
                hardware=hardware,
                rule=by,
                ranged=False,
            )
        if layer and leaf in layer.around:
            check_around(weight)
        _check_noise_current(weight, layer)
        _check_name(weight, assigned.name, users)
        weights.append(weight)
        if weight.kind == "raw":
            beside_raw.update(weight.leaf(leaf) for leaf in weight.leaves("chip"))
    on_crossbars = {weight.layer_path for weight in weights if weight.kind != "raw"}
    outputs, storing = outputs_of(assigned, layers, on_crossbars)
    # To keep an array digital is not what a rule for results is for.
    winners = {x for x in winners if x is None or not x.stores_alone} | storing
    nothing = not weights and not outputs
    if check and nothing and assigned.default not in (None, Hardware()):
        found = ", ".join(
            f"{x.path!r} ({x.name}: {x.why})"
            for x in layers
            if x.path or x.why != Layer.why
        )
        raise InputError(
            "nothing in this model can be analog, so its hardware would do nothing. "
            f"Its modules: {found or 'none'}. To reach a parameter itself, write "
            "Rule(params=..., rows=..., columns=..., hardware=...); a layer of your "
            "own multiplies by hwtrain.analog_einsum, and in NNX its class is also "
            "registered by hwtrain.sockets.register"
        )
    if check:
        _check_rules(assigned.rules, winners, layers, shapes)
    _check_joined_names(weights)
    return Plan(tuple(weights), tuple(digital), assigned.name, outputs=outputs)


def _check_joined_names(weights: list[AnalogWeight]) -> None:
    """Raises if leaves beside two arrays, of whatever name, have one path."""
    times: tuple[When, ...] = ("model", "chip", "step")
    found: dict[str, tuple[AnalogWeight, str]] = {
        weight.path: (weight, "") for weight in weights
    }
    for weight in weights:
        leaves = {leaf.name for when in times for leaf in weight.leaves(when)}
        for name in sorted(leaves):
            path = weight.leaf(name)
            other, others = found.setdefault(path, (weight, name))
            marks = other.kind == weight.kind == "raw" and others == name
            if marks or (other, others) == (weight, name):
                continue  # the arrays of a module share the mark of a chip
            what = f"the leaf {others!r} of {other.path}" if others else "the array"
            raise InputError(
                f"the leaf {name!r} of {weight.path} and {what} would both be stored "
                f"as {path}: call one of the leaves, or one of the arrays, otherwise"
            )


def _check_name(weight: AnalogWeight, prefix: str, users: Container[str]) -> None:
    """Raises if a parameter of the model has the path of a leaf of its hardware."""
    for path in sorted(weight.owned):
        if path.removeprefix(f"{prefix}/") in users:
            raise taken_name(weight, path)


def check_refused(layer: Layer, leaf: str, rule: str) -> None:
    """Raises for an array that a crossbar cannot multiply by as its layer does.

    Args:
      layer: the layer.
      leaf: the array.
      rule: the rule, or the text, that puts it on hardware.
    """
    why = dict(layer.refused).get(leaf)
    if why is not None:
        raise InputError(
            f"{layer.leaf_path(leaf)} cannot lie on a crossbar ({rule}): {why}. Or "
            f"keep the layer digital: Rule({layer.path!r}, None) before the others"
        )


def check_around(weight: AnalogWeight) -> None:
    """Raises for an array that the model also multiplies by outside its layer.

    Raises:
      ValueError: unless its hardware acts on the array alone.
    """
    if weight.kind != "raw" and acts_in_product(weight):
        raise InputError(
            f"the model multiplies by {weight.path} itself, around its {weight.layer}, "
            "and there, the ranges, converters and scales of its hardware "
            f"({weight.rule}) have no effect. Call the layer instead, such as "
            "embed.attend(x) for x @ embedding.T, give it hardware with weight noise "
            f"only, or keep it digital: Rule({weight.layer_path!r}, None) before the "
            "others"
        )


def check_derived(weight: AnalogWeight) -> None:
    """Raises for a derived weight whose hardware acts on stored weights only.

    Raises:
      ValueError: naming those parts of the hardware.
    """
    if weight.derived and weight.kind == "embed":
        why = f"{weight.derived}, and a look-up multiplies by nothing"
        raise lost_weight(weight.path, weight.layer_path, why, weight.rule)
    chip = weight.hardware
    acts = {
        "clip": chip.clip is not None and (chip.clip.active or chip.learns_clip),
        "remap": chip.remaps,
        "drift": chip.drifts,
    }
    parts = [name for name, acting in acts.items() if acting]
    if not weight.derived or not parts:
        return
    off = ", ".join(f"{name}=None" for name in parts)
    raise InputError(
        f"{weight.path}: {weight.rule} gives it {' and '.join(parts)}, which would act "
        f"on the stored weights, and not on those that its {weight.layer} multiplies "
        f"by: {weight.derived}. Write Rule({weight.layer_path!r}, "
        f"dataclasses.replace(hardware, {off})) before the other rules, or "
        f"Rule({weight.layer_path!r}, None) to keep it digital"
    )


def lost_weight(path: str, layer: str, why: str, rule: str) -> ValueError:
    """Returns the error for a layer whose weights no crossbar could hold."""
    return InputError(
        f"{path}: its layer does not multiply by this array itself: {why}. Scale, "
        f"noise and conductances would belong to other weights ({rule}). Store the "
        f"weights that it multiplies by, or keep the layer digital: Rule({layer!r}, "
        "None) before the others"
    )


def nonlinear_product(path: str, layer: str, why: str, rule: str) -> ValueError:
    """Returns the error for a layer whose own product is not linear."""
    return InputError(
        f"{path}: the dot_general of its layer does more than multiply: {why}. On "
        f"hardware ({rule}) it gets the inputs and weights in the units of each tile, "
        "and must be linear in both. Quantise or clip before and behind the layer, or "
        "by its hardware: Hardware(forward=IOParameters(inp_bits=8, out_bits=8, "
        f"out_bound=10.0)); or keep the layer digital: Rule({layer!r}, None) before "
        "the others"
    )


def real(plan: Plan, params: Any) -> Plan:
    """Returns the plan if all of its weights are real.

    Raises:
      ValueError: if one of its weights is complex: conductances are real.
    """
    # Boxes stay closed: on a mesh, unboxing would constrain abstract values.
    found = paths.leaves(params)
    for weight in plan.weights:
        leaf = found.get(weight.path.removeprefix(f"{plan.prefix}/"))
        if leaf is None or weight.hardware == Hardware():
            continue
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise InputError(
                f"{weight.path} is {leaf.dtype}, and {weight.rule} puts it on a "
                "crossbar, whose conductances are real. Make real and imaginary parts "
                "two layers, or keep it digital: "
                f"Rule({weight.layer_path!r}, None) before the other rules"
            )
    return plan


def _join(prefix: str, path: str) -> str:
    return f"{prefix}/{path}" if prefix else path


def _decide(
    assigned: Assignment, path: str, layer: Layer | None
) -> tuple[Rule | None, Hardware | None]:
    """Returns the winning rule for a parameter, if there is one, and its hardware.

    That of digital units alone leaves it digital.

    Args:
      assigned: the assignment.
      path: path of the parameter.
      layer: the layer that holds the array, if it can be analog.
    """
    for rule in assigned.rules:
        if _matches(rule, path, layer):
            return rule, _of_crossbar(rule.hardware)
    default = None if layer is None or layer.by_rule else assigned.default
    return None, _of_crossbar(default)


def _of_crossbar(hardware: Hardware | None) -> Hardware | None:
    return None if hardware is None or hardware.digital else hardware


def _matches(rule: Rule, path: str, layer: Layer | None) -> bool:
    if rule.params is not None:
        return re.fullmatch(rule.params, path) is not None
    return layer is not None and bool(re.fullmatch(rule.expression, layer.path))


def _reason(
    assigned: Assignment,
    rule: Rule | None,
    layer: Layer | None,
    leaf: str,
    analog: bool,
) -> str:
    if rule is not None:
        alone = rule.stores_alone
        return f"{rule} {'has outputs alone' if alone else 'keeps it digital'}"
    if analog and layer and layer.by_rule:
        return f"the {leaf} of a {layer.name} is analog only by a rule"
    if analog:
        given = assigned.default
        return "the model's hardware has outputs alone" if given else "no rule matches"
    if layer is None:
        return "no layer that the call reaches holds it"
    if layer.kind:
        return f"the {leaf} of a {layer.name} is added digitally"
    return f"{layer.name}: {layer.why}"


def _check_stored(
    assigned: Assignment, layers: list[Layer], shapes: dict[str, tuple[int, ...]]
) -> set[Rule | None]:
    """Raises for a layer on hardware whose array is not stored under its name.

    Returns:
      The rules that keep such layers digital.
    """
    digital = set()
    for layer, leaf in [(x, array.leaf) for x in layers for array in x.weights]:
        path = layer.leaf_path(leaf)
        rule, hardware = _decide(assigned, path, layer)
        raw = rule is not None and rule.params is not None
        if path in shapes:
            continue
        if raw or hardware in (None, Hardware()):
            digital.add(rule)
            continue
        raise InputError(
            f"{path} is not stored as a parameter, although the {layer.name} "
            f"multiplies by it and {rule or 'the hardware of the model'} puts it on a "
            "crossbar. Store it as a parameter of this name (NNX: an nnx.Param, not a "
            f"property), or keep the layer digital: Rule({layer.path!r}, None) before "
            "the others"
        )
    return digital


def _check_raw(rule: Rule | None, path: str, hardware: Hardware) -> None:
    """Raises for hardware with parts that only a layer can have."""
    parts = [
        name
        for name, there in (
            ("input_range", hardware.ranged),
            ("forward", hardware.forward is not None),
            ("outputs", hardware.outputs is not None),
            ("mapping.learn_out_scaling", hardware.scales_outputs),
            ("a learned clip", hardware.learns_clip),
            (
                "modifier.per_batch_sample, per_vector or redraw",
                hardware.modifies_in_layer("train"),
            ),
        )
        if there
    ]
    omega = hardware.mapping.weight_scaling_omega if hardware.mapping else 0
    if not parts and hardware.stores_scale and omega:
        parts = ["mapping.weight_scaling_omega beside this clip"]
    if parts:
        raise InputError(
            f"{rule} puts the parameter {path!r} on hardware with {', '.join(parts)}, "
            "which only a layer can have: a parameter gets the weight side alone. Give "
            "it a Hardware without these options"
        )


def _check_noise_current(weight: AnalogWeight, layer: Layer | None) -> None:
    """Raises for a noise current at a parameter whose layer would not draw it."""
    if weight.hardware.noise_current is None:
        return
    takes = () if layer is None else layer.capacitances
    if weight.kind != "raw" or weight.array not in takes:
        raise InputError(
            f"{weight.path}: {weight.rule} gives it a noise_current, which only a "
            "capacitance of a DynapSim takes. Write Rule(params="
            '".*/log_C_(mem|syn|gaba|ahp)", hardware=Hardware(noise_current=...)), '
            "with the layers that the call reaches"
        )
    if weight.rows or len(weight.columns) != 1:
        raise InputError(
            f"{weight.path} is a stack of neurons, {weight.shape}: with a "
            f"noise_current, its rule has rows=() and columns=-1; got {weight.rule}"
        )


def _axes(
    rule: Rule | None, path: str, shape: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the row and column axes that a rule gives a parameter."""
    rank = len(shape)
    if rank == 0:
        raise InputError(f"{path}: a scalar cannot lie on a crossbar; got shape ()")
    given = []
    for name, default in (("rows", (-2,) if rank > 1 else ()), ("columns", (-1,))):
        axes = getattr(rule, name)
        axes = default if axes is None else (axes,) if isinstance(axes, int) else axes
        for axis in axes:
            if not -rank <= axis < rank:
                raise InputError(
                    f"{rule}: {name}={axis} is not an axis of {path}, whose shape is "
                    f"{shape}"
                )
        given.append(tuple(axis % rank for axis in axes))
    return given[0], given[1]


def _check_rules(
    rules: tuple[Rule, ...],
    winners: set[Rule | None],
    layers: list[Layer],
    shapes: dict[str, tuple[int, ...]],
) -> None:
    """Raises for a rule that wins nowhere, with the reason."""
    visited = {layer.path for layer in layers}
    for index, rule in enumerate(rules):
        if rule in winners:
            continue
        if rule.pattern is None:
            found = [path for path in shapes if re.fullmatch(rule.expression, path)]
            known, what = sorted(shapes), "parameter"
        else:
            matching = [x for x in layers if re.fullmatch(rule.expression, x.path)]
            stores = rule.stores_alone

            def meant(layer: Layer, stores: bool = stores) -> bool:
                return layer.called if stores else layer.kind is not None

            found = [layer.path for layer in matching if meant(layer)]
            known = [layer.path for layer in layers if meant(layer)]
            what = "called module" if stores else "layer that can be analog"
            if matching and not found and stores:
                raise InputError(
                    f"{rule} stores what modules return, and matches only modules "
                    f"whose __call__ is not called: {[x.path for x in matching]}. "
                    f"Those that are called: {known}"
                )
            if matching and not found:
                listed = ", ".join(f"{x.path!r} ({x.name}: {x.why})" for x in matching)
                raise InputError(
                    f"{rule} matches only layers that cannot be analog: {listed}. "
                    f"Layers that can: {known}. To reach a parameter itself, write "
                    "Rule(params=..., rows=..., columns=..., hardware=...); to store "
                    "their results in few bits, Hardware(outputs=...) alone"
                )
            held = {path.rpartition("/")[0] for path in shapes} - visited
            if any(re.fullmatch(rule.expression, path) for path in held):
                continue  # a layer that only another method of the model reaches
        if found:
            raise InputError(
                f"{rule} wins nowhere: earlier rules win {found} "
                f"({', '.join(map(str, rules[:index]))}). Move it up, or delete it"
            )
        raise InputError(
            f"{rule} matches no {what}; a pattern must match the whole path. "
            f"The model has {known}"
        )


def taken_name(weight: AnalogWeight, path: str) -> ValueError:
    """Returns the error for a model that uses the name of a leaf of its hardware."""
    rule, digital = weight.rule, f"the layer digital: Rule({weight.layer_path!r}, None)"
    if weight.kind == "raw":
        digital = f"the parameter digital: Rule(params={weight.path!r}, hardware=None)"
    return InputError(
        f"{path} is a name that the model itself uses, and the hardware of "
        f"{weight.path} ({rule}) puts a leaf of this name beside it. Rename the "
        f"model's, or keep {digital} before the other rules"
    )


def check_opaque(
    layers: Iterable[Layer],
    shapes: Iterable[str],
    decide: Callable[[str, Layer], tuple[Any, Hardware | None]],
) -> set[Any]:
    """Raises if hardware is requested for layers that cannot be seen.

    Args:
      layers: the modules of the model.
      shapes: the paths of all parameters.
      decide: returns the rule for a parameter, given its path and layer, and the
        hardware that it requests.

    Returns:
      The rules that keep a bridge digital.
    """
    digital = set()
    for hidden in (layer for layer in layers if layer.opaque):
        rule, _ = decide(hidden.path, hidden)
        if rule is not None and rule.hardware is None:
            digital.add(rule)
            continue
        prefix = f"{hidden.path}/" if hidden.path else ""
        for path in (path for path in shapes if path.startswith(prefix)):
            for held in (hidden, Layer(path=path.rpartition("/")[0])):
                rule, hardware = decide(path, held)
                raw = rule is not None and rule.params is not None
                if not raw and hardware not in (None, Hardware()):
                    raise InputError(
                        f"{hidden.path or 'the model'} ({hidden.name}) is to be "
                        f"analog, but {hidden.why}, whose layers cannot be seen from "
                        "here. Analogize that module before the bridge, or keep it "
                        f"digital by Rule({hidden.path!r}, None) before the others"
                    )
    return digital
