"""How a call is cut into blocks, the attention maps of one block, and their dropout.

A block holds some batch items, all their heads, some queries, and every key these may see. Key/value heads
that serve `G = H // Hkv` query heads are never repeated: the `G` heads lie side by side in the rows of one
product.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from coeff_tuning.ops.request import compute_dtype, dead_rows

_BLOCK_BYTES = {"cpu": 4 << 20}
_BLOCK_BYTES_ELSEWHERE = 128 << 20
_MIN_ROWS = 32


@dataclass(frozen=True)
class Block:
    """Batch items `items`, their queries `rows`, and the keys `0..keys-1` that these may see."""

    items: slice
    rows: slice
    keys: int


class Blocks:
    """The blocks of one call, in the one order that forward and backward share.

    Args:
        query: `(B, H, L, E)`.
        key: `(B, Hkv, S, E)`.
        mask: as in `Request`, or None.
        is_causal: query `i` sees keys `0..i`.
        block_bytes: aim for the scores of one block. None: what was measured to be fast on this device.
    """

    def __init__(
        self, query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, block_bytes: int | None
    ) -> None:
        self.batch, self.heads, self.length, _ = query.shape
        self.kv_heads, self.source = key.shape[1:3]
        self.dtype = compute_dtype(query.dtype)
        self.device = query.device
        self.is_causal = is_causal
        self.mask = mask
        self.dead = None if mask is None else dead_rows(mask)
        if self.dead is not None and self.dead.device.type == "cpu" and not self.dead.any():
            self.dead = None

        row_bytes = self.heads * self.source * self.dtype.itemsize
        if block_bytes is None:
            block_bytes = _BLOCK_BYTES.get(self.device.type, _BLOCK_BYTES_ELSEWHERE)
            block_bytes = max(block_bytes, _MIN_ROWS * row_bytes)
        row_blocks = ceil(self.length / max(1, block_bytes // row_bytes))
        self.rows = ceil(self.length / row_blocks)
        self.items = min(self.batch, max(1, block_bytes // (row_bytes * self.length)))
        future = torch.full((self.rows, self.rows), -torch.inf, dtype=self.dtype, device=self.device)
        self.future = future.triu(1)

    def items_slices(self) -> Iterator[slice]:
        """Batch items of the blocks, in order."""
        for start in range(0, self.batch, self.items):
            yield slice(start, min(start + self.items, self.batch))

    def of_items(self, items: slice) -> Iterator[Block]:
        """Blocks of these batch items, in order."""
        for start in range(0, self.length, self.rows):
            stop = min(start + self.rows, self.length)
            yield Block(items, slice(start, stop), min(stop, self.source) if self.is_causal else self.source)

    def buffer(self) -> Tensor:
        """Uninitialised memory for one number per entry of the maps of the largest block."""
        size = self.items * self.heads * self.rows * self.source
        return torch.empty(size, dtype=self.dtype, device=self.device)

    def by_head(self, buffer: Tensor, block: Block) -> Tensor:
        """Buffer as `(b, H, l, s)` of a block."""
        items, rows = block.items.stop - block.items.start, block.rows.stop - block.rows.start
        shape = (items, self.heads, rows, block.keys)
        return buffer[: items * self.heads * rows * block.keys].view(shape)

    def by_kv(self, buffer: Tensor, block: Block) -> Tensor:
        """Buffer as `(b*Hkv, G*l, s)` of a block: the operand of a product with keys or values."""
        maps = self.by_head(buffer, block)
        return maps.view(maps.shape[0] * self.kv_heads, -1, block.keys)

    def flat(self, buffer: Tensor, block: Block) -> Tensor:
        """Buffer as `(b, H, l*s)` of a block: the operand of a product with the coefficients."""
        return self.by_head(buffer, block).flatten(2)

    def rows_by_kv(self, tensor: Tensor, block: Block) -> Tensor:
        """Queries of a block, of a `(B, H, L, X)` tensor, as `(b*Hkv, G*l, X)`."""
        part = tensor[block.items, :, block.rows].to(self.dtype)
        return part.reshape(part.shape[0] * self.kv_heads, -1, part.shape[-1])

    def all_keys(self, tensor: Tensor, items: slice) -> Tensor:
        """All positions of some batch items of a `(B, Hkv, S, X)` tensor, as `(b*Hkv, S, X)`."""
        return tensor[items].to(self.dtype).flatten(0, 1)

    def mask_part(self, tensor: Tensor, block: Block) -> Tensor:
        """Part of a mask-shaped tensor, sizes 1 kept, that falls on a block."""
        whole = slice(None)
        batch, _, length, source = tensor.shape
        return tensor[
            block.items if batch > 1 else whole,
            :,
            block.rows if length > 1 else whole,
            : block.keys if source > 1 else 1,
        ]

    def write_maps(self, query: Tensor, key: Tensor, scale: float, block: Block, out: Tensor) -> Tensor:
        """Write `softmax(scale * query @ key.T + mask)` of one block.

        Args:
            query: `(b*Hkv, G*l, E)`.
            key: `(b*Hkv, s, E)`.
            scale: factor on the scores.
            block: which one.
            out: a `buffer()`.

        Returns:
            `out` as `(b, H, l, s)`.
        """
        scores = self.by_kv(out, block)
        torch.baddbmm(scores, query, key.mT, beta=0, alpha=scale, out=scores)
        maps = self.by_head(out, block)
        if self.is_causal and block.rows.start < block.keys:
            recent = maps[..., block.rows.start :]
            recent.add_(self.future[: recent.shape[-2], : recent.shape[-1]])
        if self.mask is not None:
            mask = self.mask_part(self.mask, block)
            if mask.dtype == torch.bool:
                bias = torch.zeros(mask.shape, dtype=self.dtype, device=self.device)
                mask = bias.masked_fill_(~mask, -torch.inf)
            maps.add_(mask)
        torch.softmax(maps, dim=-1, out=maps)
        if self.dead is not None:
            maps.masked_fill_(self.mask_part(self.dead, block), 0.0)
        return maps


class Dropout:
    """Drops entries of maps: the same ones whenever the blocks of a call are gone through in order."""

    def __init__(self, blocks: Blocks, seed: Tensor | None, probability: float) -> None:
        self.blocks = blocks
        self.keep = 1.0 - probability
        self.generator: torch.Generator | None = None
        self.factor: Tensor | None = None  # 0 or 1 / keep, per entry of the last block
        if seed is not None:
            self.generator = torch.Generator(blocks.device).manual_seed(int(seed))
            self.factor = blocks.buffer()

    def apply(self, maps: Tensor, block: Block, out: Tensor) -> Tensor:
        """Write the maps without the dropped entries to `out`; returns the buffer that holds them."""
        if self.factor is None:
            return maps
        factor = self.blocks.by_head(self.factor, block)
        factor.bernoulli_(self.keep, generator=self.generator).div_(self.keep)
        torch.mul(self.blocks.by_head(maps, block), factor, out=self.blocks.by_head(out, block))
        return out

    def backward_(self, grad: Tensor, block: Block) -> None:
        """Make the gradient of the last dropped maps that of the maps, in place."""
        if self.factor is not None:
            self.blocks.by_head(grad, block).mul_(self.blocks.by_head(self.factor, block))
