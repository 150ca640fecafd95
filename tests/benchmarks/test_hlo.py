"""What compiled programs do, against counts by hand."""

import jax
import jax.numpy as jnp
import pytest

pytestmark = pytest.mark.optimised

# Three is no factor of a weight's size.
BATCH, ROWS, COLUMNS = 12, 32, 64
X, W = (BATCH, ROWS), (ROWS, COLUMNS)


def counted(script, function, *shapes, batch=BATCH):
    given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    text = jax.jit(function).lower(*given).compile().as_text()
    return script("hlo").traffic(text, batch)


@pytest.mark.parametrize(
    "function, shapes",
    [
        (lambda x, w: x @ w, (X, W)),
        (lambda y, w: y @ w.T, ((BATCH, COLUMNS), W)),
        (lambda x, y: x.T @ y, (X, (BATCH, COLUMNS))),
        (lambda x, w: jnp.tanh(x @ w) + 1, (X, W)),
    ],
    ids=["outputs", "gradients of inputs", "gradients of weights", "and more"],
)
def test_a_product_multiplies_and_adds(script, function, shapes):
    assert counted(script, function, *shapes).operations == 2 * BATCH * ROWS * COLUMNS


def test_tiles_count_as_a_whole_product(script):
    found = counted(
        script, lambda x, w: x @ w, (4, BATCH, ROWS // 2), (4, ROWS // 2, COLUMNS // 2)
    )
    assert found.operations == 2 * BATCH * ROWS * COLUMNS


@pytest.mark.parametrize(
    "function, arrays",
    [
        (lambda w: w + 1, 2),
        (lambda w: jnp.tanh(w * w) + w, 2),
        (lambda w: jnp.max(w, axis=0, keepdims=True), 1 + 1 / ROWS),
    ],
    ids=["copy", "chain", "read"],
)
def test_a_pass_reads_and_writes_its_arrays_once(script, function, arrays):
    found = counted(script, function, W)
    # A reduction also reads its initial value of four bytes.
    assert found.weight_bytes == pytest.approx(arrays * 4 * ROWS * COLUMNS, abs=4)
    assert found.activation_bytes == found.operations == 0


def test_activations_are_told_by_the_batch(script):
    found = counted(script, lambda x: x + 1, X)
    assert found == (0, 0, 2 * 4 * BATCH * ROWS)


def test_a_slice_is_read_alone(script):
    found = counted(script, lambda w: w[:8] + 1, W)
    assert found.weight_bytes == 2 * 4 * 8 * COLUMNS


def test_a_product_and_a_pass_are_told_apart(script):
    found = counted(script, lambda x, w: (x @ jnp.sin(w), w + 1), X, W)
    assert found.operations == 2 * BATCH * ROWS * COLUMNS
    # sin(w) and w + 1 share one read, or have one each.
    assert found.weight_bytes in (3 * 4 * ROWS * COLUMNS, 4 * 4 * ROWS * COLUMNS)
    assert found.activation_bytes == 0


def test_a_power_of_two_tells_no_activations(script):
    with pytest.raises(ValueError, match="not 64: take 48"):
        counted(script, lambda x: x + 1, X, batch=64)
