"""The behaviour of Flax's internals on which hwtrain relies, and where it uses them."""

import ast
import inspect
import types
from pathlib import Path

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import meta

import hwtrain
from hwtrain._flax import flax_internals as of_bridges
from hwtrain._flax.linen import flax_internals as of_linen
from hwtrain._flax.nnx import flax_internals as of_nnx

PACKAGE = Path(hwtrain.__file__).parent
KEY = jax.random.key(0)
X = jnp.ones((2, 3))


class Mlp(nn.Module):
    def setup(self):
        self.inner = nn.Dense(4)

    def __call__(self, x):
        return self.inner(x)


def bound(module=None):
    module = module or Mlp()
    return module.bind(module.init(KEY, X), rngs={"a": KEY})


# What each name expects of Flax


def test_put_sets_fields_and_class_of_a_bound_module():
    class Other(nn.Dense):
        pass

    module = bound(nn.Dense(4))
    of_linen.put(module, use_bias=False, __class__=Other)
    assert (module.use_bias, type(module)) == (False, Other)


def test_scope_and_path():
    module = bound()
    module(X)
    assert of_linen.scope_of(Mlp()) is None
    assert of_linen.path_of(of_linen.scope_of(module)) == ()
    assert of_linen.path_of(of_linen.scope_of(module.inner)) == ("inner",)


def test_a_flag_reaches_what_is_within_through_a_lifted_transform():
    seen = []

    class Leaf(nn.Module):
        @nn.compact
        def __call__(self, x):
            seen.append(of_linen.has_flag(self, "ours"))
            return x

    class Root(nn.Module):
        @nn.compact
        def __call__(self, x):
            undo = of_linen.flag(of_linen.scope_of(self), "ours")
            x = nn.jit(nn.remat(Leaf))()(x)
            undo()
            return Leaf()(x)

    Root().apply({}, X)
    assert seen[0] is True and seen[-1] is False
    assert not of_linen.has_flag(Mlp(), "ours")


def test_in_setup():
    seen = []

    class Root(nn.Module):
        def setup(self):
            seen.append(of_linen.in_setup(self))

        def __call__(self, x):
            seen.append(of_linen.in_setup(self))
            return x

    Root().apply({}, X)
    assert seen == [True, False]


def test_children_of_a_module():
    module = bound()
    module(X)
    assert of_linen.children_of(module) == [module.inner]


def test_unbound_equals_the_module_before():
    class Outer(nn.Module):
        held: nn.Module

        @nn.compact
        def __call__(self, x):
            return self.held(x)

    plain = Outer(nn.Dense(4))
    module = bound(plain)
    module(X)
    found = of_linen.unbound(module)
    assert found == plain and hash(found) == hash(plain)
    assert of_linen.scope_of(found) is None
    assert of_linen.scope_of(found.held) is None
    assert module.clone(parent=None).held.scope is not None, "a clone would do now"


def test_streams_are_the_keys_that_apply_was_given():
    streams = of_linen.streams_of(bound())
    assert list(streams) == ["a"]
    assert (jax.random.key_data(streams["a"]) == jax.random.key_data(KEY)).all()


def test_function_of_a_call_and_its_context():
    seen = []

    def interceptor(next_function, args, kwargs, context):
        seen.append(context)
        return next_function(*args, **kwargs)

    with nn.intercept_methods(interceptor):
        nn.Dense(4).init(KEY, X)
    context = seen[0]
    assert isinstance(context, of_linen.InterceptorContext)
    assert context.method_name == "__call__"
    found = inspect.unwrap(of_linen.function_of(context))
    assert found is inspect.unwrap(nn.Dense.__call__)


def test_intercepted_shows_a_function_as_a_method():
    def stated(module, x, factor):
        return factor * x

    def interceptor(next_function, args, kwargs, context):
        seen.append((context.module, context.method_name, args))
        return 3 * next_function(*args, **kwargs)

    seen, module = [], bound()
    with nn.intercept_methods(interceptor):
        assert of_linen.intercepted(stated, module, 5, 2) == 30
    assert seen == [(module, "stated", (5, 2))]


def test_names_and_parameters_of_a_scope_outlive_the_call():
    scopes = []

    class Root(nn.Module):
        @nn.compact
        def __call__(self, x):
            scopes.append(of_linen.scope_of(self))
            self.param("w", nn.initializers.ones, (3,))
            return nn.Dense(2, name="inner")(x)

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = Root(name="root")(x)
            (scope,) = scopes
            assert set(of_linen.names_taken(scope)) == {"w", "inner"}
            assert of_linen.is_taken(scope, "w")
            assert not of_linen.is_taken(scope, "probe")
            assert of_linen.parameter(scope, "w").shape == (3,)
            of_linen.put_parameter(scope, "w", jnp.zeros(3))
            of_linen.put_parameter(scope, "probe", jnp.zeros(5))
            return x

    params = Outer().init(KEY, X)["params"]["root"]
    assert params["probe"].shape == (5,)
    np.testing.assert_array_equal(params["w"], 1)


def test_all_but_lets_a_call_change_all_other_collections():
    class Root(nn.Module):
        @nn.compact
        def __call__(self):
            self.variable("state", "n", lambda: 1).value = 2
            assert not self.is_mutable_collection("params")

    _, changed = Root().apply({}, mutable=of_linen.all_but("params"))
    assert changed == {"state": {"n": 2}}


def test_weight_norm_maps_by_the_function_that_is_put_around():
    original, seen = of_linen.map_variables_function(), []

    def around(fn, mapped, map_in=of_linen.unchanged, *args, **kwargs):
        def mapped_in(variables):
            seen.append(sorted(variables))
            return map_in(variables)

        return original(fn, mapped, mapped_in, *args, **kwargs)

    of_linen.put_map_variables_function(around)
    try:
        nn.WeightNorm(nn.Dense(4)).init(KEY, X)
        assert ["params"] in seen
        seen.clear()
        nn.map_variables(nn.Dense, "params", lambda v: v)(4).apply(
            nn.Dense(4).init(KEY, X), X
        )
        assert ["params"] in seen
    finally:
        of_linen.put_map_variables_function(original)
    assert of_linen.unchanged(seen) is seen


@pytest.mark.parametrize("framework", ["linen", "nnx"])
@pytest.mark.parametrize(
    "given, expected",
    [
        ("SAME", "SAME"),
        ("CIRCULAR", "CIRCULAR"),
        (1, [(1, 1), (1, 1)]),
        ([2, (0, 1)], [(2, 2), (0, 1)]),
    ],
)
def test_canonical_padding(framework, given, expected):
    canonical = {
        "linen": of_linen.canonical_padding,
        "nnx": of_nnx.canonical_padding,
    }[framework]
    found = canonical(given, 2)
    assert found == expected or [*map(tuple, found)] == expected


def test_bias_shape():
    layer = nn.Einsum((3, 4), "bte,eh->bth")
    found = of_linen.bias_shape(layer, "bte,eh->bth", jnp.ones((2, 5, 3)), X.T)
    assert list(found) == [1, 1, 4]


def test_promoted():
    x, none = of_linen.promoted(jnp.ones(2, jnp.bfloat16), None, dtype=jnp.float32)
    assert x.dtype == jnp.float32 and none is None


def test_the_gates_of_an_optimised_cell_are_modules_with_kernels():
    seen = {}

    def interceptor(next_function, args, kwargs, context):
        found = next_function(*args, **kwargs)
        if isinstance(context.module, of_linen.GateParams):
            seen[context.module.name] = found
        return found

    cell = nn.OptimizedLSTMCell(4)
    carry = cell.initialize_carry(KEY, X.shape)
    with nn.intercept_methods(interceptor):
        cell.init(KEY, carry, X)
    assert set(seen) == {f"{side}{gate}" for side in "ih" for gate in "ifgo"}
    kernel, bias = seen["ii"]
    assert (kernel.shape, bias) == ((3, 4), None)


def test_the_trace_that_checks_what_is_constant_is_told_from_the_loop():
    seen = []

    class Body(nn.Module):
        @nn.compact
        def __call__(self, carry, _):
            seen.append(of_linen.checks_what_is_constant())
            return carry + 1, None

    for check, expected in ((True, {True, False}), (False, {False})):
        seen.clear()
        scan = nn.scan(Body, length=2, check_constancy_invariants=check)
        scan().apply({}, jnp.zeros(()), None)
        assert set(seen) == expected
        assert seen == sorted(seen, reverse=True), "the check comes first"
    assert not of_linen.checks_what_is_constant()


@pytest.mark.parametrize("constants", [False, True])
def test_a_scan_is_traced_once_where_it_is_asked_not_to_check(constants):
    seen = []

    class Body(nn.Module):
        @nn.compact
        def __call__(self, carry, _):
            seen.append(of_linen.checks_what_is_constant())
            return carry + 1, jnp.ones(())

    axes = nn.broadcast if constants else 0
    scan = nn.scan(Body, length=2, out_axes=axes)
    expected = scan().apply({}, jnp.zeros(()), None)
    assert True in seen
    seen.clear()
    with of_linen.unchecked_scans():
        found = scan().apply({}, jnp.zeros(()), None)
    assert (True in seen) == constants, "constants need the check"
    chex.assert_trees_all_equal(found, expected)
    seen.clear()
    scan().apply({}, jnp.zeros(()), None)
    assert True in seen


def test_flax_says_whether_it_refuses_callbacks():
    told = []

    class Body(nn.Module):
        @nn.compact
        def __call__(self, carry, _):
            jax.debug.callback(told.append, carry)
            return carry + 1, None

    def run():
        nn.scan(Body, length=2)().apply({}, jnp.zeros(()), None)
        jax.effects_barrier()

    if of_linen.refuses_callbacks():
        with pytest.raises(ValueError):
            run()
    else:
        run()
        assert [*map(float, told)] == [0, 1]


def test_it_can_be_asked_inside_a_module_and_a_trace():
    class Root(nn.Module):
        @nn.compact
        def __call__(self, x):
            of_linen.refuses_callbacks.__wrapped__()
            return nn.Dense(4)(x)

    variables = jax.jit(Root().init)(KEY, X)
    assert list(variables["params"]) == ["Dense_0"]


def test_a_shallow_copy_shares_the_variables_of_its_layer():
    class Other(nnx.Linear):
        pass

    layer = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    copy = of_nnx.shallow_copy(layer, Other, dot_general=lambda *_, **__: jnp.ones(4))
    assert type(copy) is Other and copy.kernel is layer.kernel
    np.testing.assert_array_equal(copy(X), 1 + layer.bias[...])
    np.testing.assert_array_equal(layer(X), X @ layer.kernel[...] + layer.bias[...])


def test_nnx_merges_attributes_in_the_order_of_their_names():
    # What `make_analog` builds on: `hardware_mode` comes after `deterministic`.
    order = []

    class Base(nnx.Module):
        def __setattr__(self, name, value):
            order.append(name)
            super().__setattr__(name, value)

    model = Base()
    model.b, model.a = 1, 2
    merged = nnx.merge(*nnx.split(model))
    assert [name for name in vars(merged) if name in "ab"] == ["a", "b"]


@pytest.mark.parametrize("wanted", [nn.Dense, nnx.Linear, None])
def test_the_class_that_a_bridge_holds(wanted):
    module = {
        nn.Dense: lambda: nnx.bridge.ToNNX(nn.Dense(4), rngs=nnx.Rngs(0)),
        nnx.Linear: lambda: nnx.bridge.ToLinen(nnx.Linear, args=(3, 4)),
        None: lambda: nn.Dense(4),
    }[wanted]()
    assert of_bridges.bridged_class(module, type(module)) is wanted


def test_another_object_of_a_bound_module_has_its_parameters():
    module = bound()
    expected = module(X)
    other = of_linen.of_same_scope(module.inner)
    assert other is not module.inner and other.name == module.inner.name
    scopes = of_linen.scope_of(other), of_linen.scope_of(module.inner)
    assert scopes[0].path == scopes[1].path
    np.testing.assert_array_equal(other(X), module.inner(X))
    assert expected.shape == module(X).shape


def test_every_name_has_a_test_here():
    text = Path(__file__).read_text()
    for name, module in (
        ("of_linen", of_linen),
        ("of_nnx", of_nnx),
        ("of_bridges", of_bridges),
    ):
        tree = ast.parse(inspect.getsource(module))
        names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        for node in tree.body:
            if isinstance(node, ast.Assign):
                names += [target.id for target in node.targets]
        assert names
        public = [known for known in names if not known.startswith("_")]
        missing = [known for known in public if f"{name}.{known}" not in text]
        assert not missing, f"{module.__name__}: no test of {missing}"


# That no other file touches them

DOCUMENTED = {
    "flax": {"nnx", "linen"},
    "flax.core": {"meta", "unfreeze"},
    "flax.errors": {"InvalidRngError"},
    "flax.serialization": {"msgpack_restore"},
    "flax.traverse_util": {"unflatten_dict"},
}
"""What may be imported of Flax, by module."""

UNDOCUMENTED = {
    "scope",
    "flags",
    "has_flag",
    "get_flag",
    "rngs",
    "reservations",
    "name_reserved",
    "as_jax_rng",
    "orig_method",
    "id_fn",
    "to_nnx__module",
    "nnx_class",
}
"""Attributes of Flax's objects without an underscore that no page of it names."""

SUBMODULES = {"initializers", "bridge"}
"""Modules in `flax.linen` and `flax.nnx` that are documented."""


def private_names_of_flax():
    names = set()
    for file in Path(flax.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Attribute(attr=name) | ast.FunctionDef(name=name):
                    names.add(name)
                case ast.arg(arg=name):
                    names.add(name)
                case ast.AnnAssign(target=ast.Name(id=name)):
                    names.add(name)
    return {x for x in names if x.startswith("_") and not x.startswith("__")}


def defined_in(tree):
    """Returns the names of the attributes and arguments of a program's own."""
    names = set()
    for node in ast.walk(tree):
        match node:
            case ast.arg(arg=name):
                names.add(name)
            case ast.Attribute(
                value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()
            ):
                names.add(name)
            case ast.ClassDef(body=body):
                for own in body:
                    targets = getattr(own, "targets", [getattr(own, "target", own)])
                    for target in targets:
                        names.add(getattr(target, "name", getattr(target, "id", "")))
    return names


def touched(tree, private):
    """Yields what a program touches of the insides of Flax."""
    frameworks = {"nn": nn, "nnx": nnx}
    strings = {"getattr", "hasattr", "__getattribute__", "__setattr__", "setattr"}
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    if alias.name.startswith("flax."):
                        yield alias.name
            case ast.ImportFrom(module=str(module), names=names):
                if module.partition(".")[0] == "flax":
                    allowed = DOCUMENTED.get(module, set())
                    for alias in names:
                        if alias.name not in allowed:
                            yield f"{module}.{alias.name}"
            case ast.Attribute(value=ast.Name(id="nn" | "nnx" as name), attr=attr):
                inner = getattr(frameworks[name], attr, None)
                if isinstance(inner, types.ModuleType) and attr not in SUBMODULES:
                    yield f"{name}.{attr}"
            case ast.Attribute(value=ast.Name(id="internals")):
                pass  # the file of them
            case ast.Attribute(attr=attr) if attr in private | UNDOCUMENTED:
                yield f".{attr}"
            case ast.keyword(arg=str(arg)) if arg in private:
                yield f"{arg}="
            case ast.Call(func=function, args=args):
                name = getattr(function, "attr", getattr(function, "id", ""))
                for arg in args if name in strings else ():
                    value = getattr(arg, "value", None)
                    if value in private | UNDOCUMENTED:
                        yield f"{name}({value!r})"


FILES = [f for f in sorted(PACKAGE.rglob("*.py")) if f.name != "flax_internals.py"]
TREES = {file: ast.parse(file.read_text()) for file in FILES}


def test_no_other_file_touches_the_insides_of_flax():
    assert len(FILES) > 100
    own = set().union(*map(defined_in, TREES.values()))
    private = private_names_of_flax() - own
    assert {"_state", "_deep_clone", "_reset_names", "_get_bias_shape"} <= private
    found = [
        f"{file.relative_to(PACKAGE)}: {name}"
        for file, tree in TREES.items()
        for name in touched(tree, private - {"_replace", "_fields", "_asdict"})
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "from flax.linen.linear import canonicalize_padding",
        "from flax.core import lift",
        "import flax.linen.module",
        "nn.module.run_interceptors",
        "nnx.graphlib",
        "module._state",
        "module.clone(_deep_clone=True)",
        "object.__getattribute__(root, 'scope')",
        "module.scope.flags",
        "context.orig_method",
        "module.to_nnx__module",
    ],
)
def test_what_touches_them_is_found(line):
    assert list(touched(ast.parse(line), private_names_of_flax()))


def test_metadata_and_flat_keys_are_public():
    # What `DOCUMENTED` lets through: these are in Flax's pages.
    assert meta.unbox({"a": nn.Partitioned(X, (None, None))})["a"] is X
    data = flax.serialization.msgpack_serialize({"a": np.ones(2)})
    assert flax.serialization.msgpack_restore(data)["a"].tolist() == [1.0, 1.0]
    assert flax.traverse_util.unflatten_dict({("a", ("b", 1)): 2}) == {
        "a": {("b", 1): 2}
    }
