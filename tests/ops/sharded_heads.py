"""Ways to split mixed attention over processes, as docs/scaling-out.md describes them, in plain torch.

Tensors of a process hold its heads, `(B, H / T, L, E)`; `coeff` is whole everywhere. `received` counts the numbers
that a process gets from others in the forward pass.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import _functional_collectives as collectives

from coeff_tuning import coeff_attention

received: list[int] = []


def gather(tensor: Tensor, dim: int) -> Tensor:
    received.append(tensor.numel() * (dist.get_world_size() - 1))
    return collectives.all_gather_tensor_autograd(tensor.contiguous(), dim, dist.group.WORLD)


def reduce_scatter(tensor: Tensor, dim: int) -> Tensor:
    received.append(tensor.numel() * (dist.get_world_size() - 1) // dist.get_world_size())
    return collectives.reduce_scatter_tensor_autograd(tensor.contiguous(), "sum", dim, dist.group.WORLD)


def exchange(tensor: Tensor, split: int, join: int) -> Tensor:
    """From a tensor whole along `split` and sharded along `join` to the opposite."""
    ranks = dist.get_world_size()
    received.append(tensor.numel() * (ranks - 1) // ranks)
    parts = torch.stack(tensor.chunk(ranks, split)).contiguous()  # (T, ...)
    sizes = [1] * ranks
    got = collectives.all_to_all_single_autograd(parts, sizes, sizes, dist.group.WORLD)
    return torch.cat(list(got.unbind(0)), join)


def by_values(query: Tensor, key: Tensor, value: Tensor, coeff: Tensor) -> Tensor:
    """Values gathered, outputs reduce-scattered."""
    heads, rank = query.shape[1], dist.get_rank()
    own = coeff[:, rank * heads : (rank + 1) * heads]  # (H, H / T)
    maps = torch.softmax(query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]), -1)
    mixed = torch.einsum("hg,bgls->bhls", own, maps)
    groups = coeff.shape[0] // (value.shape[1] * dist.get_world_size())
    return reduce_scatter(mixed @ gather(value, 1).repeat_interleave(groups, 1), 1)


def by_queries(query: Tensor, key: Tensor, value: Tensor, coeff: Tensor) -> Tensor:
    """Heads exchanged for queries and back; keys and values gathered; between them the op as it is."""
    out = coeff_attention(exchange(query, 2, 1), gather(key, 1), gather(value, 1), coeff, enable_gqa=True)
    return exchange(out, 1, 2)


def ring(query: Tensor, key: Tensor, value: Tensor, coeff: Tensor, blocks: int) -> Tensor:
    """Two turns over blocks of keys, with one sum per output head; no process is needed to see that it is right."""
    scale = 1 / math.sqrt(query.shape[-1])
    keys, values = key.chunk(blocks, 2), value.chunk(blocks, 2)
    sums = torch.stack([(query @ k.transpose(-1, -2) * scale).logsumexp(-1) for k in keys]).logsumexp(0)  # (B, H, L)
    out: Any = 0
    for k, v in zip(keys, values, strict=True):
        maps = (query @ k.transpose(-1, -2) * scale - sums.unsqueeze(-1)).exp()
        out = out + torch.einsum("hg,bgls->bhls", coeff, maps) @ v
    return out


def shard(rank: int, ranks: int, store: str, tensors: list[Tensor], grad: Tensor, results: Any) -> None:
    """What a process does: both splits of one call, forward and backward, for its heads."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    found = {}
    for split in (by_values, by_queries):
        received.clear()
        own = [t.chunk(ranks, 1)[rank].clone().requires_grad_() for t in tensors[:3]]
        coeff = tensors[3].clone().requires_grad_()
        out = split(*own, coeff)
        numbers = sum(received)
        grads = list(torch.autograd.grad(out, [*own, coeff], grad.chunk(ranks, 1)[rank]))
        dist.all_reduce(grads[3])
        found[split.__name__] = ([t.detach().numpy() for t in (out, *grads)], numbers)
    results.put((rank, found))
    dist.destroy_process_group()
