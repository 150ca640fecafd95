"""A checkpoint of Llama on disk, for a chip: `lm.py` with the weights of a file.

The environment variable `LLAMA` names a folder as Hugging Face writes it, with
`config.json`, and `model.safetensors` or several files with their index. `tokens.npy`
beside them is a text to train and to test on, in whole numbers, as the checkpoint's own
tokenizer returns them.
"""

import itertools
import json
import os
from pathlib import Path

import numpy as np
from flax import nnx

from hwtrain import train as training

Model, Sizes = (
    training.resolve(f"lm.py:{x}", Path(__file__).parent)
    for x in ("LanguageModel", "Sizes")
)

CONTEXT = 512
"""Tokens that a prediction may depend on; the whole text, if it is short."""

BATCH = 8
"""Windows of text in an update."""

NAMES = {
    "attention_norm/scale": "input_layernorm",
    "q/kernel": "self_attn/q_proj",
    "k/kernel": "self_attn/k_proj",
    "v/kernel": "self_attn/v_proj",
    "o/kernel": "self_attn/o_proj",
    "mlp_norm/scale": "post_attention_layernorm",
    "gate/kernel": "mlp/gate_proj",
    "up/kernel": "mlp/up_proj",
    "down/kernel": "mlp/down_proj",
}
"""Arrays of a block, and their names in the file."""


def folder() -> Path:
    """Returns the folder of the checkpoint."""
    if "LLAMA" not in os.environ:
        raise ValueError(
            "expected the environment variable LLAMA to name the folder of a "
            "checkpoint, with config.json, model.safetensors and tokens.npy"
        )
    return Path(os.environ["LLAMA"])


def sizes():
    """Returns the sizes that `config.json` states.

    Raises:
      ValueError: if the model is another one than `lm.py` computes.
    """
    path = folder() / "config.json"
    given = json.loads(path.read_text("utf-8"))
    others = {
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "partial_rotary_factor": 1.0,
        "quantization_config": None,
    }
    # Newer files have all of the rotations in one table.
    rope = given.get("rope_parameters") or given.get("rope_scaling") or {}
    stated = {**given, **rope}
    for name, known in others.items():
        if stated.get(name, known) != known:
            raise ValueError(
                f"{path}: expected {name} {known!r}, as lm.py computes it, got "
                f"{stated[name]!r}; change the model, or take another checkpoint"
            )
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise ValueError(
            f"{path}: expected rotations of the type 'default' or 'llama3', got "
            f"{kind!r}; change frequencies in lm.py, or take another checkpoint"
        )
    stretch = (
        *("factor", "low_freq_factor", "high_freq_factor"),
        "original_max_position_embeddings",
    )
    width, heads = given["hidden_size"], given["num_attention_heads"]
    return Sizes(
        vocabulary=given["vocab_size"],
        width=width,
        hidden=given["intermediate_size"],
        depth=given["num_hidden_layers"],
        heads=heads,
        groups=given.get("num_key_value_heads", heads),
        head=given.get("head_dim") or width // heads,
        tied=given.get("tie_word_embeddings", False),
        theta=rope.get("rope_theta", given.get("rope_theta", 10000.0)),
        stretch=tuple(rope[x] for x in stretch) if kind == "llama3" else None,
        epsilon=given.get("rms_norm_eps", 1e-6),
    )


def model(rngs: nnx.Rngs) -> nnx.Module:
    """Returns the model of these sizes."""
    return Model(sizes(), rngs)


def weights() -> dict[str, np.ndarray]:
    """Returns the arrays of the file by the names of the model.

    A weight of PyTorch is `[out, in]`, a kernel of Flax `[in, out]`, and the blocks are
    stacked, `[depth, in, out]`.
    """
    known, arrays = sizes(), training.read_arrays(folder())
    taken = set()

    def array(name: str) -> np.ndarray:
        name += "/weight"
        taken.add(name)
        if name not in arrays:
            raise ValueError(f"{folder()}: expected an array {name}, got none")
        return arrays[name]

    found = {
        "embed/embedding": array("model/embed_tokens"),
        "norm/scale": array("model/norm"),
    }
    for ours, theirs in NAMES.items():
        blocks = [array(f"model/layers/{n}/{theirs}") for n in range(known.depth)]
        for number, block in enumerate(blocks):
            if block.shape != blocks[0].shape:
                raise ValueError(
                    f"{folder()}: expected model/layers/{number}/{theirs}/weight of "
                    f"shape {blocks[0].shape}, as in the first block, got {block.shape}"
                )
        stacked = np.stack(blocks)
        found[f"blocks/{ours}"] = (
            stacked.swapaxes(-1, -2) if "kernel" in ours else stacked
        )
    if known.tied:
        # Some files hold it twice.
        taken.add("lm_head/weight")
    else:
        found["head/kernel"] = array("lm_head").T
    # Old files have the frequencies of the rotations too.
    left = arrays.keys() - taken
    left = sorted(x for x in left if not x.endswith("rotary_emb/inv_freq"))
    if left:
        raise ValueError(
            f"{folder()}: expected no arrays beside those of lm.py, got {left[:8]}"
        )
    return found


def data():
    """Returns functions of batches of tokens, `[8, 513]`; a tenth is held out."""
    path = folder() / "tokens.npy"
    tokens, vocabulary = np.load(path), sizes().vocabulary
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(
            f"{path}: expected [tokens] whole numbers, got {tokens.dtype} of shape "
            f"{tokens.shape}"
        )
    cut = len(tokens) * 9 // 10
    context = min(CONTEXT, len(tokens) - cut - 1)
    if context < 1 or tokens.min() < 0 or tokens.max() >= vocabulary:
        raise ValueError(
            f"{path}: expected twenty tokens or more, from 0 to {vocabulary - 1}, got "
            f"{len(tokens)} from {tokens.min()} to {tokens.max()}"
        )
    testing, window = tokens[cut:], np.arange(context + 1)

    def train(seed: int, start_step: int):
        for step in itertools.count(start_step):
            random = np.random.default_rng((seed, step))
            starts = random.integers(0, cut - context, BATCH)
            yield tokens[starts[:, None] + window].astype(np.int32)

    def evaluation():
        for start in range(0, len(testing) - context, context):
            yield testing[start + window][None].astype(np.int32)

    return train, evaluation
