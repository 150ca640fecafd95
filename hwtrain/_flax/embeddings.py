"""Embeddings, shared by Linen's and NNX's Embed."""

from collections.abc import Mapping

import jax

from hwtrain._flax.signal_side import Product, analog_matmul
from hwtrain._plan.layer import Layer, LayerWeight
from hwtrain._plan.weight import AnalogWeight

LEAF = "embedding"


def describe(num_embeddings: int, features: int) -> Layer:
    """Returns the description of an embedding for the plan.

    It is stored as `attend` multiplies by it: its features are rows and its tokens
    columns. A look-up reads a token's column; it has no periphery.

    Args:
      num_embeddings: number of tokens.
      features: length of an embedding.
    """
    weight = LayerWeight(
        leaf=LEAF, shape=(num_embeddings, features), rows=(1,), columns=(0,)
    )
    return Layer(
        weights=(weight,),
        by_rule=True,
        no_inputs=(
            "its call looks up and has no inputs to learn from, and attend, which "
            "multiplies, takes its inputs as they come. For attend, "
            "InputRangeParameter(dynamic=True), or noise_management='abs_max' in "
            "IOParameters, follow each input"
        ),
    )


def attend(
    weight: AnalogWeight,
    mode: str,
    leaves: Mapping[str, jax.Array],
    query: jax.Array,
    embedding: jax.Array,
    product: Product = Product(),  # noqa: B008 an immutable value
) -> jax.Array:
    """Returns `query @ embedding.T` as computed by the hardware.

    Args:
      weight: the plan of the embedding.
      mode: the mode.
      leaves: the leaves beside the embedding in this step, as in `names_beside`.
      query: `[..., features]`.
      embedding: `[tokens, features]`.
      product: the product to use.
    """
    return analog_matmul(weight, mode, leaves, query, embedding.T, product)
