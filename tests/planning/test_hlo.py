"""Memory traffic read from the text of a compiled program: of a sliced array only the slice."""

import pytest

from tpo_jax.planning import hlo

# As the TPU compiler writes a layer's slice of stacked weights: a fusion inside of a fusion.
SLICED = """HloModule sliced

%inner (p.0: bf16[8,64,64], p.1: s32[]) -> bf16[64,64] {
  %p.0 = bf16[8,64,64]{2,1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = bf16[1,64,64]{2,1,0} dynamic-slice(%p.0, %p.1, %zero, %zero), sizes={1,64,64}
  ROOT %flat = bf16[64,64]{1,0} bitcast(%slice)
}

%outer (q.0: s32[], q.1: bf16[8,64,64], q.2: bf16[4,64]) -> bf16[4,64] {
  %q.0 = s32[] parameter(0)
  %q.1 = bf16[8,64,64]{2,1,0} parameter(1)
  %q.2 = bf16[4,64]{1,0} parameter(2)
  %weights = bf16[64,64]{1,0} fusion(%q.1, %q.0), kind=kLoop, calls=%inner
  ROOT %product = bf16[4,64]{1,0} dot(%q.2, %weights), lhs_contracting_dims={1}
}

ENTRY %main (layer: s32[], stack: bf16[8,64,64], x: bf16[4,64]) -> bf16[4,64] {
  %layer = s32[] parameter(0)
  %stack = bf16[8,64,64]{2,1,0} parameter(1)
  %x = bf16[4,64]{1,0} parameter(2)
  ROOT %out = bf16[4,64]{1,0} fusion(%layer, %stack, %x), kind=kOutput, calls=%outer
}
"""

# As it writes the slice of quantized weights, whose tiles it changes on the way.
RELAID = SLICED.replace(
    "%inner (",
    """%relaid (p.0: bf16[8,64,64]) -> bf16[8,64,64] {
  %p.0 = bf16[8,64,64]{2,1,0} parameter(0)
  ROOT %copy = bf16[8,64,64]{2,1,0} copy(%p.0)
}

%inner (""",
).replace(
    "  %slice = bf16[1,64,64]{2,1,0} dynamic-slice(%p.0,",
    "  %other = bf16[8,64,64]{2,1,0} fusion(%p.0), kind=kLoop, "
    """output_to_operand_aliasing={{}: (0, {})}, calls=%relaid
  %slice = bf16[1,64,64]{2,1,0} dynamic-slice(%other,""",
)

UPDATED = """HloModule updated

%update (p.0: bf16[8,64,64], p.1: s32[], p.2: bf16[1,64,64]) -> bf16[8,64,64] {
  %p.0 = bf16[8,64,64]{2,1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %p.2 = bf16[1,64,64]{2,1,0} parameter(2)
  %zero = s32[] constant(0)
  ROOT %updated = bf16[8,64,64]{2,1,0} dynamic-update-slice(%p.0, %p.2, %p.1, %zero, %zero)
}

ENTRY %main (stack: bf16[8,64,64], layer: s32[], part: bf16[1,64,64]) -> bf16[8,64,64] {
  %stack = bf16[8,64,64]{2,1,0:PLACE} parameter(0)
  %layer = s32[] parameter(1)
  %part = bf16[1,64,64]{2,1,0} parameter(2)
  ROOT %out = bf16[8,64,64]{2,1,0:PLACE} fusion(%stack, %layer, %part), kind=kLoop, calls=%update
}
"""

GATHERED = """HloModule gathered

%rows (p.0: bf16[1000,64], p.1: s32[4,1]) -> bf16[4,64] {
  %p.0 = bf16[1000,64]{1,0} parameter(0)
  %p.1 = s32[4,1]{1,0} parameter(1)
  ROOT %rows = bf16[4,64]{1,0} gather(%p.0, %p.1), offset_dims={1}, slice_sizes={1,64}
}

ENTRY %main (table: bf16[1000,64], ids: s32[4,1]) -> bf16[4,64] {
  %table = bf16[1000,64]{1,0} parameter(0)
  %ids = s32[4,1]{1,0} parameter(1)
  ROOT %out = bf16[4,64]{1,0} fusion(%table, %ids), kind=kLoop, calls=%rows
}
"""

LAYER, ROWS, IDS = 2 * 64 * 64, 2 * 4 * 64, 4 * 4  # bytes; those of a scalar are not counted


@pytest.mark.parametrize(
    ("text", "moved"),
    [
        (SLICED, LAYER + 2 * ROWS),
        (RELAID, LAYER + 2 * ROWS),
        (UPDATED.replace("PLACE", "T(8,128)(2,1)"), 2 * LAYER),
        (UPDATED.replace("PLACE", "T(8,128)(2,1)S(1)"), LAYER),  # the stack is on the chip
        (GATHERED, 2 * ROWS + IDS),
    ],
    ids=[
        "slice in a fusion inside",
        "slice of another layout",
        "update in place",
        "update on the chip",
        "rows of a table",
    ],
)
def test_of_a_sliced_array_the_slice_is_moved(text, moved):
    assert hlo.work(text).hbm_bytes == moved


KERNEL = """HloModule kernel

ENTRY %main (grid: s8[1,2,4], b: s32[8], q: bf16[4,8,16], k: bf16[2,8,16]) -> bf16[4,8,16] {
  %grid = s8[1,2,4]{2,1,0} parameter(0)
  %b = s32[8]{0} parameter(1)
  %q = bf16[4,8,16]{2,1,0} parameter(2)
  %k = bf16[2,8,16]{2,1,0} parameter(3)
  ROOT %NAME = bf16[4,8,16]{2,1,0} custom-call(%grid, %b, %q, %k), LAYOUTS, attributes={data={
"xprof_metadata":"{}"
}}, metadata={op_name="jit(step)/checkpoint/rematted_computation/pallas_call"}
}
""".replace(
    "LAYOUTS",
    "operand_layout_constraints={s8[1,2,4]{2,1,0}, s32[8]{0}, bf16[4,8,16]{2,1,0}, "
    "bf16[2,8,16]{2,1,0}}",
)
PRODUCT = 2 * 4 * 16 * 8 * (8 + 2) // 2  # heads, width, queries, keys and a block at the diagonal


@pytest.mark.parametrize(
    ("kernel", "products", "again"),
    [("splash_mha_fwd", 2, 0), ("splash_mha_dq", 3, 1), ("splash_mha_dkv", 4, 2), ("other", 0, 0)],
)
def test_kernels_count_by_their_products(kernel, products, again):
    """Also those whose attributes the compiler writes on several lines."""
    work = hlo.work(KERNEL.replace("NAME", f"{kernel}_residuals.1"))
    assert work.flops == work.recomputed == products * PRODUCT
    assert work.scores == again * PRODUCT
