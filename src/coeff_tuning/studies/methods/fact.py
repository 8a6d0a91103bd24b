"""FacT-TT: one low-rank tensor changes the weight matrices of all layers at once."""

from __future__ import annotations

from torch import Tensor, nn

from coeff_tuning.errors import UnsupportedModelError
from coeff_tuning.studies.methods.vit import LINEAR_LAYERS, blocks_of

RANK = 16
DROPOUT = 0.1


class FactLinear(nn.Module):
    """A frozen linear layer of a vision transformer of width d, and its share of the tensor.

        weight = base + scale * V T U        # for one (d, d) matrix: U (r, d), T (r, r), V (d, r)

    U and V are shared by the whole model, T is this layer's own. A layer that is several (d, d) matrices beside or
    above each other (qkv: 3, fc1 and fc2: 4) has one T for each. V starts at zero.

    Args:
        base: the layer, with sizes that are multiples of d.
        down: U, shared.
        up: V, shared.
        scale: factor on the change.

    Source: Jie, Deng, "FacT: Factor-Tuning for Lightweight Adaptation on Vision Transformer", AAAI 2023,
    https://arxiv.org/abs/2212.03145.
    """

    def __init__(self, base: nn.Linear, down: nn.Linear, up: nn.Linear, scale: float) -> None:
        super().__init__()
        width, rank = down.in_features, down.out_features
        self.base, self.down, self.up, self.scale = base, down, up, scale
        self.parts_in, self.parts_out = base.in_features // width, base.out_features // width
        self.core = nn.Linear(self.parts_in * rank, self.parts_out * rank, bias=False)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, features: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            features: `(..., in_features)`.

        Returns:
            `(..., out_features)`.
        """
        low = self.down(features.unflatten(-1, (self.parts_in, -1))).flatten(-2)  # (..., parts_in * r)
        middle = self.dropout(self.core(low)).unflatten(-1, (self.parts_out, -1))
        change: Tensor = self.up(middle).flatten(-2)
        return self.base(features) + self.scale * change  # type: ignore[no-any-return]


def attach(model: nn.Module, scale: float = 1.0) -> list[nn.Parameter]:
    """Put FacT on the four linear layers of every block.

    Args:
        model: a vision transformer of timm; changed in place.
        scale: factor on the change; chosen for each task.

    Returns:
        What is to be trained.

    Raises:
        UnsupportedModelError: it is another model, or a layer's size is not a multiple of the model's width.
    """
    blocks = blocks_of(model)
    width = blocks[0].attn.qkv.in_features
    down, up = nn.Linear(width, RANK, bias=False), nn.Linear(RANK, width, bias=False)
    nn.init.zeros_(up.weight)
    layers: list[nn.Linear] = [down, up]
    for block in blocks:
        for name in LINEAR_LAYERS:
            base = block.get_submodule(name)
            if base.in_features % width or base.out_features % width:
                sizes = f"{base.in_features} to {base.out_features}"
                raise UnsupportedModelError(f"FacT needs layers of multiples of the width {width}; {name} has {sizes}")
            layer = FactLinear(base, down, up, scale)
            block.set_submodule(name, layer)
            layers.append(layer.core)
    return [parameter for layer in layers for parameter in layer.parameters()]
