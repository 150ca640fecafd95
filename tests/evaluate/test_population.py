"""Populations of chips against a loop over single chips, and their statistics."""

import dataclasses
import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from scipy import stats

import hwtrain as hw
from hwtrain.evaluate import Population, population

X = jax.random.normal(jax.random.key(1), (30, 12))
Y = jax.random.randint(jax.random.key(2), (30,), 0, 5)


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(5, name="head")(nn.relu(nn.Dense(16, name="hidden")(x)))


class Twin(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(12, 16, rngs=rngs)
        self.head = nnx.Linear(16, 5, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.hidden(x)))


class Told(nn.Module):
    """Takes a dictionary apart only where it is called."""

    @nn.compact
    def __call__(self, x, *, scale):
        return nn.Dense(5)(x * scale)


def of_dictionary(apply, batch):
    return apply(batch["x"], scale=2.0)


def accuracy(logits, labels):
    return (logits.argmax(-1) == labels).astype(jnp.float32)


def hardware(std_dev=0.3, **options):
    mismatch = hw.MismatchParameter(type="add_normal", std_dev=std_dev, per_column=True)
    return hw.Hardware(
        modifier=hw.WeightModifierParameter(type="add_normal", std_dev=0.1),
        mismatch=mismatch,
        **options,
    )


@pytest.fixture(scope="module")
def trained():
    analog = hw.analogize(MLP(), hardware())
    return analog, jax.jit(analog.init)(jax.random.key(0), X)


def run(analog, variables, batches=((X, Y),), **options):
    options = {"chips": 6, "key": jax.random.key(0), **options}
    return population(analog, variables, batches, accuracy, **options)


def test_equals_a_loop_over_single_chips(trained):
    analog, variables = trained
    result = run(analog, variables)
    plan = hw.plan(analog, variables, X)

    @jax.jit
    def on_chip(seed):
        params = hw.apply_mismatch(variables["params"], plan, hw.chip_key(seed))
        logits = MLP().apply({"params": params}, X)  # nothing else is on in chip mode
        return accuracy(logits, Y)

    for seed, value in zip(result.seeds, result.values):
        np.testing.assert_allclose(value, np.mean(on_chip(seed)), atol=1e-6)
    assert len(set(result.values)) > 1


def test_the_mismatch_is_the_one_of_the_table():
    # w + sigma * max|w| of the output column * xi on the nominal kernels, biases clean.
    analog = hw.analogize(nn.Dense(40), hardware(0.3))
    variables = jax.jit(analog.init)(jax.random.key(0), jnp.ones((1, 50)))
    variables["params"]["bias"] = jnp.arange(40.0)
    plan = hw.plan(analog, variables, jnp.ones((1, 50)))
    chip = lambda seed: hw.apply_mismatch(  # noqa: E731
        variables["params"], plan, hw.chip_key(seed)
    )
    chips = jax.tree.map(np.asarray, jax.jit(jax.vmap(chip))(jnp.arange(20)))
    kernel = np.asarray(variables["params"]["kernel"])
    xi = (chips["kernel"] - kernel) / (0.3 * np.abs(kernel).max(0))
    count = xi.size
    assert abs(float(xi.mean())) < 5 / np.sqrt(count)
    assert abs(float(xi.std()) - 1) < 5 / np.sqrt(2 * count)
    assert stats.kstest(np.ravel(xi), "norm").pvalue > 1e-3
    correlation = np.corrcoef(np.asarray(xi).reshape(20, -1)) - np.eye(20)
    assert np.abs(correlation).max() < 5 / np.sqrt(count / 20)
    assert (chips["bias"] == variables["params"]["bias"]).all()


def test_chunks_and_batches_change_nothing(trained):
    analog, variables = trained
    whole = run(analog, variables).values
    for chunk in (1, 4, 6):
        np.testing.assert_allclose(run(analog, variables, chunk=chunk).values, whole)
    batches = [(X[:20], Y[:20]), (X[20:], Y[20:])]  # a last batch that is smaller
    np.testing.assert_allclose(run(analog, variables, batches).values, whole, atol=1e-6)


def test_a_chip_is_its_seed_not_its_place(trained):
    analog, variables = trained
    whole = run(analog, variables).values
    some = run(analog, variables, chips=[4, 1])
    assert some.seeds == (4, 1)
    np.testing.assert_allclose(some.values, whole[[4, 1]])


def test_linen_nnx_and_the_loaded_checkpoint_agree(trained, tmp_path):
    analog, variables = trained
    twin = hw.analogize(Twin(nnx.Rngs(0)), hardware(), rngs=nnx.Rngs(mismatch=0))
    state = nnx.state(twin, nnx.Param)
    nnx.replace_by_pure_dict(state, variables["params"])
    nnx.update(twin, state)
    linen = run(analog, variables).values
    np.testing.assert_allclose(run(twin, None).values, linen, atol=1e-6)
    np.testing.assert_allclose(run(twin, variables["params"]).values, linen, atol=1e-6)
    assert twin.hardware_mode == "train"  # the model itself is not changed
    hw.export(tmp_path / "chip", variables, hw.plan(analog, variables, X), chip_seed=3)
    loaded = hw.load(tmp_path / "chip")
    np.testing.assert_array_equal(run(analog, loaded).values, linen)


def test_reads_differ_where_the_chip_draws_at_a_read():
    modifier = hw.WeightModifierParameter(
        type="add_normal", std_dev=0.3, enable_during_test=True
    )
    analog = hw.analogize(MLP(), hw.Hardware(modifier=modifier))
    variables = jax.jit(analog.init)(jax.random.key(0), X)
    one, two, again = (
        run(analog, variables, key=jax.random.key(k)).values for k in (0, 1, 0)
    )
    assert (one != two).any()
    np.testing.assert_array_equal(one, again)
    assert len(set(one)) > 1  # and from chip to chip


def test_without_mismatch_all_chips_are_equal_and_a_plain_model_works():
    analog = hw.analogize(MLP(), hw.Hardware())
    plain = jax.jit(MLP().init)(jax.random.key(0), X)
    result = run(analog, plain)
    assert result.std == 0
    logits = MLP().apply(plain, X)
    np.testing.assert_allclose(result.mean, np.mean(accuracy(logits, Y)), atol=1e-6)


def test_statistics_against_scipy():
    values = np.random.default_rng(0).normal(0.9, 0.05, 40)
    chips = Population(values=values, seeds=tuple(range(40)))
    np.testing.assert_allclose(chips.mean, values.mean())
    np.testing.assert_allclose(chips.std, values.std(ddof=1))
    expected = stats.t.interval(0.95, 39, values.mean(), stats.sem(values))
    np.testing.assert_allclose(chips.interval, expected)
    one = Population(values=values[:1], seeds=(0,))
    assert np.isnan(one.interval).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chips": 0}, "at least one chip"),
        ({"chips": [-1]}, r"in \[0, 2\^32\); got -1"),
        ({"batches": []}, "no batches"),
        ({"chips": 0.5}, "must be a whole number; got 0.5"),
        ({"chips": [0, 1.5]}, "a chip's seed must be a whole number; got 1.5"),
        ({"batches": [(X[:0], Y[:0])]}, "batch 0 is empty"),
        ({"batches": [(X, Y), (X[:0], Y[:0])]}, "batch 1 is empty"),
        *(
            ({"batches": [(X, Y), (X, labels)]}, "are as long as .*30 ex.*batch 1 .*")
            for labels in (Y[:1], Y[:29], Y[0], jnp.ones((31, 2)), {"a": Y, "b": Y[:7]})
        ),
        ({"chips": 10**12}, "at most 1000000 chips"),
        ({"batches": (X, Y)}, r"such as \[\(inputs, labels\)\].*batch 0 is"),
        ({"batches": 3}, "takes tuples of arrays.*got int"),
        ({"batches": [((X, Y[:3]), Y)]}, "all inputs share their first axis"),
        ({"batches": [(1.0, Y)]}, "all inputs share their first axis"),
        ({"key": 0}, r"such as jax.random.key\(0\); got 0"),
        ({"key": jax.random.split(jax.random.key(0))}, "must be one JAX key"),
        ({"chunk": 0}, "at least 1 chip; got 0"),
        ({"times_s": 3.0}, "seconds since programming"),
    ],
)
def test_wrong_arguments(trained, options, message):
    with pytest.raises(ValueError, match=message):
        run(*trained, **options)


def test_a_linen_model_needs_variables(trained):
    with pytest.raises(ValueError, match="variables=None; pass those of model.init"):
        run(trained[0], None)


def test_numpy_integers_and_raw_keys_are_taken(trained):
    expected = run(*trained, chips=3).values
    for options in (
        {"chips": np.int64(3)},
        {"chips": np.arange(3)},
        {"chips": 3, "key": jax.random.PRNGKey(0)},
        {"chips": 3, "batches": [[X, Y]]},
    ):
        np.testing.assert_array_equal(run(*trained, **options).values, expected)


class Sum(nn.Module):
    @nn.compact
    def __call__(self, inputs, train):
        x = nn.Dense(5)(inputs["a"] + inputs["b"])
        return nn.Dropout(0.5)(x, deterministic=not train)


def test_inputs_may_be_a_tree_and_the_call_have_keyword_arguments():
    analog = hw.analogize(Sum(), hardware())
    inputs = {"a": X, "b": 2 * X}
    init = functools.partial(analog.init, train=False)
    variables = jax.jit(init)(jax.random.key(0), inputs)
    options = {"call_kwargs": {"train": False}}
    values = run(analog, variables, [(inputs, Y)], **options).values
    plan = hw.plan(analog, variables, inputs, train=False)
    chip = hw.apply_mismatch(variables["params"], plan, hw.chip_key(1))
    kernel, bias = (chip["Dense_0"][name] for name in ("kernel", "bias"))
    logits = 3 * X @ kernel + bias
    np.testing.assert_allclose(values[1], np.mean(accuracy(logits, Y)), atol=1e-6)


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_a_model_is_traced_once_for_all_variables(framework):
    traces = []

    def metric(logits, labels):
        traces.append(logits.shape)
        return accuracy(logits, labels)

    found = []
    for seed in (0, 1):
        if framework == "linen":
            analog = hw.analogize(MLP(), hardware())
            variables = jax.jit(analog.init)(jax.random.key(seed), X)
        else:
            variables, rngs = None, nnx.Rngs(mismatch=0)
            analog = hw.analogize(Twin(nnx.Rngs(seed)), hardware(), rngs=rngs)
        result = population(
            analog, variables, [(X, Y)], metric, chips=3, key=jax.random.key(0)
        )
        found.append(result.values)
        np.testing.assert_array_equal(
            run(analog, variables, chips=3).values, result.values
        )
    assert len(traces) == 1
    assert (found[0] != found[1]).any()


def test_an_nnx_model_that_derives_its_scales_is_evaluated():
    chip = dataclasses.replace(
        hw.presets.pcm(),
        mapping=hw.MappingParameter(weight_scaling_omega=1.0),
        forward=hw.IOParameters(out_bound=0.5),
    )
    twin = hw.analogize(Twin(nnx.Rngs(0)), chip, rngs=nnx.Rngs(mismatch=0))
    assert 0 < run(twin, None, chips=2, times_s=(3e7,)).mean[0] < 1


def test_a_cached_function_keeps_no_parameters_alive():
    analog = hw.analogize(Twin(nnx.Rngs(0)), hardware(), rngs=nnx.Rngs(mismatch=0))
    run(analog, None)
    kernel = weakref.ref(analog.hidden.kernel[...])
    del analog
    gc.collect()
    assert kernel() is None


def test_a_metric_that_averages_is_an_error(trained):
    with pytest.raises(ValueError, match=r"one number for each example.*got \(\)"):
        population(
            *trained,
            [(X, Y)],
            lambda logits, labels: accuracy(logits, labels).mean(),
            chips=2,
            key=jax.random.key(0),
        )


def noisy(model):
    mismatch = hw.MismatchParameter(type="add_normal", std_dev=0.2)
    return hw.analogize(model, hw.Hardware(mismatch=mismatch))


def test_a_forward_function_calls_the_model_for_batches_of_any_kind():
    analog = noisy(Told())
    variables = analog.init(jax.random.key(0), X, scale=2.0)
    options = {"chips": 3, "key": jax.random.key(1)}
    found = population(
        analog, variables, [({"x": X}, Y)], accuracy, forward=of_dictionary, **options
    )
    given = {"call_kwargs": {"scale": 2.0}}
    expected = population(analog, variables, [(X, Y)], accuracy, **given, **options)
    np.testing.assert_array_equal(found.values, expected.values)
    assert found.std > 0


def test_several_metrics_share_the_outputs():
    analog = noisy(MLP())
    variables = analog.init(jax.random.key(0), X)
    options = {"chips": 3, "key": jax.random.key(1)}
    metrics = {"hits": accuracy, "size": lambda logits, labels: abs(logits).mean(-1)}
    batches = [(X[:20], Y[:20]), (X[20:], Y[20:])]
    found = population(analog, variables, batches, metrics, **options)
    assert [*found] == ["hits", "size"]
    for name, metric in metrics.items():
        alone = population(analog, variables, batches, metric, **options)
        np.testing.assert_allclose(found[name].values, alone.values, rtol=1e-6)
        assert found[name].seeds == (0, 1, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": {}}, "at least one metric"),
        ({"metric": {"mean": lambda y, _: y.mean()}}, "the metric 'mean' must return"),
        ({"forward": of_dictionary, "call_kwargs": {"scale": 1.0}}, "forward function"),
        ({"forward": lambda apply, x: x}, "calls its first argument"),
    ],
)
def test_bad_metrics_and_forward_functions(options, message):
    analog = noisy(MLP())
    variables = analog.init(jax.random.key(0), X)
    given = {"metric": accuracy, "chips": 1, "key": jax.random.key(1), **options}
    with pytest.raises(ValueError, match=message):
        population(analog, variables, [(X, Y)], **given)


def test_each_call_of_a_forward_function_reads_anew():
    converters = hw.IOParameters(out_noise=0.1)
    analog = hw.analogize(nn.Dense(5), hw.Hardware(forward=converters))
    variables = analog.init(jax.random.key(0), X)

    def twice(apply, x):
        return jnp.stack([apply(x), apply(x)], axis=1)

    def differ(outputs, labels):
        return (outputs[:, 0] != outputs[:, 1]).all(-1) * 1.0

    options = {"chips": 2, "key": jax.random.key(1), "forward": twice}
    assert population(analog, variables, [(X, Y)], differ, **options).mean == 1.0
