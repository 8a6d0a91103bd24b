"""What the methods here ask of a model."""

from __future__ import annotations

from typing import Any

from torch import nn

from coeff_tuning.errors import UnsupportedModelError

LINEAR_LAYERS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def blocks_of(model: nn.Module) -> list[Any]:
    """The blocks of a vision transformer of timm, checked.

    Args:
        model: any model.

    Returns:
        Its blocks, each with `norm1`, `attn.qkv`, `attn.proj`, `norm2`, `mlp.fc1`, `mlp.fc2`.

    Raises:
        UnsupportedModelError: it is built otherwise.
    """
    blocks = getattr(model, "blocks", None)
    names = ("norm1", *LINEAR_LAYERS, "norm2")
    if isinstance(blocks, nn.Sequential) and len(blocks) > 0:
        modules = dict(blocks[0].named_modules())
        if all(name in modules for name in names) and all(isinstance(modules[n], nn.Linear) for n in LINEAR_LAYERS):
            return list(blocks)
    raise UnsupportedModelError(
        f"the model must be a vision transformer of timm, with 'blocks' that hold {', '.join(names)}; got "
        f"{type(model).__name__}. Choose another --model, or the methods linear, coeff, lora and dora"
    )
