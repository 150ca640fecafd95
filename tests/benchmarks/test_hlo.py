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
    "function, written",
    [
        (lambda w: w + 1, ROWS * COLUMNS),
        (lambda w: jnp.tanh(w * w) + w, ROWS * COLUMNS),
        (lambda w: jnp.max(w, axis=0), COLUMNS),
    ],
    ids=["copy", "chain", "reduction"],
)
def test_a_pass_reads_and_writes_its_arrays_once(script, function, written):
    found = counted(script, function, W)
    # A reduction also reads its initial value of four bytes.
    assert found.weights.read == pytest.approx(4 * ROWS * COLUMNS, abs=4)
    assert found.weights.written == 4 * written
    assert found.activations == (0, 0) and found.operations == 0


def test_activations_are_told_by_the_batch(script):
    found = counted(script, lambda x: x + 1, X)
    assert found == (0, (0, 0), (4 * BATCH * ROWS, 4 * BATCH * ROWS))


def test_a_slice_is_read_alone(script):
    found = counted(script, lambda w: w[:8] + 1, W)
    assert found.weights == (4 * 8 * COLUMNS, 4 * 8 * COLUMNS)


def test_a_product_and_a_pass_are_told_apart(script):
    found = counted(script, lambda x, w: (x @ jnp.sin(w), w + 1), X, W)
    assert found.operations == 2 * BATCH * ROWS * COLUMNS
    # sin(w) and w + 1 share one read, or have one each.
    assert found.weights.read in (4 * ROWS * COLUMNS, 8 * ROWS * COLUMNS)
    assert found.weights.written == 8 * ROWS * COLUMNS
    assert found.activations == (0, 0)


def test_small_arrays_do_not_make_weights_activations(script):
    found = counted(script, lambda w, k: w * k[0] + k[1], W, (3,))
    assert found.weights.written == 4 * ROWS * COLUMNS
    assert found.activations == (0, 0)


def test_a_power_of_two_tells_no_activations(script):
    with pytest.raises(ValueError, match="not 64: take 48"):
        counted(script, lambda x: x + 1, X, batch=64)
