"""Steps that are compiled ahead of time, against counts by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

# As XLA prints programs: a loop of seven turns around an inner one of three.
LOOPS = """
HloModule step

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%inner (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p = (s32[], f32[4,8]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%p), index=0
  %x = f32[4,8]{1,0} get-tuple-element(%p), index=1
  %r = f32[4,8]{1,0} all-reduce(%x), channel_id=1, to_apply=%add
  ROOT %t = (s32[], f32[4,8]{1,0}) tuple(%n, %r)
}

%more (q: (s32[], f32[4,8])) -> pred[] {
  %q = (s32[], f32[4,8]{1,0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

%outer (o: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %o = (s32[], f32[4,8]{1,0}) parameter(0)
  %y = f32[4,8]{1,0} get-tuple-element(%o), index=1
  %g = (bf16[2,8]{1,0}, bf16[4,8]{1,0}) all-gather-start(%y), channel_id=2
  %d = bf16[4,8]{1,0} all-gather-done(%g)
  %w = f32[8,5]{1,0} constant({...})
  %z = f32[4,5]{1,0} dot(%y, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %v = (s32[], f32[4,8]{1,0}) while(%o), condition=%more, body=%inner, backend_config={"known_trip_count":{"n":"3"}}
}

ENTRY %main (m: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %m = (s32[], f32[4,8]{1,0}) parameter(0)
  ROOT %u = (s32[], f32[4,8]{1,0}) while(%m), condition=%more, body=%outer, backend_config={"known_trip_count":{"n":"7"}}
}
"""  # noqa: E501


def test_what_loops_do_counts_as_often_as_they_run(script):
    found = script("hlo").program(LOOPS)
    assert found.operations == 7 * 2 * 4 * 8 * 5
    assert found.collectives == {
        "all-reduce": (7 * 3, 7 * 3 * 4 * 4 * 8),
        "all-gather": (7, 7 * 2 * 4 * 8),
    }


def test_a_loop_of_unknown_length_is_refused(script):
    unknown = LOOPS.replace(', backend_config={"known_trip_count":{"n":"7"}}', "")
    with pytest.raises(ValueError, match="a loop of a known length"):
        script("hlo").program(unknown)


@pytest.mark.optimised
def test_products_of_a_scan_are_counted(script):
    def function(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    given = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((12, 32), (5, 32, 32))]
    text = jax.jit(function).lower(*given).compile().as_text()
    found = script("hlo").program(text)
    assert found.operations == 5 * 2 * 12 * 32 * 32 and not found.collectives


def test_columns_of_a_product_are_rows_of_the_next(script):
    spread = script("ahead_of_time").spread
    assert spread("blocks/up/kernel", 3) == P(None, "data", "model")
    assert spread("blocks/down/kernel", 3) == P(None, "model", "data")
    assert spread("embed/embedding", 2) == P("model", "data")
    assert spread("blocks/up/input_range", 3) == P()


@pytest.mark.nightly
def test_a_step_on_eight_devices(script):
    bench = script("ahead_of_time")
    plain, noise = bench.table("lm_tiny", ["plain", "weight noise"], 8)
    blocks, head = 4 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 176), 256 * 64
    # Weights and two moments in float32, an eighth of each on a device.
    weights = 3 * 4 * (blocks + 2 * head) / 8
    assert plain["arguments, GB"] == pytest.approx(weights / 1e9, rel=0.03)
    # Forward, twice; to inputs; to weights. The last product of a block is not needed
    # again. The scores and the mixing of four heads likewise.
    tokens, windows = 8 * 65 / 8, 1
    products = 2 * tokens * (4 * blocks + 3 * head - 4 * 64 * 176)
    scores = windows * 4 * 4 * (4 * 2 * 2 * 65**2 * 16)
    found = 1e12 * plain["products, TFLOP"]
    assert found == pytest.approx(products + scores, rel=0.01)
    for name in ("products, TFLOP", "all-gather", "all-to-all"):
        assert noise[name] == plain[name]
    assert noise["collected / first"] == pytest.approx(1, abs=0.01)
