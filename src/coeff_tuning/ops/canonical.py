"""From the arguments of a caller to the one canonical form that backends know: checks and broadcasting."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from coeff_tuning.ops.request import FLOAT_DTYPES, Request, compute_dtype

_KNOWN_DTYPES = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOAT_DTYPES)


def make_request(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    coeff: Tensor | None,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> tuple[Request, tuple[int, ...]]:
    """Check a call of `coeff_attention` and bring it to canonical form; arguments are those of that function.

    Args:
        query: `(..., H, L, E)`.
        key: `(..., Hkv, S, E)`.
        value: `(..., Hkv, S, Ev)`.
        coeff: `(..., H, H)` or None.
        attn_mask: broadcastable to `(..., H, L, S)`, or None.
        dropout_p: chance to zero an entry of a map.
        is_causal: query `i` sees keys `0..i`.
        scale: factor on the scores, or None.
        enable_gqa: share key/value heads.

    Returns:
        The request, and the leading dimensions that its batch stands for.
    """
    _check_tensors(query, key, value, coeff, attn_mask)
    query, key, value, attn_mask = _autocast(query, key, value, attn_mask)
    _check_dtypes(query, key, value, coeff, attn_mask)
    if attn_mask is not None and attn_mask.dtype == torch.float64:
        attn_mask = attn_mask.to(compute_dtype(query.dtype))
    query, key, value = _match_heads(query, key, value, enable_gqa)
    batch = _match_sizes(query, key, value)
    heads, length, head_size = query.shape[-3:]
    request = Request(
        query=_join_batch(query, batch, 3),
        key=_join_batch(key, batch, 3),
        value=_join_batch(value, batch, 3),
        coeff=None if coeff is None else _canonical_coeff(coeff, batch, heads),
        attn_mask=None if attn_mask is None else _canonical_mask(attn_mask, batch, (heads, length, key.shape[-2])),
        dropout_p=float(dropout_p),
        is_causal=bool(is_causal),
        scale=1.0 / math.sqrt(max(head_size, 1)) if scale is None else float(scale),
    )
    return request, batch


def _check_tensors(query: Tensor, key: Tensor, value: Tensor, coeff: Tensor | None, attn_mask: Tensor | None) -> None:
    device = query.device
    for name, tensor in (("key", key), ("value", value), ("coeff", coeff), ("attn_mask", attn_mask)):
        if tensor is not None and tensor.device != device:
            raise ValueError(f"{name} must be on the device of query, {device}; got {tensor.device}.")
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dim() < 3:
            raise ValueError(
                f"{name} must have at least 3 dimensions (heads, positions, head size); "
                f"got shape {tuple(tensor.shape)}."
            )


def _autocast(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Cast as autocast casts the inputs of SDPA: every float but float64, on the device it is on for."""
    device = query.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return query, key, value, attn_mask
    dtype = torch.get_autocast_dtype(device)

    def cast(x: Tensor) -> Tensor:
        return x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x

    return cast(query), cast(key), cast(value), None if attn_mask is None else cast(attn_mask)


def _check_dtypes(query: Tensor, key: Tensor, value: Tensor, coeff: Tensor | None, attn_mask: Tensor | None) -> None:
    if query.dtype not in FLOAT_DTYPES or not query.dtype == key.dtype == value.dtype:
        raise ValueError(
            f"query, key and value must have the same dtype, one of {_KNOWN_DTYPES}; "
            f"got {query.dtype}, {key.dtype} and {value.dtype}."
        )
    if coeff is not None and coeff.dtype not in FLOAT_DTYPES:
        raise ValueError(f"coeff must have one of the dtypes {_KNOWN_DTYPES}; got {coeff.dtype}.")
    if attn_mask is not None and attn_mask.dtype not in (torch.bool, *FLOAT_DTYPES):
        raise ValueError(f"attn_mask must be bool (True takes part) or one of {_KNOWN_DTYPES}; got {attn_mask.dtype}.")


def _match_heads(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Give key and value one number of heads that divides that of query: the groups are then implied."""
    heads, key_heads, value_heads = query.shape[-3], key.shape[-3], value.shape[-3]
    if heads == key_heads == value_heads:
        return query, key, value
    if enable_gqa:
        if 0 in (key_heads, value_heads) or heads % key_heads or heads % value_heads:
            raise ValueError(
                "query must have a multiple of the heads of key and value with enable_gqa=True; "
                f"got {heads} for {key_heads} and {value_heads}."
            )
        if key_heads != value_heads:
            key = key.repeat_interleave(heads // key_heads, -3)
            value = value.repeat_interleave(heads // value_heads, -3)
        return query, key, value
    if key_heads == value_heads == 1:
        return query, key, value
    most = max(heads, key_heads, value_heads)
    if any(n not in (1, most) for n in (heads, key_heads, value_heads)):
        raise ValueError(
            f"key and value must have the {heads} heads of query; got {key_heads} and {value_heads}. "
            "Pass enable_gqa=True to share each among several query heads."
        )
    return _spread(query, most), _spread(key, most), _spread(value, most)


def _spread(tensor: Tensor, heads: int) -> Tensor:
    return tensor.expand(*tensor.shape[:-3], heads, *tensor.shape[-2:])


def _match_sizes(query: Tensor, key: Tensor, value: Tensor) -> tuple[int, ...]:
    """Check sizes against each other; gives the leading dimensions, broadcast."""
    if key.shape[-1] != query.shape[-1]:
        raise ValueError(
            f"key must have the head size of query, {query.shape[-1]}; got {key.shape[-1]} "
            f"in key of shape {tuple(key.shape)}."
        )
    if value.shape[-2] != key.shape[-2]:
        raise ValueError(
            f"value must have as many positions as key, {key.shape[-2]}; got {value.shape[-2]} "
            f"in value of shape {tuple(value.shape)}."
        )
    leading = [tuple(x.shape[:-3]) for x in (query, key, value)]
    if leading[0] == leading[1] == leading[2]:  # most calls; broadcast_shapes takes longer than all other checks
        return leading[0]
    try:
        return tuple(torch.broadcast_shapes(*leading))
    except RuntimeError:
        raise ValueError(
            "The dimensions before the heads must broadcast in query, key and value; "
            f"got {leading[0]}, {leading[1]} and {leading[2]}."
        ) from None


def _join_batch(tensor: Tensor, batch: tuple[int, ...], kept: int) -> Tensor:
    """Broadcast the dimensions before the last `kept` to `batch`, and make them one."""
    if len(batch) == 1 and tensor.dim() == kept + 1 and tensor.shape[0] == batch[0]:
        return tensor
    last = tensor.shape[-kept:]
    return tensor.expand(*batch, *last).reshape(math.prod(batch), *last)


def _canonical_coeff(coeff: Tensor, batch: tuple[int, ...], heads: int) -> Tensor:
    """`(H, H)` if shared by the batch, else `(B, H, H)`."""
    if coeff.dim() < 2 or coeff.shape[-1] != heads or coeff.shape[-2] != heads:
        raise ValueError(
            f"coeff must have shape (H, H) = ({heads}, {heads}) to match the {heads} heads of query; "
            f"got {tuple(coeff.shape)}."
        )
    leading = coeff.shape[:-2]
    if not leading:
        return coeff
    if all(n == 1 for n in leading):
        return coeff.reshape(heads, heads)
    if not _broadcasts(leading, batch):
        raise ValueError(
            f"coeff must be ({heads}, {heads}), or one such matrix per sample with leading dimensions that "
            f"broadcast to {tuple(batch)}, those of query; got {tuple(coeff.shape)}."
        )
    return _join_batch(coeff, batch, 2)


def _canonical_mask(mask: Tensor, batch: tuple[int, ...], last: tuple[int, int, int]) -> Tensor:
    """4 dimensions, of size 1 where the mask is shared."""
    if not _broadcasts(mask.shape, (*batch, *last)):
        raise ValueError(f"attn_mask must broadcast to (..., H, L, S) = {(*batch, *last)}; got {tuple(mask.shape)}.")
    mask = mask.reshape(*[1] * (len(batch) + 3 - mask.dim()), *mask.shape)
    if all(n == 1 for n in mask.shape[:-3]):
        return mask.reshape(1, *mask.shape[-3:])
    return _join_batch(mask, batch, 3)


def _broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Whether a tensor of `shape` can be expanded to `target`."""
    pairs = zip(reversed(shape), reversed(target), strict=False)
    return len(shape) <= len(target) and all(n in (1, size) for n, size in pairs)
