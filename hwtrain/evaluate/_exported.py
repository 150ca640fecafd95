"""Checks that an export of an analog model contains every effect of its chips."""

import dataclasses
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from hwtrain._arrays import paths
from hwtrain._plan.plan import Plan
from hwtrain._plan.weight import AnalogWeight
from hwtrain.checkpoint import HardwareCheckpoint, export, load
from hwtrain.checkpoint._tiles import grid
from hwtrain.chips import _conductances as conductances
from hwtrain.chips._crossbar import with_written
from hwtrain.evaluate._compensation_proof import compensated
from hwtrain.evaluate._converter_proof import ConverterProof
from hwtrain.evaluate._device_proof import DAY_S, Known, behaved
from hwtrain.evaluate._judgement import ENOUGH
from hwtrain.evaluate._updates import Finding, prefixed
from hwtrain.evaluate._weight_noise import WeightProof


def deployed_effects(plan: Plan, params: paths.Tree) -> Iterator[Finding]:
    """Yields findings on exported chips: conductances, and each frozen effect."""
    chips = [w for w in plan.weights if w.hardware.frozen]
    converted = [w for w in plan.weights if w.hardware.converter is not None]
    if not chips and not converted:
        return
    params = prefixed(plan, params)
    # Only weights are exported: the rest of the model has no place on a chip.
    there = {p for w in plan.weights for p in (w.path, w.stored, *w.owned)}
    digital = tuple(entry for entry in plan.digital if entry.path in there)
    plan = dataclasses.replace(plan, state=(), digital=digital)
    params = paths.drop(params, lambda path: path in there)
    nominal = paths.leaves(with_written(params, plan))
    unrounded = paths.leaves(with_written(params, _without_devices(plan)))
    seeds = range(_chips_to_tell_by(plan)) if chips else ()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chip"
        checkpoint = load(export(path, {"params": params}, plan, chip_seeds=seeds))
        for weight in converted:
            back = checkpoint.reconstruct(weight.path)
            error = np.abs(back - np.asarray(nominal[weight.path], np.float32)).max()
            size = max(float(np.abs(back).max()), 1e-30)
            wrong = (
                None if error < 0.01 * size else "the conductances are other weights"
            )
            yield weight.path, "converter", wrong, "gives the weights back"
            yield from _held(weight, checkpoint, unrounded[weight.path])
        if not chips:
            return
        chip, later = _after_a_day(checkpoint)
        known: Known = {}
        several: dict[str, dict[str, np.ndarray]] = {}
        for part, of in _parts(plan).items():
            several[part] = _deviations(Path(folder) / part, of, params)
        for weight in chips:
            kernels = [
                np.asarray(tree[weight.path], np.float32)
                for tree in (nominal, chip, later)
            ]
            deviations = {
                part: found[weight.path]
                for part, found in several.items()
                if weight.path in found
            }
            yield from _frozen(weight, nominal, deviations, *kernels)
            model = weight.hardware.noise_model
            if model is not None:
                tiles = checkpoint.conductances(weight.path, checkpoint.chip_seeds[0])
                yield from behaved(weight.path, model, tiles, known)
            if weight.hardware.drift_compensation is not None:
                yield compensated(weight, nominal, *kernels)
        if any(weight.hardware.sticks for weight in chips):
            healthy = _healthy(Path(folder) / "healthy", plan, params)
            for weight in chips:
                if weight.hardware.sticks:
                    change = later[weight.path] - healthy[weight.path]
                    yield _stuck(weight, checkpoint, bool(jnp.any(change != 0)))


def _without_devices(plan: Plan) -> Plan:
    """Returns a plan of the same weights without conductances."""
    fields = ("converter", "noise_model", "drift_compensation", "stuck")
    none: Any = dict.fromkeys(fields)
    weights = tuple(
        dataclasses.replace(w, hardware=dataclasses.replace(w.hardware, **none))
        for w in plan.weights
    )
    return dataclasses.replace(plan, weights=weights)


def _held(
    weight: AnalogWeight, checkpoint: HardwareCheckpoint, kernel: Any
) -> list[Finding]:
    """Returns what the converter declares of the devices of the nominal weights."""
    matrix = np.asarray(weight.to_matrix(jnp.asarray(kernel, jnp.float32)))
    rows = checkpoint.conductances(weight.path)
    places = list(grid(weight))
    tiles = [rows[place.row][place.column] for place in places]
    given = [
        matrix[..., place.rows, place.columns] / tile.mapping_scale
        for place, tile in zip(places, tiles)
    ]
    converter = conductances.converter_of(weight)
    proof = ConverterProof(weight.path, converter, given, tiles)
    converter.proof(proof)
    return proof.findings


def _parts(plan: Plan) -> dict[str, Plan]:
    """Returns plans whose chips are compared: with all effects, and with fewer.

    A mismatch is measured alone, and told from the effect of programming on the very
    same chip; a noise model is compared with a chip written without one.
    """
    weights = plan.weights

    def of(weights: list[AnalogWeight], **fields: Any) -> Plan:
        changed = tuple(
            dataclasses.replace(w, hardware=dataclasses.replace(w.hardware, **fields))
            for w in weights
        )
        return dataclasses.replace(plan, weights=changed)

    parts = {"all": plan}
    several = [w for w in weights if _mismatched(w) and w.hardware.programs]
    if several:
        without: Any = {"noise_model": None, "drift_compensation": None}
        parts["mismatch"] = of(several, stuck=None, **without)
        parts["no mismatch"] = of(several, mismatch=None)
        # Without stuck devices, this chip would equal the one with mismatch alone.
        modelled = [w for w in several if w.hardware.noise_model and w.hardware.sticks]
        if modelled:
            parts["no noise_model"] = of(modelled, **without)
    return parts


def _mismatched(weight: AnalogWeight) -> bool:
    mismatch = weight.hardware.mismatch
    return mismatch is not None and bool(mismatch.draws)


def _chips_to_tell_by(plan: Plan) -> int:
    """Returns how many chips give enough stuck devices to count, at most 32."""
    chips = 1
    for weight in plan.weights:
        for share, _, _ in _shares(weight):
            devices = math.prod(weight.shape) * _devices(weight)
            # With 30 expected, zero would be 5 standard deviations away.
            chips = max(chips, math.ceil(30 / (share * devices)))
    return min(chips, 32)


def _shares(weight: AnalogWeight) -> list[tuple[float, int, float]]:
    """Returns the share, state and conductance of stuck devices at each end."""
    stuck, converter = weight.hardware.stuck, weight.hardware.converter
    if stuck is None or converter is None:
        return []
    return stuck.ends(converter.g_min, converter.g_max)


def _devices(weight: AnalogWeight) -> int:
    """Returns the number of devices for each weight."""
    return len(conductances.converter_of(weight).devices)


def _after_a_day(checkpoint: HardwareCheckpoint) -> tuple[dict, dict]:
    """Returns the leaves of a chip after programming, and after a day."""
    chip = paths.leaves(checkpoint.chip(0))
    if all(weight.hardware.noise_model is None for weight in checkpoint.plan.weights):
        return chip, chip
    return chip, paths.leaves(checkpoint.chip(0, t_s=DAY_S))


def _healthy(path: Path, plan: Plan, params: paths.Tree) -> dict[str, Any]:
    """Returns the leaves of the same chip after a day, without stuck devices."""
    weights = tuple(
        dataclasses.replace(
            weight, hardware=dataclasses.replace(weight.hardware, stuck=None)
        )
        for weight in plan.weights
    )
    plan = dataclasses.replace(plan, weights=weights)
    if not any(weight.hardware.frozen for weight in weights):
        return paths.leaves(with_written(params, plan))
    return _after_a_day(load(export(path, {"params": params}, plan, chip_seed=0)))[1]


def _deviations(path: Path, plan: Plan, params: paths.Tree) -> dict[str, np.ndarray]:
    """Returns how arrays deviate on exported chips, `[chips, *shape]`.

    One chip is enough, except for arrays of few weights: these are exported separately,
    on as many chips as are needed to determine the strength.
    """
    found = {}
    nominal = paths.leaves(with_written(params, plan))
    chips = [w for w in plan.weights if w.hardware.frozen]
    small = {w.path: math.ceil(ENOUGH / math.prod(w.shape)) for w in chips}
    for count in sorted(set(small.values())):
        weights = tuple(w for w in chips if small[w.path] == count)
        own = {p for w in weights for p in (w.path, *map(w.leaf, w.leaves()))}
        made_of = {weight.stored for weight in weights if weight.derived}
        digital = tuple(entry for entry in plan.digital if entry.path in made_of)
        part = dataclasses.replace(plan, weights=weights, digital=digital)
        own |= made_of
        kept = paths.drop(params, own.__contains__)
        there = path.with_name(f"{path.name}_{count}")
        several = load(export(there, {"params": kept}, part, chip_seeds=range(count)))
        on_chips = [paths.leaves(several.chip(seed)) for seed in several.chip_seeds]
        for weight in weights:
            stacked = np.stack([leaves[weight.path] for leaves in on_chips])
            found[weight.path] = np.float32(stacked) - np.float32(nominal[weight.path])
    return found


def _stuck(
    weight: AnalogWeight, checkpoint: HardwareCheckpoint, changes: bool
) -> Finding:
    """Returns whether as many devices are stuck at each end as configured."""
    found = [
        device
        for seed in checkpoint.chip_seeds
        for row in checkpoint.conductances(weight.path, seed)
        for tile in row
        for device in tile.programmed.values()
    ]
    counted, expected, wrong = [], [], None
    for share, state, end in _shares(weight):
        at = [np.asarray(device.stuck) == state for device in found]
        count, total = sum(map(np.sum, at)), sum(map(np.size, at))
        counted.append(int(count))
        expected.append(share * total)
        # Five standard deviations, plus one device for rare states.
        margin = 5 * math.sqrt(share * (1 - share) * total) + 1
        if abs(count - share * total) > margin:
            wrong = f"{count} of {total} devices of the export are stuck at one end"
        elif not all((d.g_prog[a] == np.float32(end)).all() for d, a in zip(found, at)):
            wrong = "what is stuck in the export has other conductances than its end"
    if wrong is None and not changes and counted[0] > 0:
        wrong = "the weights of the chip are those without stuck devices"
    amount = f"{sum(counted)} devices of the export, {sum(expected):.3g} expected"
    return weight.path, "stuck", wrong, amount


def _frozen(
    weight: AnalogWeight,
    leaves: dict[str, Any],
    deviations: dict[str, np.ndarray],
    nominal: np.ndarray,
    chip: np.ndarray,
    later: np.ndarray,
) -> Iterator[Finding]:
    """Yields findings on the frozen effects of a chip, one for each effect.

    Args:
      weight: the weight's plan.
      leaves: the nominal leaves of the model.
      deviations: by name in `_parts`, deviations from the nominal weight, `[chips,
        *shape]`.
      nominal: the nominal weight.
      chip: the weight on a chip.
      later: the weight on a chip after a day.
    """
    whole = deviations["all"]

    def told(without: str) -> tuple[str, str | None]:
        change = whole - deviations.get(without, np.zeros_like(whole))
        size = np.sqrt(np.mean(change**2))
        # Conversion to conductances and back costs some rounding errors.
        if size > 1e-5 * np.sqrt(np.mean(nominal**2)):
            return f"changes weights by {size:.2g}", None
        same = "nominal weights" if without not in deviations else "the same without it"
        return "", f"the chip in the export has {same}"

    if _mismatched(weight):
        amount, wrong = told("no mismatch")
        if not wrong:
            alone = deviations.get("mismatch", whole)
            amount, wrong = _mismatch_strength(weight, leaves, nominal, alone)
        yield weight.path, "mismatch", wrong, amount
    if weight.hardware.noise_model is not None:
        without = "no noise_model" if weight.hardware.sticks else "mismatch"
        amount, wrong = told(without)
        yield weight.path, "noise_model", wrong, amount
        if not weight.hardware.noise_model.must_drift(DAY_S):
            return
        still = None if (later != chip).any() else "the chip is the same after a day"
        yield weight.path, "drift", still, "changes weights within a day"


def _mismatch_strength(
    weight: AnalogWeight,
    leaves: dict[str, Any],
    nominal: np.ndarray,
    deviation: np.ndarray,
) -> tuple[str, str | None]:
    """Returns the strength of a mismatch measured alone, and what is wrong with it."""
    mismatch: Any = weight.hardware.mismatch
    proof = WeightProof(
        mismatch,
        weight,
        jnp.asarray(nominal),
        weight.stored_scale(leaves),
        deviation,
        np.asarray,
        "the chip has the nominal weights",
        float(np.finfo(np.float32).eps),
    )
    mismatch.proof(proof)
    return proof.amount, proof.wrong
