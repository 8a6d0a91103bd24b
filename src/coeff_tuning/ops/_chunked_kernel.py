"""Forward and backward of the op, block by block, in plain torch without autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from coeff_tuning.ops._blocks import Block, Blocks, Dropout
from coeff_tuning.ops._call import Call, Gradients, Needs, empty_gradients, empty_output, is_empty


def forward(call: Call, block_bytes: int | None = None) -> Tensor:
    """Attention with mixed maps.

    Args:
        call: arguments of the op.
        block_bytes: see `Blocks`.

    Returns:
        `(B, H, L, Ev)`, dtype of `query`.
    """
    out = empty_output(call)
    if is_empty(call):
        return out.zero_()
    blocks = Blocks(call.query, call.key, call.mask, call.is_causal, block_bytes)
    dropout = Dropout(blocks, call.seed, call.dropout_p)
    maps, mixed = blocks.buffer(), blocks.buffer()
    for items in blocks.items_slices():
        keys, values = blocks.all_keys(call.key, items), blocks.all_keys(call.value, items)
        mixer = _mixer(call.coeff, items, blocks.dtype)
        for block in blocks.of_items(items):
            rows = blocks.rows_by_kv(call.query, block)
            blocks.write_maps(rows, keys[:, : block.keys], call.scale, block, out=maps)
            dropped = dropout.apply(maps, block, out=maps)
            mixture = _mix(mixer, dropped, blocks, block, out=mixed)
            target = out[items, :, block.rows]
            target.copy_(torch.bmm(blocks.by_kv(mixture, block), values[:, : block.keys]).view(target.shape))
    return out


def backward(grad: Tensor, call: Call, needs: Needs, block_bytes: int | None = None) -> Gradients:
    """Gradients of `forward`; the maps are computed again, block by block.

    Args:
        grad: of the output, `(B, H, L, Ev)`.
        call: arguments of the forward.
        needs: which gradients to compute.
        block_bytes: that of the forward.

    Returns:
        Gradients in the dtype of their inputs, None where not needed.
    """
    gradients = empty_gradients(call, needs)
    if is_empty(call):
        return gradients.zero_()
    return _Backward(grad, call, gradients, block_bytes).run()


class _Backward:
    """Buffers and sums of one backward pass."""

    def __init__(self, grad: Tensor, call: Call, gradients: Gradients, block_bytes: int | None) -> None:
        self.grad, self.call, self.gradients = grad, call, gradients
        self.blocks = Blocks(call.query, call.key, call.mask, call.is_causal, block_bytes)
        self.dropout = Dropout(self.blocks, call.seed, call.dropout_p)
        self.maps, self.mixed = self.blocks.buffer(), self.blocks.buffer()
        self.dmaps = self.mixed if call.coeff is None else self.blocks.buffer()
        self.dropped = self.maps if call.seed is None else self.blocks.buffer()
        self.dcoeff = _zeros(gradients.coeff, self.blocks.dtype)
        self.dmask = _zeros(gradients.mask, self.blocks.dtype)

    def run(self) -> Gradients:
        """Go through all blocks."""
        for items in self.blocks.items_slices():
            self.run_items(items)
        for total, gradient in ((self.dcoeff, self.gradients.coeff), (self.dmask, self.gradients.mask)):
            if total is not None and gradient is not None:
                gradient.copy_(total)
        return self.gradients

    def run_items(self, items: slice) -> None:
        """Go through the blocks of some batch items, whose keys and values are summed over."""
        keys = self.blocks.all_keys(self.call.key, items)
        values = self.blocks.all_keys(self.call.value, items)
        dkeys = None if self.gradients.key is None else torch.zeros_like(keys)
        dvalues = None if self.gradients.value is None else torch.zeros_like(values)
        mixer = _mixer(self.call.coeff, items, self.blocks.dtype)
        for block in self.blocks.of_items(items):
            seen = slice(block.keys)
            self.run_block(
                block,
                mixer,
                keys[:, seen],
                values[:, seen],
                None if dkeys is None else dkeys[:, seen],
                None if dvalues is None else dvalues[:, seen],
            )
        for total, gradient in ((dkeys, self.gradients.key), (dvalues, self.gradients.value)):
            if total is not None and gradient is not None:
                gradient[items] = total.view(gradient[items].shape)

    def run_block(
        self,
        block: Block,
        mixer: Tensor | None,
        keys: Tensor,
        values: Tensor,
        dkeys: Tensor | None,
        dvalues: Tensor | None,
    ) -> None:
        """Add the gradients of one block; `keys` and `values` are `(b*Hkv, s, .)`, `mixer` is `(b, H, H)`."""
        blocks, scale, dquery = self.blocks, self.call.scale, self.gradients.query
        rows, drows = blocks.rows_by_kv(self.call.query, block), blocks.rows_by_kv(self.grad, block)
        blocks.write_maps(rows, keys, scale, block, out=self.maps)
        dropped = self.dropout.apply(self.maps, block, out=self.dropped)
        if dvalues is not None:
            mixture = _mix(mixer, dropped, blocks, block, out=self.mixed)
            dvalues.baddbmm_(blocks.by_kv(mixture, block).mT, drows)

        wants_scores = any(x is not None for x in (dquery, dkeys, self.dmask))
        if not wants_scores and self.dcoeff is None:
            return
        torch.bmm(drows, values.mT, out=blocks.by_kv(self.mixed, block))
        if self.dcoeff is not None:
            part = torch.bmm(blocks.flat(self.mixed, block), blocks.flat(dropped, block).mT)  # (b, H, H)
            target = self.dcoeff[block.items] if self.dcoeff.dim() == 3 else self.dcoeff
            target.add_(part.sum_to_size(target.shape))

        if not wants_scores:
            return
        _mix(None if mixer is None else mixer.mT, self.mixed, blocks, block, out=self.dmaps)
        self.dropout.backward_(self.dmaps, block)
        dscores = blocks.by_head(self.dmaps, block)
        _softmax_backward_(dscores, blocks.by_head(self.maps, block))
        if self.dmask is not None:
            target = blocks.mask_part(self.dmask, block)
            target.add_(dscores.sum_to_size(target.shape))
        if dquery is not None:
            target = dquery[block.items, :, block.rows]
            part = torch.bmm(blocks.by_kv(self.dmaps, block), keys)
            torch.mul(part.view(target.shape), scale, out=target)
        if dkeys is not None:
            dkeys.baddbmm_(blocks.by_kv(self.dmaps, block).mT, rows, alpha=scale)


def _zeros(like: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if like is None else torch.zeros_like(like, dtype=dtype)


def _mixer(coeff: Tensor | None, items: slice, dtype: torch.dtype) -> Tensor | None:
    """Coefficients of some batch items, `(b, H, H)`."""
    if coeff is None:
        return None
    part = coeff[items] if coeff.dim() == 3 else coeff.expand(items.stop - items.start, -1, -1)
    return part.to(dtype)


def _mix(mixer: Tensor | None, maps: Tensor, blocks: Blocks, block: Block, out: Tensor) -> Tensor:
    """Write `mixer @ maps`, over heads, to `out`; returns the buffer that holds it, `maps` if identity."""
    if mixer is None:
        return maps
    torch.bmm(mixer, blocks.flat(maps, block), out=blocks.flat(out, block))
    return out


def _softmax_backward_(grad: Tensor, maps: Tensor) -> None:
    """Make the gradient of maps that of their scores, in place."""
    torch.ops.aten._softmax_backward_data.out(grad, maps, -1, grad.dtype, grad_input=grad)
