"""How heads are laid out in the tiles of the kernels, and how large tiles are: plain numbers, no autotuning.

A tile has numbers of all heads, `(bundles, rows, keys)`, since the mixture needs them all. A bundle is a set of
query heads that share one key/value head: keys are loaded once for all of them, and their queries lie one after
the other in the rows of the bundle. Triton spreads the warps of a batched product over its batch, so each warp
gets a bundle or more; a key/value head with many query heads is split among several bundles for that. Bundles and
their members are padded to powers of two; what is padded is neither loaded nor stored.

The sizes keep tiles and sums in registers and operands in 99 KiB of shared memory (136 KiB for more than 32 heads),
as the compiler reports for compute capabilities 8.0 to 10.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

MAX_HEADS = 64
_WARPS = 8
_SIDE = 16  # the smallest side of a product on tensor cores
_CHUNK_BYTES = 32768  # of an operand with a chunk of the features
_COEFF_SUMS = 4096  # numbers in the sums of the gradient of the coefficients

# What a program does: it keeps queries for statistics, outputs and gradients of queries, or for the deltas of the
# backward pass with the gradient of the coefficients, or keeps keys for gradients of keys and values.
Task = Literal["statistics", "queries", "delta", "keys"]


@dataclass(frozen=True)
class Plan:
    """What a kernel is compiled for.

    Attributes:
        task: what the kernel does.
        kv_heads: key/value heads.
        group: query heads of one key/value head.
        bundles: bundles of a tile, a power of two.
        split: bundles of one key/value head.
        members: query heads of one bundle, a power of two.
        queries: queries of each head in a tile.
        keys: keys of each head in a tile.
        outputs: bundles whose results one program holds; other programs take the others and compute the scores
            of all heads again.
        chunk: features that are loaded at once for a product over features.
        head_size: `E`.
        value_size: `Ev`.
        is_causal: query `i` sees keys `0..i`.
        mask: dtype of the mask, "bool" or "float"; "" for none.
        mask_per_head: heads have masks of their own.
        is_single: inputs are in float32.
    """

    task: Task
    kv_heads: int
    group: int
    bundles: int
    split: int
    members: int
    queries: int
    keys: int
    outputs: int
    chunk: int
    head_size: int
    value_size: int
    is_causal: bool
    mask: str
    mask_per_head: bool
    is_single: bool

    @property
    def mix_precision(self) -> str:
        """Precision of products with coefficients, whose operands are always in float32."""
        return "ieee" if self.is_single else "tf32x3"

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.kv_heads * self.group

    @property
    def rows(self) -> int:
        """Rows of a tile."""
        return self.members * self.queries

    @property
    def head_padded(self) -> int:
        """`E` as a power of two."""
        return pad_features(self.head_size)

    @property
    def value_padded(self) -> int:
        """`Ev` as a power of two."""
        return pad_features(self.value_size)

    @property
    def warps(self) -> int:
        """Warps of a program."""
        return min(_WARPS, self.bundles)

    @property
    def mix_width(self) -> int:
        """Columns of a tile that are mixed as if they were heads, so that few heads make a product of full size."""
        return max(1, _SIDE // (self.bundles * self.members))

    @property
    def mix_size(self) -> int:
        """Rows and columns of the matrix that mixes."""
        return self.bundles * self.members * self.mix_width

    @property
    def mix_columns(self) -> int:
        """Columns that the matrix is applied to."""
        return self.queries * self.keys // self.mix_width

    @property
    def mix_parts(self) -> int:
        """Parts of a tile whose contributions to the gradient of the coefficients are summed apart."""
        return max(1, min(self.warps, _COEFF_SUMS // self.mix_size**2))


def make_plan(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, task: Task, features: int = 0
) -> Plan:
    """Plan for one kernel of a call.

    Args:
        query: `(B, H, L, E)`.
        key: `(B, Hkv, S, E)`.
        value: `(B, Hkv, S, Ev)`.
        mask: 4 dimensions, each 1 or that of `(B, H, L, S)`; bool or float.
        is_causal: query `i` sees keys `0..i`.
        task: what the kernel does.
        features: features of the sums that a program holds.

    Returns:
        The plan.
    """
    heads, kv_heads = query.shape[1], key.shape[1]
    bundles, split, members = lay_out_heads(heads, kv_heads)
    is_single = query.dtype == torch.float32
    kept, passed = _sides(bundles, features, is_single, task)
    rows, keys = (passed, kept) if task == "keys" else (kept, passed)
    # Beyond 128 features a smaller share would leave warps without a bundle; without tensor cores it does not.
    padded = pad_features(features if is_single else min(features, 128))
    return Plan(
        task=task,
        kv_heads=kv_heads,
        group=heads // kv_heads,
        bundles=bundles,
        split=split,
        members=members,
        queries=rows // members,
        keys=keys,
        outputs=min(bundles, _WARPS if task == "statistics" else 1024 // padded),
        chunk=max(_SIDE, min(2 * _SIDE, _CHUNK_BYTES // (bundles * max(rows, keys) * query.dtype.itemsize))),
        head_size=query.shape[-1],
        value_size=value.shape[-1],
        is_causal=is_causal,
        mask="" if mask is None else "bool" if mask.dtype == torch.bool else "float",
        mask_per_head=mask is not None and mask.shape[1] > 1,
        is_single=is_single,
    )


def lay_out_heads(heads: int, kv_heads: int) -> tuple[int, int, int]:
    """Bundles of a tile, bundles of one key/value head, and members of a bundle."""
    group = heads // kv_heads
    kv_padded, group_padded = _power_of_2(kv_heads), _power_of_2(group)
    if kv_padded * group_padded > _power_of_2(heads):  # as 15 heads in 5 groups: 32 places, for the heads alone 16
        return _power_of_2(heads), group, 1
    bundles = max(kv_padded, min(_WARPS, kv_padded * group_padded))
    split = bundles // kv_padded
    return bundles, split, group_padded // split


def pad_features(size: int) -> int:
    """Features of a tile that holds them all."""
    return max(_SIDE, _power_of_2(size))


def _sides(bundles: int, features: int, is_single: bool, task: Task) -> tuple[int, int]:
    """Positions of a tile that a program keeps, and those that it goes through at once.

    As large as registers allow; products in float32 do without tensor cores, and with half of that.
    """
    if task == "statistics":
        return (32, 16) if is_single else (64, 16)
    if task == "delta" and bundles > 16:
        return (8, 16) if bundles == 32 else (8, 8)
    if bundles <= 8 and features <= 128:
        wide = (32, 16) if features <= 64 else (16, 32)
        return (16, 16) if is_single else wide
    return (8, 16) if is_single else (16, 16)


def _power_of_2(number: int) -> int:
    """The smallest power of two that is not below `number`."""
    return 1 << max(number - 1, 0).bit_length()
