"""torch.nn.MultiheadAttention, wherever it is: nn.Transformer layers, torchvision, open_clip, SigLIP's pooling head.

The module has native fast paths of its own and of `nn.TransformerEncoderLayer`, which never look at a forward. While
coefficients are active both are closed: the layer sees `_qkv_same_embed_dim` as False, and the module runs the forward
below. Where they are not, torch's own forward runs, fast paths and all.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coeff_tuning.binders.base import Binder, coeff_for
from coeff_tuning.binders.bound import Bound, bind_class, class_of, require_class_forward, unbind_class
from coeff_tuning.binders.eager import mixed_eager
from coeff_tuning.binders.projections import Place, Projections
from coeff_tuning.functional import coeff_attention
from coeff_tuning.tuner.layer import CoeffLayer


class MixedMultiheadAttention(Bound):
    """`torch.nn.MultiheadAttention` with mixed maps; same arguments, masks, results and shapes."""

    @property
    def _qkv_same_embed_dim(self) -> bool:
        # Also read where only the projections matter, so the truth must be told while torch's own forward runs.
        return bool(vars(self)["_qkv_same_embed_dim"]) and not self.coefficients.is_active

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; see `torch.nn.MultiheadAttention.forward`.

        Args:
            query: `(L, E)`, or with a batch `(B, L, E)` if `batch_first`, else `(L, B, E)`.
            key: the same with `S` positions and `kdim` features.
            value: the same with `S` positions and `vdim` features.
            key_padding_mask: `(B, S)` or `(S,)`; bool (True is left out) or float (added).
            need_weights: return the mixed maps too, which are then held.
            attn_mask: `(L, S)` or `(B * H, L, S)`; bool (True is left out) or float (added).
            average_attn_weights: return the mean of the maps over the heads.
            is_causal: `attn_mask` is the causal mask.

        Returns:
            The output, shaped as `query`, and None or the maps after dropout and mixing, `(B, L, S)` or `(B, H, L, S)`.
        """
        layer = self.active_layer()
        if layer is None:
            return cast(
                "tuple[Tensor, Tensor | None]",
                super().forward(
                    query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
                ),
            )
        if is_causal and attn_mask is None:
            raise RuntimeError("attn_mask must be given with is_causal=True, which only says that it is causal.")
        if query.is_nested:
            return _mixed_nested(self, layer, query, key, value, key_padding_mask, need_weights, attn_mask), None
        is_batched = query.dim() == 3
        if not is_batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        out, maps = _mixed(self, layer, query, key, value, key_padding_mask, need_weights, attn_mask, is_causal)
        if maps is not None and average_attn_weights:
            maps = maps.mean(dim=1)
        if not is_batched:
            return out.squeeze(0), None if maps is None else maps.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), maps


def _mixed(
    module: Any,
    layer: CoeffLayer,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None,
    need_weights: bool,
    attn_mask: Tensor | None,
    is_causal: bool,
) -> tuple[Tensor, Tensor | None]:
    """Attention of inputs `(B, positions, features)`; gives `(B, L, E)` and the maps `(B, H, L, S)` if needed."""
    batch, length = query.shape[:2]
    shape = (batch, module.num_heads, length, key.shape[1])
    is_causal = is_causal and key_padding_mask is None and not need_weights
    mask = None if is_causal else _merged_mask(key_padding_mask, attn_mask, shape, query.dtype)
    q, k, v = _projected(module, query, key, value)  # (B, H, positions, head size)
    if mask is not None and k.shape[2] > shape[3]:  # the added positions are seen by every query
        mask = F.pad(mask, (0, k.shape[2] - shape[3]), value=mask.dtype == torch.bool)
    coeff = coeff_for(module, layer.coeff(), module.num_heads, batch)
    dropout = module.dropout if module.training else 0.0
    maps = None
    if need_weights:
        out, maps = mixed_eager(q, k, v, coeff, mask, dropout, None)
    else:
        out = coeff_attention(q, k, v, coeff, mask, dropout, is_causal)
    out = out.transpose(1, 2).flatten(2)  # (B, L, E)
    return F.linear(out, module.out_proj.weight, module.out_proj.bias), maps


def _projected(module: Any, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if module.in_proj_weight is not None:
        weights = module.in_proj_weight.chunk(3)
    else:
        weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    biases = (None,) * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
    inputs = zip((query, key, value), weights, biases, strict=True)
    q, k, v = (F.linear(x, weight, bias) for x, weight, bias in inputs)  # (B, positions, E)
    batch = q.shape[0]
    if module.bias_k is not None:
        k = torch.cat([k, module.bias_k.expand(batch, -1, -1)], dim=1)
        v = torch.cat([v, module.bias_v.expand(batch, -1, -1)], dim=1)
    if module.add_zero_attn:
        k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
    q, k, v = (x.unflatten(2, (module.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    return q, k, v


def _merged_mask(
    padding: Tensor | None, attn_mask: Tensor | None, shape: tuple[int, int, int, int], dtype: torch.dtype
) -> Tensor | None:
    """One mask in the sense of SDPA: bool, True takes part, if both are bool; else float."""
    batch, heads, length, keys = shape
    masks = []
    if padding is not None:
        if padding.shape != (batch, keys):
            raise RuntimeError(f"key_padding_mask must be (B, S) = {(batch, keys)}; got {tuple(padding.shape)}.")
        masks.append(padding[:, None, None])
    if attn_mask is not None:
        if attn_mask.shape not in ((length, keys), (batch * heads, length, keys)):
            raise RuntimeError(
                f"attn_mask must be (L, S) = {(length, keys)} or (B * H, L, S) = {(batch * heads, length, keys)}; "
                f"got {tuple(attn_mask.shape)}."
            )
        masks.append(attn_mask[None, None] if attn_mask.dim() == 2 else attn_mask.view(shape))
    if not masks:
        return None
    if all(mask.dtype == torch.bool for mask in masks):
        return ~(masks[0] | masks[-1])
    return sum(_additive(mask, dtype) for mask in masks)  # type: ignore[return-value]


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -torch.inf)


def _mixed_nested(
    module: Any,
    layer: CoeffLayer,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None,
    need_weights: bool,
    attn_mask: Tensor | None,
) -> Tensor:
    """The nested tensor that `nn.TransformerEncoder` makes of a padded batch; padded again for the attention."""
    if query is not key or key is not value or need_weights or not (key_padding_mask is attn_mask is None):
        raise RuntimeError(
            "A nested tensor must attend to itself, without masks and with need_weights=False, as in "
            "nn.TransformerEncoder. Pass padded tensors with a key_padding_mask."
        )
    lengths = torch.tensor([sample.shape[0] for sample in query.unbind()], device=query.device)
    padded = torch.nested.to_padded_tensor(query, 0.0)  # (B, L, E)
    padding = torch.arange(padded.shape[1], device=query.device) >= lengths[:, None]
    out, _ = _mixed(module, layer, padded, padded, padded, padding, False, None, False)
    return torch._nested_tensor_from_mask(out, ~padding, mask_check=False)


def serves(module: nn.Module) -> bool:
    """Whether a module is torch's own multi-head attention; a subclass may add to it but not change its forward."""
    base = class_of(module)
    return issubclass(base, nn.MultiheadAttention) and base.forward is nn.MultiheadAttention.forward


def num_heads(module: nn.Module) -> int:
    """Number of heads."""
    require_class_forward(module)
    return int(module.num_heads)  # type: ignore[arg-type]


def bind(module: nn.Module) -> None:
    """Make the module's forward the one above."""
    bind_class(module, MixedMultiheadAttention)


def projections(module: Any, parent: nn.Module, heads: int) -> Projections:
    """The linear maps around the attention; of a subclass only if it adds nothing to the forward."""
    width = module.embed_dim
    value: Place | str
    if module.bias_k is not None or module.add_zero_attn:
        value = "add_bias_kv and add_zero_attn add values that no projection makes"
    elif module.in_proj_weight is not None:
        value = Place(module, 2 * width, 3 * width, "in_proj_weight", "in_proj_bias")
    else:
        value = "kdim and vdim keep its value bias apart from its value weight"
    return Projections((Place(module.out_proj),), module.num_heads, value)


BINDER = Binder("torch.nn.MultiheadAttention", serves, num_heads, bind, unbind_class, projections=projections)
