"""A chip evaluated from docs/checkpoint.md with NumPy alone, without hwtrain."""

import collections
import dataclasses
import hashlib
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from safetensors.numpy import load_file
from scipy.special import erfinv

import hwtrain as hw
from hwtrain.checkpoint import export, load
from hwtrain.periphery import ComparatorOffsets

SEED, ROWS, COLUMNS = 3, 17, 9
X = np.random.default_rng(0).normal(0, 1, (32, ROWS)).astype(np.float32)
TILES = {"max_input_size": 6, "max_output_size": 5, "weight_scaling_omega": 1.0}
MISMATCH = hw.MismatchParameter(type="add_normal", std_dev=0.1)
PAIR = hw.SinglePairConductanceConverter(g_max=25.0)


# --- The page, in NumPy -------------------------------------------------------------


def rounded(values, step):
    return step * np.round(values / step)  # NumPy rounds half to even


def resolution(forward, side):
    bits, res = forward[f"{side}_bits"], forward[f"{side}_res"]
    if bits is not None:
        return 1 / (2**bits - 2)
    return None if res is None else 1 / res if res > 1 else res


def dac(u, forward):
    res, bound = resolution(forward, "inp"), forward["inp_bound"]
    if res is not None:
        bound = 1.0 if bound is None else bound
        u = rounded(u, 2 * bound * res)
    return u if bound is None else np.clip(u, -bound, bound)


def management(u, forward, kind):
    """Returns a of each vector, `[batch, 1]`."""
    largest, threshold = np.abs(u).max(-1, keepdims=True), forward["nm_thres"]
    if kind == "abs_max":
        return np.minimum(largest, threshold) if threshold else largest
    if kind == "max":
        top = u.max(-1, keepdims=True)
        return np.where(top > 0, top, 1)
    if kind == "constant":
        return np.full_like(largest, threshold or 1)
    if kind == "abs_max_np_sum":
        sums = [np.maximum(sign * u, 0).sum(-1, keepdims=True) for sign in (1, -1)]
        worst = np.maximum(*sums) * forward["nm_assumed_wmax"] / forward["out_bound"]
        return np.maximum(largest, worst)
    return np.ones_like(largest)


def before_clipping(u, a, w, forward, spread):
    """Stages 2 to 12, without the clip of the ADC."""
    d = dac(u / a, forward)
    d = np.where(d < 0, (1 - forward["inp_asymmetry"]) * d, d)
    z, n = d @ w, len(w)
    if forward["ir_drop"]:
        q = n * (np.abs(d) @ np.abs(w)) / forward["ir_drop_g_ratio"]
        far = 1 - (1 - np.arange(n) / n) ** 2
        share = 0.5 * q - 0.2 * q**2 + 0.05 * q**3
        z = z - forward["ir_drop"] * share * ((far * d) @ w)
    rho, beta = forward["r_series"], forward["out_bound"]
    if forward["v_offset_std"] or rho:
        zero = -forward["v_offset_w_min"] * d.sum(-1, keepdims=True)
        v = np.maximum(forward["v_offset_std"] * spread("voltage_offset"), 0)
        z = (1 - v) * (z + zero) / (1 + rho * np.abs(z + zero)) - (
            (1 + v) * zero / (1 + rho * np.abs(zero))
        )
    if forward["out_nonlinearity"] or rho:
        each = forward["out_nonlinearity_std"] * spread("output_nonlinearity")
        eta = forward["out_nonlinearity"] * np.abs(1 + each)
        slope = (eta.mean() / beta + rho) * forward["slope_calibration"] * beta
        z = (1 + slope) ** 2 * z / (1 + eta * np.abs(z) / beta)
    z = np.where(z < 0, (1 - forward["out_asymmetry"]) * z, z)
    res = resolution(forward, "out")
    for stage in forward["stages"] or ():
        assert stage["type"] == "comparator_offsets"
        count, top = stage["steps"], stage["bound"]
        step = 2 * top / count
        passed = 0
        for k in range(count):
            offset = stage["offset_std"] * spread(f"comparator_offset_{k}")
            passed = passed + (z > -top + (k + 0.5) * step + offset)
        beyond = (z > top) & (passed == count) | (z < -top) & (passed == 0)
        z = np.where(beyond, z, -top + passed * step)
    return z if res is None else rounded(z, 2 * beta * res)


def tile_outputs(u, w, forward, dynamic, spread):
    kind = "abs_max" if dynamic else forward["noise_management"]
    a = management(u, forward, kind)
    silent, a = a == 0, np.where(a == 0, 1, a)
    beta, bounds = forward["out_bound"], forward["bound_management"]
    z = before_clipping(u, a, w, forward, spread)
    if bounds in ("iterative", "iterative_worst_case"):
        limit, res = forward["max_bm_factor"], resolution(forward, "inp")
        if res is not None:
            step = 2 * (forward["inp_bound"] or 1.0) * res
            limit = min(limit, forward["max_bm_res"] / step)
        worst = bounds == "iterative_worst_case"
        for trial in range(math.floor(math.log2(limit)) + 1 + worst):
            clips = (np.abs(z) > beta * (1 + 1e-6)).any(-1, keepdims=True)
            more = (
                management(u, forward, "abs_max_np_sum")
                if worst and not trial
                else 2 * a
            )
            a = np.where(clips, more, a)
            z = before_clipping(u, a, w, forward, spread)
    if beta is not None:
        z = np.clip(z, -beta, beta)
    return np.where(silent, 0, a * z)


def threefry(key, x):
    """Threefry-2x32 of 20 rounds, of Salmon et al. 2011."""
    key = [np.uint32(word) for word in key]
    keys = [*key, key[0] ^ key[1] ^ np.uint32(0x1BD11BDA)]
    x = [np.asarray(word, np.uint32) for word in x]
    with np.errstate(over="ignore"):
        x = [word + k for word, k in zip(x, keys)]
        for block in range(5):
            for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[block % 2]:
                x[0] = x[0] + x[1]
                turned = (x[1] << np.uint32(turn)) | (x[1] >> np.uint32(32 - turn))
                x[1] = turned ^ x[0]
            x[0] = x[0] + keys[(block + 1) % 3]
            x[1] = x[1] + keys[(block + 2) % 3] + np.uint32(block + 1)
    return x


def named(text):
    digest = hashlib.blake2s(text.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def spread_of(layer, effect, shape):
    key = [0, SEED]
    for number in (named(f"{layer}#frozen_periphery#0"), 0, named(f"#{effect}#0")):
        key = [int(word) for word in threefry(key, [0, number])]
    counter = np.arange(math.prod(shape), dtype=np.uint32)
    high, low = threefry(key, [np.zeros_like(counter), counter])
    unit = ((high ^ low) >> np.uint32(9)) * 2.0**-23  # [0, 1)
    return (np.sqrt(2) * erfinv(np.maximum(2 * unit - 1, -1 + 2.0**-24))).reshape(shape)


def weights_at(converter, devices, tile):
    def of(name):
        return tile[name].astype(np.float64)

    if converter["type"] == "single_device":
        return of("min") + (devices["g"] - converter["g_min"]) / of("scale_ratio")
    return (devices["g_pos"] - devices["g_neg"]) / of("scale_ratio")


def conductance(model, device, t_s):
    """Returns the conductance of a device at a time, without read noise."""
    if model["type"] == "reram_wan2022":
        a = device[""] / model["g_max"]
        spread = [
            np.maximum(np.polynomial.polynomial.polyval(a, c), 0)
            for c in (
                (0.348, 16.030, -43.853, 45.393, -16.815),
                (0.701, 22.086, -50.773, 47.095, -16.458),
                (0.782, 20.274, -43.507, 37.062, -11.934),
            )
        ]
        at = np.log([1.0, 86_400.0, 172_800.0])
        log_t = np.clip(np.log(max(t_s, 1.0)), at[0], at[2])
        one = int(log_t > at[1])
        part = (log_t - at[one]) / (at[one + 1] - at[one])
        sigma = (1 - part) * spread[one] + part * spread[one + 1]
        sigma *= model["noise_scale"] * model["g_max"] / model["coeff_g_max_reference"]
        return np.maximum(device[""] + sigma * device["xi"], 0)
    if model["type"] == "reram_cmo":
        log_t = np.log(max(t_s, 1.0))
        moved = -0.08900206 * log_t + (0.04201137 * log_t + 0.41183342) * device["xi"]
        moved = device["g_prog"] + model["drift_scale"] * moved
        return np.clip(moved, model["g_min"], model["g_max"])
    return device["g_prog"] * ((t_s + model["t_0"]) / model["t_0"]) ** -device["nu"]


class Files:
    """The files of an exported Dense layer named `layer`, and of its chip."""

    def __init__(self, directory):
        manifest = json.loads((directory / "manifest.json").read_text("utf-8"))
        (self.entry,) = manifest["layers"]
        (chip,) = manifest["chips"]
        self.hardware = self.entry["weight"]["hardware"]
        self.nominal = load_file(directory / self.entry["file"])
        self.chip = load_file(directory / chip["files"]["layer/kernel"])

    def leaf(self, name, default=None):
        return self.nominal.get(f"nominal/params/layer/{name}", default)

    def tiles(self):
        row = 0
        for i, rows in enumerate(self.entry["row_sizes"]):
            column = 0
            for j, columns in enumerate(self.entry["column_sizes"]):
                yield i, j, slice(row, row + rows), slice(column, column + columns)
                column += columns
            row += rows

    def scale(self, i, j, at):
        """Returns s of a tile, broadcastable over its columns."""
        if self.hardware.get("converter") is not None:
            return self.nominal[f"tile/{i}/{j}/mapping_scale"].astype(np.float64)
        stored = self.leaf("mapping_scale")
        if stored is not None:
            each = stored.shape[-1] == sum(self.entry["column_sizes"])
            return stored[i, at[1]] if each else stored[i, j]
        mapping = self.hardware.get("mapping")
        if not mapping["weight_scaling_omega"]:
            return 1.0
        axis = 0 if mapping["weight_scaling_columnwise"] else None
        tile = np.abs(self.nominal["nominal/params/layer/kernel"][at])
        return tile.max(axis) / mapping["weight_scaling_omega"]

    def weights(self, i, j, at, t_s):
        """Returns the crossbar weights of a tile of the chip, and α."""
        if t_s is None:
            return self.chip["kernel"][at] / self.scale(i, j, at), 1.0
        name = f"tile/{i}/{j}/"
        tile = {k.removeprefix(name): v for k, v in self.nominal.items()}
        devices, fresh = {}, {}
        for g in ("g", "g_pos", "g_neg"):
            fields = ("", "g_prog", "nu", "xi", "stuck")
            found = {x: self.chip.get(f"{name}{g}/{x}".rstrip("/")) for x in fields}
            if found[""] is None:
                continue
            model, converter = (
                self.hardware.get("noise_model"),
                self.hardware.get("converter"),
            )
            devices[g] = conductance(model, found, t_s)
            if found["stuck"] is not None:
                ends = {1: converter["g_min"], 2: converter["g_max"]}
                for state, end in ends.items():
                    devices[g] = np.where(found["stuck"] == state, end, devices[g])
            fresh[g] = found["g_prog"]
        w = weights_at(self.hardware.get("converter"), devices, tile)
        compensation = self.hardware.get("drift_compensation")
        if compensation is None:
            return w, 1.0
        exact = compensation["type"] == "global_exact_reference"
        targets = {g: tile[g] for g in devices}
        first = weights_at(
            self.hardware.get("converter"), targets if exact else fresh, tile
        )
        before = first if exact else self.answers(first, compensation)
        sizes = [max(self.entry[f"{axis}_sizes"]) for axis in ("row", "column")]
        axis, count = None, sizes[0] * sizes[1]
        if compensation["type"] == "per_column":
            axis, count = 0, sizes[0]
        reads = (before, self.answers(w, compensation))
        mean = [np.maximum(np.abs(read).sum(axis) / count, 1e-4) for read in reads]
        return w, mean[0] / mean[1]

    def answers(self, w, compensation):
        """Returns the outputs of a tile when its rows are driven one after the
        other."""
        forward = self.hardware.get("forward")
        if forward is None or compensation["readout"] == "exact":
            return w
        forward = collections.defaultdict(lambda: None, forward)
        return tile_outputs(np.eye(len(w)), w, forward, False, None)

    def outputs(self, x, t_s=None):
        forward = self.hardware.get("forward")
        if forward is not None:  # options that are not written are off
            forward = collections.defaultdict(lambda: None, forward)
        ranges, dynamic = self.leaf("input_range"), False
        if self.hardware.get("input_range") is not None:
            dynamic = self.hardware["input_range"]["dynamic"]
        o = self.leaf("output_scale")
        y = np.zeros((len(x), sum(self.entry["column_sizes"])))
        y += self.leaf("bias")
        grid = (len(self.entry["row_sizes"]), len(self.entry["column_sizes"]))
        for i, j, rows, columns in self.tiles():
            part, r = x[:, rows].astype(np.float64), 1.0
            if ranges is not None:
                r = np.float64(ranges[i, j])
                if forward is None or forward["noise_management"] != "average_abs_max":
                    part = np.clip(part, -r, r)
            factor = 1.0 if o is None else o[i, columns] if o.shape[1] > 1 else o[i]
            w, alpha = self.weights(i, j, (rows, columns), t_s)
            s = self.scale(i, j, (rows, columns)) * alpha
            if forward is None:
                y[:, columns] += factor * (part @ w) * s
                continue

            def spread(effect, i=i, j=j, width=columns.stop - columns.start):
                shape = (*grid, max(self.entry["column_sizes"]))
                return spread_of("layer", effect, shape)[i, j, :width]

            z = tile_outputs(part / r, w, forward, dynamic, spread)
            y[:, columns] += factor * s * r * forward["out_scale"] * z
        return y


# --- Against what hwtrain computes --------------------------------------------------

BITS = {"inp_bits": 5, "out_bits": 6, "out_bound": 3.0}
RANGE = {"input_range": hw.InputRangeParameter()}
FORWARD = {
    "converters": {**BITS},
    "resolutions": {"inp_res": 14, "inp_bound": 0.8, "out_res": 0.03, "out_bound": 2.0},
    "clips": {"inp_bound": 0.7, "out_bound": 1.5},
    "asymmetry": {**BITS, "inp_asymmetry": 0.2, "out_asymmetry": 0.1, "out_scale": 1.5},
    "ir drop": {"ir_drop": 1.0, "ir_drop_g_ratio": 40.0},
    "series": {
        **BITS,
        "r_series": 0.05,
        "slope_calibration": 0.3,
        "v_offset_w_min": -0.4,
    },
    "offsets": {**BITS, "v_offset_std": 0.2, "v_offset_w_min": -0.3},
    "saturation": {
        "out_bound": 3.0,
        "out_nonlinearity": 0.5,
        "out_nonlinearity_std": 0.3,
        "slope_calibration": 0.2,
    },
    "abs_max": {**BITS, "noise_management": "abs_max", "nm_thres": 1.2},
    "max": {**BITS, "noise_management": "max"},
    "constant": {**BITS, "noise_management": "constant", "nm_thres": 1.7},
    "np_sum": {**BITS, "noise_management": "abs_max_np_sum", "nm_assumed_wmax": 0.9},
    # With 30 steps, half of a clipped input would lie halfway between two levels, where
    # the last bit of float32 decides.
    "iterative": {
        "inp_res": 32,
        "out_bits": 6,
        "out_bound": 0.7,
        "bound_management": "iterative",
    },
    "worst case": {
        **BITS,
        "out_bound": 0.4,
        "bound_management": "iterative_worst_case",
        "max_bm_factor": 16.0,
    },
}
SETTINGS = {
    **{
        name: hw.Hardware(
            forward=hw.IOParameters(**forward),
            mapping=hw.MappingParameter(**TILES),
            mismatch=MISMATCH,
            converter=PAIR,
            **({} if name in ("abs_max", "max", "np_sum") else RANGE),
        )
        for name, forward in FORWARD.items()
    },
    "dynamic range": hw.Hardware(
        forward=hw.IOParameters(**BITS),
        mapping=hw.MappingParameter(**TILES),
        input_range=hw.InputRangeParameter(dynamic=True),
        mismatch=MISMATCH,
    ),
    "average": hw.Hardware(
        forward=hw.IOParameters(**BITS, noise_management="average_abs_max"),
        mapping=hw.MappingParameter(**TILES),
        mismatch=MISMATCH,
    ),
    "columns": hw.Hardware(
        forward=hw.IOParameters(**BITS),
        mapping=hw.MappingParameter(**TILES, weight_scaling_columnwise=True),
        mismatch=MISMATCH,
        **RANGE,
    ),
    "stored scale, learned outputs": hw.Hardware(
        forward=hw.IOParameters(**BITS),
        clip=hw.WeightClipParameter(type="fixed_value", fixed_value=1.0),
        mapping=hw.MappingParameter(
            **TILES, learn_out_scaling=True, out_scaling_columnwise=True
        ),
        mismatch=MISMATCH,
        **RANGE,
    ),
    "no periphery": hw.Hardware(
        mapping=hw.MappingParameter(**TILES, learn_out_scaling=True),
        mismatch=MISMATCH,
        converter=PAIR,
        **RANGE,
    ),
    "comparators": hw.Hardware(
        forward=hw.IOParameters(
            out_res=10.0,
            out_bound=2.0,
            stages=(ComparatorOffsets(bound=2.0, steps=10, offset_std=0.2),),
        ),
        mapping=hw.MappingParameter(**TILES),
        **RANGE,
    ),
    "sram": dataclasses.replace(
        hw.presets.sram_c3(),
        forward=hw.IOParameters(
            inp_bits=2,
            out_res=4.0,
            out_bound=2.6,
            stages=(ComparatorOffsets(bound=2.6, steps=4, offset_std=0.5),),
        ),
        mapping=hw.MappingParameter(**TILES),
    ),
    "no scale": hw.Hardware(
        forward=hw.IOParameters(**BITS),
        mapping=hw.MappingParameter(**{**TILES, "weight_scaling_omega": 0.0}),
        mismatch=MISMATCH,
    ),
}


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        bias = nn.initializers.normal(0.5)
        return nn.Dense(COLUMNS, name="layer", bias_init=bias)(x)


def exported(hardware, path):
    """Returns the analog model and its checkpoint; its leaves tell tiles apart."""
    analog = hw.analogize(Model(), hardware)
    variables = analog.init(jax.random.key(1), X)
    layer = variables["params"]["layer"]
    draw = np.random.default_rng(1)
    for name in ("input_range", "output_scale"):
        if name in layer:
            values = draw.uniform(0.8, 2.0, layer[name].shape)
            layer[name] = jnp.asarray(values, jnp.float32)
    plan = hw.plan(analog, variables, X)
    return analog, load(export(path, variables, plan, chip_seed=SEED))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", SETTINGS)
def test_a_chip_is_computed_from_its_files_by_the_page(name, tmp_path):
    analog, checkpoint = exported(SETTINGS[name], tmp_path / "chip")
    rngs = {"mismatch": jax.random.key(0)}
    params = {"params": checkpoint.chip(SEED)}
    expected = hw.chip_mode(analog).apply(params, X, rngs=rngs)
    found = Files(tmp_path / "chip").outputs(X)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


MODELS = {
    "pcm_like": hw.PCMLikeNoiseModel(),
    "custom_drift_pcm_like": hw.CustomDriftPCMLikeNoiseModel(
        g_lst=(0.0, 25.0), nu_mean_lst=(0.1, 0.05), nu_std_lst=(0.04, 0.01)
    ),
    "state_independent": hw.StateIndependentNoiseModel(),
    "hermes": hw.HermesNoiseModel(),
    "reram_wan2022": hw.ReRamWan2022NoiseModel(),
    "reram_cmo": hw.ReRamCMONoiseModel(),
    "measured": hw.MeasuredNoiseModel(
        g_max=25.0,
        g_lst=(0.0, 25.0),
        sigma_lst=(0.5, 1.0),
        nu_mean_lst=(0.01, 0.05),
        nu_std_lst=(0.02, 0.01),
        read_level_lst=(0.01, 0.02),
    ),
}
COMPENSATIONS = {
    "none": None,
    "global": hw.GlobalDriftCompensation(readout="exact"),
    "exact": hw.GlobalDriftCompensationWithExactReference(readout="exact"),
    "columns": hw.PerColumnDriftCompensation(readout="exact"),
}


TIMES = [(name, t_s, "none") for name in MODELS for t_s in (0.0, 3600.0, 1e5, 1e8)]
TIMES += [("pcm_like", 1e5, name) for name in COMPENSATIONS if name != "none"]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("name", "t_s", "compensation"), TIMES)
def test_weights_at_a_time_follow_from_the_files_by_the_page(
    name, t_s, compensation, tmp_path
):
    model = MODELS[name]
    single = name == "reram_cmo"
    kind = (
        hw.SingleDeviceConductanceConverter
        if single
        else hw.SinglePairConductanceConverter
    )
    hardware = hw.Hardware(
        mapping=hw.MappingParameter(**TILES),
        converter=kind(g_max=model.g_max, g_min=getattr(model, "g_min", 0.0)),
        noise_model=model,
        stuck=hw.StuckParameter(at_g_min=0.05, at_g_max=0.05),
        drift_compensation=COMPENSATIONS[compensation],
    )
    _, checkpoint = exported(hardware, tmp_path / "chip")
    expected = checkpoint.chip(SEED, t_s=t_s)["layer"]["kernel"]
    files = Files(tmp_path / "chip")
    found = np.zeros((ROWS, COLUMNS))
    for i, j, *at in files.tiles():
        w, alpha = files.weights(i, j, tuple(at), t_s)
        found[tuple(at)] = w * alpha * files.scale(i, j, at)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


SCALES = {
    "tiles": {},
    "columns": {"weight_scaling_columnwise": True},
    "none": {"weight_scaling_omega": 0.0},
    "stored": {},
}
KINDS = (
    hw.GlobalDriftCompensation,
    hw.GlobalDriftCompensationWithExactReference,
    hw.PerColumnDriftCompensation,
)


@pytest.mark.sampled
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("readout", ["exact", "periphery"])
def test_drift_is_compensated_behind_the_adc(scale, kind, readout, tmp_path):
    # Strong drift, and an ADC of 13 levels: in front of it the factor would show.
    hardware = hw.Hardware(
        converter=PAIR,
        noise_model=hw.PCMLikeNoiseModel(drift_scale=3.0),
        forward=hw.IOParameters(inp_bits=5, out_bits=4, out_bound=2.0),
        drift_compensation=kind(readout=readout),
        mapping=hw.MappingParameter(**{**TILES, **SCALES[scale]}),
        clip=hw.WeightClipParameter(type="fixed_value", fixed_value=1.0)
        if scale == "stored"
        else None,
        **RANGE,
    )
    t_s = 1e7
    analog, checkpoint = exported(hardware, tmp_path / "chip")
    params = checkpoint.chip(SEED, t_s=t_s)
    rngs = {"mismatch": jax.random.key(0)}
    expected = hw.chip_mode(analog).apply({"params": params}, X, rngs=rngs)
    found = Files(tmp_path / "chip").outputs(X, t_s)
    # Sums halfway between two levels may fall to either side.
    equal = np.isclose(found, expected, rtol=2e-5, atol=2e-5)
    assert equal.mean() > 0.98
    nominal = checkpoint.variables["params"]
    plan = checkpoint.plan
    chip = hw.program_chip(nominal, plan, hw.chip_key(SEED)).at(t_s)
    for path, leaf in jax.tree_util.tree_leaves_with_path(chip):
        again = dict(jax.tree_util.tree_leaves_with_path(params))[path]
        np.testing.assert_allclose(leaf, again, rtol=1e-5, atol=1e-6)
