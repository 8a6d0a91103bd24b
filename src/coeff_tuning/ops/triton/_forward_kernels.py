"""Kernels of the forward pass: statistics of the softmax of every row, then outputs."""

import triton
import triton.language as tl

from coeff_tuning.ops.triton._tiles import (
    add_product,
    find_program,
    key_positions,
    load,
    load_mixer,
    maps,
    masked,
    mix,
    products,
    query_positions,
    row_pointers,
    store,
)


@triton.jit
def statistics_kernel(query, key, mask, statistics, length, source, scale, plan: tl.constexpr):
    """Write the largest score of each row and the inverse of `sum(exp(score - largest))`.

    The two are kept apart: their sum, the usual log-sum-exp, loses the sum where scores are large. A row with
    nothing to attend to gets `inf` and 0, from which maps of zeros follow.
    """
    block, first, batch = find_program(tl.cdiv(length, plan.queries), plan)
    rows = query_positions(first, block * plan.queries, length, plan.outputs, plan)
    largest = tl.full((plan.outputs, plan.rows), float("-inf"), tl.float32)
    total = tl.full((plan.outputs, plan.rows), 0.0, tl.float32)
    stop = tl.minimum(source, (block + 1) * plan.queries) if plan.is_causal else source
    for start in range(0, stop, plan.keys):
        keys = key_positions(first, start, source, plan.outputs, plan)
        scores = scale * products(query, key, batch, rows, keys, plan.head_size, plan.chunk, plan.outputs, plan)
        scores = masked(scores, mask, batch, rows, keys, length, source, plan)
        larger = tl.maximum(largest, tl.max(scores, axis=2))
        shift = tl.where(larger == float("-inf"), 0.0, larger)
        total = total * tl.exp(largest - shift) + tl.sum(tl.exp(scores - shift[:, :, None]), axis=2)
        largest = larger
    is_dead = largest == float("-inf")
    inverse = tl.where(is_dead, 0.0, 1.0 / tl.where(is_dead, 1.0, total))
    tl.store(
        row_pointers(statistics[0], batch, rows, length, plan),
        tl.where(is_dead, float("inf"), largest),
        mask=rows[2],
    )
    tl.store(row_pointers(statistics[1], batch, rows, length, plan), inverse, mask=rows[2])


@triton.jit
def output_kernel(query, key, value, coeff, mask, statistics, out, length, source, scale, plan: tl.constexpr):
    """Write `out[h] = sum_g(coeff[h, g] * maps[g]) @ value[h]` for one block of queries."""
    block, first, batch = find_program(tl.cdiv(length, plan.queries), plan)
    all_rows = query_positions(0, block * plan.queries, length, plan.bundles, plan)
    mixer = load_mixer(coeff, batch, first, plan.outputs, plan)
    total = tl.full((plan.outputs, plan.rows, plan.value_padded), 0.0, tl.float32)
    stop = tl.minimum(source, (block + 1) * plan.queries) if plan.is_causal else source
    for start in range(0, stop, plan.keys):
        all_keys = key_positions(0, start, source, plan.bundles, plan)
        tile = maps(query, key, mask, statistics, batch, all_rows, all_keys, length, source, scale, plan.bundles, plan)
        mixed = mix(mixer, tile, plan.outputs, plan)
        keys = key_positions(first, start, source, plan.outputs, plan)
        values = load(value, batch, keys, 0, plan.value_padded, plan.value_size)
        total = add_product(total, mixed, values, plan)
    rows = query_positions(first, block * plan.queries, length, plan.outputs, plan)
    store(out, batch, rows, total, plan.value_padded, plan.value_size)
