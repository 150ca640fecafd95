"""A checkpoint of Llama, in the format of Hugging Face: loaded, tuned, exported."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import hwtrain as hw
from hwtrain import cli, train

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "llama.toml"
TOKENS = np.arange(12)[None] * 5 % 23

pytestmark = pytest.mark.usefixtures("forgotten_parts")


def recipe(name):
    return train.resolve(f"llama.py:{name}", ROOT / "recipes")


def in_numpy(arrays, config, tokens):
    """Returns the logits of a checkpoint in float64, as its paper describes it."""
    w = {name: np.asarray(x, np.float64) for name, x in arrays.items()}
    heads, width = config["num_attention_heads"], config["head_dim"]
    shared = heads // config["num_key_value_heads"]
    batch, length = tokens.shape

    def norm(x, name):
        mean = np.mean(x**2, axis=-1, keepdims=True)
        return x / np.sqrt(mean + config["rms_norm_eps"]) * w[f"{name}.weight"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T

    turns = []
    for pair in range(width // 2):
        turn = config["rope_theta"] ** (-2 * pair / width)
        if scaling := config.get("rope_scaling"):
            low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
            context = scaling["original_max_position_embeddings"]
            wavelength, slow = 2 * np.pi / turn, turn / scaling["factor"]
            if wavelength > context / low:
                turn = slow
            elif wavelength > context / high:
                part = (context / wavelength - low) / (high - low)
                turn = (1 - part) * slow + part * turn
        turns.append(turn)

    def rotated(x):
        # Components i and i + width / 2 are one complex number.
        half = width // 2
        z = x[..., :half] + 1j * x[..., half:]
        z *= np.exp(1j * np.arange(length)[:, None] * np.array(turns))[:, None]
        return np.concatenate([z.real, z.imag], axis=-1)

    x = w["model.embed_tokens.weight"][tokens]
    for number in range(config["num_hidden_layers"]):
        at = f"model.layers.{number}"
        y = norm(x, f"{at}.input_layernorm")
        q, k, v = (
            linear(y, f"{at}.self_attn.{one}_proj").reshape(batch, length, -1, width)
            for one in "qkv"
        )
        q, k = rotated(q), rotated(k)
        mixed = np.zeros_like(q)
        for b in range(batch):
            for head in range(heads):
                for now in range(length):
                    keys = k[b, : now + 1, head // shared]
                    scores = keys @ q[b, now, head] / np.sqrt(width)
                    share = np.exp(scores - scores.max())
                    values = v[b, : now + 1, head // shared]
                    mixed[b, now, head] = share / share.sum() @ values
        flat = mixed.reshape(batch, length, -1)
        x = x + linear(flat, f"{at}.self_attn.o_proj")
        y = norm(x, f"{at}.post_attention_layernorm")
        gate = linear(y, f"{at}.mlp.gate_proj")
        y = gate / (1 + np.exp(-gate)) * linear(y, f"{at}.mlp.up_proj")
        x = x + linear(y, f"{at}.mlp.down_proj")
    head = "model.embed_tokens" if config["tie_word_embeddings"] else "lm_head"
    return linear(norm(x, "model.norm"), head)


def model_of_file():
    """Returns the recipe's model in float32, with the weights of the file."""
    sizes = dataclasses.replace(recipe("sizes")(), dtype=np.float32)
    model = recipe("Model")(sizes, nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    params, report = train.initialised(params, recipe("weights")())
    assert not report.missing and not report.unused
    nnx.update(model, params)
    return model


STRETCHED = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    "changes, files",
    [
        ({}, 1),
        ({"tie_word_embeddings": True}, 2),
        ({"rope_scaling": STRETCHED, "rope_theta": 40.0}, 1),
    ],
    ids=["groups", "tied, in two files", "stretched"],
)
def test_logits_are_those_of_the_file(changes, files, tiny_llama):
    arrays, config = tiny_llama(changes, files)
    wanted = in_numpy(arrays, config, TOKENS)
    found = model_of_file()(TOKENS)
    assert np.std(wanted) > 0.3
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"model_type": "mistral"}, "expected model_type 'llama'"),
        ({"attention_bias": True}, "expected attention_bias False"),
        ({"rope_scaling": {"type": "yarn"}}, "got 'yarn'"),
        ({"partial_rotary_factor": 0.5}, "expected partial_rotary_factor 1.0, .*got 0"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config None"),
        ({"num_hidden_layers": 3}, "expected an array model/layers/2/"),
        ({"num_hidden_layers": 1}, "expected no arrays beside"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_another_checkpoint_is_refused(changes, said, tiny_llama):
    tiny_llama(changes, 1)
    with pytest.raises(ValueError, match=said):
        recipe("weights")()


def test_a_block_of_another_shape_is_named(tiny_llama):
    arrays, _ = tiny_llama({}, 1)
    name = "model.layers.1.mlp.up_proj.weight"
    rows, columns = arrays[name].shape
    cut = {**arrays, name: arrays[name][: rows // 2].copy()}
    save_file(cut, recipe("folder")() / "model.safetensors")
    said = rf"model/layers/1/mlp/up_proj/weight of shape \({rows}, {columns}\)"
    with pytest.raises(ValueError, match=rf"{said}.*got \({rows // 2}, {columns}\)"):
        recipe("weights")()


def kernels_of(arrays, name):
    """Returns the kernels of a linear layer of all blocks, `[depth, in, out]`."""
    return np.stack([arrays[f"model.layers.{n}.{name}.weight"].T for n in range(2)])


NAMES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "o": "self_attn.o_proj",
    "down": "mlp.down_proj",
}


@pytest.mark.nightly
@pytest.mark.optimised
def test_it_is_fine_tuned_and_exported(tiny_llama, tmp_path):
    arrays, _ = tiny_llama({}, 1)
    rate, out = 1e-4, tmp_path / "run"
    # No bound changes the weights, and Adam changes each by its rate at most.
    words = [
        *("training.steps=2", f"training.learning_rate={rate}", "hardware.clip='none'"),
        *("training.schedule='constant'", "training.optimizer='optax:adam'"),
    ]
    command = [word for each in words for word in ("--set", each)]
    assert cli.main(["train", str(CONFIG), *command, "--out", str(out)]) == 0
    checkpoint = hw.load(out / "export" / "seed_0")
    blocks = checkpoint.variables["params"]["blocks"]
    for ours, theirs in NAMES.items():
        moved = np.abs(np.asarray(blocks[ours]["kernel"]) - kernels_of(arrays, theirs))
        assert 0 < moved.max() < 2.1 * rate, ours
        assert checkpoint.plan[f"blocks/{ours}/kernel"].hardware.converter is not None
    report = json.loads((out / "results.json").read_text())["init_from"]
    assert len(report["loaded"]) == 12
    assert not report["missing"] and not report["unused"]


def test_an_untrained_export_holds_the_kernels_of_the_file(tiny_llama, tmp_path):
    arrays, _ = tiny_llama({}, 1)
    rules = [hw.Rule("blocks/.*", hw.presets.pcm())]
    analog = hw.analogize(model_of_file(), rules, rngs=nnx.Rngs(mismatch=0))
    hw.export(tmp_path / "chip", analog, chip_seed=0)
    stored = [
        array
        for file in (tmp_path / "chip" / "tensors").iterdir()
        for array in load_file(file).values()
    ]
    for theirs in NAMES.values():
        wanted = kernels_of(arrays, theirs)
        assert any(np.array_equal(array, wanted) for array in stored), theirs
