"""The place of a read: the mechanism alone, in JAX's loops, maps and cached traces.

`test_places.py` tests that layers of both frameworks take their keys from it.
"""

import functools
import inspect
import threading
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.lax import scan as scan_by_value

from hwtrain._flax import loops

STEPS, WIDTH = 6, 4
X, ZERO = jnp.zeros((STEPS, WIDTH)), jnp.zeros(WIDTH)
V = jnp.linspace(-1, 1, STEPS * WIDTH).reshape(STEPS, WIDTH)
lax = jax.lax


def noisy(x, name="layer"):
    """Adds a number between 1 and 2 that differs from place to place."""
    call, indices = loops.place(name)
    number = jnp.uint32(2654435769)
    for index in (call, *indices):
        number = (number ^ jnp.uint32(index)) * jnp.uint32(2654435761)
        number = number ^ (number >> jnp.uint32(15))
    return x + (1 + (number >> jnp.uint32(9)).astype(x.dtype) * 2.0**-23)


def drawn(x, name="layer"):
    """Adds standard normal noise."""
    call, indices = loops.place(name)
    key = jax.random.key(3)
    with loops.shared():
        for number in (call, *indices):
            key = jax.random.fold_in(key, number)
        return x + jax.random.normal(key, x.shape, x.dtype)


# Before the loops are redirected: an import by value, a function already mapped.
mapped_before = jax.vmap(noisy)


@pytest.fixture(autouse=True, scope="module")
def _installed():
    loops.install()


def root(function):
    return functools.partial(loops.as_root, function)


def run(function, *args):
    return jax.jit(root(function))(*args)


def steps(function, count=STEPS):
    return lax.scan(lambda c, x: (c, function(x)), 0, jnp.zeros((count, WIDTH)))[1]


def rows(*outputs):
    return jnp.concatenate([y.reshape(-1, WIDTH) for y in outputs])


def differ(*outputs):
    """Whether no two rows are alike, and all of them have noise."""
    y = np.asarray(rows(*outputs))
    return len(np.unique(y, axis=0)) == len(y) and bool((np.abs(y).min(1) > 0).all())


def filled(loop):
    return loop(lambda i, buffer: buffer.at[i].set(noisy(ZERO)), X)


def while_loop(put, buffer):
    def body(carry):
        return carry[0] + 1, put(*carry)

    return lax.while_loop(lambda c: c[0] < STEPS, body, (0, buffer))[1]


LOOPS = {
    "scan": lambda: steps(noisy),
    "scan by value": lambda: scan_by_value(lambda c, x: (c, noisy(x)), 0, X)[1],
    "scan reversed": lambda: lax.scan(lambda c, x: (c, noisy(x)), 0, X, reverse=True)[
        1
    ],
    # The carry is weak at first, so that the body is traced twice.
    "scan unrolled": lambda: lax.scan(
        lambda c, x: (c * jnp.float32(2), noisy(x)), 1.0, X, unroll=2
    )[1],
    "scan of a length": lambda: lax.scan(
        lambda c, _: (c, noisy(ZERO)), 0, None, length=STEPS
    )[1],
    "while_loop": lambda: filled(while_loop),
    "fori_loop": lambda: filled(lambda put, b: lax.fori_loop(0, STEPS, put, b)),
    "fori_loop of traced bounds": lambda: filled(
        lambda put, b: lax.fori_loop(0, jnp.asarray(STEPS), put, b)
    ),
    "map": lambda: lax.map(noisy, X),
    "map in batches": lambda: lax.map(noisy, X, batch_size=4),
    "vmap": lambda: jax.vmap(noisy)(X),
    "vmap of nothing": lambda: jax.vmap(lambda i: noisy(ZERO), axis_name="rows")(X),
    "vmap of some axes": lambda: (
        jax.vmap(lambda a, b, k: noisy(a + b["c"] + k), (1, None), 1)(
            X.T, {"c": ZERO}, k=X
        ).T
    ),
    "vectorize": lambda: jnp.vectorize(noisy, signature="(n)->(n)")(X),
    "vmap made before": lambda: mapped_before(X),
    "vmap of vmap": lambda: jax.vmap(jax.vmap(noisy))(jnp.zeros((3, 5, WIDTH))),
    "vmap of jit of vmap": lambda: jax.vmap(jax.jit(jax.vmap(noisy)))(
        jnp.zeros((3, 5, WIDTH))
    ),
    "scan in vmap": lambda: jax.vmap(lambda i: steps(noisy))(jnp.arange(3)),
    "vmap in scan in scan": lambda: lax.scan(
        lambda c, x: (c, steps(lambda _: jax.vmap(noisy)(X))), 0, None, 3
    )[1],
    "vmap in remat of a scan in vmap": lambda: jax.vmap(
        jax.checkpoint(lambda x: steps(lambda _: jax.vmap(noisy)(x)))
    )(jnp.zeros((3, 5, WIDTH))),
    "cond in scan": lambda: lax.scan(
        lambda c, i: (c, lax.cond(i > 2, noisy, lambda x: noisy(x), ZERO)),
        0,
        jnp.arange(STEPS),
    )[1],
    "two loops": lambda: rows(steps(noisy), steps(noisy), filled(while_loop)),
}


@pytest.mark.parametrize("loop", LOOPS)
def test_no_two_steps_or_rows_draw_the_same(loop):
    assert differ(run(LOOPS[loop]))


@pytest.mark.parametrize("loop", LOOPS)
def test_draws_are_those_of_the_key_not_of_the_values(loop):
    np.testing.assert_array_equal(run(LOOPS[loop]), run(LOOPS[loop]))


def test_noise_does_not_depend_on_values():
    noise = [run(lambda v: lax.map(noisy, v) - v, x) for x in (V, X)]
    np.testing.assert_allclose(*noise, atol=1e-6)


def test_without_compilation():
    with jax.disable_jit():
        y = loops.as_root(lambda: rows(steps(noisy), LOOPS["fori_loop"]()))
        first, *others = loops.as_root(lambda: steps(noisy))
    assert differ(y)
    # As docs/randomness.md says, each step counts as one more call.
    compiled, *later = run(lambda: steps(noisy))
    np.testing.assert_array_equal(first, compiled)
    assert differ(jnp.stack([*others, *later]))


def two_loops(wrap):
    read = wrap(noisy)
    return rows(steps(read), steps(read))


def before_and_after_a_loop(wrap):
    read = wrap(noisy)
    return rows(read(ZERO), steps(read), read(ZERO))


def twice_in_a_loop_in_a_function_called_twice(wrap):
    read = wrap(noisy)
    pairs = jax.jit(lambda: steps(lambda x: rows(read(x), read(x))))
    return rows(pairs(), pairs())


KEPT = (two_loops, before_and_after_a_loop, twice_in_a_loop_in_a_function_called_twice)


@pytest.mark.sampled
@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint], ids=["jit", "remat"])
@pytest.mark.parametrize("calls", KEPT, ids=lambda f: f.__name__)
def test_a_trace_that_holds_a_read_is_not_used_again(wrap, calls):
    assert differ(run(lambda: calls(wrap)))
    assert differ(loops.as_root(calls, wrap))


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint], ids=["jit", "remat"])
def test_a_trace_of_another_root_is_not_used_again(wrap):
    read = wrap(noisy)
    first = run(lambda: read(ZERO))
    assert differ(run(lambda: rows(steps(read), steps(read))))
    np.testing.assert_array_equal(run(lambda: read(ZERO)), first)


def test_a_trace_without_a_read_serves_all_roots():
    traces = []

    @jax.jit
    def plain(x):
        traces.append(1)
        return x + 1

    for _ in range(3):
        loops.as_root(lambda: (noisy(ZERO), plain(ZERO), steps(noisy), plain(ZERO)))
    assert len(traces) == 1
    jitted = jax.jit(noisy)
    loops.as_root(lambda: (jitted(ZERO), plain(ZERO)))  # now one is kept
    assert len(traces) == 2


def test_a_root_in_a_root_is_one_with_it():
    inner = lambda read: jax.jit(root(read))  # noqa: E731
    assert differ(run(lambda: before_and_after_a_loop(inner)))


def test_a_new_root_draws_what_a_first_call_draws():
    def both():
        return noisy(ZERO), noisy(ZERO), loops.as_new_root(noisy, ZERO)

    first, second, anew = run(both)
    np.testing.assert_array_equal(first, anew)
    assert differ(rows(first, second))


def with_rule(inside):
    """Returns a read in a `custom_vjp`, or one that is an argument of it."""

    def add(x, noise):
        return x + noise

    noisy_once = lambda x: noisy(x)  # noqa: E731
    function = jax.custom_vjp(noisy_once if inside else add)
    function.defvjp(
        lambda *args: ((noisy_once if inside else add)(*args), None),
        lambda _, g: (g,) if inside else (g, None),
    )
    if inside:
        return function
    return lambda x: function(x, lax.stop_gradient(noisy(jnp.zeros_like(x))))


RULES = {
    "forward, in scan": (lambda f: steps(f), True),
    "gradient": (lambda f: jax.vjp(f, ZERO)[0], True),
    "forward, in vmap": (lambda f: jax.vmap(f)(X), True),
    "gradient of vmap": (lambda f: jax.vjp(jax.vmap(f), X)[0], True),
    "gradient of jit of vmap": (lambda f: jax.vjp(jax.jit(jax.vmap(f)), X)[0], True),
    "gradient of vmap of jit": (lambda f: jax.vjp(jax.vmap(jax.jit(f)), X)[0], False),
    "gradient of jit, in scan": (
        lambda f: steps(lambda x: jax.vjp(jax.jit(f), x)[0]),
        False,
    ),
    "gradient of scan": (
        lambda f: jax.vjp(lambda x: lax.scan(lambda c, v: (c, f(v)), 0, x)[1], X)[0],
        False,
    ),
}


@pytest.mark.parametrize("case", RULES)
def test_the_rule_of_a_derivative_draws_rightly_or_raises(case):
    call, known = RULES[case]
    assert differ(run(lambda: call(with_rule(inside=False))))
    if known:
        assert differ(run(lambda: call(with_rule(inside=True))))
    else:
        with pytest.raises(ValueError, match="layer: its noise is drawn inside JAX's"):
            run(lambda: call(with_rule(inside=True)))


def test_a_rule_that_runs_after_its_root_raises():
    def loss(x):
        read = with_rule(inside=True)
        return lax.scan(lambda c, _: (read(c), c), x, None, STEPS)[0].sum()

    with pytest.raises(ValueError, match="after its model has returned"):
        jax.grad(jax.jit(root(loss)))(ZERO)


def test_a_map_that_jax_runs_away_from_its_rows_raises():
    rows = jax.vmap(jax.custom_batching.sequential_vmap(lambda x: noisy(x)))
    with pytest.raises(ValueError, match="layer: its noise is drawn inside JAX's"):
        run(lambda: rows(X))


def test_what_hands_out_a_trace_raises():
    with pytest.raises(ValueError, match="closure_convert"):
        run(lambda: steps(jax.closure_convert(noisy, ZERO)[0]))
    with pytest.raises(ValueError, match="make_jaxpr"):
        run(lambda: jax.make_jaxpr(noisy)(ZERO) and ZERO)


def test_a_function_of_a_device_raises():
    mesh = jax.make_mesh((1,), ("data",))
    spec = jax.sharding.PartitionSpec()
    shards = jax.shard_map(noisy, mesh=mesh, in_specs=spec, out_specs=spec)
    with pytest.raises(ValueError, match="shard_map"):
        run(lambda: shards(ZERO))


def dynamic(function):
    def body(carry):
        return carry[0] + 1, carry[1].at[carry[0]].set(function(V[carry[0]]))

    return lax.while_loop(lambda c: c[0] < STEPS, body, (0, X))[1]


DIFFERENTIATED = {
    "scan": lambda f: lax.scan(lambda c, v: (c, f(v)), 0, V)[1],
    "fori_loop": lambda f: lax.fori_loop(
        0, STEPS, lambda i, b: b.at[i].set(f(V[i])), X
    ),
    "vmap": lambda f: jax.vmap(f)(V),
    "while_loop": dynamic,
}


def loss(loop, remat=False):
    """Returns the sum of squares of w v + noise, whose gradient is 2 sum(y v)."""
    one = lambda w, v: noisy(w * v)  # noqa: E731
    one = jax.checkpoint(one) if remat else one

    def squares(w):
        y = loop(lambda v: one(w, v))
        return (y**2).sum(), y

    return squares


@pytest.mark.sampled
@pytest.mark.parametrize("inner", [False, True], ids=["around root", "in root"])
@pytest.mark.parametrize("kind", ["grad", "remat", "jacfwd"])
@pytest.mark.parametrize("loop", DIFFERENTIATED)
def test_derivatives_see_the_draws_of_the_forward_pass(loop, kind, inner):
    if loop == "while_loop" and kind != "jacfwd":
        return  # JAX has no reverse mode of it
    differentiate = jax.jacfwd if kind == "jacfwd" else jax.grad
    squares = loss(DIFFERENTIATED[loop], remat=kind == "remat")
    w = jnp.linspace(0.5, 1.5, WIDTH)
    if inner:
        g, y = run(differentiate(squares, has_aux=True), w)
    else:
        g, y = jax.jit(differentiate(root(squares), has_aux=True))(w)
    np.testing.assert_allclose(g, 2 * (y * V).sum(0), rtol=1e-5, atol=1e-6)
    assert differ(y)
    # Differentiated or not, recomputed or not, the same draws.
    np.testing.assert_array_equal(y, run(loss(DIFFERENTIATED[loop]), w)[1])


def test_reads_are_independent():
    """Correlations between steps, calls, names and loops, within 4 / sqrt(N)."""
    count = 20_000
    wide = jnp.zeros(count)

    def reads():
        scanned = lambda: lax.scan(lambda c, _: (c, drawn(wide)), 0, None, 4)[1]  # noqa: E731
        nested = lax.scan(lambda c, _: (c, scanned()), 0, None, 2)[1]
        mapped = jax.vmap(lambda _: drawn(wide))(jnp.arange(4))
        other = jnp.stack([drawn(wide, "other"), drawn(wide), drawn(wide)])
        y = scanned(), nested, mapped, other
        return jnp.concatenate([part.reshape(-1, count) for part in y])

    y = np.asarray(run(reads))
    np.testing.assert_allclose(y.std(axis=1), 1, rtol=4 / np.sqrt(2 * count))
    correlations = np.corrcoef(y) - np.eye(len(y))
    # 171 pairs, of which 4 standard errors leave one in 92.
    assert np.abs(correlations).max() < 4 / np.sqrt(count)


def test_nothing_changes_outside_a_root():
    def plain():
        return (
            lax.scan(lambda c, x: (c + 1, x), 0, X),
            lax.while_loop(lambda c: c < 3, lambda c: c + 1, 0),
            lax.fori_loop(0, 3, lambda i, c: c + i, 0),
            jax.vmap(jnp.sin)(X),
        )

    text = str(jax.make_jaxpr(plain)())
    assert "u32" not in text  # no index is carried
    assert text != str(jax.make_jaxpr(root(plain))())
    # Neither is what is said of an error or of an operation's line.
    try:
        lax.scan(lambda c, x: 1 / 0, 0, X)
    except ZeroDivisionError as error:
        text = "".join(traceback.format_exception(error))
    assert loops.__file__ not in text
    program = jax.jit(plain).lower().as_text(debug_info=True)
    assert loops.__file__ not in program
    # Introspection is unchanged too: names, signatures, documentation.
    for function in (lax.scan, lax.while_loop):
        assert "init" in str(inspect.signature(function))
        assert function.__doc__
    with pytest.raises(TypeError, match="missing"):
        lax.scan(lambda c, x: (c, x))


def test_other_threads_see_no_root():
    def plain():
        return str(jax.make_jaxpr(lambda: lax.scan(lambda c, x: (c + 1, x), 0, X))())

    expected, stop, seen = plain(), threading.Event(), []

    def work():
        while not stop.is_set():
            seen.append(plain() == expected)
            stop.wait(0.01)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert all(differ(run(lambda: steps(noisy))) for _ in range(10))
    finally:
        stop.set()
        thread.join()
    assert seen and all(seen)


def test_an_error_in_a_loop_leaves_the_root_as_it_was():
    def broken():
        with pytest.raises(ZeroDivisionError):
            steps(lambda x: 1 / 0)
        return noisy(ZERO), steps(noisy)

    first, rest = run(broken)
    np.testing.assert_array_equal(first, run(lambda: noisy(ZERO)))
    assert differ(rows(first, rest))


def test_a_read_without_a_root_raises():
    with pytest.raises(ValueError, match="layer: its noise"):
        noisy(ZERO)


@pytest.mark.parametrize("transform", [jax.jit, jax.eval_shape, jax.vmap, jax.grad])
def test_the_first_model_may_be_made_in_a_trace(transform):
    def first(x):
        loops._check_version()  # as the first `analogize` of a process does
        return 2 * x

    if transform is jax.eval_shape:
        assert jax.eval_shape(first, 1.0).shape == ()
    else:
        transform(first)(jnp.ones(1 if transform is jax.vmap else ()))
