"""Users of torch.nn.MultiheadAttention, its options, masks and inputs, and torch's own math with mixed maps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tests.binders.literal import literal_mixing

B, L, S, H, E = 2, 5, 7, 3, 12
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


class Host(nn.Module):
    """A model with one attention module, `self` or cross."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(E, H, **options)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.attn(*args, **kwargs)


class Stack(nn.Module):
    """An encoder whose layers and stack have fast paths: even heads, batch first."""

    def __init__(self, norm_first: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(24, 4, 20, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        return self.encoder(x, src_key_padding_mask=padding)


class VisionBlock(nn.Module):
    """Built and called as the encoder block of torchvision's VisionTransformer."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(24)
        self.self_attention = nn.MultiheadAttention(24, 4, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        y, _ = self.self_attention(y, y, y, need_weights=False)
        return x + y


@contextmanager
def fast_path(enabled: bool) -> Iterator[None]:
    former = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(former)


@contextmanager
def literal_by_weights(model: nn.Module) -> Iterator[None]:
    """Literal mixing for callers that pass need_weights=False, for which torch has no eager math: ask for the maps."""

    def ask(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "need_weights": True}

    hosts = [m for m in model.modules() if isinstance(m, nn.MultiheadAttention)]
    handles = [host.register_forward_pre_hook(ask, with_kwargs=True) for host in hosts]
    try:
        with literal_mixing(model) as mixed, model.disable_adapter():
            yield
        assert mixed[0] == len(hosts)
    finally:
        for handle in handles:
            handle.remove()


def inputs(kind: str, batch_first: bool, kdim: int = E, vdim: int = E) -> list[Tensor]:
    shapes = {"query": (B, L, E), "key": (B, S, kdim), "value": (B, S, vdim)}
    if kind == "self":
        x = torch.randn(shapes["query"])
        x = x if batch_first else x.transpose(0, 1)
        return [x, x, x]
    tensors = [torch.randn(shape) for shape in shapes.values()]
    if kind == "unbatched":
        return [x[0] for x in tensors]
    return [x if batch_first else x.transpose(0, 1) for x in tensors]


def padding(keys: int, kind: str) -> Tensor:
    mask = torch.zeros(B, keys, dtype=torch.bool)
    mask[1, -2:] = True
    return mask if kind == "bool" else torch.randn(B, keys).masked_fill(mask, -torch.inf)


def pattern(keys: int, kind: str, per_head: bool = False) -> Tensor:
    shape = (B * H, L, keys) if per_head else (L, keys)
    mask = torch.rand(shape) < 0.3
    mask[..., 0] = False
    return mask if kind == "bool" else torch.randn(shape).masked_fill(mask, -torch.inf)


CASES: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "self": ({"batch_first": True}, "self", {}),
    "self-seq-first": ({}, "self", {}),
    "cross": ({"batch_first": True}, "cross", {}),
    "cross-seq-first": ({}, "cross", {}),
    "no-bias": ({"bias": False}, "cross", {}),
    "kdim-vdim": ({"kdim": 11, "vdim": 13, "batch_first": True}, "cross", {}),
    "unbatched": ({}, "unbatched", {"attn_mask": pattern(S, "bool")}),
    "padding-bool": ({}, "cross", {"key_padding_mask": padding(S, "bool")}),
    "padding-float": ({}, "cross", {"key_padding_mask": padding(S, "float")}),
    "mask-bool": ({"batch_first": True}, "cross", {"attn_mask": pattern(S, "bool")}),
    "mask-float": ({}, "cross", {"attn_mask": pattern(S, "float")}),
    "mask-per-head": ({}, "cross", {"attn_mask": pattern(S, "bool", per_head=True)}),
    "both-masks": ({}, "cross", {"attn_mask": pattern(S, "bool"), "key_padding_mask": padding(S, "bool")}),
    "both-float": ({}, "cross", {"attn_mask": pattern(S, "float"), "key_padding_mask": padding(S, "float")}),
    "bias-kv": ({"add_bias_kv": True}, "cross", {"attn_mask": pattern(S, "bool")}),
    "zero-attn": ({"add_zero_attn": True}, "cross", {"key_padding_mask": padding(S, "bool")}),
    "bias-kv-zero-attn-float": (
        {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True},
        "cross",
        {"attn_mask": pattern(S, "float"), "key_padding_mask": padding(S, "float")},
    ),
    "causal": (
        {"batch_first": True},
        "self",
        {"attn_mask": torch.ones(L, L, dtype=torch.bool).triu(1), "is_causal": True},
    ),
    "causal-and-padding": (
        {"batch_first": True},
        "self",
        {
            "attn_mask": torch.ones(L, L, dtype=torch.bool).triu(1),
            "is_causal": True,
            "key_padding_mask": padding(L, "bool"),
        },
    ),
}
