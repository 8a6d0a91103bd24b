"""Forward and backward of the op on tensors, by the compiled kernel, without autograd."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from coeff_tuning.ops.native.library import BOOL_MASK, FLOAT_MASK, Heads, Mask, Problem, load_library

# Queries of a block at most, multiples of every vector length. Forward, more would only take memory. The backward pass
# adds to the gradients of key and value once for each block, and was fastest with more at every size measured.
_MOST_QUERIES = 48
_MOST_QUERIES_BACKWARD = 96
# Multiplications below which starting several threads takes longer than they save.
_ONE_THREAD = 2_000_000


class Call(NamedTuple):
    """Arguments of the op; shapes as in `Request`, of any float dtype up to float32."""

    query: Tensor
    key: Tensor
    value: Tensor
    coeff: Tensor
    mask: Tensor | None
    is_causal: bool
    scale: float


class Needs(NamedTuple):
    """Which gradients to compute."""

    query: bool
    key: bool
    value: bool
    coeff: bool


def empty_results(call: Call) -> tuple[Tensor, Tensor]:
    """Uninitialised `(B, H, L, Ev)`, positions before heads in memory, and `(2, B, H, L)` in float32."""
    batch, heads, length, _ = call.query.shape
    out = call.query.new_empty((batch, length, heads, call.value.shape[-1])).transpose(1, 2)
    return out, call.query.new_empty((2, batch, heads, length), dtype=torch.float32)


def empty_gradients(call: Call, needs: Needs) -> list[Tensor]:
    """Uninitialised gradients of what is needed, in the dtype and memory layout of their inputs."""
    return [torch.empty_like(x) for x, is_needed in zip(call[:4], needs, strict=True) if is_needed]


def forward(call: Call) -> tuple[Tensor, Tensor]:
    """Attention with mixed maps.

    Args:
        call: arguments of the op.

    Returns:
        `(B, H, L, Ev)` in the dtype of `query`, and what the backward pass needs, `(2, B, H, L)` in float32: the
        largest score m of each query, and `1 / sum(exp(score - m))`, or 0 for a query with nothing to attend to. (A
        log-sum-exp would lose the sum beside a score of -1e38.)
    """
    library, _ = load_library()
    out, stats = empty_results(call)
    inputs = _Inputs(call, library.coeff_lanes())
    result = inputs.target(out, inputs.value)
    problem = inputs.problem(_MOST_QUERIES, is_forward=True)
    problem.out, problem.stats = Heads.of(result), stats.data_ptr()
    _launch(problem, library.coeff_forward_floats, library.coeff_forward)
    if result is not out:
        out.copy_(result[..., : out.shape[-1]])
    return out, stats


def backward(grad: Tensor, call: Call, stats: Tensor, needs: Needs) -> list[Tensor]:
    """Gradients of `forward`; the maps are computed again.

    Args:
        grad: of the output, `(B, H, L, Ev)`.
        call: arguments of the forward.
        stats: the second result of the forward.
        needs: which gradients to compute.

    Returns:
        Those gradients, in the dtype and memory layout of their inputs.
    """
    library, _ = load_library()
    inputs = _Inputs(call, library.coeff_lanes())
    dout = inputs.padded(grad)
    gradients = empty_gradients(call, needs)
    kernel_inputs = [inputs.query, inputs.key, inputs.value]
    remaining = iter(gradients)
    targets = [inputs.target(next(remaining), x) if n else None for x, n in zip(kernel_inputs, needs, strict=False)]
    problem = inputs.problem(_MOST_QUERIES_BACKWARD, is_forward=False)
    dcoeff = torch.zeros(problem.threads, *call.coeff.shape) if needs.coeff else None
    problem.dout, problem.stats = Heads.of(dout), stats.data_ptr()
    problem.dquery, problem.dkey, problem.dvalue = (Heads.of(x) for x in targets)
    problem.dcoeff = None if dcoeff is None else dcoeff.data_ptr()
    for added_to in filter(torch.is_tensor, targets[1:]):
        added_to.zero_()
    _launch(problem, library.coeff_backward_floats, library.coeff_backward)
    computed = [x for x in targets if x is not None] + ([] if dcoeff is None else [dcoeff.sum(0)])
    for gradient, result in zip(gradients, computed, strict=True):
        if result is not gradient:
            gradient.copy_(result[..., : gradient.shape[-1]])
    return gradients


class _Inputs:
    """Inputs as the kernel reads them: float32, last dimension contiguous, head sizes a multiple of its vectors."""

    def __init__(self, call: Call, lanes: int) -> None:
        self.call, self.lanes = call, lanes
        self.query, self.key, self.value = (self.padded(x) for x in (call.query, call.key, call.value))
        self.coeff = call.coeff.to(torch.float32).contiguous()
        self.mask = call.mask
        if self.mask is not None and self.mask.dtype != torch.bool:
            self.mask = self.mask.to(torch.float32)

    def padded(self, tensor: Tensor) -> Tensor:
        if tensor.dtype != torch.float32:
            tensor = tensor.to(torch.float32)
        if tensor.shape[-1] % self.lanes:
            return pad(tensor, (0, -tensor.shape[-1] % self.lanes))
        return tensor if tensor.stride(-1) == 1 else tensor.contiguous()

    def target(self, result: Tensor, like: Tensor) -> Tensor:
        """Where the kernel writes a result of the size of `like`: into it, or aside, to be copied."""
        can_write = result.dtype == torch.float32 and result.shape[-1] == like.shape[-1] and result.stride(-1) == 1
        return result if can_write else like.new_empty((*result.shape[:-1], like.shape[-1]))

    def problem(self, most_queries: int, is_forward: bool) -> Problem:
        batch, heads, length, key_size = self.query.shape
        kv_heads, source = self.key.shape[1:3]
        problem = Problem(batch, heads, kv_heads, length, source, key_size, self.value.shape[-1])
        problem.query, problem.key, problem.value = (Heads.of(x) for x in (self.query, self.key, self.value))
        problem.coeff = self.coeff.data_ptr()
        problem.coeff_batch = heads * heads if self.coeff.dim() == 3 else 0
        if self.mask is not None:
            kind = BOOL_MASK if self.mask.dtype == torch.bool else FLOAT_MASK
            steps = self.mask.expand(batch, heads, length, source).stride()
            problem.mask = Mask(self.mask.data_ptr(), kind, *steps)
        problem.is_causal, problem.scale = self.call.is_causal, self.call.scale
        work = batch * heads * length * source * (key_size + self.value.shape[-1])
        problem.threads = torch.get_num_threads() if work > _ONE_THREAD else 1
        sharers = problem.threads if is_forward else 1  # backward, threads share a block or take whole batch items
        problem.block_queries = _even_blocks(batch, length, most_queries, self.lanes, sharers)
        return problem


def _even_blocks(batch: int, length: int, most_queries: int, lanes: int, sharers: int) -> int:
    """Queries of a block, at most `most_queries`: those that leave least to the busiest of `sharers` threads."""

    def size(blocks: int) -> int:
        return -(-length // (blocks * lanes)) * lanes

    def longest(blocks: int) -> int:
        return -(-batch * blocks // sharers) * size(blocks)

    least = -(-length // most_queries)
    return size(min(range(least, least + sharers), key=longest))


def _launch(problem: Problem, floats: Any, function: Any) -> None:
    problem.workspace_floats = floats(ctypes.byref(problem))
    workspace = torch.empty(problem.workspace_floats * problem.threads)
    problem.workspace = workspace.data_ptr()
    function(ctypes.byref(problem))
