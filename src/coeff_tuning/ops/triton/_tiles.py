"""What the kernels are made of. Positions of a tile, tiles of a tensor with any strides, maps, mixtures.

A tensor comes as `(pointer, stride of the batch, of heads, of positions, of features)`; positions come as
`(head, position, exists)`, of which `head` and `exists` are `(bundles, rows)` and `position` is `(1, rows)`.
Offsets are 64 bits wide: `B*H*L*E` may exceed 2^31.
"""

import triton
import triton.language as tl


@triton.jit
def find_program(blocks, plan: tl.constexpr):
    """Block of positions, first bundle of the outputs, and batch item of this program."""
    program = tl.program_id(0)
    sets: tl.constexpr = plan.bundles // plan.outputs
    return program % blocks, program // blocks % sets * plan.outputs, (program // blocks // sets).to(tl.int64)


@triton.jit
def real_heads(padded, plan: tl.constexpr):
    """Query heads that stand at these places of a tile, and whether they exist."""
    bundle = padded // plan.members
    kv_head = bundle // plan.split
    member = bundle % plan.split * plan.members + padded % plan.members
    return kv_head * plan.group + member, (kv_head < plan.kv_heads) & (member < plan.group)


@triton.jit
def query_positions(first, start, length, bundles: tl.constexpr, plan: tl.constexpr):
    """Positions of the rows of bundles `first...`, for queries `start...`."""
    row = tl.arange(0, plan.rows)[None, :]
    bundle = first + tl.arange(0, bundles)[:, None]
    head, exists = real_heads(bundle * plan.members + row // plan.queries, plan)
    position = start + row % plan.queries
    return head.to(tl.int64), position.to(tl.int64), exists & (position < length)


@triton.jit
def key_positions(first, start, source, bundles: tl.constexpr, plan: tl.constexpr):
    """Positions of the keys of bundles `first...`, for keys `start...`."""
    bundle, position, exists = gradient_positions(first, start, source, bundles, plan)
    return bundle // plan.split, position, exists


@triton.jit
def gradient_positions(first, start, source, bundles: tl.constexpr, plan: tl.constexpr):
    """The same with bundles in the place of key/value heads, for sums that each bundle has its own of."""
    bundle = first + tl.arange(0, bundles)[:, None]
    position = start + tl.arange(0, plan.keys)[None, :]
    exists = (bundle // plan.split < plan.kv_heads) & (position < source)
    return bundle.to(tl.int64), position.to(tl.int64), exists


@triton.jit
def pointers(tensor, batch, at, feature):
    """Addresses of features, `(bundles, rows, features)`."""
    offset = batch * tensor[1] + at[0] * tensor[2] + at[1] * tensor[3]
    return tensor[0] + offset[:, :, None] + (feature.to(tl.int64) * tensor[4])[None, None, :]


@triton.jit
def load(tensor, batch, at, start, features: tl.constexpr, size: tl.constexpr):
    """Features `start...` of a tensor that has `size` of them, `(bundles, rows, features)`; 0 elsewhere."""
    feature = start + tl.arange(0, features)
    exists = at[2][:, :, None] & (feature < size)[None, None, :]
    return tl.load(pointers(tensor, batch, at, feature), mask=exists, other=0.0)


@triton.jit
def store(tensor, batch, at, tile, features: tl.constexpr, size: tl.constexpr):
    """Write a tile of all features, in the dtype of the tensor."""
    feature = tl.arange(0, features)
    exists = at[2][:, :, None] & (feature < size)[None, None, :]
    tl.store(pointers(tensor, batch, at, feature), tile.to(tensor[0].dtype.element_ty), mask=exists)


@triton.jit
def row_pointers(vector, batch, at, length, plan: tl.constexpr):
    """Addresses in a contiguous `(B, H, L)` tensor, `(bundles, rows)`."""
    return vector + (batch * plan.heads + at[0]) * length + at[1]


@triton.jit
def products(
    left, right, batch, rows, keys, size: tl.constexpr, chunk: tl.constexpr, bundles: tl.constexpr, plan: tl.constexpr
):
    """`left @ right.T` of each head, `(bundles, rows, keys)`."""
    total = tl.full((bundles, plan.rows, plan.keys), 0.0, tl.float32)
    for start in tl.range(0, size, chunk):
        a = load(left, batch, rows, start, chunk, size)
        b = load(right, batch, keys, start, chunk, size)
        total = tl.dot(a, tl.permute(b, (0, 2, 1)), total, input_precision="ieee")
    return total


@triton.jit
def add_product(total, tile, operand, plan: tl.constexpr):
    """`total + tile @ operand`, for a tile in float32.

    Rounded to half precision, the tile alone would bring an error as large as that of rounding the result; so what
    the rounding leaves over is multiplied too. In float16 that is little for entries below 1e-4, as of maps of some
    10,000 keys: those are as exact as rounded ones.
    """
    rounded = tile.to(operand.dtype)
    total = tl.dot(rounded, operand, total, input_precision="ieee")
    if not plan.is_single:
        rest = (tile - rounded.to(tl.float32)).to(operand.dtype)
        total = tl.dot(rest, operand, total)
    return total


@triton.jit
def masked(scores, mask, batch, rows, keys, length, source, plan: tl.constexpr):
    """Scores with -inf for what takes no part."""
    key = keys[1][:, None, :]
    seen = key < source
    if plan.is_causal:
        seen = seen & (key <= rows[1][:, :, None])
    if plan.mask != "":
        offset = batch * mask[1] + rows[1] * mask[3]  # (1, rows)
        exists = rows[1] < length
        if plan.mask_per_head:
            offset = offset + rows[0] * mask[2]  # (bundles, rows)
            exists = rows[2]
        entries = tl.load(
            mask[0] + offset[:, :, None] + key * mask[4], mask=exists[:, :, None] & (key < source), other=0
        )
        if plan.mask == "bool":
            seen = seen & (entries != 0)
        else:
            scores = scores + entries.to(tl.float32)
    return tl.where(seen, scores, float("-inf"))


@triton.jit
def load_statistics(statistics, batch, rows, length, plan: tl.constexpr):
    """Largest score and 1 / sum of each row; of rows that do not exist, values that make maps of zeros."""
    largest = tl.load(row_pointers(statistics[0], batch, rows, length, plan), mask=rows[2], other=float("inf"))
    inverse = tl.load(row_pointers(statistics[1], batch, rows, length, plan), mask=rows[2], other=0.0)
    return largest, inverse


@triton.jit
def maps(
    query,
    key,
    mask,
    statistics,
    batch,
    rows,
    keys,
    length,
    source,
    scale,
    bundles: tl.constexpr,
    plan: tl.constexpr,
):
    """Attention maps, `(bundles, rows, keys)`; zeros for what does not exist or takes no part."""
    scores = scale * products(query, key, batch, rows, keys, plan.head_size, plan.chunk, bundles, plan)
    scores = masked(scores, mask, batch, rows, keys, length, source, plan)
    largest, inverse = load_statistics(statistics, batch, rows, length, plan)
    return tl.exp(scores - largest[:, :, None]) * inverse[:, :, None]


@triton.jit
def load_mixer(coeff, batch, first, bundles: tl.constexpr, plan: tl.constexpr):
    """Rows of the coefficients for bundles `first...`; as a Kronecker product with an identity of `mix_width`."""
    row = tl.arange(0, bundles * plan.members * plan.mix_width)[:, None]
    column = tl.arange(0, plan.mix_size)[None, :]
    out_head, out_exists = real_heads(first * plan.members + row // plan.mix_width, plan)
    in_head, in_exists = real_heads(column // plan.mix_width, plan)
    exists = out_exists & in_exists & (row % plan.mix_width == column % plan.mix_width)
    offset = batch * coeff[1] + out_head * coeff[2] + in_head * coeff[3]
    return tl.load(coeff[0] + offset, mask=exists, other=0.0).to(tl.float32)


@triton.jit
def mix(mixer, tile, bundles: tl.constexpr, plan: tl.constexpr):
    """Mix a tile of all heads into `bundles` of them."""
    columns = tl.reshape(tile, (plan.mix_size, plan.mix_columns))
    mixed = tl.dot(mixer, columns, input_precision=plan.mix_precision)
    return tl.reshape(mixed, (bundles, plan.rows, plan.keys))
