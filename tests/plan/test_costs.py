"""Counts, bytes and FLOPs read off small programs are those worked out by hand."""

import jax
import jax.numpy as jnp
import pytest

from ssl_jax.plan import costs, hlo

# A loop of 5 over f32[32,256]: one product with bf16[256,256], summed over pairs of devices; then a gather outside.
LOOP = """
HloModule step, num_partitions=4

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%fused (p0: f32[32,256], p1: bf16[256,256]) -> f32[32,256] {
  %p0 = f32[32,256]{1,0:T(8,128)S(1)} parameter(0)
  %p1 = bf16[256,256]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %conv = f32[32,256]{1,0:T(8,128)} convolution(%p0, %p1), dim_labels=bf_io->bf
}

%body (state: (s32[], f32[32,256], bf16[256,256], s32[])) -> (s32[], f32[32,256], bf16[256,256], s32[]) {
  %state = (s32[]{:T(128)}, f32[32,256]{1,0:T(8,128)S(1)}, /*index=2*/bf16[256,256]{1,0}, s32[]) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %x = f32[32,256]{1,0:T(8,128)S(1)} get-tuple-element(%state), index=1
  %w = bf16[256,256]{1,0} get-tuple-element(%state), index=2
  %product = f32[32,256]{1,0:T(8,128)} fusion(%x, %w), kind=kOutput, calls=%fused
  %total = f32[32,256]{1,0:T(8,128)S(1)} all-reduce(%product), channel_id=1, replica_groups={{0,1},{2,3}}, to_apply=%add, metadata={op_name="jit(f)/dot_general"}
  %limit = s32[] get-tuple-element(%state), index=3
  ROOT %out = (s32[], f32[32,256]{1,0}, bf16[256,256]{1,0}, s32[]) tuple(%next, %total, %w, %limit)
}

%condition (state.1: (s32[], f32[32,256], bf16[256,256], s32[])) -> pred[] {
  %state.1 = (s32[], f32[32,256]{1,0}, bf16[256,256]{1,0}, s32[]) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %limit.1 = s32[] get-tuple-element(%state.1), index=3
  ROOT %less = pred[] compare(%i.1, %limit.1), direction=LT
}

ENTRY %main (x.1: f32[32,256], w.1: bf16[256,256]) -> f32[64,256] {
  %x.1 = f32[32,256]{1,0} parameter(0)
  %w.1 = bf16[256,256]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %five = s32[] constant(5)
  %given = (s32[], f32[32,256]{1,0}, bf16[256,256]{1,0}, s32[]) tuple(%zero, %x.1, %w.1, %five)
  %loop = (s32[], f32[32,256]{1,0}, bf16[256,256]{1,0}, s32[]) while(%given), condition=%condition, body=%body
  %y = f32[32,256]{1,0} get-tuple-element(%loop), index=1
  ROOT %whole = f32[64,256]{1,0} all-gather(%y), channel_id=2, replica_groups=[2,2]<=[4], dimensions={0}
}
"""  # noqa: E501


def test_collectives_count_as_often_as_their_loop_runs():
    summed, gathered = costs.collectives(hlo.parse(LOOP))
    size = 32 * 256 * 4
    assert (summed.kind, summed.bytes, summed.group, summed.count, summed.loops) == ("all-reduce", size, 2, 5, (5,))
    assert summed.sent == 5 * size  # 2 (n - 1) / n = 1 of two devices
    assert (gathered.kind, gathered.bytes, gathered.count, gathered.loops) == ("all-gather", 2 * size, 1, ())
    assert gathered.sent == size
    assert costs.by_kind([summed, summed])["all-reduce"] == {"count": 10, "bytes": 10 * size, "sent": 10 * size}


def test_one_sum_that_xla_cuts_into_several_is_counted_whole():
    """Several all-reduces of one channel are as many sums, unless they are phases of one in fusions."""
    line = "  %total = f32[32,256]{1,0:T(8,128)S(1)} all-reduce(%product)"
    twice = LOOP.replace(line, f"{line.replace('%total', '%again')}, channel_id=1, replica_groups={{{{0,1}},{{2,3}}}}\n{line}")
    assert costs.by_kind(costs.collectives(hlo.parse(twice)))["all-reduce"]["bytes"] == 2 * 5 * 32 * 256 * 4


# A gather that a TPU begins in one fusion and ends in another, once to main memory and once to memory on the chip.
PHASES = """
HloModule step, num_partitions=4

%begin (p0: bf16[32,256]) -> bf16[128,256] {
  %p0 = bf16[32,256]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %first = bf16[128,256]{1,0:T(8,128)(2,1)} all-gather(%p0), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
}

%end (p1: bf16[32,256]) -> bf16[128,256] {
  %p1 = bf16[32,256]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %second = bf16[128,256]{1,0:T(8,128)(2,1)S(1)} all-gather(%p1), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
}

ENTRY %main (x: bf16[32,256]) -> bf16[128,256] {
  %x = bf16[32,256]{1,0} parameter(0)
  %started = bf16[128,256]{1,0} fusion(%x), kind=kCustom, calls=%begin
  ROOT %done = bf16[128,256]{1,0:T(8,128)(2,1)S(1)} fusion(%x), kind=kCustom, calls=%end
}
"""


def test_phases_of_one_collective_in_several_fusions_count_once():
    assert costs.by_kind(costs.collectives(hlo.parse(PHASES)))["all-gather"]["bytes"] == 128 * 256 * 2
    apart = costs.collectives(hlo.parse(PHASES.replace("channel_id=7", "channel_id=8", 1)))
    assert sum(c.count for c in apart) == 2


def test_a_gather_that_overlaps_with_a_loop_counts_once():
    """It begins before the loop, continues in each iteration and ends after it."""
    first = "%first = bf16[128,256]{1,0} all-gather(%p0), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}"
    begin, rest = PHASES.split("  ROOT %first")
    start = (
        f'  {first}\n  ROOT %s = (bf16[128,256]{{1,0}}, u32[]) custom-call(%first), custom_call_target="AsyncCollectiveStart"'
    )
    body = """%body (s: bf16[32,256]) -> bf16[32,256] {
  %s = bf16[32,256]{1,0} parameter(0)
  %part = bf16[128,256]{1,0} fusion(%s), kind=kCustom, calls=%end
  ROOT %next = bf16[32,256]{1,0} slice(%part), slice={[0:32], [0:256]}
}

ENTRY"""
    loop = '  %w = bf16[32,256]{1,0} while(%x), body=%body, backend_config={"known_trip_count":{"n":"5"}}\n  ROOT %done'
    text = begin + start + rest[rest.index("\n}") :].replace("ENTRY", body, 1).replace("  ROOT %done", loop)
    (found,) = costs.collectives(hlo.parse(text))
    assert (found.kind, found.count, found.bytes) == ("all-gather", 1, 128 * 256 * 2)


CUT = """%cut (p0: bf16[5,32,256], p1: s32[]) -> bf16[32,256] {
  %p0 = bf16[5,32,256]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = bf16[1,32,256]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,32,256}
  ROOT %block = bf16[32,256]{1,0} bitcast(%slice)
}"""  # one block's weights out of a stack of five

# Five blocks' weights, of which each iteration gathers its own; `whole` is gathered again in each.
STACK = """
HloModule step, num_partitions=4

"""
STACK += (
    CUT
    + """

%body (state: (s32[], bf16[5,32,256], bf16[32,256])) -> (s32[], bf16[5,32,256], bf16[32,256]) {
  %state = (s32[], bf16[5,32,256]{2,1,0}, bf16[32,256]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %stack = bf16[5,32,256]{2,1,0} get-tuple-element(%state), index=1
  %whole = bf16[32,256]{1,0} get-tuple-element(%state), index=2
  %own = bf16[32,256]{1,0} fusion(%stack, %i), kind=kLoop, calls=%cut
  %moved = bf16[32,256]{1,0} copy(%own)
  %weights = bf16[128,256]{1,0} all-gather(%moved), channel_id=1, replica_groups=[1,4]<=[4], dimensions={0}
  %again = bf16[128,256]{1,0} all-gather(%whole), channel_id=2, replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %out = (s32[], bf16[5,32,256]{2,1,0}, bf16[32,256]{1,0}) tuple(%i, %stack, %whole)
}

ENTRY %main (x: bf16[5,32,256], w: bf16[32,256]) -> bf16[32,256] {
  %x = bf16[5,32,256]{2,1,0} parameter(0)
  %w = bf16[32,256]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %given = (s32[], bf16[5,32,256]{2,1,0}, bf16[32,256]{1,0}) tuple(%zero, %x, %w)
  %loop = (s32[], bf16[5,32,256]{2,1,0}, bf16[32,256]{1,0}) while(%given), condition=%less, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %y = bf16[32,256]{1,0} get-tuple-element(%loop), index=2
}
"""  # noqa: E501
)


def test_each_blocks_own_weights_are_gathered_once():
    weights, again = costs.collectives(hlo.parse(STACK))
    assert (weights.count, weights.repeats, weights.total) == (5, 1, 5 * 128 * 256 * 2)
    assert (again.count, again.repeats) == (5, 5)


def test_flops_of_products_count_as_often_as_their_loop_runs():
    assert costs.matmul_flops(hlo.parse(LOOP)) == 5 * 2 * 32 * 256 * 256


def test_traffic_leaves_out_what_lies_on_the_chip():
    small = 2 * 4 + 4  # the counter: two operands, one result
    x, w = 32 * 256 * 4, 256 * 256 * 2
    loop = small + (w + x) + x  # the product reads w and writes x to memory; the sum reads that and writes on-chip memory
    assert costs.traffic(hlo.parse(LOOP)) == 5 * loop + x + 2 * x


@pytest.mark.parametrize("function, shapes, flops", [
    (lambda x, y: x @ y, [(8, 16), (16, 4)], 2 * 8 * 16 * 4),
    (lambda x, y: jnp.einsum("bij,bjk->bik", x, y), [(3, 8, 16), (3, 16, 4)], 3 * 2 * 8 * 16 * 4),
    (lambda x, y: jax.lax.map(lambda z: z @ y, x), [(7, 8, 16), (16, 4)], 7 * 2 * 8 * 16 * 4),
    (lambda x, y: jax.lax.conv(x, y, (1, 1), "VALID"), [(2, 3, 9, 9), (5, 3, 2, 2)], 2 * (2 * 5 * 8 * 8) * 3 * 2 * 2),
])  # fmt: skip
def test_flops_of_what_xla_compiles(function, shapes, flops):
    text = jax.jit(function).lower(*map(jnp.ones, shapes)).compile().as_text()
    assert costs.matmul_flops(hlo.parse(text)) == flops


def test_a_batched_product_that_a_tpu_writes_as_a_convolution():
    """A window over 12 places of which each output sees one: 2 x 12 x 64 x 32 x 128, not 12 times that."""
    line = ("  ROOT %c = f32[12,64,128]{2,1,0} convolution(%a, %b), window={size=12 stride=11 pad=0_0 lhs_dilate=12}, "
            "dim_labels=0bf_0oi->0bf")  # fmt: skip
    text = f"""HloModule m

ENTRY %main (a: f32[12,64,32], b: f32[12,128,32]) -> f32[12,64,128] {{
  %a = f32[12,64,32]{{2,1,0}} parameter(0)
  %b = f32[12,128,32]{{2,1,0}} parameter(1)
{line}
}}
"""
    assert costs.matmul_flops(hlo.parse(text)) == 2 * 12 * 64 * 32 * 128


def test_an_update_in_place_moves_its_rows_only():
    def step(x, rows):
        return jax.lax.fori_loop(0, 10, lambda i, x: jax.lax.dynamic_update_index_in_dim(x, rows, i, 0), x)

    x, rows = jnp.ones((10, 100_000)), jnp.ones(100_000)
    module = hlo.parse(jax.jit(step, donate_argnums=0).lower(x, rows).compile().as_text())
    assert costs.traffic(module) < 3 * x.nbytes  # 10 updates of the whole array would be 100 MB or more


# One block's weights out of a stack of five: cut out in a fusion within the product's; updated in a fusion within another.
NESTED = """
HloModule step

"""
NESTED += (
    CUT
    + """

%multiply (p2: bf16[8,32], p3: bf16[5,32,256], p4: s32[]) -> f32[8,256] {
  %p2 = bf16[8,32]{1,0} parameter(0)
  %p3 = bf16[5,32,256]{2,1,0} parameter(1)
  %p4 = s32[] parameter(2)
  %weights = bf16[32,256]{1,0} fusion(%p3, %p4), kind=kLoop, calls=%cut
  ROOT %product = f32[8,256]{1,0} convolution(%p2, %weights), dim_labels=bf_io->bf
}

%put (p5: f32[5,8,256], p6: f32[8,256], p7: s32[]) -> f32[5,8,256] {
  %p5 = f32[5,8,256]{2,1,0} parameter(0)
  %p6 = f32[8,256]{1,0} parameter(1)
  %p7 = s32[] parameter(2)
  %zero.1 = s32[] constant(0)
  %one = f32[1,8,256]{2,1,0} bitcast(%p6)
  ROOT %update = f32[5,8,256]{2,1,0} dynamic-update-slice(%p5, %one, %p7, %zero.1, %zero.1)
}

%store (p8: f32[5,8,256], p9: f32[8,256], p10: s32[]) -> f32[5,8,256] {
  %p8 = f32[5,8,256]{2,1,0} parameter(0)
  %p9 = f32[8,256]{1,0} parameter(1)
  %p10 = s32[] parameter(2)
  ROOT %inner = f32[5,8,256]{2,1,0} fusion(%p8, %p9, %p10), kind=kLoop, calls=%put
}

ENTRY %main (x: bf16[8,32], w: bf16[5,32,256], y: f32[5,8,256], i: s32[]) -> f32[5,8,256] {
  %x = bf16[8,32]{1,0} parameter(0)
  %w = bf16[5,32,256]{2,1,0} parameter(1)
  %y = f32[5,8,256]{2,1,0} parameter(2)
  %i = s32[] parameter(3)
  %row = f32[8,256]{1,0} fusion(%x, %w, %i), kind=kOutput, calls=%multiply
  ROOT %all = f32[5,8,256]{2,1,0} fusion(%y, %row, %i), kind=kLoop, calls=%store
}
"""
)


def test_a_slice_taken_in_a_nested_fusion_moves_its_own_bytes():
    x, weights, row, counter = 2 * 8 * 32, 2 * 32 * 256, 4 * 8 * 256, 4
    assert costs.traffic(hlo.parse(NESTED)) == (x + weights + counter + row) + (row + counter + row)


@pytest.mark.parametrize("space, times", [("S(1)", 1), ("", 2)])
def test_a_slice_copied_to_the_chip_moves_its_own_bytes(space, times):
    text = f"""HloModule m

ENTRY %main (a: f32[8,32]) -> f32[2,32] {{
  %a = f32[8,32]{{1,0}} parameter(0)
  %start = ((f32[8,32]{{1,0}}), f32[2,32]{{1,0:T(8,128){space}}}, s32[]{{:S(2)}}) slice-start(%a), slice={{[0:2], [0:32]}}
  ROOT %done = f32[2,32]{{1,0:T(8,128){space}}} slice-done(%start)
}}
"""
    assert costs.traffic(hlo.parse(text)) == times * 4 * 2 * 32


def test_a_librarys_working_space_is_no_traffic():
    text = """HloModule m

ENTRY %main (a: bf16[64,32], b: bf16[32,16]) -> f32[64,16] {
  %a = bf16[64,32]{1,0} parameter(0)
  %b = bf16[32,16]{1,0} parameter(1)
  %c = (f32[64,16]{1,0}, s8[33554432]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm"
  ROOT %y = f32[64,16]{1,0} get-tuple-element(%c), index=0
}
"""
    assert costs.traffic(hlo.parse(text)) == 2 * (64 * 32 + 32 * 16) + 4 * 64 * 16


@pytest.mark.parametrize("text, shapes", [
    ("f32[2,3]{1,0:T(8,128)S(1)}", [("f32", (2, 3), 1, 24)]),
    ("(bf16[4]{0}, pred[], /*index=2*/s4[6]{0}, token[])",
     [("bf16", (4,), 0, 8), ("pred", (), 0, 1), ("s4", (6,), 0, 3), ("token", (), 0, 0)]),
])  # fmt: skip
def test_shapes(text, shapes):
    assert [(s.dtype, s.dims, s.space, s.bytes) for s in hlo.parse_shapes(text)] == shapes


@pytest.mark.parametrize("groups, size", [
    ("{{0,1,2},{3,4,5}}", 3), ("[2,8]<=[16]", 8), ("[4,2]<=[2,4]T(1,0)", 2), ("{}", 16),
    ("mesh['axis_0'=2,'axis_1'=8] {'axis_1'}", 8), ("mesh['axis_0'=2,'axis_1'=8] {'axis_0','axis_1'}", 16),
])  # fmt: skip
def test_the_devices_of_a_group(groups, size):
    line = f"  %r = f32[4]{{0}} all-reduce(%x), channel_id=1, replica_groups={groups}, use_global_device_ids=true"
    assert costs.group_size(hlo.parse_instruction(line), 16) == size
