"""Kernels of the backward pass; maps are computed again in each.

With `dmixed[h] = dout[h] @ value[h].T` and `dmaps[g] = sum_h(coeff[h, g] * dmixed[h])`:

    dcoeff[h, g] = sum(dmixed[h] * maps[g])
    delta[g]     = sum over keys of maps[g] * dmaps[g]                 # per row
    dscores[g]   = maps[g] * (dmaps[g] - delta[g])
    dquery[g]    = scale * dscores[g] @ key[g]
    dkey[g]      = scale * dscores[g].T @ query[g]
    dvalue[h]    = mixed[h].T @ dout[h]
"""

import triton
import triton.language as tl

from coeff_tuning.ops.triton._tiles import (
    add_product,
    find_program,
    gradient_positions,
    key_positions,
    load,
    load_mixer,
    maps,
    mix,
    products,
    query_positions,
    row_pointers,
    store,
)


@triton.jit
def delta_kernel(
    query,
    key,
    value,
    coeff_transposed,
    mask,
    statistics,
    grad,
    delta,
    dcoeff,
    length,
    source,
    scale,
    plan: tl.constexpr,
):
    """Write `delta` of one block of queries, and its part of `dcoeff`, `(mix_size, mix_size)` per program."""
    block, _, batch = find_program(tl.cdiv(length, plan.queries), plan)
    rows = query_positions(0, block * plan.queries, length, plan.bundles, plan)
    mixer = load_mixer(coeff_transposed, batch, 0, plan.bundles, plan)
    sums = tl.full((plan.mix_parts, plan.mix_size, plan.mix_size), 0.0, tl.float32)
    total = tl.full((plan.bundles, plan.rows), 0.0, tl.float32)
    stop = tl.minimum(source, (block + 1) * plan.queries) if plan.is_causal else source
    for start in range(0, stop, plan.keys):
        keys = key_positions(0, start, source, plan.bundles, plan)
        tile = maps(query, key, mask, statistics, batch, rows, keys, length, source, scale, plan.bundles, plan)
        dmixed = products(grad, value, batch, rows, keys, plan.value_size, plan.chunk, plan.bundles, plan)
        total += tl.sum(tile * mix(mixer, dmixed, plan.bundles, plan), axis=2)
        sums = add_coeff_gradient(sums, dmixed, tile, plan)
    tl.store(row_pointers(delta, batch, rows, length, plan), total, mask=rows[2])
    row = tl.arange(0, plan.mix_size)[:, None]
    column = tl.arange(0, plan.mix_size)[None, :]
    place = tl.program_id(0).to(tl.int64) * plan.mix_size * plan.mix_size
    tl.store(dcoeff + place + row * plan.mix_size + column, tl.sum(sums, axis=0))


@triton.jit
def add_coeff_gradient(sums, dmixed, tile, plan: tl.constexpr):
    """Add `dmixed @ maps.T` over all entries of a tile; in parts where one product is too small for all warps."""
    if plan.mix_parts == 1:
        left = tl.reshape(dmixed, (plan.mix_size, plan.mix_columns))
        right = tl.reshape(tile, (plan.mix_size, plan.mix_columns))
        return sums + tl.dot(left, tl.permute(right, (1, 0)), input_precision=plan.mix_precision)[None, :, :]
    part: tl.constexpr = plan.mix_columns // plan.mix_parts
    left = tl.permute(tl.reshape(dmixed, (plan.mix_size, plan.mix_parts, part)), (1, 0, 2))
    right = tl.permute(tl.reshape(tile, (plan.mix_size, plan.mix_parts, part)), (1, 2, 0))
    return tl.dot(left, right, sums, input_precision=plan.mix_precision)


@triton.jit
def dscores(
    query,
    key,
    value,
    mixer,
    mask,
    statistics,
    grad,
    delta,
    batch,
    first,
    row_start,
    key_start,
    length,
    source,
    scale,
    plan: tl.constexpr,
):
    """Gradient of the scores of bundles `first...`, `(outputs, rows, keys)`."""
    all_rows = query_positions(0, row_start, length, plan.bundles, plan)
    all_keys = key_positions(0, key_start, source, plan.bundles, plan)
    dmixed = products(grad, value, batch, all_rows, all_keys, plan.value_size, plan.chunk, plan.bundles, plan)
    dmaps = mix(mixer, dmixed, plan.outputs, plan)
    rows = query_positions(first, row_start, length, plan.outputs, plan)
    keys = key_positions(first, key_start, source, plan.outputs, plan)
    tile = maps(query, key, mask, statistics, batch, rows, keys, length, source, scale, plan.outputs, plan)
    total = tl.load(row_pointers(delta, batch, rows, length, plan), mask=rows[2], other=0.0)
    return tile * (dmaps - total[:, :, None])


@triton.jit
def query_gradient_kernel(
    query,
    key,
    value,
    coeff_transposed,
    mask,
    statistics,
    grad,
    delta,
    dquery,
    length,
    source,
    scale,
    plan: tl.constexpr,
):
    """Write `dquery` of one block of queries."""
    block, first, batch = find_program(tl.cdiv(length, plan.queries), plan)
    row_start = block * plan.queries
    mixer = load_mixer(coeff_transposed, batch, first, plan.outputs, plan)
    total = tl.full((plan.outputs, plan.rows, plan.head_padded), 0.0, tl.float32)
    stop = tl.minimum(source, row_start + plan.queries) if plan.is_causal else source
    for start in range(0, stop, plan.keys):
        tile = dscores(
            query, key, value, mixer, mask, statistics, grad, delta, batch, first, row_start, start,
            length, source, scale, plan,
        )  # fmt: skip
        keys = key_positions(first, start, source, plan.outputs, plan)
        operand = load(key, batch, keys, 0, plan.head_padded, plan.head_size)
        total = add_product(total, tile, operand, plan)
    rows = query_positions(first, row_start, length, plan.outputs, plan)
    store(dquery, batch, rows, scale * total, plan.head_padded, plan.head_size)


@triton.jit
def key_gradient_kernel(
    query,
    key,
    value,
    coeff_transposed,
    mask,
    statistics,
    grad,
    delta,
    dkey,
    length,
    source,
    scale,
    plan: tl.constexpr,
):
    """Write `dkey` of one block of keys."""
    block, first, batch = find_program(tl.cdiv(source, plan.keys), plan)
    key_start = block * plan.keys
    mixer = load_mixer(coeff_transposed, batch, first, plan.outputs, plan)
    total = tl.full((plan.outputs, plan.keys, plan.head_padded), 0.0, tl.float32)
    begin = key_start // plan.queries * plan.queries if plan.is_causal else 0
    for start in range(begin, length, plan.queries):
        tile = dscores(
            query, key, value, mixer, mask, statistics, grad, delta, batch, first, start, key_start,
            length, source, scale, plan,
        )  # fmt: skip
        rows = query_positions(first, start, length, plan.outputs, plan)
        operand = load(query, batch, rows, 0, plan.head_padded, plan.head_size)
        total = add_product(total, tl.permute(tile, (0, 2, 1)), operand, plan)
    bundles = gradient_positions(first, key_start, source, plan.outputs, plan)
    store(dkey, batch, bundles, scale * total, plan.head_padded, plan.head_size)


@triton.jit
def value_gradient_kernel(query, key, coeff, mask, statistics, grad, dvalue, length, source, scale, plan: tl.constexpr):
    """Write `dvalue` of one block of keys."""
    block, first, batch = find_program(tl.cdiv(source, plan.keys), plan)
    key_start = block * plan.keys
    all_keys = key_positions(0, key_start, source, plan.bundles, plan)
    mixer = load_mixer(coeff, batch, first, plan.outputs, plan)
    total = tl.full((plan.outputs, plan.keys, plan.value_padded), 0.0, tl.float32)
    begin = key_start // plan.queries * plan.queries if plan.is_causal else 0
    for start in range(begin, length, plan.queries):
        all_rows = query_positions(0, start, length, plan.bundles, plan)
        tile = maps(query, key, mask, statistics, batch, all_rows, all_keys, length, source, scale, plan.bundles, plan)
        mixed = mix(mixer, tile, plan.outputs, plan)
        rows = query_positions(first, start, length, plan.outputs, plan)
        operand = load(grad, batch, rows, 0, plan.value_padded, plan.value_size)
        total = add_product(total, tl.permute(mixed, (0, 2, 1)), operand, plan)
    bundles = gradient_positions(first, key_start, source, plan.outputs, plan)
    store(dvalue, batch, bundles, total, plan.value_padded, plan.value_size)
