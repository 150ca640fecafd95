"""Binary weights: NumPy, gradients, chips, proofs, export, and the preset of SRAM."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import hwtrain as hw
from hwtrain.checkpoint import verify
from hwtrain.weights.binary import BinaryWeights

ROWS, COLUMNS = 10, 6
TILES = {"max_input_size": 5, "max_output_size": 3}
X = jax.random.normal(jax.random.key(0), (4, ROWS))
W = np.random.default_rng(0).normal(size=(ROWS, COLUMNS)).astype(np.float32)
W[0, 0], W[1, 1] = 0.0, -0.0
IO = hw.IOParameters(out_bound=100.0)


def of_tiles(w, kind):
    """The largest weight of each one's tile or column, by NumPy."""
    largest = np.zeros_like(w)
    for rows in (slice(0, 5), slice(5, 10)):
        for columns in (slice(0, 3), slice(3, 6)):
            part = np.abs(w[rows, columns])
            axis = 0 if kind == "columns" else None
            largest[rows, columns] = part.max(axis, keepdims=True)
        if kind == "unscaled":
            largest[rows] = np.abs(w[rows]).max()
    return largest


MAPPINGS = {
    "tiles": {"weight_scaling_omega": 1.0},
    "columns": {"weight_scaling_omega": 1.0, "weight_scaling_columnwise": True},
    "half": {"weight_scaling_omega": 0.5},
    "unscaled": {},
}


def binary(kind="tiles", **parts):
    mapping = hw.MappingParameter(**TILES, **MAPPINGS[kind])
    return hw.Hardware(
        **{"modifier": BinaryWeights(), "mapping": mapping, "forward": IO, **parts}
    )


def seen(analog, params):
    """The weights that a layer multiplies by, from the outputs of single rows."""
    rngs = {"mismatch": jax.random.key(1)}
    return analog.apply({"params": params}, jnp.eye(ROWS), rngs=rngs)


@pytest.mark.parametrize("mode", ["train", "chip"])
@pytest.mark.parametrize("kind", MAPPINGS)
def test_weights_are_their_signs_times_the_largest(kind, mode):
    layer = nn.Dense(COLUMNS, use_bias=False)
    analog = hw.analogize(layer, binary(kind))
    analog = analog if mode == "train" else hw.chip_mode(analog)
    found = seen(analog, {"kernel": jnp.asarray(W)})
    signs = np.where(W < 0, -1.0, 1.0)  # zero, of either sign, is positive
    expected = signs * of_tiles(W, "tiles" if kind == "half" else kind)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    nominal = seen(hw.eval_mode(analog), {"kernel": jnp.asarray(W)})
    np.testing.assert_allclose(nominal, W, rtol=1e-6)


def test_cells_hold_one_exactly():
    """So that sums on the crossbar are whole numbers."""
    w = BinaryWeights()(None, W / np.abs(W).max(), jnp.ones(()))
    np.testing.assert_array_equal(np.abs(w), 1.0)


def test_the_gradient_is_that_of_the_weights_themselves():
    analog = hw.analogize(nn.Dense(COLUMNS, use_bias=False), binary())
    target = jax.random.normal(jax.random.key(2), (4, COLUMNS))

    def loss(kernel):
        return jnp.sum(analog.apply({"params": {"kernel": kernel}}, X) * target)

    found = jax.grad(loss)(jnp.asarray(W))
    np.testing.assert_allclose(found, X.T @ target, rtol=1e-4, atol=1e-5)


LAYERS = {
    "dense": (nn.Dense(COLUMNS), (4, ROWS)),
    "convolution": (nn.Conv(8, (3,), feature_group_count=2), (2, 6, 4)),
    "einsum": (nn.Einsum((4, 3, 5), "bi,ijk->bjk"), (2, 4)),
}


LONG = pytest.param("einsum", marks=pytest.mark.nightly)


@pytest.mark.parametrize("layer", ["dense", "convolution", LONG])
def test_it_is_on_and_proved(layer, monkeypatch):
    module, shape = LAYERS[layer]
    x = jax.random.normal(jax.random.key(0), shape)
    analog = hw.analogize(module, binary())
    variables = analog.init(jax.random.key(1), x)
    assert "modifier" in str(hw.assert_active(analog, variables, x))
    said = " ".join(str(hw.inspect(analog, variables, x)).split())
    assert "binary, signs alone (train, chip)" in said
    changes = {
        "nothing": lambda self, w, ctx: w,
        "zeros stay, signs at half": lambda self, w, ctx: jnp.sign(w) * ctx.w_max / 2,
    }
    for change in changes.values():
        monkeypatch.setattr(BinaryWeights, "on_weight", change)
        jax.clear_caches()
        with pytest.raises(ValueError, match="modifier"):
            hw.assert_active(analog, variables, x)
    jax.clear_caches()


@pytest.mark.parametrize("mode", ["train", "chip"])
def test_it_is_the_same_in_nnx(mode):
    model = nnx.Linear(ROWS, COLUMNS, use_bias=False, rngs=nnx.Rngs(0))
    model.kernel[...] = jnp.asarray(W)
    analog = hw.analogize(model, binary(), rngs=nnx.Rngs(mismatch=1))
    analog = analog if mode == "train" else hw.chip_mode(analog)
    signs = np.where(W < 0, -1.0, 1.0)
    expected = signs * of_tiles(W, "tiles")
    np.testing.assert_allclose(analog(jnp.eye(ROWS)), expected, rtol=1e-6)
    np.testing.assert_array_equal(model.kernel[...], W)


def test_mismatch_of_a_chip_comes_after(tmp_path):
    mismatch = hw.MismatchParameter(type="mult_normal", std_dev=0.1)
    analog = hw.analogize(nn.Dense(COLUMNS, use_bias=False), binary(mismatch=mismatch))
    params = {"kernel": jnp.asarray(W)}
    plan = hw.plan(analog, {"params": params}, X)
    path = hw.export(tmp_path / "chip", {"params": params}, plan, chip_seeds=(0, 1))
    verify(path)
    checkpoint = hw.load(path)
    np.testing.assert_array_equal(checkpoint.params["kernel"], W)
    signs = np.where(W < 0, -1.0, 1.0) * of_tiles(W, "tiles")
    relative = []
    for seed in (0, 1):
        chip = checkpoint.chip(seed)
        same = hw.apply_mismatch(params, plan, hw.chip_key(seed))
        jax.tree.map(np.testing.assert_array_equal, chip, same)
        read = seen(hw.chip_mode(analog), chip)
        np.testing.assert_allclose(read, chip["kernel"], rtol=1e-6)
        relative.append(chip["kernel"] / signs - 1)
    count = 2 * W.size
    assert abs(np.std(relative) / 0.1 - 1) < 5 / np.sqrt(2 * count)


def test_levels_are_fitted_to_the_mean_of_sizes():
    """The scale of least squared error of signs is the mean of absolute weights."""
    analog = hw.analogize(nn.Dense(COLUMNS, use_bias=False), binary())
    params = {"kernel": jnp.asarray(W)}
    plan = hw.plan(analog, {"params": params}, X)
    fitted = hw.fit_levels(params, plan, candidates=400)
    for rows in (slice(0, 5), slice(5, 10)):
        for columns in (slice(0, 3), slice(3, 6)):
            size = np.abs(np.asarray(fitted["kernel"])[rows, columns]).max()
            tile = np.abs(W[rows, columns])
            assert abs(size - tile.mean()) <= tile.max() / 400


def test_a_chip_has_other_modifiers_refused_by_its_checkpoint(tmp_path):
    chip = dataclasses.replace(hw.presets.sram_c3(), input_range=None)
    analog = hw.analogize(nn.Dense(COLUMNS), chip)
    variables = analog.init(jax.random.key(0), X)
    plan = hw.plan(analog, variables, X)
    path = hw.export(tmp_path / "chip", variables, plan, chip_seed=0)
    assert hw.load(path).plan["kernel"].hardware == chip


# --- The preset ---------------------------------------------------------------------

EDGES = np.arange(-58.5, 59, 13)
LEVELS = np.arange(-65, 66, 13)


def test_the_preset_is_the_macro_of_its_authors():
    """Partial sums of 256 rows, with their edges and levels, in NumPy."""
    rows, columns = 512, 64
    rng = np.random.default_rng(0)
    w = rng.normal(size=(rows, columns)).astype(np.float32)
    x = rng.integers(-1, 2, (50, rows)).astype(np.float32)
    # Without what is drawn: the noise, and the offsets, which eval_mode has at zero.
    quiet = dataclasses.replace(hw.presets.sram_c3().forward, out_noise=0.0, stages=())
    chip = dataclasses.replace(hw.presets.sram_c3(), forward=quiet)
    analog = hw.analogize(nn.Dense(columns, use_bias=False), chip)
    variables = {"params": {"kernel": jnp.asarray(w)}}
    params = hw.adopt(analog, variables["params"], x)
    params["input_range"] = jnp.ones_like(params["input_range"])
    found = analog.apply({"params": params}, x)
    expected = 0
    for tile in (slice(0, 256), slice(256, 512)):
        sums = x[:, tile] @ np.where(w[tile] < 0, -1, 1)
        scale = np.abs(w[tile]).max()
        expected += scale * LEVELS[(sums[..., None] > EDGES).sum(-1)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_preset_s_noise_and_offsets_change_as_many_codes_as_in_numpy():
    """Offsets drawn for a column, noise for a conversion, by NumPy's generator."""
    rows, columns, vectors = 256, 64, 200
    rng = np.random.default_rng(1)
    w = rng.choice([-1.0, 1.0], (rows, columns)).astype(np.float32)
    x = rng.choice([-1.0, 1.0], (vectors, rows)).astype(np.float32)
    analog = hw.analogize(nn.Dense(columns, use_bias=False), hw.presets.sram_c3())
    params = hw.adopt(analog, {"kernel": jnp.asarray(w)}, x)
    params["input_range"] = jnp.ones_like(params["input_range"])
    sums = x @ w
    ideal = (sums[..., None] > EDGES).sum(-1)
    draws = []
    for step in range(6):
        key = jax.random.key(step)
        y = analog.apply({"params": params}, x, rngs={"mismatch": key})
        draws.append(np.rint(np.asarray(y) / 13) + 5)
    found = np.stack(draws) - ideal
    edges = EDGES + rng.normal(0, 0.89, (40, 1, columns, 10))
    noisy = sums + rng.normal(0, 0.97, (40, *sums.shape))
    drawn = (noisy[..., None] > edges).sum(-1) - ideal
    for change in (1, -1):
        share, expected = np.mean(found == change), np.mean(drawn == change)
        # Draws of vectors share their offsets: those of 64 columns times 6 steps count.
        margin = 5 * np.sqrt(expected / (6 * columns * 10))
        assert abs(share - expected) < margin < 0.5 * expected
    assert np.mean(np.abs(found) > 1) <= np.mean(np.abs(drawn) > 1) + 1e-4


def test_chips_of_the_preset_differ_by_their_offsets_alone(tmp_path):
    chip = hw.presets.sram_c3()
    quiet = dataclasses.replace(chip.forward, out_noise=0.0)
    chip = dataclasses.replace(chip, forward=quiet)
    x = 3 * jnp.sign(jax.random.normal(jax.random.key(0), (64, 300)))
    analog = hw.analogize(nn.Dense(70), chip)
    variables = analog.init(jax.random.key(1), x)
    plan = hw.plan(analog, variables, x)
    path = hw.export(tmp_path / "chip", variables, plan, chip_seeds=(3, 4))
    verify(path)
    checkpoint = hw.load(path)
    read = hw.chip_mode(analog)
    rngs = {"mismatch": jax.random.key(5)}
    chips = [checkpoint.chip(seed) for seed in (3, 4)]
    np.testing.assert_array_equal(chips[0]["kernel"], chips[1]["kernel"])
    y = [read.apply({"params": params}, x, rngs=rngs) for params in chips]
    again = hw.apply_mismatch(variables["params"], plan, hw.chip_key(3))
    np.testing.assert_array_equal(y[0], read.apply({"params": again}, x, rngs=rngs))
    assert np.mean(y[0] != y[1]) > 0.02


def test_a_learned_clip_is_refused():
    clip = hw.WeightClipParameter(type="learnable_per_channel")
    with pytest.raises(ValueError, match="gives all weights of a tile one size"):
        hw.Hardware(modifier=BinaryWeights(), clip=clip)
